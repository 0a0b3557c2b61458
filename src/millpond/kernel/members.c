/* Member slots: claiming, liveness, and taking apart what a dead member left.
 *
 * Invariants: a byte lock is taken before its slot is marked and freed by the OS after the
 * last thread of its process is gone, so "byte lock free" proves that nobody writes for that
 * slot any more. Reaping is idempotent: any member may do it, two at a time, again after a
 * crash; the slot becomes FREE last.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "failpoint.h"
#include "kernel.h"

#define SCAN_STEP 2048u /* entries looked at, and perhaps freed, in one hold of the mutex */

static uint64_t slot_word(uint64_t generation, enum mp_slot_state state) { return generation << 8 | state; }

typedef struct identity {
    uint64_t start_time;
    uint32_t pid;
    char command[sizeof((mp_slot *)0)->command];
} identity;

/* System calls: before the mutex is taken. */
static identity identify(void) {
    identity self = {.pid = (uint32_t)getpid()};
    self.start_time = mp_start_time(self.pid);
    int fd = open("/proc/self/comm", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, self.command, sizeof self.command - 1);
    if (fd >= 0) close(fd);
    self.command[n > 0 ? n - 1 : 0] = 0;
    return self;
}

/* All but the pid. */
static void sign(mp_slot *slot, const identity *self) {
    atomic_store(&slot->start_time, self->start_time);
    atomic_store(&slot->overflow_bytes, 0);
    memcpy(slot->command, self->command, sizeof slot->command);
}

bool mp_slot_change(mp_member *m, uint32_t index, uint64_t word, enum mp_slot_state state) {
    MP_FAILPOINT("slot.mark");
    return atomic_compare_exchange_strong(&m->slots[index].word, &word, slot_word((word >> 8) + 1, state));
}

void mp_slot_mark(mp_member *m, uint32_t index, enum mp_slot_state state) {
    (void)mp_slot_change(m, index, atomic_load(&m->slots[index].word), state);
}

/* The pid comes last: until then a slot without a lock is MP_PID_UNSEEN, and from then on all of it is ours. */
void mp_slot_adopt(mp_member *m, uint32_t index) {
    identity self = identify();
    sign(&m->slots[index], &self);
    mp_slot_mark(m, index, MP_SLOT_LIVE);
    atomic_store(&m->slots[index].pid, self.pid);
}

/* From here on we alone reap that slot. Whoever has begun to could not tell the blocks that we punch,
 * which carry the slot's number, from those of the dead: it would give them back, and they would be in use
 * when we punch. */
static mp_code take_over(mp_member *m, uint32_t index, uint64_t *word) {
    mp_code code = mp_lock(m, -1);
    if (code != MP_OK) return code;
    uint64_t now = atomic_load(&m->slots[index].word);
    if (mp_slot_state_of(now) != MP_SLOT_FREE && now >> 8 != *word >> 8) code = MP_NO_SLOT; /* a fork's, since somebody freed it */
    else if (mp_slot_state_of(now) != MP_SLOT_FREE) mp_slot_mark(m, index, MP_SLOT_REAPING);
    m->slot_word = *word = atomic_load(&m->slots[index].word);
    mp_unlock(m);
    return code;
}

/* Whether a process stands behind this word of a slot that nobody has locked. */
static bool has_process(mp_member *m, uint32_t index, uint64_t word) {
    if (index >= MP_SLOT_ORPHANS) return mp_slot_state_of(word) == MP_SLOT_KEPT;
    mp_slot *slot = &m->slots[index];
    uint32_t pid = atomic_load(&slot->pid); /* before the start time, which is written before it */
    if (pid == MP_PID_UNSEEN) return true; /* perhaps there is a child, and nothing but this keeps what it reads */
    if (atomic_load(&slot->word) != word) return true; /* it has come meanwhile, and has put its pid there */
    if (mp_slot_state_of(word) != MP_SLOT_LIVE) return false; /* a reserved slot has none yet */
    return m->system->process_alive(m, pid, atomic_load(&slot->start_time));
}

/* The byte lock of this slot is ours: clear away a dead predecessor, then stand in it. */
static mp_code claim_locked(mp_member *m, uint32_t index) {
    mp_slot *slot = &m->slots[index];
    uint64_t word = atomic_load(&slot->word);
    mp_code code = MP_OK;
    m->slot = index;
    if (mp_slot_state_of(word) != MP_SLOT_FREE) {
        if ((m->system->slot_locked(m, index) & MP_LOCK_BIRTH) || has_process(m, index, word)) return MP_NO_SLOT;
        code = take_over(m, index, &word);
        if (code == MP_OK && mp_slot_state_of(word) != MP_SLOT_FREE) code = mp_reap(m, index, word);
    }
    identity self = identify();
    if (code == MP_OK) code = mp_lock(m, -1);
    if (code != MP_OK) return code;
    if (mp_slot_state_of(atomic_load(&slot->word)) == MP_SLOT_FREE) { /* no fork has reserved it meanwhile */
        sign(slot, &self);
        atomic_store(&slot->pid, self.pid);
        mp_slot_mark(m, index, MP_SLOT_LIVE);
        m->slot_word = atomic_load(&slot->word);
    } else
        code = MP_NO_SLOT;
    mp_unlock(m);
    return code;
}

