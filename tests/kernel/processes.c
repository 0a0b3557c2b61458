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
    agent_sweep(&self);
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
    agent_sweep(&self);
    agent_expect_only(&self, 0);
    mp_release_slot(&self);
    fixture_unmap(&self);
    playground_close(ground);
    fixture_close(&store);
}
