/* Waiting for room: who waits longest gets what comes free, what fits beside it goes, the dead and the
 * stopped bind nobody.
 */
#define _GNU_SOURCE
#include <string.h>

#include "fixture.h"

#define MIB (1ull << 20)
#define LIMIT (8 * MIB)

static fixture store;
static mp_member a, b, c;
static mp_system replaced;
static uint64_t now_ns;

typedef struct object {
    uint32_t entry;
    uint64_t birth;
} object;

static object objects[64];
static uint32_t count;

static uint64_t fake_boottime(void) { return now_ns; }

static void join(mp_member *m) {
    fixture_join(&a, m);
    m->system = &replaced;
}

static void open_store(void) {
    fixture_create(&store, (fixture_shape){.arena_bytes = 4 * LIMIT, .memory_limit = LIMIT, .entries = 300});
    fixture_first(&store, &a);
    replaced = *a.system;
    replaced.boottime = fake_boottime;
    now_ns = 1000000000;
    a.system = &replaced;
    join(&b);
    join(&c);
}

static void close_store(void) {
    for (mp_member *m = &a; m; m = m == &a ? &b : m == &b ? &c : NULL) mp_drop_all(m);
    fixture_check(&a);
    mp_release_slot(&b);
    mp_release_slot(&c);
    CHECK_EQ(a.header->pool_entries.used, 1);
    CHECK_EQ(a.header->queue_first, 0);
    fixture_leave(&b);
    fixture_leave(&c);
    fixture_unmap(&a);
    fixture_close(&store);
}

static mp_code put(mp_member *m, uint64_t size, object *o) {
    uint64_t offset;
    mp_code code;
    while ((code = mp_draft(m, size, &o->entry, &o->birth, &offset)) == MP_NO_ROOM)
        if (mp_queue_lacking(m, size) != 0 || mp_grow(m, size) != MP_OK) return MP_NO_ROOM;
    CHECK_EQ(code, MP_OK);
    CHECK_EQ(mp_seal(m, o->entry, o->birth), MP_OK);
    return MP_OK;
}

static bool fits(mp_member *m, uint64_t size) {
    object o;
    if (put(m, size, &o) != MP_OK) return false;
    CHECK_EQ(mp_drop(m, o.entry, -1), MP_OK);
    return true;
}

/* Values of 1 MiB by a, until so many bytes are left. */
static void fill(uint64_t left) {
    for (count = 0; count < (LIMIT - left) / MIB; count++) CHECK_EQ(put(&a, MIB, &objects[count]), MP_OK);
}

static void release(uint32_t i) { CHECK_EQ(mp_drop(&a, objects[i].entry, -1), MP_OK); }

static void wait_for(mp_member *m, uint64_t bytes) {
    CHECK_EQ(mp_queue_enter(m, bytes), MP_OK);
    CHECK_EQ(mp_queue_renew(m), MP_OK);
}

/* --- tests --- */

static void what_comes_free_is_for_the_first(void) {
    open_store();
    fill(0);
    wait_for(&b, 2 * MIB);
    wait_for(&c, MIB);
    release(0);
    CHECK(!fits(&c, MIB)); /* later */
    CHECK(!fits(&a, MIB)); /* does not wait at all */
    CHECK(!fits(&a, 100)); /* wants a block for its slab */
    CHECK_EQ(mp_queue_lacking(&c, MIB), MIB);
    release(1);
    CHECK(!fits(&c, MIB));
    CHECK(fits(&b, 2 * MIB));
    mp_queue_leave(&b, 2 * MIB);
    CHECK(fits(&c, MIB));
    mp_queue_leave(&c, MIB);
    close_store();
}

/* Memory that was free before is for anybody. */
static void what_fits_beside_it_just_goes(void) {
    open_store();
    fill(3 * MIB);
    wait_for(&b, 4 * MIB);
    CHECK(fits(&a, 2 * MIB)); /* and is dropped at once: that came free */
    CHECK(!fits(&a, 2 * MIB));
    CHECK(fits(&a, MIB));
    CHECK(!fits(&a, MIB));
    release(count - 1); /* beside what is free */
    CHECK(!fits(&a, MIB));
    CHECK(fits(&b, 4 * MIB));
    mp_queue_leave(&b, 4 * MIB);
    close_store();
}

