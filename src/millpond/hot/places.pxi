# Disk copies as a whole: which segments there are, which of their pages are in use, moving and dropping records.
#
# Invariants: what a scan returns may be a moment old; move and drop check each record again, under the mutex.

cdef extern from "fcntl.h" nogil:
    int fallocate(int fd, int mode, int64_t offset, int64_t length)
    int FALLOC_FL_PUNCH_HOLE
    int FALLOC_FL_KEEP_SIZE

from libc.errno cimport errno as system_error

cdef enum:
    ROWS = 4096
    PAGES_PER_WORD = 64

SEGMENT_CLOSED = MP_SEGMENT_CLOSED  # state of a file that nobody appends to any more
SEGMENT = np.dtype([("id", "u8"), ("size", "u8"), ("live", "u8"), ("punched", "u8"), ("segment", "u4"),
                    ("directory", "u4"), ("state", "u4"), ("owner", "u4")])
RECORD = np.dtype([("birth", "u8"), ("size", "u8"), ("offset", "u8"), ("length", "u8"), ("checksum", "u8"),
                   ("entry", "u4"), ("segment", "u4"), ("codec", "u1"), ("resident", "u1"), ("pad", "V6")])
assert SEGMENT.itemsize == sizeof(mp_segment_row) and RECORD.itemsize == sizeof(mp_record)


def punch_hole(int fd, int64_t offset, int64_t length):
    """Gives the blocks of a part of a file back to its filesystem; the size stays. Raises OSError."""
    cdef int failed, error
    with nogil:
        failed = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)
        error = system_error
    if failed:
        raise OSError(error, os.strerror(error))


@cython.final
cdef class Places:
    """All disk copies of one store. Every method raises StoreClosedError, StoreBusyError, StoreCorruptedError."""

    cdef Core core

    def __init__(self, Core core not None):
        self.core = core

    cdef int check(self, mp_code code) except -1:
        if code != MP_OK:
            raise self.core.failure(code, "the spill files")
        return 0

    def segments(self):
        """Every segment that there is, as a SEGMENT array."""
        cdef uint32_t cursor = 0, n = ROWS
        cdef mp_segment_row *p
        cdef mp_code code
        cdef cnp.ndarray rows
        parts = []
        self.core.ensure_open()
        while n == ROWS:
            rows = np.empty(ROWS, SEGMENT)
            p = <mp_segment_row *>cnp.PyArray_DATA(rows)
            with nogil:
                code = mp_segments(&self.core.m, &cursor, p, ROWS, &n)
            self.check(code)
            parts.append(rows[:n])
        return np.concatenate(parts)

    def live_pages(self, segments):
        """For each row of `segments`, a bit for each page of the file, as an array of 64-bit words: 1 if a record
        that has not ended touches it. Pages beyond the file's end are 0."""
        cdef uint32_t cursor = 0, high
        cdef mp_page_map map
        cdef mp_code code = MP_OK
        cdef cnp.ndarray bases, bits
        if len(segments) == 0:
            return []
        words = np.zeros(int(segments["segment"].max()) + 2, np.uint64)
        words[segments["segment"] + 1] = segments["size"] // (MP_PAGE * PAGES_PER_WORD) + 1
        ends = np.cumsum(words, dtype=np.uint64)
        bases = ends * PAGES_PER_WORD
        bits = np.zeros(int(ends[-1]), np.uint64)
        map.bases = <uint64_t *>cnp.PyArray_DATA(bases)
        map.bits = <uint64_t *>cnp.PyArray_DATA(bits)
        map.segments = len(bases) - 1
        self.core.ensure_open()
        with nogil:
            high = mp_entries_backed(&self.core.m)
            while cursor < high and code == MP_OK:
                code = mp_live_pages(&self.core.m, &cursor, &map)
        self.check(code)
        return [bits[ends[index]:ends[index + 1]] for index in segments["segment"]]

    def records(self, const uint8_t[:] wanted, uint32_t cursor):
        """(RECORD array, cursor): some of the records in the segments that are marked by their index, of objects
        that are alive and not pinned. Begin with 0; over when the cursor is None."""
        cdef uint32_t n = 0, count = wanted.shape[0], high
        cdef cnp.ndarray rows = np.empty(ROWS, RECORD)
        cdef mp_record *p = <mp_record *>cnp.PyArray_DATA(rows)
        cdef const uint8_t *marks = &wanted[0] if count else NULL
        cdef mp_code code = MP_OK
        self.core.ensure_open()
        with nogil:
            high = mp_entries_backed(&self.core.m)
            while cursor < high and n == 0 and code == MP_OK:
                code = mp_records(&self.core.m, &cursor, marks, count, p, ROWS, &n)
        self.check(code)
        return rows[:n], cursor if cursor < high else None

    def move(self, records, uint32_t segment, offsets):
        """Copies of `records` are whole on disk, in the open `segment` at `offsets`: their places become those.

        Returns which did, as a bool array: not those that are pinned, gone or elsewhere by now.
        """
        cdef cnp.ndarray rows = np.ascontiguousarray(records, RECORD)
        cdef const uint64_t[:] at = np.ascontiguousarray(offsets, np.uint64)
        cdef mp_record *p = <mp_record *>cnp.PyArray_DATA(rows)
        cdef Py_ssize_t i, count = len(rows)
        cdef mp_code code = MP_OK
        moved = np.zeros(count, np.bool_)
        cdef uint8_t[:] done = moved.view(np.uint8)
        if at.shape[0] != count:
            raise ValueError(f"{count} records and {at.shape[0]} offsets")
        self.core.ensure_open()
        with nogil:
            for i in range(count):
                code = mp_place_move(&self.core.m, &p[i], segment, at[i])
                done[i] = code == MP_OK
                if code != MP_OK and code != MP_NOT_FOUND and code != MP_IS_PINNED:
                    break
                code = MP_OK
        self.check(code)
        return moved

    def drop(self, records):
        """Drops the disk copies of those `records` whose objects are in memory and that nobody pins; how many."""
        cdef cnp.ndarray rows = np.ascontiguousarray(records, RECORD)
        cdef mp_record *p = <mp_record *>cnp.PyArray_DATA(rows)
        cdef Py_ssize_t i, count = len(rows), dropped = 0
        self.core.ensure_open()
        with nogil:
            for i in range(count):
                if p[i].entry < self.core.m.geometry.entries:
                    dropped += mp_drop_place(&self.core.m, p[i].entry, p[i].birth) == MP_OK
        return dropped
