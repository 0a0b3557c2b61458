"""What a policy has to remember between two rankings: SIEVE's hand, GDSF's floor.

Each member has its own: a hand that only it moves, a floor that it learns from what it finds and evicts. What
others took is gone, so the floor that is found next is theirs too, and the hand meets what they left.
A hand that all share was measured and is worse: each member's ranking is made in advance, for an eighth of
memory, so that many members move a common hand far ahead of what is really evicted (docs/spilling.md).
Invariants: bounded; a loss (of a process, of a thread's update) costs the quality of one ranking and nothing
else. One history belongs to one thread at a time.
Not here: the order itself (policies.py).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from millpond.eviction.policies import newest, worth

KEEP: Final = 128
"""How many steps are remembered. A ranking covers an eighth of memory: this is sixteen turnovers."""

_TICKS_END: Final = 2**64


class Hand:
    """Where SIEVE's hand stands, and when it last went over each place.

    The original clears a mark when it passes an object. Here nothing is written: an object counts as visited
    if it was read after the hand's last pass over it.
    """

    def __init__(self) -> None:
        self.at = 0
        # The hand went over the places in (ends[i - 1], ends[i]] at the time when[i]; over later ones, never.
        self._ends = np.zeros(0, np.uint64)
        self._when = np.zeros(0, np.uint64)

    def visited(self, candidates: NDArray[Any]) -> NDArray[np.bool_]:
        """Which candidates were read since the hand came by, or since they arrived."""
        step = np.searchsorted(self._ends, candidates["arrived"])
        passed = np.append(self._when, np.uint64(0))[step]
        read: NDArray[np.bool_] = (candidates["hits"] > 0) & (candidates["stamp"] > passed)
        return read

    def took(self, candidates: NDArray[Any], order: NDArray[np.intp], count: int) -> None:
        """The first `count` of `order` go: moves the hand to the last of them, but past none that it would
        have taken and that stays (a dirty one that a clean one was preferred to)."""
        if count == 0:
            return
        ahead = candidates["arrived"] - np.uint64(self.at) - np.uint64(1)
        spared = self.visited(candidates)
        gone, stays = order[:count], order[count:]
        again = bool(spared[gone[-1]])  # everything else is gone: it is on its way over those it spared
        reached = int(ahead[gone[spared[gone] == again]].max())
        left = ahead[stays[spared[stays] == again]]
        reached = min(reached, int(left.min()) - 1) if len(left) else reached
        time = newest(candidates)
        if again:
            self._ends, self._when = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
            self._passed(int(candidates["arrived"].max()), time)
        if reached >= 0:
            self._move(reached + 1, time)

    def _move(self, ticks: int, time: int) -> None:
        start, end = self.at, self.at + ticks
        if end >= _TICKS_END:  # over the newest, and on from the oldest
            self._passed(_TICKS_END - 1, time, start)
            start, end = 0, end - _TICKS_END
        self._passed(end, time, start)
        self.at = end

    def _passed(self, end: int, time: int, start: int = 0) -> None:
        before, after = np.searchsorted(self._ends, np.array([start, end], np.uint64), side="right")
        ends, when = [end], [time]
        if start > 0 and (before == 0 or self._ends[before - 1] != start):  # cuts a place in two
            ends.insert(0, start)
            when.insert(0, int(self._when[before]) if before < len(self._when) else 0)
        self._ends = np.concatenate([self._ends[:before], np.array(ends, np.uint64), self._ends[after:]])
        self._when = np.concatenate([self._when[:before], np.array(when, np.uint64), self._when[after:]])
        if len(self._ends) > KEEP:
            # Places merge with their neighbours in pairs, and look as if passed when the upper one was.
            odd = np.arange(len(self._ends)) % 2 == 1
            odd[-1] = True
            self._ends, self._when = self._ends[odd], self._when[odd]


class Floor:
    """GDSF's inflation L: the worth of the last object that went, as it rose in time.

    The original adds L to an object's worth when the object is read. A read here only stores the time, and
    the L of that time is looked up later, interpolated between the rankings.
    """

    def __init__(self) -> None:
        self.value = 0.0
        self._times: list[float] = []
        self._values: list[float] = []

    def now(self, candidates: NDArray[Any]) -> float:
        """The floor as it is: what this member took last, or, where others evict too, the least worth of what
        they have left of the objects that were there then."""
        if not self._times:
            return self.value
        old = candidates[candidates["stamp"] <= self._times[-1]]
        if not len(old):
            return self.value
        return max(self.value, float(worth(old, self._interpolate(old, self._times, self._values)).min()))

    def at_access(self, candidates: NDArray[Any], now: float) -> NDArray[np.float64]:
        """The floor at the time of each candidate's last access; `now`: as it is."""
        times, values = [*self._times, float(newest(candidates))], [*self._values, now]
        return self._interpolate(candidates, times, values)

    @staticmethod
    def _interpolate(
        candidates: NDArray[Any], times: list[float], values: list[float]
    ) -> NDArray[np.float64]:
        return np.interp(candidates["stamp"].astype(np.float64), times, values)

    def took(self, candidates: NDArray[Any], order: NDArray[np.intp], count: int) -> None:
        """The first `count` of `order` go: the floor rises to the worth of the most precious of them."""
        if count == 0:
            return
        time, floor = float(newest(candidates)), self.now(candidates)
        value = worth(candidates, self.at_access(candidates, floor))[order[:count]].max()
        if not self._times or time > self._times[-1]:
            self._times, self._values = [*self._times, time][-KEEP:], [*self._values, floor][-KEEP:]
        self.value = max(floor, float(value))
