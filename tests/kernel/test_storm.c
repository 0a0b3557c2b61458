/* A storm over the kernel alone: processes at full speed, killed and stopped all the time, at every place.
 *
 * Who dies is replaced at once. Most have a step at which they will die, of those that others see, so that they leave
 * the mutex in the middle of a hold; others die whenever the dice say so; some are stopped for a moment. After each
 * repair somebody checks the table, and every byte that anybody reads is checked (agent.h). A round ends with the
 * death of all; then nothing may be left of them. MP_SECONDS=n: for so long, over rounds of all weathers.
 * A violation ends the storm, and prints who came last by which steps. Dice alone do not repeat it: time is one too.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "failpoint_page.h"
#include "steps.h"
#include "stormer.h"

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SECONDS 3u
#else
#define SECONDS 6u
#endif
#define ROUND_NS 1000000000
#define STANDSTILL_NS 120000000000

/* Steps that others see, and those of them that are done without the mutex, so that others come in between. */
static const char *const names[] = {
#define STEP(letter, name, mutex, left, mended) name,
    MP_STEPS(STEP)
#undef STEP
};
#define NAMES (sizeof names / sizeof *names)
static const bool without_mutex[] = {
#define held false
#define free true
#define either true
#define STEP(letter, name, mutex, left, mended) mutex,
    MP_STEPS(STEP)
#undef STEP
#undef held
#undef free
#undef either
};

typedef struct climate {
    uint32_t jitter_one_in, jitter_us;
    int64_t patience_ns; /* of the processes; 0: as long as it takes */
    uint32_t lull_us;    /* between two strikes, at most */
} climate;

static check_random dice;
static uint64_t kills, stops, steps, repairs, checks;
static uint64_t alive_at[STORM_ROWS], steps_then[STORM_ROWS]; /* when a row last got on, and how far it was */

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void rest(uint64_t microseconds) {
    struct timespec pause = {0, (long)microseconds * 1000};
    nanosleep(&pause, NULL);
}

static void strike_down(void) {
    for (uint32_t r = 0; r < STORM_ROWS; r++) {
        pid_t pid = (pid_t)atomic_load(&weather->rows[r].pid);
        if (pid > 0) kill(pid, SIGKILL);
    }
}

static _Noreturn void give_up(const char *why, pid_t pid) {
    storm_print_notes();
    fprintf(stderr, "process %d: %s%s\n", pid, why, atomic_load(&self.header->poisoned) ? "; the store is poisoned" : "");
    strike_down();
    CHECK(!"a violation");
    abort();
}

/* --- processes --- */

static uint32_t next_row;

/* One of four only dies when it is struck; some stop instead. */
static storm_fate draw_fate(void) {
    storm_fate fate = {.step = names[random_below(&dice, NAMES)], .signal = SIGKILL};
    if (random_below(&dice, 4) == 0) fate.step = NULL;
    if (random_below(&dice, 8) == 0) fate.signal = SIGSTOP;
    fate.hit = 1 + (uint32_t)random_below(&dice, 1u << random_below(&dice, 13));
    return fate;
}

static void one_of_them(void) { storm_work(next_row, random_next(&dice), draw_fate()); }

static void start_row(uint32_t row) {
    uint32_t nobody = 0;
    next_row = row;
    (void)random_next(&dice); /* or the next child would throw the same */
    atomic_store(&weather->rows[row].pid, 0);
    alive_at[row] = now_ns();
    pid_t pid = start(one_of_them);
    /* it may have gone on as its own child already */
    (void)atomic_compare_exchange_strong(&weather->rows[row].pid, &nobody, (uint32_t)pid);
}

/* One that is gone, or -1 or 0 as waitpid has it. */
static pid_t wait_for_one(int options) {
    int status;
    pid_t pid = waitpid(-1, &status, options);
    if (pid <= 0) return pid;
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) kills++;
    else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) give_up("has failed", pid);
    return pid;
}

static void replace_the_dead(void) {
    for (pid_t pid; (pid = wait_for_one(WNOHANG)) > 0;)
        for (uint32_t r = 0; r < STORM_ROWS; r++)
            if (atomic_load(&weather->rows[r].pid) == (uint32_t)pid) start_row(r);
}

static void expect_progress(void) {
    for (uint32_t r = 0; r < STORM_ROWS; r++) {
        uint64_t reached = atomic_load(&weather->rows[r].steps), now = now_ns();
        if (reached != steps_then[r]) alive_at[r] = now;
        steps_then[r] = reached;
        if (now - alive_at[r] > STANDSTILL_NS) give_up("stands still", (pid_t)atomic_load(&weather->rows[r].pid));
    }
}

/* --- strikes --- */

