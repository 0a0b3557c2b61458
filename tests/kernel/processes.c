#define _GNU_SOURCE
#include "processes.h"

#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

fixture store;
playground *ground;
mp_member self, member;
agent survivor, worker;
const mp_system *member_system = &mp_linux;

/* Orphans become our children, so that none is left when a test goes on. */
void processes_begin(void) { CHECK_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0); }

static void join(agent *a, mp_member *m, const mp_system *system, uint64_t salt) {
    fixture_map(&store, m);
    m->system = system;
    CHECK_EQ(mp_claim_slot(m), MP_OK);
    *a = (agent){.m = m, .ground = ground, .random = {check_seed() + salt}};
}

void become_member(uint64_t salt) { join(&worker, &member, member_system, salt); }

void work(uint32_t steps) {
    for (uint32_t i = 0; i < steps; i++) agent_step(&worker);
    agent_check(&worker);
}

void leave(void) {
    agent_let_go(&worker);
    mp_release_slot(&member);
}

pid_t start(void (*body)(void)) {
    fflush(NULL);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid != 0) return pid;
    body();
    _exit(0);
}

uint32_t wait_for_all(void) {
    uint32_t killed = 0;
    int status;
    while (waitpid(-1, &status, 0) > 0 || errno == EINTR) {
        if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) killed++;
        else CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    return killed;
}

void run(void (*body)(void)) {
    start(body);
    CHECK_EQ(wait_for_all(), 0);
}

/* A value on disk that is being restored, */
void begin_restore(uint32_t *entry, uint64_t *birth) {
    uint32_t segment;
    uint64_t id, offset, size;
    mp_place place = {.length = 4096};
    mp_code code;
    CHECK_EQ(mp_segment_open(&member, 0, &segment, &id), MP_OK);
    CHECK_EQ(mp_segment_reserve(&member, segment, 4096, &place.offset), MP_OK);
    place.segment = segment;
    CHECK_EQ(mp_draft_bare(&member, 100, entry, birth), MP_OK);
    CHECK_EQ(mp_settle(&member, *entry, *birth, &place), MP_OK);
    CHECK_EQ(mp_place_read(&member, *entry, *birth, &place, &size), MP_IS_SPILLED);
    while ((code = mp_restore_begin(&member, *entry, *birth, &offset)) == MP_NO_ROOM)
        CHECK_EQ(mp_grow(&member, size), MP_OK);
    CHECK_EQ(code, MP_OK);
    mp_segment_close(&member, segment);
}

/* Takes the mutex in a system call, as somebody would who is stopped with it: what the caller has begun is put off. */
static int stop_and_commit(mp_member *m, uint64_t offset, uint64_t length) {
    CHECK_EQ(mp_lock(m, -1), MP_OK);
    return mp_linux.commit(m, offset, length);
}

static int stop_and_fail(mp_member *m, uint64_t offset, uint64_t length) {
    (void)offset, (void)length;
    CHECK_EQ(mp_lock(m, -1), MP_OK);
    return ENOMEM;
}

static int stop_and_punch(mp_member *m, uint64_t offset, uint64_t length) {
    CHECK_EQ(mp_lock(m, -1), MP_OK);
    return mp_linux.punch(m, offset, length);
}

