/* Who uses an object: pins (lock-free), holders and hand-offs (under the mutex).
 *
 * Invariants: one bit per member and object is shared; how often a member uses an object is
 * its private count. A bit is set while the count is above zero. Private counts move between
 * zero and one only under a private mutex, above zero by CAS.
 * Lock order: refs_mutex -> store mutex; pins_mutex is a leaf.
 */
#define _GNU_SOURCE
#include "failpoint.h"
#include "kernel.h"

#define QUICK_NS 50000

#define BURY_NS 1000000

#define TOKENS_STEP 4096u /* hand-offs looked at in one hold of the mutex */

/* --- pins --- */

void mp_pin(mp_member *m, uint32_t entry, uint64_t unit) {
    _Atomic uint64_t *pins = &m->locals[entry].pins;
    uint64_t count = atomic_load_explicit(pins, memory_order_acquire);
    while (count != 0) /* the bit is set, and stays so while we raise the count */
        if (atomic_compare_exchange_weak_explicit(pins, &count, count + unit, memory_order_acq_rel, memory_order_acquire))
            return;
    pthread_mutex_lock(&m->pins_mutex);
    if (atomic_load_explicit(pins, memory_order_relaxed) == 0) {
        atomic_fetch_or(mp_pin_word(&m->entries[entry], m->slot), mp_bit(m->slot)); /* PAIR pin-evict */
        MP_FAILPOINT("pin.bit");
        atomic_store_explicit(pins, unit, memory_order_release); /* nobody else may leave zero while we have the mutex */
    } else
        atomic_fetch_add_explicit(pins, unit, memory_order_acq_rel);
    pthread_mutex_unlock(&m->pins_mutex);
}

static void bury_unpinned(mp_member *m, uint32_t entry) {
    MP_FAILPOINT("unpin.dead");
    if (mp_lock(m, BURY_NS) != MP_OK) { /* a destructor must not wait long */
        atomic_store(&m->header->unburied, 1); /* the janitor's scan will find it */
        return;
    }
    mp_bury(m, entry);
    mp_unlock(m);
    mp_undertake(m);
}

void mp_unpin(mp_member *m, uint32_t entry, uint64_t unit) {
    _Atomic uint64_t *pins = &m->locals[entry].pins;
    uint64_t count = atomic_load_explicit(pins, memory_order_acquire);
    /* an operation that began before a fork is not the child's to end */
    if ((unit == MP_ONE_OP ? count >> 32 : count & UINT32_MAX) == 0) return;
    while (count != unit)
        if (atomic_compare_exchange_weak_explicit(pins, &count, count - unit, memory_order_acq_rel, memory_order_acquire))
            return;
    bool last = false;
    pthread_mutex_lock(&m->pins_mutex);
    if (atomic_fetch_sub_explicit(pins, unit, memory_order_acq_rel) == unit) {
        MP_FAILPOINT("unpin.count");
        last = mp_owns_slot(m); /* else its bits are gone, or those of all orphans */
        if (last) /* PAIR unpin-delete */
            atomic_fetch_and(mp_pin_word(&m->entries[entry], m->slot), ~mp_bit(m->slot));
    }
    pthread_mutex_unlock(&m->pins_mutex);
    MP_FAILPOINT("unpin.bit");
    /* PAIR unpin-delete: delete stores DEAD, then reads the pins; we clear the pin, then read
     * the state. All seq_cst: at least one of us sees the other and buries. */
    if (last && mp_is_dead(mp_state_of(atomic_load(&m->entries[entry].control)))) bury_unpinned(m, entry);
}

static mp_code reason(uint64_t control, uint64_t birth) {
    if (mp_birth_of(control) != birth) return MP_NOT_FOUND;
    switch (mp_state_of(control)) {
    case MP_RESIDENT: return MP_OK;
    case MP_DRAFT: return MP_IS_DRAFT;
    case MP_EVICTING:
    case MP_SPILLED: return MP_IS_SPILLED;
    case MP_RESTORING: return MP_IS_RESTORING;
    case MP_DELETED: return MP_IS_DELETED;
    case MP_LOST: return MP_IS_LOST;
    case MP_ABANDONED: return MP_IS_ABANDONED;
    default: return MP_NOT_FOUND;
    }
}

