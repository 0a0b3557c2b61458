#define _GNU_SOURCE
#include "stormer.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "atfork.h"
#include "failpoint_page.h"

#define LIFE 50000u /* steps at most: a storm whose parent is gone ends by itself */
#define HANG_NS 60000000000ll /* a mutex that is not to be had for so long is lost */
#define TRIES 6
#define REFS 8u
#define WAIT_NS 1000000

storm *weather;
static storm_row *own_row;
static uint32_t own_pid;
static storm_fate own_fate;
static const uint64_t no_limit = UINT64_MAX;
static agent second; /* of the other thread */
static pthread_t thread;
static bool has_thread;
static _Atomic bool thread_ends;

void storm_open(void) {
    weather = mmap(NULL, sizeof *weather, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(weather != MAP_FAILED);
}

static uint64_t below(agent *a, uint64_t limit) { return random_below(&a->random, limit); }

/* --- steps of the kernel --- */

static void take_note(const char *step) {
    if (atomic_load_explicit(&weather->frozen, memory_order_relaxed)) return;
    uint32_t at = atomic_fetch_add_explicit(&own_row->noted, 1, memory_order_relaxed) % STORM_NOTES;
    own_row->notes[at] = (storm_note){.ticks = mp_ticks(), .step = step, .pid = own_pid};
}

static void dawdle(const char *step) {
    static _Thread_local check_random mood;
    mood.state += own_pid;
    for (uint32_t i = 0; i < STORM_SLOW; i++)
        if (weather->slow[i] && strcmp(weather->slow[i], step) == 0 && random_below(&mood, 2) == 0)
            usleep((useconds_t)random_below(&mood, 1000));
}

static void meet_fate(const char *step) {
    if (!own_fate.step || strcmp(own_fate.step, step) != 0 || --own_fate.hit != 0) return;
    own_fate.step = NULL;
    if (own_fate.signal == SIGSTOP) atomic_fetch_add(&weather->stops, 1);
    kill(getpid(), own_fate.signal);
}

static void pass(const char *step) {
    take_note(step);
    meet_fate(step);
    dawdle(step);
}

static void freeze(void) { atomic_store(&weather->frozen, true); }

static int by_time(const void *a, const void *b) {
    uint64_t x = ((const storm_note *)a)->ticks, y = ((const storm_note *)b)->ticks;
    return x < y ? -1 : x > y;
}

void storm_print_notes(void) {
    static storm_note all[STORM_ROWS * STORM_NOTES];
    freeze();
    for (uint32_t r = 0; r < STORM_ROWS; r++)
        memcpy(all + r * STORM_NOTES, weather->rows[r].notes, sizeof weather->rows[r].notes);
    qsort(all, STORM_ROWS * STORM_NOTES, sizeof *all, by_time);
    for (uint32_t i = 0; i < STORM_ROWS * STORM_NOTES; i++)
        if (all[i].step) fprintf(stderr, "%" PRIu64 " %u %s\n", all[i].ticks, all[i].pid, all[i].step);
}

/* --- what agents do not do --- */

static bool is_busy(const agent *a, mp_code code) { return a->hasty && code == MP_BUSY; }

/* A value with refs inside, some of them to values that are dead. */
static void contain(agent *a) {
    uint32_t targets[REFS], count = a->ref_count ? (uint32_t)below(a, REFS) : 0;
    uint64_t births[REFS], id, offset, size = below(a, 3000);
    if (agent_draft(a, size, &id, &offset) != MP_OK) return;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t target = a->refs[below(a, a->ref_count)];
        targets[i] = (uint32_t)(target & 0xffff), births[i] = target >> 16;
    }
    mp_code code = mp_contain(a->m, (uint32_t)(id & 0xffff), id >> 16, targets, births, count);
    CHECK(code == MP_OK || code == MP_POOL_FULL || is_busy(a, code));
    agent_finish_draft(a, id, offset, size);
}

static void queue(agent *a) {
    uint64_t size = 20000 + below(a, 200000), id, offset;
    mp_code code = mp_queue_enter(a->m, size);
    CHECK(code == MP_OK || is_busy(a, code));
    if (code != MP_OK) return;
    for (int i = 0; i < TRIES && code != MP_POOL_FULL; i++) {
        uint32_t seen = mp_event(a->m);
        code = agent_draft(a, size, &id, &offset);
        if (code == MP_OK) {
            agent_finish_draft(a, id, offset, size);
            break;
        }
        code = mp_queue_renew(a->m);
        CHECK(code == MP_OK || is_busy(a, code));
        if (!agent_make_room(a, size)) mp_event_wait(a->m, seen, WAIT_NS);
    }
    code = mp_queue_leave(a->m, size);
    CHECK(code == MP_OK || is_busy(a, code));
}

static void change_limits(agent *a) {
    uint64_t limit = weather->memory_limit / 2 + below(a, weather->memory_limit / 2), disk = below(a, 16 << 20);
    mp_set_limits(a->m, &limit, below(a, 4) == 0 ? &disk : &no_limit, NULL);
    (void)mp_idle_bytes(a->m);
}

/* What policies and people ask for: rows of things that may be gone by the time they are read. */
static void survey(agent *a) {
    mp_candidate candidates[8];
    mp_object objects[8];
    mp_segment_row rows[8];
    uint64_t bytes[MP_SLOTS];
    uint32_t found, cursor = 0;
    while (cursor < mp_entries_backed(a->m) && mp_candidates(a->m, &cursor, candidates, 8) != 0) continue;
    cursor = 0;
    while (cursor < mp_entries_backed(a->m) && mp_objects(a->m, &cursor, objects, 8, &found) == MP_OK) continue;
    cursor = 0;
    (void)mp_segments(a->m, &cursor, rows, 8, &found);
    mp_kept_bytes(a->m, true, bytes);
}

