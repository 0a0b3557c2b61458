"""The segment files that this process writes: opening, appending, closing, and trying elsewhere.

Invariants: the table knows a segment before its file exists, and hands out every byte of it, so that
what a killed process leaves is found and removed; a segment stays OPEN until the places in it are
recorded, or somebody would unlink it as dead; a write counts once it is on the disk (direct, or waited
for); a segment in which a write failed gets no further records; one call to the disk at a time: two
would share its speed, and end together to leave it idle together.
Safe for the two turns of one writer, each of which is one thread's at a time.
Not here: what is written (`writer`), which directories there are (`directory`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from threading import RLock
from typing import Any, Final, Protocol, TypeVar
from weakref import WeakSet

from xxhash import xxh3_64

from millpond.errors import MillpondError, SpillError
from millpond.hot import Descriptor
from millpond.spill.auto import DiskSpeed
from millpond.spill.directory import FULL, Directories
from millpond.spill.disk import CALL_BYTES, copy_bytes, open_new, write_all
from millpond.spill.group import whole_pages
from millpond.spill.overlap import Overlap
from millpond.spill.record import HEADER_BYTES, PAGE, RecordHeader, padded

SEGMENT_BYTES: Final = 128 << 20
"""An append segment that would grow beyond this is closed and a new one opened."""

SPARSE: Final = 0.3
"""A segment with a smaller share of live bytes is rewritten when space is wanted."""
ROLL_MIN: Final = 8 << 20
"""Shorter segments are not closed for being sparse: they would become many."""
RELIEFS_MAX: Final = 4

T = TypeVar("T")
Relief = Callable[[int], bool]
"""Frees so many bytes of disk space if it can; whether it freed any, so that trying again makes sense."""
Chunks = Iterable[tuple[memoryview, list[memoryview]]]
"""Pieces of a payload, and the whole pages that hold each of them; only the last may need padding."""


class SegmentTable(Protocol):
    """What spilling needs of `millpond.hot.Core`. All of it may raise errors of the store as a whole
    (StoreClosedError, StoreBusyError, ...)."""

    @property
    def uuid(self) -> bytes:
        """The store's, 16 bytes."""

    def segment_open(self, directory: int) -> tuple[int, int]:
        """A new OPEN segment: its index and its id."""

    def segment_reserve(self, segment: int, nbytes: int) -> int:
        """Appends `nbytes`; returns their offset. Raises SpillError (EDQUOT) at the spill limit."""

    def segment_close(self, segment: int) -> None:
        """Ends appending. Without live records the segment is DEAD from then on."""

    def segment_dead(self) -> list[tuple[int, int, int]]:
        """Index, id and directory of every DEAD segment."""

    def segment_forget(self, segment: int, segment_id: int) -> None:
        """The file is gone: frees the index. Without effect if it is another segment's by now."""

    def segment_punched(self, segment: int, segment_id: int, nbytes: int) -> None:
        """All that the closed segment could give back, `nbytes` in total, is given back."""

    def segment_info(self, segment: int) -> tuple[int, int, int, int, int] | None:
        """Id, directory, bytes handed out, bytes live, state; None if it cannot be told."""


class Segment:
    """A file that is being written. `size` are the bytes that the table has handed out."""

    def __init__(self, index: int, directory: int, fd: Descriptor, path: str, direct: bool) -> None:
        self.index, self.directory, self.fd, self.path, self.direct = index, directory, fd, path, direct
        self.size = 0


