/* The life of an entry: draft, seal, clean, evict, restore, delete, burial.
 *
 * Invariants: fields first, control word last, so that a reader or a recoverer who sees a state
 * sees what belongs to it. Every state names who may leave it; a RESIDENT entry leaves it only
 * under the mutex. EVICTING never outlives one hold of the mutex.
 */
#define _GNU_SOURCE
#include "failpoint.h"
#include "kernel.h"

/* DRAFT and RESTORING are left by an exchange, since a waiter may add its bit at any moment. */
bool mp_leave(mp_member *m, mp_entry *e, uint64_t from, enum mp_state to) {
    uint64_t seen = from, next = mp_word(mp_birth_of(from), to);
    while (!atomic_compare_exchange_weak(&e->control, &seen, next))
        if ((seen & ~MP_WAIT_BIT) != (from & ~MP_WAIT_BIT)) return false;
    MP_FAILPOINT("leave.control");
    if (seen & MP_WAIT_BIT) mp_event_bump(m);
    return true;
}

/* --- birth --- */

/* Refs and store mutex held, the extent (if any) is allocated. */
static void bear(mp_member *m, uint32_t entry, uint64_t size, uint64_t birth, enum mp_state state) {
    mp_entry *e = &m->entries[entry];
    uint64_t now = mp_ticks();
    atomic_store_explicit(&e->size, size, memory_order_relaxed);
    atomic_store_explicit(&e->stamp, now << 8, memory_order_relaxed);
    atomic_store_explicit(&e->arrived, now, memory_order_relaxed);
    e->created = now;
    e->owner = m->slot;
    e->tokens = e->names = e->name = e->edges_in = e->edges_out = e->doomed = 0;
    atomic_store_explicit(&e->step, 0, memory_order_relaxed);
    MP_FAILPOINT("draft.filled");
    atomic_store(mp_holder_word(e, m->slot), mp_bit(m->slot)); /* of a FREE entry all holder words are zero */
    MP_FAILPOINT("draft.held");
    atomic_store_explicit(&m->locals[entry].refs, 1, memory_order_relaxed);
    atomic_store(&e->control, mp_word(birth, state));
    MP_FAILPOINT("draft.born");
}

static mp_code try_draft(mp_member *m, uint64_t size, bool bare, uint32_t *entry, uint64_t *birth, uint64_t *offset) {
    mp_pool *pool = &m->header->pool_entries;
    if (!bare && mp_queue_lacks(m, size) != 0) return MP_NO_ROOM;
    uint32_t index = mp_pool_take(m, pool), span = 0;
    if (index == 0) return MP_POOL_FULL;
    mp_entry *e = &m->entries[index];
    if (!bare) {
        mp_code code = mp_arena_alloc(m, size, offset, &span);
        if (code != MP_OK) {
            mp_pool_give(m, pool, index);
            return code;
        }
        atomic_store_explicit(&e->offset, *offset, memory_order_relaxed);
        mp_queue_taken(m, mp_extent_bytes(size));
    }
    e->span = span;
    e->extent = !bare;
    *entry = index;
    *birth = m->header->next_birth++;
    bear(m, index, size, *birth, MP_DRAFT);
    return MP_OK;
}

static mp_code draft(mp_member *m, uint64_t size, bool bare, uint32_t *entry, uint64_t *birth, uint64_t *offset) {
    mp_code code = mp_usable(m);
    while (code == MP_OK) {
        pthread_mutex_lock(&m->refs_mutex); /* fork must not copy counts while we change them */
        if ((code = mp_lock_own(m)) == MP_OK) {
            code = try_draft(m, size, bare, entry, birth, offset);
            mp_unlock(m);
        }
        pthread_mutex_unlock(&m->refs_mutex);
        if (code != MP_POOL_FULL) return code;
        code = mp_pool_ensure(m, &m->header->pool_entries, 1);
        if (code == MP_OK) code = mp_pool_ensure(m, &m->header->pool_spans, 8);
    }
    return code;
}

mp_code mp_draft(mp_member *m, uint64_t size, uint32_t *entry, uint64_t *birth, uint64_t *offset) {
    if (size > m->geometry.arena_bytes) return MP_NO_COMMIT;
    return draft(m, size, false, entry, birth, offset);
}

mp_code mp_draft_bare(mp_member *m, uint64_t size, uint32_t *entry, uint64_t *birth) {
    uint64_t none;
    return draft(m, size, true, entry, birth, &none);
}

/* PAIR seal: payload stores, then the control word; a reader loads the control word, then the payload. */
mp_code mp_seal(mp_member *m, uint32_t entry, uint64_t birth) {
    mp_entry *e = &m->entries[entry];
    atomic_store_explicit(&e->stamp, mp_ticks() << 8, memory_order_relaxed);
    MP_FAILPOINT("seal.before");
    return mp_leave(m, e, mp_word(birth, MP_DRAFT), MP_RESIDENT) ? MP_OK : MP_IS_DELETED;
}

