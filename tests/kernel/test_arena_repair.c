/* The arena's caches thrown away, ruined and believed: rebuild, refusal, and survival of garbage. */
#define _GNU_SOURCE
#include <string.h>

#include "world.h"

#ifdef __SANITIZE_THREAD__
#define ROUNDS 4
#else
#define ROUNDS 20
#endif

static void scribble(world *w, void *at, uint64_t bytes) {
    uint8_t *byte = at;
    for (uint64_t i = 0; i < bytes; i += 8) {
        uint64_t word = random_next(&w->random);
        memcpy(byte + i, &word, bytes - i < 8 ? bytes - i : 8);
    }
}

static void ruin_caches(world *w) {
    mp_header *h = w->m.header;
    h->span_first = (uint32_t)random_next(&w->random);
    scribble(w, h->bin_bits, (uint64_t)((uint8_t *)&h->spilled_bytes - (uint8_t *)h->bin_bits));
    scribble(w, &h->pool_spans.free, sizeof(uint32_t) * 3);
    scribble(w, w->m.spans, h->pool_spans.high * sizeof(mp_span));
    for (uint32_t b = 0; b < w->m.geometry.blocks; b++)
        if (mp_block_state(&w->m, b) != MP_NONE) scribble(w, &w->m.slabs[b], sizeof(mp_slab));
    for (uint32_t i = 0; i < w->count; i++) w->m.entries[w->live[i]].span = (uint32_t)random_next(&w->random);
}

/* A digest of the spans by address and of the totals. */
static uint64_t digest(const world *w) {
    uint64_t hash = w->m.header->free_pages * 31 + committed(w);
    for (uint32_t i = w->m.header->span_first; i; i = w->m.spans[i].next) {
        const mp_span *s = &w->m.spans[i];
        hash = (hash ^ ((uint64_t)s->page << 32 | s->pages << 2 | s->used)) * 0x9e3779b97f4a7c15ull;
    }
    return hash;
}

static void rebuild_from_garbage(void) {
    for (int round = 0; round < ROUNDS; round++) {
        world w;
        world_open(&w, 64 * MIB, 32 * MIB);
        w.random.state += (uint64_t)round;
        for (uint32_t step = 0; step < 300; step++) random_step(&w, 65);
        uint64_t before = digest(&w);
        ruin_caches(&w);
        CHECK_EQ(mp_arena_rebuild(&w.m), MP_OK);
        fixture_check_arena(&w.m);
        CHECK_EQ(digest(&w), before);
        CHECK_EQ(mp_arena_rebuild(&w.m), MP_OK);
        fixture_check_arena(&w.m);
        CHECK_EQ(digest(&w), before);
        verify_all(&w);
        for (uint32_t step = 0; step < 300; step++) random_step(&w, 65);
        fixture_check_arena(&w.m);
        drop_all(&w);
        CHECK_EQ(w.m.header->free_pages, committed(&w) * MP_BLOCK_PAGES);
        world_close(&w);
    }
}

/* Growth and punching that were under way when somebody else's death forced a rebuild. */
static void rebuild_keeps_what_is_under_way(void) {
    world w;
    mp_run first, second, punched;
    world_open(&w, 64 * MIB, 32 * MIB);
    CHECK(put(&w, MIB));
    CHECK_EQ(grow(&w, 4 * MIB), MP_OK);
    CHECK(mp_arena_plan_punch(&w.m, 3, &punched));
    CHECK_EQ(mp_arena_plan_grow(&w.m, 6 * MIB, &first), MP_OK);
    CHECK_EQ(mp_arena_plan_grow(&w.m, 6 * MIB, &second), MP_OK);
    uint64_t blocks = committed(&w);
    ruin_caches(&w);
    CHECK_EQ(mp_arena_rebuild(&w.m), MP_OK);
    CHECK_EQ(committed(&w), blocks);
    fixture_check_arena(&w.m);
    CHECK_EQ(mp_arena_commit(&w.m, second), 0);
    mp_arena_grown(&w.m, second, true);
    fixture_check_arena(&w.m);
    CHECK_EQ(mp_arena_commit(&w.m, first), 0);
    mp_arena_grown(&w.m, first, true);
    fixture_check_arena(&w.m);
    mp_arena_punched(&w.m, punched);
    fixture_check_arena(&w.m);
    CHECK(put(&w, first.blocks * (uint64_t)MP_BLOCK + second.blocks * (uint64_t)MP_BLOCK));
    CHECK_EQ(committed(&w), blocks - punched.blocks);
    world_close(&w);
}

/* Nor do they need a span that the pool cannot give. */
static void growth_under_way_has_its_spans(void) {
    world w;
    mp_run runs[12];
    world_open(&w, 64 * MIB, 64 * MIB);
    CHECK_EQ(mp_pool_ensure(&w.m, &w.m.header->pool_spans, 512), MP_OK);
    for (int i = 0; i < 12; i++) CHECK_EQ(mp_arena_plan_grow(&w.m, MIB, &runs[i]), MP_OK);
    CHECK_EQ(mp_arena_rebuild(&w.m), MP_OK);
    mp_pool *pool = &w.m.header->pool_spans;
    uint32_t high = pool->high;
    atomic_store(&pool->high, pool->used);
    for (int i = 0; i < 12; i += 2) mp_arena_grown(&w.m, runs[i], true); /* no two of them touch */
    CHECK_EQ(atomic_load(&w.m.header->poisoned), 0);
    atomic_store(&pool->high, high);
    fixture_check_arena(&w.m);
    world_close(&w);
}

