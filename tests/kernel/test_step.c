/* kill -9 between any two instructions: an operation runs under single steps and is killed after
 * so many of them. Each run takes other instructions; MP_STEPS=n takes n of each operation.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "processes.h"

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define INSTRUMENTED true
#else
#define INSTRUMENTED false
#endif
#define UNTIL_THE_END UINT64_MAX

static uint32_t entry, other, spilled;
static uint64_t birth, other_birth, spilled_birth;

/* --- operations, after some preparation --- */

static void draft(uint64_t bytes) {
    uint32_t made;
    uint64_t its_birth, offset;
    if (mp_draft(&member, bytes, &made, &its_birth, &offset) != MP_OK) return;
    (void)mp_seal(&member, made, its_birth);
}

static void draft_small(void) { draft(100); }
static void draft_large(void) { draft(20000); }
static void drop(void) { (void)mp_drop(&member, entry, -1); }
static void delete(void) { (void)mp_delete(&member, entry, birth); }
static void shrink(void) { (void)mp_shrink(&member, 3 * MP_BLOCK); }
static void empty_blocks(void) { (void)mp_empty_blocks(&member, MP_BLOCK); }
static void grow(void) { (void)mp_grow(&member, 100000); }

static void view(void) {
    uint64_t offset, size;
    if (mp_view(&member, entry, birth, &offset, &size) == MP_OK) mp_unpin(&member, entry, MP_ONE_VIEW);
}

static void restore_and_evict(void) {
    uint64_t offset, size;
    mp_place place;
    if (mp_place_read(&member, spilled, spilled_birth, &place, &size) != MP_IS_SPILLED) return;
    if (mp_restore_begin(&member, spilled, spilled_birth, &offset) == MP_OK)
        (void)mp_restore_end(&member, spilled, spilled_birth, MP_RESIDENT);
    mp_unpin(&member, spilled, MP_ONE_OP);
    (void)mp_evict(&member, spilled, spilled_birth);
}

static void hand_off(void) {
    uint32_t token;
    if (mp_token_issue(&member, entry, birth, 1, UINT64_MAX - 2, 5, &token) == MP_OK)
        (void)mp_token_load(&member, token, 5, entry, birth);
}

static void rename_it(void) {
    (void)mp_name_set(&member, "n1", 2, entry, birth, false);
    (void)mp_name_set(&member, "n1", 2, other, other_birth, true); /* agents know the name, and read what it holds */
    (void)mp_name_remove(&member, "n1", 2);
}

static void segments(void) {
    uint32_t segment;
    uint64_t id, offset;
    if (mp_segment_open(&member, 0, &segment, &id) != MP_OK) return;
    (void)mp_segment_reserve(&member, segment, 4096, &offset);
    mp_segment_close(&member, segment);
    (void)mp_segment_forget(&member, segment, id);
}

/* --- stepping --- */

static void (*operation)(void);

static void prepare(void) {
    uint64_t seg_id;
    uint32_t segment;
    mp_place place = {.length = 4096};
    become_member(1);
    uint64_t id = agent_create(&worker, 9000);
    entry = (uint32_t)(id & 0xffff);
    birth = id >> 16;
    id = agent_create(&worker, 500);
    other = (uint32_t)(id & 0xffff);
    other_birth = id >> 16;
    CHECK_EQ(mp_segment_open(&member, 0, &segment, &seg_id), MP_OK);
    CHECK_EQ(mp_segment_reserve(&member, segment, 4096, &place.offset), MP_OK);
    place.segment = segment;
    CHECK_EQ(mp_draft_bare(&member, 3000, &spilled, &spilled_birth), MP_OK);
    CHECK_EQ(mp_settle(&member, spilled, spilled_birth, &place), MP_OK);
    uint64_t sparse[20]; /* two slabs, so that a block can be emptied */
    for (uint32_t i = 0; i < 20; i++) sparse[i] = agent_create(&worker, 4000);
    for (uint32_t i = 0; i < 14; i++) CHECK_EQ(mp_drop(&member, (uint32_t)(sparse[i] & 0xffff), -1), MP_OK);
    CHECK_EQ(mp_pool_ensure(&member, &member.header->pool_spans, 16), MP_OK);
}

static void body(void) {
    prepare();
    CHECK_EQ(ptrace(PTRACE_TRACEME, 0, NULL, NULL), 0);
    raise(SIGSTOP);
    operation();
}

/* Returns how many steps it took, at most limit; then the process is killed. */
static uint64_t step_through(uint64_t limit) {
    int status;
    uint64_t steps = 0;
    pid_t pid = start(body);
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK(WIFSTOPPED(status));
    while (steps < limit) {
        CHECK_EQ(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL), 0);
        CHECK_EQ(waitpid(pid, &status, 0), pid);
        if (WIFEXITED(status)) return steps;
        CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP);
        steps++;
    }
    kill(pid, SIGKILL);
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    return steps;
}

static void die_in(void (*what)(void), uint32_t samples) {
    operation = what;
    uint64_t all = step_through(UNTIL_THE_END);
    survive();
    for (uint32_t i = 0; i < samples; i++) {
        (void)step_through(random_below(&survivor.random, all));
        survive();
    }
}

static void kill_between_any_two_instructions(void) {
    static void (*const operations[])(void) = {
        draft_small, draft_large, drop,     delete,    shrink,            grow,
        view,        segments,    hand_off, rename_it, restore_and_evict, empty_blocks,
    };
    const char *wanted = getenv("MP_STEPS");
    open_store(4 << 20);
    for (uint32_t i = 0; i < sizeof operations / sizeof *operations; i++)
        die_in(operations[i], wanted ? (uint32_t)atoi(wanted) : 4);
    close_store();
}

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    processes_begin();
    if (INSTRUMENTED) printf("skipped: a sanitizer's own instructions are too many\n");
    else RUN(kill_between_any_two_instructions);
    return 0;
}
