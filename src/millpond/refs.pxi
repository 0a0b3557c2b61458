# ObjectRef (one local count) and View (one pin).

@cython.final
@cython.no_gc_clear
cdef class ObjectRef:
    """A handle that keeps one object alive, in memory or on disk.

    Hashable, comparable by object, picklable (a pickle is one delivery: a hand-off keeps the
    object alive until it is loaded or lapses). `get(timeout=None, copy=False)` reads the value.
    """

    cdef Core core
    cdef uint32_t entry
    cdef uint64_t birth
    cdef object __weakref__

    def __init__(self):
        raise TypeError("refs come from put, create, lookup and from unpickling")

    def __dealloc__(self):
        cdef Core core = self.core
        cdef mp_code code
        if core is None or self.entry == 0 or core.m.state != MP_MEMBER_OPEN:
            return
        if mp_drop(&core.m, self.entry, 50000) != MP_BUSY:
            return
        atomic_add(&core.uses, 1, ACQ_REL)
        with nogil:
            code = mp_drop(&core.m, self.entry, -1)
        if code != MP_OK:
            mp_drop_later(&core.m, self.entry)
        core.release_use()

    cdef Core home(self):
        """The store's member; a ref that was made by __new__ has none."""
        if self.core is None:
            raise TypeError("this ref was not made by a store")
        return self.core

    @property
    def id(self):
        """The object's id: 32 hex digits of the store's uuid, the entry and the birth number."""
        return f"{self.home().uuid.hex()}-{self.entry:x}-{self.birth:x}"

    @property
    def size(self):
        """Bytes of the stored value, header included. Raises StoreClosedError after close."""
        self.home().ensure_open()
        return self.core.m.entries[self.entry].size

    def get(self, *, timeout=None, bint copy=False):
        """The value, as `Store.get` gives it."""
        return self.home().get(self, timeout=timeout, copy=copy)

    def __eq__(self, other):
        if type(other) is not ObjectRef:
            return NotImplemented
        cdef ObjectRef o = <ObjectRef>other
        return self.entry == o.entry and self.birth == o.birth and self.home().uuid == o.home().uuid

    def __hash__(self):
        return hash((self.birth, self.entry))

    def __repr__(self):
        return f"<ObjectRef {self.id}>"

    def __copy__(self):
        return hold_ref(self.home(), self.entry, self.birth)

    def __deepcopy__(self, memo):
        return hold_ref(self.home(), self.entry, self.birth)

    def __reduce__(self):
        if inside_put():
            raise errors.SerializationError(
                "a ref inside a stored value is not supported: store the values themselves, or send the refs "
                "beside the value (a ref pickles by itself)"
            )
        return _load_ref, (self.home()._hand_off(self),)

    @property
    def _key(self):
        return self.entry, self.birth

    @property
    def _store(self):
        return self.core


_load_ref = None


def set_ref_loader(loader):
    """Installs the function that a pickled ref calls with its bytes."""
    global _load_ref
    _load_ref = loader


cdef ObjectRef make_ref(Core core, uint32_t entry, uint64_t birth):
    """Takes over one local count."""
    cdef ObjectRef ref = ObjectRef.__new__(ObjectRef)
    ref.core = core
    ref.entry = entry
    ref.birth = birth
    return ref


cdef ObjectRef hold_ref(Core core, uint32_t entry, uint64_t birth):
    cdef mp_code code
    core.enter()
    with nogil:
        code = mp_hold(&core.m, entry, birth)
    core.release_use()
    if code != MP_OK:
        raise core.failure(code, f"object {entry:x}-{birth:x}")
    return make_ref(core, entry, birth)


@cython.final
@cython.no_gc_clear
cdef class View:
    """A read-only buffer over one object's bytes. It pins the object as long as it lives."""

    cdef Core core
    cdef uint32_t entry
    cdef const uint8_t *data
    cdef uint64_t size
    cdef object __weakref__

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void *>self.data, self.size, 1, flags)

    def __dealloc__(self):
        if self.core is not None:
            mp_unpin(&self.core.m, self.entry, MP_ONE_VIEW)
            self.core.release_use()


cdef View take_view(Core core, uint32_t entry, uint64_t offset, uint64_t size):
    """Takes over the pin that mp_view has set."""
    cdef View view = View.__new__(View)
    view.core = core
    view.entry = entry
    view.data = core.m.arena_read + offset
    view.size = size
    atomic_add(&core.uses, 1, ACQ_REL)
    return view


@cython.final
@cython.no_gc_clear
cdef class PrivateCopy:
    """A read-only buffer over a private copy of an object that found no room; counted while it lives."""

    cdef Core core
    cdef object memory
    cdef const uint8_t *data
    cdef uint64_t size
    cdef object __weakref__

    def __init__(self, Core core not None, memory):
        """`memory` is a contiguous buffer; its bytes are already counted (`Core._overflow`)."""
        self.data = address_of(memory)
        self.size = memoryview(memory).nbytes
        self.memory = memory
        self.core = core

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void *>self.data, self.size, 1, flags)

    def __dealloc__(self):
        if self.core is not None and self.core.m.state == MP_MEMBER_OPEN:
            self.core._overflow(-<int64_t>self.size)