static mp_code rebuild_with(world *w, uint32_t index, uint64_t offset, uint64_t size) {
    mp_entry *e = &w->m.entries[w->live[index]];
    uint64_t old_offset = e->offset, old_size = e->size;
    e->offset = offset;
    e->size = size;
    mp_code code = mp_arena_rebuild(&w->m);
    e->offset = old_offset;
    e->size = old_size;
    CHECK_EQ(atomic_exchange(&w->m.header->poisoned, 0), code != MP_OK);
    CHECK_EQ(mp_arena_rebuild(&w->m), MP_OK);
    fixture_check_arena(&w->m);
    return code;
}

static void rebuild_refuses_impossible_extents(void) {
    world w;
    world_open(&w, 64 * MIB, 32 * MIB);
    CHECK(put(&w, 100000)); /* 25 pages */
    CHECK(put(&w, 200));    /* a slab */
    CHECK(put(&w, 40000));
    uint64_t run = w.m.entries[w.live[0]].offset, slot = w.m.entries[w.live[1]].offset;
    CHECK_EQ(rebuild_with(&w, 2, run, 40000), MP_CORRUPTED);                  /* the same start */
    CHECK_EQ(rebuild_with(&w, 2, run + 20 * MP_PAGE, 40000), MP_CORRUPTED);   /* overlaps its end */
    CHECK_EQ(rebuild_with(&w, 2, slot, 40000), MP_CORRUPTED);                 /* a slab */
    CHECK_EQ(rebuild_with(&w, 2, slot, 200), MP_CORRUPTED);                   /* a used slot */
    CHECK_EQ(rebuild_with(&w, 2, slot + 256, 100), MP_CORRUPTED);             /* another class */
    CHECK_EQ(rebuild_with(&w, 2, slot + 256, 256), MP_OK);
    CHECK_EQ(rebuild_with(&w, 2, run + 30 * MP_PAGE + 1, 40000), MP_CORRUPTED); /* not aligned */
    CHECK_EQ(rebuild_with(&w, 2, 60 * MIB, 40000), MP_CORRUPTED);             /* not committed */
    CHECK_EQ(rebuild_with(&w, 2, committed(&w) * MP_BLOCK - MP_PAGE, 40000), MP_CORRUPTED); /* half of it */
    CHECK_EQ(rebuild_with(&w, 2, 64 * MIB - MP_PAGE, 40000), MP_CORRUPTED);   /* outside */
    CHECK_EQ(rebuild_with(&w, 2, UINT64_MAX - 4095, UINT64_MAX), MP_CORRUPTED);
    world_close(&w);
}

/* Garbage in the caches that nobody repaired costs an error, never the process. */
static void garbage_never_crashes(void) {
    int refused = 0;
    for (int round = 0; round < 10 * ROUNDS; round++) {
        world w;
        world_open(&w, 16 * MIB, 8 * MIB);
        w.random.state += (uint64_t)round;
        while (w.count < 60) put(&w, random_below(&w.random, 60000));
        mp_header *h = w.m.header;
        check_random *r = &w.random;
        for (int i = 0; i < 40; i++) { /* random words here and there */
            uint32_t *span = (uint32_t *)&w.m.spans[random_below(r, h->pool_spans.high)];
            uint32_t *slab = (uint32_t *)&w.m.slabs[random_below(r, h->commit_high)];
            span[random_below(r, 8)] = (uint32_t)(random_next(r) >> random_below(r, 64));
            slab[random_below(r, sizeof(mp_slab) / 4)] = (uint32_t)random_next(r);
            h->bins[random_below(r, MP_BINS)] = (uint32_t)(random_next(r) >> random_below(r, 32));
            h->class_slabs[random_below(r, MP_CLASSES)] = (uint32_t)random_below(r, 300);
            h->bin_bits[random_below(r, 8)] = (uint32_t)random_next(r);
        }
        for (uint32_t i = 0; i < 200; i++) {
            uint64_t offset = 0, size = random_below(&w.random, 60000);
            uint32_t span;
            mp_run run;
            mp_entry *e = &w.m.entries[w.live[random_below(&w.random, w.count)]];
            mp_arena_free(&w.m, e->offset, e->size, e->span);
            if (mp_arena_alloc(&w.m, size, &offset, &span) == MP_OK)
                CHECK(offset <= w.m.geometry.arena_bytes - mp_extent_bytes(size));
            uint32_t blocks = w.m.geometry.blocks;
            if (mp_arena_plan_punch(&w.m, 2, &run)) CHECK(run.block + run.blocks <= blocks);
            if (mp_arena_plan_grow(&w.m, size, &run) == MP_OK) CHECK(run.block + run.blocks <= blocks);
        }
        refused += atomic_load(&h->poisoned) != 0;
        mp_arena_check(&w.m, NULL, NULL);
        world_close(&w);
    }
    CHECK(refused > 7 * ROUNDS);
}

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    RUN(rebuild_from_garbage);
    RUN(rebuild_keeps_what_is_under_way);
    RUN(growth_under_way_has_its_spans);
    RUN(rebuild_refuses_impossible_extents);
    RUN(garbage_never_crashes);
    return 0;
}