mp_code mp_claim_slot(mp_member *m) {
    m->error = m->system->populate(m, m->slots, MP_SLOTS * sizeof(mp_slot));
    if (m->error) return MP_SYSTEM;
    uint32_t pid = (uint32_t)getpid();
    for (uint32_t index = 0; index < MP_SLOT_ORPHANS; index++) {
        /* another member of this very process: our own lock would not conflict with its lock */
        if (mp_slot_state_of(atomic_load(&m->slots[index].word)) == MP_SLOT_LIVE && atomic_load(&m->slots[index].pid) == pid) continue;
        int rc = m->system->lock_slot(m, index);
        if (rc == EAGAIN) continue;
        if (rc != 0) {
            m->error = rc;
            return MP_SYSTEM;
        }
        MP_FAILPOINT("slot.locked");
        mp_code code = claim_locked(m, index);
        if (code == MP_OK) return MP_OK;
        m->system->unlock_slot(m, index);
        if (code != MP_NO_SLOT) return code;
    }
    return MP_NO_SLOT;
}

mp_code mp_usable(mp_member *m) {
    if (atomic_load_explicit(&m->state, memory_order_relaxed) != MP_MEMBER_OPEN || !atomic_load(m->wipe)) return MP_CLOSED;
    if (atomic_load_explicit(&m->header->poisoned, memory_order_relaxed)) return MP_CORRUPTED;
    return atomic_load(&m->slots[m->slot].word) == m->slot_word ? MP_OK : MP_CLOSED;
}

/* A stray close of the lock file by somebody else's code drops our byte lock: take it again. */
mp_code mp_guard_slot(mp_member *m) {
    mp_code code = mp_usable(m);
    if (code == MP_OK && !m->system->slot_locked(m, m->slot)) {
        if (m->system->lock_slot(m, m->slot) != 0) return MP_CLOSED;
        code = mp_usable(m); /* reaped in between? */
    }
    return code;
}

/* The word is read before the locks: a lock is taken before its word is marked, so an unlocked
 * slot means that the owner of this very word is gone. */
bool mp_slot_dead(mp_member *m, uint32_t index, uint64_t *word) {
    *word = atomic_load(&m->slots[index].word);
    if (mp_slot_state_of(*word) == MP_SLOT_FREE || m->system->slot_locked(m, index)) return false;
    return !has_process(m, index, *word);
}

/* What the dead owner of this entry was doing, and the bits it had. Mutex held. Bits go first and
 * in every state: a kill between a stale pin and its undo leaves one even on a FREE entry. */
static void reap_entry(mp_member *m, uint32_t index, uint32_t slot) {
    mp_entry *e = &m->entries[index];
    uint64_t control = atomic_load(&e->control), bit = mp_bit(slot);
    enum mp_state state = mp_state_of(control);
    if (atomic_load(mp_pin_word(e, slot)) & bit) atomic_fetch_and(mp_pin_word(e, slot), ~bit);
    if (state == MP_FREE) return;
    if (atomic_load(mp_holder_word(e, slot)) & bit) atomic_fetch_and(mp_holder_word(e, slot), ~bit);
    MP_FAILPOINT("reap.entry");
    if (e->owner == slot && state == MP_DRAFT) mp_leave(m, e, control, MP_ABANDONED);
    if (e->owner == slot && state == MP_RESTORING && mp_leave(m, e, control, MP_SPILLED)) {
        e->extent = 0;
        MP_FAILPOINT("reap.restore");
        mp_arena_free(m, atomic_load(&e->offset), atomic_load(&e->size), e->span);
    }
    mp_collect(m, index);
}

/* One hold of the mutex. MP_NOT_FOUND: the slot is not the one we set out to reap any more. */
static mp_code reap_step(mp_member *m, uint32_t slot, uint64_t word, uint32_t *cursor) {
    mp_code code = mp_lock(m, -1);
    if (code != MP_OK) return code;
    uint32_t high = mp_entries_backed(m), stop = high - *cursor > SCAN_STEP ? *cursor + SCAN_STEP : high;
    if (atomic_load(&m->slots[slot].word) != word)
        code = MP_NOT_FOUND;
    else
        while (*cursor < stop) reap_entry(m, (*cursor)++, slot);
    mp_unlock(m);
    return code;
}

static mp_code reap_segments(mp_member *m, uint32_t slot, uint64_t word) {
    uint32_t high = atomic_load(&m->header->pool_segments.high);
    mp_code code = MP_OK;
    for (uint32_t s = 1; code == MP_OK && s < high && s < m->geometry.segments; s++) {
        if (atomic_load(&m->segments[s].state) != MP_SEGMENT_OPEN || m->segments[s].owner != slot) continue;
        if ((code = mp_lock(m, -1)) != MP_OK) return code;
        if (atomic_load(&m->slots[slot].word) != word)
            code = MP_NOT_FOUND;
        else if (m->segments[s].owner == slot)
            mp_segment_retire(m, s);
        mp_unlock(m);
    }
    return code;
}

