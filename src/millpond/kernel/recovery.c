/* After a crash: every cache is rebuilt from what is true by itself; and the check that says
 * whether a table is sound.
 *
 * True by themselves: the entries' control words and the fields that their states give meaning
 * to, the records of tokens, names and segments, the commit map. All else is a cache. A rebuild
 * may be repeated, and gives the same result.
 */
#include <stdarg.h>
#include <stdio.h>

#include "arena.h"
#include "failpoint.h"
#include "kernel.h"

/* Items of a pool that may be in use. Not those up to high: others raise it without the mutex, and an item
 * that turns up during a rebuild would be given to the free list and be fresh as well. */
static uint32_t backed(mp_pool *pool, uint32_t capacity) { return pool->fresh < capacity ? pool->fresh : capacity; }
static uint32_t entries_backed(mp_member *m) { return backed(&m->header->pool_entries, m->geometry.entries); }
static uint32_t tokens_backed(mp_member *m) { return backed(&m->header->pool_tokens, m->geometry.tokens); }
static uint32_t names_backed(mp_member *m) { return backed(&m->header->pool_names, m->geometry.names); }
static uint32_t segments_backed(mp_member *m) { return backed(&m->header->pool_segments, m->geometry.segments); }

/* The states that a crash under the mutex may leave half-way. */
static mp_code settle_entry(mp_member *m, uint32_t index) {
    mp_entry *e = &m->entries[index];
    uint64_t control = atomic_load(&e->control), birth = mp_birth_of(control);
    enum mp_state state = mp_state_of(control);
    if (state > MP_ABANDONED) return MP_CORRUPTED;
    if (birth >= m->header->next_birth) m->header->next_birth = birth + 1;
    if (state == MP_EVICTING) atomic_store(&e->control, mp_word(birth, MP_RESIDENT)); /* its extent is whole */
    if (state == MP_FREE || state == MP_SPILLED) e->extent = 0;
    if (state == MP_FREE) {
        atomic_store(&e->place.segment, 0);
        e->edges_out = 0;
        for (uint32_t w = 0; w < MP_BIT_WORDS; w++) atomic_store(&e->holders[w], 0);
        mp_pool_give(m, &m->header->pool_entries, index);
    }
    e->tokens = e->names = e->name = e->edges_in = e->doomed = 0;
    return MP_OK;
}

static bool live_target(mp_member *m, uint32_t entry, uint64_t birth) {
    if (entry == 0 || entry >= entries_backed(m)) return false;
    uint64_t control = atomic_load(&m->entries[entry].control);
    return mp_state_of(control) != MP_FREE && (birth == 0 || mp_birth_of(control) == birth);
}

static void rebuild_tokens(mp_member *m) {
    for (uint32_t t = 1; t < tokens_backed(m); t++) {
        mp_token *token = &m->tokens[t];
        if (atomic_load(&token->nonce) && live_target(m, token->entry, token->birth))
            m->entries[token->entry].tokens++;
        else {
            atomic_store(&token->nonce, 0);
            mp_pool_give(m, &m->header->pool_tokens, t);
        }
    }
}

static void rebuild_names(mp_member *m) {
    memset(m->buckets, 0, MP_NAME_BUCKETS * sizeof *m->buckets);
    for (uint32_t n = 1; n < names_backed(m); n++) {
        mp_name *name = &m->names[n];
        uint32_t target = atomic_load(&name->target);
        if (target && name->length && name->length <= MP_NAME_MAX && live_target(m, target, 0)) {
            m->entries[target].names++;
            m->entries[target].name = n;
            mp_name_link(m, n);
        } else {
            atomic_store(&name->target, 0);
            mp_pool_give(m, &m->header->pool_names, n);
        }
    }
}

static mp_code rebuild_segments(mp_member *m) {
    mp_header *h = m->header;
    uint32_t count = segments_backed(m), dead = 0;
    uint64_t disk = 0;
    for (uint32_t s = 1; s < count; s++) m->segments[s].live = 0;
    for (uint32_t i = 1; i < entries_backed(m); i++) {
        uint32_t s = atomic_load(&m->entries[i].place.segment);
        if (s >= count) return MP_CORRUPTED;
        if (s) m->segments[s].live += m->entries[i].place.length;
    }
    for (uint32_t s = 1; s < count; s++) {
        mp_segment *segment = &m->segments[s];
        if (segment->id >= h->next_segment_id) h->next_segment_id = segment->id + 1;
        if (atomic_load(&segment->state) == MP_SEGMENT_FREE) {
            mp_pool_give(m, &h->pool_segments, s);
            continue;
        }
        disk += segment->size - segment->punched;
        if (atomic_load(&segment->state) == MP_SEGMENT_CLOSED && segment->live == 0)
            atomic_store(&segment->state, MP_SEGMENT_DEAD);
        if (atomic_load(&segment->state) == MP_SEGMENT_DEAD) dead++;
    }
    atomic_store(&h->disk_bytes, disk);
    atomic_store(&h->dead_segments, dead);
    return MP_OK;
}

