/* What a call of ours could not end because a stopped process held the mutex: the rest is done later.
 *
 * Growing, punching, a restore that failed, a segment that is to be closed, a place in the queue: each of them
 * is marked as this member's in the table, so nobody else may end it while this member lives; and of hand-offs that
 * are to be withdrawn nobody else knows. A call that meets a stopped holder gives up after a while. Its rest is put
 * off here, and `mp_finish` (which the janitor's reaping and a member's leaving begin with) does it once the mutex is to be had.
 * Invariants: the list is private and bounded; what it has no room for is left until the member ends, when
 * it is reaped like anything of the dead. A forked child drops it: the marks are its parent's.
 * Not here: decrements of refs and burials, which are put off in ways of their own (refs.c).
 */
#include "failpoint.h"
#include "kernel.h"

void mp_put_off(mp_member *m, mp_unfinished what) {
    pthread_mutex_lock(&m->pins_mutex); /* a leaf, held over a fork */
    uint32_t count = atomic_load(&m->unfinished_count);
    if (count < MP_UNFINISHED_MAX) {
        m->unfinished[count] = what;
        atomic_store(&m->unfinished_count, count + 1);
    }
    pthread_mutex_unlock(&m->pins_mutex);
}

/* The oldest: one that fails again goes to the end, and does not keep the others waiting. */
static bool take(mp_member *m, mp_unfinished *what) {
    pthread_mutex_lock(&m->pins_mutex);
    uint32_t count = atomic_load(&m->unfinished_count);
    if (count) {
        *what = m->unfinished[0];
        memmove(m->unfinished, m->unfinished + 1, (count - 1) * sizeof *what);
        atomic_store(&m->unfinished_count, count - 1);
    }
    pthread_mutex_unlock(&m->pins_mutex);
    MP_FAILPOINT("unfinished.taken");
    return count != 0;
}

/* Each of these puts itself off again behind a stopped holder. */
static mp_code finish(mp_member *m, const mp_unfinished *what) {
    switch (what->kind) {
    case MP_GROWN: return mp_grown(m, what->run, what->number, true);
    case MP_NOT_GROWN: return mp_grown(m, what->run, what->number, false);
    case MP_PUNCH: return mp_punch(m, what->run, what->number);
    case MP_NOT_RESTORED: return mp_restore_end(m, what->item, what->number, MP_SPILLED);
    case MP_FOUND_LOST: return mp_restore_end(m, what->item, what->number, MP_LOST);
    case MP_SEGMENT_FULL: return mp_segment_end(m, what->item, what->number);
    case MP_HAND_OFFS: return mp_token_withdraw(m, what->number);
    default: return mp_queue_leave(m, what->number);
    }
}

mp_code mp_finish(mp_member *m) {
    mp_unfinished what;
    for (uint32_t left = atomic_load(&m->unfinished_count); left != 0 && take(m, &what); left--) {
        mp_code code = finish(m, &what);
        if (code == MP_BUSY) return code;
    }
    return MP_OK;
}
