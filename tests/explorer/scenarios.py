"""Which operations run against each other, and what must never come of it.

Invariants: every scenario is small enough to be explored whole; it ends with nothing leaked, nothing freed
twice, nobody waiting for ever, besides what its operations require on their way.
Not here: the operations (`protocols`), how they are run (`machine`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from explorer.holds import (
    disk_copy_that_moves,
    first_that_is_killed,
    growth_beside_a_put,
    growth_of_all_that_is_left,
    large_put_beside_small_ones,
)
from explorer.machine import Scenario
from explorer.moving import (
    mover_beside_a_death,
    mover_beside_a_rebirth,
    mover_beside_an_eviction,
    mover_that_is_killed,
)
from explorer.names import name_by_one_taken_for_dead, name_that_is_removed, name_that_is_replaced
from explorer.orphans import (
    orphan_without_a_lock,
    orphans_beside_a_reaper,
    reaper_of_orphans_that_is_killed,
)
from explorer.pins import threads_against_delete, threads_against_evict
from explorer.program import Program, Registers
from explorer.protocols import (
    DEAD_STATES,
    DRAFT,
    FREE,
    FREED,
    NONE,
    RESIDENT,
    SPILLED,
    STATE,
    VALUE,
    Changes,
    delete,
    drop,
    drop_bit,
    drop_later,
    evict,
    expire,
    get,
    hold,
    issue_and_drop,
    load_token,
    move,
    reap,
    reap_reader,
    reap_restorer,
    restore,
    seal,
)
from explorer.rewrites import (
    rewrite_beside_a_delete,
    rewrite_beside_a_restore,
    rewriter_and_janitor_that_are_killed,
    rewriter_taken_for_dead,
    rewriter_that_is_killed,
    two_rewrites_of_a_record,
)
from explorer.segments import (
    delete_that_is_killed,
    read_beside_a_sweep,
    sweep_that_is_killed,
    two_sweeps_of_a_record,
    writer_that_is_killed,
)
from explorer.slots import fork_beside_a_claim, fork_without_a_lock, reapers_that_are_killed
from explorer.waits import waits_for_an_event

Build = Callable[[Changes], Scenario]


def _whole(memory: dict[str, int], registers: list[Registers]) -> str | None:
    if memory["mutex"]:
        return "the mutex is never released"
    if memory["control"] & STATE in DEAD_STATES and memory["pins"] == 0:
        return "dead and not pinned, but never freed"
    return "freed twice" if memory["freed"] > 1 else None


def _resident(**more: int) -> dict[str, int]:
    return {
        "control": RESIDENT,
        "pins": 0,
        "offset": 0,
        "byte0": VALUE,
        "byte1": FREED,
        "freed": 0,
        "event": 0,
        **more,
    }


def gets_against_evict(changes: Changes = NONE) -> Scenario:
    return Scenario(
        "two gets against evict", [get(0, changes), get(1, changes), evict(changes)], _resident(), _whole
    )


def gets_against_move(changes: Changes = NONE) -> Scenario:
    return Scenario(
        "two gets against move", [get(0, changes), get(1, changes), move(changes)], _resident(), _whole
    )


def get_against_move_and_evict(changes: Changes = NONE) -> Scenario:
    return Scenario(
        "get against move and evict", [get(0, changes), move(changes), evict(changes)], _resident(), _whole
    )


def gets_against_delete(changes: Changes = NONE) -> Scenario:
    return Scenario(
        "two gets against delete", [get(0, changes), get(1, changes), delete(changes)], _resident(), _whole
    )


def get_against_move_and_delete(changes: Changes = NONE) -> Scenario:
    return Scenario(
        "get against move and delete", [get(0, changes), move(changes), delete(changes)], _resident(), _whole
    )


def get_by_a_victim(changes: Changes = NONE) -> Scenario:
    """The reader is killed anywhere: with its pin set, or cleared and nobody looked at since."""

    def at_end(memory: dict[str, int], registers: list[Registers]) -> str | None:
        unburied = memory["control"] in DEAD_STATES and memory["pins"] == 0
        return "dead and not pinned, but never freed" if unburied and not memory["mutex"] else None

    programs = [get(0, changes, mortal=True), delete(changes), reap_reader(0, 1, changes)]
    return Scenario("get by a victim", programs, _resident(), at_end)


def seal_against_get_and_delete(changes: Changes = NONE) -> Scenario:
    memory = {
        **_resident(),
        "control": DRAFT,
        "byte0": FREED,
        "pins": 0 if "a draft is not pinned" in changes else 1,
    }
    programs = [seal(changes), get(1, changes), delete(changes)]
    return Scenario("seal against get and delete", programs, memory, _whole)


def hold_against_drops(changes: Changes = NONE) -> Scenario:
    """Threads of one process, with two refs that go, one of them later; a third comes, or is too late."""

    def at_end(memory: dict[str, int], registers: list[Registers]) -> str | None:
        if memory["refs"] or memory["holders"]:
            return "held by nobody, but counted"
        return None if memory["control"] == FREE else "nobody holds it, and it is not freed"

    memory = {"control": RESIDENT, "refs": 2, "holders": 1, "tokens": 0, "deferred": 0}
    programs = [hold(changes), drop(1, changes), drop_later(changes)]
    return Scenario("a hold against two drops", programs, memory, at_end)


def hand_off(changes: Changes = NONE) -> Scenario:
    def at_end(memory: dict[str, int], registers: list[Registers]) -> str | None:
        if registers[1].get("holds") and memory["control"] != RESIDENT:
            return "freed although the receiver holds it"
        if not registers[1].get("holds") and memory["control"] != FREE:
            return "nobody holds it, and it is not freed"
        return None

    memory = {"control": RESIDENT, "holders": 1, "tokens": 0, "nonce": 0}
    return Scenario(
        "hand-off against expiry", [issue_and_drop(changes), load_token(changes), expire()], memory, at_end
    )


def hand_off_that_must_arrive(changes: Changes = NONE) -> Scenario:
    """The receiver starts when the hand-off was issued, and nothing lapses."""

    def at_end(memory: dict[str, int], registers: list[Registers]) -> str | None:
        if not registers[1].get("holds") or memory["control"] != RESIDENT:
            return "the object was gone before its receiver had it"
        return None

    memory = {"control": RESIDENT, "holders": 1, "tokens": 1, "nonce": 1}
    sender = Program("sender")
    drop_bit(sender, changes)
    return Scenario("hand-off that must arrive", [sender, load_token(changes)], memory, at_end)


def hand_off_from_the_last_holder(changes: Changes = NONE) -> Scenario:
    """A pickle of the only ref there is: the object lives on until it lapses."""

    def at_end(memory: dict[str, int], registers: list[Registers]) -> str | None:
        return None if memory["control"] == RESIDENT and memory["nonce"] else "the hand-off came too late"

    memory = {"control": RESIDENT, "holders": 1, "tokens": 0, "nonce": 0}
    return Scenario("hand-off from the last holder", [issue_and_drop(changes)], memory, at_end)


def hand_off_to_a_victim(changes: Changes = NONE) -> Scenario:
    """The receiver is killed anywhere, and reaped; the hand-off lapses at any time."""

    def at_end(memory: dict[str, int], registers: list[Registers]) -> str | None:
        reaped = "inherited" in registers[2]
        if reaped and memory["control"] != FREE:
            return "held by nobody but the dead, and not freed"
        return "the mutex is never released" if memory["mutex"] and reaped else None

    memory = {"control": RESIDENT, "holders": 0, "tokens": 1, "nonce": 1}
    programs = [
        Program("nobody"),
        load_token(changes, mortal=True),
        reap(1, changes=changes),
        expire(changes),
    ]
    return Scenario("hand-off to a victim", programs, memory, at_end)


def hand_off_by_a_victim(changes: Changes = NONE) -> Scenario:
    """The sender is killed anywhere, and reaped; what it has sent by then is received, or lapses."""

    def at_end(memory: dict[str, int], registers: list[Registers]) -> str | None:
        if memory["mutex"]:
            return None  # of the dead, and nobody came
        if memory["tokens"] != memory["nonce"]:
            return "hand-offs are counted wrongly"
        kept = registers[1].get("holds") or memory["nonce"] or memory["holders"]
        if kept and memory["control"] != RESIDENT:
            return "freed although it is held, or under way"
        return "nobody holds it, and it is not freed" if not kept and memory["control"] != FREE else None

    memory = {"control": RESIDENT, "holders": 1, "tokens": 0, "nonce": 0}
    programs = [
        issue_and_drop(changes, mortal=True),
        load_token(changes),
        expire(changes),
        reap(0, bit=1, changes=changes),
    ]
    return Scenario("hand-off by a victim", programs, memory, at_end)


def drop_by_a_victim(changes: Changes = NONE) -> Scenario:
    """The last holder is killed while it drops its ref: between the bit and the end of the object, too."""

    def at_end(memory: dict[str, int], registers: list[Registers]) -> str | None:
        return None if memory["control"] == FREE else "held by nobody, and not freed"

    victim = Program("drop", mortal=True)
    drop_bit(victim, changes, bit=2)
    memory = {"control": RESIDENT, "holders": 2, "tokens": 0, "nonce": 0}
    return Scenario("drop by a victim", [victim, reap(0, changes=changes)], memory, at_end)


def _spilled() -> dict[str, int]:
    return {"control": SPILLED, "owner": 9, "byte0": FREED, "event": 0, "pins": 0, "offset": 0, "freed": 0}


def restores(changes: Changes = NONE) -> Scenario:
    programs = [restore(0, changes), restore(1, changes), restore(2, changes)]
    return Scenario("three restores of one object", programs, _spilled(), lambda memory, registers: None)


def restores_and_a_victim(changes: Changes = NONE) -> Scenario:
    def at_end(memory: dict[str, int], registers: list[Registers]) -> str | None:
        return None if memory["control"] & STATE == RESIDENT else "not restored in the end"

    programs = [restore(0, changes, mortal=True), restore(1, changes), reap_restorer(0, changes)]
    return Scenario("a restorer that is killed", programs, _spilled(), at_end)


def restores_against_delete(changes: Changes = NONE) -> Scenario:
    """Who restores finds its object deleted, and so does who waits for it."""
    programs = [restore(0, changes), restore(1, changes), delete(changes)]
    return Scenario("two restores against delete", programs, _spilled(), _whole)


SCENARIOS: Final[tuple[Build, ...]] = (
    gets_against_evict,
    gets_against_move,
    get_against_move_and_evict,
    gets_against_delete,
    get_against_move_and_delete,
    get_by_a_victim,
    seal_against_get_and_delete,
    threads_against_evict,
    threads_against_delete,
    hold_against_drops,
    hand_off,
    hand_off_that_must_arrive,
    hand_off_from_the_last_holder,
    hand_off_to_a_victim,
    hand_off_by_a_victim,
    drop_by_a_victim,
    restores,
    restores_and_a_victim,
    restores_against_delete,
    disk_copy_that_moves,
    large_put_beside_small_ones,
    growth_beside_a_put,
    growth_of_all_that_is_left,
    first_that_is_killed,
    two_sweeps_of_a_record,
    sweep_that_is_killed,
    delete_that_is_killed,
    writer_that_is_killed,
    read_beside_a_sweep,
    rewrite_beside_a_restore,
    rewrite_beside_a_delete,
    rewriter_that_is_killed,
    rewriter_and_janitor_that_are_killed,
    two_rewrites_of_a_record,
    rewriter_taken_for_dead,
    fork_beside_a_claim,
    fork_without_a_lock,
    reapers_that_are_killed,
    orphans_beside_a_reaper,
    orphan_without_a_lock,
    reaper_of_orphans_that_is_killed,
    name_that_is_replaced,
    name_that_is_removed,
    name_by_one_taken_for_dead,
    mover_beside_a_death,
    mover_beside_a_rebirth,
    mover_beside_an_eviction,
    mover_that_is_killed,
    waits_for_an_event,
)
