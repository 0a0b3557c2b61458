/* Fork: the child has its own slot, with copies of its refs' and views' bits, before it runs.
 *
 * Order: refs_mutex; the store's mutex, to reserve a slot under a birth lock; then pins_mutex.
 * refs and pins stay locked over the fork, so the counts that the child copies are whole. The
 * child takes no mutex. Without a slot (all taken, or the mutex's holder is stopped) the child
 * shares a slot with other orphans: its views stay valid, every other call of it fails. Where the system
 * gives no lock, a mark in the slot keeps it until the child has put its pid there; a slot of orphans, until the store ends.
 * Everything here is safe after fork in a threaded process: system calls and plain memory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "failpoint.h"
#include "kernel.h"

#define PATIENCE_NS 1000000000ll /* at most: a fork must not take longer */
#define JOINS_MAX 1000u /* no table but a damaged one wants so many */

/* A fresh open file description, whose locks the child shares. One is kept in store: a process that is
 * out of descriptors must not leave its child without a lock. */
static int open_birth(mp_member *m) {
    if (m->spare_fd >= 0) {
        int spare = m->spare_fd;
        m->spare_fd = -1;
        return spare;
    }
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", m->birth_fd);
    return open(path, O_RDWR | O_CLOEXEC);
}

static bool lock_birth(int fd, uint32_t slot, short type) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = slot, .l_len = 1};
    return fd >= 0 && fcntl(fd, F_OFD_SETLK, &lock) == 0;
}

static bool is_free(mp_member *m, uint32_t slot) { return mp_slot_state_of(atomic_load(&m->slots[slot].word)) == MP_SLOT_FREE; }

static void mark_reserved(mp_member *m, uint32_t slot, uint32_t pid) {
    m->fork_slot = slot;
    atomic_store(&m->slots[slot].pid, pid);
    mp_slot_mark(m, slot, MP_SLOT_RESERVED);
}

/* The store's mutex is held. A slot that somebody locks just now is passed over. */
static bool reserve(mp_member *m) {
    for (uint32_t slot = 0; slot < MP_SLOT_ORPHANS; slot++) {
        if (!is_free(m, slot) || m->system->slot_locked(m, slot) || !lock_birth(m->fork_fd, slot, F_WRLCK)) continue;
        MP_FAILPOINT("fork.locked");
        mark_reserved(m, slot, 0);
        return true;
    }
    return false;
}

/* The system gives no lock, for want of a descriptor or of memory for locks. Then it is the mark that keeps the slot
 * until the child has put its pid there, by which it is known to live from then on. Who tries the slot's byte just
 * now has still to ask for the mutex, and will find the slot taken. Never reaped, if there will be no child. */
static bool reserve_unlocked(mp_member *m) {
    uint32_t slot = 0;
    while (slot < MP_SLOT_ORPHANS && !is_free(m, slot)) slot++;
    if (slot < MP_SLOT_ORPHANS) mark_reserved(m, slot, MP_PID_UNSEEN);
    return slot < MP_SLOT_ORPHANS;
}

/* Perhaps without the mutex, in the middle of whose hold somebody stands still who clears the bits of orphans that are
 * gone: it would clear those of ours as well when it goes on. So there are two such slots, of which one at most is being
 * reaped, and the word is changed only from what it was seen to be. A new generation stops whoever has judged the last.
 * Of an orphan without a lock nobody can tell when it ends: from then on what is viewed there stays until the store ends.
 * A lock that a failed try left would keep the bits of others for as long as this orphan lives. */
static bool join_orphans(mp_member *m, uint32_t slot, uint64_t word) {
    bool locked = lock_birth(m->fork_fd, slot, F_RDLCK), kept = !locked || mp_slot_state_of(word) == MP_SLOT_KEPT;
    if (mp_slot_change(m, slot, word, kept ? MP_SLOT_KEPT : MP_SLOT_LIVE)) return true;
    if (locked) lock_birth(m->fork_fd, slot, F_UNLCK);
    return false;
}

/* A try fails if the slot has begun to be reaped just then, or another orphan has come: that goes on. */
static void join_some_orphans(mp_member *m) {
    m->fork_slot = MP_SLOT_ORPHANS;
    for (uint32_t tries = 0; tries < JOINS_MAX; tries++) {
        uint64_t word = atomic_load(&m->slots[m->fork_slot].word);
        if (mp_slot_state_of(word) == MP_SLOT_REAPING) m->fork_slot ^= 1;
        else if (join_orphans(m, m->fork_slot, word)) return;
    }
}

