/* A member that was given up for dead and goes on: by then its slot is another's, and so is what it had.
 *
 * That it may do no harm where bits and words change without the mutex is not promised (docs/internals/concurrency.md):
 * here are the calls that look, under the mutex, whether the slot is still their member's.
 */
#define _GNU_SOURCE
#include <string.h>

#include "fixture.h"

static fixture store;
static mp_member a, lost, heir;

static void begin(void) {
    fixture_create(&store, (fixture_shape){.arena_bytes = 4 << 20, .memory_limit = 2 << 20, .entries = 200});
    fixture_first(&store, &a);
    fixture_join(&a, &lost);
    CHECK_EQ(mp_grow(&a, 100000), MP_OK);
}

static void forget_dead_segments(void) {
    mp_segment copy;
    for (uint32_t s; (s = mp_segment_dead(&a, 1, &copy)) != 0;) CHECK_EQ(mp_segment_forget(&a, s, copy.id), MP_OK);
}

/* Nobody sees a process behind the lost one: it is reaped, and the next member has its slot. */
static void give_up(void) {
    fixture_die(&lost);
    CHECK_EQ(mp_reap_dead(&a), 1);
    forget_dead_segments();
    fixture_join(&a, &heir);
    CHECK_EQ(heir.slot, lost.slot);
    CHECK_EQ(mp_usable(&lost), MP_CLOSED);
}

static void end(void) {
    fixture_check(&a);
    mp_release_slot(&lost); /* has none */
    CHECK_EQ(mp_usable(&heir), MP_OK);
    mp_drop_all(&heir);
    mp_release_slot(&heir);
    mp_drop_all(&a);
    forget_dead_segments();
    CHECK_EQ(a.header->pool_entries.used, 1);
    CHECK_EQ(a.header->disk_bytes, 0);
    fixture_check(&a);
    fixture_leave(&heir);
    fixture_leave(&lost);
    fixture_unmap(&a);
    fixture_close(&store);
}

static void create(mp_member *m, uint32_t *entry, uint64_t *birth) {
    uint64_t offset;
    CHECK_EQ(mp_draft(m, 100, entry, birth, &offset), MP_OK);
    CHECK_EQ(mp_seal(m, *entry, *birth), MP_OK);
}

static uint32_t open_segment(mp_member *m, uint64_t *id) {
    uint32_t segment;
    uint64_t offset;
    CHECK_EQ(mp_segment_open(m, 0, &segment, id), MP_OK);
    CHECK_EQ(mp_segment_reserve(m, segment, 8192, &offset), MP_OK);
    return segment;
}

static void another_s_segment_is_left_alone(void) {
    uint32_t entry, elsewhere, cursor = 0, found;
    uint64_t birth, elsewhere_birth, offset, size, id, next;
    uint8_t wanted[64] = {0};
    mp_record record;
    mp_segment copy;
    begin();
    create(&a, &entry, &birth);
    uint32_t segment = open_segment(&lost, &id), mine = open_segment(&a, &id);
    CHECK_EQ(mp_clean_claim(&lost, entry, birth, &offset, &size), MP_OK);
    mp_place place = {.length = 4096, .segment = mine};
    CHECK_EQ(mp_draft_bare(&a, 100, &elsewhere, &elsewhere_birth), MP_OK);
    CHECK_EQ(mp_settle(&a, elsewhere, elsewhere_birth, &place), MP_OK);
    wanted[mine] = 1;
    CHECK_EQ(mp_records(&a, &cursor, wanted, 64, &record, 1, &found), MP_OK);
    CHECK_EQ(found, 1);
    give_up();
    CHECK_EQ(open_segment(&heir, &next), segment);

    place.segment = segment; /* the record that the lost one has written to a file that is gone */
    mp_cleaned item = {.place = place, .birth = birth, .entry = entry, .evict = true};
    CHECK_EQ(mp_clean_publish(&lost, &item, 1), MP_CLOSED);
    CHECK_EQ(item.code, MP_CLOSED);
    CHECK_EQ(mp_state(&a, entry, birth), MP_OK);
    CHECK_EQ(atomic_load(&a.entries[entry].place.segment), 0);
    CHECK_EQ(mp_place_move(&lost, &record, segment, 4096), MP_CLOSED);
    CHECK_EQ(mp_segment_reserve(&lost, segment, 4096, &offset), MP_CLOSED);
    CHECK_EQ(mp_segment_open(&lost, 0, &found, &id), MP_CLOSED);
    mp_segment_close(&lost, segment);
    CHECK_EQ(mp_segment_read(&a, segment, &copy), MP_OK);
    CHECK(copy.id == next && copy.size == 8192 && copy.live == 0 && atomic_load(&copy.state) == MP_SEGMENT_OPEN);
    mp_segment_close(&heir, segment);
    mp_segment_close(&a, mine);
    end();
}

