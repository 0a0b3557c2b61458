"""Records that go to disk in one call, in aligned memory that is kept for the next ones.

Layout: the records lie one after another, in the order in which they were added. Packed ones are put
together in a bounce buffer, up to whole pages; paged ones stay in the arena but for the page of their
header and a last page that the value fills only in part: what follows there is not part of it.
Not here: which objects, and writing (`cleaning`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from millpond.spill.disk import CALL_BYTES, aligned_buffer
from millpond.spill.record import HEADER_BYTES, PAGE, PAGED_MIN, RecordHeader, padded, record_length

_PAIRS: Final = CALL_BYTES // PAGED_MIN

Compress = Callable[[memoryview], bytes | None]


class ClaimedBatch(Protocol):
    """What cleaning needs of `millpond.hot.Batch`: objects that are claimed for it.

    Items [0, small) are shorter than 64 KiB, items [small, count) are not.
    """

    @property
    def count(self) -> int:
        """How many objects there are."""

    @property
    def small(self) -> int:
        """How many of them come first because they are short."""

    def item(self, index: int) -> tuple[int, int, int]:
        """Entry, birth and size in bytes of one object."""

    def memory(self, index: int) -> memoryview:
        """The bytes of an item that is not small, read-only; they start on a page."""

    def frame(self, first: int, target: memoryview, codec: int, compress: Compress | None) -> tuple[int, int]:
        """Frames items from `first` on as records into `target`, as many as surely fit.

        Returns the first item that is left, and the bytes used: whole pages. Sets their places, with
        offsets counted from the start of `target`. `compress` gives a stored payload, or None.
        """

    def set_place(self, index: int, offset: int, length: int, checksum: int, codec: int) -> None:
        """Sets the place of one item; `offset` counts from the base that `publish` is told."""

    def publish(self, first: int, stop: int, segment: int, base: int, evict: bool) -> tuple[int, int]:
        """Records the places of items [first, stop) and ends their claims.

        Returns how many of them were to be had still, and the bytes of memory that `evict` freed.
        """

    def cancel(self) -> None:
        """Ends all claims that `publish` has not ended. The objects stay as they are."""


class Run(NamedTuple):
    """Items of a batch whose records are in a group."""

    first: int
    stop: int
    base: int
    """What their offsets count from, itself from the start of the group."""


class Group:
    """Collects records for one call. Empty again after `clear`; the memory stays."""

    def __init__(self) -> None:
        self.bounce = aligned_buffer(CALL_BYTES)
        self._pages = aligned_buffer(2 * _PAIRS * PAGE)
        self.clear()

    def clear(self) -> None:
        """Forgets the records."""
        self.runs: list[Run] = []
        self.nbytes = 0
        self._buffers: list[memoryview] = []
        self._pairs = 0
        self._start = self._used = 0  # of the packed records that are not in _buffers yet, in the bounce

    def fits(self, nbytes: int) -> bool:
        """Whether a record of `nbytes` should go into this call; into an empty group any record goes."""
        return not self.runs or self.nbytes + padded(nbytes) <= CALL_BYTES

    def add_small(self, batch: ClaimedBatch, first: int, codec: int, compress: Compress | None) -> int:
        """Adds small items from `first` on, as many as surely fit; returns the first that is left.

        At least one fits if the longest of them, of 64 KiB, does.
        """
        self._end_packed()
        room = min(CALL_BYTES - self.nbytes, CALL_BYTES - self._used)
        stop, nbytes = batch.frame(first, self.bounce[self._used : self._used + room], codec, compress)
        self.runs.append(Run(first, stop, self.nbytes))
        self._used += nbytes
        self.nbytes += nbytes
        self._end_packed()
        return stop

    def add_packed(self, batch: ClaimedBatch, index: int, header: RecordHeader, payload: bytes) -> None:
        """Adds a record whose payload is at hand; it must fit."""
        length = record_length(header.codec, header.raw, header.stored)
        record = self.bounce[self._used : self._used + length]
        body = HEADER_BYTES + len(payload)
        record[:HEADER_BYTES] = header.pack()
        record[HEADER_BYTES:body] = payload
        record[body:] = bytes(length - body)
        self._add(batch, index, header, length)
        self._used += length

    def add_paged(self, batch: ClaimedBatch, index: int, header: RecordHeader, value: memoryview) -> None:
        """Adds a record whose payload is written from where it lies, from a page on; it must fit."""
        self._end_packed()
        page, spare = self.page_pair(self._pairs)
        self._pairs += 1
        page[:HEADER_BYTES] = header.pack()
        self._buffers += [page, *whole_pages(value, spare)]
        self._add(batch, index, header, record_length(header.codec, header.raw, header.stored))

    def _add(self, batch: ClaimedBatch, index: int, header: RecordHeader, length: int) -> None:
        batch.set_place(index, self.nbytes, length, header.checksum, header.codec)
        self.runs.append(Run(index, index + 1, 0))
        self.nbytes += length

    def _end_packed(self) -> None:
        """What comes next starts on a page."""
        end = padded(self._used)
        self.bounce[self._used : end] = bytes(end - self._used)
        self.nbytes += end - self._used
        if end > self._start:
            self._buffers.append(self.bounce[self._start : end])
        self._start = self._used = end

    def finish(self) -> list[memoryview]:
        """The whole pages to be written, `nbytes` in all."""
        self._end_packed()
        return self._buffers

    def page_pair(self, number: int) -> tuple[memoryview, memoryview]:
        """A page with zeros behind its first 64 bytes, for a header, and one that holds anything."""
        at = 2 * number * PAGE
        return self._pages[at : at + PAGE], self._pages[at + PAGE : at + 2 * PAGE]


def whole_pages(value: memoryview, spare: memoryview) -> list[memoryview]:
    """`value`, which starts on a page, as whole pages: a last page that it fills only in part is `spare`,
    with zeros behind the value."""
    whole = len(value) & -PAGE
    rest = len(value) - whole
    if rest == 0:
        return [value]
    spare[:rest] = value[whole:]
    spare[rest:] = bytes(PAGE - rest)
    return [value[:whole], spare] if whole else [spare]
