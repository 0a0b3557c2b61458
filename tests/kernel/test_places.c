/* Where disk copies are: the scans of them, and a record that moves to another segment. */
#define _GNU_SOURCE
#include <string.h>

#include "fixture.h"

static fixture store;
static mp_member a, b;

typedef struct object {
    uint32_t entry;
    uint64_t birth;
} object;

static void open_store(void) {
    fixture_create(&store, (fixture_shape){.arena_bytes = 4 << 20, .memory_limit = 4 << 20, .entries = 300});
    fixture_first(&store, &a);
    fixture_join(&a, &b);
}

static void close_store(void) {
    fixture_check(&a);
    mp_release_slot(&b);
    mp_drop_all(&a);
    fixture_check(&a);
    CHECK_EQ(a.header->pool_entries.used, 1);
    fixture_leave(&b);
    fixture_unmap(&a);
    fixture_close(&store);
}

/* An object that went straight to disk. */
static object settle(mp_member *m, uint64_t size, mp_place *place) {
    object o;
    CHECK_EQ(mp_draft_bare(m, size, &o.entry, &o.birth), MP_OK);
    CHECK_EQ(mp_settle(m, o.entry, o.birth, place), MP_OK);
    return o;
}

static uint32_t open_segment(mp_member *m, uint64_t bytes) {
    uint32_t segment;
    uint64_t id, offset;
    CHECK_EQ(mp_segment_open(m, 0, &segment, &id), MP_OK);
    CHECK_EQ(mp_segment_reserve(m, segment, bytes, &offset), MP_OK);
    return segment;
}

static uint32_t records_in(mp_member *m, uint32_t segment, mp_record *rows) {
    uint8_t wanted[64] = {0};
    uint32_t cursor = 0, found;
    wanted[segment] = 1;
    CHECK_EQ(mp_records(m, &cursor, wanted, 64, rows, 8, &found), MP_OK);
    return found;
}

static void a_record_moves_to_another_segment(void) {
    mp_record rows[8];
    mp_segment copy;
    mp_place place = {.length = 4096};
    uint64_t size;
    open_store();
    uint32_t before = open_segment(&a, 4096);
    place.segment = before;
    object o = settle(&a, 3000, &place);
    mp_segment_close(&a, before);
    CHECK_EQ(records_in(&b, before, rows), 1);
    CHECK(rows[0].entry == o.entry && rows[0].birth == o.birth && rows[0].size == 3000 && !rows[0].resident);
    uint32_t segment = open_segment(&b, 8192);
    CHECK_EQ(mp_place_move(&a, &rows[0], segment, 4096), MP_INVALID); /* not its own segment */
    CHECK_EQ(mp_place_read(&a, o.entry, o.birth, &place, &size), MP_IS_SPILLED);
    CHECK_EQ(mp_place_move(&b, &rows[0], segment, 4096), MP_IS_PINNED);
    CHECK_EQ(records_in(&b, before, rows + 1), 0); /* not even shown */
    mp_unpin(&a, o.entry, MP_ONE_OP);
    mp_record wrong = rows[0];
    wrong.checksum++;
    CHECK_EQ(mp_place_move(&b, &wrong, segment, 4096), MP_NOT_FOUND);
    wrong = rows[0];
    wrong.birth++;
    CHECK_EQ(mp_place_move(&b, &wrong, segment, 4096), MP_NOT_FOUND);
    CHECK_EQ(mp_place_move(&b, &rows[0], segment, 4096), MP_OK);
    CHECK_EQ(mp_segment_dead(&a, 0, &copy), before);
    CHECK_EQ(mp_place_move(&b, &rows[0], segment, 4096), MP_NOT_FOUND); /* it was there once */
    CHECK_EQ(mp_place_read(&a, o.entry, o.birth, &place, &size), MP_IS_SPILLED);
    CHECK(place.offset == 4096 && place.segment == segment && place.length == 4096 && size == 3000);
    mp_unpin(&a, o.entry, MP_ONE_OP);
    CHECK_EQ(mp_segment_read(&a, segment, &copy), MP_OK);
    CHECK_EQ(copy.live, 4096);
    fixture_check(&a);
    close_store();
}

