"""What takes the mutex more than once: disk copies that move, room that is put by for who waits longest.

Between two holds anybody may come in, and inside one the owner may be killed: `lock` is `mp_lock`, which
finishes what a dead owner had decided and counts its caches anew.
A disk copy lies in segment 0 or 1, at offset 0 or 1 of it; what is no record holds FREED. Room is counted
in units: `spare` may still be committed, `free` is committed and nobody's.
Not here: what decides without the mutex (`protocols`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from explorer.machine import Scenario
from explorer.program import Program, Registers
from explorer.protocols import FREED, NONE, VALUE, Changes

FIRST: Final = 0
"""The number of the thread that stands in the queue."""
OUT: Final = 9
"""No thread."""


# --- disk copies that move ---


def lock(p: Program, changes: Changes = NONE) -> None:
    """`mp_lock`, and `mp_move_finish` behind a dead owner, in which one may die as well."""
    p.lock()
    at = f"sound {len(p.steps)}"
    p.jump(at, lambda r: not r["inherited"])
    p.load("decided", "move_entry")
    p.jump(at, lambda r: not r["decided"])
    if "a repair strikes a move out before it makes it" in changes:
        p.store("move_entry", 0)
    finish_move(p)
    p.label(at)


def finish_move(p: Program) -> None:
    p.load("new_offset", "move_offset")
    p.store("place_offset", lambda r: r["new_offset"])
    p.load("new_segment", "move_segment")
    p.store("place_segment", lambda r: r["new_segment"])
    p.store("move_entry", 0)


def move_place(changes: Changes = NONE) -> Program:
    """`mp_place_move` by the owner of segment 1, in which a copy of the record is whole. It may be killed."""
    p = Program("move", mortal=True)
    lock(p)
    p.load("pins", "pins")
    if "a move ignores pins" not in changes:
        p.jump("end", lambda r: r["pins"] != 0)
    if "a move decides first" in changes:
        p.store("move_entry", 1)
    p.store("move_offset", 1)
    p.store("move_segment", 1)
    if "a move is not decided" not in changes:
        p.store("move_entry", 1)
    finish_move(p)
    p.label("end")
    p.unlock()
    return p


def read_place(changes: Changes = NONE) -> Program:
    """`mp_place_read`, and the read of the file."""
    p = Program("read")
    if "a place is read without a pin" not in changes:
        p.update("pins", lambda old, r: old | 1)
    lock(p)
    p.load("segment", "place_segment")
    p.load("offset", "place_offset")
    p.unlock()
    p.load("byte", lambda r: f"disk{r['segment']}{r['offset']}")
    p.require(lambda r: r["byte"] == VALUE, "what it reads is not the object's record")
    p.update("pins", lambda old, r: old & ~1)
    return p


def punch(changes: Changes = NONE) -> Program:
    """`mp_live_pages` of segment 0, which is closed, then a hole where no record is. It may be killed."""
    p = Program("punch", mortal=True)
    lock(p, changes)
    p.load("segment", "place_segment")
    p.unlock()
    p.jump("end", lambda r: r["segment"] == 0)
    p.store("disk00", FREED)
    p.label("end")
    return p


def disk_copy_that_moves(changes: Changes = NONE) -> Scenario:
    def at_end(memory: dict[str, int], registers: list[Registers]) -> str | None:
        if memory["move_entry"]:
            return None  # the next owner of the mutex finishes it
        where = f"disk{memory['place_segment']}{memory['place_offset']}"
        return None if memory[where] == VALUE else "the place is that of no record"

    memory = dict.fromkeys(["place_segment", "place_offset", "move_entry", "move_offset", "move_segment"], 0)
    memory |= {"pins": 0, "disk00": VALUE, "disk01": FREED, "disk10": FREED, "disk11": VALUE}
    programs = [move_place(changes), read_place(changes), punch(changes)]
    return Scenario("a disk copy that moves", programs, memory, at_end)


# --- room ---


def lock_room(p: Program) -> None:
    """`mp_lock`: behind a dead owner what is free is counted from what is committed and in use."""
    p.lock()
    at = f"sound {len(p.steps)}"
    p.jump(at, lambda r: not r["inherited"])
    for name in ("limit", "committed", "growing", "used_by_first", "used_by_other"):
        p.load(name, name)
    p.store("free", lambda r: r["committed"] - r["used_by_first"] - r["used_by_other"])
    p.store("spare", lambda r: r["limit"] - r["committed"] - r["growing"])
    p.label(at)


def _add(p: Program, location: str, value: int | Callable[[Registers], int]) -> None:
    """Under the mutex."""
    p.load("sum", location)
    p.store(location, lambda r: r["sum"] + (value(r) if callable(value) else value))


def wait_for_room(needed: int, changes: Changes = NONE, mortal: bool = False) -> Program:
    """A put of `needed` units that finds no room: `mp_queue_enter`, then commits what is spare, takes what is
    there, or sleeps until something is freed."""
    p = Program("first", mortal)
    lock_room(p)
    p.store("needed", needed)
    p.store("first", FIRST)
    p.unlock()
    p.label("again")
    p.load("event", "event")
    lock_room(p)  # mp_queue_renew
    p.store("wanted", 1)
    p.unlock()
    _grow(p, needed, changes)
    _take(p, needed)
    if "the event is read behind the look" in changes:
        p.load("event", "event")
    p.sleep("event", "event", "first", lambda first: first == FIRST)
    p.jump("again")
    p.label("served")
    return p


def _grow(p: Program, needed: int, changes: Changes) -> None:
    """`mp_grow`: a unit is nobody's while it is committed, between two holds."""
    lock_room(p)
    p.load("spare", "spare")
    p.load("free", "free")
    p.let("grows", lambda r: int(r["spare"] > 0 and r["free"] < needed))
    p.jump("planned", lambda r: not r["grows"])
    _add(p, "spare", -1)
    p.store("growing", 1)
    p.load("reserved", "reserved")
    p.let("borrowed", lambda r: min(r["reserved"], 1))
    if "what is committed is not borrowed" in changes:
        p.let("borrowed", 0)
    p.store("reserved", lambda r: r["reserved"] - r["borrowed"])
    p.label("planned")
    p.unlock()
    p.jump("grown", lambda r: not r["grows"])
    lock_room(p)
    p.store("growing", 0)
    _add(p, "committed", 1)
    _add(p, "free", 1)
    if "what was borrowed is not returned" not in changes:
        p.load("reserved", "reserved")
        p.store("reserved", lambda r: min(needed, r["reserved"] + r["borrowed"]))
    p.unlock()
    p.label("grown")


