/* Calls whose second half meets a stopped holder of the mutex: they give up, and their rest is done later.
 *
 * The holder is another member of this process, which takes the mutex in a system call of the first half, or
 * before a call that needs the mutex only to end something.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "atfork.h"
#include "fixture.h"

static fixture store;
static mp_member a, holder;
static mp_system slow;
static bool stopped, refuses;

static void stop(void) {
    if (stopped) return;
    stopped = true;
    CHECK_EQ(mp_lock(&holder, -1), MP_OK);
}

static void resume(void) {
    CHECK(stopped);
    stopped = false;
    mp_unlock(&holder);
}

static int commit(mp_member *m, uint64_t offset, uint64_t length) {
    stop();
    return refuses ? ENOMEM : mp_linux.commit(m, offset, length);
}

static int punch(mp_member *m, uint64_t offset, uint64_t length) {
    if (refuses) return EIO;
    stop();
    return mp_linux.punch(m, offset, length);
}

static void begin(void) {
    fixture_create(&store, (fixture_shape){.arena_bytes = 4 << 20, .memory_limit = 2 << 20, .entries = 200});
    fixture_first(&store, &a);
    fixture_join(&a, &holder);
    refuses = false;
    a.patience_ns = 1000000;
}

/* From here on its system calls run into a holder that is stopped. */
static void slow_down(void) {
    slow = *a.system;
    slow.commit = commit;
    slow.punch = punch;
    a.system = &slow;
}

static uint32_t blocks_in(enum mp_commit_state state) {
    uint32_t count = 0;
    for (uint32_t b = 0; b < a.header->commit_high; b++) count += MP_COMMIT_STATE(atomic_load(&a.commit[b])) == state;
    return count;
}

static void end(void) {
    CHECK(!stopped);
    CHECK_EQ(atomic_load(&a.unfinished_count), 0);
    CHECK_EQ(blocks_in(MP_COMMITTING) + blocks_in(MP_PUNCHING), 0);
    fixture_check(&a);
    mp_release_slot(&holder);
    mp_release_slot(&a);
    fixture_leave(&holder);
    fixture_unmap(&a);
    fixture_close(&store);
}

static void growth_is_ended(void) {
    for (uint32_t turn = 0; turn < 2; turn++) {
        begin();
        slow_down();
        refuses = turn;
        CHECK_EQ(mp_grow(&a, 100000), MP_BUSY);
        CHECK(blocks_in(MP_COMMITTING) >= 2);
        uint32_t begun = blocks_in(MP_COMMITTING);
        CHECK_EQ(mp_reap_dead(&a), 0); /* the holder is stopped still */
        CHECK_EQ(blocks_in(MP_COMMITTING), begun);
        resume();
        a.system = holder.system;
        CHECK_EQ(mp_reap_dead(&a), 0);
        CHECK_EQ(blocks_in(MP_COMMITTED), refuses ? 0 : begun);
        CHECK_EQ(a.header->committed_blocks, refuses ? 0 : begun);
        CHECK_EQ(mp_fits(&a, 100000), !refuses);
        end();
    }
}

static void punching_is_ended(void) {
    begin();
    CHECK_EQ(mp_grow(&a, 100000), MP_OK);
    slow_down();
    CHECK_EQ(mp_shrink(&a, 1), 0);
    CHECK_EQ(blocks_in(MP_PUNCHING), 1);
    resume();
    uint64_t returned = a.header->returned_bytes;
    a.system = &mp_linux;
    mp_reap_dead(&a);
    CHECK_EQ(a.header->returned_bytes - returned, MP_BLOCK);
    end();
}

static void what_cannot_be_punched_is_tried_again(void) {
    begin();
    CHECK_EQ(mp_grow(&a, 100000), MP_OK);
    slow_down();
    refuses = true;
    CHECK_EQ(mp_shrink(&a, 1), 0);
    mp_reap_dead(&a);
    CHECK_EQ(blocks_in(MP_PUNCHING), 1);
    a.system = &mp_linux;
    mp_reap_dead(&a);
    CHECK_EQ(a.header->returned_bytes, MP_BLOCK);
    end();
}

