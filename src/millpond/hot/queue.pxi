# Waiting for room, in order.

@cython.final
@cython.no_gc_clear
cdef class Queued:
    """This member waits for room for a value; a context manager.

    While it waits longest, what comes free is put by for it. Entered and left here, since an interrupt can strike
    after any call.
    """

    cdef Core core
    cdef uint64_t owner      # the member's slot word: a forked child has a copy, but waits for nothing
    cdef uint64_t nbytes
    cdef bint entered

    def __init__(self, Core core not None, uint64_t nbytes):
        self.core, self.nbytes, self.owner = core, nbytes, core.m.slot_word
        core.enter()
        cdef mp_code code
        with nogil:
            code = mp_queue_enter(&core.m, nbytes)
        self.entered = code == MP_OK
        if code != MP_OK:
            core.release_use()
            raise core.failure(code, "room")

    def renew(self):
        """To be called before each attempt; the number to pass to `Core._wait_event` after it."""
        cdef uint32_t seen = mp_event(&self.core.m)
        cdef mp_code code
        with nogil:
            code = mp_queue_renew(&self.core.m)
        if code != MP_OK:
            raise self.core.failure(code, "room")
        return seen

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.finish()

    def __dealloc__(self):
        if self.core is not None:
            self.finish()

    cdef int finish(self) except -1:
        if self.entered:
            self.entered = False
            if self.owner == self.core.m.slot_word:
                with nogil:
                    mp_queue_leave(&self.core.m, self.nbytes)
            self.core.release_use()
        return 0
