/* The table as memory: geometry, creation, mapping, and pools that grow step by step.
 *
 * Invariants: bounds come from the private, validated copy of the geometry, never from the
 * table. A pool item is touched only below the pool's high-water mark, where memory backs it.
 * Not here: what entries mean (objects.c).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "failpoint.h"
#include "kernel.h"

static uint64_t page_round(uint64_t bytes) { return (bytes + MP_PAGE - 1) & ~(uint64_t)(MP_PAGE - 1); }

static void region_sizes(const mp_geometry *g, uint64_t size[MP_REGIONS]) {
    size[MP_REGION_HEADER] = sizeof(mp_header);
    size[MP_REGION_SLOTS] = MP_SLOTS * sizeof(mp_slot);
    size[MP_REGION_NAME_BUCKETS] = MP_NAME_BUCKETS * sizeof(uint32_t);
    size[MP_REGION_ENTRIES] = (uint64_t)g->entries * sizeof(mp_entry);
    size[MP_REGION_TOKENS] = (uint64_t)g->tokens * sizeof(mp_token);
    size[MP_REGION_EDGES] = (uint64_t)g->edges * sizeof(mp_edge);
    size[MP_REGION_NAMES] = (uint64_t)g->names * sizeof(mp_name);
    size[MP_REGION_SEGMENTS] = (uint64_t)g->segments * sizeof(mp_segment);
    size[MP_REGION_SPANS] = (uint64_t)g->spans * sizeof(mp_span);
    size[MP_REGION_COMMIT] = (uint64_t)g->blocks * sizeof(uint16_t);
    size[MP_REGION_SLABS] = (uint64_t)g->blocks * sizeof(mp_slab);
    size[MP_REGION_SITES] = (uint64_t)g->entries * sizeof(mp_site);
}

void mp_geometry_plan(mp_geometry *g, uint64_t arena_bytes, uint32_t entries, uint32_t tokens, uint32_t names,
                      uint32_t segments) {
    memset(g, 0, sizeof *g);
    g->blocks = (uint32_t)((arena_bytes + MP_BLOCK - 1) / MP_BLOCK);
    g->arena_bytes = (uint64_t)g->blocks * MP_BLOCK;
    g->entries = entries;
    g->tokens = tokens;
    g->edges = 4 * entries;
    g->names = names;
    g->segments = segments;
    g->spans = 2 * entries + g->blocks + 64; /* every extent or slab may have a free run beside it */
    uint64_t size[MP_REGIONS], offset = 0;
    region_sizes(g, size);
    for (int r = 0; r < MP_REGIONS; r++) {
        g->region_offset[r] = offset;
        offset += page_round(size[r]);
    }
    g->table_bytes = offset;
}

bool mp_geometry_valid(const mp_geometry *g) {
    const uint32_t most = 1u << 28;
    if (g->arena_bytes == 0 || g->arena_bytes % MP_BLOCK || g->arena_bytes / MP_BLOCK != g->blocks) return false;
    if (g->blocks > most || g->entries < 2 || g->entries > most || g->tokens < 2 || g->tokens > most) return false;
    if (g->names < 2 || g->names > most || g->segments < 2 || g->segments > most) return false;
    mp_geometry expected;
    mp_geometry_plan(&expected, g->arena_bytes, g->entries, g->tokens, g->names, g->segments);
    return memcmp(&expected, g, sizeof expected) == 0;
}

uint32_t mp_abi(void) {
    const size_t facts[] = {sizeof(mp_header), sizeof(mp_entry),        sizeof(mp_slot),
                            sizeof(mp_token),  sizeof(pthread_mutex_t), offsetof(mp_header, mutex),
                            sizeof(void *),    offsetof(mp_header, config)};
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < sizeof facts / sizeof *facts; i++) hash = (hash ^ (uint32_t)facts[i]) * 16777619u;
    return hash;
}

static int init_mutex(pthread_mutex_t *mutex) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    int rc = pthread_mutex_init(mutex, &attributes);
    pthread_mutexattr_destroy(&attributes);
    return rc;
}

