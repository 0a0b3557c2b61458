/* An arena whose extents are known: each is filled with its own bytes and belongs to an entry, as
 * in a store. One member, no mutex.
 */
#ifndef MILLPOND_WORLD_H
#define MILLPOND_WORLD_H

#include "fixture.h"

#define MIB (1ull << 20)
#define WORLD_ENTRIES 4096u

typedef struct world {
    fixture f;
    mp_member m;
    check_random random;
    uint32_t live[WORLD_ENTRIES], count;
} world;

void world_open(world *w, uint64_t arena_bytes, uint64_t limit);
void world_close(world *w);
uint64_t committed(const world *w); /* blocks */
mp_code grow(world *w, uint64_t size); /* one step of commitment */
void verify_all(world *w);
/* Allocates and, if there is no room, grows once; then it must fit. False: the limit. */
bool put(world *w, uint64_t size);
void drop(world *w, uint32_t index);
void drop_all(world *w);
uint64_t shrink(world *w, uint32_t blocks); /* returns the blocks punched */
/* Of a hundred steps so many put something; most of the others drop something. */
void random_step(world *w, uint32_t puts);

#endif
