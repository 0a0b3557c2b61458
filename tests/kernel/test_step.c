/* kill -9 between any two instructions of the kernel's calls.
 *
 * An operation runs once under single steps, in a process of its own over a small store, and the table is
 * compared after each instruction: so it is known after which of them it is in a state that it was not in before,
 * or a system call has returned. Then, for each of these, the same is run again over a new store, up to that
 * instruction, and killed; whoever is left must find no fault, take over what is left, read everything, go on. Files
 * are memory here. MP_STEPS=n takes n such instructions of each operation, MP_STEPS=all every one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "atfork.h"
#include "failpoint_page.h"
#include "processes.h"

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SKIPPED "a sanitizer's own instructions are too many"
#elif !defined(__x86_64__)
#define SKIPPED "a load-exclusive and its store do not survive a step between them"
#endif
#define STEPS_MAX 2000000u
#define MOMENTS_MAX 20000u
#define VISITED_MAX 65536u /* a power of two */
#define SAMPLES 3u

static uint32_t entry, other, clean, spilled, spare_segment;
static uint64_t birth, other_birth, clean_birth, spilled_birth;
static uint64_t store_opened; /* CLOCK_BOOTTIME ns */
static mp_record record;      /* of the spilled one, */
static mp_place record_copy; /* and where it may go */

/* --- what is there before --- */

static uint32_t open_segment(void) {
    uint32_t segment;
    uint64_t id;
    CHECK_EQ(mp_segment_open(&member, 0, &segment, &id), MP_OK);
    return segment;
}

static mp_place some_place(uint32_t segment) {
    mp_place place = {.length = 4096, .segment = segment};
    CHECK_EQ(mp_segment_reserve(&member, segment, place.length, &place.offset), MP_OK);
    return place;
}

static void split(uint64_t id, uint32_t *its_entry, uint64_t *its_birth) {
    *its_entry = (uint32_t)(id & 0xffff);
    *its_birth = id >> 16;
}

static void prepare(void) {
    uint8_t wanted[64] = {0};
    uint32_t cursor = 0, found;
    become_member(1);
    split(agent_create(&worker, 9000), &entry, &birth);
    split(agent_create(&worker, 500), &other, &other_birth);
    split(agent_create(&worker, 700), &clean, &clean_birth);
    uint32_t segment = open_segment();
    spare_segment = open_segment();
    record_copy = some_place(spare_segment);
    mp_place place = some_place(segment);
    uint64_t offset, size;
    CHECK_EQ(mp_clean_claim(&member, clean, clean_birth, &offset, &size), MP_OK);
    CHECK_EQ(fixture_publish(&member, clean, clean_birth, &place, false), MP_OK);
    place = some_place(segment);
    CHECK_EQ(mp_draft_bare(&member, 3000, &spilled, &spilled_birth), MP_OK);
    CHECK_EQ(mp_settle(&member, spilled, spilled_birth, &place), MP_OK);
    wanted[segment] = 1;
    CHECK_EQ(mp_records(&member, &cursor, wanted, 64, &record, 1, &found), MP_OK);
    CHECK_EQ(found, 1);
    uint64_t sparse[20]; /* two slabs, so that a block can be emptied */
    for (uint32_t i = 0; i < 20; i++) sparse[i] = agent_create(&worker, 4000);
    for (uint32_t i = 0; i < 14; i++) CHECK_EQ(mp_drop(&member, (uint32_t)(sparse[i] & 0xffff), -1), MP_OK);
    CHECK_EQ(mp_pool_ensure(&member, &member.header->pool_spans, 16), MP_OK);
}

/* --- operations; each one says whether it did what it is here for --- */

static bool put(uint64_t bytes) {
    uint32_t made;
    uint64_t its_birth, offset;
    if (mp_draft(&member, bytes, &made, &its_birth, &offset) != MP_OK) return false;
    memset(member.arena_write + offset, 1, 64);
    return mp_seal(&member, made, its_birth) == MP_OK;
}