static void fill_header(mp_header *h, const mp_geometry *g, const mp_creation *c) {
    h->magic = MP_MAGIC;
    h->layout_version = MP_LAYOUT_VERSION;
    h->abi = mp_abi();
    memcpy(h->uuid, c->uuid, 16);
    memcpy(h->boot_id, c->boot_id, 16);
    h->pid_namespace = c->pid_namespace;
    h->uid = c->uid;
    h->gid = c->gid;
    h->geometry = *g;
    h->created_ns = mp_linux.boottime();
    h->created_ticks = mp_ticks();
    atomic_store(&h->memory_limit, c->memory_limit);
    atomic_store(&h->spill_limit, c->spill_limit);
    atomic_store(&h->overflow_limit, c->overflow_limit);
    atomic_store(&h->handoff_ns, c->handoff_ns);
    h->next_birth = 1;
    h->next_ticket = 1;
    h->next_segment_id = 1;
    mp_pool *pools[] = {&h->pool_entries, &h->pool_tokens,   &h->pool_edges,
                        &h->pool_names,   &h->pool_segments, &h->pool_spans};
    for (int i = 0; i < 6; i++) { /* item 0 of every pool means "none" */
        pools[i]->fresh = 1;
        atomic_store(&pools[i]->high, 1);
        atomic_store(&pools[i]->used, 1);
    }
    strncpy(h->config, c->config ? c->config : "", MP_CONFIG_BYTES - 1);
}

mp_code mp_create(int table_fd, int arena_fd, const mp_geometry *g, const mp_creation *creation) {
    struct stat table, arena;
    if (!mp_geometry_valid(g)) return MP_INVALID;
    if (fstat(table_fd, &table) != 0 || fstat(arena_fd, &arena) != 0) return MP_SYSTEM;
    if ((uint64_t)table.st_size != g->table_bytes || (uint64_t)arena.st_size != g->arena_bytes) return MP_INVALID;
    mp_header *h = mmap(NULL, sizeof *h, PROT_READ | PROT_WRITE, MAP_SHARED, table_fd, 0);
    if (h == MAP_FAILED) return MP_SYSTEM;
    fill_header(h, g, creation);
    mp_code code = init_mutex(&h->mutex) == 0 ? MP_OK : MP_SYSTEM;
    if (code == MP_OK) atomic_store(&h->ready, 1);
    munmap(h, sizeof *h);
    return code;
}

static mp_code refuse(char *why, const char *text, uint64_t found, uint64_t expected) {
    snprintf(why, 256, "%s (found %llu, expected %llu)", text, (unsigned long long)found, (unsigned long long)expected);
    return MP_INVALID;
}

static mp_code system_failed(mp_member *m) {
    m->error = errno;
    return MP_SYSTEM;
}