def _take(p: Program, needed: int) -> None:
    """`mp_draft` of whoever is first: it is bound by nobody. `mp_queue_taken`, `mp_queue_leave`."""
    lock_room(p)
    p.load("free", "free")
    p.jump("no room", lambda r: r["free"] < needed)
    p.store("used_by_first", needed)
    p.store("free", lambda r: r["free"] - needed)
    p.store("reserved", 0)
    p.store("first", OUT)
    p.update("event", lambda old, r: old + 1)
    p.unlock()
    p.jump("served")
    p.label("no room")
    p.unlock()
    p.jump("again", lambda r: r["grows"])


def free_units(count: int, changes: Changes = NONE) -> Program:
    """`mp_queue_freed`: room that comes free is put by for the first, up to what it needs; one by one."""
    p = Program("free")
    for number in range(count):
        lock_room(p)
        _add(p, "free", 1)
        _add(p, "used_by_other", -1)
        p.load("first", "first")
        p.jump(f"asked {number}", lambda r: r["first"] != FIRST)
        if "nothing is put by" not in changes:
            p.load("needed", "needed")
            p.load("reserved", "reserved")
            p.store("reserved", lambda r: min(r["needed"], r["reserved"] + 1))
        p.label(f"asked {number}")
        p.load("wanted", "wanted")
        p.jump(f"freed {number}", lambda r: not r["wanted"])
        p.store("wanted", 0)
        if "freeing wakes nobody" not in changes:
            p.update("event", lambda old, r: old + 1)
        p.label(f"freed {number}")
        p.unlock()
    return p


