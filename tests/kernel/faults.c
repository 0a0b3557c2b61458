/* The C library's system calls, each of which may be told to fail before it is made (close: after it was made,
 * as Linux does it; munmap too, since leaks are counted). Stands alone, so that it can also be preloaded.
 *
 * Invariant: every call of the C library that reaches the system, in the kernel's sources and in what Python's
 * os module makes of the registry and of spilling, is here; `make calls` fails for one of the kernel's that is not.
 * Interrupts end after a while even when they are to come for ever: whoever is interrupted may try again.
 */
#define _GNU_SOURCE
#include "faults.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#define INTERRUPTS 100u

typedef struct plan {
    _Atomic uint64_t calls, fired, nth, interrupt;
    _Atomic int error;
    _Atomic bool armed, for_ever;
} plan;

static plan before_start;
static plan *shared = &before_start;
static _Atomic int64_t mapped;
static bool spared;

__attribute__((constructor)) static void share(void) {
    void *page = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) abort();
    shared = page;
}

void faults_arm(int error, uint64_t nth, bool for_ever) {
    shared->calls = shared->fired = 0;
    shared->error = error;
    shared->nth = nth;
    shared->for_ever = for_ever;
    shared->armed = true;
}

uint64_t faults_disarm(uint64_t *calls) {
    shared->armed = false;
    *calls = shared->calls;
    return shared->fired;
}

void faults_spare(bool on) { spared = on; }
void faults_interrupt(uint64_t bytes) { shared->interrupt = bytes; }
int64_t faults_mapped(void) { return mapped; }

static bool due(void) {
    if (spared) return false;
    uint64_t call = ++shared->calls;
    if (call != shared->nth && !(shared->for_ever && call > shared->nth)) return false;
    if (shared->error == EINTR && shared->fired >= INTERRUPTS) return false;
    shared->fired++;
    return true;
}

static bool fails(void) {
    if (!shared->armed || shared->error == FAULT_SHORT || !due()) return false;
    errno = shared->error;
    return true;
}

static bool falls_short(void) { return shared->armed && shared->error == FAULT_SHORT && due(); }

/* What lies behind: the C library's function. */
#define REAL(result, name, ...)                                              \
    static result (*real)(__VA_ARGS__);                                      \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name)

#define CALL(result, failed, name, parameters, ...)                          \
    result name parameters;                                                  \
    result name parameters {                                                 \
        static result(*real) parameters;                                     \
        if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);                \
        return fails() ? (failed) : real(__VA_ARGS__);                       \
    }

