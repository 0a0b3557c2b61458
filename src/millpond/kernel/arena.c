/* Extents of the arena: spans, slabs, allocation.
 *
 * Invariants: small values are slots of slabs, a slab being one aligned block; larger ones are
 * runs of pages. Every page of a COMMITTED block belongs to exactly one span; a free span
 * never touches another free one, and never leaves COMMITTED blocks. All of it is a cache of
 * the entries and the commit map, so a death between any two stores costs a rebuild and
 * nothing else. What is read from the table is checked before it is used as an index.
 * Layout: spans are a list by address and, if free, on the list of their size bin. The slab
 * record of a block names the span that ends with this block, if one does: that is how a run
 * of new blocks finds its place in the list.
 * Not here: commitment (commit.c), rebuild and check (arena_repair.c), entries (objects.c).
 */
#include "arena.h"
#include "failpoint.h"

#define LOOKS 8u /* candidates looked at before the best is good enough */

uint64_t mp_extent_bytes(uint64_t size) {
    if (size <= MP_SMALL_MAX) return mp_class_bytes(mp_class_of(size));
    if (size > UINT64_MAX - MP_PAGE) return UINT64_MAX - MP_PAGE + 1;
    return (size + MP_PAGE - 1) / MP_PAGE * MP_PAGE;
}

mp_code mp_arena_corrupted(mp_member *m) {
    atomic_store_explicit(&m->header->poisoned, 1, memory_order_relaxed);
    return MP_CORRUPTED;
}

/* --- the pool of spans --- */

static mp_span *span_at(mp_member *m, uint32_t i) {
    if (i < m->geometry.spans) return &m->spans[i];
    mp_arena_corrupted(m);
    return &m->spans[0];
}

bool mp_span_reserve(mp_member *m, uint32_t count) {
    if (mp_span_left(m) >= count + MP_SPAN_RESERVE) return true;
    m->full_pool = "spans";
    return false;
}

uint32_t mp_span_take(mp_member *m) {
    uint32_t i = mp_pool_take(m, &m->header->pool_spans);
    m->spans[i] = (mp_span){0};
    if (i == 0) mp_arena_corrupted(m);
    return i;
}

void mp_span_give(mp_member *m, uint32_t i) {
    m->spans[i] = (mp_span){0};
    mp_pool_give(m, &m->header->pool_spans, i);
}

/* --- bins --- */

void mp_bin_insert(mp_member *m, uint32_t i) {
    mp_header *h = m->header;
    uint32_t bin = mp_span_bin(&m->spans[i]);
    m->spans[i].bin_prev = 0;
    m->spans[i].bin_next = h->bins[bin];
    span_at(m, h->bins[bin])->bin_prev = i;
    h->bins[bin] = i;
    h->bin_bits[bin / 32] |= 1u << (bin % 32);
}

void mp_bin_remove(mp_member *m, uint32_t i) {
    mp_header *h = m->header;
    mp_span *s = &m->spans[i];
    uint32_t bin = mp_span_bin(s);
    span_at(m, s->bin_next)->bin_prev = s->bin_prev;
    span_at(m, s->bin_prev)->bin_next = s->bin_next;
    if (h->bins[bin] == i) h->bins[bin] = s->bin_next;
    if (h->bins[bin] == 0) h->bin_bits[bin / 32] &= ~(1u << (bin % 32));
    s->bin_next = s->bin_prev = 0;
}

/* The first bin at or after bin that is not empty; MP_BINS if there is none. */
static uint32_t bin_next(mp_member *m, uint32_t bin) {
    while (bin < MP_BINS) {
        uint32_t rest = m->header->bin_bits[bin / 32] >> (bin % 32);
        if (rest != 0) {
            bin += (uint32_t)__builtin_ctz(rest);
            return bin < MP_BINS ? bin : MP_BINS;
        }
        bin = (bin / 32 + 1) * 32;
    }
    return MP_BINS;
}

/* --- spans by address --- */

