/* The arena's caches, made anew from the truth, and checked against it.
 *
 * Invariants: the truth is the entries that own an extent and the commit map; whatever the
 * caches hold is thrown away unread. The rebuild takes one pass over the entries and one over
 * the blocks, needs no memory but the pool of spans and the slab records, and gives the same
 * result when it is done twice or starts again after a death in its middle.
 * Not here: the other caches of the table (recovery.c).
 */
#include <stdio.h>

#include "arena.h"
#include "failpoint.h"

static uint32_t entries_high(const mp_member *m) {
    uint32_t high = atomic_load_explicit(&m->header->pool_entries.high, memory_order_relaxed);
    return high < m->geometry.entries ? high : m->geometry.entries;
}

/* --- rebuild --- */

/* Empty caches over blank slab records; committed_blocks is counted here. */
static void forget(mp_member *m) {
    mp_header *h = m->header;
    h->pool_spans.free = 0;
    h->pool_spans.fresh = 1;
    atomic_store_explicit(&h->pool_spans.used, 1, memory_order_relaxed);
    memset(h->bins, 0, sizeof h->bins);
    memset(h->bin_bits, 0, sizeof h->bin_bits);
    memset(h->class_slabs, 0, sizeof h->class_slabs);
    h->span_first = 0;
    atomic_store_explicit(&h->committed_blocks, 0, memory_order_relaxed);
    atomic_store_explicit(&h->free_pages, 0, memory_order_relaxed);
    atomic_store_explicit(&h->free_pages_low, 0, memory_order_relaxed);
    atomic_store_explicit(&h->free_slot_bytes, 0, memory_order_relaxed);
    for (uint32_t b = 0, high = mp_commit_high(m); b < high; b++) {
        uint32_t state = mp_block_state(m, b);
        if (state == MP_NONE) continue;
        mp_total_add(&h->committed_blocks, 1);
        if (state == MP_COMMITTED) m->slabs[b] = (mp_slab){0};
    }
}

static bool adopt_slot(mp_member *m, uint64_t offset, uint64_t size) {
    uint32_t class = mp_class_of(size), bytes = mp_class_bytes(class);
    uint32_t slot = (uint32_t)(offset % MP_BLOCK) / bytes;
    mp_slab *slab = &m->slabs[offset / MP_BLOCK];
    if (slab->size_class == 0 && slab->next == 0) {
        slab->size_class = class + 1;
        slab->slots = MP_BLOCK / bytes;
    }
    if (slab->size_class != class + 1 || slot >= slab->slots || offset % MP_BLOCK % bytes != 0) return false;
    if (slab->used_bits[slot / 64] & mp_bit(slot)) return false;
    slab->used_bits[slot / 64] |= mp_bit(slot);
    slab->used++;
    return true;
}

/* Until the sweep, `next` of a block's record is the chain of the runs that start in it, at
 * most one a page, by address. */
static bool adopt_run(mp_member *m, mp_entry *e, uint64_t offset, uint64_t bytes) {
    mp_slab *slab = &m->slabs[offset / MP_BLOCK];
    if (offset % MP_PAGE != 0 || slab->size_class != 0) return false;
    uint32_t i = mp_span_take(m), page = (uint32_t)(offset / MP_PAGE), *link = &slab->next;
    if (i == 0) return false;
    while (*link != 0 && m->spans[*link].page < page) link = &m->spans[*link].next;
    if (*link != 0 && m->spans[*link].page == page) return false;
    uint32_t pages = (uint32_t)(bytes / MP_PAGE);
    m->spans[i] = (mp_span){.page = page, .pages = pages, .next = *link, .used = MP_SPAN_EXTENT};
    *link = i;
    e->span = i;
    return true;
}

static bool adopt(mp_member *m, mp_entry *e) {
    uint64_t offset = atomic_load_explicit(&e->offset, memory_order_relaxed);
    uint64_t size = atomic_load_explicit(&e->size, memory_order_relaxed), bytes = mp_extent_bytes(size);
    e->span = 0;
    if (bytes > m->geometry.arena_bytes || offset > m->geometry.arena_bytes - bytes) return false;
    if (mp_block_state(m, (uint32_t)(offset / MP_BLOCK)) != MP_COMMITTED) return false;
    return size <= MP_SMALL_MAX ? adopt_slot(m, offset, size) : adopt_run(m, e, offset, bytes);
}

/* The sweep over the blocks: spans are appended in address order. */
typedef struct sweep {
    uint32_t last;
    uint64_t at; /* first page that no span covers yet */
} sweep;

