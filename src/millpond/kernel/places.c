/* Where disk copies are: looking at all of them, and moving one.
 *
 * Invariants: a segment that is CLOSED gets no further places, so a byte of it that no place covers
 * is dead for ever, and a scan that is a moment old errs only by taking dead bytes for live ones. The
 * place of an entry that anybody pins stays: a reader may be at work on it. A place changes in one
 * hold of the mutex; recovery finishes a change whose owner died in the middle.
 */
#include "failpoint.h"
#include "kernel.h"

#define ENTRIES_PER_HOLD 4096u

static uint32_t end_of_hold(mp_member *m, uint32_t *cursor) {
    uint32_t high = mp_entries_backed(m);
    if (*cursor == 0) *cursor = 1;
    return *cursor + ENTRIES_PER_HOLD < high ? *cursor + ENTRIES_PER_HOLD : high;
}

static void mark(uint64_t *bits, uint64_t first, uint64_t stop) {
    for (uint64_t page = first; page < stop; page++) bits[page / 64] |= 1ull << (page % 64);
}

mp_code mp_live_pages(mp_member *m, uint32_t *cursor, const mp_page_map *map) {
    uint32_t end = end_of_hold(m, cursor);
    mp_code code = mp_lock(m, -1);
    if (code != MP_OK) return code;
    for (; *cursor < end; ++*cursor) {
        const mp_place *place = &m->entries[*cursor].place;
        uint32_t segment = atomic_load(&place->segment);
        if (segment == 0 || segment >= map->segments) continue;
        uint64_t base = map->bases[segment], pages = map->bases[segment + 1] - base;
        uint64_t first = place->offset / MP_PAGE, stop = (place->offset + place->length + MP_PAGE - 1) / MP_PAGE;
        if (stop > pages) stop = pages;
        if (first < stop) mark(map->bits, base + first, base + stop);
    }
    mp_unlock(m);
    return MP_OK;
}

static bool alive(const mp_entry *e) {
    enum mp_state state = mp_state_of(atomic_load(&e->control));
    return state == MP_RESIDENT || state == MP_SPILLED;
}

mp_code mp_records(mp_member *m, uint32_t *cursor, const uint8_t *wanted, uint32_t segments, mp_record *rows,
                   uint32_t count, uint32_t *found) {
    uint32_t end = end_of_hold(m, cursor);
    *found = 0;
    mp_code code = mp_lock(m, -1);
    if (code != MP_OK) return code;
    for (; *cursor < end && *found < count; ++*cursor) {
        mp_entry *e = &m->entries[*cursor];
        uint32_t segment = atomic_load(&e->place.segment);
        if (segment == 0 || segment >= segments || !wanted[segment] || !alive(e) || mp_pinned(e)) continue;
        uint64_t control = atomic_load(&e->control);
        rows[(*found)++] = (mp_record){
            .birth = mp_birth_of(control),
            .size = atomic_load_explicit(&e->size, memory_order_relaxed),
            .offset = e->place.offset,
            .length = e->place.length,
            .checksum = e->place.checksum,
            .entry = *cursor,
            .segment = segment,
            .codec = e->place.codec,
            .resident = mp_state_of(control) == MP_RESIDENT,
        };
    }
    mp_unlock(m);
    return MP_OK;
}

/* --- moving --- */

void mp_move_finish(mp_member *m) {
    mp_header *h = m->header;
    uint32_t entry = atomic_load(&h->move_entry);
    if (entry == 0 || entry >= m->geometry.entries) return;
    mp_place *place = &m->entries[entry].place;
    place->offset = h->move_offset;
    MP_FAILPOINT("place.move.offset");
    atomic_store(&place->segment, h->move_segment);
    MP_FAILPOINT("place.move.segment");
    atomic_store(&h->move_entry, 0);
}

static bool is_place(const mp_place *place, const mp_record *record) {
    return atomic_load(&place->segment) == record->segment && place->offset == record->offset &&
           place->length == record->length && place->checksum == record->checksum && place->codec == record->codec;
}

mp_code mp_place_move(mp_member *m, const mp_record *record, uint32_t segment, uint64_t offset) {
    if (record->entry == 0 || record->entry >= m->geometry.entries) return MP_NOT_FOUND;
    mp_code code = mp_lock_own(m);
    if (code != MP_OK) return code;
    mp_entry *e = &m->entries[record->entry];
    if (mp_birth_of(atomic_load(&e->control)) != record->birth || !alive(e) || !is_place(&e->place, record))
        code = MP_NOT_FOUND;
    else if (mp_pinned(e))
        code = MP_IS_PINNED;
    else if (!mp_segment_mine(m, segment))
        code = MP_INVALID;
    else {
        m->header->move_offset = offset;
        m->header->move_segment = segment;
        MP_FAILPOINT("place.move.filled");
        atomic_store(&m->header->move_entry, record->entry); /* from here on the place is the new one */
        atomic_signal_fence(memory_order_seq_cst); /* the compiler writes nothing of it earlier */
        MP_FAILPOINT("place.move.decided");
        mp_move_finish(m);
        MP_FAILPOINT("place.move.done");
        m->segments[segment].live += record->length;
        mp_segment_vacate(m, record->segment, record->length);
    }
    mp_unlock(m);
    return code;
}

mp_code mp_drop_place(mp_member *m, uint32_t entry, uint64_t birth) {
    mp_code code = mp_lock(m, -1);
    if (code != MP_OK) return code;
    mp_entry *e = &m->entries[entry];
    bool resident = atomic_load(&e->control) == mp_word(birth, MP_RESIDENT);
    code = !resident ? MP_NOT_FOUND : mp_pinned(e) ? MP_IS_PINNED : MP_OK;
    if (code == MP_OK) mp_place_free(m, e);
    mp_unlock(m);
    return code;
}