void mp_span_mark_end(mp_member *m, uint32_t i) {
    uint64_t end = mp_span_end(&m->spans[i]);
    if (end % MP_BLOCK_PAGES == 0) m->slabs[end / MP_BLOCK_PAGES - 1].span = i;
}

void mp_span_link(mp_member *m, uint32_t prev, uint32_t i) {
    mp_span *s = &m->spans[i];
    s->prev = prev;
    s->next = prev ? span_at(m, prev)->next : m->header->span_first;
    span_at(m, s->next)->prev = i;
    if (prev) span_at(m, prev)->next = i;
    else m->header->span_first = i;
}

void mp_span_unlink(mp_member *m, uint32_t i) {
    mp_span *s = &m->spans[i];
    span_at(m, s->next)->prev = s->prev;
    if (s->prev) span_at(m, s->prev)->next = s->next;
    else m->header->span_first = s->next;
}

bool mp_span_free(const mp_member *m, uint32_t i) {
    if (i == 0 || i >= m->geometry.spans) return false;
    const mp_span *s = &m->spans[i];
    return s->used == MP_SPAN_FREE && s->pages != 0 && mp_span_end(s) <= mp_arena_pages(m);
}

/* Is this the span of that run? */
bool mp_span_is(const mp_member *m, uint32_t i, enum mp_span_use used, uint64_t page, uint64_t pages) {
    if (i == 0 || i >= m->geometry.spans) return false;
    return m->spans[i].used == (uint32_t)used && m->spans[i].page == page && m->spans[i].pages == pages;
}

static bool span_touches(mp_member *m, uint32_t low, uint32_t high) {
    if (!mp_span_free(m, low) || !mp_span_free(m, high)) return false;
    return mp_span_end(&m->spans[low]) == m->spans[high].page;
}

void mp_span_carve(mp_member *m, uint32_t i, uint32_t page, uint32_t pages, enum mp_span_use used) {
    mp_span *s = &m->spans[i];
    uint32_t before = page - s->page, after = s->pages - before - pages;
    mp_bin_remove(m, i);
    MP_FAILPOINT("arena.carve.unbinned");
    uint32_t front = before ? mp_span_take(m) : 0, back = after ? mp_span_take(m) : 0;
    if (front) {
        m->spans[front].page = s->page;
        m->spans[front].pages = before;
        mp_span_link(m, s->prev, front);
        mp_bin_insert(m, front);
        mp_span_mark_end(m, front);
    }
    s->page = page;
    s->pages = pages;
    s->used = used;
    MP_FAILPOINT("arena.carve.cut");
    if (back) {
        m->spans[back].page = page + pages;
        m->spans[back].pages = after;
        mp_span_link(m, i, back);
        mp_bin_insert(m, back);
        mp_span_mark_end(m, back);
    }
    mp_span_mark_end(m, i);
    mp_total_add(&m->header->free_pages, 0ull - pages);
    uint64_t left = atomic_load_explicit(&m->header->free_pages, memory_order_relaxed);
    if (left < atomic_load_explicit(&m->header->free_pages_low, memory_order_relaxed))
        atomic_store_explicit(&m->header->free_pages_low, left, memory_order_relaxed);
}

void mp_span_release(mp_member *m, uint32_t i) {
    m->spans[i].used = MP_SPAN_FREE;
    mp_total_add(&m->header->free_pages, m->spans[i].pages);
    uint32_t prev = m->spans[i].prev;
    if (span_touches(m, prev, i)) {
        mp_bin_remove(m, prev);
        m->spans[prev].pages += m->spans[i].pages;
        mp_span_unlink(m, i);
        mp_span_give(m, i);
        i = prev;
        MP_FAILPOINT("arena.release.merged");
    }
    uint32_t next = m->spans[i].next;
    if (span_touches(m, i, next)) {
        mp_bin_remove(m, next);
        m->spans[i].pages += m->spans[next].pages;
        mp_span_unlink(m, next);
        mp_span_give(m, next);
    }
    mp_span_mark_end(m, i);
    MP_FAILPOINT("arena.release.unbinned");
    mp_bin_insert(m, i);
}

/* --- choosing a run --- */