static void append(mp_member *m, sweep *w, uint32_t i) {
    mp_span_link(m, w->last, i);
    mp_span_mark_end(m, i);
    w->last = i;
    w->at = mp_span_end(&m->spans[i]);
}

/* A free span up to page; false if a run reaches beyond it. */
static bool fill(mp_member *m, sweep *w, uint64_t page) {
    if (w->at >= page) return w->at == page;
    uint32_t i = mp_span_take(m);
    if (i == 0) return false;
    m->spans[i] = (mp_span){.page = (uint32_t)w->at, .pages = (uint32_t)(page - w->at)};
    mp_total_add(&m->header->free_pages, page - w->at);
    append(m, w, i);
    mp_bin_insert(m, i);
    return true;
}

static bool sweep_slab(mp_member *m, sweep *w, uint32_t block) {
    uint32_t page = block * MP_BLOCK_PAGES;
    if (!fill(m, w, page)) return false;
    uint32_t i = mp_span_take(m);
    if (i == 0) return false;
    m->spans[i] = (mp_span){.page = page, .pages = MP_BLOCK_PAGES, .used = MP_SPAN_SLAB};
    append(m, w, i);
    const mp_slab *slab = &m->slabs[block];
    uint64_t left = slab->slots - slab->used;
    mp_total_add(&m->header->free_slot_bytes, left * mp_class_bytes(slab->size_class - 1));
    if (left != 0) mp_slab_list(m, block);
    return true;
}

static bool sweep_runs(mp_member *m, sweep *w, uint32_t block) {
    uint32_t next, i = m->slabs[block].next;
    for (m->slabs[block].next = 0; i != 0; i = next) {
        next = m->spans[i].next;
        if (!fill(m, w, m->spans[i].page)) return false;
        append(m, w, i);
    }
    return true;
}

static bool sweep_block(mp_member *m, sweep *w, uint32_t block) {
    return m->slabs[block].size_class ? sweep_slab(m, w, block) : sweep_runs(m, w, block);
}

/* A run that is being committed needs a span when it is published; where one such run ends
 * and the next begins is not known, so every block gets one while the pool lasts. */
static void put_by(mp_member *m, uint32_t block) {
    if (!mp_span_reserve(m, 1)) return;
    uint32_t i = mp_span_take(m);
    m->spans[i] = (mp_span){.page = block * MP_BLOCK_PAGES, .used = MP_SPAN_COMMITTING};
    mp_bin_insert(m, i);
}

static bool sweep_blocks(mp_member *m) {
    sweep w = {0};
    bool open = false; /* is the block before committed? */
    uint32_t high = mp_commit_high(m);
    for (uint32_t b = 0; b < high; b++) {
        uint64_t page = (uint64_t)b * MP_BLOCK_PAGES;
        bool committed = mp_block_state(m, b) == MP_COMMITTED;
        if (open && !committed && !fill(m, &w, page)) return false;
        if (committed && !open) w.at = page;
        open = committed;
        if (committed && !sweep_block(m, &w, b)) return false;
    }
    if (open && !fill(m, &w, (uint64_t)high * MP_BLOCK_PAGES)) return false;
    for (uint32_t b = 0; b < high; b++)
        if (mp_block_state(m, b) == MP_COMMITTING) put_by(m, b);
    return true;
}

mp_code mp_arena_rebuild(mp_member *m) {
    forget(m);
    MP_FAILPOINT("arena.rebuild.forgotten");
    uint32_t high = entries_high(m);
    for (uint32_t i = 1; i < high; i++)
        if (mp_has_extent(&m->entries[i]) && !adopt(m, &m->entries[i])) return mp_arena_corrupted(m);
    MP_FAILPOINT("arena.rebuild.adopted");
    return sweep_blocks(m) ? mp_arena_outcome(m) : mp_arena_corrupted(m);
}

/* --- check --- */

typedef struct inspection {
    mp_member *m;
    mp_fault *report;
    void *context;
    uint32_t faults;
    uint64_t runs, slabs, slots, free_spans, free_pages, free_slot_bytes, open_slabs, put_by; /* seen in the caches */
} inspection;

static void fault(inspection *c, const char *text, uint64_t where) {
    char line[160];
    snprintf(line, sizeof line, "arena: %s (%llu)", text, (unsigned long long)where);
    c->faults++;
    if (c->report) c->report(c->context, line);
}

static void expect(inspection *c, bool holds, const char *text, uint64_t where) {
    if (!holds) fault(c, text, where);
}

static bool run_committed(mp_member *m, const mp_span *s) {
    for (uint64_t b = s->page / MP_BLOCK_PAGES; b <= (mp_span_end(s) - 1) / MP_BLOCK_PAGES; b++)
        if (mp_block_state(m, (uint32_t)b) != MP_COMMITTED) return false;
    return true;
}

