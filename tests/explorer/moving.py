"""Moving: a plan made without the mutex goes on from one hold of it to the next, while what it names goes.

There are four pages, of a span each: on the first lies the run of entry 1, on the last, a sparse block's,
that of entry 2, which is to move behind the run of entry 1. Beside it an entry is deleted, perhaps by one
that dies in the middle, and is another object's, or loses its memory and gets other. `at` is the span
that has a page now; a rebuild numbers spans anew from 1 on, and leaves those of before as they were. A
byte is the birth of the object whose value it is.
Not here: readers (`protocols`), how blocks are chosen, slabs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from explorer.machine import Scenario
from explorer.program import Order, Program, Registers
from explorer.protocols import DELETED, EVICTING, FREE, NONE, RESIDENT, SPILLED, STATE, Changes

PAGES: Final = (0, 1, 2, 3)
ENTRIES: Final = (1, 2, 3)
NEST: Final = 1
"""The entry behind whose run there is room."""
MOVED: Final = 2
THIRD: Final = 3
"""An entry that is free at the start."""
SPARSE: Final = 3
"""The page of the block that is to become free."""
NO_SPAN, EXTENT, UNUSED = range(3)
NEXT_BIRTH: Final = 4
WHOLE: Final = (RESIDENT, EVICTING, DELETED)
"""States that own an extent, if there is one."""


def _word(birth: int, state: int) -> int:
    return birth * (STATE + 1) + state


def _birth(word: int) -> int:
    return word // (STATE + 1)


def _of(name: str, register: str) -> Callable[[Registers], str]:
    return lambda r: f"{name}{r[register]}"


# --- what a hold of the mutex does ---


def _release(p: Program, entry: int) -> None:
    """`mp_arena_free` of its run."""
    p.load("page", f"offset{entry}", Order.RELAXED)
    p.load("span", f"span{entry}", Order.RELAXED)
    p.load("at", _of("at", "page"), Order.RELAXED)
    p.require(lambda r: r["at"] == r["span"], "frees what is no run")
    p.store(_of("use", "span"), UNUSED, Order.RELAXED)
    p.store(_of("byte", "page"), 0, Order.RELAXED)


def _take(p: Program, entry: int, page: int, otherwise: str) -> None:
    """`mp_arena_alloc`, at that page if it is free."""
    p.let("page", page)
    p.load("span", f"at{page}", Order.RELAXED)
    p.load("use", _of("use", "span"), Order.RELAXED)
    p.jump(otherwise, lambda r: r["use"] != UNUSED)
    p.store(_of("use", "span"), EXTENT, Order.RELAXED)
    p.store(f"offset{entry}", page, Order.RELAXED)
    p.store(f"span{entry}", lambda r: r["span"], Order.RELAXED)
    p.store(f"extent{entry}", 1, Order.RELAXED)


def _bury(p: Program, entry: int) -> None:
    """`mp_bury`, of what nobody pins."""
    end, bare = f"buried {len(p.steps)}", f"bare {len(p.steps)}"
    p.load("control", f"control{entry}")
    p.jump(end, lambda r: r["control"] & STATE != DELETED)
    p.load("extent", f"extent{entry}", Order.RELAXED)
    p.jump(bare, lambda r: r["extent"] == 0)
    p.store(f"extent{entry}", 0, Order.RELAXED)  # bury.extent
    _release(p, entry)
    p.label(bare)
    p.store(f"control{entry}", lambda r: _word(_birth(r["control"]), FREE))
    p.label(end)


def lock(p: Program, changes: Changes) -> None:
    """`mp_lock`, and `mp_rebuild` behind a dead owner."""
    p.lock()
    sound = f"sound {len(p.steps)}"
    p.jump(sound, lambda r: not r["inherited"])
    for page in PAGES:
        p.store(f"at{page}", NO_SPAN, Order.RELAXED)
    p.let("spans", 0)
    for entry in ENTRIES:
        _adopt(p, entry, changes)
    for page in PAGES:
        _fill(p, page)
    for entry in ENTRIES:
        _bury(p, entry)
    p.label(sound)


def _adopt(p: Program, entry: int, changes: Changes) -> None:
    """`settle_entry`, `adopt_run`."""
    end, settled = f"adopted {len(p.steps)}", f"settled {len(p.steps)}"
    p.load("control", f"control{entry}")
    p.jump(settled, lambda r: r["control"] & STATE != EVICTING)
    if "a rebuild leaves what was being moved EVICTING" not in changes:
        p.store(f"control{entry}", lambda r: _word(_birth(r["control"]), RESIDENT))
    p.label(settled)
    p.load("extent", f"extent{entry}", Order.RELAXED)
    p.jump(end, lambda r: r["control"] & STATE not in WHOLE or not r["extent"])
    p.let("spans", lambda r: r["spans"] + 1)
    p.load("page", f"offset{entry}", Order.RELAXED)
    p.store(_of("use", "spans"), EXTENT, Order.RELAXED)
    p.store(_of("page", "spans"), lambda r: r["page"], Order.RELAXED)
    p.store(_of("at", "page"), lambda r: r["spans"], Order.RELAXED)
    p.store(f"span{entry}", lambda r: r["spans"], Order.RELAXED)
    p.label(end)


def _fill(p: Program, page: int) -> None:
    """The span of a page that is no run's; and, as it comes behind it, the link from the span before."""
    used = f"used {len(p.steps)}"
    p.load("span", f"at{page}", Order.RELAXED)
    p.jump(used, lambda r: r["span"] != NO_SPAN)
    p.let("spans", lambda r: r["spans"] + 1)
    p.let("span", lambda r: r["spans"])
    p.store(_of("use", "span"), UNUSED, Order.RELAXED)
    p.store(_of("page", "span"), page, Order.RELAXED)
    p.store(f"at{page}", lambda r: r["span"], Order.RELAXED)
    p.label(used)
    if page:
        p.store(_of("next", "before"), lambda r: r["span"], Order.RELAXED)
    p.let("before", lambda r: r["span"])