mp_code mp_rebuild(mp_member *m) {
    mp_header *h = m->header;
    mp_move_finish(m);
    mp_pool_reset(&h->pool_entries);
    mp_pool_reset(&h->pool_tokens);
    mp_pool_reset(&h->pool_names);
    mp_pool_reset(&h->pool_segments);
    for (uint32_t i = entries_backed(m); i-- > 1;) {
        mp_code code = settle_entry(m, i);
        if (code != MP_OK) return code;
    }
    MP_FAILPOINT("rebuild.entries");
    rebuild_tokens(m);
    rebuild_names(m);
    mp_code code = mp_edges_rebuild(m);
    MP_FAILPOINT("rebuild.edges");
    if (code == MP_OK) code = rebuild_segments(m);
    MP_FAILPOINT("rebuild.segments");
    if (code == MP_OK) code = mp_arena_rebuild(m);
    if (code != MP_OK) return code;
    MP_FAILPOINT("rebuild.arena");
    mp_queue_rebuild(m);
    /* a kill between "last bit cleared" and "freed" must not leak */
    for (uint32_t i = 1; i < entries_backed(m); i++) mp_collect(m, i);
    return MP_OK;
}

/* --- the check --- */

typedef struct check {
    mp_member *m;
    mp_fault *report;
    void *context;
    uint32_t faults;
} check;

__attribute__((format(printf, 2, 3))) static void fault(check *c, const char *format, ...) {
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    c->faults++;
    if (c->report) c->report(c->context, text);
}

static bool any_bit(_Atomic uint64_t *words) {
    for (uint32_t w = 0; w < MP_BIT_WORDS; w++)
        if (atomic_load(&words[w])) return true;
    return false;
}

static void check_free(check *c, uint32_t i) {
    mp_entry *e = &c->m->entries[i];
    if (any_bit(e->holders)) fault(c, "entry %u is FREE but held", i);
    if (e->extent) fault(c, "entry %u is FREE but owns an extent", i);
    if (atomic_load(&e->place.segment)) fault(c, "entry %u is FREE but has a disk place", i);
}

/* A dead entry without pins is no fault: whoever cleared the last pin may be on the way to bury
 * it, or have died there and be reaped soon. */
static void check_used(check *c, uint32_t i, uint64_t control) {
    mp_member *m = c->m;
    mp_entry *e = &m->entries[i];
    enum mp_state state = mp_state_of(control);
    uint32_t segment = atomic_load(&e->place.segment);
    if (state > MP_ABANDONED) fault(c, "entry %u has the unknown state %u", i, state);
    if (mp_birth_of(control) == 0 || mp_birth_of(control) >= m->header->next_birth)
        fault(c, "entry %u has the impossible birth %llu", i, (unsigned long long)mp_birth_of(control));
    if (state == MP_EVICTING) fault(c, "entry %u is EVICTING outside a hold of the mutex", i);
    if (state == MP_SPILLED && segment == 0) fault(c, "entry %u is SPILLED without a disk place", i);
    if ((state == MP_RESIDENT || state == MP_RESTORING) && !e->extent) fault(c, "entry %u has no extent", i);
    if (state == MP_SPILLED && e->extent) fault(c, "entry %u is SPILLED but owns an extent", i);
    if (!mp_is_dead(state) && !any_bit(e->holders) && !e->tokens && !e->names && !e->edges_in)
        fault(c, "entry %u is unreachable and not freed", i);
    if (segment >= segments_backed(m)) fault(c, "entry %u points to segment %u, which does not exist", i, segment);
    else if (segment && atomic_load(&m->segments[segment].state) == MP_SEGMENT_FREE)
        fault(c, "entry %u points to segment %u, which is free", i, segment);
}

/* Bits of slots that are FREE belong to nobody. */
static void check_bits(check *c, uint32_t i) {
    mp_member *m = c->m;
    mp_entry *e = &m->entries[i];
    if (!any_bit(e->holders) && !any_bit(e->pins)) return;
    for (uint32_t slot = 0; slot < MP_SLOTS; slot++) {
        bool held = atomic_load(mp_holder_word(e, slot)) & mp_bit(slot);
        bool pinned = atomic_load(mp_pin_word(e, slot)) & mp_bit(slot);
        if ((held || pinned) && mp_slot_state_of(atomic_load(&m->slots[slot].word)) == MP_SLOT_FREE)
            fault(c, "entry %u is %s by slot %u, which is free", i, held ? "held" : "pinned", slot);
    }
}