/* As the draft of somebody who writes into the store's memory himself, while others wait for it. */
static bool put_in_sight(void) {
    uint32_t made;
    uint64_t its_birth, offset;
    if (mp_draft(&member, 3000, &made, &its_birth, &offset) != MP_OK) return false;
    mp_pin(&member, made, MP_ONE_OP);
    atomic_fetch_or(&member.entries[made].control, MP_WAIT_BIT);
    atomic_fetch_add(&member.header->waiters, 1);
    memset(member.arena_write + offset, 1, 64);
    bool sealed = mp_seal(&member, made, its_birth) == MP_OK;
    atomic_fetch_sub(&member.header->waiters, 1);
    mp_unpin(&member, made, MP_ONE_OP);
    return sealed;
}

static bool abandon(void) {
    uint32_t made;
    uint64_t its_birth, offset;
    if (mp_draft(&member, 3000, &made, &its_birth, &offset) != MP_OK) return false;
    return mp_abort(&member, made, its_birth) == MP_OK && mp_drop(&member, made, -1) == MP_OK;
}

static bool put_on_disk(void) {
    uint32_t made;
    uint64_t its_birth;
    mp_place place = {.length = 4096, .segment = spare_segment};
    if (mp_draft_bare(&member, 3000, &made, &its_birth) != MP_OK) return false;
    if (mp_segment_reserve(&member, spare_segment, place.length, &place.offset) != MP_OK) return false;
    memset(playground_record(ground, &member, &place), 1, 64);
    return mp_settle(&member, made, its_birth, &place) == MP_OK;
}

static bool put_small(void) { return put(100); }
static bool put_large(void) { return put(20000); }
static bool release(void) { return mp_drop(&member, entry, -1) == MP_OK; }
static bool delete(void) { return mp_delete(&member, entry, birth) == MP_OK; }
static bool evict(void) { return mp_evict(&member, clean, clean_birth) == MP_OK; }
static bool unclean(void) { return mp_drop_place(&member, clean, clean_birth) == MP_OK; }
static bool shrink(void) { return mp_shrink(&member, 2 * MP_BLOCK) != 0; }
static bool grow(void) { return mp_grow(&member, 100000) == MP_OK; }
static bool empty_blocks(void) { return mp_empty_blocks(&member, MP_BLOCK) != 0; }
static bool move_place(void) { return mp_place_move(&member, &record, spare_segment, record_copy.offset) == MP_OK; }

static bool get(void) {
    uint64_t offset, size;
    if (mp_view(&member, entry, birth, &offset, &size) != MP_OK) return false;
    mp_unpin(&member, entry, MP_ONE_VIEW);
    return true;
}

static bool delete_viewed(void) {
    uint64_t offset, size;
    if (mp_view(&member, entry, birth, &offset, &size) != MP_OK) return false;
    bool deleted = mp_delete(&member, entry, birth) == MP_OK && mp_drop(&member, entry, -1) == MP_OK;
    mp_unpin(&member, entry, MP_ONE_VIEW);
    return deleted;
}

static bool put_containers(void) {
    uint32_t made, targets[3] = {entry, other, other};
    uint64_t its_birth, offset, births[3] = {birth, other_birth, other_birth};
    if (mp_draft(&member, 100, &made, &its_birth, &offset) != MP_OK) return false;
    if (mp_contain(&member, made, its_birth, targets, births, 3) != MP_OK) return false;
    return mp_seal(&member, made, its_birth) == MP_OK && mp_drop(&member, made, -1) == MP_OK;
}

static bool clean_it(bool and_evict) {
    uint64_t offset, size, at;
    if (mp_clean_claim(&member, other, other_birth, &offset, &size) != MP_OK) return false;
    if (mp_segment_reserve(&member, spare_segment, 4096, &at) != MP_OK) return false;
    mp_place place = {.offset = at, .length = 4096, .segment = spare_segment};
    memcpy(playground_record(ground, &member, &place), member.arena_read + offset, size);
    return fixture_publish(&member, other, other_birth, &place, and_evict) == MP_OK;
}

static bool clean_only(void) { return clean_it(false); }
static bool clean_and_evict(void) { return clean_it(true); }