# --- operations ---


def move(changes: Changes = NONE, mortal: bool = False) -> Program:
    """`mp_empty_blocks`: `plan_moves`, then `move_out` of what the plan found in the sparse block."""
    p = Program("move", mortal)
    p.load("nest", f"control{NEST}", Order.RELAXED)
    p.load("planned", f"control{MOVED}", Order.RELAXED)
    p.load("planned page", f"offset{MOVED}", Order.RELAXED)  # move.planned
    p.jump("end", lambda r: r["nest"] & STATE != RESIDENT or r["planned"] & STATE != RESIDENT)
    lock(p, changes)
    p.load("control", f"control{MOVED}")
    if "whatever has the entry now is moved" in changes:
        p.jump("unlock", lambda r: r["control"] & STATE != RESIDENT)
    else:
        p.jump("unlock", lambda r: r["control"] != r["planned"])
    p.load("from", f"offset{MOVED}", Order.RELAXED)
    if "a mover trusts the offset that it planned with" in changes:
        p.let("from", lambda r: r["planned page"])
    p.jump("unlock", lambda r: r["from"] != SPARSE)
    _look_into(p, changes)
    p.load("at", _of("at", "to"), Order.RELAXED)
    p.require(lambda r: r["at"] == r["next"], "takes what is no span")
    p.store(_of("use", "next"), EXTENT, Order.RELAXED)  # arena.take.stamped
    _move(p, changes)
    p.label("unlock")
    p.unlock()
    p.label("end")
    return p