typedef struct candidate {
    uint32_t span, page, bin;
    bool mine;
} candidate;

static bool mine(mp_member *m, uint32_t page) {
    return MP_COMMIT_SLOT(mp_commit_word(m, page / MP_BLOCK_PAGES)) == m->slot;
}

/* Pages that this member wrote last are mapped here already: copying into them is several
 * times faster than into any others. So either end of a span may serve. */
static bool consider(mp_member *m, uint32_t i, uint32_t pages, uint32_t align, candidate *best) {
    const mp_span *s = &m->spans[i];
    uint64_t front = ((uint64_t)s->page + align - 1) / align * align;
    if (front + pages > mp_span_end(s)) return false;
    uint32_t back = (uint32_t)((mp_span_end(s) - pages) / align * align);
    candidate c = {.span = i, .page = (uint32_t)front, .bin = mp_bin_of(s->pages)};
    c.mine = mine(m, c.page);
    if (!c.mine && mine(m, back)) {
        c.page = back;
        c.mine = true;
    }
    bool better = best->span == 0 || (c.mine && !best->mine) ||
                  (c.mine == best->mine && c.bin == best->bin && c.page < best->page);
    if (better) *best = c;
    return true;
}

/* Looks at up to looks spans of each bin, from the tightest bin on, until one that this
 * member wrote last is found or enough others. */
static mp_code find_run(mp_member *m, uint32_t pages, uint32_t align, uint32_t looks, candidate *best) {
    uint32_t fitting = 0;
    for (uint32_t bin = bin_next(m, mp_bin_of(pages)); bin < MP_BINS; bin = bin_next(m, bin + 1)) {
        uint32_t i = m->header->bins[bin];
        for (uint32_t left = looks; i != 0 && left != 0; left--) {
            if (!mp_span_free(m, i)) return mp_arena_corrupted(m);
            fitting += consider(m, i, pages, align, best);
            i = m->spans[i].bin_next;
        }
        if (best->mine || fitting >= LOOKS) break;
    }
    return best->span ? MP_OK : MP_NO_ROOM;
}

/* Notes that this member writes the blocks of a run of COMMITTED ones: by copies that double, since 1 GB has 16 384. */
static void stamp(mp_member *m, uint32_t block, uint32_t blocks) {
    uint16_t *words = (uint16_t *)(void *)(m->commit + block);
    words[0] = MP_COMMIT(MP_COMMITTED, m->slot);
    for (uint32_t done = 1; done < blocks; done *= 2) {
        uint32_t more = blocks - done < done ? blocks - done : done;
        memcpy(words + done, words, more * sizeof *words);
    }
}

/* The pages of a free span that they name become a run, which this member writes. */
static void take_pages(mp_member *m, uint32_t i, uint32_t page, uint32_t pages, enum mp_span_use used) {
    uint32_t first = page / MP_BLOCK_PAGES, last = (page + pages - 1) / MP_BLOCK_PAGES;
    mp_span_carve(m, i, page, pages, used);
    stamp(m, first, last - first + 1);
    MP_FAILPOINT("arena.take.stamped");
}

static mp_code take_run(mp_member *m, uint32_t pages, uint32_t align, enum mp_span_use used, uint32_t *span) {
    candidate best = {0};
    if (!mp_span_reserve(m, 2)) return MP_POOL_FULL;
    mp_code code = find_run(m, pages, align, LOOKS, &best);
    if (code == MP_NO_ROOM) code = find_run(m, pages, align, MP_LOOKS, &best);
    if (code != MP_OK) return code;
    take_pages(m, best.span, best.page, pages, used);
    *span = best.span;
    return mp_arena_outcome(m);
}

mp_code mp_run_take_behind(mp_member *m, uint32_t before, uint32_t pages, uint64_t *offset, uint32_t *span) {
    if (!mp_span_reserve(m, 1)) return MP_POOL_FULL;
    *span = m->spans[before].next;
    uint64_t page = mp_span_end(&m->spans[before]);
    if (!mp_span_free(m, *span) || m->spans[*span].page != page || m->spans[*span].pages < pages) return MP_NO_ROOM;
    take_pages(m, *span, (uint32_t)page, pages, MP_SPAN_EXTENT);
    *offset = page * MP_PAGE;
    return mp_arena_outcome(m);
}

