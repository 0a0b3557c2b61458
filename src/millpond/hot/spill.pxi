# The loops of spilling: claim objects, frame small ones as records, record their places.
#
# Invariants: a claim is an operation's pin and is ended exactly once, by publish or by cancel; the record
# format is that of spill/record.py (a test holds the two together); gaps and padding are zeroed, so
# that no other object's bytes reach the disk.

from xxhash import xxh3_64_intdigest

from cpython.buffer cimport PyBUF_READ

cdef object _digest = xxh3_64_intdigest

cdef enum:
    RECORD_MAGIC = 0x704D
    RECORD_VERSION = 1
    RECORD_ALIGN = 64
    RECORD_SMALL_END = 65536  # from here on, values are written straight from the arena

cdef struct RecordHead:
    uint16_t magic
    uint8_t version
    uint8_t codec
    uint32_t entry
    uint64_t birth
    uint8_t uuid[16]
    uint64_t raw
    uint64_t stored
    uint64_t checksum
    uint64_t own_checksum

cdef struct Claim:
    uint64_t birth
    uint64_t offset      # in the arena
    uint64_t size
    uint64_t at          # in the segment file, from the base that publish is told
    uint64_t length
    uint64_t stored      # bytes of the payload
    uint64_t checksum
    uint64_t stamp       # when it was claimed
    uint32_t entry
    uint8_t codec
    uint8_t open


@cython.final
@cython.freelist(2)
cdef class Span:
    """Bytes at a changing address, as the buffer that the checksum function wants."""

    cdef void *data
    cdef Py_ssize_t size

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, self.size, 1, flags)


cdef inline uint64_t digest_of(Span span, void *data, uint64_t size) except? 0:
    span.data = data
    span.size = size
    return _digest(span)


cdef inline uint64_t round_up(uint64_t n, uint64_t unit) noexcept nogil:
    return (n + unit - 1) & ~(unit - 1)