/* PAIR pin-evict: set the pin, then load control; eviction stores EVICTING, then reads the
 * pins. Both sides seq_cst: either we see EVICTING or it sees our pin. Offset and size are read
 * after control: the set pin has frozen them. PAIR seal: so is the value. */
mp_code mp_view(mp_member *m, uint32_t entry, uint64_t birth, uint64_t *offset, uint64_t *size) {
    mp_entry *e = &m->entries[entry];
    mp_pin(m, entry, MP_ONE_VIEW);
    uint64_t control = atomic_load(&e->control);
    if (control != mp_word(birth, MP_RESIDENT)) {
        mp_unpin(m, entry, MP_ONE_VIEW);
        return reason(control, birth) == MP_OK ? MP_IS_SPILLED : reason(control, birth);
    }
    *offset = atomic_load_explicit(&e->offset, memory_order_relaxed);
    *size = atomic_load_explicit(&e->size, memory_order_relaxed);
    uint64_t seen = atomic_load_explicit(&e->stamp, memory_order_relaxed);
    atomic_store_explicit(&e->stamp, mp_stamp_read(seen, mp_ticks()), memory_order_relaxed);
    return MP_OK;
}

mp_code mp_state(mp_member *m, uint32_t entry, uint64_t birth) {
    if (entry == 0 || entry >= m->geometry.entries) return MP_NOT_FOUND;
    return reason(atomic_load(&m->entries[entry].control), birth);
}

/* --- holders --- */

static bool entry_backed(mp_member *m, uint32_t entry) {
    return entry != 0 && entry < m->geometry.entries && entry < atomic_load(&m->header->pool_entries.high);
}

/* refs_mutex and store mutex held */
static mp_code hold_locked(mp_member *m, uint32_t entry, uint64_t birth) {
    mp_entry *e = &m->entries[entry];
    uint64_t control = atomic_load(&e->control);
    if (mp_birth_of(control) != birth || mp_state_of(control) == MP_FREE || mp_state_of(control) == MP_GARBAGE)
        return MP_NOT_FOUND;
    atomic_fetch_or(mp_holder_word(e, m->slot), mp_bit(m->slot));
    MP_FAILPOINT("hold.bit");
    atomic_fetch_add(&m->locals[entry].refs, 1);
    return MP_OK;
}

mp_code mp_hold(mp_member *m, uint32_t entry, uint64_t birth) {
    if (!entry_backed(m, entry)) return MP_NOT_FOUND;
    _Atomic uint32_t *refs = &m->locals[entry].refs;
    uint32_t count = atomic_load(refs);
    while (count != 0)
        if (atomic_compare_exchange_weak(refs, &count, count + 1)) {
            if (mp_birth_of(atomic_load(&m->entries[entry].control)) == birth) return MP_OK;
            if (mp_drop(m, entry, -1) != MP_OK) mp_drop_later(m, entry);
            return MP_NOT_FOUND;
        }
    pthread_mutex_lock(&m->refs_mutex);
    mp_code code = mp_lock_own(m);
    if (code == MP_OK) {
        code = hold_locked(m, entry, birth);
        mp_unlock(m);
    }
    pthread_mutex_unlock(&m->refs_mutex);
    return code;
}

/* The last local ref: our bit goes, and with it perhaps the object. Both mutexes held. */
static void let_go(mp_member *m, uint32_t entry) {
    if (!mp_owns_slot(m)) return;
    mp_entry *e = &m->entries[entry];
    atomic_fetch_and(mp_holder_word(e, m->slot), ~mp_bit(m->slot));
    MP_FAILPOINT("drop.bit");
    mp_collect(m, entry);
}

/* Whoever has refs_mutex may be waiting for the store's: a caller in a hurry waits long for neither. */
static bool lock_refs(mp_member *m, int64_t timeout_ns) {
    if (timeout_ns < 0) return pthread_mutex_lock(&m->refs_mutex) == 0;
    if (pthread_mutex_trylock(&m->refs_mutex) == 0) return true;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    int64_t ns = until.tv_nsec + timeout_ns;
    until.tv_sec += ns / 1000000000;
    until.tv_nsec = ns % 1000000000;
    return pthread_mutex_clocklock(&m->refs_mutex, CLOCK_MONOTONIC, &until) == 0;
}

