/* Waiting for the mutex beside others that are killed while they wait.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "processes.h"

#define TRIES 5u
#define PATIENCE_NS 10000000000

static struct board {
    _Atomic uint32_t joined, turn;
} *board;
static uint32_t number;

/* Joins, and waits for the mutex when it is its turn. */
static void wait_in_line(void) {
    become_member(number);
    atomic_fetch_add(&board->joined, 1);
    while (atomic_load(&board->turn) < number) sched_yield();
    member.patience_ns = PATIENCE_NS;
    CHECK_EQ(mp_lock(&member, -1), MP_OK);
    mp_unlock(&member);
    leave();
}

static bool sleeps(pid_t pid) {
    char path[32], text[256];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    CHECK(file);
    size_t n = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[n] = 0;
    const char *end = strrchr(text, ')');
    return end && end[2] == 'S';
}

static pid_t start_next(void) {
    number++;
    pid_t pid = start(wait_in_line);
    while (atomic_load(&board->joined) < number) usleep(100);
    return pid;
}

static void let_wait(pid_t pid, uint32_t turn) {
    atomic_store(&board->turn, turn);
    while (!sleeps(pid)) usleep(100);
}

/* All on one processor, where nobody who is woken comes before whoever wakes: so the first in line is killed after it
 * was woken and before it could take the mutex, or say to whoever has it by then that others wait, too. Where the
 * system does not allow that, the second is woken as it should be, and the test shows nothing. */
static void share_a_processor(void) {
    const struct sched_param none = {0};
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET((unsigned)sched_getcpu(), &one);
    (void)sched_setaffinity(0, sizeof one, &one);
    (void)sched_setscheduler(0, SCHED_BATCH, &none);
}

static void the_one_that_is_woken_dies(void) {
    cpu_set_t all;
    const struct sched_param none = {0};
    CHECK_EQ(sched_getaffinity(0, sizeof all, &all), 0);
    board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(board != MAP_FAILED);
    for (uint32_t try = 0; try < TRIES; try++) {
        *board = (struct board){0};
        number = 0;
        open_store(4 << 20);
        share_a_processor();
        pid_t first = start_next(), second = start_next();
        CHECK_EQ(mp_lock(&self, -1), MP_OK);
        let_wait(first, 1);
        let_wait(second, 2);
        mp_unlock(&self);
        CHECK_EQ(pthread_mutex_trylock(&self.header->mutex), 0);
        kill(first, SIGKILL);
        CHECK_EQ(waitpid(first, NULL, 0), first);
        pthread_mutex_unlock(&self.header->mutex);
        CHECK_EQ(wait_for_all(), 0);
        (void)sched_setscheduler(0, SCHED_OTHER, &none);
        (void)sched_setaffinity(0, sizeof all, &all);
        survive();
        close_store();
    }
    munmap(board, sizeof *board);
}

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    processes_begin();
    RUN(the_one_that_is_woken_dies);
    return 0;
}
