/* Fork: what the child has of its parent's refs and pins, and what becomes of it without a slot. */
#define _GNU_SOURCE
#include <string.h>
#include <unistd.h>

#include "atfork.h"
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
    CHECK(slot > 1 && slot != MP_SLOT_ORPHAN);
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
    CHECK_EQ(member.slot, MP_SLOT_ORPHAN);
    CHECK_EQ(mp_usable(&member), MP_CLOSED);
    mp_entry *e = &member.entries[entry];
    CHECK(atomic_load(mp_pin_word(e, MP_SLOT_ORPHAN)) & mp_bit(MP_SLOT_ORPHAN));
    while (bits(e->holders) != 0) usleep(100); /* the parent lets go of its ref: garbage, but pinned */
    CHECK_EQ(mp_state_of(atomic_load(&e->control)), MP_GARBAGE);
    uint64_t word;
    for (uint64_t at = 0; at + 8 <= size; at += 8) { /* the view is valid to its last byte */
        memcpy(&word, member.arena_read + offset + at, 8);
        CHECK_EQ(word, agent_word(birth, at));
    }
}

static void parent_of_an_orphan(void) { fork_with_view(is_an_orphan); }

/* --- tests --- */

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
    for (uint32_t slot = 2; slot < MP_SLOT_ORPHAN; slot++) atomic_store(&self.slots[slot].word, MP_SLOT_LIVE);
    run(parent_of_an_orphan);
    for (uint32_t slot = 2; slot < MP_SLOT_ORPHAN; slot++) atomic_store(&self.slots[slot].word, MP_SLOT_FREE);
    CHECK_EQ(self.slots[MP_SLOT_ORPHAN].word & 255u, MP_SLOT_LIVE);
    survive(); /* reaps the orphans' slot, too */
    close_store();
}

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    processes_begin();
    RUN(a_child_is_a_member);
    RUN(a_child_outlives_its_parent);
    RUN(without_a_slot_views_stay_valid);
    return 0;
}
