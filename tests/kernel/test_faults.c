/* Every system call of every operation fails: the Nth one, for every N until the operation makes fewer, once and
 * from then on, with each error. Then: what is typed is all right, what is not is a bug; nobody else notices; the
 * operation works once the calls do; nothing is left, no block, no descriptor, no mapping.
 *
 * The operations are those of a member; another one survives, and holds objects (processes.h).
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "atfork.h"
#include "faults.h"
#include "processes.h"

#define MOST_CALLS 3000u /* more than any operation makes, with its retries */

typedef struct operation {
    const char *name;
    void (*prepare)(void); /* or NULL */
    mp_code (*act)(void);  /* leaves nothing if it fails */
    void (*undo)(void);    /* or NULL: after an act that has succeeded */
} operation;

static uint32_t entry;
static uint64_t birth;

/* --- operations --- */

static mp_code draft(uint64_t size, uint64_t *offset) {
    mp_code code;
    while ((code = mp_draft(&member, size, &entry, &birth, offset)) == MP_NO_ROOM)
        if ((code = mp_grow(&member, size)) != MP_OK) return code;
    return code;
}

static mp_code put(uint64_t size) {
    uint64_t offset;
    mp_code code = draft(size, &offset);
    if (code != MP_OK) return code;
    memset(member.arena_write + offset, 7, size); /* memory that is not there would end us here */
    if ((code = mp_seal(&member, entry, birth)) != MP_OK) CHECK_EQ(mp_drop(&member, entry, -1), MP_OK);
    return code;
}

static void drop(void) { CHECK_EQ(mp_drop(&member, entry, -1), MP_OK); }
static void no_memory_to_spare(void) { mp_shrink(&self, UINT64_MAX / 2); }
static mp_code put_small(void) { return put(100); }
static mp_code put_large(void) { return put(900000); }
static void have_small(void) { CHECK_EQ(put(100), MP_OK); }
static void have_large(void) { CHECK_EQ(put(900000), MP_OK); }

static mp_code get(void) {
    uint64_t offset, size;
    mp_code code = mp_view(&member, entry, birth, &offset, &size);
    if (code != MP_OK) return code;
    CHECK_EQ(member.arena_read[offset + size - 1], 7);
    mp_unpin(&member, entry, MP_ONE_VIEW);
    return MP_OK;
}

static mp_code release(void) {
    mp_code code = mp_hold(&member, entry, birth);
    return code == MP_OK ? mp_drop(&member, entry, -1) : code;
}

static mp_code put_and_delete(void) {
    mp_code code = put(5000);
    if (code != MP_OK) return code;
    code = mp_delete(&member, entry, birth);
    drop();
    return code;
}

static mp_code write_record(mp_place *place) {
    uint64_t id;
    uint32_t segment;
    mp_code code = mp_segment_open(&member, 0, &segment, &id);
    if (code != MP_OK) return code;
    place->segment = segment;
    code = mp_segment_reserve(&member, segment, place->length, &place->offset);
    if (code != MP_OK) mp_segment_close(&member, segment);
    return code;
}

static mp_code spill(void) {
    mp_place place = {.length = 16 * MP_PAGE};
    uint64_t offset, size;
    mp_code code = mp_clean_claim(&member, entry, birth, &offset, &size);
    if (code != MP_OK) return code;
    if ((code = write_record(&place)) != MP_OK) {
        mp_clean_cancel(&member, entry);
        return code;
    }
    code = fixture_publish(&member, entry, birth, &place, true);
    mp_segment_close(&member, place.segment);
    return code;
}

static mp_code restore_from(const mp_place *place, uint64_t size) {
    uint64_t offset;
    mp_code code;
    CHECK(place->segment != 0);
    while ((code = mp_restore_begin(&member, entry, birth, &offset)) == MP_NO_ROOM)
        if ((code = mp_grow(&member, size)) != MP_OK) return code;
    if (code != MP_OK) return code;
    memset(member.arena_write + offset, 7, size);
    return mp_restore_end(&member, entry, birth, MP_RESIDENT);
}

static mp_code restore(void) {
    mp_place place;
    uint64_t size;
    mp_code code = mp_place_read(&member, entry, birth, &place, &size);
    if (code != MP_IS_SPILLED) return code;
    code = restore_from(&place, size);
    mp_unpin(&member, entry, MP_ONE_OP);
    return code;
}

static void have_spilled(void) {
    have_large();
    CHECK_EQ(spill(), MP_OK);
    no_memory_to_spare();
}

static void unspill(void) {
    drop();
    agent_sweep(&member, ground);
}