def _look_into(p: Program, changes: Changes) -> None:
    """`look_into` the nest, `takes_in`: the page `to`, which is that of span `next`."""
    p.load("page", f"offset{NEST}", Order.RELAXED)
    p.load("span", f"span{NEST}", Order.RELAXED)
    if "a mover trusts the span of an object that is gone" not in changes:
        p.load("control", f"control{NEST}")
        p.load("extent", f"extent{NEST}", Order.RELAXED)
        p.jump("unlock", lambda r: r["control"] & STATE not in WHOLE or not r["extent"])
    p.load("use", _of("use", "span"), Order.RELAXED)
    p.load("its page", _of("page", "span"), Order.RELAXED)
    p.jump("unlock", lambda r: r["use"] != EXTENT or r["its page"] != r["page"])
    p.load("next", _of("next", "span"), Order.RELAXED)
    p.jump("unlock", lambda r: r["next"] == NO_SPAN)
    p.load("to", _of("page", "next"), Order.RELAXED)
    p.load("use", _of("use", "next"), Order.RELAXED)
    if "a nest that somebody has taken is taken" in changes:
        p.let("use", UNUSED)
    p.jump("unlock", lambda r: r["use"] != UNUSED or r["to"] != r["page"] + 1 or r["to"] == SPARSE)


def _move(p: Program, changes: Changes) -> None:
    """`move`: pins are the matter of `protocols`."""
    p.store(f"control{MOVED}", lambda r: _word(_birth(r["planned"]), EVICTING))  # move.evicting
    p.load("old", f"span{MOVED}", Order.RELAXED)
    p.load("byte", _of("byte", "from"), Order.RELAXED)
    early = "a move is true before it is made" in changes
    if early:
        p.store(f"offset{MOVED}", lambda r: r["to"], Order.RELAXED)
    p.store(_of("byte", "to"), lambda r: r["byte"], Order.RELAXED)  # move.copied
    if not early:
        p.store(f"offset{MOVED}", lambda r: r["to"], Order.RELAXED)  # move.stored
    p.store(f"span{MOVED}", lambda r: r["next"], Order.RELAXED)
    p.store(f"control{MOVED}", lambda r: _word(_birth(r["planned"]), RESIDENT))  # move.moved
    p.store(_of("use", "old"), UNUSED, Order.RELAXED)
    p.store(_of("byte", "from"), 0, Order.RELAXED)


def delete(entry: int, changes: Changes = NONE, mortal: bool = False) -> Program:
    """`mp_delete`."""
    p = Program(f"delete {entry}", mortal)
    lock(p, changes)
    p.load("control", f"control{entry}")
    p.jump("gone", lambda r: r["control"] & STATE not in (RESIDENT, SPILLED))
    p.store(f"control{entry}", lambda r: _word(_birth(r["control"]), DELETED))
    _bury(p, entry)
    p.label("gone")
    p.unlock()
    return p


def put(entry: int, page: int, changes: Changes = NONE) -> Program:
    """A new object in an entry that is free, at a page that is free; draft and seal are one here."""
    p = Program("put")
    lock(p, changes)
    p.load("control", f"control{entry}")
    p.jump("none", lambda r: r["control"] & STATE != FREE)
    _take(p, entry, page, "none")
    p.store(_of("byte", "page"), NEXT_BIRTH, Order.RELAXED)
    p.store(f"control{entry}", _word(NEXT_BIRTH, RESIDENT))
    p.label("none")
    p.unlock()
    return p


def evict_and_restore(entry: int, page: int, changes: Changes = NONE) -> Program:
    """`mp_evict` of a clean object; then it is read again, into that page."""
    p = Program(f"evict {entry}")
    lock(p, changes)
    p.load("control", f"control{entry}")
    p.jump("gone", lambda r: r["control"] & STATE != RESIDENT)
    p.store(f"control{entry}", lambda r: _word(_birth(r["control"]), SPILLED))  # evict.spilled
    p.store(f"extent{entry}", 0, Order.RELAXED)
    _release(p, entry)
    p.label("gone")
    p.unlock()
    lock(p, changes)
    p.load("control", f"control{entry}")
    p.jump("end", lambda r: r["control"] & STATE != SPILLED)
    _take(p, entry, page, "end")
    p.store(_of("byte", "page"), lambda r: _birth(r["control"]), Order.RELAXED)
    p.store(f"control{entry}", lambda r: _word(_birth(r["control"]), RESIDENT))
    p.label("end")
    p.unlock()
    return p


