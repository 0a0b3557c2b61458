/* Who waits for room, in order: one ticket for each member, and what was freed for the first of them.
 *
 * Room that comes free while members wait is put by for the one that waits longest, up to what it needs:
 * a draft of anybody else may take pages only if that much stays free. So a large put is not starved
 * by small ones, while what fits beside it just goes. The first is bound by nobody, so somebody can
 * always go on. A ticket that is not renewed for LAPSE_NS binds nobody, until its member comes
 * back; that of a dead member goes with its slot. Restores are not bound: what they take has a disk copy.
 * What the first has taken, or is about to commit or punch for itself, need not be kept free by anybody.
 * Invariants: everything here happens under the mutex. Tickets are true, `queue_first` is a cache.
 * Not here: making room, and how long to wait for it (store/room.py, store/store.py).
 */
#include "arena.h"
#include "failpoint.h"

#define LAPSE_NS 250000000ull

static bool waits(const mp_slot *s) { return mp_slot_state_of(atomic_load(&s->word)) == MP_SLOT_LIVE && s->ticket != 0; }

/* The member with the oldest ticket of those that are renewed and still need something. */
static void choose_first(mp_member *m, uint64_t now) {
    uint32_t first = 0;
    for (uint32_t i = 0; i < MP_SLOTS; i++) {
        const mp_slot *s = &m->slots[i];
        if (!waits(s) || s->room_needed == 0 || s->ticket_renewed + LAPSE_NS < now) continue;
        if (first == 0 || s->ticket < m->slots[first - 1].ticket) first = i + 1;
    }
    m->header->queue_first = first;
}

static mp_slot *first_of(const mp_member *m) {
    uint32_t first = m->header->queue_first;
    return first != 0 && first <= MP_SLOTS ? &m->slots[first - 1] : NULL;
}

mp_code mp_queue_enter(mp_member *m, uint64_t bytes) {
    mp_header *h = m->header;
    mp_slot *s = &m->slots[m->slot];
    uint64_t now = m->system->boottime();
    mp_code code = mp_lock_own(m);
    if (code != MP_OK) return code;
    if (m->queued++ == 0) {
        s->room_needed = s->room_reserved = 0;
        s->ticket_renewed = now;
        MP_FAILPOINT("queue.ticket");
        s->ticket = h->next_ticket++;
    }
    s->room_needed += bytes;
    choose_first(m, now);
    mp_unlock(m);
    return MP_OK;
}

mp_code mp_queue_renew(mp_member *m) {
    uint64_t now = m->system->boottime();
    mp_code code = mp_lock_own(m);
    if (code != MP_OK) return code;
    m->slots[m->slot].ticket_renewed = now;
    choose_first(m, now);
    atomic_store(&m->header->room_wanted, 1); /* whoever frees something from here on wakes us */
    mp_unlock(m);
    return MP_OK;
}

void mp_queue_void(mp_member *m, uint32_t slot) {
    mp_slot *s = &m->slots[slot];
    if (s->ticket == 0) return;
    s->ticket = s->room_needed = s->room_reserved = 0;
    MP_FAILPOINT("queue.void");
    choose_first(m, m->system->boottime());
    atomic_store(&m->header->room_wanted, 0);
    mp_event_bump(m);
}

static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

mp_code mp_queue_leave(mp_member *m, uint64_t bytes) {
    mp_slot *s = &m->slots[m->slot];
    mp_code code = mp_lock_own(m);
    if (code == MP_BUSY) mp_put_off(m, (mp_unfinished){.kind = MP_QUEUED, .number = bytes});
    if (code != MP_OK) return code;
    uint64_t served = smaller(m->queue_served, bytes);
    m->queue_served = --m->queued == 0 ? 0 : m->queue_served - served;
    if (m->queued == 0) mp_queue_void(m, m->slot);
    s->room_needed -= smaller(s->room_needed, bytes - served);
    mp_unlock(m);
    return MP_OK;
}

/* Our slot while we stand in the queue, else NULL. */
static mp_slot *own_place(const mp_member *m) {
    mp_slot *s = &m->slots[m->slot];
    return m->queued != 0 && s->ticket != 0 && mp_owns_slot(m) ? s : NULL;
}

uint64_t mp_queue_borrow(mp_member *m, uint64_t bytes) {
    mp_slot *s = own_place(m);
    uint64_t borrowed = s ? smaller(s->room_reserved, bytes) : 0;
    if (s) s->room_reserved -= borrowed;
    return borrowed;
}

void mp_queue_return(mp_member *m, uint64_t borrowed) {
    mp_slot *s = own_place(m);
    if (s) s->room_reserved = smaller(s->room_needed, s->room_reserved + borrowed);
}

void mp_queue_taken(mp_member *m, uint64_t bytes) {
    mp_slot *s = own_place(m);
    if (!s || bytes + MP_BLOCK < s->room_needed) return; /* perhaps another thread's, which does not wait */
    m->queue_served += s->room_needed;
    s->room_needed = s->room_reserved = 0;
    choose_first(m, m->system->boottime());
}

void mp_queue_freed(mp_member *m, uint64_t bytes) {
    mp_header *h = m->header;
    mp_slot *first = first_of(m);
    uint64_t lacking = first && first->room_needed > first->room_reserved ? first->room_needed - first->room_reserved : 0;
    if (lacking) first->room_reserved += lacking < bytes ? lacking : bytes;
    if (atomic_load_explicit(&h->room_wanted, memory_order_relaxed)) {
        atomic_store(&h->room_wanted, 0);
        mp_event_bump(m);
    }
}

/* Pages that a value of that size would take from the free ones, as bytes. */
static uint64_t pages_for(const mp_member *m, uint64_t size) {
    if (size > MP_SMALL_MAX) return mp_extent_bytes(size);
    return m->header->class_slabs[mp_class_of(size)] ? 0 : MP_BLOCK;
}

uint64_t mp_queue_lacks(mp_member *m, uint64_t size) {
    const mp_header *h = m->header;
    const mp_slot *first = first_of(m);
    uint64_t bytes = pages_for(m, size);
    if (bytes == 0 || !first || h->queue_first == m->slot + 1 || first->room_reserved == 0) return 0;
    if (!waits(first) || first->ticket_renewed + LAPSE_NS < m->system->boottime()) return 0;
    uint64_t limit = atomic_load_explicit(&h->memory_limit, memory_order_relaxed) / MP_BLOCK * MP_BLOCK;
    uint64_t committed = atomic_load_explicit(&h->committed_blocks, memory_order_relaxed) * MP_BLOCK;
    uint64_t there = atomic_load_explicit(&h->free_pages, memory_order_relaxed) * MP_PAGE;
    if (limit > committed) there += limit - committed;
    uint64_t wanted = first->room_reserved + bytes;
    return wanted > there ? wanted - there : 0;
}

uint64_t mp_queue_lacking(mp_member *m, uint64_t size) {
    if (mp_lock(m, -1) != MP_OK) return 0;
    uint64_t bytes = mp_queue_lacks(m, size);
    mp_unlock(m);
    return bytes;
}

void mp_queue_rebuild(mp_member *m) {
    mp_header *h = m->header;
    for (uint32_t i = 0; i < MP_SLOTS; i++) {
        mp_slot *s = &m->slots[i];
        if (s->ticket >= h->next_ticket) h->next_ticket = s->ticket + 1;
        if (!waits(s)) s->ticket = s->room_needed = s->room_reserved = 0;
    }
    choose_first(m, m->system->boottime());
}
