"""Writing objects to disk: a batch that is cleaned, or one value that never enters the arena.

Invariants: a place is recorded only when its record is whole on the disk, and memory is only dropped by
that same step; whatever goes wrong, objects whose place was not recorded are as they were, and their
claims are ended; two batches of a process are under way at a time at most, the spiller's and one
caller's, so that one is prepared and recorded while the other is written.
Not here: choosing what to clean (the store and its policies), how a batch is cut into writes
(`cleaning`), restoring (`reader`).
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from threading import RLock
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from millpond.errors import SpillError
from millpond.spill.auto import Auto
from millpond.spill.cleaning import Cleaning
from millpond.spill.codec import AUTO, NONE, Codec, known_codec
from millpond.spill.directory import Directories
from millpond.spill.group import ClaimedBatch, Group
from millpond.spill.record import (
    CODEC_NONE,
    HEADER_BYTES,
    OWN_FILE_MIN,
    PAGE,
    PAGED_MIN,
    Place,
    RecordHeader,
    padded,
    record_length,
)
from millpond.spill.segments import Relief, Segment, Segments, SegmentTable, is_mine, repack


class SpillReport(NamedTuple):
    """What one `clean` has done."""

    objects: int
    """Objects that have a disk copy now and had none before."""
    bytes_written: int
    """To disk, headers and padding included."""
    bytes_evicted: int
    """Memory freed."""
    error: SpillError | None
    """What ended the work early; the objects left over are in memory as before."""


class _Turn:
    """The right to write, one thread's at a time, and the memory that records are put together in."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._groups: tuple[Group, Group] | None = None
        self.reset()

    def reset(self) -> None:
        """Nobody's any more: a forked child does not have the thread that took it."""
        self.lock = RLock()

    def is_mine(self) -> bool:
        """Whether this thread is in the middle of it."""
        return is_mine(self.lock)

    def take_groups(self) -> tuple[Group, Group]:
        """Empty ones; warm from the second time on."""
        if self._groups is None:
            self._groups = Group(), Group()
        for group in self._groups:
            group.clear()
        return self._groups