def survivor(changes: Changes = NONE) -> Program:
    """The next to take the mutex, when all else has come to its end."""
    p = Program("survivor")
    p.await_others()
    lock(p, changes)
    p.unlock()
    return p


# --- what must never come of it ---


def _sound(memory: dict[str, int], registers: list[Registers]) -> str | None:
    """`mp_arena_check`: spans are what the entries say, and each value is where its entry says."""
    owned = {}
    for entry in ENTRIES:
        state, page = memory[f"control{entry}"] & STATE, memory[f"offset{entry}"]
        if state in (EVICTING, DELETED):
            return "an object is left on its way"
        if state != RESIDENT:
            continue
        if page in owned:
            return "two objects have the same memory"
        owned[page] = memory[f"span{entry}"]
        if memory[f"byte{page}"] != _birth(memory[f"control{entry}"]):
            return "the value is not the object's"
    for page in PAGES:
        span = memory[f"at{page}"]
        if owned.get(page, span) != span or memory[f"page{span}"] != page:
            return "an object's span is none, or another's"
        if memory[f"use{span}"] != (EXTENT if page in owned else UNUSED):
            return "what is free is not what nobody has"
    return None


def _scenario(name: str, programs: list[Program]) -> Scenario:
    memory = dict.fromkeys([f"{field}{span}" for field in ("use", "page", "next") for span in range(9)], 0)
    for page in PAGES:
        memory |= {f"at{page}": page + 5, f"page{page + 5}": page, f"use{page + 5}": UNUSED, f"byte{page}": 0}
    memory |= {"next5": 6, "next6": 7, "next7": 8, "control3": FREE, "offset3": 0, "span3": 0, "extent3": 0}
    for entry, page in ((NEST, 0), (MOVED, SPARSE)):
        memory |= {f"control{entry}": _word(entry, RESIDENT), f"offset{entry}": page, f"byte{page}": entry}
        memory |= {f"span{entry}": page + 5, f"extent{entry}": 1, f"use{page + 5}": EXTENT}
    guarded = frozenset(name for name in memory if not name.startswith(("control", "offset")))
    return Scenario(name, programs, memory, _sound, guarded)


def mover_beside_a_death(changes: Changes = NONE) -> Scenario:
    """Whoever deletes the object of the nest dies anywhere; its entry is another's, perhaps."""
    programs = [move(changes), delete(NEST, changes, mortal=True), put(NEST, 1, changes), survivor(changes)]
    return _scenario("a mover beside a death", programs)


def mover_beside_a_rebirth(changes: Changes = NONE) -> Scenario:
    """The object that is to be moved is deleted, in the same way, and another lies where it was."""
    others = [delete(MOVED, changes, mortal=True), put(MOVED, SPARSE, changes)]
    return _scenario("a mover beside a rebirth", [move(changes), *others, survivor(changes)])


def mover_beside_an_eviction(changes: Changes = NONE) -> Scenario:
    """Both objects lose their memory, and come back elsewhere."""
    others = [evict_and_restore(NEST, 1, changes), evict_and_restore(MOVED, 2, changes)]
    return _scenario("a mover beside an eviction", [move(changes), *others, survivor(changes)])


def mover_that_is_killed(changes: Changes = NONE) -> Scenario:
    """It dies anywhere; what it has planned with is taken by another."""
    programs = [move(changes, mortal=True), put(THIRD, 1, changes), survivor(changes)]
    return _scenario("a mover that is killed", programs)
