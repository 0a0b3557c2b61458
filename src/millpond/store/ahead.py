"""Restoring many objects at once: in the order of the disk, several reads under way, small ones together.

What cannot be restored here (no room, damaged, somebody else's work) is left as it is: a get of it alone
says why, or finds a way. So nothing here decides what an error means.
Invariants: every claim ends with its batch; at most HELPERS reads are under way; helpers are gone when a
call returns, whatever happened; no more than UNTAKEN runs are restored before their values are built.
Not here: single objects and all errors (`restore`), who asks (`Store.get`, `prefetch`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

from millpond.errors import ObjectLostError, SpillError, StoreBusyError
from millpond.flag import Flag
from millpond.hot import NO_LIMIT, Code, Core, ObjectRef, RestoreBatch
from millpond.spill.overlap import Overlap
from millpond.spill.reader import WINDOW, Wanted
from millpond.spill.record import PAGED_MIN

if TYPE_CHECKING:
    from millpond.spill.reader import SpillReader
    from millpond.store.room import Room

HELPERS: Final = 2
"""Reads under way: two hide the processor's share of each other; more only share the same disk."""
UNTAKEN: Final = 4
GAP: Final = 128 << 10
"""Reading over so many bytes that nobody wants takes as long as starting another read."""
CLAIMS: Final = 1 << 16
"""Objects that one batch claims at most: a claimed record cannot be moved or given back."""
WINDOW_SHARE: Final = 16
"""Records that are read together are at most this part of memory."""
POLL_S: Final = 0.05

Take = Callable[[RestoreBatch, int, int], object]
Stop = Callable[[], bool]


class _Stopped(Exception):
    """The call is over before this read is."""


class Ahead:
    """Restores lists of objects, for one process of one store."""

    def __init__(self, core: Core, room: Room, reader: SpillReader) -> None:
        self.room = room
        self._core = core
        self._reader = reader

    def restore(
        self,
        refs: list[ObjectRef],
        indices: Sequence[int],
        take: Take,
        stop: Stop,
        byte_limit: int = NO_LIMIT,
    ) -> None:
        """Makes resident what is spilled of refs[i], i in `indices`: at most `byte_limit` bytes of values.

        `take(batch, first, stop)` is called in this thread for items that are ready, and ends their
        claims; what it raises ends the call. Ends early when `stop()` says so, or when there is no room.
        """
        for at in range(0, len(indices), CLAIMS):
            if stop():
                return
            batch = RestoreBatch(self._core, refs, indices[at : at + CLAIMS], byte_limit)
            work = _Work(self._core, self.room, self._reader, batch, stop)
            try:
                work.run(take)
            finally:
                batch.release(0, batch.count)  # an error's traceback may keep the batch for long
            if work.over or batch.full:
                return
            byte_limit -= batch.nbytes

    def restore_small(self, ref: ObjectRef) -> None:
        """Makes one object of less than 64 KiB resident if that is easy: it is spilled, not compressed, and
        there is a hole for it. Fewer interpreted steps than the way that knows an answer to everything.

        Raises ObjectLostError and OSError, which mean no more than that it was not easy, and StoreBusyError.
        """
        batch = RestoreBatch(self._core, [ref], (0,), NO_LIMIT)
        if batch.count:
            place = batch.place(0)[0]
            with self._reader.window(place, place[0] + place[1]) as (window, base):
                batch.copy_packed(0, 1, window, base)