static bool restore_to(enum mp_state state) {
    uint64_t offset, size;
    mp_place place;
    if (mp_place_read(&member, spilled, spilled_birth, &place, &size) != MP_IS_SPILLED) return false;
    bool done = mp_restore_begin(&member, spilled, spilled_birth, &offset) == MP_OK;
    if (done) {
        memcpy(member.arena_write + offset, playground_record(ground, &member, &place), 256);
        mp_restore_step(&member, spilled);
        done = mp_restore_end(&member, spilled, spilled_birth, state) == MP_OK;
    }
    mp_unpin(&member, spilled, MP_ONE_OP);
    return done;
}

static bool restore(void) { return restore_to(MP_RESIDENT); }
static bool restore_in_vain(void) { return restore_to(MP_SPILLED); }
static bool restore_lost(void) { return restore_to(MP_LOST); }

static bool hand_off(void) {
    uint32_t token;
    if (mp_token_issue(&member, entry, birth, 1, UINT64_MAX - 2, 5, &token) != MP_OK) return false;
    return mp_token_load(&member, token, 5, entry, birth) == MP_OK;
}

static bool take_back(void) {
    uint32_t token, lapses;
    if (mp_token_issue(&member, entry, birth, 1, UINT64_MAX - 2, 5ull << MP_FAMILY_SHIFT, &token) != MP_OK) return false;
    if (mp_token_issue(&member, other, other_birth, 1, 1, 7, &lapses) != MP_OK) return false;
    bool done = mp_token_withdraw(&member, 5) == MP_OK;
    return mp_token_expire(&member, 2) == 1 && done;
}

static bool release_later(void) {
    mp_drop_later(&member, entry);
    mp_drop_later(&member, other);
    return mp_drain(&member) == 0;
}

static bool rename_it(void) {
    bool done = mp_name_set(&member, "n1", 2, entry, birth, false) == MP_OK;
    done = done && mp_name_set(&member, "n1", 2, other, other_birth, true) == MP_OK;
    return mp_name_remove(&member, "n1", 2) == MP_OK && done;
}

static bool segments(void) {
    uint32_t segment;
    uint64_t id, offset;
    if (mp_segment_open(&member, 0, &segment, &id) != MP_OK) return false;
    if (mp_segment_reserve(&member, segment, 8192, &offset) != MP_OK) return false;
    mp_segment_close(&member, segment);
    bool punched = mp_segment_punched(&member, segment, id, 4096) == MP_OK;
    return mp_segment_forget(&member, segment, id) == MP_OK && punched;
}

/* Stands in the queue, commits what is put by for it, takes it, leaves. */
static bool wait_for_room(void) {
    if (mp_queue_enter(&member, 65536) != MP_OK || mp_queue_renew(&member) != MP_OK) return false;
    bool done = mp_drop(&member, entry, -1) == MP_OK && mp_grow(&member, 65536) == MP_OK && put(65536);
    mp_queue_leave(&member, 65536);
    return done;
}

static bool attach(void) {
    become_member(1);
    return true;
}

static bool detach(void) {
    mp_drop_all(&member);
    mp_release_slot(&member);
    return true;
}

/* The parent's part, around a fork that fails. */
static bool fork_in_vain(void) {
    mp_fork_prepare(&member);
    mp_fork_parent(&member);
    return true;
}

/* A child that finds no slot, here since its parent has lost its own. */
static bool fork_an_orphan(void) {
    uint64_t word = member.slot_word;
    member.slot_word = 0;
    mp_fork_prepare(&member);
    member.slot_word = word;
    mp_fork_parent(&member);
    return member.fork_slot >= MP_SLOT_ORPHANS;
}

static rests begun;

static void prepare_rests(void) {
    prepare();
    begin_rests(&begun);
}

static bool finish(void) {
    bool done = mp_finish(&member) == MP_OK;
    end_rests(&begun);
    return done;
}

static bool reap(void) { return mp_reap_dead(&member) != 0; }

/* --- what others left before it --- */

static void ruin(void) {
    for (uint32_t i = 0; i < 5; i++) (void)agent_create(&worker, 1000);
    for (uint32_t kind = 0; kind < AGENT_RUINS; kind++) agent_abandon(&worker, kind);
    _exit(0); /* as good as a death */
}