class Segments:
    """Opens and fills segment files for one writer."""

    def __init__(self, table: SegmentTable, directories: Directories, relief: Relief | None = None) -> None:
        """Opens nothing yet. `relief` is asked for space before a write is refused for want of it."""
        self.directories = directories
        self.speed = DiskSpeed()
        self._relief = relief
        self._table = table
        self._system = directories.system
        self._lane = RLock()  # held while the disk works
        self._books = RLock()  # of what follows; held for moments, and taken after the lane
        self._current: Segment | None = None
        self._appended: dict[int, Segment] = {}
        self._retired: list[Segment] = []
        self._descriptors: WeakSet[Descriptor] = WeakSet()  # all, those of single values as well

    def append(self, buffers: Sequence[memoryview], nbytes: int, turn: int) -> tuple[int, int]:
        """Writes `buffers`, whole pages of `nbytes` in all, behind one another in an append segment.

        Returns the segment's index and the offset. The segment stays open until the next call for the
        same turn, or `recorded`: until then the caller records the places. Raises SpillError when no
        directory takes them, or the spill limit is reached.
        """
        with self._lane:
            return self._relieved(nbytes, lambda: self._append(buffers, nbytes, turn))

    def _relieved(self, nbytes: int, attempt: Callable[[], T]) -> T:
        """What `attempt` returns. When it finds no space, some is freed and it may try again."""
        for _ in range(RELIEFS_MAX):
            try:
                return attempt()
            except SpillError as refused:
                if self._relief is None or refused.errno not in FULL:
                    raise
                self.roll()  # closed, it can give back what is dead in it
                if not self._relief(nbytes):
                    raise
        return attempt()

    def _append(self, buffers: Sequence[memoryview], nbytes: int, turn: int) -> tuple[int, int]:
        tried: dict[int, OSError] = {}
        self.recorded(turn)
        current = self._take_current(nbytes, turn)
        if current is not None:
            try:
                self.directories.check_room(current.directory, nbytes)
                return current.index, self._append_to(current, buffers, nbytes)
            except MillpondError:  # the store's word, not the disk's: StoreBusyError is an OSError too
                self.recorded(turn)
                raise
            except OSError as error:
                self._note(current, error, tried)
                self.roll()
                self.recorded(turn)
        segment, offset = self._in_some_directory(
            nbytes, tried, lambda segment: self._append_to(segment, buffers, nbytes)
        )
        with self._books:
            self._current = self._appended[turn] = segment
        return segment.index, offset

    def _take_current(self, nbytes: int, turn: int) -> Segment | None:
        """The segment to append to, marked as in use, if there is one with room."""
        with self._books:
            current = self._current
            if current is not None and (current.size + nbytes > SEGMENT_BYTES or self._is_gone(current)):
                self.roll()
            if self._current is not None:
                self._appended[turn] = self._current
            return self._current

    def recorded(self, turn: int) -> None:
        """The places of what this turn appended are recorded, or given up."""
        with self._books:
            self._appended.pop(turn, None)
            for segment in [one for one in self._retired if not self._in_use(one)]:
                self._retired.remove(segment)
                self.finish(segment)

    def _in_use(self, segment: Segment) -> bool:
        return any(one is segment for one in self._appended.values())

    def _retire(self, segment: Segment) -> None:
        """Nothing more is appended to `segment`: it ends as soon as its places are recorded."""
        if self._in_use(segment):
            self._retired.append(segment)
        else:
            self.finish(segment)

    def _append_to(self, segment: Segment, buffers: Sequence[memoryview], nbytes: int) -> int:
        offset = self.reserve(segment, nbytes)
        self.write(segment, buffers, offset)
        self.settle(segment)
        self.directories.note_success(segment.directory)
        return offset

    def _is_gone(self, segment: Segment) -> bool:
        """Whether somebody has removed the file: nobody could read what is written to it."""
        try:
            return self._system.fstat(segment.fd).st_nlink == 0
        except OSError:
            return False  # the write will say what is wrong

    def own(self, nbytes: int, fill: Callable[[Segment], T]) -> tuple[Segment, T]:
        """A segment for a single value: `fill` writes it, again from the start where the first
        directory refuses. `nbytes` is what it may need.

        The segment stays open; the caller passes it to `finish` once the place is recorded. Raises
        SpillError like `append`, and whatever else `fill` raises.
        """
        return self._relieved(nbytes, lambda: self._in_some_directory(nbytes, {}, fill))

    def _in_some_directory(
        self, nbytes: int, tried: dict[int, OSError], attempt: Callable[[Segment], T]
    ) -> tuple[Segment, T]:
        while (directory := self.directories.pick(nbytes, tried)) is not None:
            try:
                segment = self._open(directory)
            except MillpondError:
                raise
            except OSError as error:
                self.directories.note_failure(directory, error)
                tried[directory] = error.with_traceback(None)
                continue
            try:
                return segment, attempt(segment)
            except MillpondError:
                self.finish(segment)
                raise
            except OSError as error:
                self._note(segment, error, tried)
                self.finish(segment)
            except BaseException:
                self.finish(segment)
                raise
        raise self.directories.refusal(nbytes, tried)

    def _open(self, directory: int) -> Segment:
        direct = self.directories.direct(directory)
        index, segment_id = self._table.segment_open(directory)
        path = self.directories.file(directory, segment_id)
        try:
            segment = Segment(index, directory, open_new(self._system, path, direct), path, direct)
            self._descriptors.add(segment.fd)
            return segment
        except BaseException:
            self._table.segment_close(index)
            raise

    def reserve(self, segment: Segment, nbytes: int) -> int:
        """The offset of `nbytes` more in `segment`. Raises SpillError (EDQUOT) at the spill limit."""
        try:
            offset = self._table.segment_reserve(segment.index, nbytes)
        except SpillError as error:
            self.directories.troubles.met("spill_limit", str(error.strerror))
            raise
        self.directories.troubles.works("spill_limit")
        segment.size = offset + nbytes
        return offset

    def write(self, segment: Segment, buffers: Sequence[memoryview], offset: int) -> None:
        """Writes whole pages at `offset`, which was reserved. Raises OSError."""
        with self._lane:
            start = time.perf_counter()
            self.speed.note(write_all(self._system, segment.fd, buffers, offset), time.perf_counter() - start)

    def settle(self, segment: Segment) -> None:
        """Makes sure that what was written is on the disk. Raises OSError."""
        if not segment.direct:
            with self._lane:
                start = time.perf_counter()
                self._system.fdatasync(segment.fd)
                self.speed.note(0, time.perf_counter() - start)

    def write_whole(self, segment: Segment, buffers: Sequence[memoryview], nbytes: int) -> None:
        """Writes a record whose checksum is known, `nbytes` of whole pages, into a segment of its own.

        Raises OSError, SpillError.
        """
        self.write(segment, buffers, self.reserve(segment, nbytes))
        self.settle(segment)
        self.directories.note_success(segment.directory)

    def write_own(
        self, segment: Segment, header: RecordHeader, chunks: Chunks, expected: int, page: memoryview
    ) -> RecordHeader:
        """Writes a value that has the segment to itself: payload first, then `page` with the header.

        `header` lacks the stored length and the checksum; returns it with them. `expected` bytes of
        payload are reserved at once, what goes beyond them as it comes. Raises OSError, SpillError.
        """
        self.reserve(segment, PAGE + expected)
        digest, stored, offset = xxh3_64(), 0, PAGE
        with Overlap[None]() as disk:
            for payload, pages in chunks:
                digest.update(payload)
                disk.finish()
                end = offset + padded(len(payload))
                if end > segment.size:
                    self.reserve(segment, end - segment.size)
                disk.start(partial(self.write, segment, pages, offset))
                stored += len(payload)
                offset = end
            disk.finish()
        header = header._replace(stored=stored, checksum=digest.intdigest())
        page[:HEADER_BYTES] = header.pack()
        self.write(segment, [page], 0)
        self.settle(segment)
        self.directories.note_success(segment.directory)
        return header

    def _note(self, segment: Segment, error: OSError, tried: dict[int, OSError]) -> None:
        tried[segment.directory] = error.with_traceback(None)
        self.directories.note_failure(segment.directory, error)

    def finish(self, segment: Segment) -> None:
        """Nothing more comes into `segment`."""
        try:
            self._table.segment_close(segment.index)
        finally:
            self._descriptors.discard(segment.fd)
            with suppress(OSError):  # what counts was on the disk before
                self._system.close(segment.fd)

    def roll(self) -> None:
        """Appends no more to the current segment; the next append opens another."""
        with self._books:
            segment, self._current = self._current, None
            if segment is not None:
                self._retire(segment)

    def roll_sparse(self) -> None:
        """Closes the current append segment if little of it is alive: closed, it gives its space back. Not
        while it is written."""
        with self._books:
            if self._current is not None and not self._in_use(self._current):
                info = self._table.segment_info(self._current.index)
                if info is not None and info[2] > 0 and _is_sparse(*info[2:4]):
                    self.roll()

    def forget(self) -> None:
        """In a forked child: the open segments are the parent's, and so is who was writing."""
        self._lane, self._books = RLock(), RLock()
        self._current, self._appended, self._retired = None, {}, []
        for fd in list(self._descriptors):
            self._system.close(fd)
        self._descriptors.clear()


