"""Making room: what a put or a restore does when memory has no hole for it.

Invariants: every step either changes something (memory committed, bytes freed, a dead member reaped) and
says so, or says that nothing is left to do; nothing is freed that has no whole disk copy. Nothing here
waits for other members; who finds nothing to evict waits for what this process's spiller is writing.
Not here: who goes first (`millpond.eviction`), how it is written (`millpond.spill`), the thread that
works ahead of the puts (spiller.py), the words of the error (shortage.py).
"""

from __future__ import annotations

import errno
import gc
import os
import time
import weakref
from collections import deque
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np

from millpond.errors import SpillError, StoreFullError
from millpond.eviction.limits import headroom
from millpond.eviction.named import Policy, numbered
from millpond.eviction.ranking import Ranking
from millpond.hot import BLOCK, Batch, Code, Core, Queued, Using
from millpond.spill.overlap import Overlap
from millpond.spill.segments import is_mine
from millpond.spill.trouble import Troubles
from millpond.store.shortage import free_bytes, store_full, to_commit
from millpond.store.spiller import Spiller

if TYPE_CHECKING:
    from millpond.spill.writer import SpillWriter

BATCH_BYTES = 32 << 20
STEP_BYTES = 8 << 20
AHEAD_SHARE = 8
"""One part in so many of the limit is kept free ahead of the puts while they come."""
MEMORY = "memory"
GC_INTERVAL_S = 1.0
BARREN_S = 0.25
SCATTERED_SHARE = 8
IDLE_S = 0.6
SHORTAGE_S = 0.1
"""So long after one member has given back for all, another one may."""
SPARSE_MIN = 16 << 20
"""Less than this that lies scattered is left alone while nobody needs it."""


