"""One batch on its way to disk: which records are written together, and in what shape.

Invariants: the order of work is frame, write, record the place, never another; while one write is under
way the next one is prepared in other memory; objects whose place is not recorded stay as they were.
    below 64 KiB   fused by compiled code, one call for up to 8 MiB
    below 8 MiB    straight from the arena, many records in one call; or compressed and fused
    from 8 MiB on  a file of its own; its header is written last
A file of one's own can be freed at once, and mapped if it is not compressed.
Not here: the lock and the report (`writer`), how records lie in a call (`group`), where the bytes go
(`segments`).
"""

from __future__ import annotations

from collections.abc import Iterator

from xxhash import xxh3_64_intdigest

from millpond.spill.codec import Codec
from millpond.spill.frames import encode
from millpond.spill.group import ClaimedBatch, Group
from millpond.spill.overlap import Overlap
from millpond.spill.record import (
    ALIGN,
    CODEC_NONE,
    HEADER_BYTES,
    OWN_FILE_MIN,
    PAGE,
    PAGED_MIN,
    RecordHeader,
    padded,
    record_length,
)
from millpond.spill.segments import Chunks, Segment, Segments, repack, slices

Pieces = Iterator[bytes | memoryview]


class Cleaning:
    """The work on one batch, and the tally of it."""

    def __init__(
        self,
        batch: ClaimedBatch,
        evict: bool,
        codec: Codec,
        uuid: bytes,
        segments: Segments,
        groups: tuple[Group, Group],
    ) -> None:
        """`groups` are empty; they are used in turns."""
        self.objects = 0
        self.bytes_written = 0
        self.bytes_evicted = 0
        self._batch = batch
        self._evict = evict
        self._codec = codec
        self._uuid = uuid
        self._segments = segments
        self._group, self._behind = groups
        self._disk = Overlap[tuple[int, int]]()

    def run(self) -> None:
        """Cleans the batch. Raises SpillError; what was recorded by then is in the tally."""
        with self._disk:
            self._clean_small()
            for index in range(self._batch.small, self._batch.count):
                self._clean_large(index)
            self._settle()

    def _clean_small(self) -> None:
        compress = None if self._codec.number == CODEC_NONE else self._compressed
        index = 0
        while index < self._batch.small:
            self._make_room(HEADER_BYTES + PAGED_MIN + ALIGN)
            index = self._group.add_small(self._batch, index, self._codec.number, compress)

    def _compressed(self, value: memoryview) -> bytes | None:
        pieces = encode(self._codec, value)
        return None if pieces is None else b"".join(pieces)

    def _clean_large(self, index: int) -> None:
        entry, birth, size = self._batch.item(index)
        value = self._batch.memory(index)
        header = RecordHeader(self._uuid, entry, birth, CODEC_NONE, size, size, 0)
        pieces = encode(self._codec, value)
        if pieces is not None:
            header = header._replace(codec=self._codec.number)
        if size >= OWN_FILE_MIN:
            self._write_own(index, header, value, pieces)
            return
        payload = None if pieces is None else b"".join(pieces)
        stored = value if payload is None else payload
        header = header._replace(stored=len(stored), checksum=xxh3_64_intdigest(stored))
        self._make_room(record_length(header.codec, size, header.stored))
        if payload is None:
            self._group.add_paged(self._batch, index, header, value)
        else:
            self._group.add_packed(self._batch, index, header, payload)

    # --- writing what was collected ---

    def _make_room(self, nbytes: int) -> None:
        """Sends the group off if a record of `nbytes` does not fit any more; more will follow."""
        if self._group.fits(nbytes):
            return
        self._record_behind()
        self._group, self._behind = self._behind, self._group
        buffers, nbytes = self._behind.finish(), self._behind.nbytes
        self._disk.start(lambda: self._segments.append(buffers, nbytes))

    def _settle(self) -> None:
        """Writes and records all that was collected."""
        self._record_behind()
        if self._group.runs:
            buffers = self._group.finish()
            self._record(self._group, *self._segments.append(buffers, self._group.nbytes))

    def _record_behind(self) -> None:
        """Waits for the write that is under way, if any, and records its places."""
        written = self._disk.finish()
        if written is not None:
            self._record(self._behind, *written)

    def _record(self, group: Group, segment: int, offset: int) -> None:
        self.bytes_written += group.nbytes
        for first, stop, base in group.runs:
            self._publish(first, stop, segment, offset + base)
        group.clear()

    def _publish(self, first: int, stop: int, segment: int, base: int) -> None:
        objects, evicted = self._batch.publish(first, stop, segment, base, self._evict)
        self.objects += objects
        self.bytes_evicted += evicted

    def _write_own(self, index: int, header: RecordHeader, value: memoryview, pieces: Pieces | None) -> None:
        self._settle()  # the memory of the groups is needed
        page, spare = self._group.page_pair(0)
        bounces = self._group.bounce, self._behind.bounce
        used_up = False

        def fill(segment: Segment) -> RecordHeader:
            nonlocal pieces, used_up
            if used_up:  # another directory has refused in the middle
                pieces = encode(self._codec, value)
            used_up = True
            chunks: Chunks
            if pieces is None:
                chunks, expected, number = slices(value, spare), padded(header.raw), CODEC_NONE
            else:
                chunks, expected, number = repack(pieces, bounces), 0, self._codec.number
            return self._segments.write_own(segment, header._replace(codec=number), chunks, expected, page)

        segment, written = self._segments.own(PAGE + padded(header.raw), fill)
        try:
            length = PAGE + padded(written.stored)
            self.bytes_written += length
            self._batch.set_place(index, 0, length, written.checksum, written.codec)
            self._publish(index, index + 1, segment.index, 0)
        finally:
            self._segments.finish(segment)
