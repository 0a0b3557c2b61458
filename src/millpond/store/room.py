"""Making room: what a put or a restore does when memory has no hole for it.

Invariants: every step either changes something (memory committed, bytes freed, a dead member reaped) and
says so, or says that nothing is left to do; nothing is freed that has no whole disk copy. Nothing here
waits for other members.
Not here: who goes first (`millpond.eviction`), how it is written (`millpond.spill`).
"""

from __future__ import annotations

import gc
import os
import time
import weakref
from collections.abc import Iterator
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np

from millpond.errors import SpillError, StoreFullError
from millpond.eviction.limits import headroom
from millpond.eviction.named import Policy, numbered
from millpond.eviction.ranking import Ranking
from millpond.hot import BLOCK, Batch, Code, Core
from millpond.units import format_bytes

if TYPE_CHECKING:
    from millpond.spill.writer import SpillWriter

BATCH_BYTES = 32 << 20
COMMIT_STEP = 2 << 20
GC_INTERVAL_S = 1.0


class Room:
    """Finds room in one store for one process. Safe for many threads, which take turns at evicting."""

    def __init__(self, core: Core, writer: SpillWriter | None) -> None:
        self.own_policy: Policy | None = None
        self._number = core._policy()
        self._shared_policy = self._ranked_by = numbered(self._number)
        self._core = core
        self._writer = writer
        self._lock = RLock()
        self._ranking: Ranking | None = None
        self._collected = 0.0
        _rooms.add(self)

    def make(self, size: int) -> bool:
        """One step towards a hole for `size` bytes; False when no step is left.

        Raises SpillError when the disk refuses and nothing else helps.
        """
        if self._commit(size):
            return True
        totals = self._core._totals()
        if size > totals["memory_limit"]:
            return False
        if totals["free_bytes"] >= size + BLOCK and self._regroup(size):
            return True
        if self._core._reap():
            return True
        if self.evict(max(size, min(BATCH_BYTES, totals["memory_limit"] // 8))):
            return True
        return self._regroup(size) or self._collect_garbage()

    def _commit(self, size: int) -> bool:
        """Commits memory below the limit, if the machine has it."""
        wanted = max(size + BLOCK, COMMIT_STEP)
        if headroom() < wanted:
            return False
        code: int = self._core._grow(size)
        return code == Code.OK

    def _regroup(self, size: int) -> bool:
        """Free bytes that lie scattered go back to the system, to be committed in one piece."""
        return self._core._shrink(size + BLOCK) > 0 and self._commit(size)

    def _collect_garbage(self) -> bool:
        """Reference cycles of Python may hold refs and views; looking for them is slow, so seldom."""
        now = time.monotonic()
        if now - self._collected < GC_INTERVAL_S:
            return False
        self._collected = now
        self._core._ask_for_gc()
        return gc.collect() > 0

    def evict(self, nbytes: int) -> int:
        """Cleans and evicts the coldest objects that nobody uses until `nbytes` are free; the bytes freed.

        Raises SpillError when the disk refuses and nothing could be freed.
        """
        freed = 0
        with self._lock:
            for ranking in self._rankings(nbytes):
                while freed < nbytes and not ranking.exhausted:
                    rows = ranking.take(nbytes - freed)
                    freed += self._evict_rows(rows[self._core._unread(rows)])
                if freed:
                    break
        return freed

    def _rankings(self, nbytes: int) -> Iterator[Ranking]:
        """The last ranking while it lasts, then a fresh one: ranking is linear in the objects."""
        policy = self.policy
        if self._ranking is not None and self._ranked_by is policy and not self._ranking.exhausted:
            yield self._ranking
        rows = self._core._candidates()
        share = int(rows["size"].sum()) // 8
        self._ranking = Ranking(rows, policy, max(share, nbytes), evict=True)
        self._ranked_by = policy
        yield self._ranking

    @property
    def policy(self) -> Policy:
        """The policy of this process: its own, if it was given a function, else that of the store."""
        if self.own_policy is not None:
            return self.own_policy
        if self._number != self._core._policy():
            self._number = self._core._policy()
            self._shared_policy = numbered(self._number)
        return self._shared_policy

    def _evict_rows(self, rows: np.ndarray[Any, Any]) -> int:
        freed: int = self._core._evict(rows[rows["clean"] != 0])
        dirty = rows[rows["clean"] == 0]
        if self._writer is None or not len(dirty):
            return freed
        batch = Batch(self._core, dirty, 1 << 62)
        return freed + (self._writer.clean(batch, evict=True).bytes_evicted if batch.count else 0)

    def relieve(self) -> None:
        """What the first member's janitor does each second: keep to a limit that was lowered, leave the
        machine what it is short of, and give back what nobody has used for a second."""
        self.shrink_to(self._core._totals()["memory_limit"])
        short = -headroom()
        if short > 0:
            self.shrink_to(self._core._totals()["committed_bytes"] - short)
        idle = self._core._idle()
        if idle >= BLOCK:
            self._core._shrink(idle)

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
        """Spills the given candidates as far as nobody uses them; the bytes freed."""
        with self._lock:
            return self._evict_rows(rows)

    def full(self, size: int) -> StoreFullError:
        """The error that says why there is no room, with numbers and the next step."""
        totals = self._core._totals()
        survey = self._core._survey()
        pinned = survey[survey["pins"] > 0]
        members = ", ".join(f"{command} ({pid})" for _, pid, command in self._core._members())
        spill = totals["spill_limit"]
        step = (
            "spilling is off (spill_limit=0): allow it"
            if spill == 0
            else f"the disk holds {format_bytes(totals['disk_bytes'])}"
            + (f" of spill_limit {format_bytes(spill)}: raise it" if spill is not None else "")
        )
        return StoreFullError(
            f"no room for {format_bytes(size)}: {format_bytes(totals['committed_bytes'])} of memory_limit "
            f"{format_bytes(totals['memory_limit'])} are committed, {len(pinned)} objects with "
            f"{format_bytes(int(pinned['size'].sum()))} are pinned; members: {members}. "
            f"Drop views or refs, raise memory_limit, or {step}"
        )


_rooms: weakref.WeakSet[Room] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    """The lock may have been held by a thread that a forked child has not."""
    for room in list(_rooms):
        room._lock = RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)
