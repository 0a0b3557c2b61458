"""Pins of one process: its threads share a bit, and a private count that says when it is set and cleared.

What `protocols` has as a member that pins, and unpins, is here two threads of one member; whoever evicts or
deletes is another member. The process is killed as a whole, so no thread dies by itself.
Not here: the bit against the state of the object (`protocols`), operations beside views in the count.
"""

from __future__ import annotations

from typing import Final

from explorer.machine import Scenario
from explorer.program import PINS_MUTEX, Order, Program, Registers
from explorer.protocols import (
    DEAD_STATES,
    FREED,
    NONE,
    RESIDENT,
    STATE,
    VALUE,
    Changes,
    bury_if_dead,
    byte,
    delete,
    evict,
    state_is_not,
)

BIT: Final = 1


def _change_count(p: Program, by: int, leave: int, end: str) -> None:
    """Compare and swap, unless the count is `leave`: that is changed under pins_mutex only."""
    p.load("count", "count", Order.ACQUIRE)
    p.label(f"{end} again")
    p.jump(f"{end} slow", lambda r: r["count"] == leave)
    p.update("count", lambda old, r: old + by if old == r["count"] else None, "seen", Order.ACQ_REL)
    p.jump(end, lambda r: r["seen"] == r["count"])
    p.let("count", lambda r: r["seen"])
    p.jump(f"{end} again")
    p.label(f"{end} slow")


def _pin(p: Program, changes: Changes) -> None:
    """`mp_pin`."""
    _change_count(p, 1, 0, "pinned")
    p.lock(PINS_MUTEX)
    p.load("count", "count", Order.RELAXED)
    if "a pin is stored over another" not in changes:
        p.jump("raised", lambda r: r["count"] != 0)
    if "a pin is counted before its bit is set" in changes:
        p.store("count", 1, Order.RELEASE)
        p.update("pins", lambda old, r: old | BIT)
    else:
        p.update("pins", lambda old, r: old | BIT)  # pin.bit
        p.store("count", 1, Order.RELEASE)
    p.jump("set")
    p.label("raised")
    p.update("count", lambda old, r: old + 1, None, Order.ACQ_REL)
    p.label("set")
    p.unlock(PINS_MUTEX)
    p.label("pinned")


def _unpin(p: Program, changes: Changes) -> None:
    """`mp_unpin`."""
    _change_count(p, -1, 1, "unpinned")
    p.lock(PINS_MUTEX)
    if "a bit is cleared before the count" in changes:
        p.update("pins", lambda old, r: old & ~BIT)
    p.update("count", lambda old, r: old - 1, "count", Order.ACQ_REL)  # unpin.count
    late = "a bit is cleared when pins_mutex is free again" in changes
    if late:
        p.unlock(PINS_MUTEX)
    p.jump("cleared", lambda r: r["count"] != 1)
    p.update("pins", lambda old, r: old & ~BIT)
    p.label("cleared")
    if not late:
        p.unlock(PINS_MUTEX)  # unpin.bit
    p.jump("unpinned", lambda r: r["count"] != 1)
    bury_if_dead(p, "unpinned")
    p.label("unpinned")


def view(number: int, changes: Changes = NONE) -> Program:
    """`mp_view`, a look at the value, and the end of the view, by one thread of several."""
    p = Program(f"view {number}")
    _pin(p, changes)
    p.load("control", "control")
    p.jump("undo", state_is_not(RESIDENT))
    p.load("offset", "offset", Order.RELAXED)
    p.load("byte", byte("offset"), Order.RELAXED)
    p.require(lambda r: r["byte"] == VALUE, "sees bytes that are not the object's")
    p.label("undo")
    _unpin(p, changes)
    return p


def _counted(memory: dict[str, int], registers: list[Registers]) -> str | None:
    if memory["count"] or memory["pins"]:
        return "an object that nobody views is pinned"
    if memory["control"] & STATE in DEAD_STATES:
        return "dead and not pinned, but never freed"
    return "freed twice" if memory["freed"] > 1 else None


def _against(name: str, other: Program, changes: Changes) -> Scenario:
    names = ("count", "pins", "offset", "freed", "event")
    memory = dict.fromkeys(names, 0) | {"control": RESIDENT, "byte0": VALUE, "byte1": FREED}
    return Scenario(name, [view(0, changes), view(1, changes), other], memory, _counted)


def threads_against_evict(changes: Changes = NONE) -> Scenario:
    return _against("two threads against evict", evict(changes), changes)


def threads_against_delete(changes: Changes = NONE) -> Scenario:
    return _against("two threads against delete", delete(changes), changes)
