# PrivateMap: memory of the store that can be written to without anybody else seeing it.

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *address, size_t length, int protection, int flags, int fd, int64_t offset)
    int munmap(void *address, size_t length)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE
    void *MAP_FAILED

cdef uint64_t SYSTEM_PAGE = os.sysconf("SC_PAGESIZE")


@cython.final
@cython.no_gc_clear
cdef class PrivateMap:
    """A writable buffer over bytes of a view, which it keeps. Pages are the store's until they are written to, and
    this process's own from then on (a private mapping of the arena)."""

    cdef View view
    cdef uint8_t *start
    cdef size_t length
    cdef uint8_t *data
    cdef Py_ssize_t size
    cdef object __weakref__

    def __init__(self):
        raise TypeError("private maps come from map_private")

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, self.size, 0, flags)

    def __dealloc__(self):
        if self.start != NULL:
            munmap(self.start, self.length)


def map_private(memory not None):
    """A PrivateMap of `memory`, a contiguous buffer that `get` has given; None for any other, or when the system
    has no address space or commit left: then copy."""
    cdef object view = memoryview(memory)
    cdef object owner = view.obj
    if type(owner) is not View or (<View>owner).core is None:
        return None
    cdef View whole = <View>owner
    cdef mp_member *m = &whole.core.m
    cdef const uint8_t *data = address_of(view)
    cdef uint64_t size = view.nbytes
    if size == 0 or m.state != MP_MEMBER_OPEN or data < whole.data or data + size > whole.data + whole.size:
        return None
    cdef uint64_t offset = data - m.arena_read
    cdef uint64_t before = offset % SYSTEM_PAGE
    cdef void *start = mmap(NULL, before + size, PROT_READ | PROT_WRITE, MAP_PRIVATE, m.arena_fd, offset - before)
    if start == MAP_FAILED:
        return None
    cdef PrivateMap found = PrivateMap.__new__(PrivateMap)
    found.start, found.length = <uint8_t *>start, before + size
    found.data, found.size = <uint8_t *>start + before, size
    found.view = whole
    return found
