/* Commitment of the arena's memory: growth, punching, and what a dead member left half-way.
 *
 * Invariants: the commit map is the truth, one word a block. Blocks that are COMMITTING or
 * PUNCHING belong to the slot in their word and to no span; they count as committed until
 * they are NONE. The system is called without the mutex, between a plan and its publication,
 * and neither publication can fail: a plan to grow puts by the span that it will need.
 * Not here: whether to grow or to shrink (memory.c).
 */
#include "arena.h"
#include "failpoint.h"

#define GROW_BLOCKS 32u /* 2 MiB a step */

/* The last span that lies below a block that is not COMMITTED; 0 if there is none. */
static uint32_t span_below(mp_member *m, uint32_t block) {
    while (block != 0 && mp_block_state(m, block - 1) != MP_COMMITTED) block--;
    if (block == 0) return 0;
    uint32_t i = m->slabs[block - 1].span;
    uint64_t end = (uint64_t)block * MP_BLOCK_PAGES;
    bool found = i != 0 && i < m->geometry.spans && mp_span_end(&m->spans[i]) == end;
    if (!found) mp_arena_corrupted(m);
    return found ? i : 0;
}

static void mark(mp_member *m, mp_run run, enum mp_commit_state state) {
    for (uint32_t b = run.block; b < run.block + run.blocks; b++) {
        atomic_store_explicit(&m->commit[b], MP_COMMIT(state, m->slot), memory_order_relaxed);
        if (b == run.block) MP_FAILPOINT("arena.mark.first");
    }
}

/* A member that was taken for dead has lost its runs to the reaper. */
static bool owns(mp_member *m, mp_run run, enum mp_commit_state state) {
    for (uint32_t b = run.block; b < run.block + run.blocks; b++)
        if (mp_commit_word(m, b) != MP_COMMIT(state, m->slot)) return false;
    return true;
}

/* Takes the items put by for a run out of bin 0 and keeps one of them: there is one for each
 * run, but after a rebuild one for each block. */
static uint32_t take_put_by(mp_member *m, mp_run run) {
    uint32_t kept = 0, next, left = m->geometry.blocks;
    for (uint32_t i = m->header->bins[0]; i != 0 && left != 0; i = next, left--) {
        if (i >= m->geometry.spans || m->spans[i].used != MP_SPAN_COMMITTING) {
            mp_arena_corrupted(m);
            return kept;
        }
        next = m->spans[i].bin_next;
        if (m->spans[i].page / MP_BLOCK_PAGES - run.block >= run.blocks) continue;
        mp_bin_remove(m, i);
        if (kept) mp_span_give(m, kept);
        kept = i;
    }
    return kept;
}

/* How many blocks, from the start of a gap of NONE blocks, make room for a run of pages. */
static uint32_t gap_needs(mp_member *m, mp_run gap, uint64_t pages) {
    uint32_t below = span_below(m, gap.block);
    uint64_t start = (uint64_t)gap.block * MP_BLOCK_PAGES, size = (uint64_t)gap.blocks * MP_BLOCK_PAGES;
    uint64_t low = 0, high = 0;
    if (mp_span_free(m, below) && mp_span_end(&m->spans[below]) == start) low = m->spans[below].pages;
    if (low >= pages) return 1;
    if (low + size >= pages) return (uint32_t)((pages - low + MP_BLOCK_PAGES - 1) / MP_BLOCK_PAGES);
    uint32_t above = below ? m->spans[below].next : m->header->span_first;
    if (mp_span_free(m, above) && m->spans[above].page == start + size) high = m->spans[above].pages;
    return low + size + high >= pages ? gap.blocks : UINT32_MAX;
}

uint32_t mp_commit_high(const mp_member *m) {
    return m->header->commit_high < m->geometry.blocks ? m->header->commit_high : m->geometry.blocks;
}

/* The first gap of NONE blocks at or after block; its length is 0 if there is none. */
static mp_run next_gap(mp_member *m, uint32_t block) {
    uint32_t high = mp_commit_high(m);
    if (block >= m->geometry.blocks) return (mp_run){block, 0};
    while (block < high && mp_block_state(m, block) != MP_NONE) block++;
    uint32_t end = block;
    while (end < high && mp_block_state(m, end) == MP_NONE) end++;
    return (mp_run){block, (end < high ? end : m->geometry.blocks) - block};
}