static void no_more_is_put_by_than_is_needed(void) {
    open_store();
    fill(0);
    wait_for(&b, MIB);
    for (uint32_t i = 0; i < 3; i++) release(i);
    CHECK(!fits(&c, 3 * MIB));
    CHECK(fits(&c, 2 * MIB));
    mp_queue_leave(&b, MIB);
    CHECK(fits(&c, 3 * MIB));
    close_store();
}

static void a_slot_in_an_open_slab_takes_no_room(void) {
    object small;
    open_store();
    fill(MIB);
    CHECK_EQ(put(&a, 100, &small), MP_OK);
    wait_for(&b, 2 * MIB);
    release(0);
    CHECK_EQ(mp_queue_lacking(&c, 100), 0);
    CHECK(fits(&c, 100));
    CHECK(!fits(&c, 2 * MIB));
    mp_queue_leave(&b, 2 * MIB);
    close_store();
}

/* It still copies its value; what comes free is for the others. */
static void what_the_first_has_taken_is_not_put_by_any_more(void) {
    object large, small;
    open_store();
    fill(0);
    wait_for(&b, 2 * MIB + MP_BLOCK);
    for (uint32_t i = 0; i < 2; i++) release(i);
    CHECK(!fits(&c, MIB));
    CHECK_EQ(put(&b, 2 * MIB, &large), MP_OK);
    CHECK_EQ(a.slots[b.slot].room_needed, 0);
    CHECK_EQ(mp_queue_lacking(&c, MIB), 0);
    wait_for(&c, MIB);
    CHECK_EQ(a.header->queue_first, c.slot + 1);
    release(2);
    CHECK(!fits(&a, MIB));
    CHECK(fits(&c, MIB));
    mp_queue_leave(&c, MIB);
    wait_for(&b, MIB); /* another thread */
    mp_queue_leave(&b, 2 * MIB + MP_BLOCK);
    CHECK_EQ(a.slots[b.slot].room_needed, MIB);
    CHECK_EQ(put(&b, 100, &small), MP_OK); /* and a third, which found room at once */
    CHECK_EQ(a.slots[b.slot].room_needed, MIB);
    mp_queue_leave(&b, MIB);
    CHECK_EQ(b.queue_served, 0);
    close_store();
}

static uint32_t calls;

static void nothing_lacks(void) {
    calls++;
    CHECK_EQ(mp_queue_lacking(&c, MIB), 0);
}

static int watched_punch(mp_member *m, uint64_t offset, uint64_t bytes) {
    nothing_lacks();
    return mp_linux.punch(m, offset, bytes);
}

static int watched_commit(mp_member *m, uint64_t offset, uint64_t bytes) {
    nothing_lacks();
    return mp_linux.commit(m, offset, bytes);
}

/* Nobody else needs to make room for what the first is turning over just now; then it is put by as before. */
static void what_the_first_commits_and_punches_is_borrowed(void) {
    open_store();
    fill(0);
    wait_for(&b, 4 * MIB);
    for (uint32_t i = 0; i < 2; i++) release(i);
    replaced.punch = watched_punch;
    replaced.commit = watched_commit;
    CHECK_EQ(mp_shrink(&b, 2 * MIB), 2 * MIB);
    CHECK_EQ(a.slots[b.slot].room_reserved, 2 * MIB);
    CHECK(!fits(&c, MIB));
    CHECK_EQ(mp_grow(&b, 2 * MIB), MP_OK);
    CHECK_EQ(calls, 2);
    CHECK_EQ(a.slots[b.slot].room_reserved, 2 * MIB);
    CHECK(!fits(&c, MIB));
    mp_queue_leave(&b, 4 * MIB);
    close_store();
}

static void the_stopped_bind_nobody(void) {
    open_store();
    fill(0);
    wait_for(&b, MIB);
    wait_for(&c, MIB);
    release(0);
    CHECK(!fits(&c, MIB));
    now_ns += 251000000;
    CHECK(fits(&a, MIB)); /* b has not renewed, nor has c */
    CHECK_EQ(mp_queue_renew(&c), MP_OK);
    CHECK_EQ(a.header->queue_first, c.slot + 1);
    CHECK_EQ(mp_queue_renew(&b), MP_OK); /* back, and first again */
    CHECK_EQ(a.header->queue_first, b.slot + 1);
    CHECK(!fits(&c, MIB));
    mp_queue_leave(&b, MIB);
    mp_queue_leave(&c, MIB);
    close_store();
}

