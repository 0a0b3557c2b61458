/* Edges: refs inside stored values keep their targets alive.
 *
 * Invariants: an edge is filled before it becomes the head of its container's chain, and leaves
 * the chain before it is freed, so the chains of containers that are not FREE are the truth;
 * counts and lists are caches. A dead container's edges go a bounded number in each hold of
 * the mutex, and without recursion: a target that dies of it joins the same list.
 */
#include "failpoint.h"
#include "kernel.h"

#define STEP 256u /* edges made or freed in one hold of the mutex */

static uint32_t edges_backed(mp_member *m) {
    uint32_t high = atomic_load(&m->header->pool_edges.high);
    return high < m->geometry.edges ? high : m->geometry.edges;
}

static bool target_there(mp_member *m, uint32_t target, uint64_t birth) {
    if (target == 0 || target >= m->geometry.entries || target >= atomic_load(&m->header->pool_entries.high)) return false;
    uint64_t control = atomic_load(&m->entries[target].control);
    return mp_state_of(control) != MP_FREE && mp_birth_of(control) == birth;
}

static mp_code add_edge(mp_member *m, mp_entry *container, uint32_t target, uint64_t birth) {
    if (!target_there(m, target, birth)) return MP_NOT_FOUND;
    uint32_t index = mp_pool_take(m, &m->header->pool_edges);
    if (index == 0) return MP_POOL_FULL;
    mp_edge *edge = &m->edges[index];
    edge->target = target;
    edge->birth = birth;
    edge->next = container->edges_out;
    MP_FAILPOINT("edge.filled");
    __atomic_store_n(&container->edges_out, index, __ATOMIC_RELEASE); /* from here on it is true */
    MP_FAILPOINT("edge.linked");
    m->entries[target].edges_in++;
    return MP_OK;
}

mp_code mp_contain(mp_member *m, uint32_t entry, uint64_t birth, const uint32_t *targets, const uint64_t *births,
                   uint32_t count) {
    mp_entry *e = &m->entries[entry];
    for (uint32_t done = 0; done < count;) {
        uint32_t piece = count - done < STEP ? count - done : STEP;
        mp_code code = mp_pool_ensure(m, &m->header->pool_edges, piece);
        if (code == MP_OK) code = mp_lock(m, -1);
        if (code != MP_OK) return code;
        if ((atomic_load(&e->control) & ~MP_WAIT_BIT) != mp_word(birth, MP_DRAFT)) code = MP_IS_DELETED;
        for (uint32_t end = done + piece; code == MP_OK && done < end;) {
            code = add_edge(m, e, targets[done], births[done]);
            if (code == MP_OK) done++;
        }
        mp_unlock(m);
        if (code != MP_OK && code != MP_POOL_FULL) return code;
    }
    return MP_OK;
}

bool mp_doom(mp_member *m, uint32_t entry) {
    mp_entry *e = &m->entries[entry];
    if (e->edges_out == 0 && !e->doomed) return false;
    if (!e->doomed) {
        e->doomed = 1;
        e->next = atomic_load(&m->header->doomed);
        atomic_store(&m->header->doomed, entry);
    }
    return true;
}

/* Takes the first edge off a dead container; its target may die of it. */
static void cut(mp_member *m, mp_entry *container) {
    uint32_t index = container->edges_out;
    if (index >= edges_backed(m)) { /* a damaged chain ends here */
        container->edges_out = 0;
        return;
    }
    mp_edge *edge = &m->edges[index];
    uint32_t target = edge->target;
    __atomic_store_n(&container->edges_out, edge->next, __ATOMIC_RELEASE);
    MP_FAILPOINT("edge.cut");
    edge->birth = 0;
    mp_pool_give(m, &m->header->pool_edges, index);
    if (target == 0 || target >= m->geometry.entries) return;
    if (m->entries[target].edges_in) m->entries[target].edges_in--;
    mp_collect(m, target);
}

void mp_undertake(mp_member *m) {
    while (atomic_load_explicit(&m->header->doomed, memory_order_relaxed)) {
        if (mp_lock(m, -1) != MP_OK) return;
        uint32_t entry;
        for (uint32_t n = 0; n < STEP && (entry = atomic_load(&m->header->doomed)) != 0; n++) {
            if (entry >= m->geometry.entries) {
                atomic_store(&m->header->doomed, 0);
                break;
            }
            mp_entry *e = &m->entries[entry];
            if (e->edges_out) {
                cut(m, e);
                continue;
            }
            atomic_store(&m->header->doomed, e->next);
            e->doomed = 0;
            MP_FAILPOINT("edge.last");
            mp_bury(m, entry);
        }
        mp_unlock(m);
    }
}

mp_code mp_edges_rebuild(mp_member *m) {
    uint32_t entries = atomic_load(&m->header->pool_entries.high);
    if (entries > m->geometry.entries) entries = m->geometry.entries;
    atomic_store(&m->header->doomed, 0);
    mp_pool_reset(&m->header->pool_edges);
    uint32_t high = m->header->pool_edges.fresh; /* as recovery.c has it: high may rise meanwhile */
    if (high > m->geometry.edges) high = m->geometry.edges;
    for (uint32_t i = 1; i < high; i++) m->edges[i].birth &= ~MP_EDGE_MARK;
    for (uint32_t i = 1; i < entries; i++) {
        if (mp_state_of(atomic_load(&m->entries[i].control)) == MP_FREE) continue;
        for (uint32_t index = m->entries[i].edges_out; index != 0; index = m->edges[index].next) {
            if (index >= high || (m->edges[index].birth & MP_EDGE_MARK)) return MP_CORRUPTED; /* shared, or a cycle */
            mp_edge *edge = &m->edges[index];
            if (!target_there(m, edge->target, edge->birth)) return MP_CORRUPTED;
            edge->birth |= MP_EDGE_MARK;
            m->entries[edge->target].edges_in++;
        }
    }
    for (uint32_t i = high; i-- > 1;) {
        if (!(m->edges[i].birth & MP_EDGE_MARK)) {
            m->edges[i].birth = 0;
            mp_pool_give(m, &m->header->pool_edges, i);
        }
        m->edges[i].birth &= ~MP_EDGE_MARK;
    }
    return MP_OK;
}

uint32_t mp_containers(mp_member *m, uint32_t target, uint32_t *found, uint32_t count) {
    uint32_t n = 0, high = edges_backed(m);
    if (mp_lock(m, -1) != MP_OK) return 0;
    uint32_t entries = atomic_load(&m->header->pool_entries.high);
    if (entries > m->geometry.entries) entries = m->geometry.entries;
    for (uint32_t i = 1; i < entries && n < count; i++) {
        if (mp_state_of(atomic_load(&m->entries[i].control)) == MP_FREE) continue;
        uint32_t index = m->entries[i].edges_out;
        for (uint32_t steps = 0; index != 0 && index < high && steps < high; steps++, index = m->edges[index].next)
            if (m->edges[index].target == target) {
                found[n++] = i;
                break;
            }
    }
    mp_unlock(m);
    return n;
}
