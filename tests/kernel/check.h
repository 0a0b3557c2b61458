/* Assertions for the C tests of the kernel: a failing one prints where, what and the seed, and
 * ends the process. Numbers are compared as unsigned 64-bit integers.
 */
#ifndef MILLPOND_CHECK_H
#define MILLPOND_CHECK_H

#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* The seed of a run's random choices: MP_SEED in the environment, else the clock's. */
uint64_t check_seed(void);

typedef struct check_random {
    uint64_t state;
} check_random;

/* splitmix64: every state is a good one */
static inline uint64_t random_next(check_random *r) {
    uint64_t z = r->state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static inline uint64_t random_below(check_random *r, uint64_t limit) { return random_next(r) % limit; }

extern void (*check_last_words)(void); /* of a failing assertion, before all others */
extern char check_doing[128]; /* what a failing assertion is to say that the test was doing */
_Noreturn void check_failed(const char *file, int line, const char *text, uint64_t left, uint64_t right);

#define CHECK(condition)                                                                   \
    do {                                                                                   \
        if (!(condition)) check_failed(__FILE__, __LINE__, #condition, 0, 0);              \
    } while (0)

#define CHECK_EQ(a, b)                                                                     \
    do {                                                                                   \
        uint64_t check_a = (uint64_t)(a), check_b = (uint64_t)(b);                         \
        if (check_a != check_b) check_failed(__FILE__, __LINE__, #a " == " #b, check_a, check_b); \
    } while (0)

/* Runs a test if its name contains the program's argument (or there is none). */
void check_run(const char *name, void (*test)(void));
#define RUN(test) check_run(#test, test)
/* [NAME] [--counts FILE]: what was counted goes to FILE as JSON when the program ends (see tests/proof.py). */
void check_arguments(int argc, char **argv);
bool check_everything(void); /* no NAME was given */
/* Adds to what this program has counted of `what`, which is a literal. */
void check_count(const char *what, uint64_t count);

#endif