class SpillWriter:
    """Writes the objects of one store from one process. Safe for many threads, which take turns."""

    def __init__(
        self,
        table: SegmentTable,
        directories: Directories,
        codec: Codec = NONE,
        relief: Relief | None = None,
        relieving: Callable[[], bool] = lambda: False,
    ) -> None:
        """Opens nothing yet. `codec` may be exchanged at any time. `relief` frees disk space; `relieving`:
        whether this thread is in the middle of that."""
        self.codec = codec
        self._uuid = table.uuid
        self._segments = Segments(table, directories, relief)
        self._auto = Auto(self._segments.speed)
        self._turns = _Turn(0), _Turn(1)
        self._relieving = relieving
        self._leaving = False
        _writers.add(self)

    def use_codec(self, number: int) -> None:
        """What is written from now on is compressed as the table's number says. One that this process does
        not know (`register_codec`) is as good as none."""
        self.codec = self._auto if number == AUTO else known_codec(number) or NONE

    def clean(self, batch: ClaimedBatch, evict: bool, behind: bool = False) -> SpillReport:
        """Writes every object of `batch`, records the places, and drops the memory if `evict`.

        behind: this is the spiller, which need not wait for callers' turns. Every claim is ended when
        this returns or raises. Raises SpillError when nothing could be cleaned at all; what goes wrong
        after a part of the work is in the report.
        """
        error = None
        try:
            with self._turn(behind) as turn:
                groups = turn.take_groups()
                work = Cleaning(batch, evict, self.codec, self._uuid, self._segments, groups, turn.number)
                try:
                    work.run()
                except SpillError as refused:
                    if not work.objects:
                        raise
                    error = refused.with_traceback(None)  # this very frame is in it
        finally:
            batch.cancel()
        return SpillReport(work.objects, work.bytes_written, work.bytes_evicted, error)

    @contextmanager
    def write_through(
        self, parts: Sequence[bytes | memoryview], size: int, entry: int, birth: int
    ) -> Iterator[Place]:
        """Writes a value of `size` bytes, given as the pieces of it in order, uncompressed.

        Yields its place, which must be recorded inside the `with` block: after it, a segment without
        recorded places is dead. The block must not call this writer. Raises SpillError when no
        directory takes the value.
        """
        header = RecordHeader(self._uuid, entry, birth, CODEC_NONE, size, size, 0)
        with self._turn() as turn:
            if size >= OWN_FILE_MIN:
                with self._through_own_file(parts, header, turn.take_groups()) as place:
                    yield place
            else:
                yield self._through_append(parts, header, turn)

    @contextmanager
    def _through_own_file(
        self, parts: Sequence[bytes | memoryview], header: RecordHeader, groups: tuple[Group, Group]
    ) -> Iterator[Place]:
        group, other = groups
        page, _ = group.page_pair(0)
        expected = padded(header.raw)

        def fill(segment: Segment) -> RecordHeader:
            chunks = repack(parts, (group.bounce, other.bounce))
            return self._segments.write_own(segment, header, chunks, expected, page)

        segment, written = self._segments.own(PAGE + expected, fill)
        try:
            _check_size(written.stored, header.raw)
            yield Place(0, PAGE + expected, written.checksum, segment.index, CODEC_NONE)
        finally:
            self._segments.finish(segment)

    def _through_append(
        self, parts: Sequence[bytes | memoryview], header: RecordHeader, turn: _Turn
    ) -> Place:
        group, other = turn.take_groups()
        packed = header.raw < PAGED_MIN
        gap = HEADER_BYTES if packed else 0
        payload, pages = next(repack(chain([bytes(gap)], parts), (group.bounce, other.bounce)))
        _check_size(len(payload) - gap, header.raw)
        header = header._replace(checksum=xxh3_64_intdigest(payload[gap:]))
        if not packed:
            pages = [group.page_pair(0)[0], *pages]
        pages[0][:HEADER_BYTES] = header.pack()
        segment, offset = self._segments.append(pages, sum(map(len, pages)), turn.number)
        length = record_length(CODEC_NONE, header.raw, header.raw)
        return Place(offset, length, header.checksum, segment, CODEC_NONE)

    @contextmanager
    def _turn(self, behind: bool = False) -> Iterator[_Turn]:
        """A destructor or a signal's handler that comes by in the middle of its own thread's turn is
        refused: it would wait for itself."""
        turn = self._turns[behind]
        self.refuse_in_the_middle()
        with turn.lock:
            try:
                yield turn
            finally:
                self._segments.recorded(turn.number)
                if self._leaving:
                    self._segments.roll()

    def in_turn(self) -> bool:
        """Whether this thread is in the middle of a turn."""
        return any(turn.is_mine() for turn in self._turns)

    def in_the_middle(self) -> bool:
        """The same, or in the middle of freeing disk space, which another thread may await in its turn."""
        return self.in_turn() or self._relieving()

    def refuse_in_the_middle(self) -> None:
        """Raises SpillError (EDEADLK) there: this thread would wait for itself."""
        if self.in_the_middle():
            raise SpillError(errno.EDEADLK, "this thread is in the middle of a spill: try again after it")

    def leave(self) -> None:
        """Closes the append segment, so that its file can go once its last record is dead; from now on each
        turn, also one that is under way, closes what it has appended to."""
        self._leaving = True
        if not self.in_turn():
            self._segments.roll()

    def roll_sparse(self) -> None:
        """The same if little of the segment is alive. Does nothing while somebody writes."""
        if not self.in_turn():
            self._segments.roll_sparse()

    def _after_fork(self) -> None:
        for turn in self._turns:
            turn.reset()
        self._leaving = False
        self._segments.forget()


def _check_size(given: int, expected: int) -> None:
    if given != expected:
        raise ValueError(f"the parts of the value have {given} bytes instead of {expected}")


_writers: weakref.WeakSet[SpillWriter] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """A forked child starts its own segments; the lock may have been held by a thread it has not."""
    for writer in list(_writers):
        writer._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
