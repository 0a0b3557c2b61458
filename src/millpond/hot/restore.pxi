# The loops of restoring many: claim spilled objects in disk order, check and copy small records, build values.
#
# Invariants: a claim is an operation's pin and is ended exactly once, by take, by release or when the batch goes;
# a restore that has begun ends before its claim does; what differs from the table in any byte is passed
# over: the way for single objects reads it again and judges it.

cdef extern from "stdlib.h" nogil:
    void qsort(void *base, size_t count, size_t size, int (*compare)(const void *, const void *) noexcept nogil)

cdef struct Spilled:
    uint64_t birth
    uint64_t size
    uint64_t extent      # in the arena, once begun
    mp_place place
    uint32_t entry
    uint32_t index       # in the list of refs
    uint8_t pinned
    uint8_t begun
    uint8_t checked      # 1: the record is right, 2: it is not


cdef int by_place(const void *a, const void *b) noexcept nogil:
    cdef const Spilled *x = <const Spilled *>a
    cdef const Spilled *y = <const Spilled *>b
    if x.place.segment != y.place.segment:
        return -1 if x.place.segment < y.place.segment else 1
    return -1 if x.place.offset < y.place.offset else x.place.offset > y.place.offset


@cython.final
@cython.no_gc_clear
cdef class RestoreBatch:
    """Spilled objects of one store, claimed for restoring, in the order in which they lie on disk.

    Several threads may work on it, each on items of its own. Claims that are left when it goes are ended.
    """

    cdef Core core
    cdef list refs
    cdef uint64_t owner      # the member's slot word: a forked child has a copy, but none of the claims
    cdef Spilled *items
    cdef readonly Py_ssize_t count
    """How many objects are claimed."""
    cdef readonly uint64_t nbytes
    """Bytes of their values."""
    cdef readonly bint full
    """Whether there were more than `byte_limit` allows."""

    def __cinit__(self, Core core not None, list refs not None, indices, uint64_t byte_limit):
        """Claims those of refs[i], i in `indices`, that are spilled, until they have `byte_limit` bytes.

        Raises StoreClosedError, StoreBusyError.
        """
        cdef Py_ssize_t room = len(indices)
        core.ensure_open()
        self.core, self.refs = core, refs
        self.owner = core.m.slot_word
        count_add(&core.uses, 1)
        self.items = <Spilled *>malloc((room + 1) * sizeof(Spilled))
        if self.items == NULL:
            raise MemoryError()
        for index in indices:
            if self.claim(<ObjectRef?>refs[index], index):
                self.nbytes += self.items[self.count].size
                self.count += 1
                if self.nbytes > byte_limit:
                    self.full = True
                    self.count -= 1
                    self.finish(&self.items[self.count])
                    break
        qsort(self.items, self.count, sizeof(Spilled), by_place)

    cdef bint claim(self, ObjectRef ref, uint32_t index) except -1:
        cdef Spilled *s = &self.items[self.count]
        cdef mp_code code = mp_state(&self.core.m, ref.entry, ref.birth)
        if code != MP_IS_SPILLED:
            return False
        memset(s, 0, sizeof(Spilled))
        s.entry, s.birth, s.index, s.pinned = ref.entry, ref.birth, index, True
        with nogil:
            code = mp_place_read(&self.core.m, s.entry, s.birth, &s.place, &s.size)
        if code == MP_IS_RESTORING:
            mp_unpin(&self.core.m, s.entry, MP_ONE_OP)
        if code == MP_BUSY or code == MP_CORRUPTED or code == MP_CLOSED:
            raise self.core.failure(code, ref.id)
        return code == MP_IS_SPILLED

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self.core is None:
            return
        if self.owner == self.core.m.slot_word:
            for i in range(self.count):
                self.finish(&self.items[i])
        free(self.items)
        self.core.release_use()

    cdef void finish(self, Spilled *s) noexcept:
        if self.owner != self.core.m.slot_word:
            return
        if s.begun:
            s.begun = False
            with nogil:
                mp_restore_end(&self.core.m, s.entry, s.birth, MP_SPILLED)
        if s.pinned:
            s.pinned = False
            mp_unpin(&self.core.m, s.entry, MP_ONE_OP)

    cdef Spilled *at(self, Py_ssize_t item) except NULL:
        if item < 0 or item >= self.count:
            raise IndexError(f"item {item} of a batch of {self.count}")
        if self.owner != self.core.m.slot_word:
            raise errors.StoreClosedError("this batch belongs to the process that made it, not to a forked child")
        return &self.items[item]

    def ref(self, Py_ssize_t item):
        """The ref of one object."""
        return self.refs[self.at(item).index]

    def place(self, Py_ssize_t item):
        """(place, entry, birth, size in bytes) of one object; the place is good while it is claimed."""
        cdef Spilled *s = self.at(item)
        return (s.place.offset, s.place.length, s.place.checksum, s.place.segment, s.place.codec), s.entry, s.birth, s.size

    def run(self, Py_ssize_t first, uint64_t window, uint64_t gap):
        """The end of the run that begins with item `first`: records that are read together, from `window`
        bytes of one file. Small ones (below 64 KiB) may have `gap` bytes between two; larger ones that
        are not compressed follow each other closely. Any other record is a run of its own."""
        cdef Spilled *s = self.at(first)
        cdef uint64_t start = s.place.offset // MP_PAGE * MP_PAGE, end = s.place.offset + s.place.length
        cdef bint small = s.size < RECORD_SMALL_END
        cdef Py_ssize_t stop = first + 1
        if not small and s.place.codec:
            return stop
        while stop < self.count:
            s = &self.items[stop]
            if s.place.segment != self.items[first].place.segment or (s.size < RECORD_SMALL_END) != small:
                break
            if s.place.offset > end + gap or (not small and (s.place.codec or s.place.offset != end)):
                break
            if round_up(s.place.offset + s.place.length, MP_PAGE) - start > window:
                break
            end = s.place.offset + s.place.length
            stop += 1
        return stop

    def begin(self, Py_ssize_t item):
        """(code, writable memoryview of the extent): this member restores the object now."""
        cdef Spilled *s = self.at(item)
        cdef mp_code code
        with nogil:
            code = mp_restore_begin(&self.core.m, s.entry, s.birth, &s.extent)
        if code != MP_OK:
            return code, None
        s.begun = True
        return code, PyMemoryView_FromMemory(
            <char *>self.core.m.arena_write + s.extent, mp_extent_bytes(s.size), 0x200)

    def end(self, Py_ssize_t item, bint whole):
        """Ends a restore that has begun: the object is resident if its bytes are `whole`, else spilled."""
        cdef Spilled *s = self.at(item)
        if s.begun:
            s.begun = False
            with nogil:
                mp_restore_end(&self.core.m, s.entry, s.birth, MP_RESIDENT if whole else MP_SPILLED)

    def copy_packed(self, Py_ssize_t first, Py_ssize_t stop, window, uint64_t base):
        """Restores items [first, stop), small records, from `window`: the bytes of their file from `base` on.

        Returns the first item that is left, and why: OK at the end, SPILLED if it is compressed, or the
        kernel's refusal (NO_ROOM, NO_COMMIT, BUSY). Wrong records, and objects that somebody else has restored
        or deleted meanwhile, are passed over.
        """
        cdef Py_buffer buffer
        cdef mp_code code
        if first < 0 or stop > self.count or first >= stop:
            raise IndexError(f"items [{first}, {stop}) of a batch of {self.count}")
        self.at(first)
        PyObject_GetBuffer(window, &buffer, PyBUF_SIMPLE)
        try:
            self.check(first, stop, <const uint8_t *>buffer.buf, buffer.len, base)
            with nogil:
                code = self.copy_checked(&first, stop, <const uint8_t *>buffer.buf, base)
        finally:
            PyBuffer_Release(&buffer)
        return first, code

    cdef int check(self, Py_ssize_t first, Py_ssize_t stop, const uint8_t *window, uint64_t n, uint64_t base) except -1:
        cdef Span span = Span.__new__(Span)
        cdef Spilled *s
        cdef Py_ssize_t i
        for i in range(first, stop):
            s = &self.items[i]
            if s.place.codec:
                break
            if not s.checked:
                s.checked = 1 if self.is_right(s, window, n, base, span) else 2
        return 0

    cdef bint is_right(self, Spilled *s, const uint8_t *window, uint64_t n, uint64_t base, Span span) except -1:
        cdef RecordHead head
        cdef uint64_t at = s.place.offset - base
        if s.place.offset < base or at > n or n - at < sizeof(RecordHead) or n - at - sizeof(RecordHead) < s.size:
            return False
        memcpy(&head, window + at, sizeof(RecordHead))
        return (
            head.magic == RECORD_MAGIC and head.version == RECORD_VERSION and head.codec == 0
            and head.entry == s.entry and head.birth == s.birth
            and memcmp(head.uuid, self.core.m.header.uuid, 16) == 0
            and head.raw == s.size and head.stored == s.size and head.checksum == s.place.checksum
            and s.place.length == round_up(sizeof(RecordHead) + s.size, RECORD_ALIGN)
            and head.own_checksum == digest_of(span, &head, sizeof(RecordHead) - sizeof(uint64_t))
            and head.checksum == digest_of(span, <void *>(window + at + sizeof(RecordHead)), s.size)
        )

    cdef mp_code copy_checked(self, Py_ssize_t *item, Py_ssize_t stop, const uint8_t *window, uint64_t base) noexcept nogil:
        """One release of the GIL for all: a thread that takes it back for each object waits for the others."""
        cdef Spilled *s
        cdef mp_code code
        cdef uint8_t *target
        while item[0] < stop:
            s = &self.items[item[0]]
            if s.place.codec:
                return MP_IS_SPILLED
            if s.checked == 1 and not s.begun:
                code = mp_restore_begin(&self.core.m, s.entry, s.birth, &s.extent)
                if code == MP_OK:
                    target = self.core.m.arena_write + s.extent
                    memcpy(target, window + (s.place.offset - base) + sizeof(RecordHead), s.size)
                    memset(target + s.size, 0, mp_extent_bytes(s.size) - s.size)
                    mp_restore_end(&self.core.m, s.entry, s.birth, MP_RESIDENT)
                elif code == MP_NO_ROOM or code == MP_NO_COMMIT or code == MP_BUSY:
                    return code
            item[0] += 1
        return MP_OK

    def take(self, Py_ssize_t first, Py_ssize_t stop, list values, bint copy):
        """Builds the values of items [first, stop) that are resident and ends all their claims.

        values[i] is set for refs[i]; those that are not resident or cannot be loaded stay as they are. A value
        may fork while it is built: the child gets no more of them, since the claims are its parent's.
        """
        cdef Spilled *s
        cdef Py_ssize_t i
        for i in range(first, stop):
            if self.owner != self.core.m.slot_word:
                return
            s = self.at(i)
            self.core.read_at(self.refs, s.index, values, copy)
            self.finish(s)

    def release(self, Py_ssize_t first, Py_ssize_t stop):
        """Ends the claims of items [first, stop); the bytes of those that are resident. A forked child has none."""
        cdef uint64_t nbytes = 0
        cdef Spilled *s
        cdef Py_ssize_t i
        if self.owner != self.core.m.slot_word:
            return nbytes
        for i in range(first, stop):
            s = self.at(i)
            if mp_state(&self.core.m, s.entry, s.birth) == MP_OK:
                nbytes += s.size
            self.finish(s)
        return nbytes