static mp_code evict_again(void) {
    mp_code code = restore();
    return code == MP_OK ? mp_evict(&member, entry, birth) : code;
}

static mp_code straight_to_disk(void) {
    mp_place place = {.length = 4096};
    mp_code code = mp_draft_bare(&member, 3000, &entry, &birth);
    if (code != MP_OK) return code;
    if ((code = write_record(&place)) == MP_OK) {
        code = mp_settle(&member, entry, birth, &place);
        mp_segment_close(&member, place.segment);
    }
    if (code != MP_OK) drop();
    return code;
}

static mp_code hand_off(void) {
    uint32_t token;
    mp_code code = mp_token_issue(&member, entry, birth, 1, UINT64_MAX - 2, 5, &token);
    if (code != MP_OK) return code;
    code = mp_token_load(&self, token, 5, entry, birth);
    if (code != MP_OK) CHECK_EQ(mp_token_withdraw(&member, 0), MP_OK);
    else CHECK_EQ(mp_drop(&self, entry, -1), MP_OK);
    return code;
}

static mp_code name(void) {
    uint32_t found;
    uint64_t its_birth;
    mp_code code = mp_name_set(&member, "n1", 2, entry, birth, false);
    if (code != MP_OK) return code;
    code = mp_name_hold(&self, "n1", 2, &found, &its_birth);
    if (code == MP_OK) CHECK_EQ(mp_drop(&self, found, -1), MP_OK);
    CHECK_EQ(mp_name_remove(&member, "n1", 2), MP_OK);
    return code;
}

static mp_code contain(void) {
    uint32_t outer, target = entry;
    uint64_t outer_birth, target_birth = birth, offset;
    mp_code code = mp_draft(&member, 50, &outer, &outer_birth, &offset);
    if (code != MP_OK) return code;
    code = mp_contain(&member, outer, outer_birth, &target, &target_birth, 1);
    if (code == MP_OK) code = mp_seal(&member, outer, outer_birth);
    CHECK_EQ(mp_drop(&member, outer, -1), MP_OK);
    mp_undertake(&member);
    return code;
}

static void have_idle_memory(void) {
    have_large();
    drop();
}

static mp_code configure(void) {
    uint64_t limit = 5 << 20, before = atomic_load(&member.header->memory_limit);
    mp_set_limits(&member, &limit, NULL, NULL);
    mp_shrink(&member, UINT64_MAX / 2);
    mp_set_limits(&member, &before, NULL, NULL);
    return MP_OK;
}

/* The small objects that keep blocks from being empty: every tenth of those that filled them. */
#define SCATTERED 30u
static uint64_t scattered[SCATTERED];

static void have_sparse_blocks(void) {
    for (uint32_t i = 0; i < 10 * SCATTERED; i++) {
        uint64_t id = agent_create(&worker, 4000);
        if (i % 10 == 0) scattered[i / 10] = id;
        else CHECK_EQ(mp_drop(&member, (uint32_t)(id & 0xffff), -1), MP_OK);
    }
}

static mp_code join_holes(void) {
    mp_shrink(&member, mp_empty_blocks(&member, 1 << 20));
    return MP_OK;
}

static void drop_scattered(void) {
    for (uint32_t i = 0; i < SCATTERED; i++) {
        agent_expect_value(&worker, scattered[i]);
        CHECK_EQ(mp_drop(&member, (uint32_t)(scattered[i] & 0xffff), -1), MP_OK);
    }
}

static mp_code wait_for_draft(void) {
    uint64_t offset;
    mp_code code = draft(100, &offset);
    if (code != MP_OK) return code;
    mp_wait(&member, entry, birth, 1000);
    mp_event_wait(&member, mp_event(&member), 1000);
    mp_event_bump(&member);
    code = mp_abort(&member, entry, birth);
    drop();
    return code;
}

static void lose_lock(void) { member.system->unlock_slot(&member, member.slot); }
/* Whoever cannot find out whether a process lives takes it for alive. */
static mp_code poll_it(void) {
    mp_reap_dead(&self);
    return mp_usable(&member) == MP_OK ? MP_OK : MP_CORRUPTED;
}

static mp_code guard(void) { return mp_guard_slot(&member); }

static mp_code wait_for_room(void) {
    mp_code code = mp_queue_enter(&member, 1 << 20);
    if (code != MP_OK) return code;
    mp_queue_renew(&member);
    mp_queue_leave(&member, 0);
    return MP_OK;
}

/* --- a store and a member of its own --- */

static fixture fresh;
static mp_geometry geometry;

