"""The two slots that orphans of fork share: joined without the mutex, perhaps while somebody reaps there.

A process here is a parent that could not have the mutex, and the child that it leaves, in one thread: the
birth lock is both's, and goes with the last of them. At the start each slot is that of orphans which are
gone, and has a pin of theirs. Words and generations are as in `slots`; who reaps may stand still anywhere.
Not here: slots that members own (`slots`), entries, which are reaped one by one (`protocols`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from explorer.machine import Scenario
from explorer.program import Program, Registers
from explorer.protocols import NONE, Changes
from explorer.slots import FREE, KEPT, LIVE, REAPING, next_word, state_of, with_state

SLOTS: Final = (0, 1)
FIRST, SECOND = 0, 1
"""The numbers of the threads that are orphans."""
ORPHANS: Final = (FIRST, SECOND)
JOINS: Final = 4
"""Of slots that are being reaped nobody here meets so many, one by one, unless both are at once."""


def _of(name: str) -> Callable[[Registers], str]:
    """A field of the slot in register `slot`."""
    return lambda r: f"{name}{r['slot']}"


# --- operations ---


def orphan(number: int, changes: Changes = NONE, locks: bool = True, mortal: bool = True) -> Program:
    """`join_some_orphans` and `copy_bits`; the child has a view. Without `locks` the system gives none."""
    p, bit = Program(f"orphan {number}", mortal), 1 << number
    late = "an orphan locks behind its word" in changes
    p.let("slot", 0)
    p.let("tries", 0)
    p.label("again")
    p.load("word", _of("word"))
    if "an orphan comes where somebody reaps" not in changes:
        p.jump("other", lambda r: state_of(r["word"]) == REAPING)
    if locks and not late:
        p.update(_of("birth"), lambda old, r: old | bit)
    _join(p, changes, locks)
    p.jump("joined", lambda r: r["seen"] == r["word"])
    if locks and "a try that failed leaves its lock" not in changes:
        p.update(_of("birth"), lambda old, r: old & ~bit)
    p.jump("again")
    p.label("other")
    p.let("slot", lambda r: 1 - r["slot"])
    p.let("tries", lambda r: min(r["tries"] + 1, JOINS))
    p.require(lambda r: r["tries"] < JOINS, "finds no slot to come to")
    p.jump("again")
    p.label("joined")
    p.let("joined", lambda r: r["slot"])
    if late:
        p.update(_of("birth"), lambda old, r: old | bit)
    p.update(_of("pins"), lambda old, r: 1)  # fork.copied
    p.load("pins", _of("pins"))
    p.require(lambda r: r["pins"] == 1, "its view is not pinned")
    return p


def _join(p: Program, changes: Changes, locks: bool) -> None:
    """The step of `join_orphans` that counts. Registers: `seen` is `word` if it was done."""
    p.let("state", lambda r: LIVE if locks and state_of(r["word"]) != KEPT else KEPT)
    if "an orphan with a lock stands for one without" in changes:
        p.let("state", LIVE if locks else KEPT)
    if "an orphan without a lock leaves no mark" in changes:
        p.let("state", LIVE)
    p.let("new", lambda r: next_word(r["word"], r["state"]))
    if "an orphan comes in the generation that is there" in changes:
        p.let("new", lambda r: with_state(r["word"], r["state"]))
    if "an orphan does not compare the word" in changes:
        p.store(_of("word"), lambda r: r["new"])
        p.let("seen", lambda r: r["word"])
    else:
        p.swap(_of("word"), lambda r: r["word"], lambda r: r["new"], "seen")  # slot.mark


def _visit(p: Program, slot: int, changes: Changes) -> None:
    """`mp_slot_dead`, `mp_reap`."""
    end, word = f"visited {len(p.steps)}", f"word{slot}"
    unlock = f"{end}, unlock"

    def hold() -> None:
        p.lock()
        p.load("now", word)
        p.jump(unlock, lambda r: r["now"] != r["word"])

    p.load("word", word)
    p.jump(end, lambda r: state_of(r["word"]) == FREE)
    _slot_locked(p, slot, end)
    p.jump(end, lambda r: state_of(r["word"]) == KEPT)  # has_process
    p.lock()  # mark_reaping
    if "both slots of orphans are reaped at once" not in changes:
        p.load("other", f"word{1 - slot}")
        p.jump(unlock, lambda r: state_of(r["other"]) == REAPING)
    p.let("seen", lambda r: r["word"])
    p.let("word", lambda r: with_state(r["word"], REAPING))
    p.swap(word, lambda r: r["seen"], lambda r: r["word"], "now")
    p.jump(unlock, lambda r: r["now"] != r["seen"])
    p.unlock()  # reap.marked
    if "what is reaped of orphans is not compared with the word" in changes:
        p.lock()
    else:
        hold()  # reap_step
    p.update(f"pins{slot}", lambda old, r: 0)  # reap.entry
    p.unlock()
    hold()  # free_slot
    p.store(word, lambda r: with_state(r["word"], FREE))
    p.label(unlock)
    p.unlock()
    p.label(end)


def _slot_locked(p: Program, slot: int, to: str) -> None:
    """To `to` if an orphan has the birth lock. Who is gone is asked first: one that locks and ends meanwhile
    passes for alive."""
    p.let("gone", 0)
    for number in ORPHANS:
        p.is_dead("dead", number)
        p.let("gone", lambda r, number=number: r["gone"] | r["dead"] << number)
    p.load("birth", f"birth{slot}")
    p.jump(to, lambda r: r["birth"] & ~r["gone"] != 0)


def reaper(changes: Changes = NONE, mortal: bool = False, slots: tuple[int, ...] = SLOTS) -> Program:
    """`mp_reap_dead`, of these slots."""
    p = Program("reaper", mortal)
    for slot in slots:
        _visit(p, slot, changes)
    return p


def last(changes: Changes = NONE) -> Program:
    """Polls when all else has come to its end. A slot that somebody was reaping comes before the other."""
    p = Program("last")
    p.await_others()
    for slot in (0, 1, 0):
        _visit(p, slot, changes)
    for number in ORPHANS:
        p.is_dead(f"gone {number}", number)
    return p


# --- what must never come of it ---


def _kept(memory: dict[str, int], registers: list[Registers]) -> str | None:
    """What the living view is pinned; what only the dead have viewed is not, when somebody has looked."""
    *others, end = registers
    living = [
        process["joined"]
        for process, gone in zip(others, ("gone 0", "gone 1"), strict=False)
        if "joined" in process and not end.get(gone)
    ]
    for slot in SLOTS:
        if slot in living and not memory[f"pins{slot}"]:
            return "what a living orphan views is not pinned any more"
        if slot not in living and memory[f"pins{slot}"]:
            return "bits of dead orphans stay for ever"
    return None


def _scenario(name: str, programs: list[Program]) -> Scenario:
    memory = {"word0": LIVE, "word1": LIVE, "pins0": 1, "pins1": 1, "birth0": 0, "birth1": 0}
    return Scenario(name, programs, memory, _kept, outside=frozenset(["birth0", "birth1"]))


def orphans_beside_a_reaper(changes: Changes = NONE) -> Scenario:
    """Two come, in whatever order, and die."""
    programs = [orphan(FIRST, changes), orphan(SECOND, changes), reaper(changes), last(changes)]
    return _scenario("orphans beside a reaper", programs)


def orphan_without_a_lock(changes: Changes = NONE) -> Scenario:
    """One of two has none, and lives; who reaps dies anywhere."""
    without = orphan(SECOND, changes, locks=False, mortal=False)
    programs = [orphan(FIRST, changes), without, reaper(changes, mortal=True), last(changes)]
    return _scenario("an orphan without a lock", programs)


def reaper_of_orphans_that_is_killed(changes: Changes = NONE) -> Scenario:
    """Two reap, one of which dies anywhere."""
    first = reaper(changes, mortal=True, slots=(0,))
    programs = [orphan(FIRST, changes), first, reaper(changes), last(changes)]
    return _scenario("a reaper of orphans that is killed", programs)
