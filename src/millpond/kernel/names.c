/* Names: text that holds an object until it is removed.
 *
 * Invariants: a record holds its target while target != 0, and target is written last; bucket
 * chains and the counts in entries are caches.
 */
#include "failpoint.h"
#include "kernel.h"

static uint32_t bucket_of(const char *text, uint32_t length) {
    uint64_t hash = 14695981039346656037ull; /* FNV-1a */
    for (uint32_t i = 0; i < length; i++) hash = (hash ^ (uint8_t)text[i]) * 1099511628211ull;
    return (uint32_t)(hash ^ hash >> 32) % MP_NAME_BUCKETS;
}

/* The record of a name, or 0. Mutex held; a damaged chain ends after as many steps as there are names. */
static uint32_t find(mp_member *m, const char *text, uint32_t length) {
    uint32_t index = m->buckets[bucket_of(text, length)];
    for (uint32_t steps = 0; index != 0 && index < m->geometry.names && steps < m->geometry.names; steps++) {
        mp_name *n = &m->names[index];
        if (atomic_load(&n->target) && n->length == length && memcmp(n->text, text, length) == 0) return index;
        index = n->next;
    }
    return 0;
}

void mp_name_link(mp_member *m, uint32_t index) {
    uint32_t *bucket = &m->buckets[bucket_of(m->names[index].text, m->names[index].length)];
    m->names[index].next = *bucket;
    *bucket = index;
}

static void unlink_record(mp_member *m, uint32_t index) {
    uint32_t *link = &m->buckets[bucket_of(m->names[index].text, m->names[index].length)];
    for (uint32_t steps = 0; *link && *link != index && steps < m->geometry.names; steps++) {
        if (*link >= m->geometry.names) return;
        link = &m->names[*link].next;
    }
    if (*link == index) *link = m->names[index].next;
}

static void count(mp_member *m, uint32_t entry, uint32_t index) {
    m->entries[entry].names++;
    m->entries[entry].name = index;
}

static void uncount(mp_member *m, uint32_t entry, uint32_t index) {
    if (entry == 0 || entry >= m->geometry.entries) return;
    mp_entry *e = &m->entries[entry];
    if (e->names) e->names--;
    if (e->name == index) e->name = 0;
    mp_collect(m, entry);
}

/* A name whose object was deleted or lost is as good as free. */
static bool dead_target(mp_member *m, uint32_t index) {
    uint32_t target = atomic_load(&m->names[index].target);
    return target < m->geometry.entries && mp_is_dead(mp_state_of(atomic_load(&m->entries[target].control)));
}

static mp_code set_locked(mp_member *m, const char *text, uint32_t length, uint32_t entry, bool replace) {
    uint32_t index = find(m, text, length);
    if (index != 0 && !replace && !dead_target(m, index)) return MP_TAKEN;
    if (index != 0) {
        uint32_t old = atomic_exchange(&m->names[index].target, entry);
        MP_FAILPOINT("name.replaced");
        count(m, entry, index);
        uncount(m, old, old == entry ? 0 : index);
        return MP_OK;
    }
    index = mp_pool_take(m, &m->header->pool_names);
    if (index == 0) return MP_POOL_FULL;
    mp_name *n = &m->names[index];
    n->length = (uint16_t)length;
    memcpy(n->text, text, length);
    MP_FAILPOINT("name.filled");
    atomic_store(&n->target, entry);
    MP_FAILPOINT("name.set");
    mp_name_link(m, index);
    count(m, entry, index);
    return MP_OK;
}

mp_code mp_name_set(mp_member *m, const char *text, uint32_t length, uint32_t entry, uint64_t birth, bool replace) {
    if (length == 0 || length > MP_NAME_MAX) return MP_INVALID;
    m->error = m->system->populate(m, &m->buckets[bucket_of(text, length)], sizeof(uint32_t));
    if (m->error) return MP_SYSTEM;
    for (;;) {
        mp_code code = mp_pool_ensure(m, &m->header->pool_names, 1);
        if (code == MP_OK) code = mp_lock(m, -1);
        if (code != MP_OK) return code;
        uint64_t control = atomic_load(&m->entries[entry].control);
        enum mp_state state = mp_state_of(control);
        /* garbage: of a member that was given up for dead. With a name it would stay, and no lookup could hold it. */
        bool there = mp_birth_of(control) == birth && state != MP_FREE && state != MP_GARBAGE;
        code = there ? set_locked(m, text, length, entry, replace) : MP_NOT_FOUND;
        mp_unlock(m);
        if (code == MP_OK) mp_event_bump(m);
        mp_undertake(m);
        if (code != MP_POOL_FULL) return code;
    }
}

mp_code mp_name_hold(mp_member *m, const char *text, uint32_t length, uint32_t *entry, uint64_t *birth) {
    if (length == 0 || length > MP_NAME_MAX) return MP_NOT_FOUND;
    for (uint64_t seen = 0;; seen = *birth) {
        mp_code code = mp_lock(m, -1);
        if (code != MP_OK) return code;
        uint32_t index = find(m, text, length);
        *entry = index ? atomic_load(&m->names[index].target) : 0;
        if (*entry >= m->geometry.entries) *entry = 0;
        *birth = *entry ? mp_birth_of(atomic_load(&m->entries[*entry].control)) : 0;
        mp_unlock(m);
        if (*entry == 0) return MP_NOT_FOUND;
        if ((code = mp_hold(m, *entry, *birth)) != MP_NOT_FOUND) return code;
        if (*birth == 0 || *birth == seen) return MP_CORRUPTED; /* a name keeps its object alive */
        /* replaced meanwhile: look again */
    }
}

mp_code mp_name_remove(mp_member *m, const char *text, uint32_t length) {
    if (length == 0 || length > MP_NAME_MAX) return MP_NOT_FOUND;
    mp_code code = mp_lock(m, -1);
    if (code != MP_OK) return code;
    uint32_t index = find(m, text, length);
    if (index != 0) {
        unlink_record(m, index);
        uint32_t entry = atomic_exchange(&m->names[index].target, 0);
        MP_FAILPOINT("name.removed");
        mp_pool_give(m, &m->header->pool_names, index);
        uncount(m, entry, index);
    }
    mp_unlock(m);
    mp_undertake(m);
    return index ? MP_OK : MP_NOT_FOUND;
}