class Room:
    """Finds room in one store for one process. Safe for many threads, which take turns at evicting."""

    def __init__(self, core: Core, writer: SpillWriter | None) -> None:
        self.own_policy: Policy | None = None
        self._number = core._policy()
        self._shared_policy = self._ranked_by = numbered(self._number)
        self._core = core
        self._writer = writer
        self.spiller = Spiller(self)
        self._troubles = Troubles()
        self._refused = ""  # what the system said when memory was to be committed last
        self._lock = RLock()
        self._ranks = RLock()
        self._ranking: Ranking | None = None
        self._collected = self._barren_until = 0.0
        self._barren_free = 0
        self._sparse = 0  # free bytes in slabs, when they were last looked at
        _rooms.add(self)

    def make(self, size: int) -> bool:
        """One step towards a hole for `size` bytes; False when no step is left.

        Raises SpillError when the disk refuses and nothing else helps.
        """
        lacking = self._core._lacking(size)
        totals = self._core._totals()
        below = totals["committed_bytes"] + BLOCK <= totals["memory_limit"]
        if not lacking and below and self._commit(size):
            return True
        if size > totals["memory_limit"]:
            return False
        if not lacking and totals["free_bytes"] >= size and self._core._fits(size):
            return True  # somebody has evicted meanwhile: what is warm need not be regrouped
        if _scattered(totals) and (
            self._empty_blocks(_share(totals, lacking)) if lacking else self._regroup(size)
        ):
            return True
        if self._core._reap():
            return True
        if self._spill(max(size, lacking, min(STEP_BYTES, totals["memory_limit"] // 8))):
            return True
        return (not lacking and self._regroup(size)) or self._collect_garbage()

    def wait(self, size: int) -> Queued:
        """A place among those who wait for room, for `size` bytes."""
        return Queued(self._core, size + BLOCK if size <= self._core._totals()["memory_limit"] else 0)

    def _commit(self, size: int) -> bool:
        """Commits memory below the limit, if the machine has it."""
        if headroom() < to_commit(size):
            return False
        code: int = self._core._grow(size)
        if code == Code.SYSTEM:
            self._refused = str(self._core._fail(code, MEMORY))
            self._troubles.met(MEMORY, f"the system refuses to commit it ({self._refused})")
        elif code == Code.OK:
            self._refused = ""
            self._troubles.works(MEMORY)
        return code == Code.OK

    def _regroup(self, size: int) -> bool:
        """Enough is free, but in pieces: whole blocks go back to the system, to be committed in one piece,
        and sparse ones are emptied if those do not suffice."""
        totals = self._core._totals()
        spare = max(0, min(totals["memory_limit"] - totals["committed_bytes"], headroom()))
        if spare + free_bytes(totals) < size:
            return False
        missing = size + BLOCK - spare
        if missing > 0:
            missing -= self._core._shrink(missing)
        emptied = 0
        if missing > 0:
            emptied = self._empty_blocks(_share(totals, missing))
            if emptied and size > BLOCK:
                self._core._shrink(min(emptied, missing))
        return self._commit(size) or emptied > 0

    def _empty_blocks(self, nbytes: int) -> int:
        """Moves objects together until `nbytes` more of whole blocks are free; the bytes. It looks at every
        object, so after a look that was in vain not again before more is free, or a moment has passed."""
        now, free = time.monotonic(), free_bytes(self._core._totals())
        if free < BLOCK or (now < self._barren_until and free < self._barren_free + BLOCK):
            return 0
        emptied: int = self._core._empty_blocks(nbytes)
        if not emptied:
            self._barren_until, self._barren_free = now + BARREN_S, free
        return emptied

    def _collect_garbage(self) -> bool:
        """Reference cycles of Python may hold refs and views; looking for them is slow, so seldom."""
        now = time.monotonic()
        if now - self._collected < GC_INTERVAL_S:
            return False
        self._collected = now
        self._core._ask_for_gc()
        return gc.collect() > 0

    def _spill(self, nbytes: int) -> bool:
        """Evicts, beside the spiller; with nothing left to take, waits for what that one has taken."""
        if self._writer is None:
            return False
        seen = self.spiller.freed
        self.spiller.wake()
        return self.evict(nbytes) > 0 or self.spiller.await_step(seen)

    def evict(self, nbytes: int) -> int:
        """Cleans and evicts the coldest objects that nobody uses until `nbytes` are free; the bytes freed.

        Raises SpillError when the disk refuses and nothing could be freed.
        """
        if self._writer is None:
            return 0  # without a disk nothing is clean, nor can it be: those who wait look here often
        self._refuse_in_the_middle()
        with self._lock:
            return self._evict_ranked(nbytes, behind=False)

    def in_the_middle(self) -> bool:
        """Whether this thread is evicting already, and a destructor or a signal's handler has come in
        between: it must not wait for another thread, which may want what this one holds."""
        writes = self._writer is not None and self._writer.in_the_middle()
        return writes or is_mine(self._lock) or is_mine(self._ranks)

    def _refuse_in_the_middle(self) -> None:
        if is_mine(self._ranks):
            raise SpillError(errno.EDEADLK, "this thread is in the middle of evicting: try again after it")
        if self._writer is not None:
            self._writer.refuse_in_the_middle()

    def evict_ahead(self) -> int:
        """The spiller's work: one step towards the room that is kept free while puts come.

        Returns the bytes freed, or moved together; 0: there is room enough, or nothing can go. Raises
        SpillError like `evict`, StoreClosedError.
        """
        with Using(self._core):
            totals = self._core._totals()
            limit = totals["memory_limit"]
            room = totals["free_bytes"] + max(0, limit - totals["committed_bytes"])
            if room >= limit // AHEAD_SHARE:
                return 0
            if _scattered(totals) and (emptied := self._empty_blocks(_share(totals, STEP_BYTES))):
                return emptied
            return self._evict_ranked(min(STEP_BYTES, limit // AHEAD_SHARE), behind=True)

    def _evict_ranked(self, nbytes: int, behind: bool) -> int:
        freed, fresh = 0, False
        while freed < nbytes:
            with self._ranks:
                if not self._lasts():
                    if freed or fresh:
                        break
                    fresh = True
                rows = self._next(nbytes - freed)
            freed += self._evict_rows(rows[self._core._unread(rows)], behind)
        return freed

    def _lasts(self) -> bool:
        """Whether the last ranking is still of use."""
        ranking = self._ranking
        return ranking is not None and self._ranked_by is self.policy and not ranking.exhausted

    def _next(self, nbytes: int) -> np.ndarray[Any, Any]:
        """The next victims of the last ranking, or of a fresh one: ranking is linear in the objects."""
        ranking, policy = self._ranking, self.policy
        if ranking is None or self._ranked_by is not policy or ranking.exhausted:
            rows = self._core._candidates()
            share = int(rows["size"].sum()) // 8
            ranking = Ranking(rows, policy, max(share, nbytes), evict=True)
            self._ranking, self._ranked_by = ranking, policy
        return ranking.take(nbytes)

    @property
    def policy(self) -> Policy:
        """The policy of this process: its own, if it was given a function, else that of the store."""
        if self.own_policy is not None:
            return self.own_policy
        if self._number != self._core._policy():
            self._number = self._core._policy()
            self._shared_policy = numbered(self._number)
        return self._shared_policy

    def _evict_rows(self, rows: np.ndarray[Any, Any], behind: bool = False) -> int:
        freed: int = self._core._evict(rows[rows["clean"] != 0])
        dirty = rows[rows["clean"] == 0]
        if self._writer is None or not len(dirty):
            return freed
        batch = Batch(self._core, dirty, 1 << 62)
        return freed + (self._writer.clean(batch, True, behind).bytes_evicted if batch.count else 0)

    def relieve(self) -> bool:
        """What janitors do all the time: leave the machine, or their own cgroup, what it is short of; and one
        for all: keep to a limit that was lowered, give back what nobody has used for a while. Whether this is
        the one."""
        if headroom() < 0 and self._core._take_turn(True, SHORTAGE_S):
            short = max(0, -headroom())
            self.shrink_to(self._core._totals()["committed_bytes"] - short)
        if not self._core._take_turn(False, IDLE_S):
            return False
        self.shrink_to(self._core._totals()["memory_limit"])
        self._give_idle()
        return True

    def _give_idle(self) -> None:
        idle = self._core._idle()
        given = self._core._shrink(idle) if idle >= BLOCK else 0
        sparse = self._core._totals()["free_slot_bytes"]
        scattered = idle - given + min(sparse, self._sparse)
        self._sparse = sparse
        if scattered >= SPARSE_MIN:
            self._core._shrink(self._empty_blocks(min(scattered, BATCH_BYTES)))

    def shrink_to(self, nbytes: int) -> None:
        """Gives memory back until at most `nbytes` are committed, or everything that is left is in use."""
        while (excess := self._core._totals()["committed_bytes"] - nbytes) > 0:
            if self._core._shrink(excess):
                continue
            try:
                if not self.evict(min(excess, BATCH_BYTES)):
                    return
            except SpillError:
                return  # reported by whoever needs the room; nothing is lost

    def clean_and_evict(self, rows: np.ndarray[Any, Any]) -> int:
        """Spills the given candidates as far as nobody uses them; the bytes freed.

        Raises SpillError when the disk refuses and has taken nothing.
        """
        self._refuse_in_the_middle()
        with self._lock:
            freed: int = self._core._evict(rows[rows["clean"] != 0])
            return freed + self._evict_in_two(rows[rows["clean"] == 0])

    def _evict_in_two(self, rows: np.ndarray[Any, Any]) -> int:
        """Two threads take batches in turn: one is prepared and recorded while the other is written."""
        parts = deque(_batches(rows, BATCH_BYTES))
        freed: list[int] = []
        refusals: list[SpillError] = []

        def work(behind: bool) -> None:
            try:
                while (part := _next_of(parts)) is not None:
                    freed.append(self._evict_rows(part, behind))
            except SpillError as error:
                refusals.append(error.with_traceback(None))  # this very frame is in it
            finally:
                parts.clear()  # what ends one ends the other after its batch

        with Overlap[None]() as helper:
            if len(parts) > 1:
                helper.start(partial(work, True))
            work(False)
            helper.finish()
        if refusals and not sum(freed):
            raise refusals.pop(0)
        return sum(freed)

    def full(self, size: int, refusal: SpillError | None = None) -> StoreFullError:
        """The error that says why there is no room for `size` bytes; `refusal`: the disk's."""
        return store_full(self._core, size, self._refused, refusal)


def _share(totals: dict[str, Any], nbytes: int) -> int:
    """What moving empties at a time: `nbytes`, or what makes it worth looking at every object."""
    return max(nbytes, min(BATCH_BYTES, int(totals["memory_limit"]) // 16))


def _batches(rows: np.ndarray[Any, Any], nbytes: int) -> list[np.ndarray[Any, Any]]:
    """`rows` in order, cut where the next `nbytes` are full; none is empty."""
    ends = np.cumsum(rows["size"], dtype=np.uint64)
    full = np.arange(nbytes, int(ends[-1]) if len(ends) else 0, nbytes, dtype=np.uint64)
    cuts = np.unique(np.searchsorted(ends, full) + 1)
    return [part for part in np.split(rows, cuts) if len(part)]


def _next_of(parts: deque[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any] | None:
    """The first that nobody has taken."""
    try:
        return parts.popleft()
    except IndexError:
        return None


def _scattered(totals: dict[str, Any]) -> bool:
    """Whether so much is free that joining it is cheaper than writing objects to disk."""
    return bool(free_bytes(totals) >= max(BLOCK, totals["committed_bytes"] // SCATTERED_SHARE))


_rooms: weakref.WeakSet[Room] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """The locks may have been held by threads that a forked child has not."""
    for room in list(_rooms):
        room._lock, room._ranks = RLock(), RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)
