# Draft: an object that its owner writes in place before it is sealed.

@cython.final
@cython.no_gc_clear
cdef class Draft:
    """An object being written: `array` (from `create`) or `buffer` (from `create_buffer`) is the store's memory.

    `ref` may be used and sent at once; `get` waits for the seal. `seal()` publishes without a copy;
    `abort()`, or leaving a `with` block unsealed, discards. A fork's child cannot seal its parent's draft.
    """

    cdef Core core
    cdef readonly ObjectRef ref
    cdef uint64_t owner      # the member's slot word when the draft was made
    cdef uint8_t *data       # of the payload
    cdef uint64_t nbytes
    cdef object shape, dtype
    cdef int64_t exports     # writable exports that are alive
    cdef readonly bint sealed
    cdef bint ended, pinned

    def __init__(self):
        raise TypeError("drafts come from Store.create and Store.create_buffer")

    @property
    def array(self):
        """The array over the store's memory: writable until the seal, read-only after it."""
        if self.dtype is None:
            raise TypeError("this draft was made by create_buffer: use draft.buffer")
        if self.sealed:
            return self.ref.get()
        return np.ndarray(self.shape, self.dtype, memoryview(self.writable()))

    @property
    def buffer(self):
        """The memoryview of the store's memory: writable until the seal, read-only after it."""
        if self.dtype is not None:
            raise TypeError("this draft was made by create: use draft.array")
        return self.ref.get() if self.sealed else memoryview(self.writable())

    cdef Export writable(self):
        self.ensure_mine()
        cdef Export export = Export.__new__(Export)
        export.draft = self
        atomic_add(&self.exports, 1, ACQ_REL)
        return export

    cdef int ensure_mine(self) except -1:
        if self.core is None:
            raise TypeError("this draft was not made by a store")
        self.core.ensure_open()
        if self.owner != self.core.m.slot_word:
            raise errors.StoreClosedError("this draft belongs to the process that made it, not to its forked child")
        if self.ended:
            raise ValueError("this draft is sealed or aborted")
        return 0

    def seal(self):
        """Publishes the object as it is and returns its ref; no copy.

        Raises BufferError while an array or memoryview of the draft is alive (the draft stays as it
        was: drop them and seal again), ObjectDeletedError if the object was deleted meanwhile.
        """
        self.ensure_mine()
        if atomic_get(&self.exports, ACQUIRE):
            raise BufferError(
                f"{self.exports} writable array or memoryview of this draft is still alive: drop it, then seal"
            )
        return self.publish()

    def _seal_shared(self):
        """As `seal`, also while writable arrays or memoryviews of the draft are alive.

        For interfaces that promise that (Plasma's): who keeps one can go on writing into the sealed object,
        which stays where it is until the last of them is gone.
        """
        self.ensure_mine()
        return self.publish()

    cdef ObjectRef publish(self):
        cdef mp_code code = mp_seal(&self.core.m, self.ref.entry, self.ref.birth)
        self.ended = True
        if atomic_get(&self.exports, ACQUIRE) == 0:
            self.unpin()
        if code != MP_OK:
            raise self.core.failure(code, self.ref.id)
        self.sealed = True
        return self.ref

    def abort(self):
        """Discards the object; whoever waits for it gets ObjectDeletedError. Idempotent."""
        if self.core is None or self.ended or self.owner != self.core.m.slot_word:
            return
        self.ended = True
        if self.core.m.state == MP_MEMBER_OPEN: # the draft's own use keeps the mappings
            with nogil:
                mp_abort(&self.core.m, self.ref.entry, self.ref.birth)
        if atomic_get(&self.exports, ACQUIRE) == 0:
            self.unpin()

    cdef void unpin(self) noexcept:
        """The writer's pin goes, once, with the last writable export."""
        if self.pinned:
            self.pinned = False
            mp_unpin(&self.core.m, self.ref.entry, MP_ONE_OP)
            self.core.release_use()

    cdef void export_gone(self) noexcept:
        if atomic_add(&self.exports, -1, ACQ_REL) == 0 and self.ended and self.owner == self.core.m.slot_word:
            self.unpin()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.abort()

    def __reduce__(self):
        raise TypeError("a draft stays in the process that writes it: send draft.ref, which others may wait for")

    def __dealloc__(self):
        if self.core is not None and self.ref is not None and self.owner == self.core.m.slot_word:
            if not self.ended and self.core.m.state == MP_MEMBER_OPEN:
                mp_abort(&self.core.m, self.ref.entry, self.ref.birth)
            self.unpin()


@cython.final
@cython.no_gc_clear
cdef class Export:
    """A writable buffer over a draft; while one is alive, the draft cannot be sealed."""

    cdef Draft draft

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self.draft is None:
            raise BufferError("this export was not made by a draft")
        PyBuffer_FillInfo(buffer, self, self.draft.data, self.draft.nbytes, 0, flags)

    def __dealloc__(self):
        if self.draft is not None:
            self.draft.export_gone()
