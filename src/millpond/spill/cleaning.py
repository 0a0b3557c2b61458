"""One batch on its way to disk: which records are written together, and in what shape.

Invariants: the order of work is frame, write, record the place, never another; objects whose place is
not recorded stay as they were.
    below 64 KiB   fused by compiled code, one call for up to 8 MiB
    below 8 MiB    straight from the arena, many records in one call; or compressed and fused
    from 8 MiB on  a file of its own, in one call up to 32 MiB; above that, or compressed, piece by piece,
                   the header last
Disk and processor work at the same time because two batches do, each in its own memory: the caller's and
the spiller's. A value of many pieces overlaps with itself.
A file of one's own can be freed at once, and mapped if it is not compressed.
Not here: the lock and the report (`writer`), how records lie in a call (`group`), where the bytes go
(`segments`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from xxhash import xxh3_64_intdigest

from millpond.spill.codec import Codec
from millpond.spill.frames import encode
from millpond.spill.group import ClaimedBatch, Group, whole_pages
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
WHOLE_MAX: Final = 32 << 20
"""Values up to here are checked before they are written, so that the header goes with the payload."""


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
        turn: int,
    ) -> None:
        """`groups` are empty; `turn` tells `segments` who appends."""
        self.objects = 0
        self.bytes_written = 0
        self.bytes_evicted = 0
        self._batch = batch
        self._evict = evict
        self._codec = codec
        self._uuid = uuid
        self._segments = segments
        self._group, self._spare = groups
        self._turn = turn

    def run(self) -> None:
        """Cleans the batch. Raises SpillError; what was recorded by then is in the tally."""
        self._clean_small()
        for index in range(self._batch.small, self._batch.count):
            self._clean_large(index)
        self._settle()

    def _clean_small(self) -> None:
        compress = None if self._codec.number == CODEC_NONE else self._compressed
        index = 0
        while index < self._batch.small:
            self._settle_unless_fits(HEADER_BYTES + PAGED_MIN + ALIGN)
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
        self._settle_unless_fits(record_length(header.codec, size, header.stored))
        if payload is None:
            self._group.add_paged(self._batch, index, header, value)
        else:
            self._group.add_packed(self._batch, index, header, payload)

    # --- writing what was collected ---

    def _settle_unless_fits(self, nbytes: int) -> None:
        if not self._group.fits(nbytes):
            self._settle()

    def _settle(self) -> None:
        """Writes what was collected, and records the places."""
        group = self._group
        if group.runs:
            segment, offset = self._segments.append(group.finish(), group.nbytes, self._turn)
            self.bytes_written += group.nbytes
            for first, stop, base in group.runs:
                self._publish(first, stop, segment, offset + base)
            self._segments.recorded(self._turn)
        group.clear()

    def _publish(self, first: int, stop: int, segment: int, base: int) -> None:
        objects, evicted = self._batch.publish(first, stop, segment, base, self._evict)
        self.objects += objects
        self.bytes_evicted += evicted

    def _write_own(self, index: int, header: RecordHeader, value: memoryview, pieces: Pieces | None) -> None:
        self._settle()  # the memory of the groups is needed
        if pieces is None and header.raw <= WHOLE_MAX:
            fill = self._whole(header, value)
        else:
            fill = self._piecewise(header, value, pieces)
        segment, written = self._segments.own(PAGE + padded(header.raw), fill)
        try:
            length = PAGE + padded(written.stored)
            self.bytes_written += length
            self._batch.set_place(index, 0, length, written.checksum, written.codec)
            self._publish(index, index + 1, segment.index, 0)
        finally:
            self._segments.finish(segment)

    def _whole(self, header: RecordHeader, value: memoryview) -> Callable[[Segment], RecordHeader]:
        header = header._replace(checksum=xxh3_64_intdigest(value))
        page, spare = self._group.page_pair(0)
        page[:HEADER_BYTES] = header.pack()
        pages = [page, *whole_pages(value, spare)]

        def fill(segment: Segment) -> RecordHeader:
            self._segments.write_whole(segment, pages, PAGE + padded(header.raw))
            return header

        return fill

    def _piecewise(
        self, header: RecordHeader, value: memoryview, pieces: Pieces | None
    ) -> Callable[[Segment], RecordHeader]:
        page, spare = self._group.page_pair(0)
        bounces = self._group.bounce, self._spare.bounce
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

        return fill