def put_beside(changes: Changes = NONE, wait: bool = False) -> Program:
    """`mp_draft` of one unit by somebody else: `mp_queue_lacks` says whether that is left of what is put by.
    With `wait` it comes again."""
    p = Program("other")
    p.label("again")
    p.load("event", "event")
    lock_room(p)
    for name in ("first", "free", "spare", "growing", "reserved"):
        p.load(name, name)
    p.let("there", lambda r: r["free"] + r["spare"])
    p.let("bound", lambda r: int(r["first"] == FIRST and r["reserved"] > 0))
    if "a put ignores what is put by" in changes:
        p.let("bound", 0)
    p.let("refused", lambda r: int(r["bound"] and r["reserved"] + 1 > r["there"]))
    p.require(
        lambda r: not (r["refused"] and r["there"] + r["growing"] > 2),
        "is refused though there is room for both",
    )
    p.jump("no room", lambda r: r["refused"] or r["free"] < 1)
    p.store("free", lambda r: r["free"] - 1)
    _add(p, "used_by_other", 1)
    p.unlock()
    p.jump("served")
    p.label("no room")
    p.unlock()
    if wait:  # for the first; when that is served, or dead, it is served as well or there is nothing left
        p.jump("served", lambda r: r["first"] == OUT)
        p.sleep("event", "event", "first", lambda first: first == FIRST)
        p.jump("again")
    p.label("served")
    return p


def reap_first(changes: Changes = NONE) -> Program:
    """`mp_reap`: the ticket of the dead is void, what it was committing is spare again."""
    p = Program("reap")
    p.await_death(FIRST)
    lock_room(p)
    if "the dead stay in the queue" not in changes:
        p.store("first", OUT)
        p.store("reserved", 0)
    p.load("growing", "growing")
    p.store("growing", 0)
    _add(p, "spare", lambda r: r["growing"])
    p.load("used_by_first", "used_by_first")
    p.store("used_by_first", 0)
    _add(p, "free", lambda r: r["used_by_first"])
    p.update("event", lambda old, r: old + 1)
    p.unlock()
    return p


def _room(limit: int, committed: int, used: int, **more: int) -> dict[str, int]:
    names = ("growing", "used_by_first", "needed", "reserved", "wanted", "event")
    memory = dict.fromkeys(names, 0) | {"limit": limit, "committed": committed, "used_by_other": used}
    return memory | {"free": committed - used, "spare": limit - committed, "first": OUT} | more


def _books(memory: dict[str, int], registers: list[Registers]) -> str | None:
    if memory["mutex"]:
        return None  # of the dead: the next owner counts anew
    if memory["free"] != memory["committed"] - memory["used_by_first"] - memory["used_by_other"]:
        return "what is free is counted wrongly"
    if memory["spare"] + memory["committed"] + memory["growing"] != memory["limit"]:
        return "room is lost"
    return "more is put by than is needed" if memory["reserved"] > memory["needed"] else None


def large_put_beside_small_ones(changes: Changes = NONE) -> Scenario:
    """Two units come free, one by one; a put that needs both is not starved by one that needs one."""
    programs = [wait_for_room(2, changes), free_units(2, changes), put_beside(changes)]
    memory = _room(2, 2, 2, first=FIRST, needed=2)
    return Scenario("a large put beside a small one", programs, memory, _books)


def growth_beside_a_put(changes: Changes = NONE) -> Scenario:
    """Three units, one of them free and two still to be committed: enough for the first, which needs two, and
    for another."""
    programs = [wait_for_room(2, changes), put_beside(changes)]
    memory = _room(3, 1, 0, first=FIRST, needed=2, reserved=2)
    return Scenario("growth beside a put", programs, memory, _books)


def growth_of_all_that_is_left(changes: Changes = NONE) -> Scenario:
    """The same with two units, which are put by for the first: the other gets none, before the growth, in the
    middle of it or behind it."""
    programs = [wait_for_room(2, changes), put_beside(changes)]
    memory = _room(2, 1, 0, first=FIRST, needed=2, reserved=2)
    return Scenario("growth of all that is left", programs, memory, _books)


def first_that_is_killed(changes: Changes = NONE) -> Scenario:
    """Whoever waits longest dies anywhere; the other, which was refused for its sake, is served."""
    programs = [wait_for_room(2, changes, mortal=True), put_beside(changes, wait=True), reap_first(changes)]
    memory = _room(2, 1, 0, first=FIRST, needed=2, reserved=2)
    return Scenario("a first that is killed", programs, memory, _books)
