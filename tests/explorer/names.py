"""Names: one name that is set, replaced, removed and looked up, while objects go and entries are used again.

At the start the name holds the object of entry 1. A lookup takes two holds of the mutex: in the first it
reads whose name it is, in the second it holds that. `names` counts the names of an entry, a cache;
`holders` has a bit for each member; an object that somebody views is pinned, and does not go.
Not here: the chains of buckets and the pool of records, which are made anew behind a dead owner; how
else an object ends (`protocols`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from explorer.machine import Scenario
from explorer.program import Program, Registers
from explorer.protocols import FREE, GARBAGE, NONE, RESIDENT, STATE, Changes

ENTRIES: Final = (1, 2)
SETTER: Final = 0
"""The number of the thread that sets the name, or takes it away, and may die of it."""
SETTERS, FINDERS, PUTTERS = 1, 2, 4
"""Bits of holders."""


def _word(birth: int, state: int) -> int:
    return birth * (STATE + 1) + state


def _birth(word: int) -> int:
    return word // (STATE + 1)


def _of(name: str, register: str) -> Callable[[Registers], str]:
    return lambda r: f"{name}{r[register]}"


# --- what a hold of the mutex does ---


def _collect(p: Program, at: str) -> None:
    """`mp_collect` of the entry in a register."""
    end, held = f"collected {len(p.steps)}", f"held {len(p.steps)}"
    p.load("now", _of("control", at))
    p.jump(end, lambda r: r["now"] & STATE == FREE)
    p.load("holders", _of("holders", at))
    p.load("names", _of("names", at))
    p.jump(held, lambda r: r["holders"] or r["names"] or r["now"] & STATE != RESIDENT)
    p.let("now", lambda r: _word(_birth(r["now"]), GARBAGE))
    p.store(_of("control", at), lambda r: r["now"])
    p.label(held)
    p.load("pins", _of("pins", at))
    p.jump(end, lambda r: r["now"] & STATE != GARBAGE or r["pins"] or r["holders"] or r["names"])
    p.store(_of("control", at), lambda r: _word(_birth(r["now"]), FREE))
    p.label(end)


def lock(p: Program, changes: Changes) -> None:
    """`mp_lock`; behind a dead owner `rebuild_names`, and a look at every entry."""
    p.lock()
    sound = f"sound {len(p.steps)}"
    p.jump(sound, lambda r: not r["inherited"])
    if "a rebuild leaves the counts of names" not in changes:
        p.load("name of", "target")
        for entry in ENTRIES:
            p.store(f"names{entry}", lambda r, entry=entry: int(r["name of"] == entry))
    for entry in ENTRIES:
        p.let("entry", entry)
        _collect(p, "entry")
    p.label(sound)


def _uncount(p: Program, at: str, changes: Changes) -> None:
    p.load("names", _of("names", at))
    p.store(_of("names", at), lambda r: r["names"] - 1)
    if "who has lost its name is not tested" not in changes:
        _collect(p, at)


def _let_go(p: Program, entry: int, bit: int, changes: Changes) -> None:
    """`mp_drop`."""
    lock(p, changes)
    p.update(f"holders{entry}", lambda old, r: old & ~bit)
    p.let("entry", entry)
    _collect(p, "entry")
    p.unlock()


def _set(p: Program, entry: int, changes: Changes) -> None:
    """`mp_name_set` with `replace`, of the object with the birth in `birth`."""
    end = f"set {len(p.steps)}"
    dead = (FREE,) if "what is garbage gets a name" in changes else (FREE, GARBAGE)
    lock(p, changes)
    p.load("control", f"control{entry}")
    p.jump(end, lambda r: _birth(r["control"]) != r["birth"] or r["control"] & STATE in dead)
    p.load("old", "target")
    p.store("target", entry)  # name.replaced, name.set
    p.load("names", f"names{entry}")
    p.store(f"names{entry}", lambda r: r["names"] + 1)
    p.jump(end, lambda r: r["old"] == 0)
    _uncount(p, "old", changes)
    p.label(end)
    p.unlock()


# --- operations ---


def replace(changes: Changes = NONE, mortal: bool = False) -> Program:
    """The name becomes that of the object in entry 2, which the setter holds, and lets go."""
    p = Program("replace", mortal)
    p.let("birth", 2)
    _set(p, 2, changes)
    _let_go(p, 2, SETTERS, changes)
    return p


def remove(changes: Changes = NONE, mortal: bool = False) -> Program:
    """`mp_name_remove`."""
    p = Program("remove", mortal)
    lock(p, changes)
    p.load("old", "target")
    p.jump("none", lambda r: r["old"] == 0)
    p.store("target", 0)  # name.removed
    _uncount(p, "old", changes)
    p.label("none")
    p.unlock()
    return p


def find(changes: Changes = NONE) -> Program:
    """`mp_name_hold`: again, if what it had read was gone. The same twice would be damage."""
    p = Program("find")
    p.let("seen", 0)
    p.label("again")
    lock(p, changes)
    p.load("found", "target")
    p.jump("nothing", lambda r: r["found"] == 0)
    p.load("control", _of("control", "found"))
    p.unlock()
    p.let("birth", lambda r: _birth(r["control"]))
    lock(p, changes)  # mp_hold
    p.load("control", _of("control", "found"))
    p.jump("other", lambda r: r["control"] & STATE in (FREE, GARBAGE))
    if "a lookup holds whatever has the entry now" not in changes:
        p.jump("other", lambda r: _birth(r["control"]) != r["birth"])
    p.update(_of("holders", "found"), lambda old, r: old | FINDERS)
    p.unlock()
    p.require(lambda r: _birth(r["control"]) == r["birth"], "holds what never had that name")
    p.let("holds", lambda r: r["found"])
    p.jump("end")
    p.label("other")
    p.unlock()
    p.let("damaged", lambda r: int(r["birth"] == r["seen"]))
    if "a lookup asks once" in changes:
        p.let("damaged", 1)
    p.require(lambda r: not r["damaged"], "takes a name for damaged")
    p.let("seen", lambda r: r["birth"])
    p.jump("again")
    p.label("nothing")
    p.unlock()
    p.label("end")
    return p


def put(changes: Changes = NONE, names_it: bool = True) -> Program:
    """Somebody takes entry 1 once it is free, for an object that gets the name too; or does not."""
    p = Program("put")
    lock(p, changes)
    p.load("control", "control1")
    p.let("taken", lambda r: int(r["control"] & STATE == FREE))
    p.jump("not free", lambda r: not r["taken"])
    p.update("holders1", lambda old, r: PUTTERS)
    p.store("control1", _word(3, RESIDENT))
    p.label("not free")
    p.unlock()
    p.jump("end", lambda r: not r["taken"])
    if names_it:
        p.let("birth", 3)
        _set(p, 1, changes)
        _let_go(p, 1, PUTTERS, changes)
    p.label("end")
    return p


def reap(changes: Changes = NONE, alive: bool = False) -> Program:
    """`reap_step` of who sets the name; `alive`: of one that is taken for dead."""
    p = Program("reap")
    if not alive:
        p.await_death(SETTER)
    _let_go(p, 2, SETTERS, changes)
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
    for entry in ENTRIES:
        state, named = memory[f"control{entry}"] & STATE, memory["target"] == entry
        if memory[f"names{entry}"] != named:
            return "names are counted wrongly"
        kept = named or memory[f"holders{entry}"]
        if kept and state != RESIDENT:
            return "gone, although it has a name or is held"
        if not kept and not memory[f"pins{entry}"] and state != FREE:
            return "nobody holds it, and it is not freed"
    return None


def _scenario(name: str, programs: list[Program], **more: int) -> Scenario:
    memory = {
        "target": 1,
        "names1": 1,
        "names2": 0,
        "holders1": 0,
        "holders2": SETTERS,
        "pins1": 0,
        "pins2": 0,
    }
    memory |= {"control1": _word(1, RESIDENT), "control2": _word(2, RESIDENT)} | more
    return Scenario(name, programs, memory, _sound, frozenset(memory))


def name_that_is_replaced(changes: Changes = NONE) -> Scenario:
    """By one that dies anywhere; what it named before goes, and its entry is another's, with that name."""
    programs = [replace(changes, mortal=True), find(changes), put(changes), reap(changes), survivor(changes)]
    return _scenario("a name that is replaced", programs)


def name_that_is_removed(changes: Changes = NONE) -> Scenario:
    """By one that dies anywhere; the entry of the object is another's, without a name."""
    others = [find(changes), put(changes, names_it=False), survivor(changes)]
    programs = [remove(changes, mortal=True), *others]
    return _scenario("a name that is removed", programs, holders2=0, control2=_word(2, FREE))


def name_by_one_taken_for_dead(changes: Changes = NONE) -> Scenario:
    """What it names was garbage by then, and is there still, since somebody views it."""
    programs = [replace(changes), find(changes), reap(changes, alive=True)]
    return _scenario("a name by one taken for dead", programs, pins2=1)
