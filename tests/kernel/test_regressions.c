/* Faults that an attack on the kernel found, each in slow motion: b does, where a failpoint stops a, what
 * another process may do there.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "failpoint_page.h"
#include "fixture.h"

#define SOON 3600000000000ull

static fixture store;
static mp_member a, b;

static void open_store(void) {
    fixture_create(&store, (fixture_shape){.arena_bytes = 8 << 20, .memory_limit = 4 << 20, .entries = 2000});
    fixture_first(&store, &a);
    fixture_join(&a, &b);
    CHECK_EQ(mp_grow(&a, 1), MP_OK);
}

static void close_store(void) {
    fixture_check(&a);
    mp_release_slot(&b);
    mp_token_expire(&a, UINT64_MAX - 1);
    mp_drop_all(&a);
    fixture_check(&a);
    CHECK_EQ(a.header->pool_entries.used, 1);
    fixture_leave(&b);
    fixture_unmap(&a);
    fixture_close(&store);
}

static uint32_t make(mp_member *m, uint64_t *birth) {
    uint64_t offset;
    uint32_t entry;
    CHECK_EQ(mp_draft(m, 100, &entry, birth, &offset), MP_OK);
    CHECK_EQ(mp_seal(m, entry, *birth), MP_OK);
    return entry;
}

/* During a rebuild every item of a pool looks used, so whoever wants one raises the high-water mark. */
static void want_more(const char *name) {
    mp_pool *pools[] = {&a.header->pool_tokens, &a.header->pool_names, &a.header->pool_segments, &a.header->pool_edges};
    if (strncmp(name, "rebuild.", 8) != 0) return;
    for (int i = 0; i < 4; i++) (void)mp_pool_ensure(&b, pools[i], pools[i]->high - pools[i]->used + 1);
}

/* Nobody is given an item twice, and none is lost. */
static void pools_may_grow_during_a_rebuild(void) {
    uint64_t birth;
    char name[16];
    open_store();
    uint32_t entry = make(&a, &birth), count = 0;
    CHECK_EQ(mp_name_set(&a, "first", 5, entry, birth, false), MP_OK);
    CHECK_EQ(a.header->pool_names.high < a.geometry.names, 1);
    CHECK_EQ(mp_lock(&a, -1), MP_OK);
    failpoint_hook = want_more;
    CHECK_EQ(mp_rebuild(&a), MP_OK);
    failpoint_hook = NULL;
    mp_unlock(&a);
    do snprintf(name, sizeof name, "%u", ++count);
    while (mp_name_set(&a, name, (uint32_t)strlen(name), entry, birth, false) == MP_OK);
    CHECK_EQ(count, a.geometry.names - 1);
    fixture_check(&a);
    CHECK_EQ(mp_name_remove(&a, "first", 5), MP_OK);
    while (--count > 0) {
        snprintf(name, sizeof name, "%u", count);
        CHECK_EQ(mp_name_remove(&a, name, (uint32_t)strlen(name)), MP_OK);
    }
    close_store();
}

static uint32_t asked;

static void asks(const char *name) {
    if (strcmp(name, "rebuild.entries") != 0) return;
    CHECK_EQ(mp_pool_ensure(&b, &a.header->pool_names, 1), MP_BUSY);
    asked++;
}

/* It has grown as far as it can, and is empty; in the middle of the rebuild every item counts as used. */
static void a_pool_that_is_rebuilt_is_not_full(void) {
    uint64_t birth;
    open_store();
    uint32_t entry = make(&a, &birth);
    CHECK_EQ(mp_name_set(&a, "name", 4, entry, birth, false), MP_OK);
    CHECK_EQ(mp_pool_ensure(&a, &a.header->pool_names, a.geometry.names - 2), MP_OK);
    CHECK_EQ(atomic_load(&a.header->pool_names.high), a.geometry.names);
    CHECK_EQ(mp_name_remove(&a, "name", 4), MP_OK);
    b.patience_ns = 1000;
    CHECK_EQ(mp_lock(&a, -1), MP_OK);
    failpoint_hook = asks;
    CHECK_EQ(mp_rebuild(&a), MP_OK);
    failpoint_hook = NULL;
    mp_unlock(&a);
    CHECK_EQ(asked, 1);
    CHECK_EQ(mp_pool_ensure(&b, &a.header->pool_names, a.geometry.names - 1), MP_OK);
    CHECK_EQ(mp_pool_ensure(&b, &a.header->pool_names, a.geometry.names), MP_POOL_FULL);
    close_store();
}

