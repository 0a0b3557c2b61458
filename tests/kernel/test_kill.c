/* kill -9 and SIGSTOP at every failpoint of every operation; the survivor checks, reaps and goes on.
 *
 * A scenario runs in a child process. First nobody is killed and the page counts who came by;
 * then, for each failpoint and several of its hits, another child runs the same and dies there.
 * After each death the survivor's own objects must be whole, the check must find no fault before
 * and after the reaping, and nothing of the dead may be left. Whoever is only stopped keeps what it has, costs
 * the others an error if it has the mutex, and ends its work when it is let go on. At last members crash one after
 * another at any place in one store: MP_CRASHES=n times.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "atfork.h"
#include "failpoint_page.h"
#include "processes.h"
#include "steps.h"

#define NAMES (sizeof names / sizeof *names)
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define HITS 2u
#define STOPS 1u
#define CRASHES 50u
#else
#define HITS 12u
#define STOPS 2u
#define CRASHES 200u
#endif
#define STOPPED_PATIENCE_NS 2000000

static const char *const names[] = {
#include "failpoint_names.h"
};
static uint32_t deaths[NAMES];
static uint32_t stops[NAMES];
static uint8_t with_mutex[NAMES]; /* a death with the mutex in hand, without it, or both */

enum mutex { held = 1, free_of_it = 2, either = 3 };
#define free free_of_it /* as steps.h says it */
static const struct step {
    const char *letter, *name;
    enum mutex mutex;
} steps[] = {
#define STEP(letter, name, mutex, left, mended) {letter, name, mutex},
    MP_STEPS(STEP)
};
#undef free
static bool everything_ran = true;

/* --- the matrix --- */

static bool run_until_killed(void (*body)(void), const char *name, uint32_t hit) {
    failpoint_arm(name, hit, SIGKILL, 0);
    start(body);
    (void)wait_for_all();
    return failpoint_disarm();
}

static void die_inside(void);
static void fork_on(void);
static void finish(void);

/* The next one to lock the mutex repairs the table, if its owner is dead. */
static bool mutex_is_left(void) {
    uint64_t before = self.header->recoveries;
    CHECK_EQ(mp_lock(&self, -1), MP_OK);
    mp_unlock(&self);
    return self.header->recoveries != before;
}

static void kill_at(uint32_t index, uint32_t hit, void (*before)(void), void (*body)(void)) {
    if (before) before();
    if (run_until_killed(body, names[index], hit)) {
        deaths[index]++;
        /* no other death, no child that repairs, nobody who stands for another with the mutex */
        bool alone = before != die_inside && body != fork_on && body != finish;
        if (alone) with_mutex[index] |= mutex_is_left() ? held : free_of_it;
    }
    survive();
}

/* What the others see of somebody who stands still in the middle: the mutex is taken, or everything is in order. */
static void look_at_stopped(pid_t pid) {
    mp_code code = mp_lock(&self, STOPPED_PATIENCE_NS);
    if (code == MP_OK) {
        mp_unlock(&self);
        fixture_check(&self);
    } else {
        CHECK_EQ(code, MP_BUSY);
        CHECK(self.busy_pid == (uint32_t)pid || self.busy_pid == 0); /* it attaches, and has no name yet */
    }
    int64_t patience = self.patience_ns;
    self.patience_ns = STOPPED_PATIENCE_NS;
    CHECK_EQ(mp_reap_dead(&self), 0);
    self.patience_ns = patience;
}

