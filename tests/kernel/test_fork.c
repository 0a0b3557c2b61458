/* Fork: what the child has of its parent's refs and pins, and what becomes of it without a slot. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "atfork.h"
#include "failpoint_page.h"
#include "processes.h"

static uint32_t entry;
static uint64_t birth, offset, size;

static uint32_t bits(_Atomic uint64_t *words) {
    uint32_t n = 0;
    for (uint32_t w = 0; w < MP_BIT_WORDS; w++) n += (uint32_t)__builtin_popcountll(atomic_load(&words[w]));
    return n;
}

/* A member with a ref, a view and an operation under way, and its child. */
static void fork_with_view(void (*child)(void)) {
    become_member(1);
    uint64_t id = agent_create(&worker, 50000);
    entry = (uint32_t)(id & 0xffff);
    birth = id >> 16;
    CHECK_EQ(mp_view(&member, entry, birth, &offset, &size), MP_OK);
    mp_pin(&member, entry, MP_ONE_OP);
    CHECK_EQ(mp_atfork_add(&member), 0);
    start(child);
    CHECK_EQ(mp_usable(&member), MP_OK);
    mp_unpin(&member, entry, MP_ONE_OP);
    mp_unpin(&member, entry, MP_ONE_VIEW);
    CHECK_EQ(mp_drop(&member, entry, -1), MP_OK);
    CHECK_EQ(wait_for_all(), 0);
    mp_release_slot(&member);
}

static void lives_on(void) {
    uint32_t slot = member.slot;
    mp_entry *e = &member.entries[entry];
    CHECK_EQ(mp_usable(&member), MP_OK);
    CHECK(slot > 1 && slot < MP_SLOT_ORPHANS);
    CHECK_EQ(atomic_load(&member.locals[entry].pins), MP_ONE_VIEW); /* the operation was the parent's */
    CHECK_EQ(atomic_load(&member.locals[entry].refs), 1);
    CHECK(atomic_load(mp_pin_word(e, slot)) & mp_bit(slot));
    CHECK(atomic_load(mp_holder_word(e, slot)) & mp_bit(slot));
    CHECK(member.system->slot_locked(&member, slot) & MP_LOCK_MEMBER);
    mp_unpin(&member, entry, MP_ONE_OP); /* what the parent has begun is not ours to end */
    CHECK_EQ(atomic_load(&member.locals[entry].pins), MP_ONE_VIEW);
    mp_unpin(&member, entry, MP_ONE_VIEW);
    agent_expect_value(&worker, birth << 16 | entry);
    CHECK_EQ(mp_drop(&member, entry, -1), MP_OK);
    mp_release_slot(&member);
}

static void parent_of_a_member(void) { fork_with_view(lives_on); }

/* The parent is gone with everything that it had; the child's own refs and pins keep the value. */
static void outlives(void) {
    for (uint32_t tries = 0; mp_reap_dead(&member) == 0; tries++) { /* until the OS has let it go */
        CHECK(tries < 100000);
        usleep(100);
    }
    lives_on();
}

static void parent_that_dies(void) {
    become_member(1);
    uint64_t id = agent_create(&worker, 50000);
    entry = (uint32_t)(id & 0xffff);
    birth = id >> 16;
    CHECK_EQ(mp_view(&member, entry, birth, &offset, &size), MP_OK);
    CHECK_EQ(mp_atfork_add(&member), 0);
    start(outlives);
    _exit(0);
}

static void is_an_orphan(void) {
    CHECK_EQ(member.slot, MP_SLOT_ORPHANS);
    CHECK_EQ(mp_usable(&member), MP_CLOSED);
    mp_entry *e = &member.entries[entry];
    CHECK(atomic_load(mp_pin_word(e, MP_SLOT_ORPHANS)) & mp_bit(MP_SLOT_ORPHANS));
    while (bits(e->holders) != 0) usleep(100); /* the parent lets go of its ref: garbage, but pinned */
    CHECK_EQ(mp_state_of(atomic_load(&e->control)), MP_GARBAGE);
    uint64_t word;
    for (uint64_t at = 0; at + 8 <= size; at += 8) { /* the view is valid to its last byte */
        memcpy(&word, member.arena_read + offset + at, 8);
        CHECK_EQ(word, agent_word(birth, at));
    }
}

static void parent_of_an_orphan(void) { fork_with_view(is_an_orphan); }

/* A system without locks: none for the birth of a child, none for a slot. */
static int no_lock(mp_member *m, uint32_t slot) {
    (void)m, (void)slot;
    return ENOLCK;
}

static mp_system lockless;
static struct rlimit descriptors;

/* No descriptor: no birth lock for a child of m. */
static void refuse_birth_locks(mp_member *m) {
    if (m->spare_fd >= 0) close(m->spare_fd);
    m->spare_fd = -1;
    CHECK_EQ(getrlimit(RLIMIT_NOFILE, &descriptors), 0);
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &(struct rlimit){0, descriptors.rlim_max}), 0);
}

