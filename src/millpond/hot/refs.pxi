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
            if core.m.header.doomed or core.m.deferred: # it contained refs; others wait to be dropped
                core.undertake()
            return
        count_add(&core.uses, 1)
        with nogil: # one wait behind a stopped holder is enough: it is over when those put off could be dropped
            code = MP_BUSY if core.m.deferred else mp_drop(&core.m, self.entry, -1)
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
        cdef Core home = self.home()
        if packing_now != NULL:
            return self.contained(<Core>packing_now.core)
        return _load_ref, (home._hand_off(self, 0 if weak_depth else 1),)

    cdef object contained(self, Core container):
        """Pickled inside a value: the container will keep the object alive, so no hand-off is taken."""
        if self.core.uuid != container.uuid:
            raise TypeError("a ref of another store inside a value cannot be kept alive: put its value instead")
        if packing_now.refs == NULL:
            refs = []
            Py_INCREF(refs)
            packing_now.refs = <PyObject *>refs
        (<list>packing_now.refs).append(self)
        return load_contained, (self.core.uuid, self.entry, self.birth)

    def export(self, *, deliveries=1, timeout=None):
        """Bytes for `millpond.load_ref`: a hand-off for broadcast, files and slow queues.

        deliveries: how many loads it is good for; each takes one, in any process. timeout: seconds until
        it lapses; None: the store's `handoff_timeout`. Raises ValueError, StoreClosedError, StoreFullError.
        """
        return self.home()._hand_off(self, deliveries, timeout)

    def __dask_tokenize__(self):
        return "millpond", self.id

    @property
    def _key(self):
        return self.entry, self.birth

    @property
    def _store(self):
        return self.home()


_load_ref = None


def set_ref_loader(loader):
    """Installs the function that a pickled ref calls with its bytes."""
    global _load_ref
    _load_ref = loader


_cores = weakref.WeakValueDictionary()


def load_contained(bytes uuid, uint32_t entry, uint64_t birth):
    """A ref out of a value that was read from the store with that uuid. For pickles only."""
    core = _cores.get(uuid)
    if core is None:
        raise errors.StoreClosedError(f"the value's refs belong to the store {uuid.hex()}, which is not open here")
    return hold_ref(<Core?>core, entry, birth)


@cython.final
cdef class weak_pickling:
    """A context in which pickled refs take no hand-off: for hashing and logging, where nobody loads them.

    Such a pickle loads as long as somebody else keeps the object alive. Per thread, may be nested.
    """

    def __enter__(self):
        global weak_depth
        weak_depth += 1

    def __exit__(self, *exc_info):
        global weak_depth
        weak_depth -= 1


cdef bint _note_sites = bool(os.environ.get("MILLPOND_SITES"))


def note_sites(bint on):
    """Whether new objects of this process get the line that made them, as with MILLPOND_SITES; returns what was."""
    global _note_sites
    was = _note_sites
    _note_sites = on
    return was


cdef void note_site(ObjectRef ref):
    """Writes the calling line beside the entry: switched on by MILLPOND_SITES, since it costs a microsecond."""
    cdef mp_site *site = &ref.core.m.sites[ref.entry]
    cdef bytes text
    frame = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("millpond."):
        frame = frame.f_back
    if frame is None:
        return
    text = f"{frame.f_code.co_filename}:{frame.f_lineno}".encode()[-55:]
    site.birth = 0
    memset(site.text, 0, sizeof(site.text))
    memcpy(site.text, PyBytes_AS_STRING(text), len(text))
    site.birth = ref.birth


cdef inline ObjectRef unused_ref(Core core):
    """A ref to nothing yet. Made before the local count that it will take over: without memory for it, nobody
    could give that back."""
    cdef ObjectRef ref = ObjectRef.__new__(ObjectRef)
    ref.core = core
    return ref


cdef inline ObjectRef taken(ObjectRef ref, uint32_t entry, uint64_t birth):
    """The unused ref takes over one local count."""
    ref.entry = entry
    ref.birth = birth
    return ref


cdef int born(ObjectRef ref, uint32_t entry, uint64_t birth) except -1:
    """The unused ref is the first one of a new object, whose maker gives up a draft for which this raises."""
    taken(ref, entry, birth)
    if _note_sites:
        note_site(ref)
    return 0


cdef ObjectRef hold_ref(Core core, uint32_t entry, uint64_t birth):
    cdef mp_code code
    cdef ObjectRef ref = unused_ref(core)
    core.enter()
    with nogil:
        code = mp_hold(&core.m, entry, birth)
    core.release_use()
    if code != MP_OK:
        raise core.failure(code, f"object {entry:x}-{birth:x}")
    return taken(ref, entry, birth)


@cython.final
@cython.freelist(16)
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


cdef inline View new_view "mp_new_view"():
    return View.__new__(View)


cdef extern from *:
    """
    /* A view, or NULL and MemoryError: as bytes_or_null and checked. */
    #define mp_view_or_null() ((PyObject *)mp_new_view())
    #define mp_checked_view(view) ((void *)(view))
    """
    PyObject *view_or_null "mp_view_or_null"()
    View checked_view "mp_checked_view"(PyObject *)
    bint unlikely(bint)


cdef View take_view(Core core, uint32_t entry, uint64_t offset, uint64_t size):
    """Takes over the pin that mp_view has set, also when there is no memory for the view."""
    cdef PyObject *raw = view_or_null()
    if unlikely(raw == NULL):
        mp_unpin(&core.m, entry, MP_ONE_VIEW)
    cdef View view = checked_view(raw)
    view.core = core
    view.entry = entry
    view.data = core.m.arena_read + offset
    view.size = size
    count_add(&core.uses, 1)
    return view


@cython.final
@cython.no_gc_clear
cdef class PrivateCopy:
    """A read-only buffer over a private copy of an object that found no room; counted while it lives."""

    cdef Core core
    cdef object memory
    cdef const uint8_t *data
    cdef uint64_t size
    cdef uint64_t owner  # the slot word of the member that counts it: not of a forked child
    cdef object __weakref__

    def __init__(self, Core core not None, memory):
        """`memory` is a contiguous buffer; its bytes are already counted (`Core._overflow`)."""
        self.data = address_of(memory)
        self.size = memoryview(memory).nbytes
        self.memory = memory
        self.owner = core.m.slot_word
        self.core = core

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, <void *>self.data, self.size, 1, flags)

    def __dealloc__(self):
        if self.core is not None and self.core.m.state == MP_MEMBER_OPEN and self.core.m.slot_word == self.owner:
            self.core._overflow(-<int64_t>self.size)