static int commit_half(mp_member *m, uint64_t offset, uint64_t length) {
    CHECK_EQ(mp_linux.commit(m, offset, length / 2), 0);
    return ENOSPC;
}

static uint64_t memory_taken(void) {
    struct stat arena;
    CHECK_EQ(fstat(store.arena_fd, &arena), 0);
    return (uint64_t)arena.st_blocks * 512;
}

/* Blocks that are NONE have no memory: what the system gave, and will not take back yet, stays counted. */
static void what_half_a_growth_took_is_given_back(void) {
    for (uint32_t turn = 0; turn < 2; turn++) {
        begin();
        slow_down();
        slow.commit = commit_half;
        refuses = turn;
        if (!refuses) slow.punch = holder.system->punch;
        CHECK_EQ(mp_grow(&a, 300000), MP_SYSTEM);
        CHECK_EQ(a.error, ENOSPC);
        CHECK_EQ(mp_fits(&a, 300000), false);
        CHECK_EQ(memory_taken() > 0, refuses);
        CHECK(a.header->committed_blocks * MP_BLOCK >= memory_taken());
        CHECK_EQ(blocks_in(MP_PUNCHING) > 0, refuses);
        a.system = holder.system;
        CHECK_EQ(mp_reap_dead(&a), 0);
        CHECK_EQ(memory_taken(), 0);
        CHECK_EQ(a.header->committed_blocks, 0);
        end();
    }
}

static void blocks_of_the_dead_are_ended(void) {
    mp_member dead;
    mp_run run;
    uint64_t word;
    begin();
    fixture_join(&a, &dead);
    CHECK_EQ(mp_pool_ensure(&dead, &dead.header->pool_spans, 8), MP_OK);
    CHECK_EQ(mp_lock(&dead, -1), MP_OK);
    CHECK_EQ(mp_arena_plan_grow(&dead, 100000, &run), MP_OK);
    mp_unlock(&dead);
    fixture_die(&dead);
    slow_down();
    CHECK(mp_slot_dead(&a, dead.slot, &word));
    CHECK_EQ(mp_reap(&a, dead.slot, word), MP_BUSY);
    CHECK_EQ(blocks_in(MP_PUNCHING), run.blocks);
    resume();
    a.system = holder.system;
    CHECK_EQ(mp_reap_dead(&a), 1);
    fixture_leave(&dead);
    end();
}

static void a_segment_is_closed(void) {
    uint32_t segment;
    uint64_t id;
    begin();
    CHECK_EQ(mp_segment_open(&a, 0, &segment, &id), MP_OK);
    stop();
    mp_segment_close(&a, segment);
    CHECK_EQ(atomic_load(&a.segments[segment].state), MP_SEGMENT_OPEN);
    resume();
    mp_reap_dead(&a);
    CHECK_EQ(atomic_load(&a.segments[segment].state), MP_SEGMENT_DEAD);
    CHECK_EQ(mp_segment_forget(&a, segment, id), MP_OK);
    end();
}

/* Closed after all, forgotten, and opened anew under its number: that one is another. */
static void another_segment_is_not_closed(void) {
    uint32_t segment, again;
    uint64_t id, next;
    begin();
    CHECK_EQ(mp_segment_open(&a, 0, &segment, &id), MP_OK);
    stop();
    mp_segment_close(&a, segment);
    resume();
    mp_segment_close(&a, segment);
    CHECK_EQ(mp_segment_forget(&a, segment, id), MP_OK);
    CHECK_EQ(mp_segment_open(&a, 0, &again, &next), MP_OK);
    CHECK_EQ(again, segment);
    mp_reap_dead(&a);
    CHECK_EQ(atomic_load(&a.segments[segment].state), MP_SEGMENT_OPEN);
    mp_segment_close(&a, again);
    CHECK_EQ(mp_segment_forget(&a, again, next), MP_OK);
    end();
}