static void allow_birth_locks(void) { CHECK_EQ(setrlimit(RLIMIT_NOFILE, &descriptors), 0); }

static void view_and_refuse_locks(void) {
    become_member(1);
    uint64_t id = agent_create(&worker, 50000);
    entry = (uint32_t)(id & 0xffff), birth = id >> 16;
    CHECK_EQ(mp_view(&member, entry, birth, &offset, &size), MP_OK);
    lockless = mp_linux;
    lockless.lock_slot = no_lock;
    member.system = &lockless;
    refuse_birth_locks(&member);
}

static void let_go_with_locks(void) {
    allow_birth_locks();
    member.system = &mp_linux;
    mp_unpin(&member, entry, MP_ONE_VIEW);
    CHECK_EQ(mp_drop(&member, entry, -1), MP_OK);
}

/* Between fork and its first instruction nothing but the mark speaks for the child. */
static void parent_without_locks(void) {
    int status;
    uint64_t word;
    view_and_refuse_locks();
    mp_fork_prepare(&member);
    uint32_t slot = member.fork_slot;
    CHECK(slot < MP_SLOT_ORPHANS);
    CHECK_EQ(member.system->slot_locked(&member, slot), 0);
    CHECK_EQ(mp_slot_dead(&member, slot, &word), false);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* should a check of its parent fail */
        mp_fork_child(&member);
        for (;;) pause();
    }
    mp_fork_parent(&member);
    let_go_with_locks();
    while (atomic_load(&member.slots[slot].pid) != (uint32_t)pid) {
        CHECK_EQ(waitpid(pid, &status, WNOHANG), 0);
        CHECK_EQ(mp_reap_dead(&member), 0);
    }
    CHECK_EQ(mp_reap_dead(&member), 0);
    CHECK_EQ(member.system->slot_locked(&member, slot), 0); /* it has no lock, but lives */
    CHECK(atomic_load(mp_pin_word(&member.entries[entry], slot)) & mp_bit(slot));
    kill(pid, SIGKILL);
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(mp_reap_dead(&member), 1);
    CHECK_EQ(mp_state(&member, entry, birth), MP_NOT_FOUND);
    mp_release_slot(&member);
}

/* Neither a slot nor a lock: what it views outlives it, since nobody knows when it ends. */
static void parent_of_an_orphan_without_a_lock(void) {
    uint64_t word;
    view_and_refuse_locks();
    mp_fork_prepare(&member);
    CHECK_EQ(member.fork_slot, MP_SLOT_ORPHANS);
    mp_fork_parent(&member);
    let_go_with_locks();
    CHECK_EQ(mp_slot_dead(&member, MP_SLOT_ORPHANS, &word), false);
    mp_fork_prepare(&member); /* another orphan, with a lock, which ends */
    CHECK_EQ(member.fork_slot, MP_SLOT_ORPHANS);
    CHECK(member.system->slot_locked(&member, MP_SLOT_ORPHANS) & MP_LOCK_BIRTH);
    mp_fork_parent(&member);
    CHECK_EQ(member.system->slot_locked(&member, MP_SLOT_ORPHANS), 0);
    CHECK_EQ(mp_slot_dead(&member, MP_SLOT_ORPHANS, &word), false);
    CHECK(atomic_load(mp_pin_word(&member.entries[entry], MP_SLOT_ORPHANS)) & mp_bit(MP_SLOT_ORPHANS));
    mp_release_slot(&member);
}

/* What happens elsewhere while a member looks at slot 1, whose owner is dead. */
static bool freed_and_reserved(mp_member *m, uint32_t pid, uint64_t start_time) {
    (void)m, (void)pid, (void)start_time;
    CHECK_EQ(mp_reap(&self, 1, atomic_load(&self.slots[1].word)), MP_OK);
    refuse_birth_locks(&self);
    mp_fork_prepare(&self);
    CHECK_EQ(self.fork_slot, 1);
    mp_fork_parent(&self);
    allow_birth_locks();
    return false;
}

static uint32_t adopted(mp_member *m, uint32_t slot) {
    mp_slot_adopt(m, slot);
    return 0;
}

/* --- tests --- */

static void a_slot_reserved_meanwhile_is_not_taken_over(void) {
    open_store(4 << 20);
    mp_system elsewhere = mp_linux;
    elsewhere.process_alive = freed_and_reserved;
    mp_slot_mark(&self, 1, MP_SLOT_LIVE); /* of no process */
    member_system = &elsewhere;
    become_member(1);
    member_system = &mp_linux;
    CHECK_EQ(member.slot, 2);
    CHECK_EQ(mp_slot_state_of(self.slots[1].word), MP_SLOT_RESERVED);
    CHECK_EQ(self.slots[1].pid, MP_PID_UNSEEN);
    mp_release_slot(&member);
    fixture_unmap(&member);
    atomic_store(&self.slots[1].pid, 0); /* there is no child */
    CHECK_EQ(mp_reap_dead(&self), 1);
    survive();
    close_store();
}