/* It goes on for a moment, while its slot and the index of its segment are another's: no place leads into that file. */
static void what_was_taken_for_dead_records_no_place(void) {
    mp_record rows[8];
    mp_segment copy;
    mp_member heir;
    mp_place place = {.length = 4096};
    uint64_t offset;
    open_store();
    place.segment = open_segment(&a, 4096);
    object kept = settle(&a, 3000, &place), own;
    mp_segment_close(&a, place.segment);
    CHECK_EQ(records_in(&b, place.segment, rows), 1);
    uint32_t segment = open_segment(&b, 4096);
    fixture_die(&b);
    CHECK_EQ(mp_reap(&a, b.slot, b.slot_word), MP_OK);
    CHECK_EQ(mp_segment_dead(&a, 0, &copy), segment);
    CHECK_EQ(mp_segment_forget(&a, segment, copy.id), MP_OK);
    fixture_join(&a, &heir);
    CHECK_EQ(heir.slot, b.slot);
    CHECK_EQ(open_segment(&heir, 4096), segment);
    CHECK_EQ(mp_place_move(&b, &rows[0], segment, 0), MP_CLOSED);
    CHECK_EQ(mp_segment_reserve(&b, segment, 4096, &offset), MP_CLOSED);
    CHECK_EQ(mp_draft_bare(&heir, 3000, &own.entry, &own.birth), MP_OK);
    mp_place other = {.length = 4096, .segment = segment};
    CHECK_EQ(mp_settle(&b, own.entry, own.birth, &other), MP_CLOSED);
    CHECK_EQ(mp_settle(&heir, own.entry, own.birth, &other), MP_OK);
    CHECK_EQ(mp_drop(&heir, own.entry, -1), MP_OK);
    CHECK_EQ(mp_drop(&a, kept.entry, -1), MP_OK);
    mp_release_slot(&heir);
    fixture_leave(&heir);
    close_store();
}

/* A death inside of a move leaves it decided, and whoever repairs the table finishes it. */
static void a_move_that_was_decided_is_finished(void) {
    mp_place place = {.length = 4096};
    open_store();
    place.segment = open_segment(&a, 4096);
    object o = settle(&a, 3000, &place);
    mp_entry *e = &a.entries[o.entry];
    uint32_t segment = open_segment(&a, 8192);
    a.header->move_offset = 4096;
    a.header->move_segment = segment;
    atomic_store(&a.header->move_entry, o.entry);
    CHECK_EQ(mp_lock(&a, -1), MP_OK);
    CHECK_EQ(mp_rebuild(&a), MP_OK);
    mp_unlock(&a);
    CHECK(e->place.offset == 4096 && atomic_load(&e->place.segment) == segment);
    fixture_check(&a);
    close_store();
}

static void pages_of_records_are_live(void) {
    uint64_t bits[2] = {0};
    uint32_t cursor = 0;
    mp_place place = {.length = 5000};
    open_store();
    uint32_t segment = open_segment(&a, 70 * 4096);
    place.segment = segment;
    place.offset = 2 * 4096; /* pages 2 and 3 */
    settle(&a, 4900, &place);
    place.offset = 68 * 4096 - 64; /* pages 67, 68 and 69 */
    settle(&a, 4900, &place);
    uint64_t bases[8] = {0};
    for (uint32_t s = segment + 1; s < 8; s++) bases[s] = 70;
    mp_page_map map = {.bases = bases, .bits = bits, .segments = 7};
    while (cursor < mp_entries_backed(&a)) CHECK_EQ(mp_live_pages(&a, &cursor, &map), MP_OK);
    CHECK_EQ(bits[0], 12);
    CHECK_EQ(bits[1], 8 + 16 + 32);
    mp_segment_close(&a, segment);
    object late;
    CHECK_EQ(mp_draft_bare(&a, 10, &late.entry, &late.birth), MP_OK);
    CHECK_EQ(mp_settle(&a, late.entry, late.birth, &place), MP_INVALID); /* closed is closed */
    CHECK_EQ(mp_abort(&a, late.entry, late.birth), MP_OK);
    fixture_check(&a);
    close_store();
}