static void the_dead_are_voided(void) {
    uint64_t word;
    open_store();
    fill(0);
    wait_for(&b, MIB);
    wait_for(&c, MIB);
    release(0);
    CHECK(!fits(&c, MIB));
    fixture_die(&b);
    CHECK(mp_slot_dead(&a, b.slot, &word));
    CHECK_EQ(mp_reap(&a, b.slot, word), MP_OK);
    CHECK_EQ(a.slots[b.slot].ticket, 0);
    CHECK_EQ(a.header->queue_first, c.slot + 1);
    CHECK(fits(&c, MIB));
    mp_queue_leave(&c, MIB);
    CHECK_EQ(mp_queue_enter(&b, 1), MP_CLOSED); /* it was given up for dead */
    mp_queue_leave(&b, MIB);
    close_store();
}

static void threads_share_a_ticket(void) {
    open_store();
    fill(0);
    wait_for(&b, MIB);
    uint64_t ticket = a.slots[b.slot].ticket;
    wait_for(&c, MIB);
    wait_for(&b, 2 * MIB);
    CHECK_EQ(a.slots[b.slot].ticket, ticket);
    CHECK_EQ(a.slots[b.slot].room_needed, 3 * MIB);
    mp_queue_leave(&b, MIB);
    CHECK_EQ(a.slots[b.slot].ticket, ticket);
    mp_queue_leave(&b, 2 * MIB);
    CHECK_EQ(a.slots[b.slot].ticket, 0);
    CHECK_EQ(a.header->queue_first, c.slot + 1);
    mp_queue_leave(&c, MIB);
    close_store();
}

static void freeing_wakes_once(void) {
    open_store();
    fill(0);
    wait_for(&b, 2 * MIB);
    uint32_t seen = mp_event(&b);
    release(0);
    CHECK_EQ(mp_event(&b), seen + 1);
    release(1);
    CHECK_EQ(mp_event(&b), seen + 1); /* b has not looked yet */
    mp_queue_leave(&b, 2 * MIB);
    close_store();
}

static void a_rebuild_keeps_the_order(void) {
    open_store();
    wait_for(&c, MIB);
    wait_for(&b, MIB);
    a.header->queue_first = 0;
    a.header->next_ticket = 1;
    CHECK_EQ(mp_lock(&a, -1), MP_OK);
    CHECK_EQ(mp_rebuild(&a), MP_OK);
    mp_unlock(&a);
    CHECK_EQ(a.header->queue_first, c.slot + 1);
    CHECK_EQ(a.header->next_ticket, a.slots[b.slot].ticket + 1);
    mp_queue_leave(&c, MIB);
    mp_queue_leave(&b, MIB);
    close_store();
}

/* Work that one does for all: the same one, while it comes. */
static void turns_are_taken(void) {
    open_store();
    CHECK(mp_take_turn(&b, MP_CHORE_IDLE, 1000000));
    CHECK(!mp_take_turn(&b, MP_CHORE_IDLE, 1000000));
    CHECK(mp_take_turn(&c, MP_CHORE_SHORTAGE, 1000000)); /* other work */
    now_ns += 1100000;
    CHECK(!mp_take_turn(&c, MP_CHORE_IDLE, 1000000));
    CHECK(mp_take_turn(&b, MP_CHORE_IDLE, 1000000));
    now_ns += 2100000;
    CHECK(mp_take_turn(&c, MP_CHORE_IDLE, 1000000)); /* b stays away */
    CHECK(!mp_take_turn(&b, MP_CHORE_IDLE, 1000000));
    close_store();
}

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    RUN(what_comes_free_is_for_the_first);
    RUN(what_fits_beside_it_just_goes);
    RUN(no_more_is_put_by_than_is_needed);
    RUN(a_slot_in_an_open_slab_takes_no_room);
    RUN(what_the_first_has_taken_is_not_put_by_any_more);
    RUN(what_the_first_commits_and_punches_is_borrowed);
    RUN(the_stopped_bind_nobody);
    RUN(the_dead_are_voided);
    RUN(threads_share_a_ticket);
    RUN(freeing_wakes_once);
    RUN(a_rebuild_keeps_the_order);
    RUN(turns_are_taken);
    return 0;
}
