"""Spill files that are mostly dead: a rewriter copies the live record to a file of its own, the place moves.

Beside it the object is restored, deleted, moved by another rewriter, and the empty file swept; who
rewrites or deletes may die anywhere. At the start the record lies in segment 1, which is closed and has
the id 1. A rewriter is `spill/rewrite.py`, from its look at the segments on to the sweep of what it has
emptied.
Not here: a place that is half changed, the holes in a file (`holds`); checksums, which tell a damaged record.
"""

from __future__ import annotations

from typing import Final

from explorer import files
from explorer.files import CLOSED, DEAD, FREE, GONE, OPEN, THERE, WHOLE, lock, of
from explorer.machine import Scenario
from explorer.program import Order, Program
from explorer.protocols import DEAD_STATES, NONE, RESIDENT, RESTORING, SPILLED, Changes, leave

VICTIM: Final = 0
"""The number of the thread that dies, or is taken for dead."""
ALIVE: Final = (RESIDENT, SPILLED)
TWO: Final = (1, 2)
THREE: Final = (1, 2, 3)


# --- operations ---


def rewrite(
    slot: int, changes: Changes = NONE, mortal: bool = False, records: tuple[int, ...] = TWO
) -> Program:
    """`Reclaimer._rewrite` by the member in `slot`, of whatever lies in segment 1."""
    p = Program(f"rewrite {slot}", mortal)
    _choose(p, changes, records)
    p.load("read", of("file", "source"))
    p.jump("end", lambda r: r["read"] != WHOLE)  # it has a failure to note
    _lock_own(p, slot, "not opened", changes, records)
    files.take(p, changes, "end", owner=slot)
    p.update(of("file", "id"), lambda old, r: THERE)
    early = "a place moves before its copy is written" in changes
    for piece in (_move, _write) if early else (_write, _move):
        piece(p, slot, changes, records)
    _end(p, slot, changes, records)
    files.sweep(p, changes, records)
    p.jump("end")
    p.label("not opened")
    p.unlock()
    p.label("end")
    return p


def _choose(p: Program, changes: Changes, records: tuple[int, ...]) -> None:
    """`mp_segments`, then `mp_records` of the segment with that index, which may be another's by then."""
    lock(p, changes, records)
    p.load("state", "state1")
    p.load("source", "id1", Order.RELAXED)
    p.unlock()
    p.jump("end", lambda r: r["state"] != CLOSED)
    lock(p, changes, records)
    p.load("place", "place")
    p.load("control", "control")
    p.load("pins", "pins")
    p.unlock()
    p.jump("end", lambda r: r["place"] != 1 or r["control"] not in ALIVE or r["pins"] != 0)


def _lock_own(p: Program, slot: int, otherwise: str, changes: Changes, records: tuple[int, ...]) -> None:
    """`mp_lock_own`: of a slot that is this member's still."""
    lock(p, changes, records)
    p.load("reaped", "reaped")
    by_number = "whoever has the slot now passes for its owner" in changes
    p.jump(otherwise, lambda r: r["reaped"] == slot and not by_number)


def _write(p: Program, slot: int, changes: Changes, records: tuple[int, ...]) -> None:
    """`mp_segment_reserve`, then the copy: into a file without a name, if it was swept meanwhile."""
    _lock_own(p, slot, "refused", changes, records)
    _mine(p, slot, "refused")
    p.unlock()
    p.update(of("file", "id"), lambda old, r: old if old == GONE else WHOLE)


def _mine(p: Program, slot: int, otherwise: str) -> None:
    """`mp_segment_mine`. Of a segment of its own, which a member closes when its places are recorded, it says
    nothing new while the slot is its own as well."""
    p.load("state", of("state", "segment"))
    p.load("owner", of("owner", "segment"), Order.RELAXED)
    p.jump(otherwise, lambda r: r["state"] != OPEN or r["owner"] != slot)


def _move(p: Program, slot: int, changes: Changes, records: tuple[int, ...]) -> None:
    """`mp_place_move`; the place of the record is what it was if it is in segment 1."""
    _lock_own(p, slot, "moved", changes, records)
    p.load("control", "control")
    p.jump("moved", lambda r: r["control"] not in ALIVE)  # nothing depends on it: place and pins decide
    p.load("place", "place")
    if "what another has moved is moved" not in changes:
        p.jump("moved", lambda r: r["place"] != 1)
    if "a record is moved in spite of pins" not in changes:
        p.load("pins", "pins")
        p.jump("moved", lambda r: r["pins"] != 0)
    _mine(p, slot, "moved")
    p.store("move_segment", lambda r: r["segment"])  # place.move.filled
    p.store("move_entry", 1)  # place.move.decided
    files.finish_move(p)  # place.move.done
    files.count(p, "segment")
    p.let("place", 1)
    if "a move leaves the old live bytes" not in changes:
        files.vacate(p, changes, "place")
    p.label("moved")
    p.unlock()
    p.jump("written")
    p.label("refused")
    p.unlock()
    p.label("written")