static void a_slot_adopted_meanwhile_is_not_dead(void) {
    uint64_t word;
    open_store(4 << 20);
    mp_system elsewhere = mp_linux;
    elsewhere.slot_locked = adopted;
    self.system = &elsewhere;
    atomic_store(&self.slots[1].pid, MP_PID_UNSEEN);
    mp_slot_mark(&self, 1, MP_SLOT_RESERVED);
    CHECK_EQ(mp_slot_dead(&self, 1, &word), false);
    CHECK_EQ(mp_slot_state_of(self.slots[1].word), MP_SLOT_LIVE);
    self.system = &mp_linux;
    atomic_store(&self.slots[1].pid, 0); /* there is no child */
    CHECK_EQ(mp_reap_dead(&self), 1);
    survive();
    close_store();
}

static void without_locks_a_child_is_known_by_its_pid(void) {
    open_store(4 << 20);
    run(parent_without_locks);
    survive();
    close_store();
}

/* As if all slots but those of the test were taken, or free again. */
static void mark_others(enum mp_slot_state state) {
    for (uint32_t slot = 2; slot < MP_SLOT_ORPHANS; slot++) atomic_store(&self.slots[slot].word, state);
}

static void without_slot_and_lock_views_stay_for_ever(void) {
    open_store(4 << 20);
    mark_others(MP_SLOT_LIVE);
    run(parent_of_an_orphan_without_a_lock);
    mark_others(MP_SLOT_FREE);
    CHECK_EQ(mp_slot_state_of(self.slots[MP_SLOT_ORPHANS].word), MP_SLOT_KEPT);
    mp_slot_mark(&self, MP_SLOT_ORPHANS, MP_SLOT_LIVE); /* for the test's own end */
    survive();
    close_store();
}

static void a_child_is_a_member(void) {
    open_store(4 << 20);
    run(parent_of_a_member);
    survive();
    close_store();
}

static void a_child_outlives_its_parent(void) {
    open_store(4 << 20);
    start(parent_that_dies);
    CHECK_EQ(wait_for_all(), 0);
    survive();
    close_store();
}

static void without_a_slot_views_stay_valid(void) {
    open_store(4 << 20);
    mark_others(MP_SLOT_LIVE);
    run(parent_of_an_orphan);
    mark_others(MP_SLOT_FREE);
    CHECK_EQ(mp_slot_state_of(self.slots[MP_SLOT_ORPHANS].word), MP_SLOT_LIVE);
    survive(); /* reaps the orphans' slot, too */
    close_store();
}

/* An orphan that is gone, with a pin of its own. */
static void leave_an_orphan(uint32_t slot) {
    mp_slot_mark(&self, slot, MP_SLOT_LIVE);
    atomic_fetch_or(mp_pin_word(&self.entries[entry], slot), mp_bit(slot));
}

static bool orphans_pin(uint32_t slot) { return atomic_load(mp_pin_word(&self.entries[entry], slot)) & mp_bit(slot); }

/* Whoever reaps the slot of orphans stands still with the mutex, and somebody forks who cannot have it. */
static void fork_meanwhile(const char *name) {
    if (strcmp(name, "reap.entry") != 0) return;
    failpoint_hook = NULL;
    mp_fork_prepare(&member);
}

static void an_orphan_comes_while_others_are_reaped(void) {
    for (uint32_t slot = MP_SLOT_ORPHANS; slot < MP_SLOTS; slot++) {
        open_store(4 << 20);
        become_member(1);
        uint64_t id = agent_create(&worker, 50000);
        entry = (uint32_t)(id & 0xffff), birth = id >> 16;
        CHECK_EQ(mp_view(&member, entry, birth, &offset, &size), MP_OK);
        leave_an_orphan(slot);
        member.patience_ns = 1000000;
        failpoint_hook = fork_meanwhile;
        CHECK_EQ(mp_reap(&self, slot, atomic_load(&self.slots[slot].word)), MP_OK);
        CHECK(failpoint_hook == NULL);
        CHECK(member.fork_slot >= MP_SLOT_ORPHANS);
        CHECK_EQ(mp_slot_state_of(self.slots[slot].word), MP_SLOT_FREE);
        CHECK(orphans_pin(member.fork_slot)); /* what the child views is not given away */
        mp_fork_parent(&member);
        CHECK_EQ(mp_reap_dead(&self), 1); /* there was no child */
        CHECK(!orphans_pin(member.fork_slot));
        mp_unpin(&member, entry, MP_ONE_VIEW);
        CHECK_EQ(mp_drop(&member, entry, -1), MP_OK);
        mp_release_slot(&member);
        fixture_unmap(&member);
        survive();
        close_store();
    }
}

