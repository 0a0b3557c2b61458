"""A member's slot: claimed, reaped, reserved for a child of fork, adopted by it, with and without locks.

There is one slot. At the start a process has it that is dead, as its locks are free; a pin of it is
left. Whoever forks has a view, which its child must keep. A word is the generation, times eight, and a
state; a pid is 0, UNSEEN, that of the dead one, or a thread's number and one. Locks are files of the
system, so they go with their process.
That the birth lock is looked at before the byte lock, and the word once more behind the pid, spares
a reaper work; what keeps it from a living child is that each of its holds compares the word, so
neither is a mutant.
Not here: entries, which are reaped one by one (`protocols`), segments (`segments`), slots that orphans
share (`orphans`).
"""

from __future__ import annotations

from typing import Final

from explorer.machine import Scenario
from explorer.program import Program, Registers
from explorer.protocols import NONE, Changes

FREE, RESERVED, LIVE, REAPING, KEPT = range(5)
UNSEEN: Final = 9
PREDECESSOR: Final = 8
"""The pid of the process that is dead at the start."""
CHILD: Final = 1
CLAIMER: Final = 2
PARENTS, CHILDS = 1, 2
"""Who has a copy of the descriptor with the birth lock."""


def state_of(word: int) -> int:
    return word % 8


def with_state(word: int, state: int) -> int:
    return word - word % 8 + state


def next_word(word: int, state: int) -> int:
    """A generation more."""
    return with_state(word, state) + 8


def _mark(p: Program, state: int) -> None:
    """`mp_slot_mark`: a generation more."""
    p.load("old", "word")
    p.swap("word", lambda r: r["old"], lambda r: next_word(r["old"], state), "seen")  # slot.mark


# --- what is asked of the system ---


def _locked(p: Program, birth_only: bool = False) -> None:
    """`slot_locked`, into register `locked`."""
    p.let("locked", 0)
    for kind in ("birth",) if birth_only else ("birth", "byte"):
        p.load("holds", kind)
        p.is_dead("child gone", CHILD)
        if kind == "birth":
            p.let("holds", lambda r: r["holds"] & (PARENTS if r["child gone"] else PARENTS | CHILDS))
        else:
            p.let("holds", lambda r: r["holds"] if r["holds"] != CHILD + 1 or not r["child gone"] else 0)
        p.let("locked", lambda r: int(r["locked"] or r["holds"] != 0))


def _has_process(p: Program, to: str, unseen_is_dead: bool) -> None:
    """`has_process` of the word in register `word`; to `to` if there is one."""
    dead = f"dead {len(p.steps)}"
    p.load("pid", "pid")
    if not unseen_is_dead:
        p.jump(to, lambda r: r["pid"] == UNSEEN)
    p.load("now", "word")
    p.jump(to, lambda r: r["now"] != r["word"])
    p.jump(dead, lambda r: state_of(r["word"]) != LIVE)
    p.is_dead("child gone", CHILD)  # process_alive
    p.jump(to, lambda r: r["pid"] == CLAIMER + 1 or (r["pid"] == CHILD + 1 and not r["child gone"]))
    p.label(dead)


# --- operations ---


def fork(changes: Changes = NONE, locks: bool = True) -> Program:
    """`mp_fork_prepare`, the fork, `mp_fork_parent`. Without `locks` the system gives none."""
    p = Program("fork")
    p.lock()
    p.load("word", "word")
    p.jump("none", lambda r: state_of(r["word"]) != FREE)
    if locks:
        _locked(p)
        p.jump("none", lambda r: r["locked"] == 1)
        p.update("birth", lambda old, r: PARENTS)  # fork.locked
    p.store("pid", 0 if locks or "a child without a lock has no mark" in changes else UNSEEN)
    _mark(p, RESERVED)
    p.unlock()  # fork.reserved
    p.update("pins", lambda old, r: 1)  # fork.copied
    if locks:
        p.update("birth", lambda old, r: old | CHILDS)
    p.update("forked", lambda old, r: 1)
    if locks:
        p.update("birth", lambda old, r: old & ~PARENTS)
    p.jump("end")
    p.label("none")
    p.unlock()
    p.update("forked", lambda old, r: 2)  # among the orphans
    p.label("end")
    return p


def child(changes: Changes = NONE) -> Program:
    """`mp_fork_child`. It has a view from the start."""
    p = Program("child", mortal=True)
    p.let("not yet", 0)
    p.sleep("forked", "not yet", "forked", lambda forked: True)
    p.load("forked", "forked")
    p.jump("end", lambda r: r["forked"] == 2)
    early = "the birth lock goes before the byte lock is there" in changes
    if early:
        p.update("birth", lambda old, r: old & ~CHILDS)
    p.label("again")  # fork.child
    p.update("byte", lambda old, r: CHILD + 1 if old == 0 else None, "byte")
    p.let("tries", lambda r: r.get("tries", 0) + 1)
    p.jump("again", lambda r: r["byte"] != 0 and r["tries"] < 2)
    if "the pid comes before the word" in changes:
        p.store("pid", CHILD + 1)
    _mark(p, LIVE)
    if "the pid comes before the word" not in changes:
        p.store("pid", CHILD + 1)
    if not early:
        p.update("birth", lambda old, r: old & ~CHILDS)  # fork.adopted
    p.load("word", "word")
    p.load("pins", "pins")
    p.require(lambda r: r["pins"] == 1, "its view is not pinned")
    p.let("adopted", lambda r: r["word"])
    p.label("end")
    return p