static void stop_at(uint32_t index, uint32_t hit, void (*body)(void)) {
    int status;
    failpoint_arm(names[index], hit, SIGSTOP, 0);
    pid_t pid = start(body);
    CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
    if (failpoint_disarm() && WIFSTOPPED(status)) {
        stops[index]++;
        look_at_stopped(pid);
        kill(pid, SIGCONT);
        CHECK_EQ(waitpid(pid, &status, 0), pid);
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    survive();
}

static void count_hits(void (*before)(void), void (*body)(void), uint64_t counts[NAMES]) {
    if (before) before();
    failpoint_forget_hits();
    run(body);
    for (uint32_t i = 0; i < NAMES; i++) counts[i] = failpoint_hits(names[i]);
    survive();
}

static void kill_everywhere(void (*before)(void), void (*body)(void)) {
    uint64_t counts[NAMES];
    count_hits(before, body, counts);
    for (uint32_t i = 0; i < NAMES; i++) {
        uint32_t last = 0;
        for (uint32_t h = 1; h <= HITS && counts[i] != 0; h++) {
            /* the first ones, and some of the rest up to the last */
            uint32_t hit = h <= HITS / 2 ? h : 1 + (uint32_t)((counts[i] - 1) * h / HITS);
            if (hit > last && hit <= counts[i]) kill_at(i, last = hit, before, body);
        }
    }
}

/* The first and the last time that somebody comes by. */
static void stop_everywhere(void (*body)(void)) {
    uint64_t counts[NAMES];
    count_hits(NULL, body, counts);
    for (uint32_t i = 0; i < NAMES; i++) {
        if (counts[i] != 0) stop_at(i, 1, body);
        if (counts[i] > 1 && STOPS > 1) stop_at(i, (uint32_t)counts[i], body);
    }
}

/* --- scenarios --- */

static void anything(void) {
    become_member(1);
    work(250);
    leave();
}

static void move_a_record(void) {
    uint8_t wanted[64] = {0};
    uint32_t entry, cursor = 0, found, segments[2];
    uint64_t birth, id, offset;
    mp_place place = {.length = 4096};
    mp_record row;
    for (uint32_t i = 0; i < 2; i++) {
        CHECK_EQ(mp_segment_open(&member, 0, &segments[i], &id), MP_OK);
        CHECK_EQ(mp_segment_reserve(&member, segments[i], 4096, &offset), MP_OK);
    }
    place.segment = segments[0];
    CHECK_EQ(mp_draft_bare(&member, 100, &entry, &birth), MP_OK);
    CHECK_EQ(mp_settle(&member, entry, birth, &place), MP_OK);
    wanted[segments[0]] = 1;
    CHECK_EQ(mp_records(&member, &cursor, wanted, 64, &row, 1, &found), MP_OK);
    CHECK_EQ(found, 1);
    CHECK_EQ(mp_place_move(&member, &row, segments[1], 0), MP_OK);
    CHECK_EQ(mp_drop(&member, entry, -1), MP_OK);
    for (uint32_t i = 0; i < 2; i++) mp_segment_close(&member, segments[i]);
}

/* What agents do seldom or never. */
static void rarities(void) {
    uint32_t entry, segment, token;
    uint64_t birth, offset, id, size;
    mp_place place = {.length = 4096};
    mp_segment dead;
    become_member(2);
    mp_shrink(&member, UINT64_MAX / 2); /* so that there is growth */
    uint64_t seg_id;
    CHECK_EQ(mp_segment_open(&member, 0, &segment, &seg_id), MP_OK);
    CHECK_EQ(mp_segment_reserve(&member, segment, 8192, &place.offset), MP_OK);
    place.segment = segment;
    CHECK_EQ(mp_draft_bare(&member, 100, &entry, &birth), MP_OK);
    CHECK_EQ(mp_settle(&member, entry, birth, &place), MP_OK);
    CHECK_EQ(mp_place_read(&member, entry, birth, &place, &size), MP_IS_SPILLED);
    while (mp_restore_begin(&member, entry, birth, &offset) == MP_NO_ROOM)
        CHECK_EQ(mp_grow(&member, size), MP_OK);
    CHECK_EQ(mp_restore_end(&member, entry, birth, MP_SPILLED), MP_OK);
    CHECK_EQ(mp_restore_begin(&member, entry, birth, &offset), MP_OK);
    CHECK_EQ(mp_restore_end(&member, entry, birth, MP_RESIDENT), MP_OK);
    CHECK_EQ(mp_evict(&member, entry, birth), MP_IS_PINNED);
    mp_unpin(&member, entry, MP_ONE_OP);
    CHECK_EQ(mp_evict(&member, entry, birth), MP_OK);
    CHECK_EQ(mp_place_read(&member, entry, birth, &place, &size), MP_IS_SPILLED);
    CHECK_EQ(mp_restore_begin(&member, entry, birth, &offset), MP_OK);
    CHECK_EQ(mp_restore_end(&member, entry, birth, MP_LOST), MP_OK);
    mp_unpin(&member, entry, MP_ONE_OP);
    CHECK_EQ(mp_drop(&member, entry, -1), MP_OK);
    mp_segment_close(&member, segment);
    CHECK_EQ(mp_segment_punched(&member, segment, seg_id, 4096), MP_OK);
    CHECK_EQ(mp_segment_dead(&member, segment, &dead), segment);
    CHECK_EQ(mp_segment_forget(&member, segment, dead.id), MP_OK);
    move_a_record();
    id = agent_create(&worker, 300000);
    entry = (uint32_t)(id & 0xffff);
    birth = id >> 16;
    CHECK_EQ(mp_view(&member, entry, birth, &offset, &size), MP_OK);
    CHECK_EQ(mp_name_set(&member, "n1", 2, entry, birth, false), MP_OK);
    CHECK_EQ(mp_name_set(&member, "n1", 2, entry, birth, true), MP_OK);
    CHECK_EQ(mp_name_remove(&member, "n1", 2), MP_OK);
    CHECK_EQ(mp_token_issue(&member, entry, birth, 1, UINT64_MAX - 2, 77, &token), MP_OK);
    CHECK_EQ(mp_delete(&member, entry, birth), MP_OK);
    CHECK_EQ(mp_token_load(&member, token, 77, entry, birth), MP_OK);
    mp_unpin(&member, entry, MP_ONE_VIEW);
    CHECK_EQ(mp_queue_enter(&member, 1000), MP_OK);
    CHECK_EQ(mp_queue_renew(&member), MP_OK);
    mp_queue_leave(&member, 1000);
    mp_drop_all(&member);
    mp_shrink(&member, 1 << 20);
    leave();
}

/* A chain of values, each with a ref to the one before, and at its end a value with many refs. */
static void containers(void) {
    uint32_t targets[300], before = 0;
    uint64_t births[300], birth_before = 0, offset;
    become_member(3);
    for (uint32_t link = 0; link < 6; link++) {
        uint32_t entry, count = link == 0 ? 0 : link < 5 ? 1 : 300;
        uint64_t birth;
        mp_code code;
        while ((code = mp_draft(&member, 100, &entry, &birth, &offset)) == MP_NO_ROOM) CHECK_EQ(mp_grow(&member, 100), MP_OK);
        CHECK_EQ(code, MP_OK);
        for (uint32_t i = 0; i < count; i++) targets[i] = before, births[i] = birth_before;
        CHECK_EQ(mp_contain(&member, entry, birth, targets, births, count), MP_OK);
        CHECK_EQ(mp_seal(&member, entry, birth), MP_OK);
        if (link) CHECK_EQ(mp_drop(&member, before, -1), MP_OK);
        before = entry, birth_before = birth;
    }
    CHECK_EQ(mp_drop(&member, before, -1), MP_OK);
    mp_undertake(&member);
    leave();
}

/* Two slabs of one class and runs with holes between them, both half empty. */
static void movers(void) {
    static const uint32_t sizes[] = {4000, 20000};
    uint64_t ids[2][24];
    become_member(6);
    for (uint32_t kind = 0; kind < 2; kind++)
        for (uint32_t i = 0; i < 24; i++) ids[kind][i] = agent_create(&worker, sizes[kind]);
    for (uint32_t kind = 0; kind < 2; kind++)
        for (uint32_t i = 0; i < 24; i += 2) CHECK_EQ(mp_drop(&member, (uint32_t)(ids[kind][i] & 0xffff), -1), MP_OK);
    CHECK(mp_empty_blocks(&member, 1 << 20) != 0);
    for (uint32_t kind = 0; kind < 2; kind++)
        for (uint32_t i = 1; i < 24; i += 2) agent_expect_value(&worker, ids[kind][i]);
    mp_drop_all(&member);
    leave();
}

static void finish(void) {
    rests begun;
    become_member(8);
    begin_rests(&begun);
    CHECK_EQ(mp_finish(&member), MP_OK);
    end_rests(&begun);
    mp_drop_all(&member);
    leave();
}

static uint64_t salt;

static void leave_ruins(void) {
    uint32_t entry;
    uint64_t birth;
    become_member(100 + salt);
    begin_restore(&entry, &birth);
    work(60);
    for (uint32_t kind = 0; kind < AGENT_RUINS; kind++) agent_abandon(&worker, kind);
    _exit(0); /* as good as a death: nothing is let go */
}

static void make_ruins(void) {
    salt++;
    run(leave_ruins);
}

/* Takes over what make_ruins left, and dies over it. */
static void reap(void) {
    become_member(4);
    mp_reap_dead(&member);
    work(20);
    leave();
}

/* Dies with the mutex in hand, at one of many places. */
static void die_inside(void) {
    static const char *const inside[] = {
        "evict.evicting",  "evict.spilled",      "bury.extent",     "bury.place",       "draft.held",
        "draft.born",      "arena.carve.cut",    "arena.slot.taken", "arena.release.unbinned",
        "place.set",       "token.issued",       "name.set",         "restore.allocated",
        "segment.closed",  "place.move.decided",       "place.move.offset",     "arena.grown.marked", "arena.punch.carved", "collect.garbage",
    };
    for (uint32_t tries = 0; tries < 100; tries++) { /* a run may pass by none of a name */
        const char *name = inside[salt++ % (sizeof inside / sizeof *inside)];
        if (run_until_killed(leave_ruins, name, 1 + (uint32_t)salt / 64 % 2)) return;
    }
    CHECK(false);
}

/* As a parent that forks, and its child. */
static void fork_on(void) {
    become_member(5);
    work(60);
    CHECK_EQ(mp_atfork_add(&member), 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        CHECK_EQ(mp_usable(&member), MP_OK);
        agent_check(&worker);
        worker.segment = 0; /* it is its parent's */
        work(20);
        leave();
        _exit(0);
    }
    agent_check(&worker);
    agent_let_go(&worker); /* what the child has is its own */
    (void)wait_for_all();
    leave();
}

/* --- tests --- */

static void kill_in_any_operation(void) {
    open_store(6 << 20);
    kill_everywhere(NULL, anything);
    close_store();
}

static void kill_under_pressure(void) {
    open_store(2 << 20);
    kill_everywhere(NULL, anything);
    close_store();
}

static void kill_in_rare_operations(void) {
    open_store(6 << 20);
    kill_everywhere(NULL, rarities);
    close_store();
}

static void kill_among_containers(void) {
    open_store(6 << 20);
    kill_everywhere(NULL, containers);
    close_store();
}

static void kill_while_moving(void) {
    open_store(6 << 20);
    kill_everywhere(NULL, movers);
    close_store();
}

static void kill_while_ending_what_was_put_off(void) {
    open_store(6 << 20);
    kill_everywhere(NULL, finish);
    close_store();
}

/* A pool grows once or twice in a store's life: each death needs a store of its own. */
static void kill_while_pools_grow(void) {
    for (uint32_t hit = 1; hit <= 3; hit++) {
        open_store(6 << 20);
        for (uint32_t i = 0; i < NAMES; i++)
            if (strcmp(names[i], "pool.populated") == 0) kill_at(i, hit, NULL, rarities);
        close_store();
    }
}

static void kill_while_reaping(void) {
    open_store(4 << 20);
    kill_everywhere(make_ruins, reap);
    close_store();
}

static void kill_while_repairing(void) {
    open_store(4 << 20);
    kill_everywhere(die_inside, reap);
    close_store();
}

static void kill_around_a_fork(void) {
    open_store(6 << 20);
    kill_everywhere(NULL, fork_on);
    close_store();
}

static void stop_in_any_operation(void) {
    static void (*const bodies[])(void) = {anything, rarities, containers, movers, finish};
    for (uint32_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        open_store(6 << 20);
        stop_everywhere(bodies[i]);
        close_store();
    }
}

/* Nobody restarts the store, and only now and then somebody reaps. */
static void crash_again_and_again(void) {
    static void (*const bodies[])(void) = {anything, reap, fork_on, leave_ruins};
    const char *wanted = getenv("MP_CRASHES");
    uint32_t crashes = 0, looks = 0, goal = wanted ? (uint32_t)atoi(wanted) : CRASHES, high[3] = {0};
    open_store(6 << 20);
    mp_pool *pools[] = {&self.header->pool_entries, &self.header->pool_tokens, &self.header->pool_segments};
    while (crashes < goal) {
        uint32_t index = (uint32_t)random_below(&survivor.random, NAMES);
        uint32_t hit = 1 + (uint32_t)random_below(&survivor.random, 8);
        salt++;
        if (run_until_killed(bodies[random_below(&survivor.random, sizeof bodies / sizeof *bodies)], names[index], hit)) {
            deaths[index]++;
            crashes++;
        }
        if (random_below(&survivor.random, 16) != 0) continue;
        survive();
        bool early = looks++ < 3 || crashes < goal / 4;
        for (uint32_t i = 0; i < 3; i++) { /* what was used once is used again */
            if (early) high[i] = 2 * atomic_load(&pools[i]->high) + 8;
            CHECK(atomic_load(&pools[i]->high) <= high[i]);
        }
    }
    survive();
    close_store();
    check_count("crashes in a row, in one store", crashes);
}

static void every_failpoint_has_killed(void) {
    uint32_t missing = 0, all = 0, stopped = 0;
    for (uint32_t i = 0; i < NAMES; i++) all += deaths[i], stopped += stops[i];
    check_count("kill -9 at a failpoint, in C", all);
    check_count("SIGSTOP at a failpoint, in C", stopped);
    check_count("failpoints", NAMES);
    for (uint32_t i = 0; i < NAMES; i++) {
        if (deaths[i] != 0) continue;
        fprintf(stderr, "nobody died at %s\n", names[i]);
        missing++;
    }
    CHECK(!everything_ran || missing == 0);
}

/* The table of steps is that of the failpoints, and knows who has the mutex. */
static void every_step_is_as_the_table_says(void) {
    uint32_t wrong = 0, rows = sizeof steps / sizeof *steps;
    CHECK_EQ(rows, NAMES);
    for (uint32_t s = 0; s < rows; s++) {
        uint32_t i = 0;
        while (i < NAMES && strcmp(names[i], steps[s].name) != 0) i++;
        CHECK(i < NAMES);
        if (!everything_ran || (with_mutex[i] & ~(uint32_t)steps[s].mutex) == 0) continue;
        fprintf(stderr, "step %s, %s: the mutex was %s\n", steps[s].letter, names[i], steps[s].mutex == held ? "free" : "held");
        wrong++;
    }
    CHECK_EQ(wrong, 0);
}

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    everything_ran = check_everything();
    processes_begin();
    failpoint_share();
    RUN(kill_in_any_operation);
    RUN(kill_under_pressure);
    RUN(kill_in_rare_operations);
    RUN(kill_among_containers);
    RUN(kill_while_moving);
    RUN(kill_while_ending_what_was_put_off);
    RUN(kill_while_pools_grow);
    RUN(kill_while_reaping);
    RUN(kill_while_repairing);
    RUN(kill_around_a_fork);
    RUN(stop_in_any_operation);
    RUN(crash_again_and_again);
    RUN(every_failpoint_has_killed);
    RUN(every_step_is_as_the_table_says);
    return 0;
}