@cython.final
@cython.no_gc_clear
cdef class Batch:
    """Objects of one store, claimed for cleaning: items [0, small) are shorter than 64 KiB.

    Not safe for several threads. Claims that are left when it goes are cancelled.
    """

    cdef Core core
    cdef uint64_t owner      # the member's slot word: a forked child has a copy, but none of the claims
    cdef Claim *claims
    cdef readonly Py_ssize_t count
    """How many objects are claimed."""
    cdef readonly Py_ssize_t small
    """How many of them come first because they are shorter than 64 KiB."""
    cdef readonly Py_ssize_t examined
    """How many candidates were looked at, the claimed ones included."""
    cdef readonly uint64_t nbytes
    """Bytes of memory that the claimed objects occupy."""

    def __cinit__(self, Core core not None, candidates, uint64_t byte_limit):
        """Claims candidates from the first on, until the claimed ones occupy `byte_limit` bytes.

        `candidates` is a record array with the fields `entry` (u4) and `birth` (u8). Those that are
        pinned, clean or gone by now are passed over. Raises StoreClosedError.
        """
        cdef const uint32_t[:] entries = candidates["entry"]
        cdef const uint64_t[:] births = candidates["birth"]
        core.ensure_open()
        self.core = core
        self.owner = core.m.slot_word
        count_add(&core.uses, 1)
        with nogil:
            self.claim(entries, births, byte_limit)
        self.sort()

    cdef int claim(self, const uint32_t[:] entries, const uint64_t[:] births, uint64_t limit) except -1 nogil:
        cdef Py_ssize_t room = 0
        cdef Claim *c
        while self.examined < entries.shape[0] and self.nbytes < limit:
            if self.count == room:
                room = 2 * room + 64
                c = <Claim *>realloc(self.claims, room * sizeof(Claim))
                if c == NULL:
                    raise MemoryError()
                self.claims = c
            c = &self.claims[self.count]
            memset(c, 0, sizeof(Claim))
            c.entry = entries[self.examined]
            c.birth = births[self.examined]
            self.examined += 1
            if mp_clean_claim(&self.core.m, c.entry, c.birth, &c.offset, &c.size) == MP_OK:
                c.open = True
                c.stamp = self.core.m.entries[c.entry].stamp
                self.count += 1
                self.nbytes += mp_extent_bytes(c.size)
        return 0

    cdef int sort(self) except -1:
        """Small ones first, either kind in the order in which it was claimed."""
        cdef Claim *sorted = <Claim *>malloc((self.count + 1) * sizeof(Claim))
        cdef Py_ssize_t i, at = 0
        if sorted == NULL:
            raise MemoryError()
        for i in range(self.count):
            if self.claims[i].size < RECORD_SMALL_END:
                sorted[at] = self.claims[i]
                at += 1
        self.small = at
        for i in range(self.count):
            if self.claims[i].size >= RECORD_SMALL_END:
                sorted[at] = self.claims[i]
                at += 1
        free(self.claims)
        self.claims = sorted
        return 0

    def __dealloc__(self):
        if self.core is not None:
            self.cancel()
            free(self.claims)
            self.core.release_use()

    cdef Claim *at(self, Py_ssize_t index) except NULL:
        if index < 0 or index >= self.count:
            raise IndexError(f"item {index} of a batch of {self.count}")
        return &self.claims[index]

    def item(self, Py_ssize_t index):
        """Entry, birth and size in bytes of one object."""
        cdef Claim *c = self.at(index)
        return c.entry, c.birth, c.size

    def memory(self, Py_ssize_t index):
        """The bytes of an item that is not small, read-only; they start on a page. Valid like the batch."""
        cdef Claim *c = self.at(index)
        if index < self.small:
            raise IndexError(f"item {index} is small and has no pages of its own")
        return PyMemoryView_FromMemory(<char *>self.core.m.arena_read + c.offset, c.size, PyBUF_READ)

    def frame(self, Py_ssize_t first, target, uint8_t codec, compress):
        """Frames small items from `first` on as records into `target`, as many as surely fit.

        Returns the first item that is left, and the bytes used, a whole number of pages. `compress`
        takes a memoryview and gives a stored payload in the format of `codec`, or None; it may be None.
        """
        cdef Py_buffer buffer
        cdef Py_ssize_t stop
        cdef uint64_t room, used = 0, end
        PyObject_GetBuffer(target, &buffer, PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            room = <uint64_t>buffer.len // MP_PAGE * MP_PAGE
            stop = self.frame_into(<uint8_t *>buffer.buf, room, first, codec, compress, &used)
            end = round_up(used, MP_PAGE)
            memset(<uint8_t *>buffer.buf + used, 0, end - used)
        finally:
            PyBuffer_Release(&buffer)
        if stop == first < self.small:
            raise ValueError(f"a buffer of {len(target)} bytes is too small for a record of 64 KiB")
        return stop, end

    cdef Py_ssize_t frame_into(
        self, uint8_t *target, uint64_t room, Py_ssize_t first, uint8_t codec, compress, uint64_t *used
    ) except -1:
        """Checksums come last, and all together: they need the GIL, for which a copy would wait each time."""
        cdef Py_ssize_t index = first, stop
        cdef Span span = Span.__new__(Span)
        if compress is None:
            with nogil:
                while index < self.small and self.fits(index, room - used[0]):
                    self.fill(target, index, 0, self.core.m.arena_read + self.claims[index].offset,
                              self.claims[index].size, used)
                    index += 1
        else:
            while index < self.small and self.fits(index, room - used[0]):
                self.compress_one(target, index, codec, compress, used)
                index += 1
        stop = index
        for index in range(first, stop):
            self.write_head(target, &self.claims[index], span)
        return stop

    cdef bint fits(self, Py_ssize_t index, uint64_t room) noexcept nogil:
        return room >= round_up(sizeof(RecordHead) + self.claims[index].size, RECORD_ALIGN)

    cdef int compress_one(self, uint8_t *target, Py_ssize_t index, uint8_t codec, compress, uint64_t *used) except -1:
        cdef Claim *c = &self.claims[index]
        cdef const uint8_t *value = self.core.m.arena_read + c.offset
        cdef uint64_t stored
        cdef object payload = compress(PyMemoryView_FromMemory(<char *>value, c.size, PyBUF_READ))
        if payload is None:
            self.fill(target, index, 0, value, c.size, used)
            return 0
        stored = PyBytes_GET_SIZE(<bytes?>payload)
        if stored > c.size:
            raise ValueError(f"{c.size} bytes were compressed to {stored}")
        self.fill(target, index, codec, <const uint8_t *>PyBytes_AS_STRING(payload), stored, used)
        return 0

    cdef void fill(
        self, uint8_t *target, Py_ssize_t index, uint8_t codec, const uint8_t *payload, uint64_t stored, uint64_t *used
    ) noexcept nogil:
        """A record but for its header, behind the `used` bytes, which it adds to."""
        cdef Claim *c = &self.claims[index]
        cdef uint8_t *body = target + used[0] + sizeof(RecordHead)
        c.at = used[0]
        c.codec = codec
        c.stored = stored
        c.length = round_up(sizeof(RecordHead) + stored, RECORD_ALIGN)
        memcpy(body, payload, stored)
        memset(body + stored, 0, c.length - sizeof(RecordHead) - stored)
        used[0] += c.length

    cdef int write_head(self, uint8_t *target, Claim *c, Span span) except -1:
        cdef RecordHead *head = <RecordHead *>(target + c.at)
        c.checksum = digest_of(span, target + c.at + sizeof(RecordHead), c.stored)
        head.magic = RECORD_MAGIC
        head.version = RECORD_VERSION
        head.codec = c.codec
        head.entry = c.entry
        head.birth = c.birth
        memcpy(head.uuid, self.core.m.header.uuid, 16)
        head.raw = c.size
        head.stored = c.stored
        head.checksum = c.checksum
        head.own_checksum = digest_of(span, head, sizeof(RecordHead) - sizeof(uint64_t))
        return 0

    def set_place(self, Py_ssize_t index, uint64_t offset, uint64_t length, uint64_t checksum, uint8_t codec):
        """Sets the place of one item; `offset` counts from the base that `publish` is told."""
        cdef Claim *c = self.at(index)
        c.at, c.length, c.checksum, c.codec = offset, length, checksum, codec

    def publish(self, Py_ssize_t first, Py_ssize_t stop, uint32_t segment, uint64_t base, bint evict):
        """Records the places of items [first, stop), which are on disk now, and ends their claims.

        With `evict`, drops the memory of those that nobody has pinned or read meanwhile. Returns how many
        were recorded, and the bytes of memory freed; an object that died meanwhile counts as neither.
        Raises StoreBusyError, StoreCorruptedError, StoreClosedError; the objects left are as they were.
        """
        cdef Py_ssize_t at = first, objects = 0
        cdef uint64_t freed = 0
        cdef mp_code code = MP_OK
        if first < 0 or stop > self.count:
            raise IndexError(f"items [{first}, {stop}) of a batch of {self.count}")
        if self.owner != self.core.m.slot_word:
            raise errors.StoreClosedError("this batch belongs to the process that made it, not to a forked child")
        with nogil:
            while at < stop and code == MP_OK:
                code = self.publish_some(&at, stop, segment, base, evict, &objects, &freed)
        if code != MP_OK:
            raise self.core.failure(code, "a spilled object")
        return objects, freed

    cdef mp_code publish_some(
        self, Py_ssize_t *at, Py_ssize_t stop, uint32_t segment, uint64_t base, bint evict,
        Py_ssize_t *objects, uint64_t *freed,
    ) noexcept nogil:
        """Up to a hold of items from `at` on, which it moves; adds to the counts."""
        cdef mp_cleaned[MP_CLEANED_MAX] items
        cdef uint64_t[MP_CLEANED_MAX] sizes
        cdef uint32_t i, count = 0
        cdef mp_code code
        while at[0] < stop and count < MP_CLEANED_MAX:
            if self.claims[at[0]].open:
                self.close_claim(&self.claims[at[0]], &items[count], segment, base, evict)
                sizes[count] = self.claims[at[0]].size
                count += 1
            at[0] += 1
        code = mp_clean_publish(&self.core.m, items, count)
        for i in range(count):
            if items[i].code == MP_OK or items[i].code == MP_IS_PINNED:
                objects[0] += 1
            elif items[i].code != MP_NOT_FOUND:
                code = items[i].code
            if items[i].code == MP_OK and items[i].evict:
                freed[0] += mp_extent_bytes(sizes[i])
        return code

    cdef void close_claim(self, Claim *c, mp_cleaned *item, uint32_t segment, uint64_t base, bint evict) noexcept nogil:
        """Evicted is only what nobody has read since it was claimed."""
        memset(item, 0, sizeof(mp_cleaned))
        item.place.offset = base + c.at
        item.place.length = c.length
        item.place.checksum = c.checksum
        item.place.segment = segment
        item.place.codec = c.codec
        item.entry = c.entry
        item.birth = c.birth
        item.evict = evict and self.core.m.entries[c.entry].stamp == c.stamp
        c.open = False

    cpdef cancel(self):
        """Ends all claims that `publish` has not ended. The objects stay as they are."""
        cdef Py_ssize_t i
        if self.owner != self.core.m.slot_word:
            return
        with nogil:
            for i in range(self.count):
                if self.claims[i].open:
                    self.claims[i].open = False
                    mp_clean_cancel(&self.core.m, self.claims[i].entry)