/* A forked child has all that its parent's thread knew of a restore, or of a draft, and may leave the same blocks. */
static void what_another_fills_is_not_ours_to_end(void) {
    static const enum mp_state ends[] = {MP_RESIDENT, MP_SPILLED, MP_LOST};
    uint64_t birth, offset, size, id;
    uint32_t entry, segment;
    mp_place place = {.length = 4096};
    open_store();
    CHECK_EQ(mp_segment_open(&a, 0, &segment, &id), MP_OK);
    CHECK_EQ(mp_segment_reserve(&a, segment, place.length, &place.offset), MP_OK);
    atomic_store(&place.segment, segment);
    CHECK_EQ(mp_draft_bare(&a, 100, &entry, &birth), MP_OK);
    CHECK_EQ(mp_abort(&b, entry, birth), MP_NOT_FOUND);
    CHECK_EQ(mp_settle(&a, entry, birth, &place), MP_OK);
    CHECK_EQ(mp_place_read(&a, entry, birth, &place, &size), MP_IS_SPILLED);
    CHECK_EQ(mp_restore_begin(&a, entry, birth, &offset), MP_OK);
    for (uint32_t i = 0; i < 3; i++) CHECK_EQ(mp_restore_end(&b, entry, birth, ends[i]), MP_CLOSED);
    CHECK_EQ(mp_state(&a, entry, birth), MP_IS_RESTORING);
    CHECK_EQ(mp_restore_end(&a, entry, birth, MP_RESIDENT), MP_OK);
    mp_unpin(&a, entry, MP_ONE_OP);
    close_store();
}

/* What is deleted is in memory as long as somebody views it, whoever holds a ref to it. */
static void a_tombstone_keeps_no_memory(void) {
    uint64_t birth, offset, size, kept[MP_SLOTS];
    open_store();
    uint32_t entry = make(&a, &birth);
    CHECK_EQ(mp_view(&b, entry, birth, &offset, &size), MP_OK);
    CHECK_EQ(mp_delete(&a, entry, birth), MP_OK);
    for (uint32_t pinned = 0; pinned < 2; pinned++) {
        mp_kept_bytes(&a, pinned, kept);
        CHECK_EQ(kept[pinned ? b.slot : a.slot], mp_extent_bytes(size));
    }
    mp_unpin(&b, entry, MP_ONE_VIEW);
    mp_kept_bytes(&a, false, kept);
    CHECK_EQ(kept[a.slot], 0);
    close_store();
}

/* close() drops all refs while another thread of the process is in the middle of a put. */
static void a_put_outlives_the_drop_of_all(void) {
    uint64_t offset, other, birth, later;
    uint32_t entry, second;
    open_store();
    CHECK_EQ(mp_draft(&b, 100, &entry, &birth, &offset), MP_OK);
    mp_drop_all(&b);
    CHECK_EQ(mp_draft(&a, 100, &second, &later, &other), MP_OK);
    CHECK_EQ(other != offset, 1); /* b still writes there */
    CHECK_EQ(mp_seal(&a, second, later), MP_OK);
    CHECK_EQ(mp_seal(&b, entry, birth), MP_OK);
    mp_release_slot(&b);
    CHECK_EQ(mp_state(&a, entry, birth), MP_NOT_FOUND);
    close_store();
}

/* A draft that others wait for will not be sealed once its writer has closed the store. */
static void a_closed_writer_abandons(void) {
    uint64_t offset, birth;
    uint32_t entry;
    open_store();
    CHECK_EQ(mp_draft(&b, 100, &entry, &birth, &offset), MP_OK);
    mp_pin(&b, entry, MP_ONE_OP);
    CHECK_EQ(mp_hold(&a, entry, birth), MP_OK);
    mp_drop_all(&b);
    CHECK_EQ(mp_state(&a, entry, birth), MP_IS_ABANDONED);
    CHECK_EQ(a.entries[entry].extent, 1); /* an array of the writer may be alive */
    mp_unpin(&b, entry, MP_ONE_OP);
    CHECK_EQ(a.entries[entry].extent, 0);
    close_store();
}

/* Behind a stopped holder the put-off decrements cost one wait, not one each; none is lost. */
static void put_off_drops_wait_once(void) {
    uint64_t birth;
    uint32_t entries[3];
    open_store();
    for (int i = 0; i < 3; i++) entries[i] = make(&a, &birth);
    CHECK_EQ(mp_lock(&b, -1), MP_OK);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(mp_drop(&a, entries[i], 1000), MP_BUSY);
        mp_drop_later(&a, entries[i]);
    }
    CHECK_EQ(mp_drain_quickly(&a), 1);
    CHECK_EQ(mp_drain_quickly(&a), 1);
    mp_unlock(&b);
    CHECK_EQ(mp_drain_quickly(&a), 0);
    CHECK_EQ(a.header->pool_entries.used, 1);
    close_store();
}