#define OPEN(name)                                                           \
    int name(const char *path, int flags, ...);                              \
    int name(const char *path, int flags, ...) {                             \
        va_list rest;                                                        \
        va_start(rest, flags);                                               \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                        \
        REAL(int, name, const char *, int, ...);                             \
        return fails() ? -1 : real(path, flags, mode);                       \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                         \
    int name(int fd, const char *path, int flags, ...);                      \
    int name(int fd, const char *path, int flags, ...) {                     \
        va_list rest;                                                        \
        va_start(rest, flags);                                               \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                        \
        REAL(int, name, int, const char *, int, ...);                        \
        return fails() ? -1 : real(fd, path, flags, mode);                   \
    }
OPENAT(openat)
OPENAT(openat64)

#define FCNTL(name)                                                          \
    int name(int fd, int command, ...);                                      \
    int name(int fd, int command, ...) {                                     \
        va_list rest;                                                        \
        va_start(rest, command);                                             \
        void *argument = va_arg(rest, void *);                               \
        va_end(rest);                                                        \
        REAL(int, name, int, int, ...);                                      \
        return fails() ? -1 : real(fd, command, argument);                   \
    }
FCNTL(fcntl)
FCNTL(fcntl64)

long syscall(long number, ...) {
    long a[6];
    va_list rest;
    va_start(rest, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(rest, long);
    va_end(rest);
    REAL(long, syscall, long, ...);
    return fails() ? -1 : real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

int close(int fd) {
    REAL(int, close, int);
    int rc = real(fd);
    return fails() ? -1 : rc;
}

#ifdef FAULTS_PRELOADED
/* Whether the program itself wants memory, and none of its libraries does. An interpreter that gets none waits for
 * ever for a thread that could not even begin (CPython's Thread.start): what Python makes of that is not ours. */
static bool is_interpreter(const void *caller) {
    Dl_info found;
    return dladdr(caller, &found) && (strstr(found.dli_fname, "libpython") || !strstr(found.dli_fname, ".so"));
}
#define OURS(caller) (!is_interpreter(caller))
#else
#define OURS(caller) true
#endif

#define MMAP(name)                                                           \
    void *name(void *at, size_t n, int protection, int flags, int fd, off_t offset); \
    void *name(void *at, size_t n, int protection, int flags, int fd, off_t offset) { \
        REAL(void *, name, void *, size_t, int, int, int, off_t);            \
        if (flags & MAP_FIXED) mapped -= (int64_t)n;                         \
        if (OURS(__builtin_return_address(0)) && fails()) return MAP_FAILED; \
        void *found = real(at, n, protection, flags, fd, offset);            \
        if (found != MAP_FAILED && !(flags & MAP_FIXED)) mapped += (int64_t)n; \
        return found;                                                        \
    }
MMAP(mmap)
MMAP(mmap64)

int munmap(void *at, size_t n) {
    REAL(int, munmap, void *, size_t);
    mapped -= (int64_t)n;
    int rc = real(at, n);
    return fails() ? -1 : rc;
}

#define FALLOCATE(name)                                                      \
    int name(int fd, int mode, off_t at, off_t n);                           \
    int name(int fd, int mode, off_t at, off_t n) {                          \
        REAL(int, name, int, int, off_t, off_t);                             \
        if (fails()) return -1;                                              \
        if (shared->interrupt && (uint64_t)n > shared->interrupt) return errno = EINTR, -1; \
        return real(fd, mode, at, n);                                        \
    }
FALLOCATE(fallocate)
FALLOCATE(fallocate64)

/* A transfer of n bytes, and half of it. */
#define TRANSFER(name, parameters, shorter, ...)                             \
    ssize_t name parameters;                                                 \
    ssize_t name parameters {                                                \
        static ssize_t(*real) parameters;                                    \
        if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);                \
        if (falls_short()) { shorter; }                                      \
        return fails() ? -1 : real(__VA_ARGS__);                             \
    }
TRANSFER(read, (int fd, void *to, size_t n), n = (n + 1) / 2, fd, to, n)
TRANSFER(write, (int fd, const void *from, size_t n), n = (n + 1) / 2, fd, from, n)
TRANSFER(pread, (int fd, void *to, size_t n, off_t at), n = (n + 1) / 2, fd, to, n, at)
TRANSFER(pread64, (int fd, void *to, size_t n, off_t at), n = (n + 1) / 2, fd, to, n, at)

/* Of a vector: its first half, or half of its only part, in whole pages if it has them (direct I/O). */
#define VECTOR(name)                                                         \
    TRANSFER(name, (int fd, const struct iovec *parts, int n, off_t at),     \
             struct iovec half = parts[0];                                   \
             half.iov_len = half.iov_len > 4096 ? half.iov_len / 8192 * 4096 : half.iov_len; \
             return n > 1 ? real(fd, parts, n / 2, at) : real(fd, &half, 1, at), fd, parts, n, at)
VECTOR(preadv)
VECTOR(preadv64)
VECTOR(pwritev)
VECTOR(pwritev64)

CALL(int, -1, fstat, (int fd, struct stat *to), fd, to)
CALL(int, -1, fstat64, (int fd, struct stat64 *to), fd, to)
CALL(int, -1, stat, (const char *path, struct stat *to), path, to)
CALL(int, -1, stat64, (const char *path, struct stat64 *to), path, to)
CALL(int, -1, lstat, (const char *path, struct stat *to), path, to)
CALL(int, -1, lstat64, (const char *path, struct stat64 *to), path, to)
CALL(int, -1, fstatat, (int fd, const char *path, struct stat *to, int flags), fd, path, to, flags)
CALL(int, -1, fstatat64, (int fd, const char *path, struct stat64 *to, int flags), fd, path, to, flags)
CALL(int, -1, statvfs, (const char *path, struct statvfs *to), path, to)
CALL(int, -1, statvfs64, (const char *path, struct statvfs64 *to), path, to)
CALL(int, -1, madvise, (void *at, size_t n, int advice), at, n, advice)
CALL(DIR *, NULL, opendir, (const char *path), path)
CALL(DIR *, NULL, fdopendir, (int fd), fd)
CALL(struct dirent *, NULL, readdir, (DIR * directory), directory)
CALL(struct dirent64 *, NULL, readdir64, (DIR * directory), directory)
CALL(int, -1, nanosleep, (const struct timespec *wanted, struct timespec *left), wanted, left)
CALL(int, -1, ftruncate, (int fd, off_t n), fd, n)
CALL(int, -1, ftruncate64, (int fd, off_t n), fd, n)
CALL(int, -1, memfd_create, (const char *name, unsigned flags), name, flags)
CALL(int, -1, mkdir, (const char *path, mode_t mode), path, mode)
CALL(int, -1, rmdir, (const char *path), path)
CALL(int, -1, unlink, (const char *path), path)
CALL(int, -1, unlinkat, (int fd, const char *path, int flags), fd, path, flags)
CALL(int, -1, rename, (const char *from, const char *to), from, to)
CALL(int, -1, fchmod, (int fd, mode_t mode), fd, mode)
CALL(int, -1, chmod, (const char *path, mode_t mode), path, mode)
CALL(int, -1, flock, (int fd, int operation), fd, operation)
CALL(int, -1, fsync, (int fd), fd)
CALL(int, -1, fdatasync, (int fd), fd)
CALL(ssize_t, -1, readlink, (const char *path, char *to, size_t n), path, to, n)

/* Memory: only in C tests, where the linker leads the calls here. An interpreter without memory just ends. In
 * those tests it is the test that forks. */
#ifdef FAULTS_PRELOADED
CALL(pid_t, -1, fork, (void))
#else
#define MEMORY(name, parameters, ...)                                        \
    void *__real_##name parameters;                                          \
    void *__wrap_##name parameters;                                          \
    void *__wrap_##name parameters { return fails() ? NULL : __real_##name(__VA_ARGS__); }
MEMORY(malloc, (size_t n), n)
MEMORY(calloc, (size_t count, size_t n), count, n)
MEMORY(realloc, (void *old, size_t n), old, n)
#endif