static void check_slab(inspection *c, const mp_span *s, uint32_t i) {
    mp_slab *slab = &c->m->slabs[s->page / MP_BLOCK_PAGES];
    uint32_t class = slab->size_class - 1, bits = 0;
    for (uint32_t w = 0; w < MP_SLAB_WORDS; w++) bits += (uint32_t)__builtin_popcountll(slab->used_bits[w]);
    expect(c, s->pages == MP_BLOCK_PAGES, "a slab is not one block", s->page);
    expect(c, s->page % MP_BLOCK_PAGES == 0, "a slab is not aligned", s->page);
    expect(c, slab->span == i, "a slab names another span", s->page);
    if (class >= MP_CLASSES) {
        fault(c, "a slab without a size class", s->page);
        return;
    }
    expect(c, slab->slots == MP_BLOCK / mp_class_bytes(class), "a slab has a wrong number of slots", s->page);
    expect(c, slab->used == bits && bits != 0 && bits <= slab->slots, "a slab counts wrong", s->page);
    c->slabs++;
    c->slots += bits;
    c->free_slot_bytes += (uint64_t)(slab->slots - bits) * mp_class_bytes(class);
    if (bits < slab->slots) c->open_slabs++;
}

static void check_span(inspection *c, uint32_t i, uint32_t prev) {
    mp_member *m = c->m;
    const mp_span *s = &m->spans[i], *before = &m->spans[prev];
    uint64_t end = mp_span_end(s);
    if (s->pages == 0 || end > mp_arena_pages(m)) {
        fault(c, "a span outside the arena", s->page);
        return;
    }
    bool touches = prev != 0 && mp_span_end(before) == s->page;
    expect(c, s->prev == prev, "a span does not know its neighbour", s->page);
    expect(c, prev == 0 || mp_span_end(before) <= s->page, "spans overlap", s->page);
    expect(c, run_committed(m, s), "a span in memory that is not committed", s->page);
    expect(c, !touches || s->used || before->used, "free neighbours are not merged", s->page);
    uint32_t below = s->page == 0 ? MP_NONE : mp_block_state(m, (s->page - 1) / MP_BLOCK_PAGES);
    expect(c, touches || below != MP_COMMITTED, "pages without a span before", s->page);
    bool more = end % MP_BLOCK_PAGES == 0;
    expect(c, !more || m->slabs[end / MP_BLOCK_PAGES - 1].span == i, "a block forgot its last span", s->page);
    expect(c, s->used <= MP_SPAN_SLAB, "a span without a use", s->page);
    if (s->used == MP_SPAN_EXTENT) c->runs++;
    if (s->used == MP_SPAN_SLAB) check_slab(c, s, i);
    if (s->used != MP_SPAN_FREE) return;
    c->free_spans++;
    c->free_pages += s->pages;
}

/* Together with check_span: committed pages are covered without a gap, once. */
static void check_spans(inspection *c) {
    mp_member *m = c->m;
    uint32_t prev = 0, left = m->geometry.spans;
    uint64_t covered = 0, committed = 0, counted = 0;
    for (uint32_t i = m->header->span_first; i != 0; prev = i, i = m->spans[i].next) {
        if (i >= m->geometry.spans || left-- == 0) {
            fault(c, "the list of spans is damaged", i);
            return;
        }
        check_span(c, i, prev);
        covered += m->spans[i].pages;
    }
    for (uint32_t b = 0, high = mp_commit_high(m); b < high; b++) {
        uint32_t state = mp_block_state(m, b);
        committed += state == MP_COMMITTED;
        counted += state != MP_NONE;
    }
    expect(c, covered == committed * MP_BLOCK_PAGES, "spans do not cover the committed pages", covered);
    expect(c, atomic_load(&m->header->committed_blocks) == counted, "committed_blocks is wrong", counted);
    expect(c, atomic_load(&m->header->free_pages) == c->free_pages, "free_pages is wrong", c->free_pages);
    expect(c, atomic_load(&m->header->free_slot_bytes) == c->free_slot_bytes, "free_slot_bytes is wrong", c->free_slot_bytes);
}