def _end(p: Program, slot: int, changes: Changes, records: tuple[int, ...]) -> None:
    """`mp_segment_end`."""
    _lock_own(p, slot, "ended", changes, records)
    _mine(p, slot, "ended")
    p.load("now", of("id", "segment"), Order.RELAXED)
    p.jump("ended", lambda r: r["now"] != r["id"])
    files.retire(p, changes, "segment")
    p.label("ended")
    p.unlock()


def restore(changes: Changes = NONE) -> Program:
    """`mp_place_read`, `mp_restore_begin`, the file, `mp_restore_end`, `mp_unpin`."""
    p = Program("restore")
    p.update("pins", lambda old, r: 1)
    lock(p, changes, TWO)
    p.load("control", "control")
    p.load("mine", "place")
    p.unlock()
    p.jump("unpin", lambda r: r["control"] != SPILLED)
    lock(p, changes, TWO)
    p.load("control", "control")
    p.jump("other", lambda r: r["control"] != SPILLED)
    p.store("control", RESTORING)
    p.label("other")
    p.unlock()
    p.jump("unpin", lambda r: r["control"] != SPILLED)
    lock(p, changes, TWO)
    p.load("its id", of("id", "mine"), Order.RELAXED)
    p.unlock()
    p.load("file", of("file", "its id"))
    p.require(lambda r: r["file"] == WHOLE, "what it reads is not the object's record")
    leave(p, RESTORING, RESIDENT)
    p.label("unpin")
    p.update("pins", lambda old, r: 0)
    p.load("control", "control")
    p.jump("end", lambda r: r["control"] not in DEAD_STATES)
    lock(p, changes, TWO)
    files.bury(p, changes)
    p.unlock()
    p.label("end")
    return p


def delete(changes: Changes = NONE, mortal: bool = False) -> Program:
    """`mp_delete`."""
    p = Program("delete", mortal)
    lock(p, changes, TWO)
    files.kill(p)
    files.bury(p, changes)
    p.unlock()
    return p


def sweep(changes: Changes = NONE) -> Program:
    """`sweep_dead` by anybody."""
    p = Program("sweep")
    files.sweep(p, changes, TWO)
    return p


def _reap(p: Program, slot: int, changes: Changes) -> None:
    """`reap_step` of the one object, `reap_segments`, `free_slot`."""
    lock(p, changes, TWO)
    p.update("pins", lambda old, r: 0)
    p.load("control", "control")
    leave(p, RESTORING, SPILLED)
    files.bury(p, changes)
    p.unlock()
    for index in TWO:
        p.let("segment", index)
        p.load("state", f"state{index}")
        p.load("owner", f"owner{index}", Order.RELAXED)
        p.jump(f"not {index}", lambda r: r["state"] != OPEN or r["owner"] != slot)
        lock(p, changes, TWO)
        p.load("state", f"state{index}")
        p.load("owner", f"owner{index}", Order.RELAXED)
        p.jump(f"not its {index}", lambda r: r["state"] != OPEN or r["owner"] != slot)
        files.retire(p, changes, "segment")
        p.label(f"not its {index}")
        p.unlock()
        p.label(f"not {index}")


def janitor(changes: Changes = NONE, mortal: bool = False, last: bool = False) -> Program:
    """Who survives: reaps the victim, which was in slot 1, and sweeps. The `last` comes behind all others."""
    p = Program("janitor", mortal)
    p.await_death(VICTIM)
    if last:
        p.await_others()
    _reap(p, 1, changes)
    files.sweep(p, changes, TWO)
    return p


def heir(changes: Changes = NONE) -> Program:
    """Takes a member that has lost its byte lock for dead, reaps it, sweeps, claims its slot, and writes a
    file of its own, with nothing of that object in it."""
    p = Program("heir")
    lock(p, changes, TWO)
    p.store("reaped", 1)  # mark_reaping
    p.unlock()
    _reap(p, 1, changes)
    files.sweep(p, changes, TWO)
    lock(p, changes, TWO)
    files.take(p, changes, "end", owner=1)
    p.update(of("file", "id"), lambda old, r: THERE)
    p.label("end")
    return p