/* --- the disk place --- */

/* The place of a record that is whole on disk. Mutex held. */
static mp_code record_place(mp_member *m, mp_entry *e, const mp_place *place) {
    uint32_t segment = atomic_load(&place->segment);
    if (!mp_segment_mine(m, segment)) return MP_INVALID; /* what is closed gets no further records: its dead bytes stay dead */
    e->place.offset = place->offset;
    e->place.length = place->length;
    e->place.checksum = place->checksum;
    e->place.codec = place->codec;
    MP_FAILPOINT("place.filled");
    atomic_store(&e->place.segment, segment);
    MP_FAILPOINT("place.set");
    m->segments[segment].live += place->length;
    atomic_fetch_add(&m->header->spilled_bytes, place->length);
    atomic_fetch_add(&m->header->spilled_objects, 1);
    return MP_OK;
}

void mp_place_free(mp_member *m, mp_entry *e) {
    uint32_t segment = atomic_load(&e->place.segment);
    if (segment == 0) return;
    atomic_store(&e->place.segment, 0);
    MP_FAILPOINT("place.freed");
    mp_segment_vacate(m, segment, e->place.length);
}

/* A put that found no room in memory: its record is on disk. */
mp_code mp_settle(mp_member *m, uint32_t entry, uint64_t birth, const mp_place *place) {
    mp_code code = mp_lock_own(m);
    if (code != MP_OK) return code;
    mp_entry *e = &m->entries[entry];
    uint64_t control = atomic_load(&e->control);
    code = MP_IS_DELETED;
    if ((control & ~MP_WAIT_BIT) == mp_word(birth, MP_DRAFT) && (code = record_place(m, e, place)) == MP_OK)
        mp_leave(m, e, control, MP_SPILLED);
    mp_unlock(m);
    return code;
}

/* --- death --- */

static bool reachable(const mp_entry *e) {
    for (uint32_t w = 0; w < MP_BIT_WORDS; w++)
        if (atomic_load(&e->holders[w])) return true;
    return e->tokens != 0 || e->names != 0 || e->edges_in != 0;
}

bool mp_pinned(mp_entry *e) {
    for (uint32_t w = 0; w < MP_BIT_WORDS; w++)
        if (atomic_load(&e->pins[w])) return true; /* PAIR pin-evict, PAIR unpin-delete */
    return false;
}

/* Of the dead only what somebody pins has its extent still. */
bool mp_seems_in_memory(mp_entry *e, enum mp_state state) {
    return mp_owns_extent(state) && (!mp_is_dead(state) || mp_pinned(e));
}

void mp_bury(mp_member *m, uint32_t entry) {
    mp_entry *e = &m->entries[entry];
    uint64_t control = atomic_load(&e->control);
    if (!mp_is_dead(mp_state_of(control)) || mp_pinned(e)) return;
    if (e->extent) {
        e->extent = 0;
        MP_FAILPOINT("bury.extent");
        mp_arena_free(m, atomic_load(&e->offset), atomic_load(&e->size), e->span);
    }
    mp_place_free(m, e);
    MP_FAILPOINT("bury.place");
    if (mp_doom(m, entry)) return; /* its contained refs go step by step; the last step comes back here */
    if (reachable(e)) return; /* a tombstone: its refs still learn how it died */
    atomic_store(&e->control, mp_word(mp_birth_of(control), MP_FREE));
    MP_FAILPOINT("bury.free");
    mp_pool_give(m, &m->header->pool_entries, entry);
}

/* An entry that is alive becomes dead. A seal and the end of a restore need no mutex: one that
 * comes in between changes the state once, and the step is taken from there. */
static bool kill_entry(mp_member *m, mp_entry *e, enum mp_state how) {
    uint64_t control = atomic_load(&e->control);
    while (mp_state_of(control) != MP_FREE && !mp_is_dead(mp_state_of(control))) {
        MP_FAILPOINT("kill.chosen");
        if (mp_leave(m, e, control, how)) return true;
        control = atomic_load(&e->control);
    }
    return false;
}

void mp_collect(mp_member *m, uint32_t entry) {
    mp_entry *e = &m->entries[entry];
    if (mp_state_of(atomic_load(&e->control)) == MP_FREE) return;
    if (!reachable(e)) kill_entry(m, e, MP_GARBAGE);
    MP_FAILPOINT("collect.garbage");
    mp_bury(m, entry);
}