void begin_rests(rests *begun) {
    static mp_system slow;
    uint64_t id;
    int64_t patience = member.patience_ns;
    const mp_system *system = member.system;
    slow = *system;
    member.system = &slow;
    member.patience_ns = 100000;
    mp_shrink(&member, UINT64_MAX / 2); /* so that there is growth */
    CHECK_EQ(mp_queue_enter(&member, 100000), MP_OK);
    begin_restore(&begun->failed, &begun->failed_birth);
    begin_restore(&begun->lost, &begun->lost_birth);
    CHECK_EQ(mp_segment_open(&member, 0, &begun->segment, &id), MP_OK);
    uint64_t never = UINT64_MAX - 2, nonce = 5ull << MP_FAMILY_SHIFT;
    CHECK_EQ(mp_token_issue(&member, begun->lost, begun->lost_birth, 1, never, nonce, &begun->token), MP_OK);
    CHECK_EQ(mp_grow(&member, 100000), MP_OK);
    slow.punch = stop_and_punch;
    CHECK_EQ(mp_shrink(&member, MP_BLOCK), 0);
    mp_unlock(&member);
    slow.commit = stop_and_commit;
    CHECK_EQ(mp_grow(&member, 100000), MP_BUSY);
    mp_unlock(&member);
    slow.commit = stop_and_fail;
    CHECK_EQ(mp_grow(&member, 400000), MP_BUSY);
    CHECK_EQ(mp_restore_end(&member, begun->failed, begun->failed_birth, MP_SPILLED), MP_BUSY);
    CHECK_EQ(mp_restore_end(&member, begun->lost, begun->lost_birth, MP_LOST), MP_BUSY);
    mp_segment_close(&member, begun->segment);
    CHECK_EQ(mp_token_withdraw(&member, 5), MP_BUSY);
    CHECK_EQ(mp_queue_leave(&member, 100000), MP_BUSY);
    mp_unlock(&member);
    CHECK_EQ(atomic_load(&member.unfinished_count), MP_QUEUED + 1); /* one of each kind */
    member.system = system;
    member.patience_ns = patience;
}

void end_rests(const rests *begun) {
    CHECK_EQ(atomic_load(&member.unfinished_count), 0);
    CHECK_EQ(mp_state(&member, begun->failed, begun->failed_birth), MP_IS_SPILLED);
    CHECK_EQ(mp_state(&member, begun->lost, begun->lost_birth), MP_IS_LOST);
    CHECK_EQ(atomic_load(&member.segments[begun->segment].state), MP_SEGMENT_DEAD);
    CHECK_EQ(atomic_load(&member.tokens[begun->token].nonce), 0);
    for (uint32_t b = 0; b < mp_commit_high(&member); b++)
        CHECK(mp_block_state(&member, b) == MP_NONE || mp_block_state(&member, b) == MP_COMMITTED);
    CHECK_EQ(member.queued, 0);
    mp_unpin(&member, begun->failed, MP_ONE_OP);
    mp_unpin(&member, begun->lost, MP_ONE_OP);
}

void expect_values(void) {
    for (uint32_t i = 0; i < SHIELDED; i++) agent_expect_value(&survivor, ground->board[i]);
}

void survive(void) {
    fixture_check(&self);
    mp_reap_dead(&self);
    fixture_check(&self);
    expect_values();
    for (uint32_t i = 0; i < 10; i++) agent_step(&survivor);
    agent_check(&survivor);
    agent_let_go(&survivor);
    agent_sweep(&self, ground);
    agent_expect_only(&self, SHIELDED);
    CHECK_EQ(self.header->poisoned, 0);
}

void open_store_of(fixture_shape shape) {
    fixture_create(&store, shape);
    ground = playground_open();
    join(&survivor, &self, &mp_linux, 0);
    for (uint32_t i = 0; i < SHIELDED; i++) ground->board[i] = agent_create(&survivor, i * i * 1000);
    ground->shielded = SHIELDED;
}

void open_store(uint64_t limit) {
    open_store_of((fixture_shape){.arena_bytes = 16 << 20, .memory_limit = limit, .entries = 4096});
}

void close_store(void) {
    for (uint32_t i = 0; i < SHIELDED; i++) {
        uint32_t entry = (uint32_t)(ground->board[i] & 0xffff);
        CHECK_EQ(mp_drop(&self, entry, -1), MP_OK);
    }
    agent_sweep(&self, ground);
    agent_expect_only(&self, 0);
    mp_release_slot(&self);
    fixture_unmap(&self);
    playground_close(ground);
    fixture_close(&store);
}
