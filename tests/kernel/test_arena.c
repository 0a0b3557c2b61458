/* The arena against a model: every extent is filled with its own bytes, and after each step the
 * caches are compared with the entries and the commit map.
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/stat.h>

#include "world.h"

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define STEPS 2000u
#define SIZE_STEPS 100u
#else
#define STEPS 12000u
#define SIZE_STEPS 1u
#endif

static void class_sizes(void) {
    uint64_t last = 0;
    for (uint64_t size = 0; size <= MP_SMALL_MAX; size++) {
        uint64_t bytes = mp_extent_bytes(size);
        uint64_t step = bytes <= 2048 ? 64 : bytes <= 4096 ? 256 : 512;
        CHECK(bytes >= size && bytes >= last && bytes < (size ? size : 1) + step);
        CHECK_EQ(bytes % step, 0);
        CHECK(mp_class_of(size) < MP_CLASSES);
        last = bytes;
    }
    CHECK_EQ(last, MP_SMALL_MAX);
    CHECK_EQ(mp_class_of(MP_SMALL_MAX), MP_CLASSES - 1);
    CHECK_EQ(mp_extent_bytes(MP_SMALL_MAX + 1), 3 * MP_PAGE);
    CHECK_EQ(mp_extent_bytes(3 * MP_PAGE), 3 * MP_PAGE);
    CHECK(mp_extent_bytes(UINT64_MAX) > UINT64_MAX / 2);
}

static void bins_are_ordered(void) {
    uint32_t last = 0;
    for (uint32_t pages = 1; pages < 200000; pages++) {
        uint32_t bin = mp_bin_of(pages);
        CHECK(bin == last || bin == last + 1);
        last = bin;
    }
    CHECK_EQ(mp_bin_of((1u << 31) - 1), MP_BINS - 1);
    CHECK_EQ(mp_bin_of(UINT32_MAX), MP_BINS - 1);
}

static void random_model(void) {
    world w;
    world_open(&w, 64 * MIB, 32 * MIB);
    for (uint32_t step = 0; step < STEPS; step++) {
        random_step(&w, step / 500 % 2 ? 30 : 75);
        fixture_check_arena(&w.m);
        CHECK(committed(&w) <= 32 * MIB / MP_BLOCK);
    }
    verify_all(&w);
    drop_all(&w);
    fixture_check_arena(&w.m);
    CHECK_EQ(w.m.header->free_pages, committed(&w) * MP_BLOCK_PAGES);
    world_close(&w);
}

static void every_size_round_trips(void) {
    world w;
    world_open(&w, 64 * MIB, 64 * MIB);
    for (uint64_t size = 0; size <= 100 * 1024; size += 1 + random_below(&w.random, SIZE_STEPS)) {
        CHECK(put(&w, size));
        if (w.count == 64) drop(&w, (uint32_t)random_below(&w.random, 64));
        if (random_below(&w.random, 128) == 0) fixture_check_arena(&w.m);
    }
    drop_all(&w);
    fixture_check_arena(&w.m);
    world_close(&w);
}

static void growth_stops_at_the_limit(void) {
    world w;
    world_open(&w, 64 * MIB, 8 * MIB);
    CHECK_EQ(grow(&w, 1), MP_OK);
    CHECK_EQ(committed(&w), 8); /* a sixteenth of the limit */
    while (put(&w, 100000)) CHECK(committed(&w) <= 128);
    CHECK(committed(&w) * MP_BLOCK + 100000 > 8 * MIB); /* not a block too early */
    CHECK_EQ(grow(&w, 9 * MIB), MP_NO_COMMIT);
    uint64_t raised = 40 * MIB;
    mp_set_limits(&w.m, &raised, NULL, NULL);
    CHECK(put(&w, 20 * MIB));
    CHECK_EQ(grow(&w, 65 * MIB), MP_NO_COMMIT);
    CHECK_EQ(grow(&w, UINT64_MAX), MP_NO_COMMIT);
    fixture_check_arena(&w.m);
    world_close(&w);
}

/* A run of new blocks counts the free pages that end right below it. */
static void growth_extends_what_is_free(void) {
    world w;
    world_open(&w, 64 * MIB, 64 * MIB);
    CHECK(put(&w, 2 * MIB - 512 * 1024));
    CHECK_EQ(committed(&w), 32);
    CHECK(put(&w, 10 * MIB));
    CHECK_EQ(committed(&w), 32 + 160 - 8);
    CHECK_EQ(atomic_load(&w.m.header->free_pages), 0);
    fixture_check_arena(&w.m);
    world_close(&w);
}