static mp_code die(mp_member *m, uint32_t entry, uint64_t birth, enum mp_state from, enum mp_state how) {
    mp_code code = mp_lock(m, -1);
    if (code != MP_OK) return code;
    mp_entry *e = &m->entries[entry];
    uint64_t control = atomic_load(&e->control);
    bool there = mp_birth_of(control) == birth && (from == MP_FREE || mp_state_of(control) == from);
    if (from == MP_DRAFT && e->owner != m->slot) there = false; /* of a forked child's parent, who still writes it */
    if (there && kill_entry(m, e, how))
        mp_bury(m, entry);
    else
        code = MP_NOT_FOUND;
    mp_unlock(m);
    mp_undertake(m);
    return code;
}

mp_code mp_abort(mp_member *m, uint32_t entry, uint64_t birth) { return die(m, entry, birth, MP_DRAFT, MP_DELETED); }
mp_code mp_delete(mp_member *m, uint32_t entry, uint64_t birth) { return die(m, entry, birth, MP_FREE, MP_DELETED); }
mp_code mp_lose(mp_member *m, uint32_t entry, uint64_t birth) { return die(m, entry, birth, MP_SPILLED, MP_LOST); }

/* --- cleaning and eviction --- */

static bool resident(mp_entry *e, uint64_t birth) { return atomic_load(&e->control) == mp_word(birth, MP_RESIDENT); }

mp_code mp_clean_claim(mp_member *m, uint32_t entry, uint64_t birth, uint64_t *offset, uint64_t *size) {
    if (entry == 0 || entry >= m->geometry.entries) return MP_NOT_FOUND;
    mp_entry *e = &m->entries[entry];
    if (!resident(e, birth)) return MP_NOT_FOUND;
    if (mp_pinned(e)) return MP_IS_PINNED;
    if (atomic_load(&e->place.segment)) return MP_TAKEN;
    mp_pin(m, entry, MP_ONE_OP);
    MP_FAILPOINT("clean.claimed");
    if (!resident(e, birth)) { /* PAIR pin-evict */
        mp_unpin(m, entry, MP_ONE_OP);
        return MP_NOT_FOUND;
    }
    *offset = atomic_load_explicit(&e->offset, memory_order_relaxed);
    *size = atomic_load_explicit(&e->size, memory_order_relaxed);
    return MP_OK;
}

void mp_clean_cancel(mp_member *m, uint32_t entry) { mp_unpin(m, entry, MP_ONE_OP); }

/* The place of a claimed entry. Mutex held. MP_NOT_FOUND: it died while it was written, the record is dead space. */
static mp_code clean_locked(mp_member *m, const mp_cleaned *c) {
    mp_entry *e = &m->entries[c->entry];
    if (!resident(e, c->birth)) return MP_NOT_FOUND;
    return atomic_load(&e->place.segment) == 0 ? record_place(m, e, &c->place) : MP_OK;
}

/* Mutex held. PAIR pin-evict: store EVICTING, then read the pins, both seq_cst. */
static mp_code evict_locked(mp_member *m, uint32_t entry, uint64_t birth) {
    mp_entry *e = &m->entries[entry];
    if (!resident(e, birth) || !atomic_load(&e->place.segment)) return MP_NOT_FOUND;
    atomic_store(&e->control, mp_word(birth, MP_EVICTING));
    MP_FAILPOINT("evict.evicting");
    mp_code code = mp_pinned(e) ? MP_IS_PINNED : MP_OK;
    atomic_store(&e->control, mp_word(birth, code == MP_OK ? MP_SPILLED : MP_RESIDENT));
    MP_FAILPOINT("evict.spilled");
    if (code != MP_OK) return code;
    e->extent = 0;
    mp_arena_free(m, atomic_load(&e->offset), atomic_load(&e->size), e->span);
    return MP_OK;
}

/* Between the two holds the pins end, each of which may bury: that takes the mutex itself. */
mp_code mp_clean_publish(mp_member *m, mp_cleaned *items, uint32_t count) {
    bool evict = false;
    mp_code code = mp_lock_own(m);
    for (uint32_t i = 0; i < count; i++) items[i].code = code == MP_OK ? clean_locked(m, &items[i]) : code;
    if (code == MP_OK) mp_unlock(m);
    for (uint32_t i = 0; i < count; i++) {
        mp_unpin(m, items[i].entry, MP_ONE_OP);
        items[i].evict = items[i].evict && items[i].code == MP_OK;
        evict = evict || items[i].evict;
    }
    if (!evict) return code;
    code = mp_lock(m, -1);
    for (uint32_t i = 0; i < count; i++)
        if (items[i].evict) items[i].code = code == MP_OK ? evict_locked(m, items[i].entry, items[i].birth) : code;
    if (code == MP_OK) mp_unlock(m);
    return code;
}

