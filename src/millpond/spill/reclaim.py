"""Disk space that comes back: dead files, holes in files, copies that memory has as well, sparse segments.

The steps, cheapest first; the later ones are only for whoever needs the space now, or has much of it dead:
    dead files   are unlinked
    holes        dead pages in runs of 256 KiB and more are given back to the filesystem
    clean copies of objects that are in memory and that nobody pins are dropped, whole files first
    rewriting    of segments that are mostly dead: their records go to another one
Invariants: only CLOSED segments are punched or rewritten, in which dead bytes stay dead; what was punched is
recorded as a total, so that a death in between, or two at work, leave the count true; one thread of a process
reclaims at a time; a search that finds nothing is not repeated for a while.
Not here: copying records (`rewrite`), unlinking (`sweep`), whether an object is in use (the kernel).
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from threading import RLock
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from millpond.errors import SpillError
from millpond.hot import SEGMENT_CLOSED
from millpond.spill.directory import Directories
from millpond.spill.disk import is_own_file
from millpond.spill.record import PAGE
from millpond.spill.rewrite import Rewriter
from millpond.spill.segments import SPARSE, SegmentTable, is_mine
from millpond.spill.sweep import sweep_dead

if TYPE_CHECKING:
    from millpond.hot import Places

HOLE_MIN: Final = 256 << 10
"""Shorter runs of dead pages stay: punching costs a system call, and a hole splits the file's extents."""
DEAD_SHARE: Final = 0.25
"""Routine work begins when more than this share of the disk space in use is dead ..."""
DEAD_MIN: Final = 8 << 20
"""... and it is at least so many bytes."""
ROUTINE_S: Final = 5.0
ROUTINE_BYTES: Final = 128 << 20
"""Of live records, that one round of routine work copies at most."""
BARREN_S: Final = 1.0

Rows = NDArray[Any]