static void another_s_restore_is_left_alone(void) {
    uint32_t entry;
    uint64_t birth, offset, size, id;
    mp_place place = {.length = 4096};
    begin();
    uint32_t segment = place.segment = open_segment(&a, &id);
    CHECK_EQ(mp_draft_bare(&a, 100, &entry, &birth), MP_OK);
    CHECK_EQ(mp_settle(&a, entry, birth, &place), MP_OK);
    CHECK_EQ(mp_place_read(&lost, entry, birth, &place, &size), MP_IS_SPILLED);
    CHECK_EQ(mp_restore_begin(&lost, entry, birth, &offset), MP_OK);
    give_up();
    CHECK_EQ(mp_restore_begin(&lost, entry, birth, &offset), MP_CLOSED);
    CHECK_EQ(mp_place_read(&heir, entry, birth, &place, &size), MP_IS_SPILLED);
    CHECK_EQ(mp_restore_begin(&heir, entry, birth, &offset), MP_OK);
    static const enum mp_state ends[] = {MP_RESIDENT, MP_SPILLED, MP_LOST};
    for (uint32_t i = 0; i < 3; i++) CHECK_EQ(mp_restore_end(&lost, entry, birth, ends[i]), MP_CLOSED);
    CHECK_EQ(mp_state(&a, entry, birth), MP_IS_RESTORING); /* its bytes are not whole yet */
    CHECK_EQ(mp_restore_end(&heir, entry, birth, MP_RESIDENT), MP_OK);
    mp_unpin(&heir, entry, MP_ONE_OP);
    mp_unpin(&lost, entry, MP_ONE_OP);
    mp_segment_close(&a, segment);
    end();
}

static mp_run run;

/* The heir punches the very blocks that the lost one was punching. */
static int meanwhile(mp_member *m, uint64_t offset, uint64_t length) {
    CHECK_EQ(mp_linux.punch(m, offset, length), 0);
    give_up();
    CHECK_EQ(mp_grow(&heir, 100000), MP_OK);
    CHECK_EQ(mp_lock(&heir, -1), MP_OK);
    CHECK_EQ(mp_arena_plan_punch(&heir, 64, &run), true);
    mp_unlock(&heir);
    CHECK(run.block * MP_BLOCK <= offset && offset + length <= (run.block + run.blocks) * MP_BLOCK);
    return 0;
}

static void another_s_blocks_are_left_alone(void) {
    begin();
    mp_system slow = *lost.system;
    slow.punch = meanwhile;
    lost.system = &slow;
    CHECK_EQ(mp_shrink(&lost, UINT64_MAX / 2), 0);
    for (uint32_t b = run.block; b < run.block + run.blocks; b++)
        CHECK_EQ(atomic_load(&a.commit[b]), MP_COMMIT(MP_PUNCHING, heir.slot));
    CHECK_EQ(a.header->committed_blocks, run.blocks);
    CHECK_EQ(mp_grow(&lost, 100), MP_CLOSED);
    CHECK_EQ(mp_punch(&heir, run, 0), MP_OK);
    end();
}

/* Its refs are counted still, and lead to whatever is made in the same entry. */
static void another_s_draft_is_left_alone(void) {
    uint32_t entry, made;
    uint64_t birth, made_birth, offset, size;
    begin();
    create(&lost, &entry, &birth);
    CHECK_EQ(mp_view(&lost, entry, birth, &offset, &size), MP_OK);
    give_up();
    CHECK_EQ(mp_draft(&heir, 100, &made, &made_birth, &offset), MP_OK);
    CHECK_EQ(made, entry);
    mp_drop_all(&lost);
    CHECK_EQ(mp_state(&a, made, made_birth), MP_IS_DRAFT);
    CHECK_EQ(mp_seal(&heir, made, made_birth), MP_OK);
    mp_unpin(&lost, entry, MP_ONE_VIEW);
    end();
}

static void nothing_is_made_or_held_in_another_s_name(void) {
    uint32_t entry, gone, made, token;
    uint64_t birth, gone_birth, made_birth, offset;
    begin();
    create(&a, &entry, &birth);
    create(&lost, &gone, &gone_birth);
    CHECK_EQ(mp_token_issue(&a, entry, birth, 1, 0, 7, &token), MP_OK);
    give_up();
    CHECK_EQ(mp_draft(&lost, 100, &made, &made_birth, &offset), MP_CLOSED);
    CHECK_EQ(mp_hold(&lost, entry, birth), MP_CLOSED);
    CHECK_EQ(mp_token_load(&lost, token, 7, entry, birth), MP_CLOSED);
    CHECK_EQ(mp_token_issue(&lost, gone, gone_birth, 1, 0, 8, &made), MP_NOT_FOUND);
    CHECK((atomic_load(mp_holder_word(&a.entries[entry], lost.slot)) & mp_bit(lost.slot)) == 0);
    CHECK_EQ(a.entries[entry].tokens, 1);
    CHECK_EQ(mp_token_withdraw(&a, 0), MP_OK);
    CHECK_EQ(a.entries[entry].tokens, 0);
    end();
}

/* Its refs are gone with its slot. Somebody views what was its: it is garbage, but there. */
static void what_it_held_gets_no_name(void) {
    uint32_t entry, found;
    uint64_t birth, offset, size, found_birth;
    begin();
    create(&lost, &entry, &birth);
    CHECK_EQ(mp_view(&a, entry, birth, &offset, &size), MP_OK);
    give_up();
    CHECK_EQ(mp_state_of(atomic_load(&a.entries[entry].control)), MP_GARBAGE);
    CHECK_EQ(mp_name_set(&lost, "late", 4, entry, birth, true), MP_NOT_FOUND);
    CHECK_EQ(mp_name_hold(&a, "late", 4, &found, &found_birth), MP_NOT_FOUND);
    mp_unpin(&a, entry, MP_ONE_VIEW);
    end();
}

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    RUN(another_s_segment_is_left_alone);
    RUN(another_s_restore_is_left_alone);
    RUN(another_s_blocks_are_left_alone);
    RUN(another_s_draft_is_left_alone);
    RUN(nothing_is_made_or_held_in_another_s_name);
    RUN(what_it_held_gets_no_name);
    return 0;
}
