/* Failpoints of a test build: counts who comes by, sends the signal that the test ordered, and dawdles.
 * Stands alone, so that a build of the Python module can take it in.
 */
#define _GNU_SOURCE
#include "failpoint.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "failpoint_page.h"

failpoint_plan *failpoint_page;
void (*failpoint_hook)(const char *name);

uint64_t failpoint_hash(const char *name) {
    uint64_t hash = 14695981039346656037ull;
    while (*name) hash = (hash ^ (uint8_t)*name++) * 1099511628211ull;
    return hash;
}

/* The counter of a name, which is made on first sight. */
static _Atomic uint64_t *row_of(uint64_t name) {
    for (uint32_t i = 0; i < FAILPOINT_ROWS; i++) {
        uint64_t found = 0;
        uint32_t row = (uint32_t)((name + i) % FAILPOINT_ROWS);
        if (atomic_compare_exchange_strong(&failpoint_page->rows[row].name, &found, name) || found == name)
            return &failpoint_page->rows[row].hits;
    }
    abort(); /* more names than rows */
}

uint64_t failpoint_hits(const char *name) { return atomic_load(row_of(failpoint_hash(name))); }

void failpoint_forget_hits(void) {
    for (uint32_t i = 0; i < FAILPOINT_ROWS; i++) atomic_store(&failpoint_page->rows[i].hits, 0);
}

void failpoint_arm(const char *name, uint32_t hit, int signal, int32_t pid) {
    atomic_store(&failpoint_page->signal, (uint32_t)signal);
    atomic_store(&failpoint_page->countdown, hit);
    atomic_store(&failpoint_page->pid, pid);
    atomic_store(&failpoint_page->armed, failpoint_hash(name));
}

bool failpoint_disarm(void) { return atomic_exchange(&failpoint_page->armed, 0) == 0; }

static uint32_t jitter_one_in, jitter_ns; /* zero: nobody dawdles */

/* xorshift (Marsaglia, Journal of Statistical Software 8, 2003), one a thread. */
static uint32_t dice(void) {
    static _Thread_local uint32_t state;
    if (state == 0) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        state = ((uint32_t)now.tv_nsec ^ ((uint32_t)gettid() << 16)) | 1u;
    }
    state ^= state << 13;
    state ^= state >> 17;
    return state ^= state << 5;
}

void failpoint_jitter(uint32_t one_in, uint32_t microseconds) {
    jitter_one_in = one_in;
    jitter_ns = microseconds * 1000u;
}

static void dawdle(void) {
    if (jitter_one_in == 0 || dice() % jitter_one_in != 0) return;
    struct timespec moment = {0, (long)(dice() % jitter_ns)};
    nanosleep(&moment, NULL);
}

void mp_failpoint_reach(const char *name) {
    if (failpoint_hook) failpoint_hook(name);
    dawdle();
    if (!failpoint_page) return;
    uint64_t hash = failpoint_hash(name);
    atomic_fetch_add(row_of(hash), 1);
    int32_t pid = atomic_load(&failpoint_page->pid);
    if (atomic_load(&failpoint_page->armed) != hash || (pid != 0 && pid != getpid())) return;
    if (atomic_fetch_sub(&failpoint_page->countdown, 1) != 1) return;
    atomic_store(&failpoint_page->struck, (uint32_t)getpid());
    atomic_store(&failpoint_page->armed, 0);
    kill(getpid(), (int)atomic_load(&failpoint_page->signal));
}

static void map_page(int flags, int fd) {
    void *page = mmap(NULL, sizeof *failpoint_page, PROT_READ | PROT_WRITE, MAP_SHARED | flags, fd, 0);
    if (page == MAP_FAILED) abort();
    failpoint_page = page;
}

void failpoint_share(void) { map_page(MAP_ANONYMOUS, -1); }

static void read_jitter(const char *jitter) {
    char *end;
    unsigned long one_in = strtoul(jitter, &end, 10), microseconds = *end == ':' ? strtoul(end + 1, NULL, 10) : 0;
    if (one_in == 0 || microseconds == 0 || microseconds >= 1000000) abort(); /* not what somebody meant */
    failpoint_jitter((uint32_t)one_in, (uint32_t)microseconds);
}

__attribute__((constructor)) static void read_environment(void) {
    if (getenv("MILLPOND_FAILPOINT_JITTER")) read_jitter(getenv("MILLPOND_FAILPOINT_JITTER"));
    const char *path = getenv("MILLPOND_FAILPOINT_PAGE"), *plan = getenv("MILLPOND_FAILPOINT");
    char name[64], *hit, *action;
    if (path) {
        int fd = open(path, O_RDWR | O_CLOEXEC);
        if (fd < 0) abort();
        map_page(0, fd);
        close(fd);
    } else if (plan)
        failpoint_share();
    if (!plan) return;
    strncpy(name, plan, sizeof name - 1);
    name[sizeof name - 1] = 0;
    if ((hit = strchr(name, ':'))) *hit++ = 0;
    if (hit && (action = strchr(hit, ':'))) *action++ = 0;
    else action = NULL;
    int signal = action && strcmp(action, "stop") == 0 ? SIGSTOP : SIGKILL;
    failpoint_arm(name, hit ? (uint32_t)atoi(hit) : 1, signal, getpid());
}