static void have_files(void) {
    fixture_create(&fresh, (fixture_shape){.arena_bytes = 1 << 20, .memory_limit = 1 << 20, .entries = 300});
    CHECK_EQ(pread(fresh.table_fd, &geometry, sizeof geometry, offsetof(mp_header, geometry)), sizeof geometry);
    CHECK_EQ(ftruncate(fresh.table_fd, 0), 0);
    CHECK_EQ(ftruncate(fresh.table_fd, (off_t)geometry.table_bytes), 0);
}

static mp_code create(void) {
    mp_creation creation = {.memory_limit = 1 << 20};
    mp_code code = mp_create(fresh.table_fd, fresh.arena_fd, &geometry, &creation);
    if (code == MP_SYSTEM) member.error = errno;
    return code == MP_INVALID ? MP_CORRUPTED : code; /* nothing was wrong with what it was given */
}

static void close_files(void) { fixture_close(&fresh); }

static mp_member another;

static mp_code attach(void) {
    char why[256];
    mp_code code = mp_map(&another, store.table_fd, store.arena_fd, store.lock_fd, store.birth_fd, why);
    if (code == MP_INVALID) return MP_CORRUPTED; /* the table is sound */
    if (code == MP_SYSTEM) member.error = another.error;
    if (code != MP_OK) return code;
    if ((code = mp_claim_slot(&another)) == MP_OK) {
        another.error = mp_atfork_add(&another);
        if (another.error == 0) return MP_OK;
        code = MP_SYSTEM;
        mp_release_slot(&another);
    }
    member.error = another.error;
    mp_unmap(&another);
    return code;
}

static void detach(void) {
    mp_atfork_remove(&another);
    mp_release_slot(&another);
    mp_unmap(&another);
}

/* Always done to its end; what is left of the slot is for others to reap. */
static mp_code attach_and_close(void) {
    mp_code code = attach();
    if (code == MP_OK) detach();
    return code;
}

/* The child goes on as a member, or knows that it cannot; what it views stays in any case, though its parent has let
 * go of it and somebody else has reaped and deleted what can be. */
static void live_as_child(uint64_t offset, const int ends[2]) {
    uint64_t size;
    mp_fork_child(&member);
    faults_spare(true);
    close(ends[1]);
    CHECK_EQ(read(ends[0], (char[1]){0}, 1), 0); /* until the parent has let go */
    mp_code code = mp_usable(&member);
    CHECK(code == MP_OK || code == MP_CLOSED);
    CHECK(code == MP_OK || atomic_load(&member.state) == MP_MEMBER_ORPHAN);
    for (uint32_t i = 0; i < 900000; i += 1000) CHECK_EQ(member.arena_read[offset + i], 7);
    if (code == MP_OK) CHECK_EQ(mp_view(&member, entry, birth, &offset, &size), MP_IS_DELETED);
    _exit(0);
}

static void let_go_of_it(void) {
    mp_unpin(&member, entry, MP_ONE_VIEW);
    mp_reap_dead(&self);
    CHECK_EQ(mp_delete(&self, entry, birth), MP_OK);
    no_memory_to_spare();
}

static mp_code fork_and_adopt(void) {
    uint64_t offset, size;
    int status, ends[2];
    CHECK_EQ(mp_view(&member, entry, birth, &offset, &size), MP_OK);
    CHECK_EQ(pipe(ends), 0);
    mp_fork_prepare(&member);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) live_as_child(offset, ends);
    mp_fork_parent(&member);
    faults_spare(true);
    let_go_of_it();
    close(ends[1]);
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    close(ends[0]);
    faults_spare(false);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return MP_OK;
}

static void have_large_and_a_spare(void) {
    have_large();
    mp_fork_ready(&member);
}

static void die_half_way(void) {
    become_member(9);
    for (uint32_t kind = 0; kind < AGENT_RUINS; kind++) agent_abandon(&worker, kind);
    agent_step(&worker);
}

static void have_the_dead(void) { run(die_half_way); }

static mp_code reap(void) {
    mp_reap_dead(&member);
    return MP_OK;
}

static const operation operations[] = {
    {"create", have_files, create, close_files},
    {"attach", NULL, attach, detach},
    {"close", NULL, attach_and_close, NULL},
    {"put, small", no_memory_to_spare, put_small, drop},
    {"put, large", no_memory_to_spare, put_large, drop},
    {"get", have_small, get, drop},
    {"release", have_small, release, drop},
    {"delete", no_memory_to_spare, put_and_delete, NULL},
    {"spill", have_large, spill, unspill},
    {"restore", have_spilled, restore, unspill},
    {"evict what is clean", have_spilled, evict_again, unspill},
    {"put straight to disk", NULL, straight_to_disk, unspill},
    {"hand off", have_small, hand_off, drop},
    {"name", have_small, name, drop},
    {"contain", have_small, contain, drop},
    {"configure", have_idle_memory, configure, NULL},
    {"join holes", have_sparse_blocks, join_holes, drop_scattered},
    {"wait", no_memory_to_spare, wait_for_draft, NULL},
    {"wait for room", NULL, wait_for_room, NULL},
    {"take a lost lock again", lose_lock, guard, NULL},
    {"poll without a lock", lose_lock, poll_it, NULL},
    {"fork", have_large_and_a_spare, fork_and_adopt, drop},
    {"reap", have_the_dead, reap, NULL},
};