# --- what must never come of it ---


def _memory(records: tuple[int, ...], **more: int) -> dict[str, int]:
    names = ("listed", "dead", "pins", "reaped", "move_entry", "move_segment", "event")
    memory = dict.fromkeys(names, 0) | {"next_id": 2, "control": SPILLED, "place": 1}
    for index in records:
        memory |= dict.fromkeys([f"{name}{index}" for name in ("state", "id", "live", "owner", "file")], 0)
    memory |= {"state1": CLOSED, "id1": 1, "live1": 1, "file1": WHOLE}
    return (
        memory | {"listed": sum(1 << index for index in records[1:]), f"file{len(records) + 1}": GONE} | more
    )


def _sound(memory: dict[str, int], records: tuple[int, ...]) -> str | None:
    """A file is there for the object, for somebody who writes it, or for the next one to sweep, who looks at
    what is DEAD. One made by a member after it was taken for dead stays until the directory goes."""
    if memory["mutex"]:
        return None  # of the dead: the next owner counts anew
    place, alive = memory["place"], memory["control"] not in DEAD_STATES
    if alive and not (place and memory[f"file{memory[f'id{place}']}"] == WHOLE):
        return "the file of a live object is gone"
    if place and not alive:
        return "an object that is dead keeps a place"
    if memory["move_entry"]:
        return "a move is never finished"
    kept = {memory[f"id{index}"] for index in records if memory[f"state{index}"] not in (FREE, CLOSED)}
    kept |= {memory[f"id{index}"] for index in records if place == index}
    for number in range(1, len(records) + 2):
        if memory[f"file{number}"] != GONE and number not in kept and not memory["reaped"]:
            return "a dead file stays for ever"
    for index in records:
        state, live = memory[f"state{index}"], memory[f"live{index}"]
        if state == CLOSED and place != index:
            return "a segment without an object stays for ever"
        if state != FREE and live != (place == index):
            return "live bytes are counted wrongly"
        if (memory["listed"] >> index & 1) != (state == FREE):
            return "a record is counted wrongly"
    dead = sum(memory[f"state{index}"] == DEAD for index in records)
    return None if memory["dead"] == dead else "dead segments are counted wrongly"


def _scenario(name: str, programs: list[Program], records: tuple[int, ...] = TWO) -> Scenario:
    memory = _memory(records)
    guarded = frozenset(files.guarded(memory))
    outside = frozenset(name for name in memory if name.startswith("file"))
    return Scenario(name, programs, memory, lambda memory, _: _sound(memory, records), guarded, outside)


def rewrite_beside_a_restore(changes: Changes = NONE) -> Scenario:
    """The object comes to memory from one of the two files."""
    return _scenario("a rewrite beside a restore", [rewrite(1, changes), restore(changes), sweep(changes)])


def rewrite_beside_a_delete(changes: Changes = NONE) -> Scenario:
    """Whoever deletes it dies anywhere."""
    programs = [delete(changes, mortal=True), rewrite(1, changes), sweep(changes)]
    return _scenario("a rewrite beside a delete", programs)


def rewriter_that_is_killed(changes: Changes = NONE) -> Scenario:
    """It is reaped, and what it has left is swept, while the object is restored."""
    programs = [rewrite(1, changes, mortal=True), janitor(changes), restore(changes)]
    return _scenario("a rewriter that is killed", programs)


def rewriter_and_janitor_that_are_killed(changes: Changes = NONE) -> Scenario:
    """Who repairs the table, reaps and sweeps dies of it, anywhere; another begins again."""
    janitors = [janitor(changes, mortal=True), janitor(changes, last=True)]
    return _scenario("a janitor that is killed, too", [rewrite(1, changes, mortal=True), *janitors])


def two_rewrites_of_a_record(changes: Changes = NONE) -> Scenario:
    """Both have copied it; one place is to be had."""
    programs = [rewrite(1, changes, records=THREE), rewrite(2, changes, records=THREE)]
    return _scenario("two rewrites of a record", programs, THREE)


def rewriter_taken_for_dead(changes: Changes = NONE) -> Scenario:
    """It has closed all its descriptors, by mistake, and goes on while slot and record are another's."""
    return _scenario("a rewriter taken for dead", [rewrite(1, changes), heir(changes)])