/* --- slabs --- */

static mp_slab *slab_at(mp_member *m, uint32_t link) {
    if (link != 0 && link <= m->geometry.blocks) return &m->slabs[link - 1];
    if (link != 0) mp_arena_corrupted(m);
    return NULL;
}

void mp_slab_list(mp_member *m, uint32_t block) {
    mp_slab *slab = &m->slabs[block];
    uint32_t *head = &m->header->class_slabs[slab->size_class - 1];
    mp_slab *next = slab_at(m, *head);
    slab->prev = 0;
    slab->next = *head;
    if (next) next->prev = block + 1;
    *head = block + 1;
}

static void slab_unlist(mp_member *m, uint32_t block) {
    mp_slab *slab = &m->slabs[block], *next = slab_at(m, slab->next), *prev = slab_at(m, slab->prev);
    if (next) next->prev = slab->prev;
    if (prev) prev->next = slab->next;
    else m->header->class_slabs[slab->size_class - 1] = slab->next;
    slab->next = slab->prev = 0;
}

static mp_code slab_new(mp_member *m, uint32_t class) {
    uint32_t span;
    mp_code code = take_run(m, MP_BLOCK_PAGES, MP_BLOCK_PAGES, MP_SPAN_SLAB, &span);
    if (code != MP_OK) return code;
    uint32_t block = m->spans[span].page / MP_BLOCK_PAGES;
    MP_FAILPOINT("arena.slab.carved");
    uint32_t slots = MP_BLOCK / mp_class_bytes(class);
    m->slabs[block] = (mp_slab){.slots = slots, .size_class = class + 1, .span = span};
    mp_total_add(&m->header->free_slot_bytes, (uint64_t)slots * mp_class_bytes(class));
    mp_slab_list(m, block);
    return mp_arena_outcome(m);
}

/* A slab of the class with a free slot: one that this member cut, if it is near the front. */
static mp_slab *slab_choose(mp_member *m, uint32_t class) {
    mp_slab *first = slab_at(m, m->header->class_slabs[class]), *slab = first;
    for (uint32_t left = LOOKS; slab != NULL && left != 0; left--) {
        if (mine(m, (uint32_t)(slab - m->slabs) * MP_BLOCK_PAGES)) return slab;
        slab = slab_at(m, slab->next);
    }
    return first;
}

static bool slab_sane(const mp_slab *slab, uint32_t class) {
    return slab->size_class == class + 1 && slab->slots == MP_BLOCK / mp_class_bytes(class) &&
           slab->used <= slab->slots;
}

mp_code mp_slab_take(mp_member *m, uint32_t block, uint32_t class, uint64_t *offset) {
    mp_slab *slab = &m->slabs[block];
    uint32_t slot = 0;
    if (!slab_sane(slab, class) || slab->used == slab->slots) return MP_NO_ROOM;
    while (slot < MP_SLAB_WORDS && ~slab->used_bits[slot] == 0) slot++;
    slot = slot < MP_SLAB_WORDS ? slot * 64 + (uint32_t)__builtin_ctzll(~slab->used_bits[slot]) : slab->slots;
    if (slot >= slab->slots) return mp_arena_corrupted(m);
    slab->used_bits[slot / 64] |= mp_bit(slot);
    mp_total_add(&m->header->free_slot_bytes, 0ull - mp_class_bytes(class));
    MP_FAILPOINT("arena.slot.taken");
    if (++slab->used == slab->slots) slab_unlist(m, block);
    *offset = (uint64_t)block * MP_BLOCK + (uint64_t)slot * mp_class_bytes(class);
    return mp_arena_outcome(m);
}

