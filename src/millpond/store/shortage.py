"""Why there is no room, with numbers, who keeps it, and the next step: the text of a StoreFullError.

Invariant: reads only: it is asked once there is nothing left to try.
Not here: making room (room.py).
"""

from __future__ import annotations

from typing import Any

from millpond.errors import SpillError, StoreFullError
from millpond.eviction.limits import headroom
from millpond.hot import BLOCK, Core
from millpond.units import format_bytes

__all__ = ["free_bytes", "store_full", "to_commit"]

COMMIT_STEP = 2 << 20
SHOWN_MAX = 8
"""Members that are named."""


def store_full(core: Core, size: int, refused: str, refusal: SpillError | None) -> StoreFullError:
    """The error for a value of `size` bytes. refused: what the system said when memory was to be committed
    last, "" if it gave it; refusal: what the disk said."""
    totals = core._totals()
    committed, limit = format_bytes(totals["committed_bytes"]), format_bytes(totals["memory_limit"])
    return StoreFullError(
        f"no room for {format_bytes(size)}: {committed} of memory_limit {limit} are committed, "
        f"{format_bytes(free_bytes(totals))} of them free"
        + (", for which others wait longer" if core._lacking(size) else "")
        + _not_committed(size, totals, refused)
        + f"; {_kept(core, totals['spill_limit'] != 0)}. "
        f"Drop views or refs, raise memory_limit, or {_disk_step(totals)}"
        + (f". The disk said: {refusal}" if refusal else "")
    )


def to_commit(size: int) -> int:
    """Bytes that must be to spare before memory for a value of `size` bytes is committed."""
    return max(size + BLOCK, COMMIT_STEP)


def free_bytes(totals: dict[str, Any]) -> int:
    """Committed and free, wherever it lies."""
    return int(totals["free_bytes"] + totals["free_slot_bytes"])


def _not_committed(size: int, totals: dict[str, Any], refused: str) -> str:
    """Why there is not more memory, where that is not for the limit."""
    if refused:  # what it does not take back either counts as committed
        return f", and the system refuses to commit more ({refused}: a sandbox? ulimit -f?)"
    below = totals["committed_bytes"] + size + BLOCK <= totals["memory_limit"]
    if below and (spare := headroom()) < to_commit(size):
        return f", and this machine, or a memory cgroup, has {format_bytes(max(0, spare))} to spare"
    return ""


def _kept(core: Core, pinned: bool) -> str:
    """Which members keep how much from leaving memory, the most first: by pins, or, where nothing is
    spilled, by refs."""
    members = sorted(core._kept_bytes(pinned), key=lambda member: -member[2])
    if not members:
        return "nothing is pinned" if pinned else "nothing is held"
    shown = ", ".join(
        f"{format_bytes(nbytes)} by {command} ({pid})" for pid, command, nbytes in members[:SHOWN_MAX]
    )
    more = f", more by {len(members) - SHOWN_MAX} others" if len(members) > SHOWN_MAX else ""
    return f"{'pinned' if pinned else 'held'} are {shown}{more}"


def _disk_step(totals: dict[str, Any]) -> str:
    limit = totals["spill_limit"]
    if limit == 0:
        return "let it spill: spilling is off (spill_limit=0)"
    held = format_bytes(totals["disk_bytes"])
    if limit is None:
        return f"make room on the disk, where the store has {held}"
    return f"raise spill_limit: {held} of {format_bytes(limit)} are on the disk"