static void failed_commit_gives_back(void) {
    world w;
    mp_run run;
    world_open(&w, 64 * MIB, 64 * MIB);
    CHECK(put(&w, MIB));
    uint64_t before = committed(&w), used = w.m.header->pool_spans.used;
    CHECK_EQ(mp_arena_plan_grow(&w.m, 4 * MIB, &run), MP_OK);
    CHECK_EQ(committed(&w), before + run.blocks);
    fixture_check_arena(&w.m);
    CHECK_EQ(mp_arena_grown(&w.m, run, false), true);
    CHECK_EQ(mp_arena_grown(&w.m, run, false), false);
    CHECK_EQ(committed(&w), before + run.blocks); /* it may have taken a part */
    fixture_check_arena(&w.m);
    CHECK_EQ(mp_arena_punch(&w.m, run), 0);
    mp_arena_punched(&w.m, run);
    CHECK_EQ(committed(&w), before);
    CHECK_EQ(w.m.header->pool_spans.used, used);
    fixture_check_arena(&w.m);
    CHECK(put(&w, 4 * MIB));
    world_close(&w);
}

static uint64_t memory_in_use(const world *w) {
    struct stat status;
    CHECK_EQ(fstat(w->f.arena_fd, &status), 0);
    return (uint64_t)status.st_blocks * 512;
}

static void punching_returns_memory(void) {
    world w;
    world_open(&w, 64 * MIB, 64 * MIB);
    for (int i = 0; i < 40; i++) CHECK(put(&w, 300000 + 1000 * (uint64_t)i));
    CHECK_EQ(memory_in_use(&w), committed(&w) * MP_BLOCK);
    for (uint32_t i = 0; i < 20; i++) drop(&w, i); /* holes all over */
    uint64_t blocks, given = 0, before = committed(&w);
    while ((blocks = shrink(&w, 3))) {
        given += blocks;
        fixture_check_arena(&w.m);
    }
    CHECK(given >= 20 * 3);
    CHECK_EQ(committed(&w), before - given);
    CHECK_EQ(memory_in_use(&w), committed(&w) * MP_BLOCK);
    verify_all(&w);
    while (put(&w, 250000)) continue; /* the gaps are used again */
    CHECK(committed(&w) >= 64 * MIB / MP_BLOCK - 64);
    fixture_check_arena(&w.m);
    drop_all(&w);
    while (shrink(&w, 1000)) continue;
    CHECK_EQ(committed(&w), 0);
    CHECK_EQ(memory_in_use(&w), 0);
    fixture_check_arena(&w.m);
    world_close(&w);
}

static void fragments_do_not_stop_a_large_value(void) {
    world w;
    world_open(&w, 128 * MIB, 64 * MIB);
    while (w.count < 600 && put(&w, 20000 + random_below(&w.random, 80000))) continue;
    for (uint32_t i = 0; i < 400; i++) drop(&w, (uint32_t)random_below(&w.random, w.count));
    fixture_check_arena(&w.m);
    for (uint64_t size = MIB; !put(&w, 16 * MIB); size++) /* as memory.c: punch elsewhere, then extend */
        CHECK(shrink(&w, 64) != 0);
    verify_all(&w);
    fixture_check_arena(&w.m);
    world_close(&w);
}

static uint64_t offset_of(const world *w, uint32_t index) { return w->m.entries[w->live[index]].offset; }
static uint64_t last_offset(const world *w) { return offset_of(w, w->count - 1); }

/* Pages that one wrote last are mapped: they come first, whatever their address. */
static void own_pages_come_first(void) {
    world w;
    world_open(&w, 64 * MIB, 64 * MIB);
    uint32_t other = w.m.slot + 1, me = w.m.slot;
    w.m.slot = other;
    CHECK(put(&w, MIB));
    CHECK(put(&w, 4096 * 4));
    w.m.slot = me;
    CHECK(put(&w, MIB));
    uint64_t mine = last_offset(&w);
    CHECK(put(&w, 4096 * 4));
    drop(&w, 2);
    drop(&w, 0);
    CHECK(put(&w, MIB));
    CHECK_EQ(last_offset(&w), mine);
    w.m.slot = other;
    CHECK(put(&w, MIB));
    CHECK_EQ(last_offset(&w), 0);
    world_close(&w);
}

