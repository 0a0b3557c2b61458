"""Spill files: a segment's record is opened, filled, emptied, swept, and then that of another file.

There is one record. The segment in it at the start has id 1, what is opened there later id 2; a file is
THERE or not. One object is in a file, or is put there; it has one live byte and may be deleted at any time.
The labels behind steps are the kernel's failpoints, which come next; what is no atomic there is relaxed here.
Invariants: as in `holds`, `lock` is `mp_lock` with the rebuild behind a dead owner.
Not here: records that move, and holes (`holds`); several directories, files that the system will not remove.
"""

from __future__ import annotations

from typing import Final

from explorer.machine import Scenario
from explorer.program import Order, Program, Registers
from explorer.protocols import ABANDONED, DELETED, DRAFT, NONE, SPILLED, Changes

FREE, OPEN, CLOSED, DEAD = range(4)
THERE: Final = 1
WRITER: Final = 0
"""The number of the thread that opens segments."""


# --- pieces, mutex held ---


def lock(p: Program, changes: Changes = NONE) -> None:
    """`mp_lock`; `mp_rebuild` behind a dead owner: what the record and the place say is true, all else is a
    cache."""
    p.lock()
    at = f"sound {len(p.steps)}"
    p.jump(at, lambda r: not r["inherited"])
    p.store("listed", 0, Order.RELAXED)
    p.load("place", "place")
    if "live bytes of the dead are not counted anew" not in changes:
        p.store("live", lambda r: r["place"], Order.RELAXED)
    p.load("state", "state")
    p.store("listed", lambda r: int(r["state"] == FREE), Order.RELAXED)
    p.load("live", "live", Order.RELAXED)
    p.jump(f"{at} counted", lambda r: r["state"] != CLOSED or r["live"] != 0)
    p.store("state", DEAD)
    p.let("state", DEAD)
    p.label(f"{at} counted")
    p.store("dead", lambda r: int(r["state"] == DEAD))
    if "what a dead owner had killed is not buried" not in changes:
        bury(p, changes)
    p.label(at)


def die_if_empty(p: Program) -> None:
    end = f"lives {len(p.steps)}"
    p.load("live", "live", Order.RELAXED)
    p.load("state", "state")
    p.jump(end, lambda r: r["live"] != 0 or r["state"] != CLOSED)
    p.store("state", DEAD)
    p.update("dead", lambda old, r: old + 1)
    p.label(end)


def vacate(p: Program, changes: Changes) -> None:
    """`mp_segment_vacate`."""
    p.load("live", "live", Order.RELAXED)
    p.store("live", lambda r: max(0, r["live"] - 1), Order.RELAXED)
    if "the last place leaves its segment CLOSED" not in changes:
        die_if_empty(p)


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
    vacate(p, changes)
    p.label(end)


def retire(p: Program, changes: Changes) -> None:
    """`mp_segment_retire`, of a segment that is OPEN."""
    p.store("state", CLOSED)  # segment.closed
    if "a close leaves an empty segment CLOSED" not in changes:
        die_if_empty(p)


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
    """`mp_segment_open`, and the file. A record that is in use is left alone: the kernel takes another one,
    the program is at its end."""
    lock(p, changes)
    p.load("listed", "listed", Order.RELAXED)
    p.jump("free", lambda r: r["listed"] != 0)
    p.unlock()
    p.jump("end")
    p.label("free")
    p.store("listed", 0, Order.RELAXED)
    p.load("id", "next_id", Order.RELAXED)
    if "an id is used again" in changes:
        p.let("id", 1)
    p.store("next_id", lambda r: r["id"] + 1, Order.RELAXED)
    p.store("id", lambda r: r["id"], Order.RELAXED)
    p.store("live", 0, Order.RELAXED)  # segment.filled
    p.store("state", OPEN)
    p.unlock()  # segment.open
    p.update(lambda r: f"file{r['id']}", lambda old, r: THERE)


def _settle(p: Program, changes: Changes) -> None:
    """`mp_settle`: the file has the record whole."""
    lock(p, changes)
    p.load("control", "control")
    p.jump("settled", lambda r: r["control"] != DRAFT)
    p.load("state", "state")
    p.require(lambda r: r["state"] == OPEN, "its segment takes no place")  # mp_segment_mine
    if "a place is recorded before the live bytes, in two holds" in changes:
        p.store("place", 1)
        p.store("control", SPILLED)
        p.unlock()
        lock(p, changes)
        _count(p)
    else:
        p.store("place", 1)  # place.set
        _count(p)
        p.store("control", SPILLED)
    p.label("settled")
    p.unlock()


def _count(p: Program) -> None:
    p.load("live", "live", Order.RELAXED)
    p.store("live", lambda r: r["live"] + 1, Order.RELAXED)


def _end(p: Program, changes: Changes) -> None:
    """`mp_segment_end` of a segment of one's own."""
    lock(p, changes)
    retire(p, changes)
    p.unlock()


def read(changes: Changes = NONE) -> Program:
    """`mp_place_read`, the file's name from `mp_segment_read`, the file; `mp_unpin`."""
    p = Program("read")
    p.update("pins", lambda old, r: 1)
    lock(p, changes)
    p.load("control", "control")
    p.unlock()
    p.jump("unpin", lambda r: r["control"] != SPILLED)
    lock(p, changes)
    p.load("id", "id", Order.RELAXED)
    p.unlock()
    p.load("file", lambda r: f"file{r['id']}")
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
    p.load("id", "id", Order.RELAXED)
    p.load("file", lambda r: f"file{r['id']}")
    p.require(lambda r: r["file"] == THERE, "the file of a live object is gone")
    p.label("draft")
    p.store("control", DELETED)
    bury(p, changes)
    p.unlock()
    return p