mp_code mp_evict(mp_member *m, uint32_t entry, uint64_t birth) {
    mp_code code = mp_lock(m, -1);
    if (code != MP_OK) return code;
    code = evict_locked(m, entry, birth);
    mp_unlock(m);
    return code;
}

/* --- restoring --- */

mp_code mp_place_read(mp_member *m, uint32_t entry, uint64_t birth, mp_place *place, uint64_t *size) {
    mp_entry *e = &m->entries[entry];
    mp_pin(m, entry, MP_ONE_OP); /* before the mutex: from here on the place stays */
    mp_code code = mp_lock(m, -1);
    if (code == MP_OK) {
        code = mp_state(m, entry, birth);
        if (code == MP_IS_SPILLED || code == MP_IS_RESTORING) {
            memcpy(place, &e->place, sizeof *place);
            *size = atomic_load(&e->size);
        }
        mp_unlock(m);
    }
    if (code != MP_IS_SPILLED && code != MP_IS_RESTORING) mp_unpin(m, entry, MP_ONE_OP);
    return code;
}

mp_code mp_restore_begin(mp_member *m, uint32_t entry, uint64_t birth, uint64_t *offset) {
    for (;;) {
        mp_code code = mp_lock_own(m);
        if (code != MP_OK) return code;
        mp_entry *e = &m->entries[entry];
        uint32_t span = 0;
        code = mp_state(m, entry, birth);
        if (code == MP_IS_SPILLED && (code = mp_arena_alloc(m, atomic_load(&e->size), offset, &span)) == MP_OK) {
            atomic_store_explicit(&e->offset, *offset, memory_order_relaxed);
            e->span = span;
            e->owner = m->slot;
            e->extent = 1;
            MP_FAILPOINT("restore.allocated");
            atomic_store(&e->control, mp_word(birth, MP_RESTORING));
        } else if (code == MP_OK)
            code = MP_TAKEN; /* resident again: somebody else was faster */
        mp_unlock(m);
        MP_FAILPOINT("restore.begun");
        if (code != MP_POOL_FULL) return code;
        if ((code = mp_pool_ensure(m, &m->header->pool_spans, 8)) != MP_OK) return code;
    }
}

void mp_restore_step(mp_member *m, uint32_t entry) { atomic_fetch_add_explicit(&m->entries[entry].step, 1, memory_order_relaxed); }

mp_code mp_restore_end(mp_member *m, uint32_t entry, uint64_t birth, enum mp_state state) {
    mp_entry *e = &m->entries[entry];
    uint64_t from = mp_word(birth, MP_RESTORING);
    if (!mp_owns_slot(m) || e->owner != m->slot) return MP_CLOSED; /* whoever restores it is another: a forked child's parent, say */
    if (state == MP_RESIDENT) {
        uint64_t size = atomic_load(&e->size);
        uint64_t now = mp_ticks();
        atomic_store_explicit(&e->arrived, now, memory_order_relaxed);
        atomic_store_explicit(&e->stamp, now << 8 | MP_READS_RESTORED, memory_order_relaxed);
        MP_FAILPOINT("restore.filled");
        if (!mp_leave(m, e, from, MP_RESIDENT)) return MP_IS_DELETED; /* PAIR seal */
        atomic_fetch_add(&m->header->restored_bytes, size);
        atomic_fetch_add(&m->header->restored_objects, 1);
        return MP_OK;
    }
    mp_code code = mp_lock_own(m);
    enum mp_unfinished_kind kind = state == MP_SPILLED ? MP_NOT_RESTORED : MP_FOUND_LOST;
    if (code == MP_BUSY) mp_put_off(m, (mp_unfinished){.kind = kind, .item = entry, .number = birth});
    if (code != MP_OK) return code;
    if (!mp_leave(m, e, from, state))
        code = MP_IS_DELETED;
    else if (state == MP_SPILLED) {
        e->extent = 0;
        MP_FAILPOINT("restore.failed");
        mp_arena_free(m, atomic_load(&e->offset), atomic_load(&e->size), e->span);
    } else
        mp_bury(m, entry);
    mp_unlock(m);
    return code;
}

/* --- waiting --- */

void mp_wait(mp_member *m, uint32_t entry, uint64_t birth, int64_t slice_ns) {
    _Atomic uint64_t *control = &m->entries[entry].control;
    uint32_t seen = mp_event(m);
    uint64_t word = atomic_load(control);
    for (;;) {
        enum mp_state state = mp_state_of(word);
        if (mp_birth_of(word) != birth || (state != MP_DRAFT && state != MP_RESTORING)) return;
        if ((word & MP_WAIT_BIT) || atomic_compare_exchange_weak(control, &word, word | MP_WAIT_BIT)) break;
    }
    mp_event_wait(m, seen, slice_ns);
}