mp_code mp_drop(mp_member *m, uint32_t entry, int64_t timeout_ns) {
    _Atomic uint32_t *refs = &m->locals[entry].refs;
    uint32_t count = atomic_load(refs);
    while (count > 1)
        if (atomic_compare_exchange_weak(refs, &count, count - 1)) return MP_OK;
    mp_code code = MP_OK;
    if (!lock_refs(m, timeout_ns)) return MP_BUSY;
    count = atomic_load(refs);
    while (count > 1 && !atomic_compare_exchange_weak(refs, &count, count - 1)) continue;
    if (count == 1 && (code = mp_lock(m, timeout_ns)) == MP_OK) {
        /* a concurrent mp_hold may have raised it: then the bit stays */
        if (atomic_fetch_sub(refs, 1) == 1) let_go(m, entry);
        mp_unlock(m);
    }
    pthread_mutex_unlock(&m->refs_mutex);
    return code;
}

void mp_drop_later(mp_member *m, uint32_t entry) {
    mp_local *local = &m->locals[entry];
    pthread_mutex_lock(&m->refs_mutex);
    uint32_t count = atomic_load(&local->refs);
    while (count > 1 && !atomic_compare_exchange_weak(&local->refs, &count, count - 1)) continue;
    if (count == 1) { /* keep the last one, on the list; a load meanwhile makes it two */
        local->deferred = atomic_load(&m->deferred);
        atomic_store(&m->deferred, entry + 1);
    }
    pthread_mutex_unlock(&m->refs_mutex);
}

/* The first put-off decrement, off the list; 0 if there is none. */
static uint32_t take_deferred(mp_member *m) {
    pthread_mutex_lock(&m->refs_mutex);
    uint32_t head = atomic_load(&m->deferred);
    if (head != 0) atomic_store(&m->deferred, m->locals[head - 1].deferred);
    pthread_mutex_unlock(&m->refs_mutex);
    return head;
}

static uint32_t drain(mp_member *m, int64_t timeout_ns) {
    for (uint32_t head; (head = take_deferred(m)) != 0;) {
        if (mp_drop(m, head - 1, timeout_ns) == MP_OK) continue;
        mp_drop_later(m, head - 1);
        return 1; /* behind a stopped holder one wait is enough */
    }
    mp_undertake(m);
    return 0;
}

uint32_t mp_drain(mp_member *m) { return drain(m, -1); }
uint32_t mp_drain_quickly(mp_member *m) { return drain(m, QUICK_NS); }

/* Our own draft will not be sealed any more. One without a pin is being filled by a put of another thread:
 * its memory must not go to anybody else before our slot does. Both mutexes held. */
static void let_all_go(mp_member *m, uint32_t entry) {
    mp_entry *e = &m->entries[entry];
    uint64_t control = atomic_load(&e->control);
    bool draft = mp_owns_slot(m) && mp_state_of(control) == MP_DRAFT && e->owner == m->slot;
    if (draft && atomic_load(&m->locals[entry].pins) == 0) return;
    if (draft) mp_leave(m, e, control, MP_ABANDONED);
    if (atomic_exchange(&m->locals[entry].refs, 0) != 0) let_go(m, entry);
}

void mp_drop_all(mp_member *m) {
    uint32_t high = atomic_load(&m->header->pool_entries.high);
    mp_code code = MP_OK; /* what is left behind a stopped holder goes when our slot is reaped */
    for (uint32_t entry = 1; code == MP_OK && entry < high && entry < m->geometry.entries; entry++) {
        if (atomic_load(&m->locals[entry].refs) == 0) continue;
        pthread_mutex_lock(&m->refs_mutex);
        if ((code = mp_lock(m, -1)) == MP_OK) {
            let_all_go(m, entry);
            mp_unlock(m);
        }
        pthread_mutex_unlock(&m->refs_mutex);
    }
    atomic_store(&m->deferred, 0);
    mp_undertake(m);
}

/* --- hand-offs --- */

static void token_free(mp_member *m, uint32_t index) {
    mp_token *t = &m->tokens[index];
    atomic_store(&t->nonce, 0);
    MP_FAILPOINT("token.freed");
    uint32_t entry = t->entry;
    mp_pool_give(m, &m->header->pool_tokens, index);
    if (entry == 0 || entry >= m->geometry.entries) return;
    if (m->entries[entry].tokens) m->entries[entry].tokens--;
    mp_collect(m, entry);
}