/* Returns how much there is, or -1. */
static ssize_t read_whole(int fd, void *to, size_t bytes) {
    size_t done = 0;
    while (done < bytes) {
        ssize_t n = pread(fd, (uint8_t *)to + done, bytes - done, (off_t)done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        if (n == 0) break;
        done += (size_t)n;
    }
    return (ssize_t)done;
}

/* The header is copied once and only the copy is judged and used, so that nobody can change a
 * size between the check and the use. */
static mp_code read_geometry(mp_member *m, char *why) {
    struct stat table, arena;
    mp_header *h = malloc(sizeof *h);
    if (!h) return system_failed(m);
    mp_code code = MP_OK;
    ssize_t got = read_whole(m->table_fd, h, sizeof *h);
    if (got < 0 || fstat(m->table_fd, &table) != 0 || fstat(m->arena_fd, &arena) != 0)
        code = system_failed(m);
    else if ((uint64_t)got != sizeof *h)
        code = refuse(why, "the table is too short for a header", (uint64_t)got, sizeof *h);
    else if (h->magic != MP_MAGIC)
        code = refuse(why, "this is not a millpond table: magic", h->magic, MP_MAGIC);
    else if (h->layout_version != MP_LAYOUT_VERSION)
        code = refuse(why, "another layout version", h->layout_version, MP_LAYOUT_VERSION);
    else if (h->abi != mp_abi())
        code = refuse(why, "built for another C library or architecture: ABI", h->abi, mp_abi());
    else if (atomic_load(&h->ready) != 1)
        code = refuse(why, "the store is not ready", atomic_load(&h->ready), 1);
    else if (!mp_geometry_valid(&h->geometry))
        code = refuse(why, "the geometry is damaged: table bytes", h->geometry.table_bytes, (uint64_t)table.st_size);
    else if ((uint64_t)table.st_size != h->geometry.table_bytes)
        code = refuse(why, "the table's size is wrong", (uint64_t)table.st_size, h->geometry.table_bytes);
    else if ((uint64_t)arena.st_size != h->geometry.arena_bytes)
        code = refuse(why, "the arena's size is wrong", (uint64_t)arena.st_size, h->geometry.arena_bytes);
    if (code == MP_OK) m->geometry = h->geometry, m->arena_device = arena.st_dev, m->arena_inode = arena.st_ino;
    free(h);
    return code;
}

static void point_regions(mp_member *m, uint8_t *base) {
    const uint64_t *at = m->geometry.region_offset;
    m->header = (mp_header *)base;
    m->slots = (mp_slot *)(base + at[MP_REGION_SLOTS]);
    m->buckets = (uint32_t *)(base + at[MP_REGION_NAME_BUCKETS]);
    m->entries = (mp_entry *)(base + at[MP_REGION_ENTRIES]);
    m->tokens = (mp_token *)(base + at[MP_REGION_TOKENS]);
    m->edges = (mp_edge *)(base + at[MP_REGION_EDGES]);
    m->names = (mp_name *)(base + at[MP_REGION_NAMES]);
    m->segments = (mp_segment *)(base + at[MP_REGION_SEGMENTS]);
    m->spans = (mp_span *)(base + at[MP_REGION_SPANS]);
    m->commit = (_Atomic uint16_t *)(base + at[MP_REGION_COMMIT]);
    m->slabs = (mp_slab *)(base + at[MP_REGION_SLABS]);
    m->sites = (mp_site *)(base + at[MP_REGION_SITES]);
}

static mp_code init_private(mp_member *m) {
    uint64_t bytes = (uint64_t)m->geometry.entries * sizeof(mp_local);
    m->locals = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    m->wipe = mmap(NULL, MP_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    bool whole = m->locals != MAP_FAILED && m->wipe != MAP_FAILED;
    if (whole && madvise((void *)m->wipe, MP_PAGE, MADV_WIPEONFORK) != 0) whole = errno == EINVAL; /* an old system */
    if (!whole) {
        mp_code code = system_failed(m);
        if (m->locals != MAP_FAILED) munmap(m->locals, bytes);
        if (m->wipe != MAP_FAILED) munmap((void *)m->wipe, MP_PAGE);
        return code;
    }
    atomic_store(m->wipe, 1);
    pthread_mutex_init(&m->refs_mutex, NULL);
    pthread_mutex_init(&m->pins_mutex, NULL);
    m->fork_fd = m->spare_fd = -1;
    return MP_OK;
}

mp_code mp_map(mp_member *m, int table_fd, int arena_fd, int lock_fd, int birth_fd, char *why) {
    memset(m, 0, sizeof *m);
    m->system = &mp_linux;
    m->patience_ns = 5000000000ll;
    m->table_fd = table_fd;
    m->arena_fd = arena_fd;
    m->lock_fd = lock_fd;
    m->birth_fd = birth_fd;
    snprintf(why, 256, "cannot map the store");
    mp_code code = read_geometry(m, why);
    if (code != MP_OK) return code;
    uint64_t arena = m->geometry.arena_bytes;
    uint8_t *base = mmap(NULL, m->geometry.table_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, table_fd, 0);
    m->arena_write = mmap(NULL, arena, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, arena_fd, 0);
    m->arena_read = mmap(NULL, arena, PROT_READ, MAP_SHARED | MAP_NORESERVE, arena_fd, 0);
    bool whole = base != MAP_FAILED && m->arena_write != MAP_FAILED && m->arena_read != MAP_FAILED;
    if (!whole) (void)system_failed(m);
    if (!whole || init_private(m) != MP_OK) {
        if (base != MAP_FAILED) munmap(base, m->geometry.table_bytes);
        if (m->arena_write != MAP_FAILED) munmap(m->arena_write, arena);
        if (m->arena_read != MAP_FAILED) munmap(m->arena_read, arena);
        return MP_SYSTEM;
    }
    (void)madvise(m->arena_write, arena, MADV_DONTDUMP);
    (void)madvise(m->arena_read, arena, MADV_DONTDUMP);
    point_regions(m, base);
    return MP_OK;
}

mp_code mp_map_shared(mp_member *m, const mp_member *other) {
    *m = *other;
    m->state = MP_MEMBER_OPEN;
    atomic_store(&m->deferred, 0);
    atomic_store(&m->unfinished_count, 0);
    return init_private(m);
}

static void unmap_private(mp_member *m) {
    munmap(m->locals, (uint64_t)m->geometry.entries * sizeof(mp_local));
    munmap((void *)m->wipe, MP_PAGE);
}

/* The address of the mutex is never given to another file: a thread that dies right after its
 * unlock may still have the kernel look at that word (FUTEX_ROBUST_UNLOCK). Private pages take
 * its place, so that the memory of the store itself goes. */
void mp_unmap(mp_member *m) {
    if (m->spare_fd >= 0) close(m->spare_fd);
    uint64_t header = page_round(sizeof(mp_header));
    uint8_t *base = (uint8_t *)m->header;
    munmap(base + header, m->geometry.table_bytes - header);
    (void)mmap(base, header, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    munmap(m->arena_write, m->geometry.arena_bytes);
    munmap(m->arena_read, m->geometry.arena_bytes);
    unmap_private(m);
}

/* --- pools --- */

typedef struct shape {
    uint8_t *base;
    uint64_t stride, next_offset;
    uint32_t capacity;
    const char *name;
} shape;

static shape shape_of(mp_member *m, mp_pool *pool) {
    mp_header *h = m->header;
    const mp_geometry *g = &m->geometry;
    if (pool == &h->pool_entries)
        return (shape){(uint8_t *)m->entries, sizeof(mp_entry), offsetof(mp_entry, next), g->entries, "objects"};
    if (pool == &h->pool_tokens)
        return (shape){(uint8_t *)m->tokens, sizeof(mp_token), offsetof(mp_token, next), g->tokens, "hand-offs"};
    if (pool == &h->pool_edges)
        return (shape){(uint8_t *)m->edges, sizeof(mp_edge), offsetof(mp_edge, next), g->edges, "contained refs"};
    if (pool == &h->pool_names)
        return (shape){(uint8_t *)m->names, sizeof(mp_name), offsetof(mp_name, next), g->names, "names"};
    if (pool == &h->pool_segments)
        return (shape){(uint8_t *)m->segments, sizeof(mp_segment), offsetof(mp_segment, next), g->segments, "segments"};
    return (shape){(uint8_t *)m->spans, sizeof(mp_span), offsetof(mp_span, bin_next), g->spans, "spans"};
}

static bool has_left(const mp_pool *pool, uint32_t count) {
    uint32_t high = atomic_load(&pool->high), used = atomic_load(&pool->used);
    return high >= used && high - used >= count;
}

/* In the middle of a rebuild, and after a death there, every item counts as used. */
static mp_code judge_full(mp_member *m, const mp_pool *pool, uint32_t count, const char *name) {
    mp_code code = mp_lock(m, -1);
    if (code != MP_OK) return code;
    if (!has_left(pool, count)) code = MP_POOL_FULL;
    mp_unlock(m);
    if (code != MP_OK) m->full_pool = name;
    return code;
}

mp_code mp_pool_ensure(mp_member *m, mp_pool *pool, uint32_t count) {
    shape s = shape_of(m, pool);
    for (;;) {
        uint32_t high = atomic_load(&pool->high);
        if (has_left(pool, count)) return MP_OK;
        if (high >= s.capacity) return judge_full(m, pool, count, s.name);
        uint64_t step = MP_PAGE * 4 / s.stride + count;
        if (step < high / 8) step = high / 8;
        uint32_t next = high + step < s.capacity ? (uint32_t)(high + step) : s.capacity;
        m->error = m->system->populate(m, s.base + high * s.stride, (next - high) * s.stride);
        if (m->error) return MP_SYSTEM;
        MP_FAILPOINT("pool.populated");
        atomic_compare_exchange_strong(&pool->high, &high, next);
    }
}

uint32_t mp_pool_take(mp_member *m, mp_pool *pool) {
    shape s = shape_of(m, pool);
    uint32_t high = atomic_load_explicit(&pool->high, memory_order_acquire), item = pool->free;
    if (high > s.capacity) high = s.capacity;
    if (item != 0 && item < high)
        pool->free = *(uint32_t *)(s.base + item * s.stride + s.next_offset);
    else if (pool->fresh < high)
        item = pool->fresh++;
    else {
        m->full_pool = s.name;
        /* a caller would make sure that there is an item, and come back for ever */
        bool some_left = atomic_load_explicit(&pool->used, memory_order_relaxed) < high;
        if (some_left) atomic_store_explicit(&m->header->poisoned, 1, memory_order_relaxed);
        return 0;
    }
    atomic_fetch_add_explicit(&pool->used, 1, memory_order_relaxed);
    return item;
}

void mp_pool_give(mp_member *m, mp_pool *pool, uint32_t item) {
    shape s = shape_of(m, pool);
    *(uint32_t *)(s.base + item * s.stride + s.next_offset) = pool->free;
    pool->free = item;
    atomic_fetch_sub_explicit(&pool->used, 1, memory_order_relaxed);
}

void mp_pool_reset(mp_pool *pool) {
    uint32_t high = atomic_load(&pool->high);
    pool->free = 0;
    pool->fresh = high;
    atomic_store(&pool->used, high);
}
