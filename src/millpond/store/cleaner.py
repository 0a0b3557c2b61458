"""Cleaning in the background: cold objects get disk copies before memory is full; evicting them is free then.

Only above four fifths of the limit, only what nobody has used for two looks (a look is a second), only while
memory fills so fast that the limit is ten seconds away at most, and not more than two seconds' inflow at a
time: what is made and dropped at a steady level is never written, and neither is what dies young.
Invariants: nothing is evicted here; errors are left to whoever needs the room.
Not here: who goes first (`millpond.eviction`), making room (`room`).
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from millpond.errors import SpillError
from millpond.eviction.named import Policy
from millpond.eviction.ranking import Ranking
from millpond.hot import Batch, Core

if TYPE_CHECKING:
    from millpond.spill.writer import SpillWriter

WATERMARK = 0.8
HORIZON_S = 10.0
AHEAD_S = 2.0
LOOKS = 2


class Cleaner:
    """Looks at one store once a second, in the background thread of its first member."""

    def __init__(self, core: Core, writer: SpillWriter) -> None:
        self._core = core
        self._writer = writer
        self._before: tuple[float, int] | None = None
        self._newest: deque[int] = deque(maxlen=LOOKS)

    def look(self, policy: Policy, now: float) -> int:
        """Cleans what `policy` gives first, if it is time to; the objects cleaned. now: in seconds."""
        totals = self._core._totals()
        limit, used = totals["memory_limit"], totals["committed_bytes"] - totals["free_bytes"]
        before, self._before = self._before, (now, used)
        if used < WATERMARK * limit or before is None or now <= before[0]:
            self._newest.clear()
            return 0
        rows = self._core._candidates()
        old = self._newest[0] if len(self._newest) == LOOKS else 0
        self._newest.append(int(rows["stamp"].max(initial=0)))
        rate = (used - before[1]) / (now - before[0])
        if rate <= 0 or limit - used > rate * HORIZON_S:
            return 0
        rows = rows[(rows["clean"] == 0) & (rows["stamp"] <= old)]
        if not len(rows):
            return 0
        wanted = min(int(rate * AHEAD_S), limit // 8)
        batch = Batch(self._core, Ranking(rows, policy, wanted).take(wanted), 1 << 62)
        with suppress(SpillError):
            return self._writer.clean(batch, evict=False, behind=True).objects
        return 0