mp_code mp_token_issue(mp_member *m, uint32_t entry, uint64_t birth, uint32_t deliveries, uint64_t expiry,
                       uint64_t nonce, uint32_t *token) {
    mp_pool *pool = &m->header->pool_tokens;
    uint64_t issued = m->system->boottime();
    for (;;) {
        mp_code code = mp_pool_ensure(m, pool, 1);
        if (code == MP_OK) code = mp_lock(m, -1);
        if (code != MP_OK) return code;
        uint64_t control = atomic_load(&m->entries[entry].control);
        if (mp_birth_of(control) != birth || mp_state_of(control) == MP_FREE) code = MP_NOT_FOUND;
        uint32_t index = code == MP_OK ? mp_pool_take(m, pool) : 0;
        if (index != 0) {
            mp_token *t = &m->tokens[index];
            t->birth = birth;
            t->expiry = expiry;
            t->issued = issued;
            t->entry = entry;
            t->deliveries = deliveries;
            t->issuer_pid = atomic_load(&m->slots[m->slot].pid);
            MP_FAILPOINT("token.filled");
            atomic_store(&t->nonce, nonce);
            m->entries[entry].tokens++;
            MP_FAILPOINT("token.issued");
            *token = index;
        }
        mp_unlock(m);
        if (code != MP_OK || index != 0) return code;
    }
}

static bool token_is(mp_member *m, uint32_t token, uint64_t nonce) {
    return nonce != 0 && token != 0 && token < m->geometry.tokens && token < atomic_load(&m->header->pool_tokens.high) &&
           atomic_load(&m->tokens[token].nonce) == nonce;
}

mp_code mp_token_load(mp_member *m, uint32_t token, uint64_t nonce, uint32_t entry, uint64_t birth) {
    if (!entry_backed(m, entry)) return MP_NOT_FOUND;
    pthread_mutex_lock(&m->refs_mutex);
    mp_code code = mp_lock_own(m);
    if (code == MP_OK) {
        code = hold_locked(m, entry, birth); /* hold first: a kill before the next line only delays release */
        if (code == MP_OK && token_is(m, token, nonce) && m->tokens[token].entry == entry) {
            MP_FAILPOINT("token.held");
            if (m->tokens[token].deliveries > 1)
                m->tokens[token].deliveries--;
            else
                token_free(m, token);
        }
        mp_unlock(m);
    }
    pthread_mutex_unlock(&m->refs_mutex);
    mp_undertake(m);
    return code;
}

static bool has_lapsed(const mp_token *t, uint64_t now) { return t->expiry != 0 && t->expiry <= now; }
static bool is_of(const mp_token *t, uint64_t family) { return atomic_load(&t->nonce) >> MP_FAMILY_SHIFT == family; }

/* Ends those that it is true of. */
static mp_code end_tokens(mp_member *m, bool (*ends)(const mp_token *, uint64_t), uint64_t number, uint32_t *ended) {
    mp_code code = MP_OK;
    for (uint32_t cursor = 1, high = 2; cursor < high && atomic_load(&m->header->pool_tokens.used) > 1;) {
        if ((code = mp_lock(m, -1)) != MP_OK) break;
        high = mp_tokens_backed(m);
        for (uint32_t stop = cursor + TOKENS_STEP; cursor < high && cursor < stop; cursor++) {
            if (!atomic_load(&m->tokens[cursor].nonce) || !ends(&m->tokens[cursor], number)) continue;
            token_free(m, cursor);
            ++*ended;
        }
        mp_unlock(m);
    }
    mp_undertake(m);
    return code;
}

mp_code mp_token_withdraw(mp_member *m, uint64_t family) {
    uint32_t ended = 0;
    mp_code code = end_tokens(m, is_of, family, &ended);
    if (code == MP_BUSY) mp_put_off(m, (mp_unfinished){.kind = MP_HAND_OFFS, .number = family});
    return code;
}

uint32_t mp_token_expire(mp_member *m, uint64_t now) {
    uint32_t ended = 0;
    (void)end_tokens(m, has_lapsed, now, &ended);
    return ended;
}
