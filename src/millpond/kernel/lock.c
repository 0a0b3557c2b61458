/* The store's mutex, and the event word on which members sleep.
 *
 * Invariants: under the mutex nobody does I/O, calls Python, allocates or touches memory that
 * is not backed; holds are short. A dead owner is repaired by whoever comes next. A stopped
 * owner costs the others an error, never a hang.
 */
#define _GNU_SOURCE
#include <errno.h>

#include "failpoint.h"
#include "kernel.h"

#define SPIN_NS 2000
#define SLEEP_NS 20000000

static int64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Asleep only for a moment at a time: whoever frees the mutex wakes one of those who wait. If that one is killed before
 * it has the mutex, and somebody who did not wait takes it in between, nobody knows of the others any more. */
static int wait_for_mutex(pthread_mutex_t *mutex, int64_t timeout_ns) {
    int64_t start = monotonic_ns(), spin = timeout_ns < SPIN_NS ? timeout_ns : SPIN_NS;
    int rc;
    do {
        for (int i = 0; i < 32; i++)
            if ((rc = pthread_mutex_trylock(mutex)) != EBUSY) return rc;
    } while (monotonic_ns() - start < spin);
    int64_t until = start + timeout_ns, wake;
    do {
        wake = monotonic_ns() + SLEEP_NS;
        if (wake > until) wake = until;
        struct timespec deadline = {wake / 1000000000, wake % 1000000000};
        rc = pthread_mutex_clocklock(mutex, CLOCK_MONOTONIC, &deadline);
    } while (rc == ETIMEDOUT && wake < until);
    return rc;
}

/* The owner died inside: every cache may be half-written, the entries are not (they change by
 * one store of the control word), so everything else is rebuilt from them. */
static mp_code repair(mp_member *m) {
    m->header->recoveries++;
    MP_FAILPOINT("lock.repair");
    mp_code code = atomic_load(&m->header->poisoned) ? MP_CORRUPTED : mp_rebuild(m);
    pthread_mutex_consistent(&m->header->mutex);
    if (code == MP_OK) return MP_OK;
    atomic_store(&m->header->poisoned, 1);
    mp_unlock(m);
    return MP_CORRUPTED;
}

mp_code mp_lock(mp_member *m, int64_t timeout_ns) {
    mp_header *h = m->header;
    int rc = pthread_mutex_trylock(&h->mutex);
    if (rc == EBUSY) rc = wait_for_mutex(&h->mutex, timeout_ns < 0 ? m->patience_ns : timeout_ns);
    if (rc == 0 || rc == EOWNERDEAD) {
        atomic_store_explicit(&h->mutex_slot, m->slot + 1, memory_order_relaxed);
        MP_FAILPOINT("lock.taken");
        if (rc == EOWNERDEAD) return repair(m);
        if (!atomic_load_explicit(&h->poisoned, memory_order_relaxed)) return MP_OK;
        mp_unlock(m);
        return MP_CORRUPTED;
    }
    if (rc != ETIMEDOUT) return MP_CORRUPTED;
    uint32_t owner = atomic_load_explicit(&h->mutex_slot, memory_order_relaxed);
    m->busy_pid = owner && owner <= MP_SLOTS ? atomic_load(&m->slots[owner - 1].pid) : 0;
    return MP_BUSY;
}

mp_code mp_lock_own(mp_member *m) {
    mp_code code = mp_lock(m, -1);
    if (code == MP_OK && !mp_owns_slot(m)) {
        mp_unlock(m);
        code = MP_CLOSED;
    }
    return code;
}

void mp_unlock(mp_member *m) {
    MP_FAILPOINT("lock.unlock");
    atomic_store_explicit(&m->header->mutex_slot, 0, memory_order_relaxed);
    pthread_mutex_unlock(&m->header->mutex);
}

/* PAIR event: the waiter counts itself, then sleeps only if the word is unchanged; the waker
 * changes the word, then looks for waiters. Both are seq_cst, so one sees the other. A waiter
 * that is killed leaves the count too high: that costs a system call, nothing else. */
uint32_t mp_event(mp_member *m) { return atomic_load(&m->header->event); }

void mp_event_wait(mp_member *m, uint32_t seen, int64_t slice_ns) {
    atomic_fetch_add(&m->header->waiters, 1);
    if (atomic_load(&m->header->event) == seen) m->system->wait(&m->header->event, seen, slice_ns);
    atomic_fetch_sub(&m->header->waiters, 1);
}

void mp_event_bump(mp_member *m) {
    atomic_fetch_add(&m->header->event, 1);
    if (atomic_load(&m->header->waiters)) m->system->wake(&m->header->event);
}
