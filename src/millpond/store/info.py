"""The frozen records in which a store tells about itself: those of `stats()` and `objects()`.

Invariants: plain data, every size in bytes and every time in seconds; a record never changes and
refers to nothing, so it can be kept, pickled and compared after its store is closed.
Not here: how the numbers are gathered (inspection.py), how they are shown (`millpond.observe`), who holds
what (`millpond.refcount`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ObjectState = Literal["draft", "resident", "clean", "spilled", "lost"]


@dataclass(frozen=True, slots=True)
class Stats:
    """One look at a whole store, from any of its members.

    The parts are read one after another, not in one instant: while others work, neighbouring fields
    can differ by what happened in between.
    """

    objects: int
    """Objects that can still be asked for, drafts included; deleted ones are not counted."""
    members: int
    """Processes that are attached and alive."""
    memory_limit: int
    """Most bytes of arena that may be committed."""
    spill_limit: int | None
    """Most bytes on disk; None is as much as the disk has, 0 is never to spill."""

    memory_bytes: int
    """Sealed bytes in memory."""
    pinned_bytes: int
    """Of these, bytes with a live view or an operation under way: they cannot leave memory now."""
    committed_bytes: int
    """Arena memory taken from the system, used or not. Never above the limit, unless it was lowered."""
    warm_bytes: int
    """Of these, free ones: kept for about a second because used pages are much faster than fresh ones. The
    rest is live: values and drafts, each rounded up to its slot or its pages."""
    table_bytes: int
    """Memory of the table, which the limit does not cover."""
    disk_bytes: int
    """Bytes that the segment files occupy."""
    overflow_bytes: int
    """Private copies of reads that found no room in memory."""

    draft_objects: int
    """Not sealed yet."""
    resident_objects: int
    """In memory only."""
    clean_objects: int
    """In memory and on disk."""
    spilled_objects: int
    """On disk only."""
    lost_objects: int
    """Their bytes are gone, their refs are not."""

    spilled_bytes_total: int
    """Bytes written to disk since the store was created."""
    restored_bytes_total: int
    """Bytes read back from disk since then."""
    spilled_objects_total: int
    """Objects written to disk since then."""
    restored_objects_total: int
    """Objects brought back into memory since then."""
    returned_bytes_total: int
    """Arena memory given back to the system."""

    eviction: str
    """The policy of all members that have no function of their own."""
    compression: str
    """Of what is spilled from now on."""

    @property
    def live_bytes(self) -> int:
        """Committed bytes that are in use: values and drafts, each rounded up to its slot or its pages."""
        return self.committed_bytes - self.warm_bytes

    @property
    def over_limit(self) -> bool:
        """Whether more is committed than the limit allows: it was lowered, and the rest is pinned."""
        return self.committed_bytes > self.memory_limit


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object, as `objects()` lists it."""

    id: str
    size: int
    """Bytes of the stored value."""
    state: ObjectState
    age_s: float
    """Since it was created."""
    idle_s: float
    """Since it was last read."""
    holders: int
    """Members with at least one ref."""
    pins: int
    """Members with a live view or an operation under way."""
    name: str | None
    site: str | None
    """`file:line` that created it, where the store was told to record that."""
