/* What arena.c, commit.c and arena_repair.c share: the arithmetic of extents, spans, bins and slabs.
 *
 * Invariants: everything here works on caches under the mutex. Item 0 of the spans is a
 * scratch that nobody reads, so that an index out of bounds can be led there.
 * Not here: the face of the arena (kernel.h).
 */
#ifndef MILLPOND_ARENA_H
#define MILLPOND_ARENA_H

#include "kernel.h"

/* What a span is for. COMMITTING: an item put by for a run that is being committed; it is in
 * bin 0 and not in the address order. */
enum mp_span_use { MP_SPAN_FREE = 0, MP_SPAN_EXTENT = 1, MP_SPAN_SLAB = 2, MP_SPAN_COMMITTING = 3 };

#define MP_CLASSES 48u     /* steps of 64 to 2048, of 256 to 4096, of 512 to 8192 */
#define MP_SPAN_RESERVE 4u /* items that only repair and completion may take */
#define MP_LOOKS 256u      /* spans of one bin looked at before there is no room */

static inline uint32_t mp_class_of(uint64_t size) {
    uint32_t bytes = size ? (uint32_t)size : 1;
    if (bytes <= 2048) return (bytes + 63) / 64 - 1;
    if (bytes <= 4096) return 32 + (bytes - 2048 + 255) / 256 - 1;
    return 40 + (bytes - 4096 + 511) / 512 - 1;
}

static inline uint32_t mp_class_bytes(uint32_t class) {
    if (class < 32) return (class + 1) * 64;
    if (class < 40) return 2048 + (class - 31) * 256;
    return 4096 + (class - 39) * 512;
}

/* Pages below 16 have a bin each; from there on eight bins share a power of two. Garbage
 * from the table gets the last bin. */
static inline uint32_t mp_bin_of(uint32_t pages) {
    if (pages < 8) return pages;
    uint32_t log = 31u - (uint32_t)__builtin_clz(pages);
    uint32_t bin = (log - 2) * 8 + ((pages >> (log - 3)) & 7u);
    return bin < MP_BINS ? bin : MP_BINS - 1;
}

static inline uint32_t mp_span_bin(const mp_span *s) {
    return s->used == MP_SPAN_COMMITTING ? 0 : mp_bin_of(s->pages);
}

static inline uint64_t mp_span_end(const mp_span *s) { return (uint64_t)s->page + s->pages; }
static inline uint64_t mp_arena_pages(const mp_member *m) {
    return (uint64_t)m->geometry.blocks * MP_BLOCK_PAGES;
}

static inline uint16_t mp_commit_word(const mp_member *m, uint32_t block) {
    return atomic_load_explicit(&m->commit[block], memory_order_relaxed);
}

static inline uint32_t mp_block_state(const mp_member *m, uint32_t block) {
    return MP_COMMIT_STATE(mp_commit_word(m, block));
}

/* Mutex held. Of an entry without an extent neither offset nor span mean anything. */
static inline bool mp_has_extent(const mp_entry *e) {
    uint64_t control = atomic_load_explicit(&e->control, memory_order_relaxed);
    return e->extent == 1 && mp_owns_extent(mp_state_of(control));
}

/* Items of the pool of spans that could be taken. */
static inline uint32_t mp_span_left(const mp_member *m) {
    const mp_pool *pool = &m->header->pool_spans;
    uint32_t high = atomic_load_explicit(&pool->high, memory_order_relaxed);
    uint32_t used = atomic_load_explicit(&pool->used, memory_order_relaxed);
    return used < high ? high - used : 0;
}

static inline bool mp_poisoned(const mp_member *m) {
    return atomic_load_explicit(&m->header->poisoned, memory_order_relaxed) != 0;
}

static inline mp_code mp_arena_outcome(const mp_member *m) { return mp_poisoned(m) ? MP_CORRUPTED : MP_OK; }

/* A total that changes only under the mutex and is read anywhere. */
static inline void mp_total_add(_Atomic uint64_t *total, uint64_t amount) {
    uint64_t before = atomic_load_explicit(total, memory_order_relaxed);
    atomic_store_explicit(total, before + amount, memory_order_relaxed);
}

/* --- arena.c; mutex held --- */
uint32_t mp_commit_high(const mp_member *m); /* commit.c: beyond it every block is NONE */
mp_code mp_arena_corrupted(mp_member *m); /* poisons the store; MP_CORRUPTED */

uint32_t mp_span_take(mp_member *m); /* an item of the pool; 0: none is backed, poisoned */
void mp_span_give(mp_member *m, uint32_t i);
bool mp_span_reserve(mp_member *m, uint32_t count); /* so many can be taken; false sets full_pool */
bool mp_span_free(const mp_member *m, uint32_t i);  /* a free run inside the arena */
bool mp_span_is(const mp_member *m, uint32_t i, enum mp_span_use used, uint64_t page, uint64_t pages);
void mp_span_mark_end(mp_member *m, uint32_t i);    /* in the slab record of its last block */
void mp_span_link(mp_member *m, uint32_t prev, uint32_t i);
void mp_span_unlink(mp_member *m, uint32_t i);
/* Cuts pages out of a free span, which becomes that run. Takes up to two items. */
void mp_span_carve(mp_member *m, uint32_t i, uint32_t page, uint32_t pages, enum mp_span_use used);
/* Makes a span of the list free: merged with its neighbours, in its bin. */
void mp_span_release(mp_member *m, uint32_t i);
void mp_bin_insert(mp_member *m, uint32_t i);
void mp_bin_remove(mp_member *m, uint32_t i);
void mp_slab_list(mp_member *m, uint32_t block); /* first among the slabs of its class */
/* A free slot of that very block. MP_NO_ROOM: it is full, or no slab of the class. */
mp_code mp_slab_take(mp_member *m, uint32_t block, uint32_t class, uint64_t *offset);
/* A run at the start of the free pages that follow a span. MP_NO_ROOM: there are too few. */
mp_code mp_run_take_behind(mp_member *m, uint32_t before, uint32_t pages, uint64_t *offset, uint32_t *span);

/* --- arena_repair.c --- */
/* Every fault of the arena's caches against entries and commit map. Mutex held. */
uint32_t mp_arena_check(mp_member *m, mp_fault *report, void *context);

#endif