/* Many values of one size, or none. */
static bool go_with_the_tide(agent *a) {
    uint64_t id, offset, size = atomic_load(&weather->tide_size);
    switch (atomic_load_explicit(&weather->tide, memory_order_relaxed)) {
    case STORM_FLOOD:
        if (below(a, 3) != 0 || agent_draft(a, size, &id, &offset) != MP_OK) return false;
        agent_finish_draft(a, id, offset, size);
        return true;
    case STORM_EBB:
        if (below(a, 16) != 0) return false;
        agent_let_go(a);
        agent_sweep(a->m, ground);
        return true;
    default: return false;
    }
}

/* --- two threads --- */

static void work_once(agent *a) {
    if (go_with_the_tide(a)) return;
    if (below(a, 40) != 0) agent_step(a);
    else if (below(a, 2) == 0) contain(a);
    else queue(a);
}

static void *work_beside(void *unused) {
    while (!atomic_load_explicit(&thread_ends, memory_order_relaxed)) work_once(&second);
    agent_let_go(&second);
    return unused;
}

static void start_thread(void) {
    second = (agent){.m = &member, .ground = ground, .random = {random_next(&worker.random)}};
    second.hasty = worker.hasty, second.refused = worker.refused;
    CHECK_EQ(pthread_create(&thread, NULL, work_beside, NULL), 0);
    has_thread = true;
}

static void end_thread(void) {
    atomic_store(&thread_ends, true);
    if (has_thread) pthread_join(thread, NULL);
}

/* --- the system refuses --- */

static int refuse_some(int (*call)(mp_member *, uint64_t, uint64_t), mp_member *m, uint64_t offset, uint64_t length) {
    static _Thread_local check_random whim;
    whim.state += own_pid;
    return random_below(&whim, 16) == 0 ? ENOMEM : call(m, offset, length);
}

static int commit(mp_member *m, uint64_t offset, uint64_t length) {
    return refuse_some(mp_linux.commit, m, offset, length);
}

static int punch(mp_member *m, uint64_t offset, uint64_t length) {
    return refuse_some(mp_linux.punch, m, offset, length);
}

static void let_system_refuse(void) {
    static mp_system unwilling;
    unwilling = mp_linux;
    unwilling.commit = commit;
    unwilling.punch = punch;
    member.system = &unwilling;
    worker.refused = true;
}

/* --- one step --- */

/* The child goes on in the place of its parent, which leaves. An orphan has views, and no more. */
static void fork_on(agent *a) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid != 0) {
        end_thread();
        leave();
        _exit(0);
    }
    has_thread = false; /* what it held and viewed stays ours, until we leave */
    if (own_fate.signal == SIGSTOP) own_fate.step = NULL; /* it was its parent's */
    atomic_store(&own_row->pid, own_pid = (uint32_t)getpid());
    atomic_fetch_add(&weather->forks, 1);
    a->segment = 0;
    a->random.state += own_pid;
    if (mp_usable(a->m) == MP_OK) return;
    CHECK(atomic_load(&a->m->state) == MP_MEMBER_ORPHAN);
    a->ref_count = 0;
    agent_check(a);
    _exit(0);
}

static void look(agent *a) {
    int64_t patience = a->m->patience_ns;
    a->m->patience_ns = HANG_NS;
    fixture_check(a->m);
    a->m->patience_ns = patience;
    atomic_fetch_add(&weather->checks, 1);
}

/* After a repair: whoever is the first to see that there was one. */
static void look_again(agent *a) {
    uint64_t repairs = __atomic_load_n(&a->m->header->recoveries, __ATOMIC_RELAXED);
    uint64_t checked = atomic_load(&weather->checked);
    if (checked < repairs && atomic_compare_exchange_strong(&weather->checked, &checked, repairs)) look(a);
}

static void step(agent *a) {
    look_again(a);
    switch (below(a, 600)) {
    case 0: fork_on(a); break;
    case 1: look(a); break;
    case 2: change_limits(a); break;
    case 16: survey(a); break;
    case 3: (void)mp_finish(a->m); break;
    case 4:
    case 5:
    case 6:
    case 7: mp_reap_dead(a->m); break;
    case 8:
    case 9:
    case 10:
    case 11:
    case 12:
    case 13: (void)mp_empty_blocks(a->m, 1 + below(a, 1 << 20)); break;
    case 14:
    case 15: agent_check(a); break;
    default: work_once(a);
    }
    atomic_fetch_add_explicit(&own_row->steps, 1, memory_order_relaxed);
}

void storm_work(uint32_t row, uint64_t salt, storm_fate fate) {
    own_row = &weather->rows[row];
    own_pid = (uint32_t)getpid();
    own_fate = fate;
    CHECK_EQ(prctl(PR_SET_PDEATHSIG, SIGKILL), 0); /* also if it is stopped */
    failpoint_hook = pass;
    check_last_words = freeze;
    become_member(salt);
    worker.hasty = weather->patience_ns != 0;
    member.patience_ns = worker.hasty ? weather->patience_ns : HANG_NS;
    CHECK_EQ(mp_atfork_add(&member), 0);
    if (weather->refusals) let_system_refuse();
    if (weather->two_threads) start_thread();
    for (uint64_t life = below(&worker, LIFE); life != 0 && !atomic_load(&weather->over); life--) step(&worker);
    end_thread();
    if (below(&worker, 2) == 0) { /* as a store that is closed with all that it has */
        while (worker.view_count) mp_unpin(&member, (uint32_t)(worker.views[--worker.view_count] & 0xffff), MP_ONE_VIEW);
        worker.ref_count = 0;
        mp_drop_all(&member);
    }
    leave();
}