/* One free run, the lower half of which somebody else wrote last. */
static void own_end_of_a_run_comes_first(void) {
    world w;
    world_open(&w, 64 * MIB, 64 * MIB);
    CHECK_EQ(grow(&w, 2 * MIB), MP_OK);
    CHECK(put(&w, MIB));
    CHECK(put(&w, MIB));
    uint64_t mine = last_offset(&w);
    drop(&w, 0);
    w.m.slot++;
    CHECK(put(&w, MIB)); /* takes the lower half over */
    CHECK_EQ(last_offset(&w), 0);
    w.m.slot--;
    drop_all(&w);
    CHECK(put(&w, MIB));
    CHECK_EQ(last_offset(&w), mine);
    world_close(&w);
}

static void the_lowest_hole_of_a_bin_is_taken(void) {
    world w;
    world_open(&w, 64 * MIB, 64 * MIB);
    for (int i = 0; i < 8; i++) CHECK(put(&w, 5 * MP_PAGE));
    uint64_t low = offset_of(&w, 2);
    drop(&w, 2);
    drop(&w, 5);
    CHECK(put(&w, 5 * MP_PAGE));
    CHECK_EQ(last_offset(&w), low);
    world_close(&w);
}

/* Forty pages and forty-two share a bin: the one that fits lies behind a hundred that do not. */
static void a_fit_deep_in_its_bin_is_found(void) {
    world w;
    world_open(&w, 64 * MIB, 64 * MIB);
    uint32_t fits = 0, small[100], n = 0;
    for (int i = 0; i < 101; i++) {
        CHECK(put(&w, (i ? 40 : 43) * MP_PAGE));
        if (i) small[n++] = w.live[w.count - 1];
        else fits = w.live[w.count - 1];
        CHECK(put(&w, 3 * MP_PAGE));
    }
    while (atomic_load(&w.m.header->free_pages)) CHECK(put(&w, 3 * MP_PAGE));
    uint64_t hole = w.m.entries[fits].offset;
    for (uint32_t i = 0, gone = 0; gone < 101; i++) {
        uint32_t want = gone ? small[gone - 1] : fits;
        for (i = 0; w.live[i] != want;) i++;
        drop(&w, i);
        gone++;
    }
    CHECK_EQ(mp_bin_of(40), mp_bin_of(43));
    uint64_t before = committed(&w);
    CHECK(put(&w, 43 * MP_PAGE));
    CHECK_EQ(last_offset(&w), hole);
    CHECK_EQ(committed(&w), before);
    world_close(&w);
}

/* Free pages on both sides of a gap, which alone is too small. */
static void a_gap_is_closed(void) {
    world w;
    mp_run run;
    world_open(&w, 4 * MIB, 64 * MIB);
    CHECK_EQ(grow(&w, 4 * MIB), MP_OK);
    for (int i = 0; i < 4; i++) CHECK(put(&w, MIB));
    drop(&w, 1);
    CHECK(mp_arena_plan_punch(&w.m, 16, &run));
    CHECK_EQ(run.block, 16);
    mp_arena_punched(&w.m, run);
    drop_all(&w);
    CHECK_EQ(grow(&w, 3 * MIB), MP_OK);
    CHECK_EQ(committed(&w), 64);
    fixture_check_arena(&w.m);
    CHECK(put(&w, 4 * MIB));
    world_close(&w);
}

static void a_full_pool_stops_no_release(void) {
    world w;
    world_open(&w, 64 * MIB, 64 * MIB);
    while (w.count < 300) CHECK(put(&w, 12288));
    mp_pool *pool = &w.m.header->pool_spans;
    uint32_t high = pool->high, span;
    uint64_t offset;
    atomic_store(&pool->high, pool->used + 3); /* as if no more were backed */
    w.m.full_pool = NULL;
    CHECK_EQ(mp_arena_alloc(&w.m, 12288, &offset, &span), MP_POOL_FULL);
    CHECK(w.m.full_pool && strcmp(w.m.full_pool, "spans") == 0);
    mp_run run;
    CHECK_EQ(mp_arena_plan_grow(&w.m, 4 * MIB, &run), MP_POOL_FULL);
    CHECK(!mp_arena_plan_punch(&w.m, 1, &run));
    while (w.count > 100) drop(&w, (uint32_t)random_below(&w.random, w.count));
    CHECK_EQ(atomic_load(&w.m.header->poisoned), 0);
    atomic_store(&pool->high, high);
    fixture_check_arena(&w.m);
    world_close(&w);
}

