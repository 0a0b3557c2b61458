# Descriptor: an open file that no interrupt can lose.

from libc.errno cimport EBADF

cdef extern from "unistd.h" nogil:
    int close_descriptor "close"(int fd)


@cython.final
cdef class Descriptor:
    """A file that is opened, with `os.open`, and owned by the same compiled call, and closed with its last reference.

    Between an `os.open` in Python and the variable that takes its result, the exception of a signal's handler
    would leave the file open. Raises what `os.open` raises.
    """

    cdef int fd
    cdef object __weakref__

    def __cinit__(self, path, int flags, int mode=0o600):
        self.fd = -1
        self.fd = os.open(path, flags, mode)

    def __dealloc__(self):
        if self.fd >= 0:
            close_descriptor(self.fd)

    def __index__(self):
        return self.fd

    def fileno(self):
        """The number; -1 once it is closed."""
        return self.fd

    def close(self):
        """Closes the file, whatever the system says to that. Raises OSError (EBADF) when it was closed before."""
        cdef int fd = self.fd, failed, error
        self.fd = -1
        with nogil:
            failed = close_descriptor(fd)
            error = system_error
        if failed and error == EBADF:
            raise OSError(error, os.strerror(error))
