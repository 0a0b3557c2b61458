#include "world.h"

#include <string.h>

void world_open(world *w, uint64_t arena_bytes, uint64_t limit) {
    memset(w, 0, sizeof *w);
    w->random.state = check_seed();
    fixture_shape shape = {.arena_bytes = arena_bytes, .memory_limit = limit, .entries = WORLD_ENTRIES};
    fixture_create(&w->f, shape);
    fixture_map(&w->f, &w->m);
    CHECK_EQ(mp_claim_slot(&w->m), MP_OK);
}

void world_close(world *w) {
    fixture_unmap(&w->m);
    fixture_close(&w->f);
}

uint64_t committed(const world *w) { return atomic_load(&w->m.header->committed_blocks); }

mp_code grow(world *w, uint64_t size) {
    mp_run run;
    CHECK_EQ(mp_pool_ensure(&w->m, &w->m.header->pool_spans, 8), MP_OK);
    mp_code code = mp_arena_plan_grow(&w->m, size, &run);
    if (code != MP_OK) return code;
    CHECK_EQ(mp_arena_commit(&w->m, run), 0);
    mp_arena_grown(&w->m, run, true);
    return MP_OK;
}

static uint64_t pattern(uint32_t entry, uint64_t at) { return (entry + 1) * 0x9e3779b97f4a7c15ull ^ at; }

/* Large extents carry their mark at the start of each page and in their last word. */
static uint64_t stride(uint64_t size) { return size > 65536 ? MP_PAGE : sizeof(uint64_t); }

static void fill(world *w, uint32_t entry) {
    mp_entry *e = &w->m.entries[entry];
    for (uint64_t at = 0; at + 8 <= e->size; at += stride(e->size)) {
        uint64_t word = pattern(entry, at);
        memcpy(w->m.arena_write + e->offset + at, &word, 8);
    }
}

static void verify(world *w, uint32_t entry) {
    mp_entry *e = &w->m.entries[entry];
    for (uint64_t at = 0; at + 8 <= e->size; at += stride(e->size)) {
        uint64_t word;
        memcpy(&word, w->m.arena_read + e->offset + at, 8);
        CHECK_EQ(word, pattern(entry, at));
    }
}

void verify_all(world *w) {
    for (uint32_t i = 0; i < w->count; i++) verify(w, w->live[i]);
}

static mp_code allocate(world *w, uint64_t size, uint64_t *offset, uint32_t *span) {
    mp_code code;
    while ((code = mp_arena_alloc(&w->m, size, offset, span)) == MP_POOL_FULL)
        CHECK_EQ(mp_pool_ensure(&w->m, &w->m.header->pool_spans, 8), MP_OK);
    return code;
}

bool put(world *w, uint64_t size) {
    uint64_t offset;
    uint32_t span;
    mp_code code = allocate(w, size, &offset, &span);
    if (code == MP_NO_ROOM) {
        code = grow(w, size);
        if (code == MP_NO_COMMIT) return false;
        CHECK_EQ(code, MP_OK);
        code = allocate(w, size, &offset, &span);
    }
    CHECK_EQ(code, MP_OK);
    CHECK_EQ(mp_pool_ensure(&w->m, &w->m.header->pool_entries, 1), MP_OK);
    uint32_t entry = mp_pool_take(&w->m, &w->m.header->pool_entries);
    CHECK(entry != 0 && w->count < WORLD_ENTRIES);
    mp_entry *e = &w->m.entries[entry];
    e->offset = offset;
    e->size = size;
    e->span = span;
    e->extent = 1;
    e->control = mp_word(entry, MP_RESIDENT);
    w->live[w->count++] = entry;
    fill(w, entry);
    return true;
}

void drop(world *w, uint32_t index) {
    uint32_t entry = w->live[index];
    mp_entry *e = &w->m.entries[entry];
    verify(w, entry);
    e->extent = 0;
    e->control = mp_word(entry, MP_FREE);
    mp_arena_free(&w->m, e->offset, e->size, e->span);
    mp_pool_give(&w->m, &w->m.header->pool_entries, entry);
    w->live[index] = w->live[--w->count];
}

void drop_all(world *w) {
    while (w->count) drop(w, w->count - 1);
}

static uint64_t some_size(world *w) {
    switch (random_below(&w->random, 8)) {
    case 0: return random_below(&w->random, 65);
    case 1: return random_below(&w->random, 2049);
    case 2: return random_below(&w->random, MP_SMALL_MAX + 1);
    case 3:
    case 4: return MP_SMALL_MAX + 1 + random_below(&w->random, 60000);
    case 5: return random_below(&w->random, 300000);
    case 6: return random_below(&w->random, 9) * 8192;
    default: return random_below(&w->random, MIB);
    }
}

uint64_t shrink(world *w, uint32_t blocks) {
    mp_run run;
    CHECK_EQ(mp_pool_ensure(&w->m, &w->m.header->pool_spans, 8), MP_OK);
    if (!mp_arena_plan_punch(&w->m, blocks, &run)) return 0;
    CHECK(run.blocks > 0 && run.blocks <= blocks);
    CHECK_EQ(mp_arena_punch(&w->m, run), 0);
    mp_arena_punched(&w->m, run);
    return run.blocks;
}

void random_step(world *w, uint32_t puts) {
    uint64_t choice = random_below(&w->random, 100);
    if (choice < 2) shrink(w, 1 + (uint32_t)random_below(&w->random, 8));
    else if (choice < puts && w->count < 2000) put(w, some_size(w));
    else if (w->count) drop(w, (uint32_t)random_below(&w->random, w->count));
}