static bool choose_gap(mp_member *m, uint64_t pages, uint64_t spare, uint32_t step, mp_run *run) {
    const mp_header *h = m->header;
    /* as many committed as were ever: no gap to look for below */
    bool dense = atomic_load_explicit(&h->committed_blocks, memory_order_relaxed) >= h->commit_high;
    mp_run gap = next_gap(m, dense ? mp_commit_high(m) : 0);
    uint32_t least = UINT32_MAX;
    for (; gap.blocks != 0; gap = next_gap(m, gap.block + gap.blocks)) {
        uint32_t needs = gap_needs(m, gap, pages);
        if (needs >= least || needs > spare) continue;
        least = needs;
        uint64_t blocks = needs > step ? needs : step;
        if (blocks > spare) blocks = spare;
        *run = (mp_run){gap.block, blocks < gap.blocks ? (uint32_t)blocks : gap.blocks};
    }
    return least != UINT32_MAX;
}

mp_code mp_arena_plan_grow(mp_member *m, uint64_t size, mp_run *run) {
    mp_header *h = m->header;
    uint64_t limit = atomic_load_explicit(&h->memory_limit, memory_order_relaxed) / MP_BLOCK;
    uint64_t committed = atomic_load_explicit(&h->committed_blocks, memory_order_relaxed);
    uint64_t pages = size <= MP_SMALL_MAX ? MP_BLOCK_PAGES : mp_extent_bytes(size) / MP_PAGE;
    uint32_t step = limit / 16 < GROW_BLOCKS ? (uint32_t)(limit / 16) : GROW_BLOCKS;
    if (mp_poisoned(m)) return MP_CORRUPTED;
    if (!mp_span_reserve(m, 1)) return MP_POOL_FULL;
    if (!choose_gap(m, pages, limit > committed ? limit - committed : 0, step, run))
        return mp_poisoned(m) ? MP_CORRUPTED : MP_NO_COMMIT;
    for (uint32_t b = run->block; b < run->block + run->blocks; b++)
        if (mp_block_state(m, b) != MP_NONE) return mp_arena_corrupted(m);
    uint32_t i = mp_span_take(m);
    if (i == 0) return MP_CORRUPTED;
    m->spans[i] = (mp_span){.page = run->block * MP_BLOCK_PAGES, .used = MP_SPAN_COMMITTING};
    mp_bin_insert(m, i);
    MP_FAILPOINT("arena.grow.put_by");
    if (h->commit_high < run->block + run->blocks) h->commit_high = run->block + run->blocks;
    atomic_signal_fence(memory_order_seq_cst); /* a kill in between must find it raised */
    mark(m, *run, MP_COMMITTING);
    MP_FAILPOINT("arena.grow.marked");
    mp_total_add(&h->committed_blocks, run->blocks);
    return mp_arena_outcome(m);
}

/* Also backs what will be written for these blocks under the mutex: their slab records, and
 * the commit words of the growth to come. */
int mp_arena_commit(mp_member *m, mp_run run) {
    uint64_t words = run.blocks + MP_PAGE / sizeof(uint16_t);
    if (words > m->geometry.blocks - run.block) words = m->geometry.blocks - run.block;
    int error = m->system->populate(m, m->slabs + run.block, (uint64_t)run.blocks * sizeof(mp_slab));
    if (error == 0) error = m->system->populate(m, (void *)(m->commit + run.block), words * sizeof(uint16_t));
    if (error != 0) return error;
    return m->system->commit(m, (uint64_t)run.block * MP_BLOCK, (uint64_t)run.blocks * MP_BLOCK);
}

