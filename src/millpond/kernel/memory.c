/* Commitment and limits: the steps that need system calls between two holds of the mutex.
 *
 * Invariant: blocks are marked in the commit map before the system call and published after it,
 * so a survivor of a crash in between finds them and punches them.
 */
#include "failpoint.h"
#include "kernel.h"

mp_code mp_grown(mp_member *m, mp_run run, uint64_t borrowed, bool ok) {
    mp_code code = mp_lock_own(m);
    enum mp_unfinished_kind kind = ok ? MP_GROWN : MP_NOT_GROWN;
    if (code == MP_BUSY) mp_put_off(m, (mp_unfinished){.kind = kind, .run = run, .number = borrowed});
    if (code != MP_OK) return code;
    bool punch = mp_arena_grown(m, run, ok) && !ok;
    if (!punch) mp_queue_return(m, borrowed);
    mp_unlock(m);
    return punch ? mp_punch(m, run, borrowed) : MP_OK;
}

mp_code mp_grow(mp_member *m, uint64_t size) {
    for (;;) {
        mp_run run;
        mp_code code = mp_pool_ensure(m, &m->header->pool_spans, 8);
        if (code == MP_OK) code = mp_lock_own(m);
        if (code != MP_OK) return code;
        code = mp_arena_plan_grow(m, size, &run);
        uint64_t borrowed = code == MP_OK ? mp_queue_borrow(m, (uint64_t)run.blocks * MP_BLOCK) : 0;
        mp_unlock(m);
        if (code == MP_POOL_FULL) continue;
        if (code != MP_OK) return code;
        MP_FAILPOINT("grow.planned");
        int error = mp_arena_commit(m, run);
        MP_FAILPOINT("grow.committed");
        code = mp_grown(m, run, borrowed, error == 0);
        m->error = error;
        return code == MP_OK && error ? MP_SYSTEM : code;
    }
}

/* What the system refuses to punch stays PUNCHING under our slot, and is tried again as well. */
mp_code mp_punch(mp_member *m, mp_run run, uint64_t borrowed) {
    mp_code code = mp_arena_punch(m, run) == 0 ? MP_OK : MP_SYSTEM;
    MP_FAILPOINT("shrink.punched");
    if (code == MP_OK) code = mp_lock_own(m);
    if (code == MP_BUSY || code == MP_SYSTEM)
        mp_put_off(m, (mp_unfinished){.kind = MP_PUNCH, .run = run, .number = borrowed});
    if (code != MP_OK) return code;
    mp_arena_punched(m, run);
    mp_queue_return(m, borrowed);
    mp_unlock(m);
    return MP_OK;
}

uint64_t mp_shrink(mp_member *m, uint64_t bytes) {
    uint64_t given = 0;
    while (given < bytes) {
        mp_run run;
        uint64_t blocks = (bytes - given + MP_BLOCK - 1) / MP_BLOCK;
        if (mp_pool_ensure(m, &m->header->pool_spans, 8) != MP_OK || mp_lock_own(m) != MP_OK) break;
        bool found = mp_arena_plan_punch(m, blocks > 1024 ? 1024 : (uint32_t)blocks, &run);
        uint64_t borrowed = found ? mp_queue_borrow(m, (uint64_t)run.blocks * MP_BLOCK) : 0;
        mp_unlock(m);
        if (!found) break;
        MP_FAILPOINT("shrink.planned");
        if (mp_punch(m, run, borrowed) != MP_OK) break;
        given += (uint64_t)run.blocks * MP_BLOCK;
    }
    return given;
}

bool mp_fits(mp_member *m, uint64_t size) {
    if (mp_lock(m, -1) != MP_OK) return false;
    bool fits = mp_arena_fits(m, size);
    mp_unlock(m);
    return fits;
}

uint64_t mp_idle_bytes(mp_member *m) {
    if (mp_lock(m, -1) != MP_OK) return 0;
    uint64_t pages = atomic_load(&m->header->free_pages);
    uint64_t low = atomic_exchange(&m->header->free_pages_low, pages);
    mp_unlock(m);
    return (low < pages ? low : pages) * MP_PAGE;
}

bool mp_take_turn(mp_member *m, enum mp_chore chore, uint64_t interval_ns) {
    uint64_t now = m->system->boottime(), last = atomic_load(&m->header->turns[chore]);
    bool ours = (last & 255u) == m->slot;
    if (now - (last & ~255ull) < (ours ? interval_ns : 2 * interval_ns)) return false;
    return atomic_compare_exchange_strong(&m->header->turns[chore], &last, (now & ~255ull) | m->slot);
}

void mp_set_limits(mp_member *m, const uint64_t *memory, const uint64_t *spill, const uint64_t *overflow) {
    if (memory) atomic_store(&m->header->memory_limit, *memory);
    if (spill) atomic_store(&m->header->spill_limit, *spill);
    if (overflow) atomic_store(&m->header->overflow_limit, *overflow);
    mp_event_bump(m);
}
