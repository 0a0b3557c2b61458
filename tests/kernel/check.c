#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define COUNTS 16u

static const char *wanted, *counts_path, *current = "";
char check_doing[128];
void (*check_last_words)(void);
static struct {
    const char *what;
    uint64_t count;
} counts[COUNTS];

uint64_t check_seed(void) {
    static uint64_t seed;
    const char *text = getenv("MP_SEED");
    struct timespec now;
    if (seed == 0) {
        clock_gettime(CLOCK_REALTIME, &now);
        seed = text ? strtoull(text, NULL, 10) : (uint64_t)now.tv_sec * 1000003u + (uint64_t)now.tv_nsec;
        if (seed == 0) seed = 1;
    }
    return seed;
}

_Noreturn void check_failed(const char *file, int line, const char *text, uint64_t left, uint64_t right) {
    if (check_last_words) check_last_words();
    fprintf(stderr, "%s:%d: %s failed in %s: ", file, line, text, current);
    if (check_doing[0]) fprintf(stderr, "%s: ", check_doing);
    fprintf(stderr, "%" PRIu64 ", %" PRIu64 " (MP_SEED=%" PRIu64 ")\n", left, right, check_seed());
    _exit(1);
}

void check_count(const char *what, uint64_t count) {
    uint32_t i = 0;
    while (i < COUNTS && counts[i].what && strcmp(counts[i].what, what) != 0) i++;
    CHECK(i < COUNTS);
    counts[i].what = what;
    counts[i].count += count;
}

/* A program that fails or is killed does not come here: its counts are missing, which is seen. */
static void write_counts(void) {
    FILE *file = counts_path ? fopen(counts_path, "w") : NULL;
    for (uint32_t i = 0; i < COUNTS && counts[i].what; i++) printf("   %" PRIu64 " %s\n", counts[i].count, counts[i].what);
    if (!file) return;
    fprintf(file, "{\"violations\": 0, \"counts\": {");
    for (uint32_t i = 0; i < COUNTS && counts[i].what; i++)
        fprintf(file, "%s\"%s\": %" PRIu64, i ? ", " : "", counts[i].what, counts[i].count);
    fprintf(file, "}}\n");
    fclose(file);
}

/* Before any thread is there, hence the seed is chosen here. Children end by _exit: they write no counts. */
void check_arguments(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--counts") == 0 && i + 1 < argc) counts_path = argv[++i];
        else wanted = argv[i];
    }
    (void)check_seed();
    atexit(write_counts);
}

bool check_everything(void) { return wanted == NULL; }

void check_run(const char *name, void (*test)(void)) {
    struct timespec start, end;
    if (wanted && !strstr(name, wanted)) return;
    current = name;
    clock_gettime(CLOCK_MONOTONIC, &start);
    test();
    clock_gettime(CLOCK_MONOTONIC, &end);
    double seconds = (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) / 1e9;
    printf("ok %-40s %6.2f s\n", name, seconds);
    fflush(stdout);
}

#ifdef __SANITIZE_THREAD__
/* ThreadSanitizer does not know pthread_mutex_clocklock, and of its sibling timedlock not that the mutex of a
 * dead owner (EOWNERDEAD) is taken: it knows that of trylock alone. The linker leads calls here. */
int __wrap_pthread_mutex_clocklock(pthread_mutex_t *mutex, clockid_t clock, const struct timespec *deadline);

int __wrap_pthread_mutex_clocklock(pthread_mutex_t *mutex, clockid_t clock, const struct timespec *deadline) {
    struct timespec now;
    for (;;) {
        int rc = pthread_mutex_trylock(mutex);
        if (rc != EBUSY) return rc;
        clock_gettime(clock, &now);
        if (now.tv_sec > deadline->tv_sec || (now.tv_sec == deadline->tv_sec && now.tv_nsec >= deadline->tv_nsec))
            return ETIMEDOUT;
        usleep(100);
    }
}
#endif