static void check_records(check *c) {
    mp_member *m = c->m;
    uint64_t tokens = 0, names = 0, counted_tokens = 0, counted_names = 0;
    for (uint32_t t = 1; t < tokens_backed(m); t++)
        if (atomic_load(&m->tokens[t].nonce)) {
            tokens++;
            if (!live_target(m, m->tokens[t].entry, m->tokens[t].birth)) fault(c, "hand-off %u leads nowhere", t);
        }
    for (uint32_t n = 1; n < names_backed(m); n++)
        if (atomic_load(&m->names[n].target)) {
            names++;
            if (!live_target(m, atomic_load(&m->names[n].target), 0)) fault(c, "name %u leads nowhere", n);
        }
    for (uint32_t i = 1; i < entries_backed(m); i++) {
        if (mp_state_of(atomic_load(&m->entries[i].control)) == MP_FREE) continue;
        counted_tokens += m->entries[i].tokens;
        counted_names += m->entries[i].names;
    }
    if (tokens != counted_tokens)
        fault(c, "%llu hand-offs, but the objects count %llu", (unsigned long long)tokens, (unsigned long long)counted_tokens);
    if (names != counted_names)
        fault(c, "%llu names, but the objects count %llu", (unsigned long long)names, (unsigned long long)counted_names);
}

/* Every edge in use is reachable from a container, and counted at its target. */
static void check_edges(check *c) {
    mp_member *m = c->m;
    uint32_t high = backed(&m->header->pool_edges, m->geometry.edges);
    uint64_t reachable = 0, counted = 0;
    for (uint32_t i = 1; i < entries_backed(m); i++) {
        mp_entry *e = &m->entries[i];
        if (mp_state_of(atomic_load(&e->control)) == MP_FREE) continue;
        counted += e->edges_in;
        for (uint32_t index = e->edges_out; index != 0; index = m->edges[index].next) {
            if (index >= high || ++reachable >= high) {
                fault(c, "the contained refs of entry %u form no list", i);
                return;
            }
            if (!live_target(m, m->edges[index].target, m->edges[index].birth))
                fault(c, "entry %u contains a ref that leads nowhere", i);
        }
    }
    uint64_t used = atomic_load(&m->header->pool_edges.used) - 1;
    if (counted != reachable || used != reachable)
        fault(c, "%llu contained refs, but the objects count %llu and the pool %llu", (unsigned long long)reachable,
              (unsigned long long)counted, (unsigned long long)used);
}

static void check_segments(check *c) {
    mp_member *m = c->m;
    uint64_t disk = 0, placed = 0, live = 0;
    if (atomic_load(&m->header->move_entry))
        fault(c, "the place of entry %u changes outside a hold of the mutex", atomic_load(&m->header->move_entry));
    for (uint32_t i = 1; i < entries_backed(m); i++)
        if (atomic_load(&m->entries[i].place.segment)) placed += m->entries[i].place.length;
    for (uint32_t s = 1; s < segments_backed(m); s++) {
        mp_segment *segment = &m->segments[s];
        uint32_t state = atomic_load(&segment->state);
        if (state == MP_SEGMENT_FREE) continue;
        disk += segment->size - segment->punched;
        live += segment->live;
        if (segment->live > segment->size) fault(c, "segment %u has more live bytes than bytes", s);
        if (state == MP_SEGMENT_DEAD && segment->live) fault(c, "segment %u is DEAD with live bytes", s);
    }
    if (disk != atomic_load(&m->header->disk_bytes))
        fault(c, "disk_bytes is %llu, the segments say %llu", (unsigned long long)atomic_load(&m->header->disk_bytes),
              (unsigned long long)disk);
    if (placed != live)
        fault(c, "the segments count %llu live bytes, the places %llu", (unsigned long long)live, (unsigned long long)placed);
}

uint32_t mp_check(mp_member *m, mp_fault *report, void *context) {
    check c = {.m = m, .report = report, .context = context};
    mp_code code = mp_lock(m, -1);
    if (code != MP_OK) {
        fault(&c, code == MP_BUSY ? "the mutex is held by process %u" : "the table is poisoned", m->busy_pid);
        return c.faults;
    }
    for (uint32_t i = 1; i < entries_backed(m); i++) {
        uint64_t control = atomic_load(&m->entries[i].control);
        if (mp_state_of(control) == MP_FREE)
            check_free(&c, i);
        else
            check_used(&c, i, control);
        check_bits(&c, i);
    }
    check_records(&c);
    check_edges(&c);
    check_segments(&c);
    c.faults += mp_arena_check(m, report, context);
    mp_unlock(m);
    return c.faults;
}