bool mp_arena_grown(mp_member *m, mp_run run, bool ok) {
    if (mp_poisoned(m) || !owns(m, run, MP_COMMITTING)) return false;
    uint32_t i = take_put_by(m, run);
    mark(m, run, ok ? MP_COMMITTED : MP_PUNCHING);
    MP_FAILPOINT("arena.grown.marked");
    if (!ok) {
        if (i) mp_span_give(m, i);
        return true;
    }
    if (i == 0) i = mp_span_take(m);
    if (i == 0) return true;
    m->spans[i] = (mp_span){.page = run.block * MP_BLOCK_PAGES, .pages = run.blocks * MP_BLOCK_PAGES};
    mp_span_link(m, span_below(m, run.block), i);
    MP_FAILPOINT("arena.grown.linked");
    mp_span_release(m, i);
    return true;
}

/* The whole blocks at the upper end of a span, at most so many. */
static mp_run whole_blocks(const mp_span *s, uint32_t blocks) {
    uint32_t low = (s->page + MP_BLOCK_PAGES - 1) / MP_BLOCK_PAGES;
    uint32_t high = (uint32_t)(mp_span_end(s) / MP_BLOCK_PAGES);
    uint32_t whole = high > low ? high - low : 0;
    if (whole > blocks) whole = blocks;
    return (mp_run){high - whole, whole};
}

/* From the largest bin down, the span with most whole blocks, then the highest one. */
static uint32_t choose_punch(mp_member *m, uint32_t blocks, mp_run *run) {
    uint32_t best = 0;
    *run = (mp_run){0, 0};
    for (uint32_t bin = MP_BINS - 1; bin >= MP_BLOCK_PAGES && run->blocks == 0; bin--) {
        uint32_t i = m->header->bins[bin];
        for (uint32_t left = MP_LOOKS; i != 0 && left != 0; i = m->spans[i].bin_next, left--) {
            if (!mp_span_free(m, i)) {
                mp_arena_corrupted(m);
                return 0;
            }
            mp_run whole = whole_blocks(&m->spans[i], blocks);
            bool higher = whole.blocks == run->blocks && whole.block > run->block;
            if (whole.blocks == 0 || (whole.blocks <= run->blocks && !higher)) continue;
            *run = whole;
            best = i;
        }
    }
    return best;
}

bool mp_arena_plan_punch(mp_member *m, uint32_t blocks, mp_run *run) {
    if (mp_poisoned(m) || blocks == 0 || !mp_span_reserve(m, 2)) return false;
    uint32_t i = choose_punch(m, blocks, run);
    if (i == 0) return false;
    mp_span_carve(m, i, run->block * MP_BLOCK_PAGES, run->blocks * MP_BLOCK_PAGES, MP_SPAN_EXTENT);
    mp_span_unlink(m, i);
    mp_span_give(m, i);
    MP_FAILPOINT("arena.punch.carved");
    mark(m, *run, MP_PUNCHING);
    return !mp_poisoned(m);
}

int mp_arena_punch(mp_member *m, mp_run run) {
    return m->system->punch(m, (uint64_t)run.block * MP_BLOCK, (uint64_t)run.blocks * MP_BLOCK);
}

void mp_arena_punched(mp_member *m, mp_run run) {
    if (!owns(m, run, MP_PUNCHING)) return;
    mark(m, run, MP_NONE);
    MP_FAILPOINT("arena.punched.marked");
    mp_total_add(&m->header->committed_blocks, 0ull - run.blocks);
    mp_total_add(&m->header->returned_bytes, (uint64_t)run.blocks * MP_BLOCK);
}

static bool left_by(mp_member *m, uint32_t slot, uint32_t block) {
    uint16_t word = mp_commit_word(m, block);
    return MP_COMMIT_SLOT(word) == slot &&
           (MP_COMMIT_STATE(word) == MP_COMMITTING || MP_COMMIT_STATE(word) == MP_PUNCHING);
}

bool mp_arena_plan_reclaim(mp_member *m, uint32_t slot, mp_run *run) {
    uint32_t high = mp_commit_high(m), block = 0;
    while (block < high && !left_by(m, slot, block)) block++;
    uint32_t end = block;
    while (end < high && left_by(m, slot, end)) end++;
    *run = (mp_run){block, end - block};
    if (run->blocks == 0) return false;
    uint32_t i = take_put_by(m, *run);
    if (i) mp_span_give(m, i);
    MP_FAILPOINT("arena.reclaim.given");
    mark(m, *run, MP_PUNCHING);
    return true;
}
