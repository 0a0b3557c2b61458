/* The system calls of the kernel on Linux.
 *
 * Invariants: every descriptor is close-on-exec; nothing here touches the table's contents or
 * is called with the store's mutex held, except lock_slot and slot_locked, which do not block.
 */
#define _GNU_SOURCE
#include "system.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kernel.h"

/* Linux before 6.8 undoes what an interrupted fallocate has done. Smaller and smaller pieces get on even when a
 * profiler's timer interrupts every few milliseconds. */
static int allocate(int fd, int mode, uint64_t offset, uint64_t length) {
    uint64_t end = offset + length, piece = length;
    while (offset < end) {
        if (piece > end - offset) piece = end - offset;
        if (fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)piece) == 0) offset += piece;
        else if (errno != EINTR) return errno;
        else if (piece > MP_BLOCK) piece = piece / 2 / MP_BLOCK * MP_BLOCK;
    }
    return 0;
}

/* A program may close descriptors that it does not know, as daemons do, and then open a file of its own under the
 * arena's number: that is not to be punched. */
static int allocate_arena(mp_member *m, int mode, uint64_t offset, uint64_t length) {
    struct stat now;
    if (fstat(m->arena_fd, &now) != 0) return errno;
    if (now.st_dev != m->arena_device || now.st_ino != m->arena_inode) return EBADF;
    return allocate(m->arena_fd, mode, offset, length);
}

static int commit(mp_member *m, uint64_t offset, uint64_t length) { return allocate_arena(m, 0, offset, length); }

static int punch(mp_member *m, uint64_t offset, uint64_t length) {
    return allocate_arena(m, FALLOC_FL_PUNCH_HOLE, offset, length);
}

static int populate(mp_member *m, void *address, uint64_t length) {
    (void)m;
    uintptr_t start = (uintptr_t)address & ~(uintptr_t)(MP_PAGE - 1);
    uintptr_t end = ((uintptr_t)address + length + MP_PAGE - 1) & ~(uintptr_t)(MP_PAGE - 1);
    if (madvise((void *)start, end - start, MADV_POPULATE_WRITE) == 0) return 0;
    if (errno != EINVAL) return errno == EFAULT ? ENOMEM : errno;
    /* Linux before 5.14: an atomic no-op per page has the same effect and disturbs no writer */
    for (uintptr_t page = start; page < end; page += MP_PAGE) atomic_fetch_or((_Atomic uint8_t *)page, 0);
    return 0;
}

static struct flock byte_lock(short type, uint32_t slot) {
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = slot, .l_len = 1};
}

static int lock_slot(mp_member *m, uint32_t slot) {
    struct flock lock = byte_lock(F_WRLCK, slot);
    if (fcntl(m->lock_fd, F_SETLK, &lock) == 0) return 0;
    return errno == EACCES ? EAGAIN : errno;
}

static void unlock_slot(mp_member *m, uint32_t slot) {
    struct flock lock = byte_lock(F_UNLCK, slot);
    (void)fcntl(m->lock_fd, F_SETLK, &lock);
}

/* Birth first: a child takes its byte lock before it gives up the birth lock. F_OFD_GETLK also
 * sees the POSIX locks of this very process, F_GETLK does not. */
static uint32_t slot_locked(mp_member *m, uint32_t slot) {
    uint32_t held = 0;
    struct flock lock = byte_lock(F_WRLCK, slot);
    if (fcntl(m->birth_fd, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK) held |= MP_LOCK_BIRTH;
    lock = byte_lock(F_WRLCK, slot);
    if (fcntl(m->lock_fd, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK) held |= MP_LOCK_MEMBER;
    return held;
}

static bool is_gone(int error) { return error == ENOENT || error == ESRCH; }

/* The start time is field 22; the command in field 2 may hold anything, so count from its last ')'.
 * 0: it could not be read, and *error says why. */
static uint64_t read_start_time(uint32_t pid, char *state, int *error) {
    char path[32], text[1024];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    *error = errno;
    if (fd < 0) return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    *error = n < 0 ? errno : EIO;
    close(fd);
    if (n <= 0) return 0;
    text[n] = 0;
    char *p = strrchr(text, ')');
    if (!p || p[1] != ' ') return 0;
    *state = p[2];
    for (int field = 2; field < 22 && p; field++) p = strchr(p + 1, ' ');
    char *end = NULL; /* a blank behind the number: it was read whole */
    uint64_t found = p ? strtoull(p + 1, &end, 10) : 0;
    return end && *end == ' ' ? found : 0;
}

uint64_t mp_start_time(uint32_t pid) {
    char state;
    int error;
    return read_start_time(pid, &state, &error);
}

/* The C library tells the system at the start of each thread where it keeps the robust mutexes that it holds; a
 * sandbox may refuse that (set_robust_list), and the library says nothing. Where one may not ask, all is well. */
bool mp_dies_unnoticed(void) {
    void *list = NULL;
    size_t length;
    return syscall(SYS_get_robust_list, 0, &list, &length) == 0 && list == NULL;
}

/* A process that went through exec lives on under its pid but has closed our descriptors. */
static bool has_table_open(mp_member *m, uint32_t pid) {
    struct stat table, other;
    char path[32];
    snprintf(path, sizeof path, "/proc/%u/fd", pid);
    DIR *directory = opendir(path);
    if (!directory || fstat(m->table_fd, &table) != 0) {
        if (directory) closedir(directory);
        return true; /* cannot tell: assume that it lives */
    }
    bool found = false;
    while (!found) {
        errno = 0;
        struct dirent *e = readdir(directory);
        if (!e) {
            found = errno != 0 && !is_gone(errno);
            break;
        }
        if (fstatat(dirfd(directory), e->d_name, &other, 0) != 0) found = !is_gone(errno);
        else found = other.st_ino == table.st_ino && other.st_dev == table.st_dev;
    }
    closedir(directory);
    return found;
}

static bool process_alive(mp_member *m, uint32_t pid, uint64_t start_time) {
    char state = 0;
    int error = 0;
    uint64_t found = pid ? read_start_time(pid, &state, &error) : 0;
    if (pid == 0) return false;
    if (found == 0) return !is_gone(error); /* cannot tell: assume that it lives */
    if (start_time != 0 && found != start_time) return false; /* 0: it could not be told when it attached */
    return state != 'Z' && state != 'X' && has_table_open(m, pid);
}

static int wait_word(_Atomic uint32_t *word, uint32_t seen, int64_t slice_ns) {
    struct timespec slice = {slice_ns / 1000000000, slice_ns % 1000000000};
    return syscall(SYS_futex, word, FUTEX_WAIT, seen, &slice, NULL, 0) == 0 ? 0 : errno;
}

static void wake_word(_Atomic uint32_t *word) { syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0); }

static uint64_t boottime(void) {
    struct timespec now;
    clock_gettime(CLOCK_BOOTTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

const mp_system mp_linux = {
    .commit = commit,
    .punch = punch,
    .populate = populate,
    .lock_slot = lock_slot,
    .unlock_slot = unlock_slot,
    .slot_locked = slot_locked,
    .process_alive = process_alive,
    .wait = wait_word,
    .wake = wake_word,
    .boottime = boottime,
};
