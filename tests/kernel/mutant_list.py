"""The mutants of the kernel: what each changes, letter by letter.

Not here: running the tests against them (`mutants`), weakened memory orders, which x86 hides: the explorer has
those (tests/explorer/mutants.py).
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Mutant(NamedTuple):
    """`old`, which the file holds once, becomes `new`."""

    name: str
    file: str
    old: str
    new: str


MUTANTS: Final = (
    Mutant(
        "a pin sets no bit",
        "refs.c",
        "atomic_fetch_or(mp_pin_word(&m->entries[entry], m->slot), mp_bit(m->slot)); /* PAIR pin-evict */\n",
        "",
    ),
    Mutant(
        "a view looks at the birth only",
        "refs.c",
        "if (control != mp_word(birth, MP_RESIDENT)) {",
        "if (mp_birth_of(control) != birth) {",
    ),
    Mutant("an unpin clears no bit", "refs.c", "if (last) /* PAIR unpin-delete */", "if (0)"),
    Mutant("an unpin buries nobody", "refs.c", "if (last && mp_is_dead(", "if (0 && mp_is_dead("),
    Mutant(
        "an operation of before a fork is ended",
        "refs.c",
        "if ((unit == MP_ONE_OP ? count >> 32 : count & UINT32_MAX) == 0) return;",
        "if (count == 0) return;",
    ),
    Mutant(
        "a hold takes any birth",
        "refs.c",
        "if (mp_birth_of(control) != birth || mp_state_of(control) == MP_FREE ||",
        "if (mp_state_of(control) == MP_FREE ||",
    ),
    Mutant(
        "a hold sets no bit",
        "refs.c",
        '    atomic_fetch_or(mp_holder_word(e, m->slot), mp_bit(m->slot));\n    MP_FAILPOINT("hold.bit");',
        '    MP_FAILPOINT("hold.bit");',
    ),
    Mutant(
        "a last drop frees nothing",
        "refs.c",
        '    MP_FAILPOINT("drop.bit");\n    mp_collect(m, entry);',
        '    MP_FAILPOINT("drop.bit");',
    ),
    Mutant("closing keeps drafts", "refs.c", "if (draft) mp_leave(m, e, control, MP_ABANDONED);", ""),
    Mutant(
        "closing takes another's draft for its own",
        "refs.c",
        "bool draft = mp_owns_slot(m) && mp_state_of",
        "bool draft = mp_state_of",
    ),
    Mutant(
        "a hand-off of what is gone",
        "refs.c",
        "!= birth || mp_state_of(control) == MP_FREE) code = MP_NOT_FOUND;",
        "!= birth) code = MP_NOT_FOUND;",
    ),
    Mutant("a nonce of zero is a nonce", "refs.c", "return nonce != 0 && token != 0", "return token != 0"),
    Mutant(
        "the last delivery consumes nothing",
        "refs.c",
        "if (m->tokens[token].deliveries > 1)",
        "if (m->tokens[token].deliveries > 0)",
    ),
    Mutant(
        "a freed hand-off is still counted",
        "refs.c",
        "if (m->entries[entry].tokens) m->entries[entry].tokens--;",
        "",
    ),
    Mutant(
        "what never lapses lapses",
        "refs.c",
        "return t->expiry != 0 && t->expiry <= now;",
        "return t->expiry <= now;",
    ),
    Mutant(
        "seal stores without looking",
        "objects.c",
        "return mp_leave(m, e, mp_word(birth, MP_DRAFT), MP_RESIDENT) ? MP_OK : MP_IS_DELETED;",
        "atomic_store(&e->control, mp_word(birth, MP_RESIDENT));\n    return MP_OK;",
    ),
    Mutant(
        "anybody ends a restore",
        "objects.c",
        "if (!mp_owns_slot(m) || e->owner != m->slot) return",
        "if (!mp_owns_slot(m)) return",
    ),
    Mutant(
        "anybody gives up a draft",
        "objects.c",
        "if (from == MP_DRAFT && e->owner != m->slot) there = false;",
        "",
    ),
    Mutant(
        "a tombstone is in memory",
        "objects.c",
        "return mp_owns_extent(state) && (!mp_is_dead(state) || mp_pinned(e));",
        "return mp_owns_extent(state);",
    ),
    Mutant(
        "a pool is full in the middle of a rebuild",
        "table.c",
        "mp_code code = mp_lock(m, -1);\n    if (code != MP_OK) return code;\n    if (!has_left(pool, count)) code = MP_POOL_FULL;",
        "mp_code code = has_left(pool, count) ? MP_OK : MP_POOL_FULL;\n    if (code != MP_OK || mp_lock(m, -1) != MP_OK) return code;",
    ),
    Mutant("leaving a state wakes nobody", "objects.c", "if (seen & MP_WAIT_BIT) mp_event_bump(m);", ""),
    Mutant(
        "a death tries once",
        "objects.c",
        "        control = atomic_load(&e->control);\n    }\n    return false;",
        "        break;\n    }\n    return false;",
    ),
    Mutant(
        "burial ignores pins",
        "objects.c",
        "if (!mp_is_dead(mp_state_of(control)) || mp_pinned(e)) return;",
        "if (!mp_is_dead(mp_state_of(control))) return;",
    ),
    Mutant(
        "burial keeps the disk place",
        "objects.c",
        '    mp_place_free(m, e);\n    MP_FAILPOINT("bury.place");',
        '    MP_FAILPOINT("bury.place");',
    ),
    Mutant("hand-offs hold nothing", "objects.c", "return e->tokens != 0 || e->names", "return e->names"),
    Mutant("names hold nothing", "objects.c", "|| e->names != 0 ||", "||"),
    Mutant("containers hold nothing", "objects.c", " || e->edges_in != 0;", ";"),
    Mutant(
        "a claim looks once",
        "objects.c",
        "if (!resident(e, birth)) { /* PAIR pin-evict */",
        "if (0) {",
    ),
    Mutant(
        "a publish keeps its pins",
        "objects.c",
        "        mp_unpin(m, items[i].entry, MP_ONE_OP);\n        items",
        "        items",
    ),
    Mutant(
        "evict ignores pins",
        "objects.c",
        "mp_code code = mp_pinned(e) ? MP_IS_PINNED : MP_OK;\n    atomic_store(",
        "mp_code code = MP_OK;\n    atomic_store(",
    ),
    Mutant(
        "evict needs no disk copy",
        "objects.c",
        "if (!resident(e, birth) || !atomic_load(&e->place.segment))",
        "if (!resident(e, birth))",
    ),
    Mutant(
        "a restorer does not sign",
        "objects.c",
        '            e->owner = m->slot;\n            e->extent = 1;\n            MP_FAILPOINT("restore.allocated");',
        '            e->extent = 1;\n            MP_FAILPOINT("restore.allocated");',
    ),
    Mutant(
        "a failed restore keeps its memory",
        "objects.c",
        '        e->extent = 0;\n        MP_FAILPOINT("restore.failed");',
        '        MP_FAILPOINT("restore.failed");',
    ),
    Mutant(
        "reaping leaves pins",
        "members.c",
        "    if (atomic_load(mp_pin_word(e, slot)) & bit) atomic_fetch_and(mp_pin_word(e, slot), ~bit);\n",
        "",
    ),
    Mutant(
        "reaping leaves holders",
        "members.c",
        "    if (atomic_load(mp_holder_word(e, slot)) & bit) atomic_fetch_and(mp_holder_word(e, slot), ~bit);\n",
        "",
    ),
    Mutant(
        "reaping leaves drafts",
        "members.c",
        "if (e->owner == slot && state == MP_DRAFT) mp_leave(m, e, control, MP_ABANDONED);",
        "",
    ),
    Mutant(
        "reaping tests only what was held",
        "members.c",
        "    mp_collect(m, index);\n}\n\n/* One hold",
        "    if (e->owner == slot) mp_collect(m, index);\n}\n\n/* One hold",
    ),
    Mutant(
        "reaping does not look whose slot it is",
        "members.c",
        "    if (atomic_load(&m->slots[slot].word) != word)\n        code = MP_NOT_FOUND;\n    else\n        while",
        "    if (0)\n        code = MP_NOT_FOUND;\n    else\n        while",
    ),
    Mutant("reaping leaves segments", "members.c", "code = reap_segments(m, slot, word);", "code = MP_OK;"),
    Mutant("reaping leaves blocks", "members.c", "code = reap_blocks(m, slot, word);", "code = MP_OK;"),
    Mutant(
        "a locked slot may be dead",
        "members.c",
        " || m->system->slot_locked(m, index)) return false;",
        ") return false;",
    ),
    Mutant(
        "a slot is taken without telling its reaper",
        "members.c",
        "mp_slot_mark(m, index, MP_SLOT_REAPING);",
        "(void)0;",
    ),
    Mutant(
        "a dead owner's table is taken as it is",
        "lock.c",
        "? MP_CORRUPTED : mp_rebuild(m);",
        "? MP_CORRUPTED : MP_OK;",
    ),
    Mutant(
        "who waits for the mutex sleeps until woken",
        "lock.c",
        "wake = monotonic_ns() + SLEEP_NS;",
        "wake = until;",
    ),
    Mutant(
        "a rebuild trusts how far a pool reaches",
        "recovery.c",
        "return pool->fresh < capacity ? pool->fresh : capacity;",
        "return atomic_load(&pool->high) < capacity ? atomic_load(&pool->high) : capacity;",
    ),
    Mutant(
        "a rebuild leaves what is evicting",
        "recovery.c",
        "if (state == MP_EVICTING) atomic_store(&e->control, mp_word(birth, MP_RESIDENT)); /* its extent is whole */",
        "",
    ),
    Mutant(
        "a rebuild frees no garbage",
        "recovery.c",
        "for (uint32_t i = 1; i < entries_backed(m); i++) mp_collect(m, i);\n    return MP_OK;",
        "return MP_OK;",
    ),
    Mutant(
        "an edge is true before it is filled",
        "edges.c",
        '    edge->target = target;\n    edge->birth = birth;\n    edge->next = container->edges_out;\n    MP_FAILPOINT("edge.filled");\n    __atomic_store_n(&container->edges_out, index, __ATOMIC_RELEASE); /* from here on it is true */',
        '    uint32_t chain = container->edges_out;\n    __atomic_store_n(&container->edges_out, index, __ATOMIC_RELEASE);\n    MP_FAILPOINT("edge.filled");\n    edge->target = target;\n    edge->birth = birth;\n    edge->next = chain;',
    ),
    Mutant(
        "a cut edge is still counted",
        "edges.c",
        "if (m->entries[target].edges_in) m->entries[target].edges_in--;",
        "",
    ),
    Mutant("the last edge buries nobody", "edges.c", "            mp_bury(m, entry);\n", ""),
    Mutant(
        "a name that is replaced keeps its object",
        "names.c",
        "uncount(m, old, old == entry ? 0 : index);",
        "",
    ),
    Mutant(
        "an empty segment lives on",
        "segments.c",
        "if (s->live != 0 || atomic_load(&s->state) != MP_SEGMENT_CLOSED) return;",
        "if (s->live != 0 || atomic_load(&s->state) != MP_SEGMENT_OPEN) return;",
    ),
    Mutant(
        "a place moves though somebody reads it",
        "places.c",
        "    else if (mp_pinned(e))\n        code = MP_IS_PINNED;\n    else if (!mp_segment_mine",
        "    else if (!mp_segment_mine",
    ),
    Mutant("a place that half moved is left so", "recovery.c", "    mp_move_finish(m);\n", ""),
    Mutant(
        "records go to closed segments",
        "segments.c",
        "return atomic_load(&s->state) == MP_SEGMENT_OPEN && s->owner == m->slot;",
        "return s->owner == m->slot;",
    ),
    Mutant(
        "whoever was taken for dead writes on",
        "segments.c",
        "    mp_code code = mp_lock_own(m);\n    if (code != MP_OK) return code;\n    mp_segment *s = &m->segments[segment];\n    uint64_t limit",
        "    mp_code code = mp_lock(m, -1);\n    if (code != MP_OK) return code;\n    mp_segment *s = &m->segments[segment];\n    uint64_t limit",
    ),
    Mutant(
        "what was punched is added again",
        "segments.c",
        "uint64_t more = bytes - s->punched;\n        s->punched = bytes;",
        "uint64_t more = bytes;\n        s->punched += bytes;",
    ),
    Mutant(
        "the disk has no limit",
        "segments.c",
        "else if (bytes > limit || m->header->disk_bytes > limit - bytes)",
        "else if (bytes > limit)",
    ),
    Mutant(
        "memory has no limit",
        "commit.c",
        "if (!choose_gap(m, pages, limit > committed ? limit - committed : 0, step, run))",
        "if (!choose_gap(m, pages, limit, step, run))",
    ),
    Mutant(
        "blocks are marked beyond what is known as used",
        "commit.c",
        "if (h->commit_high < run->block + run->blocks) h->commit_high = run->block + run->blocks;",
        "if (h->commit_high < run->block) h->commit_high = run->block;",
    ),
    Mutant(
        "memory is free before it is given back",
        "memory.c",
        "mp_code code = mp_arena_punch(m, run) == 0 ?",
        "mp_lock(m, -1), mp_arena_punched(m, run), mp_unlock(m);\n    mp_code code = mp_arena_punch(m, run) == 0 ?",
    ),
    Mutant("a move ignores pins", "moving.c", "bool pinned = mp_pinned(e);", "bool pinned = false;"),
    Mutant("a mover trusts the span of an object that is gone", "moving.c", "!mp_has_extent(e) || ", ""),
    Mutant(
        "a move is true before it is made",
        "moving.c",
        '        memcpy(m->arena_write + to, m->arena_write + from, mp_extent_bytes(size));\n        MP_FAILPOINT("move.copied");\n        atomic_store(&e->offset, to);\n',
        '        atomic_store(&e->offset, to);\n        MP_FAILPOINT("move.copied");\n        memcpy(m->arena_write + to, m->arena_write + from, mp_extent_bytes(size));\n',
    ),
    Mutant(
        "room is put by for nobody",
        "queue.c",
        "if (lacking) first->room_reserved += lacking < bytes ? lacking : bytes;",
        "",
    ),
    Mutant(
        "who waits is not told of room",
        "queue.c",
        "        atomic_store(&h->room_wanted, 0);\n        mp_event_bump(m);\n    }\n}\n\n/* Pages",
        "        atomic_store(&h->room_wanted, 0);\n    }\n}\n\n/* Pages",
    ),
    Mutant(
        "a ticket lasts for ever",
        "queue.c",
        "if (!waits(first) || first->ticket_renewed + LAPSE_NS < m->system->boottime()) return 0;",
        "if (!waits(first)) return 0;",
    ),
    Mutant(
        "the newest ticket goes first",
        "queue.c",
        "s->ticket < m->slots[first - 1].ticket",
        "s->ticket > m->slots[first - 1].ticket",
    ),
    Mutant("free runs do not merge", "arena.c", "if (span_touches(m, prev, i)) {", "if (0) {"),
    Mutant(
        "a run does not say who wrote it",
        "arena.c",
        "words[0] = MP_COMMIT(MP_COMMITTED, m->slot);",
        "words[0] = words[0];",
    ),
    Mutant(
        "a run says so of some blocks only", "arena.c", "done < blocks; done *= 2", "done < blocks; done *= 4"
    ),
    Mutant(
        "an interrupted growth begins anew",
        "system.c",
        "else if (piece > MP_BLOCK) piece = piece / 2 / MP_BLOCK * MP_BLOCK;",
        "",
    ),
    Mutant(
        "a process that cannot be looked at is dead",
        "system.c",
        "if (found == 0) return !is_gone(error);",
        "if (found == 0) return false;",
    ),
    Mutant(
        "a fork copies no views",
        "fork.c",
        "if ((uint32_t)atomic_load_explicit(&local->pins, memory_order_relaxed)) /* views, not operations */",
        "if (0)",
    ),
    Mutant(
        "a fork copies no holders",
        "fork.c",
        "if (atomic_load_explicit(&local->refs, memory_order_relaxed) && slot < MP_SLOT_ORPHANS)",
        "if (0)",
    ),
    Mutant(
        "a child goes on with its parent's operations",
        "fork.c",
        "atomic_store_explicit(&m->locals[i].pins, pins & UINT32_MAX, memory_order_relaxed);",
        "atomic_store_explicit(&m->locals[i].pins, pins, memory_order_relaxed);",
    ),
    Mutant(
        "what could not be ended is forgotten", "unfinished.c", "if (count < MP_UNFINISHED_MAX) {", "if (0) {"
    ),
    Mutant(
        "what could not be ended is not taken up again",
        "members.c",
        "mp_code code = mp_finish(m);",
        "mp_code code = MP_OK;",
    ),
    Mutant(
        "a child ends what its parent has begun",
        "fork.c",
        "    atomic_store(&m->unfinished_count, 0); /* and ends what it has begun */\n",
        "",
    ),
    Mutant(
        "a growth that failed is ended as one that did not",
        "unfinished.c",
        "case MP_NOT_GROWN: return mp_grown(m, what->run, what->number, false);",
        "case MP_NOT_GROWN: return mp_grown(m, what->run, what->number, true);",
    ),
    Mutant(
        "hand-offs that could not be withdrawn stay",
        "refs.c",
        "    if (code == MP_BUSY) mp_put_off(m, (mp_unfinished){.kind = MP_HAND_OFFS, .number = family});\n",
        "",
    ),
    Mutant(
        "who leaves forgets what could not be ended",
        "members.c",
        "mp_owns_slot(m) ? mp_finish(m) : MP_OK;",
        "MP_OK;",
    ),
    Mutant(
        "hand-offs of all families are withdrawn",
        "refs.c",
        ">> MP_FAMILY_SHIFT == family; }",
        ">> MP_FAMILY_SHIFT <= family; }",
    ),
    Mutant(
        "a child that nobody can see yet is taken for dead",
        "members.c",
        "if (pid == MP_PID_UNSEEN) return true;",
        "",
    ),
    Mutant(
        "a child that has come meanwhile is taken for dead",
        "members.c",
        "if (atomic_load(&slot->word) != word) return true;",
        "",
    ),
    Mutant(
        "a slot is taken over that a fork has reserved meanwhile",
        "members.c",
        "now >> 8 != *word >> 8) code = MP_NO_SLOT;",
        "false) code = MP_NO_SLOT;",
    ),
    Mutant(
        "the next orphan with a lock ends the one without",
        "fork.c",
        "kept = !locked || mp_slot_state_of(word) == MP_SLOT_KEPT;",
        "kept = !locked;",
    ),
    Mutant(
        "an orphan without a lock is taken for dead",
        "members.c",
        "return mp_slot_state_of(word) == MP_SLOT_KEPT;",
        "return false;",
    ),
    Mutant(
        "an orphan leaves a lock where it was too late",
        "fork.c",
        "    if (locked) lock_birth(m->fork_fd, slot, F_UNLCK);\n",
        "",
    ),
    Mutant(
        "what half a growth took is forgotten",
        "commit.c",
        "ok ? MP_COMMITTED : MP_PUNCHING);",
        "ok ? MP_COMMITTED : MP_NONE);",
    ),
    Mutant(
        "a close that was put off closes whatever has the number",
        "segments.c",
        "if (mp_segment_mine(m, segment) && m->segments[segment].id == id)",
        "if (mp_segment_mine(m, segment))",
    ),
    Mutant(
        "a segment that was dead a moment ago is swept",
        "segments.c",
        "if (code == MP_OK && atomic_load(&copy->state) == MP_SEGMENT_DEAD) return s;",
        "if (code == MP_OK) return s;",
    ),
    Mutant(
        "who was given up for dead takes its slot for its own",
        "lock.c",
        "if (code == MP_OK && !mp_owns_slot(m)) {",
        "if (0) {",
    ),
    Mutant(
        "who was given up for dead closes another's segment",
        "segments.c",
        "    mp_code code = mp_lock_own(m);\n    if (code == MP_BUSY) mp_put_off",
        "    mp_code code = mp_lock(m, -1);\n    if (code == MP_BUSY) mp_put_off",
    ),
    Mutant(
        "who was given up for dead records a place in another's segment",
        "objects.c",
        "    bool evict = false;\n    mp_code code = mp_lock_own(m);",
        "    bool evict = false;\n    mp_code code = mp_lock(m, -1);",
    ),
    Mutant(
        "who was given up for dead ends another's restore",
        "objects.c",
        "if (!mp_owns_slot(m) || e->owner != m->slot) return",
        "if (e->owner != m->slot) return",
    ),
    Mutant(
        "what is garbage gets a name",
        "names.c",
        "state != MP_FREE && state != MP_GARBAGE;",
        "state != MP_FREE;",
    ),
    Mutant(
        "an orphan comes where others are being reaped",
        "fork.c",
        "if (mp_slot_state_of(word) == MP_SLOT_REAPING) m->fork_slot",
        "if (false) m->fork_slot",
    ),
    Mutant(
        "both slots of orphans are reaped at once",
        "members.c",
        "bool later = slot >= MP_SLOT_ORPHANS && ",
        "bool later = false && ",
    ),
    Mutant(
        "another file under the arena's number is punched",
        "system.c",
        "if (now.st_dev != m->arena_device || now.st_ino != m->arena_inode) return EBADF;",
        "",
    ),
    Mutant(
        "who could not leave still has its process",
        "members.c",
        "if (code != MP_OK && mp_owns_slot(m)) atomic_store",
        "if (0) atomic_store",
    ),
)
