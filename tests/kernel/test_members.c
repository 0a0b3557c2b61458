/* Members as threads of one process: everything at once, and some of them die between two calls. */
#define _GNU_SOURCE
#include <pthread.h>

#include "agent.h"

#if defined(__SANITIZE_THREAD__)
#define STEPS 4000u
#elif defined(__SANITIZE_ADDRESS__)
#define STEPS 10000u
#else
#define STEPS 20000u
#endif
#define MEMBERS 4u

static fixture store;
static playground *ground;
static mp_member first;
static uint32_t threads_per_member, deaths;
static _Atomic uint64_t reads, restores, spills;

/* Every member there was, dead or not: a dead one frees nothing itself. */
static mp_member *members[1024];
static _Atomic uint32_t member_count;

static mp_member *join(void) {
    mp_member *m = calloc(1, sizeof *m);
    uint32_t index = atomic_fetch_add(&member_count, 1);
    CHECK(m && index < 1024);
    members[index] = m;

    fixture_join(&first, m);
    return m;
}

static void forget_members(void) {
    for (uint32_t i = 0; i < atomic_load(&member_count); i++) {
        fixture_leave(members[i]);
        free(members[i]);
    }
    atomic_store(&member_count, 0);
}

static void report(const agent *a) {
    atomic_fetch_add(&reads, a->reads);
    atomic_fetch_add(&restores, a->restores);
    atomic_fetch_add(&spills, a->spills);
}

static void *work(void *argument) {
    static _Atomic uint64_t seeds;
    agent a = {.m = argument, .ground = ground};
    a.random.state = check_seed() + atomic_fetch_add(&seeds, 1) * 7919;
    for (uint32_t i = 0; i < STEPS / threads_per_member; i++) {
        agent_step(&a);
        if (i % 512 == 0) agent_check(&a);
        if (!deaths || random_below(&a.random, 400) >= deaths) continue;
        agent_abandon(&a, (uint32_t)random_below(&a.random, AGENT_RUINS));
        fixture_die(a.m);
        report(&a);
        a = (agent){.m = join(), .ground = ground, .random = a.random};
    }
    agent_check(&a);
    agent_let_go(&a);
    report(&a);
    return NULL;
}

static void run_store(uint64_t limit, uint32_t per_member, uint32_t dying) {
    pthread_t ids[MEMBERS * 2];
    mp_member *m = NULL;
    threads_per_member = per_member;
    deaths = dying;
    atomic_store(&reads, 0);
    atomic_store(&restores, 0);
    atomic_store(&spills, 0);
    fixture_create(&store, (fixture_shape){.arena_bytes = 32 << 20, .memory_limit = limit, .entries = 4096});
    fixture_first(&store, &first);
    ground = playground_open();
    for (uint32_t i = 0; i < MEMBERS * per_member; i++) {
        if (i % per_member == 0) m = join();
        CHECK_EQ(pthread_create(&ids[i], NULL, work, m), 0);
    }
    for (uint32_t i = 0; i < MEMBERS * per_member; i++) pthread_join(ids[i], NULL);
    fixture_check(&first); /* before any reaping, which would tidy up */
    for (uint32_t i = 0; i < atomic_load(&member_count); i++) mp_release_slot(members[i]);
    agent_sweep(&first, ground);
    agent_expect_only(&first, 0);
    CHECK_EQ(first.header->recoveries, 0);
    CHECK(reads > STEPS / 10 && restores > 10 && spills > 10);
    playground_close(ground);
    forget_members();
    mp_unmap(&first);
    fixture_close(&store);
}

static void members_share_a_store(void) { run_store(16 << 20, 1, 0); }
static void members_under_pressure(void) { run_store(2 << 20, 1, 0); }
static void two_threads_a_member(void) { run_store(4 << 20, 2, 0); }
static void members_die_between_calls(void) { run_store(4 << 20, 1, 2); }

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    RUN(members_share_a_store);
    RUN(members_under_pressure);
    RUN(two_threads_a_member);
    RUN(members_die_between_calls);
    return 0;
}
