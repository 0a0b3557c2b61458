"""Spill files: what one hold of the mutex does to the records of segments, by the functions of the kernel.

A segment's record is known by its index, from 1 on, its file by its id, which is never used again. There
is one object, of one live byte; `place` is the index of the segment that has it on disk, 0 for none. A
register names the index that a piece is about. The labels behind steps are the kernel's failpoints, which
come next; what is no atomic there is relaxed here.
Invariants: `lock` is `mp_lock` with the rebuild behind a dead owner; all else happens with the mutex held.
Not here: who does what, and what must never come of it (`segments`, `rewrites`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from explorer.program import Order, Program, Registers
from explorer.protocols import ABANDONED, DEAD_STATES, DELETED, Changes
from explorer.protocols import FREE as NO_OBJECT

FREE, OPEN, CLOSED, DEAD = range(4)
GONE, THERE, WHOLE = range(3)
"""Of a file: not there, there, there with the record of the object."""
ONE: Final = (1,)


def guarded(memory: dict[str, int]) -> list[str]:
    """The locations that are touched with the mutex held only."""
    names = ("place", "live", "id", "listed", "next_id", "move_entry", "move_segment", "reaped")
    return [location for location in memory if location.rstrip("123") in names]


def of(name: str, register: str) -> Callable[[Registers], str]:
    """A field of the record with the index in a register; a file, with the id."""
    return lambda r: f"{name}{r[register]}"


def lock(p: Program, changes: Changes, records: tuple[int, ...] = ONE) -> None:
    """`mp_lock`; `mp_rebuild` behind a dead owner: records and places are true, all else is a cache."""
    p.lock()
    at = f"sound {len(p.steps)}"
    p.jump(at, lambda r: not r["inherited"])
    if len(records) > 1 and "no move is finished for the dead" not in changes:
        p.load("moving", "move_entry")
        p.jump(f"{at} moved", lambda r: not r["moving"])
        finish_move(p)
        p.label(f"{at} moved")
    p.store("listed", 0, Order.RELAXED)
    p.load("place", "place")
    p.let("dead", 0)
    for index in records:
        _count_anew(p, changes, index, f"{at} {index}")
    if "a repair counts onto what is there" in changes:
        p.load("counted", "dead")
        p.let("dead", lambda r: r["dead"] + r["counted"])
    p.store("dead", lambda r: r["dead"])
    if "what a dead owner had killed is not buried" not in changes:
        bury(p, changes)
    p.label(at)


def _count_anew(p: Program, changes: Changes, index: int, at: str) -> None:
    state, live, bit = f"state{index}", f"live{index}", 1 << index
    if "live bytes of the dead are not counted anew" not in changes:
        p.store(live, lambda r: int(r["place"] == index), Order.RELAXED)
    p.load("state", state)
    p.update("listed", lambda old, r: old | bit if r["state"] == FREE else None, None, Order.RELAXED)
    p.load("live", live, Order.RELAXED)
    p.jump(at, lambda r: r["state"] != CLOSED or r["live"] != 0)
    p.store(state, DEAD)
    p.let("state", DEAD)
    p.label(at)
    p.let("dead", lambda r: r["dead"] + int(r["state"] == DEAD))


def die_if_empty(p: Program, at: str) -> None:
    end = f"lives {len(p.steps)}"
    p.load("live", of("live", at), Order.RELAXED)
    p.load("state", of("state", at))
    p.jump(end, lambda r: r["live"] != 0 or r["state"] != CLOSED)
    p.store(of("state", at), DEAD)
    p.update("dead", lambda old, r: old + 1)
    p.label(end)


def vacate(p: Program, changes: Changes, at: str) -> None:
    """`mp_segment_vacate`."""
    p.load("live", of("live", at), Order.RELAXED)
    p.store(of("live", at), lambda r: max(0, r["live"] - 1), Order.RELAXED)
    if "the last place leaves its segment CLOSED" not in changes:
        die_if_empty(p, at)


def count(p: Program, at: str) -> None:
    """One more live byte."""
    p.load("live", of("live", at), Order.RELAXED)
    p.store(of("live", at), lambda r: r["live"] + 1, Order.RELAXED)


def finish_move(p: Program) -> None:
    """`mp_move_finish`, of a move that is decided."""
    p.load("new place", "move_segment")
    p.store("place", lambda r: r["new place"])  # place.move.segment
    p.store("move_entry", 0)


def kill(p: Program) -> None:
    """`kill_entry`: an exchange, since a restore may end in between."""
    p.update("control", lambda old, r: None if old in (NO_OBJECT, *DEAD_STATES) else DELETED)


def bury(p: Program, changes: Changes) -> None:
    """`mp_bury`, as far as `mp_place_free`."""
    end = f"buried {len(p.steps)}"
    p.load("control", "control")
    p.jump(end, lambda r: r["control"] not in (DELETED, ABANDONED))
    if "a place goes in spite of pins" not in changes:
        p.load("pins", "pins")
        p.jump(end, lambda r: r["pins"] != 0)
    p.load("place", "place")
    p.jump(end, lambda r: r["place"] == 0)
    p.store("place", 0)  # place.freed
    vacate(p, changes, "place")
    p.label(end)


def take(p: Program, changes: Changes, end: str, owner: int = 0) -> None:
    """`mp_segment_open` to the end of its hold: a record that is free, its index in `segment`, its id in
    `id`. To `end` if there is none: the kernel has more of them."""
    p.load("listed", "listed", Order.RELAXED)
    p.jump("listed", lambda r: r["listed"] != 0)
    p.unlock()
    p.jump(end)
    p.label("listed")
    p.let("segment", lambda r: (r["listed"] & -r["listed"]).bit_length() - 1)
    p.store("listed", lambda r: r["listed"] & (r["listed"] - 1), Order.RELAXED)
    p.load("id", "next_id", Order.RELAXED)
    if "an id is used again" in changes:
        p.let("id", 1)
    p.store("next_id", lambda r: r["id"] + 1, Order.RELAXED)
    p.store(of("id", "segment"), lambda r: r["id"], Order.RELAXED)
    p.store(of("live", "segment"), 0, Order.RELAXED)
    if owner:
        p.store(of("owner", "segment"), owner, Order.RELAXED)  # segment.filled
    p.store(of("state", "segment"), OPEN)
    p.unlock()  # segment.open


def retire(p: Program, changes: Changes, at: str) -> None:
    """`mp_segment_retire`, of a segment that is OPEN."""
    p.store(of("state", at), CLOSED)  # segment.closed
    if "a close leaves an empty segment CLOSED" not in changes:
        die_if_empty(p, at)


def sweep(p: Program, changes: Changes, records: tuple[int, ...] = ONE) -> None:
    """`sweep_dead`, which takes the mutex itself: `mp_segment_dead`, the unlink, `mp_segment_forget`."""
    p.load("dead", "dead")
    p.jump("none is dead", lambda r: r["dead"] == 0)
    for index in records:
        next_one = f"swept {len(p.steps)}"
        p.let("segment", index)
        p.load("state", of("state", "segment"))
        p.jump(next_one, lambda r: r["state"] != DEAD)
        lock(p, changes, records)  # segment.seen, mp_segment_read
        p.load("state", of("state", "segment"))
        p.load("id", of("id", "segment"), Order.RELAXED)
        p.unlock()
        if "a segment that was dead a moment ago is swept" in changes:
            p.jump(next_one, lambda r: r["state"] == FREE)
        else:
            p.jump(next_one, lambda r: r["state"] != DEAD)
        if "a sweep forgets before it unlinks" in changes:
            _forget(p, changes, records)
        p.update(of("file", "id"), lambda old, r: GONE)
        if "a sweep forgets before it unlinks" not in changes:
            _forget(p, changes, records)
        p.label(next_one)
    p.label("none is dead")


def _forget(p: Program, changes: Changes, records: tuple[int, ...]) -> None:
    lock(p, changes, records)
    end = f"other {len(p.steps)}"
    p.load("state", of("state", "segment"))
    p.load("now", of("id", "segment"), Order.RELAXED)
    if "a sweep forgets whatever is DEAD" in changes:
        p.let("now", lambda r: r["id"])
    p.jump(end, lambda r: r["now"] != r["id"] or r["state"] != DEAD)
    p.store(of("state", "segment"), FREE)  # segment.forgotten
    p.update("dead", lambda old, r: old - 1)
    p.load("listed", "listed", Order.RELAXED)
    p.store("listed", lambda r: r["listed"] | 1 << r["segment"], Order.RELAXED)
    p.label(end)
    p.unlock()