static void a_place_in_the_queue_is_left(void) {
    begin();
    CHECK_EQ(mp_queue_enter(&a, 1000), MP_OK);
    stop();
    CHECK_EQ(mp_queue_leave(&a, 1000), MP_BUSY);
    CHECK(a.slots[a.slot].ticket != 0);
    resume();
    mp_reap_dead(&a);
    CHECK_EQ(a.slots[a.slot].ticket, 0);
    CHECK_EQ(a.queued, 0);
    end();
}

/* Hand-offs that never lapse: a family of two, and one of another. */
static void hand_offs_are_withdrawn(void) {
    uint32_t entry, token;
    uint64_t birth, offset;
    begin();
    CHECK_EQ(mp_grow(&a, 100), MP_OK);
    CHECK_EQ(mp_draft(&a, 100, &entry, &birth, &offset), MP_OK);
    CHECK_EQ(mp_seal(&a, entry, birth), MP_OK);
    for (uint64_t i = 0; i < 2; i++)
        CHECK_EQ(mp_token_issue(&a, entry, birth, 1, 0, 3ull << MP_FAMILY_SHIFT | i, &token), MP_OK);
    CHECK_EQ(mp_token_issue(&a, entry, birth, 1, 0, 4ull << MP_FAMILY_SHIFT, &token), MP_OK);
    stop();
    CHECK_EQ(mp_token_withdraw(&a, 3), MP_BUSY);
    CHECK_EQ(mp_drop(&a, entry, 1000), MP_BUSY);
    resume();
    CHECK_EQ(a.entries[entry].tokens, 3);
    mp_reap_dead(&a);
    CHECK_EQ(a.entries[entry].tokens, 1);
    CHECK_EQ(mp_drop(&a, entry, -1), MP_OK);
    CHECK_EQ(mp_state(&a, entry, birth), MP_OK); /* the other one holds it */
    CHECK_EQ(mp_token_withdraw(&a, 4), MP_OK);
    CHECK_EQ(mp_state(&a, entry, birth), MP_NOT_FOUND);
    end();
}

/* No janitor comes by any more: what goes with no slot is ended when the member leaves. */
static void hand_offs_are_withdrawn_by_who_leaves(void) {
    uint32_t entry, token;
    uint64_t birth, offset;
    mp_member leaver;
    begin();
    fixture_join(&a, &leaver);
    leaver.patience_ns = a.patience_ns;
    CHECK_EQ(mp_grow(&leaver, 100), MP_OK);
    CHECK_EQ(mp_draft(&leaver, 100, &entry, &birth, &offset), MP_OK);
    CHECK_EQ(mp_seal(&leaver, entry, birth), MP_OK);
    CHECK_EQ(mp_token_issue(&leaver, entry, birth, 1, 0, 3ull << MP_FAMILY_SHIFT, &token), MP_OK);
    stop();
    CHECK_EQ(mp_token_withdraw(&leaver, 3), MP_BUSY);
    resume();
    mp_release_slot(&leaver);
    CHECK_EQ(mp_state(&a, entry, birth), MP_NOT_FOUND);
    fixture_leave(&leaver);
    end();
}

/* A value on disk that is being restored. */
static void begin_restore(uint32_t *entry, uint64_t *birth, uint32_t *segment) {
    uint64_t id, offset, size;
    mp_place place = {.length = 4096};
    CHECK_EQ(mp_segment_open(&a, 0, segment, &id), MP_OK);
    CHECK_EQ(mp_segment_reserve(&a, *segment, 4096, &place.offset), MP_OK);
    place.segment = *segment;
    CHECK_EQ(mp_draft_bare(&a, 100, entry, birth), MP_OK);
    CHECK_EQ(mp_settle(&a, *entry, *birth, &place), MP_OK);
    CHECK_EQ(mp_grow(&a, 100), MP_OK);
    CHECK_EQ(mp_place_read(&a, *entry, *birth, &place, &size), MP_IS_SPILLED);
    CHECK_EQ(mp_restore_begin(&a, *entry, *birth, &offset), MP_OK);
}