def claim(changes: Changes = NONE) -> Program:
    """`mp_claim_slot`."""
    p = Program("claim")
    p.let("claimed", 0)
    p.is_dead("child gone", CHILD)
    p.update(
        "byte",
        lambda old, r: CLAIMER + 1 if old == 0 or (old == CHILD + 1 and r["child gone"]) else None,
        "byte",
    )
    p.jump("end", lambda r: r["byte"] != 0 and not (r["byte"] == CHILD + 1 and r["child gone"]))
    p.load("word", "word")  # slot.locked
    p.jump("clear", lambda r: state_of(r["word"]) == FREE)
    _locked(p, birth_only=True)
    p.jump("unlock", lambda r: r["locked"] == 1)
    _has_process(p, "unlock", "who claims takes what is unseen for dead" in changes)
    p.lock()  # take_over
    p.load("now", "word")
    p.let("taken", lambda r: int(state_of(r["now"]) != FREE))
    if "who claims does not compare the generation" not in changes:
        p.jump("other", lambda r: r["taken"] == 1 and r["now"] // 8 != r["word"] // 8)
    p.jump("free by now", lambda r: r["taken"] == 0)
    _mark(p, REAPING)
    p.label("free by now")
    p.load("word", "word")
    p.unlock()
    p.jump("clear", lambda r: r["taken"] == 0)
    _reap(p, changes)
    p.label("clear")
    p.lock()
    p.load("now", "word")
    p.jump("other", lambda r: state_of(r["now"]) != FREE and "a slot is claimed unseen" not in changes)
    p.store("pid", CLAIMER + 1)
    _mark(p, LIVE)
    p.let("claimed", 1)
    p.unlock()
    p.jump("end")
    p.label("other")
    p.unlock()
    p.label("unlock")
    p.update("byte", lambda old, r: 0)
    p.label("end")
    return p


def reap_dead(changes: Changes = NONE, mortal: bool = False, last: bool = False) -> Program:
    """`mp_slot_dead`, `mp_reap`; the `last` comes when all else has come to its end."""
    p = Program("reap", mortal)
    if last:
        p.await_others()
    p.load("word", "word")
    p.jump("end", lambda r: state_of(r["word"]) == FREE)
    if "a slot that is being reaped is left to its reaper" in changes:
        p.jump("end", lambda r: state_of(r["word"]) == REAPING)
    _locked(p)
    p.jump("end", lambda r: r["locked"] == 1)
    _has_process(p, "end", "who reaps takes what is unseen for dead" in changes)
    _reap(p, changes)
    p.label("end")
    return p


def _reap(p: Program, changes: Changes) -> None:
    """`mp_reap` of the word in register `word`: each hold looks whether it is still that."""
    end = f"reaped {len(p.steps)}"

    def hold() -> None:
        p.lock()
        p.load("now", "word")
        p.jump(f"{end}, unlock", lambda r: r["now"] != r["word"])

    p.lock()  # mark_reaping
    p.let("seen", lambda r: r["word"])
    p.let("word", lambda r: with_state(r["word"], REAPING))
    p.swap("word", lambda r: r["seen"], lambda r: r["word"], "now")
    p.jump(f"{end}, unlock", lambda r: r["now"] != r["seen"])
    p.unlock()  # reap.marked
    if "what is reaped is not compared with the word" in changes:
        p.lock()
    else:
        hold()  # reap_step
    p.update("pins", lambda old, r: 0)  # reap.entry
    p.unlock()
    hold()  # free_slot
    p.store("pid", 0)
    p.store("word", lambda r: with_state(r["word"], FREE))
    p.label(f"{end}, unlock")
    p.unlock()
    p.label(end)


# --- what must never come of it ---


def _kept(memory: dict[str, int], registers: list[Registers]) -> str | None:
    """A child that has come to its end is alive, with what it has adopted."""
    adopted, claimed = registers[CHILD].get("adopted"), registers[CLAIMER].get("claimed")
    if adopted is not None and claimed:
        return "two have the slot"
    if adopted is not None and (memory["word"] != adopted or memory["pid"] != CHILD + 1):
        return "the child's slot is not its own"
    return "its view is not pinned any more" if adopted is not None and not memory["pins"] else None


def _freed(memory: dict[str, int], registers: list[Registers]) -> str | None:
    return "a dead member's slot stays for ever" if memory["word"] != FREE or memory["pins"] else None


_MEMORY: Final = {"word": LIVE, "pid": PREDECESSOR, "pins": 1, "birth": 0, "byte": 0, "forked": 0}
_OUTSIDE: Final = frozenset(["birth", "byte", "forked"])


def _scenario(name: str, changes: Changes, locks: bool) -> Scenario:
    programs = [fork(changes, locks), child(changes), claim(changes), reap_dead(changes)]
    return Scenario(name, programs, _MEMORY, _kept, outside=_OUTSIDE)


def fork_beside_a_claim(changes: Changes = NONE) -> Scenario:
    """The predecessor is reaped by one of two, the slot claimed by one, reserved for a child, which may
    die."""
    return _scenario("a fork beside a claim", changes, locks=True)


def fork_without_a_lock(changes: Changes = NONE) -> Scenario:
    """The same where only a mark in the slot speaks for the child, until its pid does."""
    return _scenario("a fork without a lock", changes, locks=False)


def reapers_that_are_killed(changes: Changes = NONE) -> Scenario:
    """Two of them anywhere, one after the other or side by side; then comes a third."""
    programs = [*(reap_dead(changes, mortal=True) for _ in range(2)), reap_dead(changes, last=True)]
    return Scenario("reapers that are killed", programs, _MEMORY, _freed, outside=_OUTSIDE)
