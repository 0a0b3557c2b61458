/* What there is: rows for policies and for people.
 *
 * Invariant: a row may be a moment old when it is read; whoever acts on one names entry and
 * birth, and the action checks them again. Candidates are read without the mutex.
 */
#include "kernel.h"

static uint32_t bits(_Atomic uint64_t *words) {
    uint32_t n = 0;
    for (uint32_t w = 0; w < MP_BIT_WORDS; w++) n += (uint32_t)__builtin_popcountll(atomic_load(&words[w]));
    return n;
}

uint32_t mp_candidates(mp_member *m, uint32_t *cursor, mp_candidate *rows, uint32_t count) {
    uint32_t n = 0, high = mp_entries_backed(m);
    if (*cursor == 0) *cursor = 1;
    for (; *cursor < high && n < count; ++*cursor) {
        mp_entry *e = &m->entries[*cursor];
        uint64_t control = atomic_load_explicit(&e->control, memory_order_relaxed);
        if (mp_state_of(control) != MP_RESIDENT || mp_pinned(e)) continue;
        uint64_t stamp = atomic_load_explicit(&e->stamp, memory_order_relaxed);
        rows[n++] = (mp_candidate){
            .entry = *cursor,
            .clean = atomic_load_explicit(&e->place.segment, memory_order_relaxed) != 0,
            .hits = mp_stamp_reads(stamp),
            .birth = mp_birth_of(control),
            .size = mp_extent_bytes(atomic_load_explicit(&e->size, memory_order_relaxed)),
            .stamp = stamp >> 8,
            .arrived = atomic_load_explicit(&e->arrived, memory_order_relaxed),
        };
    }
    return n;
}

static void add_to_each(_Atomic uint64_t *words, uint64_t size, uint64_t bytes[MP_SLOTS]) {
    for (uint32_t w = 0; w < MP_BIT_WORDS; w++)
        for (uint64_t left = atomic_load(&words[w]); left != 0; left &= left - 1)
            bytes[w * 64 + (uint32_t)__builtin_ctzll(left)] += size;
}

void mp_kept_bytes(mp_member *m, bool pinned, uint64_t bytes[MP_SLOTS]) {
    memset(bytes, 0, MP_SLOTS * sizeof *bytes);
    for (uint32_t i = 1; i < mp_entries_backed(m); i++) {
        mp_entry *e = &m->entries[i];
        enum mp_state state = mp_state_of(atomic_load_explicit(&e->control, memory_order_relaxed));
        uint64_t size = atomic_load_explicit(&e->size, memory_order_relaxed);
        if (mp_seems_in_memory(e, state)) add_to_each(pinned ? e->pins : e->holders, mp_extent_bytes(size), bytes);
    }
}

/* Ticks have a rate that only comparison with a clock tells. */
static double seconds_per_tick(mp_member *m, uint64_t now) {
    uint64_t ticks = now - m->header->created_ticks, ns = m->system->boottime() - m->header->created_ns;
    return ticks ? (double)ns / 1e9 / (double)ticks : 0.0;
}

static double since(uint64_t now, uint64_t then, double rate) {
    return now > then ? (double)(now - then) * rate : 0.0;
}

static mp_object describe(mp_member *m, uint32_t entry, uint64_t now, double rate) {
    mp_entry *e = &m->entries[entry];
    uint64_t control = atomic_load(&e->control);
    return (mp_object){
        .entry = entry,
        .name = e->name,
        .tokens = e->tokens,
        .names = e->names,
        .birth = mp_birth_of(control),
        .size = atomic_load(&e->size),
        .age_s = since(now, e->created, rate),
        .idle_s = since(now, atomic_load(&e->stamp) >> 8, rate),
        .holders = bits(e->holders),
        .pins = bits(e->pins),
        .state = (uint8_t)mp_state_of(control),
        .clean = atomic_load(&e->place.segment) != 0,
    };
}

mp_code mp_objects(mp_member *m, uint32_t *cursor, mp_object *rows, uint32_t count, uint32_t *found) {
    uint32_t high = mp_entries_backed(m);
    uint64_t now = mp_ticks();
    double rate = seconds_per_tick(m, now);
    *found = 0;
    if (*cursor == 0) *cursor = 1;
    mp_code code = mp_lock(m, -1);
    if (code != MP_OK) return code;
    for (; *cursor < high && *found < count; ++*cursor)
        if (mp_state_of(atomic_load(&m->entries[*cursor].control)) != MP_FREE)
            rows[(*found)++] = describe(m, *cursor, now, rate);
    mp_unlock(m);
    return MP_OK;
}