static void copy_bits(mp_member *m) {
    uint32_t slot = m->fork_slot;
    for (uint32_t i = 1; i < mp_entries_backed(m); i++) {
        mp_local *local = &m->locals[i];
        if (atomic_load_explicit(&local->refs, memory_order_relaxed) && slot < MP_SLOT_ORPHANS)
            atomic_fetch_or(mp_holder_word(&m->entries[i], slot), mp_bit(slot));
        if ((uint32_t)atomic_load_explicit(&local->pins, memory_order_relaxed)) /* views, not operations */
            atomic_fetch_or(mp_pin_word(&m->entries[i], slot), mp_bit(slot));
    }
}

void mp_fork_prepare(mp_member *m) {
    pthread_mutex_lock(&m->refs_mutex);
    m->fork_fd = -1;
    bool open = atomic_load(&m->state) != MP_MEMBER_CLOSED && atomic_load(&m->state) != MP_MEMBER_ORPHAN;
    if (open) {
        m->fork_fd = open_birth(m);
        bool locked = mp_lock(m, m->patience_ns < PATIENCE_NS ? m->patience_ns : PATIENCE_NS) == MP_OK;
        bool reserved = locked && mp_owns_slot(m) && (reserve(m) || reserve_unlocked(m));
        if (!reserved) join_some_orphans(m);
        if (locked) mp_unlock(m);
    }
    pthread_mutex_lock(&m->pins_mutex);
    MP_FAILPOINT("fork.reserved");
    if (open) copy_bits(m);
    MP_FAILPOINT("fork.copied");
}

void mp_fork_parent(mp_member *m) {
    pthread_mutex_unlock(&m->pins_mutex);
    pthread_mutex_unlock(&m->refs_mutex);
    if (m->fork_fd >= 0) close(m->fork_fd);
    m->fork_fd = -1;
    mp_fork_ready(m);
}

void mp_fork_ready(mp_member *m) {
    if (m->spare_fd < 0) m->spare_fd = open_birth(m);
}

/* Views live on in the child; operations belonged to threads that it does not have. A thread without the
 * GIL may have added a view to an operation's pin after the bits were copied: a count needs its bit. */
static void keep_views(mp_member *m) {
    for (uint32_t i = 1; i < mp_entries_backed(m); i++) {
        uint64_t pins = atomic_load_explicit(&m->locals[i].pins, memory_order_relaxed);
        if (pins == 0) continue;
        atomic_store_explicit(&m->locals[i].pins, pins & UINT32_MAX, memory_order_relaxed);
        if ((uint32_t)pins) atomic_fetch_or(mp_pin_word(&m->entries[i], m->slot), mp_bit(m->slot));
    }
}

void mp_fork_child(mp_member *m) {
    pthread_mutex_init(&m->refs_mutex, NULL);
    pthread_mutex_init(&m->pins_mutex, NULL);
    bool adopts = atomic_load(&m->state) != MP_MEMBER_CLOSED && atomic_load(&m->state) != MP_MEMBER_ORPHAN;
    if (adopts) m->slot = m->fork_slot;
    m->queued = 0, m->queue_served = 0; /* whoever waits for room does so in the parent */
    atomic_store(&m->unfinished_count, 0); /* and ends what it has begun */
    keep_views(m);
    if (!adopts) return;
    atomic_store(m->wipe, 1);
    if (m->slot >= MP_SLOT_ORPHANS) {
        atomic_store(&m->state, MP_MEMBER_ORPHAN);
        return; /* fork_fd stays open: it is the orphan's life */
    }
    MP_FAILPOINT("fork.child");
    /* whoever claims a slot tries this byte for a moment, and lets go when it sees the slot reserved */
    const struct timespec moment = {0, 1000000};
    for (int tries = 0; m->system->lock_slot(m, m->slot) == EAGAIN && tries < 1000; tries++) nanosleep(&moment, NULL);
    mp_slot_adopt(m, m->slot);
    m->slot_word = atomic_load(&m->slots[m->slot].word);
    MP_FAILPOINT("fork.adopted");
    if (m->fork_fd >= 0) close(m->fork_fd);
    m->fork_fd = -1;
    mp_fork_ready(m);
}