static void leave_ruins(void) {
    become_member(100);
    ruin();
}

/* In two slots: whoever attaches takes over one of them, and has the other still to reap. */
static void leave_more_ruins(void) {
    become_member(101);
    run(leave_ruins);
    ruin();
}

static void make_ruins(void) { run(leave_more_ruins); }

/* Only this process has a page of failpoints: a name's first sight takes other instructions than its second. */
static void draft_and_die(void) {
    failpoint_share();
    failpoint_arm("draft.held", 3, SIGKILL, 0);
    leave_ruins();
}

static void die_with_the_mutex(void) {
    start(draft_and_die);
    CHECK_EQ(wait_for_all(), 1);
}

typedef struct operation {
    const char *name;
    bool (*act)(void);
    void (*prepare)(void); /* in the process that will be killed */
    void (*before)(void);  /* in others */
} operation;

static bool adopt(void);
static const operation operations[] = {
    {"put, small", put_small, prepare, NULL},
    {"put, large", put_large, prepare, NULL},
    {"put, with refs inside", put_containers, prepare, NULL},
    {"put, seen and awaited before its seal", put_in_sight, prepare, NULL},
    {"put, given up", abandon, prepare, NULL},
    {"put, to disk", put_on_disk, prepare, NULL},
    {"get", get, prepare, NULL},
    {"release", release, prepare, NULL},
    {"release, put off", release_later, prepare, NULL},
    {"delete", delete, prepare, NULL},
    {"delete while it is read", delete_viewed, prepare, NULL},
    {"clean", clean_only, prepare, NULL},
    {"clean and evict", clean_and_evict, prepare, NULL},
    {"evict", evict, prepare, NULL},
    {"drop a disk copy", unclean, prepare, NULL},
    {"move a disk copy", move_place, prepare, NULL},
    {"restore", restore, prepare, NULL},
    {"restore that fails", restore_in_vain, prepare, NULL},
    {"restore of what is lost", restore_lost, prepare, NULL},
    {"hand-off", hand_off, prepare, NULL},
    {"hand-off, taken back; one that lapses", take_back, prepare, NULL},
    {"name", rename_it, prepare, NULL},
    {"segment", segments, prepare, NULL},
    {"grow", grow, prepare, NULL},
    {"shrink", shrink, prepare, NULL},
    {"empty blocks", empty_blocks, prepare, NULL},
    {"wait for room", wait_for_room, prepare, NULL},
    {"attach", attach, NULL, NULL},
    {"attach to a dead member's slot", attach, NULL, make_ruins},
    {"detach", detach, prepare, NULL},
    {"fork, the parent", fork_in_vain, prepare, NULL},
    {"fork, the parent of an orphan", fork_an_orphan, prepare, NULL},
    {"fork, the child", adopt, prepare, NULL},
    {"end what was put off", finish, prepare_rests, NULL},
    {"reap", reap, prepare, make_ruins},
    {"repair and reap", attach, NULL, die_with_the_mutex},
};

/* --- stepping --- */

typedef struct moment {
    uint64_t address; /* killed before the instruction there, */
    uint32_t visit;   /* when it comes by for so many times */
} moment;

static const operation *stepped;
static moment moments[MOMENTS_MAX];
static uint32_t moment_count;
static uint8_t *table_before;
static struct {
    uint64_t address;
    uint32_t count;
} visits[VISITED_MAX];

/* The clock stands: how many instructions it takes to read depends on when it is read. */
static uint64_t standing_clock(void) { return store_opened; }

static void body(void) {
    static mp_system system;
    system = mp_linux;
    system.boottime = standing_clock;
    member_system = &system;
    if (stepped->prepare) stepped->prepare();
    if (stepped->act == adopt) CHECK_EQ(mp_atfork_add(&member), 0);
    CHECK_EQ(ptrace(PTRACE_TRACEME, 0, NULL, NULL), 0);
    raise(SIGSTOP);
    bool done = stepped->act();
    CHECK(done);
}