/* A pickle that was made to name a free record must not free it again. */
static void a_nonce_of_zero_opens_nothing(void) {
    uint64_t birth;
    uint32_t token;
    open_store();
    uint32_t entry = make(&a, &birth);
    CHECK_EQ(mp_token_issue(&a, entry, birth, 1, SOON, 5, &token), MP_OK);
    CHECK_EQ(mp_token_load(&b, token, 5, entry, birth), MP_OK);
    CHECK_EQ(mp_token_load(&b, token, 0, entry, birth), MP_OK);
    CHECK_EQ(a.header->pool_tokens.used, 1);
    close_store();
}

static void a_hand_off_for_ever_does_not_lapse(void) {
    uint32_t token;
    uint64_t birth;
    open_store();
    uint32_t entry = make(&a, &birth);
    CHECK_EQ(mp_token_issue(&a, entry, birth, 1, 0, 11, &token), MP_OK);
    CHECK_EQ(mp_drop(&a, entry, -1), MP_OK);
    CHECK_EQ(mp_token_expire(&a, UINT64_MAX), 0);
    CHECK_EQ(mp_token_load(&b, token, 11, entry, birth), MP_OK);
    mp_drop_all(&b);
    close_store();
}

static void only_what_is_clean_is_evicted(void) {
    uint64_t birth;
    open_store();
    uint32_t entry = make(&a, &birth);
    CHECK_EQ(mp_evict(&b, entry, birth), MP_NOT_FOUND);
    CHECK_EQ(mp_state(&a, entry, birth), MP_OK);
    close_store();
}

static uint32_t swept;
static uint64_t swept_id;

/* b is the faster one to sweep, and then takes the record for a file of its own. */
static void sweep_first(const char *name) {
    uint64_t offset;
    uint32_t segment;
    if (strcmp(name, "segment.seen") != 0) return;
    failpoint_hook = NULL;
    CHECK_EQ(mp_segment_forget(&b, swept, swept_id), MP_OK);
    CHECK_EQ(mp_segment_open(&b, 0, &segment, &swept_id), MP_OK);
    CHECK_EQ(segment, swept);
    CHECK_EQ(mp_segment_reserve(&b, segment, 4096, &offset), MP_OK);
}

/* The caller would unlink the new file: what is in it would be lost. */
static void a_new_segment_is_not_taken_for_the_dead_one(void) {
    mp_segment copy;
    open_store();
    CHECK_EQ(mp_segment_open(&a, 0, &swept, &swept_id), MP_OK);
    mp_segment_close(&a, swept);
    failpoint_hook = sweep_first;
    CHECK_EQ(mp_segment_dead(&a, 1, &copy), 0);
    CHECK(failpoint_hook == NULL);
    mp_segment_close(&b, swept);
    CHECK_EQ(mp_segment_dead(&a, 1, &copy), swept);
    CHECK_EQ(copy.id, swept_id);
    CHECK_EQ(mp_segment_forget(&a, swept, swept_id), MP_OK);
    close_store();
}

/* A program has closed what it does not know, and opened a file of its own: it got the arena's number. */
static void another_file_is_neither_punched_nor_extended(void) {
    char text[] = "not yours", found[sizeof text];
    open_store();
    int kept = dup(store.arena_fd), other = memfd_create("other", MFD_CLOEXEC);
    CHECK(kept >= 0 && other >= 0);
    CHECK_EQ(write(other, text, sizeof text), (ssize_t)sizeof text);
    CHECK_EQ(dup2(other, store.arena_fd), store.arena_fd);
    CHECK_EQ(mp_shrink(&a, UINT64_MAX / 2), 0);
    CHECK_EQ(mp_grow(&a, 1 << 20), MP_SYSTEM);
    CHECK_EQ(a.error, EBADF);
    CHECK_EQ(pread(other, found, sizeof found, 0), (ssize_t)sizeof found);
    CHECK_EQ(memcmp(found, text, sizeof text), 0);
    struct stat file;
    CHECK_EQ(fstat(other, &file), 0);
    CHECK(file.st_blocks * 512 <= MP_PAGE);
    CHECK_EQ(dup2(kept, store.arena_fd), store.arena_fd);
    CHECK_EQ(mp_reap_dead(&a), 0); /* what was put off is done */
    CHECK_EQ(a.header->committed_blocks, 0);
    close(kept);
    close(other);
    close_store();
}

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    RUN(pools_may_grow_during_a_rebuild);
    RUN(a_pool_that_is_rebuilt_is_not_full);
    RUN(what_another_fills_is_not_ours_to_end);
    RUN(a_tombstone_keeps_no_memory);
    RUN(a_put_outlives_the_drop_of_all);
    RUN(a_closed_writer_abandons);
    RUN(put_off_drops_wait_once);
    RUN(a_nonce_of_zero_opens_nothing);
    RUN(a_hand_off_for_ever_does_not_lapse);
    RUN(only_what_is_clean_is_evicted);
    RUN(a_new_segment_is_not_taken_for_the_dead_one);
    RUN(another_file_is_neither_punched_nor_extended);
    return 0;
}
