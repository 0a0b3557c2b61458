/* Segment records: which spill files exist, and how much of each is alive.
 *
 * Invariants: a segment is appended to by its owner only, while OPEN. What a caller holds is a record's index,
 * and that is its own segment if the record is OPEN, has the number of its slot, and the slot is still its own: a
 * slot is another's only after all that its owner had open is closed. It is DEAD when it is not
 * OPEN and no place points to it; then anybody may unlink the file and forget the record. The
 * live bytes are a cache: the places are the truth.
 */
#include "failpoint.h"
#include "kernel.h"

mp_code mp_segment_open(mp_member *m, uint32_t directory, uint32_t *segment, uint64_t *id) {
    mp_pool *pool = &m->header->pool_segments;
    for (;;) {
        mp_code code = mp_pool_ensure(m, pool, 1);
        if (code == MP_OK) code = mp_lock_own(m);
        if (code != MP_OK) return code;
        uint32_t index = mp_pool_take(m, pool);
        if (index != 0) {
            mp_segment *s = &m->segments[index];
            s->id = *id = m->header->next_segment_id++;
            s->size = s->live = s->punched = 0;
            s->owner = m->slot;
            s->directory = directory;
            MP_FAILPOINT("segment.filled");
            atomic_store(&s->state, MP_SEGMENT_OPEN);
            *segment = index;
        }
        mp_unlock(m);
        MP_FAILPOINT("segment.open");
        if (index != 0) return MP_OK;
    }
}

mp_code mp_segment_reserve(mp_member *m, uint32_t segment, uint64_t bytes, uint64_t *offset) {
    if (segment == 0 || segment >= m->geometry.segments) return MP_INVALID;
    mp_code code = mp_lock_own(m);
    if (code != MP_OK) return code;
    mp_segment *s = &m->segments[segment];
    uint64_t limit = atomic_load(&m->header->spill_limit);
    if (!mp_segment_mine(m, segment))
        code = MP_INVALID;
    else if (bytes > limit || m->header->disk_bytes > limit - bytes)
        code = MP_DISK_LIMIT;
    else {
        *offset = s->size;
        s->size += bytes;
        MP_FAILPOINT("segment.reserved");
        m->header->disk_bytes += bytes;
    }
    mp_unlock(m);
    return code;
}

bool mp_segment_mine(mp_member *m, uint32_t segment) {
    if (segment == 0 || segment >= m->geometry.segments) return false;
    mp_segment *s = &m->segments[segment];
    return atomic_load(&s->state) == MP_SEGMENT_OPEN && s->owner == m->slot;
}

static void die_if_empty(mp_member *m, mp_segment *s) {
    if (s->live != 0 || atomic_load(&s->state) != MP_SEGMENT_CLOSED) return;
    atomic_store(&s->state, MP_SEGMENT_DEAD);
    atomic_fetch_add(&m->header->dead_segments, 1);
}

void mp_segment_retire(mp_member *m, uint32_t segment) {
    mp_segment *s = &m->segments[segment];
    if (atomic_load(&s->state) != MP_SEGMENT_OPEN) return;
    atomic_store(&s->state, MP_SEGMENT_CLOSED);
    MP_FAILPOINT("segment.closed");
    die_if_empty(m, s);
}

void mp_segment_vacate(mp_member *m, uint32_t segment, uint64_t bytes) {
    if (segment >= m->geometry.segments) return;
    mp_segment *s = &m->segments[segment];
    s->live = s->live > bytes ? s->live - bytes : 0;
    die_if_empty(m, s);
}

mp_code mp_segment_end(mp_member *m, uint32_t segment, uint64_t id) {
    mp_code code = mp_lock_own(m);
    if (code == MP_BUSY) mp_put_off(m, (mp_unfinished){.kind = MP_SEGMENT_FULL, .item = segment, .number = id});
    if (code != MP_OK) return code;
    if (mp_segment_mine(m, segment) && m->segments[segment].id == id) mp_segment_retire(m, segment);
    mp_unlock(m);
    return MP_OK;
}

void mp_segment_close(mp_member *m, uint32_t segment) {
    if (segment != 0 && segment < m->geometry.segments) (void)mp_segment_end(m, segment, m->segments[segment].id);
}

