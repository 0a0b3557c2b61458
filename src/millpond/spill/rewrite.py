"""Copying the live records of sparse segments behind one another, so that the old files can go.

Cold records come together this way, apart from what is spilled at the moment, as in the cleaner of a
log-structured file system (Rosenblum and Ousterhout, SOSP 1991, section 3).
Invariants: a record is copied whole and as it is, header included, and only if it is verified; a damaged one
stays where it is, for its reader to find; the place changes after the copy is on the disk, and only if nobody
pins the object. Nothing here pins: a record that dies meanwhile fails the verification or the change.
Not here: which segments (`reclaim`), what a place is (the kernel).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from millpond.spill.directory import Directories
from millpond.spill.disk import CALL_BYTES, aligned_buffer, copy_bytes, opened, read_all
from millpond.spill.record import (
    ALIGN,
    HEADER_BYTES,
    PAGE,
    Place,
    RecordError,
    is_paged,
    padded,
    payload_start,
    verify,
)
from millpond.spill.segments import Segments, SegmentTable

if TYPE_CHECKING:
    from millpond.hot import Places

_WINDOW: Final = CALL_BYTES + 4 * PAGE
"""Holds the longest record of a shared segment, wherever in a page it starts."""

BATCH_BYTES: Final = 1 << 20
"""Of copies that are written at once: little room is enough to begin with, and moving makes more."""
RETRY_S: Final = 60.0
"""How long a segment is left alone after one of its records could not be read."""

Rows = NDArray[Any]


class Rewriter:
    """Moves records for one process; the caller serializes."""

    def __init__(self, table: SegmentTable, places: Places, directories: Directories) -> None:
        """Opens nothing yet."""
        self._uuid = table.uuid
        self._places = places
        self._directories = directories
        self._segments = Segments(table, directories)
        self._failed: dict[int, float] = {}  # id of a segment: when to try it again

    def run(self, segments: Rows, records: Rows) -> int:
        """Moves `records`, which lie in `segments`; returns the bytes written.

        What cannot be read or verified stays. Raises SpillError when the copies find no room.
        """
        batch = _Batch()
        written = 0
        records = records[records["length"] <= CALL_BYTES + PAGE]  # longer ones have a file to themselves
        records = records[np.lexsort((records["offset"], records["segment"]))]
        try:
            for row in segments:
                mine = records[records["segment"] == row["segment"]]
                for record, view in self._verified(row, mine):
                    if not batch.fits(record, len(view)):
                        written += self._flush(batch)
                    batch.add(record, view)
            return written + self._flush(batch)
        finally:
            self._segments.recorded(0)
            self._segments.roll()

    def failed(self, ids: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Those of the segments `ids` that had records which could not be read, not long ago."""
        now, there = time.monotonic(), set(map(int, ids))
        self._failed = {id: end for id, end in self._failed.items() if end > now and id in there}
        return np.fromiter(self._failed, np.uint64)

    def _note_failure(self, row: Any) -> None:
        self._failed[int(row["id"])] = time.monotonic() + RETRY_S

    def forget(self) -> None:
        """In a forked child: the open segment is the parent's."""
        self._segments.forget()

    def _flush(self, batch: _Batch) -> int:
        if not batch.records:
            return 0
        buffer = batch.whole_pages()
        segment, base = self._segments.append([buffer], len(buffer), 0)
        offsets = np.array(batch.offsets, np.uint64) + np.uint64(base)
        self._places.move(np.array(batch.records), segment, offsets)
        batch.clear()
        return len(buffer)

    def _verified(self, row: Any, records: Rows) -> Iterator[tuple[Any, memoryview]]:
        """Each record of a segment that is as it must be, and its bytes, valid until the next one."""
        path = self._directories.file(int(row["directory"]), int(row["id"]))
        window = aligned_buffer(_WINDOW)
        try:
            direct = self._directories.direct(int(row["directory"]))
            with opened(self._directories.system, path, direct) as fd:
                for start, group in _windows(records):
                    end = int(group["offset"][-1] + group["length"][-1])
                    count = read_all(self._directories.system, fd, [window[: padded(end - start)]], start)
                    for record in group:
                        at = int(record["offset"]) - start
                        view = window[at : min(at + int(record["length"]), count)]
                        if self._is_sound(record, view):
                            yield record, view
                        else:
                            self._note_failure(row)
        except OSError:  # the reader of one of its records says what is wrong
            self._note_failure(row)

    def _is_sound(self, record: Any, view: memoryview) -> bool:
        entry, birth, raw = int(record["entry"]), int(record["birth"]), int(record["size"])
        place = Place(
            int(record["offset"]),
            int(record["length"]),
            int(record["checksum"]),
            int(record["segment"]),
            int(record["codec"]),
        )
        with suppress(RecordError):
            header = verify(bytes(view[:HEADER_BYTES]), self._uuid, entry, birth, raw, place)
            start = payload_start(header.codec, raw)
            return xxh3_64_intdigest(view[start : start + header.stored]) == header.checksum
        return False


def _windows(records: Rows) -> Iterator[tuple[int, Rows]]:
    """Neighbouring records that one read brings in, and where it starts."""
    ends = records["offset"] + records["length"]
    first = 0
    while first < len(records):
        start = int(records["offset"][first]) & -PAGE
        stop = max(first + 1, int(np.searchsorted(ends, start + _WINDOW, side="right")))
        yield start, records[first:stop]
        first = stop


class _Batch:
    """Records for one write, in memory of its own."""

    def __init__(self) -> None:
        self._memory = aligned_buffer(_WINDOW)
        self.clear()

    def clear(self) -> None:
        self.records: list[Any] = []
        self.offsets: list[int] = []
        self._used = 0

    def _start(self, record: Any) -> int:
        paged = is_paged(int(record["codec"]), int(record["size"]))
        return padded(self._used, PAGE if paged else ALIGN)

    def fits(self, record: Any, length: int) -> bool:
        return not self.records or self._start(record) + length <= BATCH_BYTES

    def add(self, record: Any, view: memoryview) -> None:
        start = self._start(record)
        self._memory[self._used : start] = bytes(start - self._used)
        copy_bytes(self._memory[start : start + len(view)], view)
        self.records.append(record)
        self.offsets.append(start)
        self._used = start + len(view)

    def whole_pages(self) -> memoryview:
        end = padded(self._used)
        self._memory[self._used : end] = bytes(end - self._used)
        return self._memory[:end]
