/* What a test says to failpoints, and what they say to it: one page that processes share.
 *
 * A page that is mapped before the fork serves C tests (failpoint_page). Other programs map a
 * file of PAGE_BYTES named by $MILLPOND_FAILPOINT_PAGE, or arm one failpoint of one process by
 * $MILLPOND_FAILPOINT="name[:hit[:kill|stop]]". $MILLPOND_FAILPOINT_JITTER="n:microseconds" needs no page: at one
 * failpoint in n its process sleeps, for so long at most, so that others come in between.
 */
#ifndef MILLPOND_FAILPOINT_PAGE_H
#define MILLPOND_FAILPOINT_PAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define FAILPOINT_ROWS 160u

typedef struct failpoint_plan {
    _Atomic uint64_t armed;     /* hash of the name; 0: none */
    _Atomic int32_t pid;        /* in this process only; 0: in any */
    _Atomic uint32_t signal;    /* that the process sends itself */
    _Atomic uint32_t countdown; /* at the hit that makes it zero */
    _Atomic uint32_t struck;    /* the process that the signal went to */
    struct {
        _Atomic uint64_t name; /* hash; 0: empty */
        _Atomic uint64_t hits;
    } rows[FAILPOINT_ROWS];
} failpoint_plan;

extern failpoint_plan *failpoint_page;              /* NULL: failpoints do nothing */
extern void (*failpoint_hook)(const char *name);    /* called at each; for tests of one thread */

uint64_t failpoint_hash(const char *name); /* FNV-1a, 64 bits */
uint64_t failpoint_hits(const char *name);
void failpoint_share(void); /* maps a page for this process and its children */
void failpoint_arm(const char *name, uint32_t hit, int signal, int32_t pid);
bool failpoint_disarm(void); /* true if it has gone off */
void failpoint_forget_hits(void);
void failpoint_jitter(uint32_t one_in, uint32_t microseconds); /* of this process and its children; 0: none */

#endif