/* Blocks that the dead member was committing or punching: punched again by us, then NONE. */
static mp_code reap_blocks(mp_member *m, uint32_t slot, uint64_t word) {
    for (;;) {
        mp_run run;
        mp_code code = mp_lock(m, -1);
        if (code != MP_OK) return code;
        bool more = atomic_load(&m->slots[slot].word) == word && mp_arena_plan_reclaim(m, slot, &run);
        mp_unlock(m);
        if (!more) return MP_OK;
        MP_FAILPOINT("reap.blocks");
        if ((code = mp_punch(m, run, 0)) != MP_OK) return code; /* from here on the blocks are ours */
    }
}

/* Of the two slots of orphans one at a time: whoever comes without the mutex joins the other. */
static mp_code mark_reaping(mp_member *m, uint32_t slot, uint64_t *word) {
    mp_code code = mp_lock(m, -1);
    if (code != MP_OK) return code;
    uint64_t seen = *word, reaping = slot_word(seen >> 8, MP_SLOT_REAPING);
    bool later = slot >= MP_SLOT_ORPHANS && mp_slot_state_of(atomic_load(&m->slots[slot ^ 1].word)) == MP_SLOT_REAPING;
    if (later || !atomic_compare_exchange_strong(&m->slots[slot].word, &seen, reaping))
        code = MP_NOT_FOUND;
    else {
        *word = reaping;
        if (slot == m->slot) m->slot_word = reaping; /* it leaves, and punches blocks of its own */
        mp_queue_void(m, slot);
    }
    mp_unlock(m);
    return code;
}

static mp_code free_slot(mp_member *m, uint32_t slot, uint64_t word) {
    mp_code code = mp_lock(m, -1);
    if (code != MP_OK) return code;
    if (atomic_load(&m->slots[slot].word) == word) {
        atomic_store(&m->slots[slot].overflow_bytes, 0);
        atomic_store(&m->slots[slot].pid, 0);
        atomic_store(&m->slots[slot].word, slot_word(word >> 8, MP_SLOT_FREE));
    } /* one that is REAPING is changed by nobody without the mutex */
    mp_unlock(m);
    mp_event_bump(m); /* whoever waits for room or for a draft of the dead looks again */
    return MP_OK;
}

mp_code mp_reap(mp_member *m, uint32_t slot, uint64_t word) {
    mp_code code = mark_reaping(m, slot, &word);
    MP_FAILPOINT("reap.marked");
    for (uint32_t cursor = 1; code == MP_OK && cursor < mp_entries_backed(m);) code = reap_step(m, slot, word, &cursor);
    if (code == MP_OK) code = reap_segments(m, slot, word);
    if (code == MP_OK) code = reap_blocks(m, slot, word);
    MP_FAILPOINT("reap.done");
    mp_undertake(m);
    if (code == MP_OK) code = free_slot(m, slot, word);
    return code == MP_NOT_FOUND ? MP_OK : code; /* somebody else has finished it */
}

/* Entries that died while an unpin could not have the mutex. */
static void bury_rest(mp_member *m) {
    if (!atomic_exchange(&m->header->unburied, 0)) return;
    for (uint32_t cursor = 1; cursor < mp_entries_backed(m);) {
        if (mp_lock(m, -1) != MP_OK) {
            atomic_store(&m->header->unburied, 1);
            return;
        }
        uint32_t high = mp_entries_backed(m), stop = high - cursor > SCAN_STEP ? cursor + SCAN_STEP : high;
        while (cursor < stop) mp_collect(m, cursor++);
        mp_unlock(m);
    }
}

uint32_t mp_reap_dead(mp_member *m) {
    uint32_t reaped = 0;
    uint64_t word;
    if (mp_guard_slot(m) != MP_OK) return 0;
    mp_code code = mp_finish(m); /* behind a stopped holder one wait is enough */
    for (uint32_t slot = 0; slot < MP_SLOTS && code != MP_BUSY; slot++)
        if (slot != m->slot && mp_slot_dead(m, slot, &word) && (code = mp_reap(m, slot, word)) == MP_OK) reaped++;
    if (code != MP_BUSY) bury_rest(m);
    mp_undertake(m);
    return reaped;
}

void mp_release_slot(mp_member *m) {
    if (m->slot >= MP_SLOT_ORPHANS) return;
    mp_code code = mp_owns_slot(m) ? mp_finish(m) : MP_OK; /* what does not go with the slot */
    if (code != MP_BUSY) code = mp_reap(m, m->slot, m->slot_word); /* does nothing if somebody has reaped us */
    /* behind a stopped holder others will; this process may join again, which is no life in this slot */
    if (code != MP_OK && mp_owns_slot(m)) atomic_store(&m->slots[m->slot].pid, 0);
    m->system->unlock_slot(m, m->slot);
}