/* Each block of a run gets its writer's slot, and no other block does. */
static void a_run_is_stamped_whole(void) {
    world w;
    world_open(&w, 64 * MIB, 64 * MIB);
    CHECK_EQ(grow(&w, 48 * MIB), MP_OK);
    uint32_t me = w.m.slot;
    for (uint32_t blocks = 1; blocks <= 33; blocks++) {
        uint16_t before[64 * MIB / MP_BLOCK];
        uint64_t offset;
        uint32_t span;
        for (uint32_t b = 0; b < 64 * MIB / MP_BLOCK; b++) before[b] = w.m.commit[b];
        w.m.slot = blocks % 2 ? 7 : 8;
        CHECK_EQ(mp_arena_alloc(&w.m, (uint64_t)blocks * MP_BLOCK, &offset, &span), MP_OK);
        for (uint32_t b = 0; b < 64 * MIB / MP_BLOCK; b++) {
            bool inside = b >= offset / MP_BLOCK && b <= (offset + (uint64_t)blocks * MP_BLOCK - 1) / MP_BLOCK;
            CHECK_EQ(w.m.commit[b], inside ? MP_COMMIT(MP_COMMITTED, w.m.slot) : before[b]);
        }
    }
    w.m.slot = me;
    world_close(&w);
}

/* Blocks that a dead slot was committing or punching become ours to punch. */
static void reclaim_takes_over(void) {
    world w;
    mp_run grown, other, punched, run;
    world_open(&w, 64 * MIB, 64 * MIB);
    CHECK_EQ(grow(&w, 8 * MIB), MP_OK);
    uint32_t me = w.m.slot;
    w.m.slot = 7;
    CHECK_EQ(mp_arena_plan_grow(&w.m, MIB, &grown), MP_OK);
    CHECK(mp_arena_plan_punch(&w.m, 5, &punched));
    w.m.slot = 8;
    CHECK_EQ(mp_arena_plan_grow(&w.m, MIB, &other), MP_OK);
    w.m.slot = me;
    uint64_t before = committed(&w), blocks = 0;
    fixture_check_arena(&w.m);
    while (mp_arena_plan_reclaim(&w.m, 7, &run)) {
        blocks += run.blocks;
        CHECK_EQ(MP_COMMIT_STATE(w.m.commit[run.block]), MP_PUNCHING);
        CHECK_EQ(MP_COMMIT_SLOT(w.m.commit[run.block]), me);
        fixture_check_arena(&w.m);
        mp_arena_punched(&w.m, run);
    }
    CHECK_EQ(blocks, grown.blocks + punched.blocks);
    CHECK_EQ(committed(&w), before - blocks);
    w.m.slot = 7;
    mp_arena_grown(&w.m, grown, true); /* too late: nothing of it is ours any more */
    CHECK_EQ(MP_COMMIT_STATE(w.m.commit[grown.block]), MP_NONE);
    w.m.slot = 8;
    CHECK_EQ(mp_arena_commit(&w.m, other), 0);
    mp_arena_grown(&w.m, other, true);
    w.m.slot = me;
    fixture_check_arena(&w.m);
    world_close(&w);
}

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    RUN(class_sizes);
    RUN(bins_are_ordered);
    RUN(growth_stops_at_the_limit);
    RUN(growth_extends_what_is_free);
    RUN(failed_commit_gives_back);
    RUN(punching_returns_memory);
    RUN(fragments_do_not_stop_a_large_value);
    RUN(own_pages_come_first);
    RUN(own_end_of_a_run_comes_first);
    RUN(the_lowest_hole_of_a_bin_is_taken);
    RUN(a_fit_deep_in_its_bin_is_found);
    RUN(a_gap_is_closed);
    RUN(a_full_pool_stops_no_release);
    RUN(a_run_is_stamped_whole);
    RUN(reclaim_takes_over);
    RUN(every_size_round_trips);
    RUN(random_model);
    return 0;
}
