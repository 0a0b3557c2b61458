"""Who keeps one object alive, and who has it in use: what `refs()` tells.

Invariants: reads only, and one thing after another: members come and go meanwhile. A record is plain data and
refers to nothing, so it can be kept and pickled.
Not here: the bits and tokens that are read (the kernel), figures of a whole store (`millpond.store`).
"""

from __future__ import annotations

from dataclasses import dataclass

from millpond.hot import Core, ObjectRef
from millpond.refcount.handoff import boottime_ns

__all__ = ["Holders", "Holding", "InTransit", "holders", "object_id"]


@dataclass(frozen=True, slots=True)
class Holding:
    """A member that holds or pins an object."""

    pid: int
    command: str


@dataclass(frozen=True, slots=True)
class InTransit:
    """A hand-off: a pickled ref that was not loaded yet."""

    pid: int
    """The process that pickled it."""
    age_s: float
    lapses_in_s: float | None
    """None: never."""
    deliveries: int
    """Loads that are left."""


@dataclass(frozen=True, slots=True)
class Holders:
    """Who keeps one object alive (members, containers, hand-offs, name), and who has it in use (pins)."""

    members: tuple[Holding, ...]
    """Processes with at least one ref."""
    pins: tuple[Holding, ...]
    """Processes with a live view or an operation under way."""
    containers: tuple[str, ...]
    """Ids of the objects whose values contain a ref to it, at most 1000."""
    handoffs: tuple[InTransit, ...]
    name: str | None


def holders(store: Core, ref: ObjectRef) -> Holders:
    """See `Store.refs`."""
    members = {slot: Holding(pid, command) for slot, pid, command in store._members()}
    holding, pinning = store._member_bits(ref)
    now = boottime_ns()
    return Holders(
        members=tuple(members[slot] for slot in holding if slot in members),
        pins=tuple(members[slot] for slot in pinning if slot in members),
        containers=tuple(object_id(store, *key) for key in store._containers(ref)),
        handoffs=tuple(
            InTransit(pid, (now - issued) / 1e9, (expiry - now) / 1e9 if expiry else None, deliveries)
            for pid, issued, expiry, deliveries in store._tokens(ref)
        ),
        name=store._name_text(store._name_of(ref)),
    )


def object_id(store: Core, entry: int, birth: int) -> str:
    """The same text as `ObjectRef.id`, for an object that there is no ref to."""
    return f"{store.uuid.hex()}-{entry:x}-{birth:x}"