class Reclaimer:
    """Gives disk space of one store back, in one process. Safe for many threads, which take turns."""

    def __init__(self, table: SegmentTable, places: Places, directories: Directories) -> None:
        self._table = table
        self._places = places
        self._directories = directories
        self._rewriter = Rewriter(table, places, directories)
        self._lock = RLock()
        self._busy = False
        self._next_routine = self._barren_until = 0.0
        _reclaimers.add(self)

    def in_the_middle(self) -> bool:
        """Whether this thread is reclaiming, and a destructor or a signal's handler has come in between: it
        must not wait for a thread that waits for this one."""
        return is_mine(self._lock)

    def make_room(self, nbytes: int) -> bool:
        """Frees at least `nbytes` if it can, at the price of disk copies; whether anything was freed.

        For whoever would have to report that the disk is full otherwise. Waits for a thread of this process
        that is reclaiming already. Raises errors of the store as a whole.
        """
        with self._lock:
            if self._busy:  # a destructor or a signal's handler, in the middle of this thread's own work
                return False
            self._busy = True
            try:
                return self._make_room(nbytes)
            finally:
                self._busy = False

    def routine(self) -> int:
        """What the first member's janitor does: nothing unless much is dead. Returns the bytes freed.

        Records are copied only up to a bound, so that it takes a fraction of a second.
        """
        now = time.monotonic()
        if now < self._next_routine or not self._lock.acquire(blocking=False):
            return 0
        try:
            if self._busy:
                return 0
            self._busy = True
            self._next_routine = now + ROUTINE_S
            try:
                return self._routine()
            finally:
                self._busy = False
        finally:
            self._lock.release()

    def _make_room(self, nbytes: int) -> bool:
        freed = self._sweep()
        now = time.monotonic()
        if freed >= nbytes or now < self._barren_until:
            return freed > 0
        freed += self._punch(self._places.segments())
        if freed < nbytes:
            freed += self._drop_clean(nbytes - freed)
        if freed < nbytes:
            freed += self._rewrite(nbytes - freed, ROUTINE_BYTES)
        if freed == 0:
            self._barren_until = now + BARREN_S
        return freed > 0

    def _routine(self) -> int:
        segments = self._places.segments()
        if not _much_is_dead(segments):
            return 0
        freed = self._punch(segments)
        if _much_is_dead(self._places.segments()):
            freed += self._rewrite(1 << 62, ROUTINE_BYTES)
        return freed

    def _sweep(self) -> int:
        """Unlinks dead files; the bytes that they had on disk."""
        rows = self._places.segments()
        before = int(_used(rows).sum())
        if not sweep_dead(self._table, self._directories):
            return 0
        return max(0, before - int(_used(self._places.segments()).sum()))

    # --- holes ---

    def _punch(self, segments: Rows) -> int:
        """Punches what is dead in closed segments; the bytes given back."""
        closed = segments[(segments["state"] == SEGMENT_CLOSED) & (_dead(segments) >= HOLE_MIN)]
        return sum(map(self._punch_segment, closed, self._places.live_pages(closed)))

    def _punch_segment(self, row: Any, bits: NDArray[np.uint64]) -> int:
        directory = int(row["directory"])
        if not self._directories.can_punch(directory):
            return 0
        path = self._directories.file(directory, int(row["id"]))
        system = self._directories.system
        try:
            fd = system.open(path, os.O_RDWR)
        except OSError:
            return 0  # whoever reads or writes there says what is wrong
        try:
            status = system.fstat(fd)
            if not is_own_file(status):
                return 0
            block = max(PAGE, status.st_blksize)
            holes = list(dead_runs(bits, int(row["size"]), block))
            total = sum(stop - start for start, stop in holes)
            if total < int(row["punched"]) + HOLE_MIN:
                return 0
            for start, stop in holes:
                system.punch(fd, start, stop - start)
        except OSError as error:
            self._directories.note_punch_failure(directory, error)
            return 0
        finally:
            with suppress(OSError):
                system.close(fd)
        self._table.segment_punched(int(row["segment"]), int(row["id"]), total)
        return total - int(row["punched"])

    # --- clean copies ---

    def _drop_clean(self, nbytes: int) -> int:
        """Drops disk copies of unpinned objects in memory until `nbytes` could be freed; the bytes freed.

        First where a file dies of it, then where the least is left that keeps it alive.
        """
        segments = self._places.segments()
        segments = segments[segments["state"] == SEGMENT_CLOSED]
        if not len(segments):
            return 0
        clean = np.zeros(int(segments["segment"].max()) + 1, np.uint64)
        for rows in self._records(segments["segment"]):
            rows = rows[rows["resident"] != 0]
            np.add.at(clean, rows["segment"], rows["length"])
        share = clean[segments["segment"]]
        order = np.argsort(segments["live"].astype(np.int64) - share.astype(np.int64), kind="stable")
        order = order[share[order] > 0]
        enough = np.searchsorted(np.cumsum(share[order]), nbytes) + 1
        for rows in self._records(segments["segment"][order[:enough]]):
            self._places.drop(rows[rows["resident"] != 0])
        return self._sweep() + self._punch(self._places.segments())

    def _records(self, wanted: NDArray[np.uint32]) -> Iterator[Rows]:
        """The records in these segments of objects that are alive and not pinned, some at a time."""
        if len(wanted) == 0:
            return
        marks = np.zeros(int(wanted.max()) + 1, np.uint8)
        marks[wanted] = 1
        cursor: int | None = 0
        while cursor is not None:
            rows, cursor = self._places.records(marks, cursor)
            yield rows

    # --- rewriting ---

    def _rewrite(self, nbytes: int, live_bytes: int) -> int:
        """Empties sparse segments until `nbytes` come back or `live_bytes` are copied; the bytes freed."""
        victims = self._sparse(self._places.segments())
        gain = np.cumsum(_dead(victims))
        cost = np.cumsum(victims["live"])
        count = min(int(np.searchsorted(gain, nbytes)), int(np.searchsorted(cost, live_bytes))) + 1
        victims = victims[:count]
        if not len(victims):
            return 0
        before = int(_used(victims).sum())
        copied = 0
        with suppress(SpillError):  # no room for the copies: what was moved by then counts
            records = list(self._records(victims["segment"]))
            copied = self._rewriter.run(victims, np.concatenate(records))
        self._sweep()
        segments = self._places.segments()
        self._punch(segments[np.isin(segments["id"], victims["id"])])
        segments = self._places.segments()
        after = int(_used(segments[np.isin(segments["id"], victims["id"])]).sum())
        return max(0, before - after - copied)

    def _sparse(self, segments: Rows) -> Rows:
        """Closed segments of which less than 30 % is alive, those with the least first."""
        used = _used(segments)
        sparse = (segments["state"] == SEGMENT_CLOSED) & (segments["live"] < used * SPARSE)
        sparse &= _dead(segments) >= HOLE_MIN
        sparse &= ~np.isin(segments["id"], self._rewriter.failed(segments["id"]))
        rows: Rows = segments[sparse]
        order = np.argsort(rows["live"] / np.maximum(1, _used(rows)), kind="stable")
        return rows[order]

    def _after_fork(self) -> None:
        self._lock = RLock()
        self._busy = False
        self._rewriter.forget()


def _used(segments: Rows) -> NDArray[np.int64]:
    """Bytes that each file occupies on disk."""
    used: NDArray[np.int64] = segments["size"].astype(np.int64) - segments["punched"].astype(np.int64)
    return used


def _dead(segments: Rows) -> NDArray[np.int64]:
    """Bytes of each file that no record needs and that are not given back."""
    dead: NDArray[np.int64] = np.maximum(0, _used(segments) - segments["live"].astype(np.int64))
    return dead


def _much_is_dead(segments: Rows) -> bool:
    dead = int(_dead(segments[segments["state"] == SEGMENT_CLOSED]).sum())
    return dead >= DEAD_MIN and dead > DEAD_SHARE * int(_used(segments).sum())


def dead_runs(bits: NDArray[np.uint64], size: int, block: int) -> Iterator[tuple[int, int]]:
    """(start, stop) in bytes of runs of dead pages that are worth a hole, on whole blocks of the filesystem.

    `bits` has a bit for each page of a file of `size` bytes, 1 if a record needs it.
    """
    pages = np.unpackbits(bits.view(np.uint8), bitorder="little")[: size // PAGE]
    edges = np.flatnonzero(np.diff(pages, prepend=1, append=1))
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        start, stop = -(-int(first) * PAGE // block) * block, int(end) * PAGE // block * block
        if stop - start >= HOLE_MIN:
            yield start, stop


_reclaimers: weakref.WeakSet[Reclaimer] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """A forked child has neither the thread that may have held the lock nor the open segment."""
    for reclaimer in list(_reclaimers):
        reclaimer._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