def sweep(number: int, changes: Changes = NONE, mortal: bool = False) -> Program:
    """`sweep_dead`: `mp_segment_dead`, the unlink, `mp_segment_forget`."""
    p = Program(f"sweep {number}", mortal)
    p.load("dead", "dead")
    p.jump("end", lambda r: r["dead"] == 0)
    p.load("state", "state")
    p.jump("end", lambda r: r["state"] != DEAD)
    lock(p, changes)  # segment.seen, mp_segment_read
    p.load("state", "state")
    p.load("id", "id", Order.RELAXED)
    p.unlock()
    if "a segment that was dead a moment ago is swept" in changes:
        p.jump("end", lambda r: r["state"] == FREE)
    else:
        p.jump("end", lambda r: r["state"] != DEAD)
    forgets_first = "a sweep forgets before it unlinks" in changes
    if forgets_first:
        _forget(p, changes)
    p.update(lambda r: f"file{r['id']}", lambda old, r: 0)
    if not forgets_first:
        _forget(p, changes)
    p.label("end")
    return p


def _forget(p: Program, changes: Changes) -> None:
    lock(p, changes)
    p.load("state", "state")
    p.load("now", "id", Order.RELAXED)
    if "a sweep forgets whatever is DEAD" in changes:
        p.let("now", lambda r: r["id"])
    p.jump("other", lambda r: r["now"] != r["id"] or r["state"] != DEAD)
    p.store("state", FREE)  # segment.forgotten
    p.update("dead", lambda old, r: old - 1)
    p.store("listed", 1, Order.RELAXED)
    p.label("other")
    p.unlock()


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
    p.load("state", "state")
    p.jump("end", lambda r: r["state"] != OPEN or "reaping leaves segments" in changes)
    lock(p, changes)
    p.load("state", "state")
    p.jump("not open", lambda r: r["state"] != OPEN)
    retire(p, changes)
    p.label("not open")
    p.unlock()
    p.label("end")
    return p


# --- what must never come of it ---


def _files(memory: dict[str, int], registers: list[Registers]) -> str | None:
    """A file is there for an object, or for the next one to sweep, which looks at what is DEAD."""
    if memory["mutex"]:
        return None  # of the dead: the next owner counts anew
    state, alive = memory["state"], memory["control"] == SPILLED
    if alive and not (memory["place"] and memory[f"file{memory['id']}"] == THERE):
        return "the file of a live object is gone"
    for number in (1, 2):
        kept = number == memory["id"] and (state == DEAD or alive)
        if memory[f"file{number}"] == THERE and not kept:
            return "a dead file stays for ever"
    if not alive and state not in (FREE, DEAD):
        return "a segment without an object stays for ever"
    if memory["dead"] != (state == DEAD) or memory["listed"] != (state == FREE):
        return "the record is counted wrongly"
    return None if state == FREE or memory["live"] == memory["place"] else "live bytes are counted wrongly"


def _memory(**more: int) -> dict[str, int]:
    names = ("state", "live", "dead", "listed", "place", "pins", "file1", "file2")
    return dict.fromkeys(names, 0) | {"id": 1, "next_id": 2, "control": DRAFT} | more


def _dead_file() -> dict[str, int]:
    return _memory(state=DEAD, dead=1, file1=THERE)


def _object_in_a_file() -> dict[str, int]:
    return _memory(state=CLOSED, live=1, place=1, file1=THERE, control=SPILLED)


def two_sweeps_of_a_record(changes: Changes = NONE) -> Scenario:
    """Two members sweep a dead file, whose record becomes that of a new one; its object is deleted too."""
    programs = [write_through(changes), delete(changes), sweep(1, changes), sweep(2, changes)]
    return Scenario("two sweeps of a record", programs, _dead_file(), _files)


def sweep_that_is_killed(changes: Changes = NONE) -> Scenario:
    """One of them dies anywhere; the object in the new file lives."""
    programs = [write_through(changes), sweep(1, changes, mortal=True), sweep(2, changes)]
    return Scenario("a sweep that is killed", programs, _dead_file(), _files)


def delete_that_is_killed(changes: Changes = NONE) -> Scenario:
    """Whoever deletes the last object of a file dies anywhere."""
    programs = [open_segment(changes), delete(changes, mortal=True), sweep(1, changes)]
    return Scenario("a delete that is killed", programs, _object_in_a_file(), _files)


def writer_that_is_killed(changes: Changes = NONE) -> Scenario:
    """A put through to disk dies anywhere and is reaped, while its object is deleted and somebody sweeps."""
    programs = [write_through(changes, mortal=True), delete(changes), reap(changes), sweep(1, changes)]
    return Scenario("a writer that is killed", programs, _memory(listed=1), _files)


def read_beside_a_sweep(changes: Changes = NONE) -> Scenario:
    """An object is read from its file while it is deleted and its segment dies, is swept and used again."""
    programs = [read(changes), delete(changes), sweep(1, changes), open_segment(changes)]
    return Scenario("a read beside a sweep", programs, _object_in_a_file(), _files)