static mp_code slot_take(mp_member *m, uint64_t size, uint64_t *offset) {
    uint32_t class = mp_class_of(size);
    if (m->header->class_slabs[class] == 0) {
        mp_code code = slab_new(m, class);
        if (code != MP_OK) return code;
    }
    mp_slab *slab = slab_choose(m, class);
    mp_code code = slab ? mp_slab_take(m, (uint32_t)(slab - m->slabs), class, offset) : MP_NO_ROOM;
    return code == MP_NO_ROOM ? mp_arena_corrupted(m) : code; /* what is listed has a free slot */
}

static void slot_give(mp_member *m, uint64_t offset, uint64_t size) {
    uint32_t class = mp_class_of(size), block = (uint32_t)(offset / MP_BLOCK);
    uint32_t slot = (uint32_t)(offset % MP_BLOCK) / mp_class_bytes(class);
    mp_slab *slab = &m->slabs[block];
    uint32_t span = slab->span;
    bool sane = slab_sane(slab, class) && slot < slab->slots && slab->used != 0 &&
                offset % MP_BLOCK % mp_class_bytes(class) == 0 &&
                (slab->used_bits[slot / 64] & mp_bit(slot)) != 0 &&
                mp_span_is(m, span, MP_SPAN_SLAB, (uint64_t)block * MP_BLOCK_PAGES, MP_BLOCK_PAGES);
    if (!sane) {
        mp_arena_corrupted(m);
        return;
    }
    slab->used_bits[slot / 64] &= ~mp_bit(slot);
    mp_total_add(&m->header->free_slot_bytes, mp_class_bytes(class));
    MP_FAILPOINT("arena.slot.given");
    if (slab->used-- == slab->slots) mp_slab_list(m, block);
    if (slab->used != 0) return;
    slab_unlist(m, block);
    slab->size_class = 0;
    mp_total_add(&m->header->free_slot_bytes, 0ull - (uint64_t)slab->slots * mp_class_bytes(class));
    MP_FAILPOINT("arena.slab.emptied");
    mp_span_release(m, span);
}

/* --- extents --- */

bool mp_arena_fits(mp_member *m, uint64_t size) {
    bool small = size <= MP_SMALL_MAX;
    if (small && m->header->class_slabs[mp_class_of(size)] != 0) return true;
    uint64_t pages = small ? MP_BLOCK_PAGES : mp_extent_bytes(size) / MP_PAGE;
    candidate best = {0};
    return pages <= mp_arena_pages(m) &&
           find_run(m, (uint32_t)pages, small ? MP_BLOCK_PAGES : 1, MP_LOOKS, &best) == MP_OK;
}

mp_code mp_arena_alloc(mp_member *m, uint64_t size, uint64_t *offset, uint32_t *span) {
    *span = 0;
    if (mp_poisoned(m)) return MP_CORRUPTED;
    if (size <= MP_SMALL_MAX) return slot_take(m, size, offset);
    uint64_t pages = mp_extent_bytes(size) / MP_PAGE;
    if (pages > mp_arena_pages(m)) return MP_NO_ROOM;
    mp_code code = take_run(m, (uint32_t)pages, 1, MP_SPAN_EXTENT, span);
    if (code == MP_OK) *offset = (uint64_t)m->spans[*span].page * MP_PAGE;
    return code;
}

void mp_arena_free(mp_member *m, uint64_t offset, uint64_t size, uint32_t span) {
    uint64_t bytes = mp_extent_bytes(size), before = atomic_load_explicit(&m->header->free_pages, memory_order_relaxed);
    if (mp_poisoned(m)) return;
    if (bytes > m->geometry.arena_bytes || offset > m->geometry.arena_bytes - bytes) {
        mp_arena_corrupted(m);
    } else if (size <= MP_SMALL_MAX) {
        slot_give(m, offset, size);
    } else {
        uint64_t page = offset / MP_PAGE, pages = bytes / MP_PAGE;
        if (offset % MP_PAGE == 0 && mp_span_is(m, span, MP_SPAN_EXTENT, page, pages)) mp_span_release(m, span);
        else mp_arena_corrupted(m);
    }
    uint64_t after = atomic_load_explicit(&m->header->free_pages, memory_order_relaxed);
    mp_queue_freed(m, (after - before) * MP_PAGE);
}
