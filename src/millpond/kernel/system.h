/* The system calls that the kernel makes, as one replaceable table: tests put their own there
 * to fail the Nth call, or to run members as threads. */
#ifndef MILLPOND_SYSTEM_H
#define MILLPOND_SYSTEM_H

#include <stdbool.h>
#include <stdint.h>

struct mp_member;

#define MP_LOCK_MEMBER 1u /* the byte lock of a process */
#define MP_LOCK_BIRTH 2u  /* the lock that covers a child between fork and its own byte lock */

typedef struct mp_system {
    int (*commit)(struct mp_member *m, uint64_t offset, uint64_t length);   /* reserve arena pages: 0 or errno */
    int (*punch)(struct mp_member *m, uint64_t offset, uint64_t length);    /* give them back */
    int (*populate)(struct mp_member *m, void *address, uint64_t length);   /* back table pages */
    int (*lock_slot)(struct mp_member *m, uint32_t slot);                   /* 0, EAGAIN or errno */
    void (*unlock_slot)(struct mp_member *m, uint32_t slot);
    uint32_t (*slot_locked)(struct mp_member *m, uint32_t slot);            /* MP_LOCK_* of anybody, us included */
    bool (*process_alive)(struct mp_member *m, uint32_t pid, uint64_t start_time); /* and still has the table open */
    int (*wait)(_Atomic uint32_t *word, uint32_t seen, int64_t slice_ns);   /* futex */
    void (*wake)(_Atomic uint32_t *word);
    uint64_t (*boottime)(void);                                             /* ns */
} mp_system;

extern const mp_system mp_linux;

uint64_t mp_start_time(uint32_t pid); /* 0 when there is no such process */
bool mp_dies_unnoticed(void); /* with a mutex in hand, this thread: the system would tell nobody */

#endif
