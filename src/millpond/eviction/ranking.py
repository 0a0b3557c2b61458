"""One ranking, many batches: ranking is O(n), so it is done once for a good part of memory.

Invariants: a candidate is handed out at most once; batches follow the policy's order.
A ranking ages while it is used: whoever takes a batch checks each object again (its birth, its pins,
whether it was read since `stamp`) before it goes.
Not here: the order (policies.py), the checking (hot, the kernel). One ranking belongs to one thread.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from millpond.eviction.named import Policy

__all__ = ["Ranking"]


class Ranking:
    """Candidates in the order in which they should go, and how far they have been handed out."""

    def __init__(
        self, candidates: NDArray[Any], policy: Policy, cover_bytes: int | None = None, evict: bool = False
    ) -> None:
        """Ranks `candidates` (an array of CANDIDATE), and keeps the first that together have
        `cover_bytes`; None: all. evict: they are to go, which the policy is told.
        Raises what the policy raises."""
        order = policy(candidates)
        ends = np.cumsum(candidates["size"][order], dtype=np.uint64)
        if cover_bytes is not None:
            kept = _count(ends, cover_bytes)
            if evict:
                policy.took(candidates, order, kept)
            order, ends = order[:kept], ends[:kept].copy()
        elif evict:
            policy.took(candidates, order, len(order))
        self._victims = candidates[order]
        self._ends = ends
        self._at = 0

    def take(self, nbytes: int) -> NDArray[Any]:
        """The next candidates, as few as together have `nbytes`; all that are left if they have less."""
        start = self._at
        before = int(self._ends[start - 1]) if start else 0
        self._at = max(start, _count(self._ends, before + nbytes))
        return self._victims[start : self._at]

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left to take."""
        return self._at == len(self._victims)


def _count(ends: NDArray[np.uint64], nbytes: int) -> int:
    """How many of the first candidates it takes to have `nbytes`; `ends` are running totals."""
    if nbytes <= 0:
        return 0
    return min(len(ends), int(np.searchsorted(ends, np.uint64(nbytes))) + 1)