/* How much was punched is told as a total, which grows. */
static void punched_bytes_are_a_total(void) {
    mp_segment copy;
    open_store();
    uint32_t segment = open_segment(&a, 16 * 4096);
    mp_place place = {.length = 4096, .segment = segment};
    settle(&a, 4000, &place);
    mp_segment_close(&a, segment);
    CHECK_EQ(mp_segment_read(&a, segment, &copy), MP_OK);
    CHECK_EQ(mp_segment_punched(&a, segment, copy.id, 3 * 4096), MP_OK);
    CHECK_EQ(mp_segment_punched(&a, segment, copy.id, 8 * 4096), MP_OK);
    CHECK_EQ(mp_segment_punched(&a, segment, copy.id, 2 * 4096), MP_OK); /* of somebody slow */
    CHECK_EQ(a.header->disk_bytes, 8 * 4096);
    fixture_check(&a);
    close_store();
}

static void segments_live_as_long_as_their_records(void) {
    uint32_t segment;
    uint64_t id, offset, limit = 10000;
    mp_segment copy;
    open_store();
    CHECK_EQ(mp_segment_open(&a, 3, &segment, &id), MP_OK);
    mp_set_limits(&a, NULL, &limit, NULL);
    CHECK_EQ(mp_segment_reserve(&b, segment, 100, &offset), MP_INVALID); /* not its own */
    CHECK_EQ(mp_segment_reserve(&a, segment, 4096, &offset), MP_OK);
    CHECK_EQ(mp_segment_reserve(&a, segment, 4096, &offset), MP_OK);
    CHECK_EQ(offset, 4096);
    CHECK_EQ(mp_segment_reserve(&a, segment, 4096, &offset), MP_DISK_LIMIT);
    object o;
    CHECK_EQ(mp_draft_bare(&a, 4000, &o.entry, &o.birth), MP_OK);
    mp_place place = {.offset = 4096, .length = 4096, .checksum = 5, .segment = segment};
    CHECK_EQ(mp_settle(&a, o.entry, o.birth, &place), MP_OK);
    CHECK_EQ(mp_segment_punched(&a, segment, id, 4096), MP_NOT_FOUND); /* still OPEN: more may come */
    mp_segment_close(&a, segment);
    CHECK_EQ(mp_segment_punched(&b, segment, id, 4096), MP_OK);
    CHECK_EQ(mp_segment_punched(&a, segment, id, 4096), MP_OK); /* the total, again */
    CHECK_EQ(mp_segment_punched(&a, segment, id, 8193), MP_NOT_FOUND); /* more than there is */
    CHECK_EQ(a.header->disk_bytes, 4096);
    CHECK_EQ(mp_segment_dead(&a, 0, &copy), 0);
    CHECK_EQ(mp_segment_forget(&a, segment, id), MP_NOT_FOUND);
    CHECK_EQ(mp_segment_read(&b, segment, &copy), MP_OK);
    CHECK(copy.live == 4096 && copy.directory == 3 && copy.id == id);
    fixture_check(&a);
    CHECK_EQ(mp_drop(&a, o.entry, -1), MP_OK);
    CHECK_EQ(mp_segment_dead(&a, 0, &copy), segment);
    CHECK_EQ(mp_segment_forget(&a, segment, id + 1), MP_NOT_FOUND);
    CHECK_EQ(mp_segment_forget(&a, segment, id), MP_OK);
    CHECK_EQ(a.header->disk_bytes, 0);
    close_store();
}

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    RUN(a_record_moves_to_another_segment);
    RUN(what_was_taken_for_dead_records_no_place);
    RUN(a_move_that_was_decided_is_finished);
    RUN(pages_of_records_are_live);
    RUN(punched_bytes_are_a_total);
    RUN(segments_live_as_long_as_their_records);
    return 0;
}