/* --- what must hold --- */

static uint32_t descriptors(void) {
    uint32_t count = 0;
    DIR *directory = opendir("/proc/self/fd");
    CHECK(directory != NULL);
    while (readdir(directory)) count++;
    closedir(directory);
    return count;
}

/* What the arena's file has is what the table says, and no block is on its way for ever. */
static void expect_memory_accounted(void) {
    struct stat arena;
    for (uint32_t b = 0; b < self.header->commit_high; b++)
        CHECK(mp_block_state(&self, b) == MP_NONE || mp_block_state(&self, b) == MP_COMMITTED);
    CHECK_EQ(fstat(store.arena_fd, &arena), 0);
    CHECK((uint64_t)arena.st_blocks * 512 <= self.header->committed_blocks * MP_BLOCK);
}

/* Returns whether a call failed. */
static bool one_fault(const operation *o, int error, uint64_t nth, bool for_ever) {
    uint64_t calls, fired;
    uint32_t open_before = descriptors();
    int64_t mapped = faults_mapped();
    snprintf(check_doing, sizeof check_doing, "%s, call %u fails with %s%s", o->name, (unsigned)nth,
             error ? strerrorname_np(error) : "short", for_ever ? " for ever" : "");
    open_store(8 << 20); /* a fresh one: its pools have not grown yet */
    become_member(5);
    if (o->prepare) o->prepare();
    faults_arm(error, nth, for_ever);
    mp_code code = o->act();
    fired = faults_disarm(&calls);
    CHECK(code != MP_CORRUPTED && code != MP_INVALID);
    if (code == MP_SYSTEM && error != FAULT_SHORT) CHECK_EQ(member.error, error);
    fixture_check(&self);
    if (code == MP_OK && o->undo) o->undo();
    if (code == MP_OK && o->prepare && o->undo) o->prepare();
    CHECK_EQ(o->act(), MP_OK);
    expect_values();
    if (o->undo) o->undo();
    agent_let_go(&worker);
    mp_reap_dead(&self);
    agent_sweep(&self, ground);
    mp_reap_dead(&member); /* also gives back what the system did not take */
    expect_memory_accounted();
    mp_release_slot(&member);
    mp_unmap(&member);
    survive();
    close_store();
    CHECK_EQ(descriptors(), open_before);
    CHECK_EQ(faults_mapped(), mapped);
    CHECK(calls < MOST_CALLS);
    return fired != 0;
}

static void every_call_fails(const operation *o) {
    static const int errors[] = {ENOSPC, EIO, EINTR, ENOMEM, EMFILE, FAULT_SHORT};
    uint64_t faults = 0, longest = 0;
    for (uint32_t i = 0; i < sizeof errors / sizeof *errors; i++)
        for (uint32_t for_ever = 0; for_ever < 2; for_ever++) {
            uint64_t nth = 1;
            while (one_fault(o, errors[i], nth, for_ever)) nth++;
            faults += nth - 1;
            if (nth - 1 > longest) longest = nth - 1;
        }
    printf("   %-24s %3" PRIu64 " calls, %5" PRIu64 " faults\n", o->name, longest, faults);
    check_count("faults injected, in C", faults);
}

static void every_call_of_every_operation_fails(void) {
    for (uint32_t i = 0; i < sizeof operations / sizeof *operations; i++) every_call_fails(&operations[i]);
    check_doing[0] = 0;
}

/* Linux before 6.8 begins fallocate in a tmpfs anew after each signal: a timer of 10 ms, and a large one never ends. */
static void a_timer_does_not_keep_memory_away(void) {
    open_store(8 << 20);
    become_member(5);
    no_memory_to_spare();
    faults_interrupt(100000);
    CHECK_EQ(put(4 << 20), MP_OK);
    drop();
    CHECK(mp_shrink(&member, UINT64_MAX / 2) >= 4 << 20);
    faults_interrupt(0);
    leave();
    survive();
    close_store();
}

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    processes_begin();
    RUN(every_call_of_every_operation_fails);
    RUN(a_timer_does_not_keep_memory_away);
    return 0;
}
