"""Spill files: a segment's record is opened, filled, emptied, swept, and then that of another file.

There is one record. The segment in it at the start has id 1, what is opened there later id 2. One object
is in a file, or is put there, and may be deleted at any time.
Not here: what a hold of the mutex does (`files`), records of objects that move to another file (`rewrites`),
holes (`holds`); several directories, files that the system will not remove.
"""

from __future__ import annotations

from typing import Final

from explorer import files
from explorer.files import CLOSED, DEAD, FREE, OPEN, THERE, bury, count, lock, of
from explorer.machine import Scenario
from explorer.program import Order, Program, Registers
from explorer.protocols import ABANDONED, DELETED, DRAFT, NONE, SPILLED, Changes

WRITER: Final = 0
"""The number of the thread that opens segments."""


# --- operations ---


def write_through(changes: Changes = NONE, mortal: bool = False) -> Program:
    """`SpillWriter.write_through`: the place is recorded in its block."""
    p = Program("write", mortal)
    early = "a segment is closed before its place is recorded" in changes
    _open(p, changes)
    for piece in (_end, _settle) if early else (_settle, _end):
        piece(p, changes)
    p.label("end")
    return p


def open_segment(changes: Changes = NONE) -> Program:
    """A segment into which nothing comes: the object is deleted before, or the disk refuses."""
    p = Program("open")
    _open(p, changes)
    _end(p, changes)
    p.label("end")
    return p


def _open(p: Program, changes: Changes) -> None:
    """`mp_segment_open`, and the file."""
    lock(p, changes)
    files.take(p, changes, "end")
    p.update(of("file", "id"), lambda old, r: THERE)


def _settle(p: Program, changes: Changes) -> None:
    """`mp_settle`: the file has the record whole."""
    lock(p, changes)
    p.load("control", "control")
    p.jump("settled", lambda r: r["control"] != DRAFT)
    p.load("state", of("state", "segment"))
    p.require(lambda r: r["state"] == OPEN, "its segment takes no place")  # mp_segment_mine
    if "a place is recorded before the live bytes, in two holds" in changes:
        p.store("place", lambda r: r["segment"])
        p.store("control", SPILLED)
        p.unlock()
        lock(p, changes)
        count(p, "segment")
    else:
        p.store("place", lambda r: r["segment"])  # place.set
        count(p, "segment")
        p.store("control", SPILLED)
    p.label("settled")
    p.unlock()


def _end(p: Program, changes: Changes) -> None:
    """`mp_segment_end` of a segment of one's own."""
    lock(p, changes)
    files.retire(p, changes, "segment")
    p.unlock()


def read(changes: Changes = NONE) -> Program:
    """`mp_place_read`, the file's name from `mp_segment_read`, the file; `mp_unpin`."""
    p = Program("read")
    p.update("pins", lambda old, r: 1)
    lock(p, changes)
    p.load("control", "control")
    p.load("mine", "place")
    p.unlock()
    p.jump("unpin", lambda r: r["control"] != SPILLED)
    lock(p, changes)
    p.load("id", of("id", "mine"), Order.RELAXED)
    p.unlock()
    p.load("file", of("file", "id"))
    p.require(lambda r: r["id"] == 1 and r["file"] == THERE, "the file of its object is gone")
    p.label("unpin")
    p.update("pins", lambda old, r: 0)
    p.load("control", "control")
    p.jump("end", lambda r: r["control"] != DELETED)
    lock(p, changes)
    bury(p, changes)
    p.unlock()
    p.label("end")
    return p


def delete(changes: Changes = NONE, mortal: bool = False) -> Program:
    """`mp_delete` of an object whose file is there until then."""
    p = Program("delete", mortal)
    lock(p, changes)
    p.load("control", "control")
    p.jump("draft", lambda r: r["control"] != SPILLED)
    p.load("mine", "place")
    p.load("id", of("id", "mine"), Order.RELAXED)
    p.load("file", of("file", "id"))
    p.require(lambda r: r["file"] == THERE, "the file of a live object is gone")
    p.label("draft")
    files.kill(p)
    bury(p, changes)
    p.unlock()
    return p


def sweep(number: int, changes: Changes = NONE, mortal: bool = False) -> Program:
    """`sweep_dead`."""
    p = Program(f"sweep {number}", mortal)
    files.sweep(p, changes)
    return p