class _Work:
    """One batch: its runs are handed out to helpers, and come back when they are in memory."""

    def __init__(self, core: Core, room: Room, reader: SpillReader, batch: RestoreBatch, stop: Stop) -> None:
        self.over = False
        self._core, self._room, self._reader = core, room, reader
        self._batch, self._stop = batch, stop
        self._window = min(WINDOW, core._totals()["memory_limit"] // WINDOW_SHARE)
        self._lock = threading.Lock()
        self._next = 0
        self._ready: SimpleQueue[tuple[int, int] | None] = SimpleQueue()
        self._arrived = Flag()  # not the queue's own timeout: flag.py says why
        self._untaken = threading.Semaphore(UNTAKEN)
        self._caller, self._pid = threading.get_ident(), os.getpid()

    def run(self, take: Take) -> None:
        """Restores the batch; see `Ahead.restore`."""
        with ExitStack() as stack:
            helpers = [stack.enter_context(Overlap[None]()) for _ in range(HELPERS)]
            stack.callback(self._end)
            if self._is_one_run():
                self._help()  # a thread would cost more than it saves
                helpers.clear()
            for helper in helpers:
                helper.start(self._help)
            self._take_all(take, len(helpers) or 1)
            for helper in helpers:
                helper.finish()

    def _is_one_run(self) -> bool:
        count = self._batch.count
        return count == 0 or self._batch.run(0, self._window, GAP) == count

    def _take_all(self, take: Take, helpers: int) -> None:
        """Until the last of the helpers has ended. A value that forks while it is built leaves a child that
        has none of them."""
        while helpers and os.getpid() == self._pid:
            if self._stop():
                self._end()
            self._arrived.clear()
            try:
                run = self._ready.get_nowait()
            except Empty:
                self._arrived.wait(POLL_S)
                continue
            if run is None:
                helpers -= 1
                continue
            take(self._batch, *run)
            self._untaken.release()

    def _end(self) -> None:
        """No further reads; those under way end at their next step."""
        self.over = True

    @property
    def _exhausted(self) -> bool:
        return self.over or self._next >= self._batch.count

    def _help(self) -> None:
        """Restores runs until there are no more; in the caller's thread if there is no other."""
        try:
            while (run := self._next_run()) is not None:
                try:
                    self._restore(*run)
                except StoreBusyError:
                    self._end()
                except (ObjectLostError, OSError, _Stopped):
                    pass  # a get of one of them alone says what is wrong
                finally:
                    self._hand_over(run)
        finally:
            self._hand_over(None)

    def _hand_over(self, run: tuple[int, int] | None) -> None:
        self._ready.put(run)
        self._arrived.set()

    def _next_run(self) -> tuple[int, int] | None:
        while threading.get_ident() != self._caller and not self._untaken.acquire(timeout=POLL_S):
            if self.over:
                return None
        with self._lock:
            if self._exhausted:
                return None
            first = self._next
            self._next = self._batch.run(first, self._window, GAP)
            return first, self._next

    def _restore(self, first: int, stop: int) -> None:
        (_, length, *_), _, _, size = self._batch.place(first)
        if size < PAGED_MIN and length <= self._window:
            self._restore_packed(first, stop)
        elif stop > first + 1:
            self._restore_paged(first, stop)
        else:
            self._restore_one(first)

    def _restore_paged(self, first: int, stop: int) -> None:
        """Records that follow each other, none of them small: one read, straight to where they belong."""
        begun: list[int] = []
        wanted: list[Wanted] = []
        whole: list[bool] = []
        try:
            for item in range(first, stop):
                place, entry, birth, size = self._batch.place(item)
                begun.append(item)  # before it is: an end of what has not begun does nothing
                target = self._begin(item, size)
                if target is None:
                    begun.pop()
                    break
                wanted.append((place, entry, birth, size, target))
            if wanted:
                whole = self._reader.read_paged(wanted)
        finally:
            for item, good in zip_longest(begun, whole, fillvalue=False):
                self._batch.end(item, good)
        if not self.over and len(begun) < stop - first:  # somebody else took one of them
            for item in range(first + len(begun) + 1, stop):
                self._restore_one(item)

    def _restore_one(self, item: int) -> None:
        place, entry, birth, size = self._batch.place(item)
        target = self._begin(item, size)
        if target is None:
            return
        whole = False
        try:
            self._reader.read_into(place, entry, birth, size, target, step=lambda: self._step(item))
            whole = True
        finally:
            self._batch.end(item, whole)

    def _step(self, item: int) -> None:
        self._core._restore_step(self._batch.ref(item))
        if self.over:
            raise _Stopped

    def _restore_packed(self, first: int, stop: int) -> None:
        place, end = self._batch.place(first)[0], self._batch.place(stop - 1)[0]
        with self._reader.window(place, end[0] + end[1]) as (window, base):
            while first < stop and not self.over:
                first, code = self._batch.copy_packed(first, stop, window, base)
                if code == Code.SPILLED:
                    self._unpack(first, window, base)
                    first += 1
                elif code == Code.BUSY:
                    self._end()
                elif code != Code.OK and not self._make_room(sum(self._sizes(first, stop))):
                    return

    def _sizes(self, first: int, stop: int) -> list[int]:
        return [self._batch.place(item)[3] for item in range(first, stop)]

    def _unpack(self, item: int, window: memoryview, base: int) -> None:
        """A small record that is compressed."""
        place, entry, birth, size = self._batch.place(item)
        target = self._begin(item, size)
        if target is None:
            return
        whole = False
        try:
            whole = self._reader.unpack(place, entry, birth, size, window, base, target)
        finally:
            self._batch.end(item, whole)

    def _begin(self, item: int, size: int) -> memoryview | None:
        """The extent that is this member's to fill; None: somebody else was faster, or there is no room."""
        while not self.over:
            code, target = self._batch.begin(item)
            if code == Code.OK:
                return target
            if code == Code.BUSY:
                self._end()  # behind a stopped process one wait is enough: the next call says so
            elif code not in (Code.NO_ROOM, Code.NO_COMMIT) or not self._make_room(size):
                return None
        return None

    def _make_room(self, nbytes: int) -> bool:
        """Whether another try is worth it; else everything is in use, and helpers end."""
        try:
            if self._room.make(nbytes):
                return True
        except SpillError:
            pass  # the disk takes nothing more
        self._end()
        return False
