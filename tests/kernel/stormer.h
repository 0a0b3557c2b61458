/* An agent in a storm: a process that works on a store without rest, until its time is over or somebody kills it.
 *
 * Beside what agents do it makes values with refs inside, stands in the queue for room, changes the limit, moves
 * values together, forks (and goes on as its own child), and has the table checked: now and then, and after each
 * repair. Perhaps it has a second thread, which does the same, or a system that refuses memory now and then. It notes
 * by which steps of the kernel it has come, in memory that outlives it.
 * Not here: who kills, stops and replaces it (test_storm.c).
 */
#ifndef MILLPOND_STORMER_H
#define MILLPOND_STORMER_H

#include "processes.h"

#define STORM_ROWS 8u
#define STORM_NOTES 64u
#define STORM_SLOW 3u

/* Few values, then many of one size, then few: a table that was full has more to leave behind. */
enum storm_tide { STORM_CALM, STORM_FLOOD, STORM_EBB, STORM_TIDES };

typedef struct storm_note {
    uint64_t ticks;
    const char *step; /* a literal: all processes are forks of one */
    uint32_t pid;
} storm_note;

typedef struct storm_row { /* one process after the other */
    _Atomic uint32_t pid;
    _Atomic uint64_t steps;
    _Atomic uint32_t noted;
    storm_note notes[STORM_NOTES];
} storm_row;

typedef struct storm {
    _Atomic bool over;   /* whoever sees that leaves */
    _Atomic bool frozen; /* nobody takes notes any more: something is wrong */
    _Atomic uint64_t checks, checked, forks, stops; /* checked: up to which repair */
    uint64_t memory_limit;
    int64_t patience_ns; /* 0: as long as it takes */
    bool two_threads;    /* each process has a second one, with an agent of its own */
    bool refusals;       /* the system refuses memory now and then, to give it and to take it back */
    _Atomic uint32_t tide;        /* enum storm_tide */
    _Atomic uint64_t tide_size;   /* of the values that a flood brings */
    const char *slow[STORM_SLOW]; /* steps behind which everybody dawdles; NULL: none */
    storm_row rows[STORM_ROWS];
} storm;

extern storm *weather; /* shared by all */

typedef struct storm_fate { /* of a process: at that step, for the hit-th time, it sends itself this signal */
    const char *step;       /* NULL: it has none */
    uint32_t hit;
    int signal;
} storm_fate;

void storm_open(void);
void storm_work(uint32_t row, uint64_t salt, storm_fate fate); /* in a child; returns after it has left the store */
void storm_print_notes(void);                 /* the last of all rows, in the order of their time */

#endif