def reap(changes: Changes = NONE) -> Program:
    """`reap_step` and `reap_segments` of the writer."""
    p = Program("reap")
    p.await_death(WRITER)
    lock(p, changes)
    p.load("control", "control")
    p.jump("whole", lambda r: r["control"] != DRAFT)
    p.store("control", ABANDONED)
    bury(p, changes)
    p.label("whole")
    p.unlock()
    p.let("segment", 1)
    p.load("state", "state1")
    p.jump("end", lambda r: r["state"] != OPEN or "reaping leaves segments" in changes)
    lock(p, changes)
    p.load("state", "state1")
    p.jump("not open", lambda r: r["state"] != OPEN)
    files.retire(p, changes, "segment")
    p.label("not open")
    p.unlock()
    p.label("end")
    return p


# --- what must never come of it ---


def _files(memory: dict[str, int], registers: list[Registers]) -> str | None:
    """A file is there for an object, or for the next one to sweep, which looks at what is DEAD."""
    if memory["mutex"]:
        return None  # of the dead: the next owner counts anew
    state, alive = memory["state1"], memory["control"] == SPILLED
    if alive and not (memory["place"] and memory[f"file{memory['id1']}"] == THERE):
        return "the file of a live object is gone"
    for number in (1, 2):
        kept = number == memory["id1"] and (state == DEAD or alive)
        if memory[f"file{number}"] == THERE and not kept:
            return "a dead file stays for ever"
    if not alive and state not in (FREE, DEAD):
        return "a segment without an object stays for ever"
    if memory["dead"] != (state == DEAD) or memory["listed"] >> 1 != (state == FREE):
        return "the record is counted wrongly"
    return None if state == FREE or memory["live1"] == memory["place"] else "live bytes are counted wrongly"


def _memory(**more: int) -> dict[str, int]:
    names = ("state1", "live1", "dead", "listed", "place", "pins", "file1", "file2")
    return dict.fromkeys(names, 0) | {"id1": 1, "next_id": 2, "control": DRAFT} | more


def _dead_file() -> dict[str, int]:
    return _memory(state1=DEAD, dead=1, file1=THERE)


def _object_in_a_file() -> dict[str, int]:
    return _memory(state1=CLOSED, live1=1, place=1, file1=THERE, control=SPILLED)


def _scenario(name: str, programs: list[Program], memory: dict[str, int]) -> Scenario:
    guarded, outside = frozenset(files.guarded(memory)), frozenset(["file1", "file2"])
    return Scenario(name, programs, memory, _files, guarded, outside)


def two_sweeps_of_a_record(changes: Changes = NONE) -> Scenario:
    """Two members sweep a dead file, whose record becomes that of a new one; its object is deleted too."""
    programs = [write_through(changes), delete(changes), sweep(1, changes), sweep(2, changes)]
    return _scenario("two sweeps of a record", programs, _dead_file())


def sweep_that_is_killed(changes: Changes = NONE) -> Scenario:
    """One of them dies anywhere; the object in the new file lives."""
    programs = [write_through(changes), sweep(1, changes, mortal=True), sweep(2, changes)]
    return _scenario("a sweep that is killed", programs, _dead_file())


def delete_that_is_killed(changes: Changes = NONE) -> Scenario:
    """Whoever deletes the last object of a file dies anywhere."""
    programs = [open_segment(changes), delete(changes, mortal=True), sweep(1, changes)]
    return _scenario("a delete that is killed", programs, _object_in_a_file())


def writer_that_is_killed(changes: Changes = NONE) -> Scenario:
    """A put through to disk dies anywhere and is reaped, while its object is deleted and somebody sweeps."""
    programs = [write_through(changes, mortal=True), delete(changes), reap(changes), sweep(1, changes)]
    return _scenario("a writer that is killed", programs, _memory(listed=2))


def read_beside_a_sweep(changes: Changes = NONE) -> Scenario:
    """An object is read from its file while it is deleted and its segment dies, is swept and used again."""
    programs = [read(changes), delete(changes), sweep(1, changes), open_segment(changes)]
    return _scenario("a read beside a sweep", programs, _object_in_a_file())
