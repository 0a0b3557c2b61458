"""The protocols with one ordering, look or step taken away. A model that does not catch them proves nothing.

x86 hides what only weakens a load or a seq_cst store behind a read-modify-write, so a mutant says which of
the memory models must find it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from explorer import holds, moving, names, orphans, pins, rewrites, scenarios, segments, slots, waits
from explorer.machine import Machine, StoreBuffers, Views
from explorer.scenarios import Build

BOTH: Final = (StoreBuffers, Views)
C11: Final = (Views,)


class Mutant(NamedTuple):
    """What is changed, where it must show, and under which memory."""

    change: str
    scenario: Build
    machines: tuple[type[Machine], ...]


MUTANTS: Final = (
    Mutant("get reads the offset first", scenarios.gets_against_move, BOTH),
    Mutant("get pins relaxed", scenarios.gets_against_evict, C11),
    Mutant("get looks relaxed", scenarios.gets_against_evict, C11),
    Mutant("evict stores relaxed", scenarios.gets_against_evict, BOTH),
    Mutant("evict looks relaxed", scenarios.gets_against_evict, C11),
    Mutant("evict reads the pins first", scenarios.gets_against_evict, BOTH),
    Mutant("move stores relaxed", scenarios.gets_against_move, BOTH),
    Mutant("move publishes relaxed", scenarios.gets_against_move, C11),
    Mutant("move publishes before it copies", scenarios.gets_against_move, BOTH),
    Mutant("move ignores pins", scenarios.gets_against_move, BOTH),
    Mutant("unpin clears relaxed", scenarios.gets_against_delete, C11),
    Mutant("unpin looks relaxed", scenarios.gets_against_delete, C11),
    Mutant("unpin looks for no death", scenarios.gets_against_delete, BOTH),
    Mutant("a failed get only clears its bit", scenarios.gets_against_delete, BOTH),
    Mutant("delete stores relaxed", scenarios.gets_against_delete, C11),
    Mutant("delete ignores pins", scenarios.gets_against_delete, BOTH),
    Mutant("seal before the last byte", scenarios.seal_against_get_and_delete, BOTH),
    Mutant("seal relaxed", scenarios.seal_against_get_and_delete, C11),
    Mutant("a draft is not pinned", scenarios.seal_against_get_and_delete, BOTH),
    Mutant("a pin is counted before its bit is set", pins.threads_against_evict, BOTH),
    Mutant("a pin is stored over another", pins.threads_against_evict, BOTH),
    Mutant("a bit is cleared before the count", pins.threads_against_evict, BOTH),
    Mutant("a bit is cleared when pins_mutex is free again", pins.threads_against_delete, BOTH),
    Mutant("hold counts without looking", scenarios.hold_against_drops, BOTH),
    Mutant("drop clears the bit before the count", scenarios.hold_against_drops, BOTH),
    Mutant("what is put off is counted off", scenarios.hold_against_drops, BOTH),
    Mutant("drop before the hand-off", scenarios.hand_off_from_the_last_holder, BOTH),
    Mutant("collect counts no hand-off", scenarios.hand_off_that_must_arrive, BOTH),
    Mutant("consume before hold", scenarios.hand_off_that_must_arrive, BOTH),
    Mutant("no rebuild after a dead owner", scenarios.hand_off_to_a_victim, BOTH),
    Mutant("reaping tests only what it held", scenarios.get_by_a_victim, BOTH),
    Mutant("restored before it is read", scenarios.restores, BOTH),
    Mutant("restored relaxed", scenarios.restores, C11),
    Mutant("leave wakes nobody", scenarios.restores, BOTH),
    Mutant("the event is read late", scenarios.restores, BOTH),
    Mutant("a death wakes nobody", scenarios.restores_against_delete, BOTH),
    Mutant("the owner is set last", scenarios.restores_and_a_victim, BOTH),
    Mutant("a move ignores pins", holds.disk_copy_that_moves, BOTH),
    Mutant("a move is not decided", holds.disk_copy_that_moves, BOTH),
    Mutant("a move decides first", holds.disk_copy_that_moves, BOTH),
    Mutant("a place is read without a pin", holds.disk_copy_that_moves, BOTH),
    Mutant("a repair strikes a move out before it makes it", holds.disk_copy_that_moves, BOTH),
    Mutant("nothing is put by", holds.large_put_beside_small_ones, BOTH),
    Mutant("a put ignores what is put by", holds.large_put_beside_small_ones, BOTH),
    Mutant("freeing wakes nobody", holds.large_put_beside_small_ones, BOTH),
    Mutant("the event is read behind the look", holds.large_put_beside_small_ones, BOTH),
    Mutant("what is committed is not borrowed", holds.growth_beside_a_put, BOTH),
    Mutant("what was borrowed is not returned", holds.growth_of_all_that_is_left, BOTH),
    Mutant("the dead stay in the queue", holds.first_that_is_killed, BOTH),
    Mutant("a sweep forgets whatever is DEAD", segments.two_sweeps_of_a_record, BOTH),
    Mutant("a place is recorded before the live bytes, in two holds", segments.two_sweeps_of_a_record, BOTH),
    Mutant("a segment is closed before its place is recorded", segments.two_sweeps_of_a_record, BOTH),
    Mutant("a segment that was dead a moment ago is swept", segments.sweep_that_is_killed, BOTH),
    Mutant("a sweep forgets before it unlinks", segments.sweep_that_is_killed, BOTH),
    Mutant("an id is used again", segments.sweep_that_is_killed, BOTH),
    Mutant("live bytes of the dead are not counted anew", segments.delete_that_is_killed, BOTH),
    Mutant("what a dead owner had killed is not buried", segments.delete_that_is_killed, BOTH),
    Mutant("reaping leaves segments", segments.writer_that_is_killed, BOTH),
    Mutant("a close leaves an empty segment CLOSED", segments.read_beside_a_sweep, BOTH),
    Mutant("the last place leaves its segment CLOSED", segments.read_beside_a_sweep, BOTH),
    Mutant("a place goes in spite of pins", segments.read_beside_a_sweep, BOTH),
    Mutant("a record is moved in spite of pins", rewrites.rewrite_beside_a_restore, BOTH),
    Mutant("a place moves before its copy is written", rewrites.rewriter_that_is_killed, BOTH),
    Mutant("no move is finished for the dead", rewrites.rewriter_that_is_killed, BOTH),
    Mutant("a repair counts onto what is there", rewrites.rewriter_and_janitor_that_are_killed, BOTH),
    Mutant("a move leaves the old live bytes", rewrites.rewrite_beside_a_delete, BOTH),
    Mutant("what another has moved is moved", rewrites.two_rewrites_of_a_record, BOTH),
    Mutant("whoever has the slot now passes for its owner", rewrites.rewriter_taken_for_dead, BOTH),
    Mutant("a slot is claimed unseen", slots.fork_beside_a_claim, BOTH),
    Mutant("the birth lock goes before the byte lock is there", slots.fork_beside_a_claim, BOTH),
    Mutant("a child without a lock has no mark", slots.fork_without_a_lock, BOTH),
    Mutant("the pid comes before the word", slots.fork_without_a_lock, BOTH),
    Mutant("who claims takes what is unseen for dead", slots.fork_without_a_lock, BOTH),
    Mutant("who claims does not compare the generation", slots.fork_without_a_lock, BOTH),
    Mutant("who reaps takes what is unseen for dead", slots.fork_without_a_lock, BOTH),
    Mutant("what is reaped is not compared with the word", slots.fork_without_a_lock, BOTH),
    Mutant("a slot that is being reaped is left to its reaper", slots.reapers_that_are_killed, BOTH),
    Mutant("an orphan locks behind its word", orphans.orphans_beside_a_reaper, BOTH),
    Mutant("an orphan comes where somebody reaps", orphans.orphans_beside_a_reaper, BOTH),
    Mutant("a try that failed leaves its lock", orphans.orphans_beside_a_reaper, BOTH),
    Mutant("an orphan comes in the generation that is there", orphans.orphans_beside_a_reaper, BOTH),
    Mutant("an orphan does not compare the word", orphans.orphans_beside_a_reaper, BOTH),
    Mutant("an orphan with a lock stands for one without", orphans.orphan_without_a_lock, BOTH),
    Mutant("an orphan without a lock leaves no mark", orphans.orphan_without_a_lock, BOTH),
    Mutant(
        "what is reaped of orphans is not compared with the word",
        orphans.reaper_of_orphans_that_is_killed,
        BOTH,
    ),
    Mutant("both slots of orphans are reaped at once", orphans.reaper_of_orphans_that_is_killed, BOTH),
    Mutant("a rebuild leaves the counts of names", names.name_that_is_replaced, BOTH),
    Mutant("who has lost its name is not tested", names.name_that_is_removed, BOTH),
    Mutant("a lookup holds whatever has the entry now", names.name_that_is_removed, BOTH),
    Mutant("a lookup asks once", names.name_that_is_replaced, BOTH),
    Mutant("what is garbage gets a name", names.name_by_one_taken_for_dead, BOTH),
    Mutant("a mover trusts the span of an object that is gone", moving.mover_beside_a_death, BOTH),
    Mutant("whatever has the entry now is moved", moving.mover_beside_a_rebirth, BOTH),
    Mutant("a mover trusts the offset that it planned with", moving.mover_beside_an_eviction, BOTH),
    Mutant("a nest that somebody has taken is taken", moving.mover_that_is_killed, BOTH),
    Mutant("a move is true before it is made", moving.mover_that_is_killed, BOTH),
    Mutant("a rebuild leaves what was being moved EVICTING", moving.mover_that_is_killed, BOTH),
    Mutant("who waits counts itself relaxed", waits.waits_for_an_event, C11),
    Mutant("who waits looks before it counts itself", waits.waits_for_an_event, C11),
    Mutant("who wakes bumps relaxed", waits.waits_for_an_event, C11),
    Mutant("who wakes looks relaxed", waits.waits_for_an_event, C11),
    Mutant("who wakes looks before it bumps", waits.waits_for_an_event, BOTH),
)