/* bytes is a total, not a difference: whoever dies between punching and this call, or comes second, leaves
 * the count true. It never falls, since in a closed segment nothing that is dead becomes alive. */
mp_code mp_segment_punched(mp_member *m, uint32_t segment, uint64_t id, uint64_t bytes) {
    if (segment == 0 || segment >= m->geometry.segments) return MP_INVALID;
    mp_code code = mp_lock(m, -1);
    if (code != MP_OK) return code;
    mp_segment *s = &m->segments[segment];
    uint32_t state = atomic_load(&s->state);
    if (s->id != id || (state != MP_SEGMENT_CLOSED && state != MP_SEGMENT_DEAD) || bytes > s->size)
        code = MP_NOT_FOUND;
    else if (bytes > s->punched) {
        uint64_t more = bytes - s->punched;
        s->punched = bytes;
        MP_FAILPOINT("segment.punched");
        m->header->disk_bytes -= more;
    }
    mp_unlock(m);
    return code;
}

/* What is seen without the mutex may have been forgotten, and be the record of a new file by now, which is
 * full of life: id and directory are read together with the state that makes them the caller's to unlink. */
uint32_t mp_segment_dead(mp_member *m, uint32_t from, mp_segment *copy) {
    for (uint32_t s = from ? from : 1; s < mp_segments_backed(m); s++) {
        if (atomic_load(&m->segments[s].state) != MP_SEGMENT_DEAD) continue;
        MP_FAILPOINT("segment.seen");
        mp_code code = mp_segment_read(m, s, copy);
        if (code == MP_OK && atomic_load(&copy->state) == MP_SEGMENT_DEAD) return s;
        if (code != MP_OK && code != MP_NOT_FOUND) return 0;
    }
    return 0;
}

mp_code mp_segment_read(mp_member *m, uint32_t segment, mp_segment *copy) {
    if (segment == 0 || segment >= m->geometry.segments) return MP_INVALID;
    if (segment >= atomic_load(&m->header->pool_segments.high)) return MP_NOT_FOUND;
    mp_code code = mp_lock(m, -1);
    if (code != MP_OK) return code;
    memcpy(copy, &m->segments[segment], sizeof *copy);
    mp_unlock(m);
    return atomic_load(&copy->state) == MP_SEGMENT_FREE ? MP_NOT_FOUND : MP_OK;
}

mp_code mp_segments(mp_member *m, uint32_t *cursor, mp_segment_row *rows, uint32_t count, uint32_t *found) {
    uint32_t high = mp_segments_backed(m);
    *found = 0;
    if (*cursor == 0) *cursor = 1;
    mp_code code = mp_lock(m, -1);
    if (code != MP_OK) return code;
    for (; *cursor < high && *found < count; ++*cursor) {
        mp_segment *s = &m->segments[*cursor];
        uint32_t state = atomic_load(&s->state);
        if (state == MP_SEGMENT_FREE) continue;
        rows[(*found)++] = (mp_segment_row){
            .id = s->id,
            .size = s->size,
            .live = s->live,
            .punched = s->punched,
            .segment = *cursor,
            .directory = s->directory,
            .state = state,
            .owner = s->owner,
        };
    }
    mp_unlock(m);
    return MP_OK;
}

mp_code mp_segment_forget(mp_member *m, uint32_t segment, uint64_t id) {
    if (segment == 0 || segment >= m->geometry.segments) return MP_INVALID;
    mp_code code = mp_lock(m, -1);
    if (code != MP_OK) return code;
    mp_segment *s = &m->segments[segment];
    if (s->id != id || atomic_load(&s->state) != MP_SEGMENT_DEAD)
        code = MP_NOT_FOUND;
    else {
        atomic_store(&s->state, MP_SEGMENT_FREE);
        MP_FAILPOINT("segment.forgotten");
        m->header->disk_bytes -= s->size - s->punched;
        atomic_fetch_sub(&m->header->dead_segments, 1);
        mp_pool_give(m, &m->header->pool_segments, segment);
    }
    mp_unlock(m);
    return code;
}