def is_mine(lock: Any) -> bool:
    """Whether this thread holds an RLock. The lock knows, whatever interrupts a `with` block."""
    mine: bool = lock._is_owned()  # as threading.Condition asks it
    return mine


def _is_sparse(size: int, live: int) -> bool:
    return live == 0 or (size >= ROLL_MIN and live < SPARSE * size)


def slices(value: memoryview, spare: memoryview) -> Iterator[tuple[memoryview, list[memoryview]]]:
    """`value`, which starts on a page, in pieces of one call each."""
    for at in range(0, len(value), CALL_BYTES):
        piece = value[at : at + CALL_BYTES]
        yield piece, whole_pages(piece, spare)


def repack(
    pieces: Iterable[bytes | memoryview], buffers: tuple[memoryview, memoryview]
) -> Iterator[tuple[memoryview, list[memoryview]]]:
    """`pieces` joined into pieces as long as the buffers, and the pages that hold them, zeros behind.

    The buffers, equally long, are used in turns: each piece is gone when the next but one is asked for.
    """
    buffer, other = buffers
    used = 0
    for piece in pieces:
        source = memoryview(piece).cast("B")
        while source:
            count = min(len(source), len(buffer) - used)
            copy_bytes(buffer[used : used + count], source[:count])
            used += count
            source = source[count:]
            if used == len(buffer):
                yield buffer, [buffer]
                buffer, other, used = other, buffer, 0
    if used:
        end = padded(used)
        buffer[used:end] = bytes(end - used)
        yield buffer[:used], [buffer[:end]]