/* Somebody begins to reap the slot that an orphan is about to join, and dies of it. */
static void reaping_begins(const char *name) {
    if (strcmp(name, "slot.mark") != 0) return;
    failpoint_hook = NULL;
    mp_slot_mark(&self, MP_SLOT_ORPHANS, MP_SLOT_REAPING);
}

static void an_orphan_that_was_too_late_leaves_no_trace(void) {
    for (uint32_t locks = 0; locks < 2; locks++) {
        uint32_t first = MP_SLOT_ORPHANS, second = MP_SLOT_ORPHANS + 1;
        open_store(4 << 20);
        become_member(1);
        uint64_t id = agent_create(&worker, 50000);
        entry = (uint32_t)(id & 0xffff), birth = id >> 16;
        CHECK_EQ(mp_view(&member, entry, birth, &offset, &size), MP_OK);
        leave_an_orphan(first);
        mark_others(MP_SLOT_LIVE);
        if (!locks) refuse_birth_locks(&member);
        failpoint_hook = reaping_begins;
        mp_fork_prepare(&member);
        CHECK(failpoint_hook == NULL);
        if (!locks) allow_birth_locks();
        mark_others(MP_SLOT_FREE);
        CHECK_EQ(member.fork_slot, second);
        CHECK_EQ(mp_reap_dead(&self), 1); /* the other lives */
        CHECK(!orphans_pin(first) && orphans_pin(second));
        mp_fork_parent(&member);
        CHECK_EQ(mp_reap_dead(&self), locks); /* there was no child; without a lock nobody can tell */
        CHECK_EQ(orphans_pin(second), !locks);
        if (!locks) mp_slot_mark(&self, second, MP_SLOT_LIVE); /* for the test's own end */
        mp_unpin(&member, entry, MP_ONE_VIEW);
        CHECK_EQ(mp_drop(&member, entry, -1), MP_OK);
        mp_release_slot(&member);
        fixture_unmap(&member);
        survive();
        close_store();
    }
}

/* Or there would be none for an orphan to come to. */
static void one_slot_of_orphans_is_reaped_at_a_time(void) {
    for (uint32_t slot = MP_SLOT_ORPHANS; slot < MP_SLOTS; slot++) {
        open_store(4 << 20);
        mp_slot_mark(&self, slot, MP_SLOT_REAPING); /* by one that is dead */
        uint32_t other = slot ^ 1;
        entry = (uint32_t)(ground->board[0] & 0xffff);
        leave_an_orphan(other);
        uint64_t word = atomic_load(&self.slots[other].word);
        CHECK_EQ(mp_reap(&self, other, word), MP_OK);
        CHECK_EQ(atomic_load(&self.slots[other].word), word);
        CHECK(orphans_pin(other));
        while (mp_reap_dead(&self) != 0) continue;
        CHECK(!orphans_pin(other));
        survive();
        close_store();
    }
}

/* Closed behind a stopped holder of the mutex, and joined again: the first slot has a live process, and no owner. */
static void a_member_that_could_not_leave_is_reaped(void) {
    open_store(4 << 20);
    become_member(1);
    uint64_t id = agent_create(&worker, 50000);
    entry = (uint32_t)(id & 0xffff);
    uint32_t slot = member.slot;
    member.patience_ns = 1000000;
    CHECK_EQ(mp_lock(&self, -1), MP_OK);
    mp_drop_all(&member);
    mp_release_slot(&member);
    mp_unlock(&self);
    CHECK_EQ(mp_slot_state_of(self.slots[slot].word), MP_SLOT_LIVE);
    CHECK_EQ(mp_state(&self, entry, id >> 16), MP_OK);
    CHECK_EQ(mp_reap_dead(&self), 1);
    CHECK_EQ(mp_state(&self, entry, id >> 16), MP_NOT_FOUND);
    fixture_unmap(&member);
    survive();
    close_store();
}

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    processes_begin();
    RUN(a_child_is_a_member);
    RUN(a_child_outlives_its_parent);
    RUN(without_a_slot_views_stay_valid);
    RUN(without_locks_a_child_is_known_by_its_pid);
    RUN(without_slot_and_lock_views_stay_for_ever);
    RUN(a_slot_reserved_meanwhile_is_not_taken_over);
    RUN(a_slot_adopted_meanwhile_is_not_dead);
    RUN(an_orphan_comes_while_others_are_reaped);
    RUN(an_orphan_that_was_too_late_leaves_no_trace);
    RUN(one_slot_of_orphans_is_reaped_at_a_time);
    RUN(a_member_that_could_not_leave_is_reaped);
    return 0;
}