/* The parent of the one that is stepped: its child adopts a slot inside fork(). */
static bool adopt(void) {
    int status;
    pid_t pid = fork();
    if (pid == 0) _exit(mp_usable(&member) != MP_OK);
    if (waitpid(pid, &status, 0) != pid) return false;
    leave();
    return WIFSIGNALED(status) || WEXITSTATUS(status) == 0;
}

static void expect_stop(pid_t pid, int wanted) {
    int status;
    CHECK_EQ(waitpid(pid, &status, __WALL), pid);
    CHECK(WIFSTOPPED(status));
    CHECK_EQ(status >> 8, wanted);
}

/* A process that stands before the operation, its tracer being us. */
static pid_t launch(void) {
    pid_t pid = start(body);
    expect_stop(pid, SIGSTOP);
    if (stepped->act != adopt) return pid;
    unsigned long child;
    CHECK_EQ(ptrace(PTRACE_SETOPTIONS, pid, NULL, PTRACE_O_TRACEFORK), 0);
    CHECK_EQ(ptrace(PTRACE_CONT, pid, NULL, NULL), 0);
    expect_stop(pid, SIGTRAP | PTRACE_EVENT_FORK << 8);
    CHECK_EQ(ptrace(PTRACE_GETEVENTMSG, pid, NULL, &child), 0);
    expect_stop((pid_t)child, SIGSTOP);
    CHECK_EQ(ptrace(PTRACE_DETACH, pid, NULL, NULL), 0);
    return (pid_t)child;
}

#ifndef SKIPPED
static uint64_t address_of(pid_t pid) {
    errno = 0;
    long address = ptrace(PTRACE_PEEKUSER, pid, offsetof(struct user_regs_struct, rip), NULL);
    CHECK_EQ(errno, 0);
    return (uint64_t)address;
}

static void go_to(pid_t pid, uint64_t address) {
    CHECK_EQ(ptrace(PTRACE_POKEUSER, pid, offsetof(struct user_regs_struct, rip), address), 0);
}

/* A forked child has its code where we have it. */
static bool is_system_call(uint64_t address) {
    const uint8_t *code = (const uint8_t *)address;
    return code[0] == 0x0f && code[1] == 0x05;
}

static long word_at(uint64_t address) { return *(const long *)address; }
static long trap_at(uint64_t address) { return (word_at(address) & ~255l) | 0xcc; } /* int3 */
#else
static uint64_t address_of(pid_t pid) { return (uint64_t)pid; }
static void go_to(pid_t pid, uint64_t address) { (void)pid, (void)address; }
static bool is_system_call(uint64_t address) { return address == 0; }
static long word_at(uint64_t address) { return (long)address; }
static long trap_at(uint64_t address) { return (long)address; }
#endif

/* Goes on, by one instruction or up to a trap; false when the process has ended. */
static bool resume(pid_t pid, int request) {
    int status;
    CHECK_EQ(ptrace(request, pid, NULL, NULL), 0);
    CHECK_EQ(waitpid(pid, &status, __WALL), pid);
    if (WIFEXITED(status)) {
        CHECK_EQ(WEXITSTATUS(status), 0);
        return false;
    }
    CHECK(WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP);
    return true;
}

static void poke(pid_t pid, uint64_t address, long word) {
    CHECK_EQ(ptrace(PTRACE_POKETEXT, pid, address, word), 0);
}

/* Stops there. False: it has ended before. */
static bool run_to(pid_t pid, const moment *when) {
    uint64_t address = when->address;
    for (uint32_t visit = 1;; visit++) {
        poke(pid, address, trap_at(address));
        if (!resume(pid, PTRACE_CONT)) return false;
        go_to(pid, address);
        if (visit == when->visit) return true;
        poke(pid, address, word_at(address));
        if (!resume(pid, PTRACE_SINGLESTEP)) return false;
    }
}

/* How often it has been there, with this time. */
static uint32_t visit(uint64_t address) {
    uint32_t i = (uint32_t)(address * 0x9e3779b97f4a7c15ull >> 48) & (VISITED_MAX - 1);
    while (visits[i].address != 0 && visits[i].address != address) i = (i + 1) & (VISITED_MAX - 1);
    visits[i].address = address;
    return ++visits[i].count;
}

