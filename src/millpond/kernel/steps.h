/* Every step that changes what members share, by letter: what is left when its member dies there.
 *
 * A row is a failpoint: the place just behind the change. `held`: the dying member has the mutex, so
 * the next one to lock it (EOWNERDEAD) rebuilds every cache and goes on from the truths named here. `free`:
 * nobody notices until the slot is reaped, once its byte lock is free. Either way the row says what
 * is true at that moment, and who makes it good. `either`: it depends on who comes by.
 * Not here: the same for people (docs/internals/recovery.md has this table, and a test compares them). No
 * code of the kernel uses it; the kill tests walk over all rows.
 */
#ifndef MILLPOND_STEPS_H
#define MILLPOND_STEPS_H

/* STEP(letter, failpoint, mutex, what is left, what makes it good) */
#define MP_STEPS(STEP) \
    STEP("A1", "arena.carve.unbinned", held, "a free run in no bin", "rebuild: runs are what entries do not cover") \
    STEP("A2", "arena.carve.cut", held, "a run cut, its rest not listed", "rebuild") \
    STEP("A3", "arena.take.stamped", held, "a run that no entry owns", "rebuild: it is free") \
    STEP("A4", "arena.release.merged", held, "a run merged with its lower neighbour only", "rebuild") \
    STEP("A5", "arena.release.unbinned", held, "a free run in no bin", "rebuild") \
    STEP("A6", "arena.slab.carved", held, "a block cut for a slab, not listed", "rebuild: a block without objects is free") \
    STEP("A7", "arena.slot.taken", held, "a slot in use that no entry owns", "rebuild: it is free") \
    STEP("A8", "arena.slot.given", held, "a slot free, its slab's count not", "rebuild") \
    STEP("A9", "arena.slab.emptied", held, "an empty slab that is still a run of its own", "rebuild: the block is free") \
    STEP("A10", "arena.rebuild.forgotten", held, "half of the spans forgotten", "the next owner rebuilds from the start") \
    STEP("A11", "arena.rebuild.adopted", held, "half of the entries' extents found again", "the next owner rebuilds from the start") \
    STEP("B1", "draft.filled", held, "fields of a FREE entry", "rebuild: FREE is free, its extent with it") \
    STEP("B2", "draft.held", held, "a holder bit on a FREE entry", "rebuild clears it") \
    STEP("B3", "draft.born", held, "a DRAFT of the dead", "reaping: ABANDONED, then buried; refs to it learn why") \
    STEP("B4", "seal.before", free, "a whole value in a DRAFT", "reaping: ABANDONED; nobody was promised it") \
    STEP("B5", "leave.control", either, "the new state, and waiters not woken", "they look again after a slice of 50 ms") \
    STEP("C1", "clean.claimed", free, "a pin bit of the dead", "reaping clears it; the object is as before") \
    STEP("C2", "place.filled", held, "a disk place without its segment", "segment 0 means none: the record is dead space") \
    STEP("C3", "place.set", held, "a disk place, its segment's live bytes not counted", "rebuild counts them from the places") \
    STEP("C4", "evict.evicting", held, "EVICTING, the extent whole", "rebuild: RESIDENT again") \
    STEP("C5", "evict.spilled", held, "SPILLED, its extent not given back", "rebuild: a spilled entry has no extent") \
    STEP("D1", "kill.chosen", held, "an object that was to die and lives", "whoever wanted it dead is dead; holders keep it, or reaping finds it unreachable") \
    STEP("D2", "collect.garbage", held, "GARBAGE, not taken apart", "rebuild buries what is dead") \
    STEP("D3", "bury.extent", held, "dead, no extent, memory not free yet", "rebuild: memory of no entry is free") \
    STEP("D4", "bury.place", held, "dead, without memory and disk place", "rebuild buries it to the end") \
    STEP("D5", "bury.free", held, "FREE, not on the free list", "rebuild lists it") \
    STEP("D6", "place.freed", held, "no disk place, its segment's live bytes too high", "rebuild counts them") \
    STEP("E1", "edge.filled", held, "an edge outside every chain", "rebuild: not reachable from a container is free") \
    STEP("E2", "edge.linked", held, "an edge that its target does not count", "rebuild counts from the chains") \
    STEP("E3", "edge.cut", held, "an edge out of its chain, still counted and not free", "rebuild frees and counts") \
    STEP("E4", "edge.last", held, "a dead container without edges, off the list", "rebuild buries it") \
    STEP("F1", "fork.locked", held, "a birth lock on a FREE slot", "it goes with the last copy of its descriptor") \
    STEP("F2", "fork.reserved", free, "a RESERVED slot, without a process", "reaped once its birth lock is gone") \
    STEP("F3", "fork.copied", free, "the child's bits, and no child", "reaped with the reserved slot") \
    STEP("F4", "fork.child", free, "a child under the birth lock only", "reaped like a member when that lock is gone") \
    STEP("F5", "fork.adopted", free, "a LIVE slot with both locks", "reaped like any member") \
    STEP("G1", "arena.grow.put_by", held, "a span put by for blocks that are NONE", "rebuild: spans are made anew") \
    STEP("G2", "arena.mark.first", held, "one block of a run marked", "blocks in COMMITTING and PUNCHING are nobody's; reaping punches them") \
    STEP("G3", "arena.grow.marked", held, "COMMITTING blocks not counted", "rebuild counts; reaping punches them") \
    STEP("G4", "grow.planned", free, "COMMITTING blocks, no memory behind them", "reaping punches them: NONE") \
    STEP("G5", "grow.committed", free, "COMMITTING blocks with memory", "reaping punches them: NONE") \
    STEP("G6", "arena.grown.marked", held, "COMMITTED blocks in no span; PUNCHING ones if the growth failed", "rebuild: they are free; reaping punches them") \
    STEP("G7", "arena.grown.linked", held, "a free run in no bin", "rebuild") \
    STEP("G8", "arena.punch.carved", held, "blocks out of the free runs, still COMMITTED", "rebuild: they are free") \
    STEP("G9", "shrink.planned", free, "PUNCHING blocks with memory", "reaping punches them: NONE") \
    STEP("G10", "shrink.punched", free, "PUNCHING blocks without memory", "reaping punches them once more: NONE") \
    STEP("G11", "arena.punched.marked", held, "NONE blocks that are still counted", "rebuild counts") \
    STEP("G12", "arena.reclaim.given", held, "the span of a dead member's run given back, its blocks not taken over", "rebuild; the next reaper takes them") \
    STEP("H1", "hold.bit", held, "a holder bit without a ref", "reaping clears it") \
    STEP("H2", "drop.bit", held, "no holder bit, the object not tested", "rebuild and reaping test every entry: garbage goes") \
    STEP("K1", "pin.bit", free, "a pin bit, its private count zero", "reaping clears it") \
    STEP("K2", "unpin.count", free, "a pin bit, its private count zero", "reaping clears it, and buries what is dead") \
    STEP("K3", "unpin.bit", free, "a dead object without pins that nobody has looked at", "reaping tests every entry for that") \
    STEP("K4", "unpin.dead", free, "the same, seen but not buried", "reaping tests every entry for that") \
    STEP("L1", "lock.taken", held, "a table that is sound", "rebuild, for nothing") \
    STEP("L2", "lock.repair", held, "whatever the owner before has left", "the next owner rebuilds from the start") \
    STEP("L3", "lock.unlock", held, "a table that is sound, after the change", "rebuild, for nothing") \
    STEP("L4", "rebuild.entries", held, "entries settled, counts at zero", "the next owner rebuilds from the start") \
    STEP("L5", "rebuild.edges", held, "hand-offs, names and edges counted", "the next owner rebuilds from the start") \
    STEP("L6", "rebuild.segments", held, "segments counted", "the next owner rebuilds from the start") \
    STEP("L7", "rebuild.arena", held, "everything counted, garbage not freed", "the next owner rebuilds from the start") \
    STEP("M1", "move.evicting", held, "EVICTING at the old place", "rebuild: RESIDENT there; the new place is free") \
    STEP("M2", "move.copied", held, "EVICTING at the old place, whole at both", "rebuild: RESIDENT there; the new place is free") \
    STEP("M3", "move.stored", held, "EVICTING at the new place, whole", "rebuild: RESIDENT there; the old place is free") \
    STEP("M4", "move.moved", held, "RESIDENT at the new place, the old one not free", "rebuild: memory of no entry is free") \
    STEP("M5", "move.planned", free, "a plan to move objects that nobody else knew, perhaps done in part", "what has moved is whole") \
    STEP("N1", "name.filled", held, "a name without a target", "target 0 means free") \
    STEP("N2", "name.set", held, "a name in no bucket, not counted", "rebuild links and counts") \
    STEP("N3", "name.replaced", held, "a name with its new target, the old one still counted", "rebuild counts; what nobody holds goes") \
    STEP("N4", "name.removed", held, "a name without a target in its bucket", "rebuild") \
    STEP("P1", "segment.filled", held, "fields of a FREE segment", "rebuild lists it as free") \
    STEP("P2", "segment.open", free, "an OPEN segment without a file", "reaping closes it: DEAD; its file need not exist") \
    STEP("P3", "segment.reserved", held, "bytes handed out, not counted as disk use", "rebuild counts; the record was never written") \
    STEP("P4", "segment.closed", held, "CLOSED without live records", "rebuild: DEAD, and its file goes") \
    STEP("P5", "segment.punched", held, "punched bytes still counted as disk use", "rebuild counts") \
    STEP("P6", "segment.forgotten", held, "FREE, not listed, still counted", "rebuild lists and counts") \
    STEP("P7", "place.move.filled", held, "where a disk place is to move, not which", "move_entry 0 means none: the place is the old one") \
    STEP("P8", "place.move.decided", held, "a disk place that is to change, the old one still there", "rebuild finishes the change first of all") \
    STEP("P9", "place.move.offset", held, "half of a new disk place", "rebuild finishes the change first of all") \
    STEP("P10", "place.move.segment", held, "a new disk place, the change not ended", "rebuild finishes it, to the same end") \
    STEP("P11", "place.move.done", held, "a new disk place, the segments' live bytes not counted", "rebuild counts them from the places") \
    STEP("P12", "segment.seen", free, "a DEAD segment that was about to be swept", "the next one to sweep finds it") \
    STEP("Q1", "queue.ticket", held, "what a member needs, without a ticket", "ticket 0 means that it does not wait") \
    STEP("Q2", "queue.void", held, "no ticket; the next in the queue not chosen", "rebuild chooses it") \
    STEP("R1", "restore.allocated", held, "SPILLED, with an extent", "rebuild: a spilled entry has no extent") \
    STEP("R2", "restore.begun", free, "RESTORING by the dead", "reaping: SPILLED; the disk copy is as it was") \
    STEP("R3", "restore.filled", free, "RESTORING, the value whole", "reaping: SPILLED; the disk copy is as it was") \
    STEP("R4", "restore.failed", held, "SPILLED, its memory not free yet", "rebuild: memory of no entry is free") \
    STEP("S1", "slot.locked", free, "a byte lock on a slot that is not marked", "it goes with its process") \
    STEP("S2", "slot.mark", either, "a slot marked for a process that is dead", "reaped like any member") \
    STEP("T1", "token.filled", held, "a hand-off without a nonce", "nonce 0 means free") \
    STEP("T2", "token.issued", held, "a hand-off that is true; nobody has its pickle", "it lapses") \
    STEP("T3", "token.held", held, "the receiver's holder bit, the hand-off not consumed", "reaping clears the bit; the hand-off lapses") \
    STEP("T4", "token.freed", held, "a hand-off consumed, still counted", "rebuild counts") \
    STEP("U1", "unfinished.taken", free, "what a call of the dead could not end", "reaping ends it, as it does what is begun; a hand-off lapses") \
    STEP("V1", "reap.marked", free, "a slot in REAPING", "whoever comes by goes on from the start: clearing twice is harmless") \
    STEP("V2", "reap.entry", held, "bits of one entry cleared, the entry not tested", "rebuild and the next reaper test every entry") \
    STEP("V3", "reap.restore", held, "SPILLED, its memory not free yet", "rebuild: memory of no entry is free") \
    STEP("V4", "reap.blocks", free, "the dead member's blocks, PUNCHING under the reaper's slot", "reaped with the reaper") \
    STEP("V5", "reap.done", free, "a slot in REAPING with nothing left", "the next reaper frees it") \
    STEP("X1", "pool.populated", free, "memory behind items that the pool does not know of", "the next one to want items makes them known")

#endif