static void a_restore_that_failed_is_ended(void) {
    for (uint32_t turn = 0; turn < 2; turn++) {
        uint32_t entry, segment;
        uint64_t birth;
        begin();
        begin_restore(&entry, &birth, &segment);
        stop();
        CHECK_EQ(mp_restore_end(&a, entry, birth, turn ? MP_LOST : MP_SPILLED), MP_BUSY);
        mp_unpin(&a, entry, MP_ONE_OP);
        CHECK_EQ(mp_state(&a, entry, birth), MP_IS_RESTORING);
        resume();
        mp_reap_dead(&a);
        CHECK_EQ(mp_state(&a, entry, birth), turn ? MP_IS_LOST : MP_IS_SPILLED);
        CHECK_EQ(mp_drop(&a, entry, -1), MP_OK);
        mp_segment_close(&a, segment);
        end();
    }
}

/* More than there is room for: what is too much is left until the member ends, and the rest is done. */
static void the_list_is_bounded(void) {
    uint32_t segments[MP_UNFINISHED_MAX + 2], open = 0;
    uint64_t id;
    begin();
    a.patience_ns = 1000;
    for (uint32_t i = 0; i < MP_UNFINISHED_MAX + 2; i++) CHECK_EQ(mp_segment_open(&a, 0, &segments[i], &id), MP_OK);
    stop();
    for (uint32_t i = 0; i < MP_UNFINISHED_MAX + 2; i++) mp_segment_close(&a, segments[i]);
    resume();
    mp_reap_dead(&a);
    for (uint32_t i = 0; i < MP_UNFINISHED_MAX + 2; i++)
        open += atomic_load(&a.segments[segments[i]].state) == MP_SEGMENT_OPEN;
    CHECK_EQ(open, 2);
    end();
}

static void a_child_leaves_it_to_its_parent(void) {
    int status;
    uint32_t segment;
    uint64_t id;
    fixture_create(&store, (fixture_shape){.arena_bytes = 4 << 20, .memory_limit = 2 << 20, .entries = 200});
    fixture_map(&store, &a);
    CHECK_EQ(mp_claim_slot(&a), MP_OK);
    CHECK_EQ(mp_segment_open(&a, 0, &segment, &id), MP_OK);
    mp_put_off(&a, (mp_unfinished){.kind = MP_SEGMENT_FULL, .item = segment, .number = id});
    CHECK_EQ(mp_atfork_add(&a), 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        CHECK_EQ(atomic_load(&a.unfinished_count), 0);
        mp_reap_dead(&a);
        _exit(atomic_load(&a.segments[segment].state) != MP_SEGMENT_OPEN);
    }
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    mp_atfork_remove(&a);
    mp_reap_dead(&a);
    CHECK_EQ(atomic_load(&a.segments[segment].state), MP_SEGMENT_DEAD);
    mp_release_slot(&a);
    fixture_unmap(&a);
    fixture_close(&store);
}

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    RUN(growth_is_ended);
    RUN(punching_is_ended);
    RUN(what_cannot_be_punched_is_tried_again);
    RUN(what_half_a_growth_took_is_given_back);
    RUN(blocks_of_the_dead_are_ended);
    RUN(a_segment_is_closed);
    RUN(another_segment_is_not_closed);
    RUN(a_place_in_the_queue_is_left);
    RUN(hand_offs_are_withdrawn);
    RUN(hand_offs_are_withdrawn_by_who_leaves);
    RUN(a_restore_that_failed_is_ended);
    RUN(the_list_is_bounded);
    RUN(a_child_leaves_it_to_its_parent);
    return 0;
}