static bool table_changed(void) {
    if (memcmp(table_before, self.header, self.geometry.table_bytes) == 0) return false;
    memcpy(table_before, self.header, self.geometry.table_bytes);
    return true;
}

static void open_small_store(void) {
    open_store_of((fixture_shape){.arena_bytes = 3 << 20, .memory_limit = 2 << 20, .entries = 128});
    store_opened = mp_linux.boottime();
    if (stepped->before) stepped->before();
}

/* Finds the moments; returns the number of instructions. */
static uint64_t find_moments(void) {
    uint64_t steps = 0;
    open_small_store();
    pid_t pid = launch();
    table_before = malloc(self.geometry.table_bytes);
    CHECK(table_before);
    memcpy(table_before, self.header, self.geometry.table_bytes);
    memset(visits, 0, sizeof visits);
    uint64_t at = address_of(pid);
    moments[0] = (moment){at, visit(at)};
    moment_count = 1;
    for (;;) {
        bool call = is_system_call(at);
        if (!resume(pid, PTRACE_SINGLESTEP)) break;
        CHECK(++steps < STEPS_MAX);
        at = address_of(pid);
        uint32_t times = visit(at);
        if (!table_changed() && !call) continue;
        CHECK(moment_count < MOMENTS_MAX);
        moments[moment_count++] = (moment){at, times};
    }
    free(table_before);
    CHECK_EQ(wait_for_all(), 0);
    survive();
    close_store();
    return steps;
}

/* Somebody comes after the death, into the slot of the dead if it is the lowest. */
static void come_after(void) {
    become_member(7);
    work(10);
    leave();
}

/* False: this run took other instructions than the first (what /proc says has changed), and never came there. */
static bool die_at(const moment *when, bool newcomer_first) {
    int status;
    open_small_store();
    pid_t pid = launch();
    bool died = run_to(pid, when);
    if (died) {
        CHECK_EQ(kill(pid, SIGKILL), 0);
        CHECK_EQ(waitpid(pid, &status, __WALL), pid);
    }
    (void)wait_for_all();
    if (newcomer_first) run(come_after);
    survive();
    if (!newcomer_first) run(come_after);
    survive();
    close_store();
    return died;
}

static void die_in(const operation *what, uint32_t samples) {
    stepped = what;
    uint64_t steps = find_moments();
    check_random dice = {check_seed()};
    uint32_t deaths = samples < moment_count ? samples : moment_count;
    for (uint32_t i = 0; i < deaths; i++) {
        uint32_t at = deaths == moment_count ? i : (uint32_t)random_below(&dice, moment_count);
        uint32_t tries = 0;
        while (!die_at(&moments[at], (i + tries) % 2)) CHECK(++tries < 20);
    }
    check_count("operations stepped through", 1);
    check_count("their instructions", steps);
    check_count("their states and system calls", moment_count);
    check_count("kill -9 between two instructions", deaths);
    if (samples == UINT32_MAX)
        printf("   %-32s %8" PRIu64 " instructions %6u states\n", what->name, steps, moment_count);
}

static void kill_between_any_two_instructions(void) {
    const char *wanted = getenv("MP_STEPS");
    uint32_t samples = !wanted ? SAMPLES : strcmp(wanted, "all") == 0 ? UINT32_MAX : (uint32_t)atoi(wanted);
    for (uint32_t i = 0; i < sizeof operations / sizeof *operations; i++) die_in(&operations[i], samples);
}

/* A fill by one instruction stops after each byte: the C library is told to use many instead. */
static void without_repeated_instructions(char **argv) {
    static const char *const name = "GLIBC_TUNABLES";
    if (getenv(name)) return;
    setenv(name, "glibc.cpu.x86_rep_stosb_threshold=1000000000:glibc.cpu.x86_rep_movsb_threshold=1000000000", 1);
    execv("/proc/self/exe", argv);
}

int main(int argc, char **argv) {
    without_repeated_instructions(argv);
    check_arguments(argc, argv);
    processes_begin();
#ifdef SKIPPED
    (void)kill_between_any_two_instructions;
    printf("skipped: %s\n", SKIPPED);
#else
    RUN(kill_between_any_two_instructions);
#endif
    return 0;
}
