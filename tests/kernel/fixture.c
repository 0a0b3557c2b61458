#define _GNU_SOURCE
#include "fixture.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int memory_file(const char *name, uint64_t bytes) {
    int fd = memfd_create(name, MFD_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, (off_t)bytes), 0);
    return fd;
}

void fixture_create(fixture *f, fixture_shape shape) {
    mp_geometry geometry;
    mp_geometry_plan(&geometry, shape.arena_bytes, shape.entries, 256, 256, 64);
    f->table_fd = memory_file("table", geometry.table_bytes);
    f->arena_fd = memory_file("arena", geometry.arena_bytes);
    f->lock_fd = memory_file("lock", 0);
    f->birth_fd = memory_file("birth", 0);
    mp_creation creation = {.uid = getuid(), .gid = getgid(), .memory_limit = shape.memory_limit};
    creation.spill_limit = creation.overflow_limit = UINT64_MAX;
    CHECK_EQ(mp_create(f->table_fd, f->arena_fd, &geometry, &creation), MP_OK);
}

void fixture_close(fixture *f) {
    close(f->table_fd);
    close(f->arena_fd);
    close(f->lock_fd);
    close(f->birth_fd);
}

void fixture_map(const fixture *f, mp_member *m) {
    char why[256];
    mp_code code = mp_map(m, f->table_fd, f->arena_fd, f->lock_fd, f->birth_fd, why);
    if (code != MP_OK) fprintf(stderr, "mp_map: %s\n", why);
    CHECK_EQ(code, MP_OK);
}

void fixture_unmap(mp_member *m) { mp_unmap(m); }

static void print_fault(void *context, const char *text) {
    (void)context;
    fprintf(stderr, "fault: %s\n", text);
}

void fixture_check(mp_member *m) { CHECK_EQ(mp_check(m, print_fault, NULL), 0); }
void fixture_check_arena(mp_member *m) { CHECK_EQ(mp_arena_check(m, print_fault, NULL), 0); }

/* --- members of one process --- */

static _Atomic bool locked[MP_SLOTS];

static int lock_slot(mp_member *m, uint32_t slot) {
    (void)m;
    return atomic_exchange(&locked[slot], true) ? EAGAIN : 0;
}
static void unlock_slot(mp_member *m, uint32_t slot) {
    (void)m;
    atomic_store(&locked[slot], false);
}
static uint32_t slot_locked(mp_member *m, uint32_t slot) {
    (void)m;
    return atomic_load(&locked[slot]) ? MP_LOCK_MEMBER : 0;
}
static bool process_alive(mp_member *m, uint32_t pid, uint64_t start_time) {
    (void)m, (void)pid, (void)start_time;
    return false;
}

void fixture_first(const fixture *f, mp_member *m) {
    static mp_system threads;
    threads = mp_linux;
    threads.lock_slot = lock_slot;
    threads.unlock_slot = unlock_slot;
    threads.slot_locked = slot_locked;
    threads.process_alive = process_alive;
    memset((void *)locked, 0, sizeof locked);
    fixture_map(f, m);
    m->system = &threads;
    CHECK_EQ(mp_claim_slot(m), MP_OK);
}

void fixture_join(const mp_member *first, mp_member *m) {
    CHECK_EQ(mp_map_shared(m, first), MP_OK);
    CHECK_EQ(mp_claim_slot(m), MP_OK);
}

void fixture_die(mp_member *m) { unlock_slot(m, m->slot); }

void fixture_leave(mp_member *m) {
    munmap(m->locals, (uint64_t)m->geometry.entries * sizeof(mp_local));
    munmap((void *)m->wipe, MP_PAGE);
}

mp_code fixture_publish(mp_member *m, uint32_t entry, uint64_t birth, const mp_place *place, bool evict) {
    mp_cleaned item = {.place = *place, .birth = birth, .entry = entry, .evict = evict};
    mp_code code = mp_clean_publish(m, &item, 1);
    return code == MP_OK ? item.code : code;
}
