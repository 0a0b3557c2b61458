/* How long each call holds the store's mutex, and how long another process then waits for it.
 *
 * The kernel is the one that users get, without failpoints: the linker leads mp_lock and mp_unlock through
 * the two functions below, so that nothing is measured inside of a hold but one read of the time-stamp
 * counter. Built and run by holds.py. Prints a line for each call: name, holds, and nanoseconds of a hold: median,
 * 99th and 99.9th percentile; then the same of the time from wanting the mutex to having it.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fixture.h"

#define KIB 1024ull
#define MIB (1024ull * KIB)
#define SAMPLES 200000u
#define OBJECTS 100000u

mp_code __real_mp_lock(mp_member *m, int64_t timeout_ns);
void __real_mp_unlock(mp_member *m);
mp_code __wrap_mp_lock(mp_member *m, int64_t timeout_ns);
void __wrap_mp_unlock(mp_member *m);

static uint64_t held[SAMPLES], waited[SAMPLES], since;
static uint32_t count;
static double ns_per_tick;
static fixture store;
static mp_member self;

mp_code __wrap_mp_lock(mp_member *m, int64_t timeout_ns) {
    uint64_t before = mp_ticks();
    mp_code code = __real_mp_lock(m, timeout_ns);
    since = mp_ticks();
    if (count < SAMPLES) waited[count] = since - before;
    return code;
}

void __wrap_mp_unlock(mp_member *m) {
    uint64_t now = mp_ticks();
    __real_mp_unlock(m);
    if (count < SAMPLES) held[count++] = now - since;
}

static int by_size(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static void print_times(uint64_t *ticks) {
    qsort(ticks, count, sizeof *ticks, by_size);
    const uint32_t at[] = {count / 2, (uint32_t)(count * 0.99), (uint32_t)(count * 0.999)};
    for (uint32_t i = 0; i < 3; i++) printf("\t%.0f", (double)ticks[at[i]] * ns_per_tick);
}

/* Prints what was recorded since the last one. */
static void report(const char *name) {
    printf("%s\t%u", name, count);
    CHECK(count != 0);
    print_times(held);
    print_times(waited);
    printf("\n");
    fflush(stdout);
    count = 0;
}

static void calibrate(void) {
    struct timespec a, b, pause = {0, 50000000};
    clock_gettime(CLOCK_MONOTONIC, &a);
    uint64_t ticks = mp_ticks();
    nanosleep(&pause, NULL);
    ticks = mp_ticks() - ticks;
    clock_gettime(CLOCK_MONOTONIC, &b);
    ns_per_tick = ((double)(b.tv_sec - a.tv_sec) * 1e9 + (double)(b.tv_nsec - a.tv_nsec)) / (double)ticks;
}

/* A sealed object; grows the arena as a put does. */
static uint32_t make(uint64_t size, uint64_t *birth) {
    uint32_t entry = 0;
    uint64_t offset;
    mp_code code;
    while ((code = mp_draft(&self, size, &entry, birth, &offset)) == MP_NO_ROOM) CHECK_EQ(mp_grow(&self, size), MP_OK);
    CHECK_EQ(code, MP_OK);
    CHECK_EQ(mp_seal(&self, entry, *birth), MP_OK);
    return entry;
}

/* Puts and drops of one size: the draft is one hold, the last drop another. */
static void puts_and_drops(const char *name, uint64_t size, uint32_t times) {
    char text[80];
    uint64_t birth;
    mp_drop(&self, make(size, &birth), -1); /* commits the memory */
    count = 0;
    for (uint32_t i = 0; i < times; i++) mp_drop(&self, make(size, &birth), -1);
    snprintf(text, sizeof text, "put and drop, %s", name);
    report(text);
}

static void hand_offs_and_names(void) {
    uint64_t birth, nonce = 1;
    uint32_t entry = make(KIB, &birth), token;
    count = 0;
    for (uint32_t i = 0; i < 10000; i++, nonce++) {
        CHECK_EQ(mp_token_issue(&self, entry, birth, 1, 0, nonce, &token), MP_OK);
        CHECK_EQ(mp_token_load(&self, token, nonce, entry, birth), MP_OK);
        mp_drop(&self, entry, -1);
    }
    report("a hand-off: issue and load");
    for (uint32_t i = 0; i < 10000; i++) {
        CHECK_EQ(mp_name_set(&self, "name", 4, entry, birth, false), MP_OK);
        CHECK_EQ(mp_name_remove(&self, "name", 4), MP_OK);
    }
    report("a name: set and remove");
    mp_drop(&self, entry, -1);
}

/* As a program does that ends. */
static void many_drops(void) {
    static uint32_t entries[OBJECTS];
    uint64_t birth;
    for (uint32_t i = 0; i < OBJECTS; i++) entries[i] = make(100, &birth);
    count = 0;
    for (uint32_t i = 0; i < OBJECTS; i++) mp_drop(&self, entries[i], -1);
    report("the last drop of each of 100 000 objects");
}

/* Another process puts and drops small values all the time, as this one does. */
static void beside_another(void) {
    fflush(stdout);
    pid_t parent = getpid(), other;
    mp_fork_prepare(&self);
    other = fork();
    if (other == 0) {
        mp_fork_child(&self);
        uint64_t birth;
        while (getppid() == parent) mp_drop(&self, make(KIB, &birth), -1);
        _exit(0);
    }
    mp_fork_parent(&self);
    usleep(20000);
    puts_and_drops("1 KiB, beside another process that does the same", KIB, SAMPLES / 2);
    kill(other, SIGKILL);
    waitpid(other, NULL, 0);
}

int main(void) {
    fixture_shape shape = {.arena_bytes = 3072 * MIB, .memory_limit = 3072 * MIB, .entries = 270000};
    calibrate();
    fixture_create(&store, shape);
    fixture_map(&store, &self);
    CHECK_EQ(mp_claim_slot(&self), MP_OK);
    puts_and_drops("1 KiB", KIB, 50000);
    puts_and_drops("1 MiB", MIB, 50000);
    puts_and_drops("1 GiB", 1024 * MIB, 5000);
    hand_offs_and_names();
    many_drops();
    beside_another();
    return 0;
}