/* Also between steps. */
static void strike_somebody(void) {
    pid_t pid = (pid_t)atomic_load(&weather->rows[random_below(&dice, STORM_ROWS)].pid);
    if (pid <= 0) return;
    if (random_below(&dice, 4) != 0) {
        kill(pid, SIGKILL);
        return;
    }
    kill(pid, SIGSTOP);
    rest(random_below(&dice, 4000));
    kill(pid, SIGCONT);
    atomic_fetch_add(&weather->stops, 1);
}

/* Everybody of our process group, which is our own: others have stopped processes that are to stay so. */
static void let_go_on(void) { kill(0, SIGCONT); }

/* --- rounds --- */

/* Small, so that everybody is in everybody's way. */
static void open_some_store(const climate *c) {
    fixture_shape shape = {.entries = 400 + (uint32_t)random_below(&dice, 1200)};
    shape.memory_limit = (2 + random_below(&dice, 5)) << 20;
    shape.arena_bytes = shape.memory_limit + (random_below(&dice, 8) << 20);
    open_store_of(shape);
    memset((void *)weather, 0, sizeof *weather);
    weather->memory_limit = shape.memory_limit;
    weather->patience_ns = c->patience_ns;
    weather->two_threads = random_below(&dice, 2) == 0;
    weather->refusals = random_below(&dice, 4) == 0;
}

static void change_tide(void) {
    atomic_store(&weather->tide_size, 1 + random_below(&dice, random_below(&dice, 2) ? 20000 : 100000));
    atomic_store(&weather->tide, (uint32_t)random_below(&dice, STORM_TIDES));
}

/* The last one may be any; the others hold nobody up. */
static void choose_slow_steps(void) {
    for (uint32_t i = 0; i < STORM_SLOW; i++) {
        uint64_t step;
        do step = random_below(&dice, NAMES);
        while (i + 1 < STORM_SLOW && !without_mutex[step]);
        weather->slow[i] = names[step];
    }
}

static void blow(const climate *c) {
    uint64_t end = now_ns() + ROUND_NS;
    choose_slow_steps();
    failpoint_jitter(c->jitter_one_in, c->jitter_us);
    for (uint32_t r = 0; r < STORM_ROWS; r++) start_row(r);
    while (now_ns() < end) {
        if (random_below(&dice, 4) == 0) strike_somebody();
        if (random_below(&dice, 4) == 0) let_go_on();
        if (random_below(&dice, 16) == 0) change_tide();
        replace_the_dead();
        expect_progress();
        rest(random_below(&dice, c->lull_us));
    }
    failpoint_jitter(0, 0);
}

/* Everybody dies, in the middle of something; a child that has just been forked leaves. */
static void die_down(void) {
    atomic_store(&weather->over, true);
    strike_down();
    for (pid_t pid; (pid = wait_for_one(WNOHANG)) >= 0;)
        if (pid == 0) let_go_on(), rest(100);
    for (uint32_t r = 0; r < STORM_ROWS; r++) steps += atomic_load(&weather->rows[r].steps);
    uint64_t limit = weather->memory_limit, none = UINT64_MAX;
    mp_set_limits(&self, &limit, &none, NULL);
    fixture_check(&self);
    while (mp_reap_dead(&self) != 0) continue; /* of the slots of orphans one at a time */
    agent_sweep(&self, ground); /* room for what survives */
    survive();
    repairs += self.header->recoveries;
    checks += atomic_load(&weather->checks) + 2; /* and those at the end */
    stops += atomic_load(&weather->stops);
    close_store();
}

static void storms(void) {
    static const climate climates[] = {
        {0, 0, 0, 300},           /* full speed */
        {30, 300, 0, 2000},       /* everybody dawdles between steps, also with the mutex */
        {0, 0, 300000, 1000},     /* nobody waits for a stopped holder of the mutex */
        {50, 1000, 200000, 1000}, /* both */
    };
    const char *wanted = getenv("MP_SECONDS");
    uint64_t rounds = wanted ? strtoull(wanted, NULL, 10) : SECONDS;
    dice.state = check_seed();
    storm_open();
    for (uint64_t round = 0; round < rounds; round++) {
        const climate *c = &climates[round % (sizeof climates / sizeof *climates)];
        snprintf(check_doing, sizeof check_doing, "round %" PRIu64, round);
        open_some_store(c);
        blow(c);
        die_down();
    }
    check_count("kill -9 in a storm over the kernel", kills);
    check_count("checks of the table in a storm over the kernel", checks);
    check_count("SIGSTOP in a storm over the kernel", stops);
    check_count("operations in a storm over the kernel", steps);
    check_count("repairs after a death with the mutex, in that storm", repairs);
}

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    (void)setpgid(0, 0);
    processes_begin();
    RUN(storms);
    return 0;
}
