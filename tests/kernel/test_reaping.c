/* Two that reap the same slot: the one that moves in, and one that has begun before. */
#define _GNU_SOURCE
#include <string.h>

#include "failpoint_page.h"
#include "fixture.h"

#define VALUES 64u

static fixture store;
static mp_member a, b, dead, heir;
static uint64_t word;
static struct {
    uint32_t entry;
    uint64_t birth, offset, size;
} values[VALUES];
static uint32_t count;

static void fill(mp_member *m, uint64_t size) {
    uint32_t entry;
    uint64_t birth, offset;
    mp_code code;
    while ((code = mp_draft(m, size, &entry, &birth, &offset)) == MP_NO_ROOM)
        if (mp_grow(m, size) != MP_OK) return;
    CHECK_EQ(code, MP_OK);
    memset(m->arena_write + offset, 0x5a, size);
    CHECK_EQ(mp_seal(m, entry, birth), MP_OK);
    CHECK(count < VALUES);
    values[count].entry = entry, values[count].birth = birth;
    values[count].offset = offset, values[count++].size = size;
    fill(m, size);
}

/* Where the heir is about to punch, the other goes on with its reaping, and memory is filled. */
static void meanwhile(const char *name) {
    if (strcmp(name, "reap.blocks") != 0) return;
    failpoint_hook = NULL;
    CHECK_EQ(mp_reap(&b, dead.slot, word), MP_OK);
    fill(&b, 100000);
    CHECK(count > 5);
}

static void nothing_is_punched_that_is_in_use(void) {
    mp_run run;
    fixture_create(&store, (fixture_shape){.arena_bytes = 8 << 20, .memory_limit = 2 << 20, .entries = 2000});
    fixture_first(&store, &a);
    fixture_join(&a, &b);
    fixture_join(&a, &dead);
    CHECK_EQ(mp_pool_ensure(&dead, &dead.header->pool_spans, 8), MP_OK);
    CHECK_EQ(mp_lock(&dead, -1), MP_OK);
    CHECK_EQ(mp_arena_plan_grow(&dead, 500000, &run), MP_OK);
    mp_unlock(&dead);
    fixture_die(&dead);
    word = (dead.slot_word & ~255ull) | MP_SLOT_REAPING; /* b has begun */
    atomic_store(&b.slots[dead.slot].word, word);

    failpoint_hook = meanwhile;
    fixture_join(&a, &heir);
    CHECK(failpoint_hook == NULL);
    CHECK_EQ(heir.slot, dead.slot);
    CHECK_EQ(mp_usable(&heir), MP_OK);
    for (uint32_t i = 0; i < count; i++)
        for (uint64_t at = 0; at < values[i].size; at++) CHECK_EQ(a.arena_read[values[i].offset + at], 0x5a);
    fixture_check(&a);
    for (uint32_t i = 0; i < count; i++) CHECK_EQ(mp_drop(&b, values[i].entry, -1), MP_OK);
    CHECK_EQ(mp_reap(&b, dead.slot, word), MP_OK); /* too late for the one that had begun */
    CHECK_EQ(mp_usable(&heir), MP_OK);
    fixture_check(&a);
    mp_release_slot(&heir);
    mp_release_slot(&b);
    fixture_leave(&heir);
    fixture_leave(&dead);
    fixture_leave(&b);
    fixture_unmap(&a);
    fixture_close(&store);
}

static uint32_t kept;

/* A slow reaper has marked the slot. Meanwhile it is reaped by another, and a new member moves in. */
static void overtaken(const char *name) {
    uint64_t birth, offset;
    if (strcmp(name, "reap.marked") != 0) return;
    failpoint_hook = NULL;
    word = (dead.slot_word & ~255ull) | MP_SLOT_REAPING;
    CHECK_EQ(atomic_load(&a.slots[dead.slot].word), word);
    CHECK_EQ(mp_reap(&b, dead.slot, word), MP_OK);
    fixture_join(&a, &heir);
    CHECK_EQ(heir.slot, dead.slot);
    CHECK_EQ(mp_grow(&heir, 1000), MP_OK);
    CHECK_EQ(mp_draft(&heir, 1000, &kept, &birth, &offset), MP_OK);
    CHECK_EQ(mp_seal(&heir, kept, birth), MP_OK);
    mp_pin(&heir, kept, MP_ONE_VIEW);
}

static void a_slow_reaper_touches_no_heir(void) {
    fixture_create(&store, (fixture_shape){.arena_bytes = 8 << 20, .memory_limit = 2 << 20, .entries = 2000});
    fixture_first(&store, &a);
    fixture_join(&a, &b);
    fixture_join(&a, &dead);
    fixture_die(&dead);
    failpoint_hook = overtaken;
    CHECK_EQ(mp_reap(&a, dead.slot, dead.slot_word), MP_OK);
    CHECK(failpoint_hook == NULL);
    CHECK_EQ(mp_usable(&heir), MP_OK);
    mp_entry *e = &a.entries[kept];
    CHECK_EQ(mp_state_of(atomic_load(&e->control)), MP_RESIDENT);
    CHECK(atomic_load(mp_holder_word(e, heir.slot)) & mp_bit(heir.slot));
    CHECK(atomic_load(mp_pin_word(e, heir.slot)) & mp_bit(heir.slot));
    fixture_check(&a);
    mp_unpin(&heir, kept, MP_ONE_VIEW);
    mp_release_slot(&heir);
    mp_release_slot(&b);
    fixture_leave(&heir);
    fixture_leave(&dead);
    fixture_leave(&b);
    fixture_unmap(&a);
    fixture_close(&store);
}

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    RUN(nothing_is_punched_that_is_in_use);
    RUN(a_slow_reaper_touches_no_heir);
    return 0;
}
