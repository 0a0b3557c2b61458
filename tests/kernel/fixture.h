/* A small store in memfds, for tests: the same calls as a real one makes, and no files left. */
#ifndef MILLPOND_FIXTURE_H
#define MILLPOND_FIXTURE_H

#include "arena.h"
#include "check.h"
#include "kernel.h"

typedef struct fixture {
    int table_fd, arena_fd, lock_fd, birth_fd;
} fixture;

typedef struct fixture_shape {
    uint64_t arena_bytes, memory_limit;
    uint32_t entries;
} fixture_shape;

void fixture_create(fixture *f, fixture_shape shape);
void fixture_close(fixture *f);
/* Maps the store; claims no slot. */
void fixture_map(const fixture *f, mp_member *m);
void fixture_unmap(mp_member *m);

/* Members of one process: slots are locked in an array, and only that says who lives. */
void fixture_first(const fixture *f, mp_member *m);        /* maps and claims a slot */
void fixture_join(const mp_member *first, mp_member *m);   /* shares the mappings */
void fixture_die(mp_member *m);                            /* lets the lock go, and nothing else */
void fixture_leave(mp_member *m);                          /* unmaps what is private to one that joined */

/* A claimed entry whose record is at place: its code. */
mp_code fixture_publish(mp_member *m, uint32_t entry, uint64_t birth, const mp_place *place, bool evict);

/* Prints every fault and fails if there is one. */
void fixture_check(mp_member *m);
/* The same for the arena alone, under no mutex. */
void fixture_check_arena(mp_member *m);

#endif
