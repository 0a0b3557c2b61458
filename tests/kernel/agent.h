/* A member that does random work on a store and checks every byte that it reads.
 *
 * Values are known from their birth alone, so any agent can verify any object. The "disk" is
 * memory of the test, one stretch for each segment; `board` is where agents find each
 * other's objects. The board is read and written relaxed: it orders nothing between agents, so
 * that a race in the kernel is not hidden by it.
 */
#ifndef MILLPOND_AGENT_H
#define MILLPOND_AGENT_H

#include "fixture.h"

#define BOARD 48u
#define AGENT_REFS 24u
#define SEGMENT_BYTES (2ull << 20)

typedef struct playground {
    _Atomic uint64_t board[BOARD];     /* entry | birth << 16 */
    uint32_t shielded;                 /* the first ones stay, and nobody deletes them */
    _Atomic uint64_t hand_offs[16][3]; /* id, token, nonce; may be torn: then it is a bad one */
    uint8_t *disk;
} playground;

typedef struct agent {
    mp_member *m;
    playground *ground;
    check_random random;
    uint64_t refs[AGENT_REFS], views[8];
    uint32_t ref_count, view_count, segment;
    uint64_t segment_id;
    bool hasty;   /* of little patience: MP_BUSY is no fault */
    bool refused; /* memory, by the system, now and then: nor is MP_SYSTEM */
    uint64_t reads, restores, spills, moves, punches; /* how much it did */
} agent;

/* Shared with children: what they spilled outlives them. */
playground *playground_open(void);
void playground_close(playground *g);
uint8_t *playground_disk(const playground *g, uint64_t segment_id, uint64_t offset);
/* Of an object that is pinned, so that its segment stays what it is. */
uint8_t *playground_record(const playground *g, const mp_member *m, const mp_place *place);

uint64_t agent_word(uint64_t birth, uint64_t at); /* of every value, at a multiple of 8 */
void agent_step(agent *a);     /* one operation, chosen at random */
void agent_check(agent *a);    /* every ref that it holds still leads to its value, or is known to be gone */
void agent_expect_value(agent *a, uint64_t id); /* readable, now */
uint64_t agent_create(agent *a, uint64_t size); /* an object that is on no board; the caller holds it */
/* The parts of creating: whoever has a draft finishes it, and then holds the object. Not MP_OK: there is none. */
mp_code agent_draft(agent *a, uint64_t size, uint64_t *id, uint64_t *offset);
void agent_finish_draft(agent *a, uint64_t id, uint64_t offset, uint64_t size);
bool agent_make_room(agent *a, uint64_t size); /* true: there is more; false: somewhat perhaps */
void agent_let_go(agent *a);   /* views and refs; closes the segment */
/* Leaves something half-done behind, as a death between two calls does. */
#define AGENT_RUINS 6u
void agent_abandon(agent *a, uint32_t kind);
void agent_sweep(mp_member *m, const playground *g); /* names, hand-offs and files that nobody owns */
/* No member but us, nothing half-done, and no more objects than these. */
void agent_expect_only(mp_member *m, uint32_t objects);

#endif