static void check_bins(inspection *c) {
    mp_member *m = c->m;
    const mp_header *h = m->header;
    uint64_t listed = 0;
    uint32_t left = m->geometry.spans;
    for (uint32_t bin = 0; bin < MP_BINS; bin++) {
        uint32_t prev = 0, bit = (h->bin_bits[bin / 32] >> (bin % 32)) & 1u;
        expect(c, bit == (h->bins[bin] != 0), "a bin's bit is wrong", bin);
        for (uint32_t i = h->bins[bin]; i != 0; prev = i, i = m->spans[i].bin_next) {
            if (i >= m->geometry.spans || left-- == 0) {
                fault(c, "a bin is damaged", bin);
                return;
            }
            const mp_span *s = &m->spans[i];
            expect(c, s->bin_prev == prev, "a span does not know its neighbour in the bin", s->page);
            expect(c, mp_span_bin(s) == bin, "a span in the wrong bin", s->page);
            expect(c, s->used == (bin ? MP_SPAN_FREE : MP_SPAN_COMMITTING), "a used span in a bin", s->page);
            if (bin) listed++;
            else c->put_by++;
        }
    }
    expect(c, listed == c->free_spans, "bins do not hold every free span", listed);
}

static void check_classes(inspection *c) {
    mp_member *m = c->m;
    uint64_t listed = 0;
    uint32_t left = m->geometry.blocks;
    for (uint32_t class = 0; class < MP_CLASSES; class++) {
        uint32_t prev = 0, link = m->header->class_slabs[class];
        for (; link != 0; prev = link, link = m->slabs[link - 1].next) {
            if (link > m->geometry.blocks || left-- == 0) {
                fault(c, "a list of slabs is damaged", class);
                return;
            }
            const mp_slab *slab = &m->slabs[link - 1];
            expect(c, slab->prev == prev, "a slab does not know its neighbour", link - 1);
            expect(c, slab->size_class == class + 1, "a slab in the list of another class", link - 1);
            expect(c, slab->used < slab->slots, "a full slab is listed", link - 1);
            listed++;
        }
    }
    expect(c, listed == c->open_slabs, "lists do not hold every slab with a free slot", listed);
}

static void check_pool(inspection *c) {
    const mp_member *m = c->m;
    const mp_pool *pool = &m->header->pool_spans;
    uint32_t high = atomic_load(&pool->high), items = 0, i = pool->free;
    for (; i != 0 && i < high && i < m->geometry.spans && items < high; i = m->spans[i].bin_next) items++;
    expect(c, i == 0, "the free list of spans is damaged", i);
    uint64_t used = 1 + c->runs + c->slabs + c->free_spans + c->put_by;
    expect(c, atomic_load(&pool->used) == used, "spans in use are miscounted", used);
    expect(c, pool->fresh == used + items, "spans are lost", pool->fresh - used - items);
}

static bool slot_matches(mp_member *m, mp_entry *e, uint64_t offset, uint64_t size) {
    const mp_slab *slab = &m->slabs[offset / MP_BLOCK];
    uint32_t class = mp_class_of(size), bytes = mp_class_bytes(class);
    uint32_t start = (uint32_t)(offset % MP_BLOCK), slot = start / bytes;
    if (e->span != 0 || slab->size_class != class + 1 || start % bytes != 0) return false;
    return (slab->used_bits[slot / 64] & mp_bit(slot)) != 0;
}

static bool entry_matches(mp_member *m, mp_entry *e) {
    uint64_t offset = atomic_load(&e->offset), size = atomic_load(&e->size), bytes = mp_extent_bytes(size);
    if (bytes > m->geometry.arena_bytes || offset > m->geometry.arena_bytes - bytes) return false;
    if (size <= MP_SMALL_MAX) return slot_matches(m, e, offset, size);
    if (e->span == 0 || e->span >= m->geometry.spans) return false;
    const mp_span *s = &m->spans[e->span];
    if (s->used != MP_SPAN_EXTENT || offset % MP_PAGE != 0) return false;
    return s->page == offset / MP_PAGE && s->pages == bytes / MP_PAGE;
}

/* Every extent has its span or slot; equal counts then say that no two have the same one. */
static void check_entries(inspection *c) {
    uint64_t runs = 0, slots = 0;
    uint32_t high = entries_high(c->m);
    for (uint32_t i = 1; i < high; i++) {
        mp_entry *e = &c->m->entries[i];
        if (!mp_has_extent(e)) continue;
        expect(c, entry_matches(c->m, e), "the extent of an entry is not what the arena has there", i);
        if (atomic_load(&e->size) > MP_SMALL_MAX) runs++;
        else slots++;
    }
    expect(c, runs == c->runs, "runs that belong to no entry, or to two", c->runs);
    expect(c, slots == c->slots, "slots that belong to no entry, or to two", c->slots);
}

uint32_t mp_arena_check(mp_member *m, mp_fault *report, void *context) {
    inspection c = {.m = m, .report = report, .context = context};
    check_spans(&c);
    check_bins(&c);
    check_classes(&c);
    check_pool(&c);
    check_entries(&c);
    return c.faults;
}
