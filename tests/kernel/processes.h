/* A store with members in processes of their own, and one that survives them all: this process.
 *
 * The survivor owns some objects that nobody deletes (ground->board, the shielded ones); whatever
 * happens to the others, these stay readable and whole.
 */
#ifndef MILLPOND_PROCESSES_H
#define MILLPOND_PROCESSES_H

#include <sys/types.h>

#include "agent.h"

#define SHIELDED 12u

extern fixture store;
extern playground *ground;
extern mp_member self;  /* of the survivor, */
extern agent survivor;  /* which works as an agent between the deaths */
extern mp_member member; /* of a child */
extern agent worker;
extern const mp_system *member_system; /* what a child calls the system by */

void processes_begin(void); /* once, in main */
void open_store(uint64_t limit);
void open_store_of(fixture_shape shape);
void close_store(void);

/* In a child: maps the store, claims a slot; member and worker are it. */
void become_member(uint64_t salt);
void work(uint32_t steps);
void leave(void);

/* Of member: a value on disk that is being restored. */
void begin_restore(uint32_t *entry, uint64_t *birth);

/* Calls of each kind whose second half finds the mutex taken, and is put off. */
typedef struct rests {
    uint32_t failed, lost, segment, token; /* two restores, a file that is full, a hand-off; memory and a place in the queue are the others */
    uint64_t failed_birth, lost_birth;
} rests;
void begin_rests(rests *begun);
void end_rests(const rests *begun); /* they are ended, as they should be */

pid_t start(void (*body)(void)); /* in a child, which then exits with 0 */
uint32_t wait_for_all(void);     /* every process below us; returns how many were killed */
void run(void (*body)(void));    /* to its end, without a death */

/* After deaths: no fault before and after reaping, values whole, nothing of the dead left. */
void survive(void);
void expect_values(void);

#endif
