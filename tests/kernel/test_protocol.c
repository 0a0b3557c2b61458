/* The protocol in slow motion: members of one thread, and a second one that acts exactly where a
 * failpoint stops the first.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "failpoint_page.h"
#include "fixture.h"

#define SOON 3600000000000ull /* an hour from boot's clock on */

static fixture store;
static mp_member a, b; /* two members; most tests let b interfere with a */

typedef struct object {
    uint32_t entry;
    uint64_t birth;
} object;

static void open_store(void) {
    fixture_create(&store, (fixture_shape){.arena_bytes = 8 << 20, .memory_limit = 4 << 20, .entries = 300});
    fixture_first(&store, &a);
    fixture_join(&a, &b);
    CHECK_EQ(mp_grow(&a, 1), MP_OK);
}

static void close_store(void) {
    fixture_check(&a);
    mp_release_slot(&b);
    mp_token_expire(&a, UINT64_MAX - 1);
    mp_drop_all(&a);
    fixture_check(&a);
    CHECK_EQ(a.header->pool_entries.used, 1);
    CHECK_EQ(a.header->free_pages, a.header->committed_blocks * MP_BLOCK_PAGES);
    fixture_leave(&b);
    fixture_unmap(&a);
    fixture_close(&store);
}

static object make(mp_member *m, uint64_t size) {
    object o;
    uint64_t offset;
    CHECK_EQ(mp_draft(m, size, &o.entry, &o.birth, &offset), MP_OK);
    memset(m->arena_write + offset, 7, size);
    CHECK_EQ(mp_seal(m, o.entry, o.birth), MP_OK);
    return o;
}

static mp_place record(mp_member *m, uint64_t bytes) {
    uint64_t id;
    uint32_t segment;
    mp_place place = {.length = bytes};
    CHECK_EQ(mp_segment_open(m, 0, &segment, &id), MP_OK);
    CHECK_EQ(mp_segment_reserve(m, segment, bytes, &place.offset), MP_OK);
    place.segment = segment;
    mp_segment_close(m, segment); /* DEAD until a place points to it */
    return place;
}

/* Spilled, with a disk place of its own. */
static void spill(mp_member *m, object o) {
    uint64_t offset, size, id;
    uint32_t segment;
    mp_place place = {.length = 4096};
    CHECK_EQ(mp_segment_open(m, 0, &segment, &id), MP_OK);
    CHECK_EQ(mp_segment_reserve(m, segment, 4096, &place.offset), MP_OK);
    place.segment = segment;
    CHECK_EQ(mp_clean_claim(m, o.entry, o.birth, &offset, &size), MP_OK);
    CHECK_EQ(fixture_publish(m, o.entry, o.birth, &place, true), MP_OK);
    mp_segment_close(m, segment);
    CHECK_EQ(mp_state(m, o.entry, o.birth), MP_IS_SPILLED);
}

static bool pinned_by(mp_member *m, object o) {
    return (atomic_load(mp_pin_word(&m->entries[o.entry], m->slot)) & mp_bit(m->slot)) != 0;
}

/* --- interference --- */

static const char *stop_at;
static void (*interfere)(void);
static object target;
static mp_code seen;

static void hook(const char *name) {
    if (stop_at == NULL || strcmp(name, stop_at) != 0) return;
    stop_at = NULL; /* once */
    interfere();
}

static void at(const char *name, void (*what)(void)) {
    failpoint_hook = hook;
    stop_at = name;
    interfere = what;
}

static void happened(void) {
    CHECK(stop_at == NULL);
    failpoint_hook = NULL;
}

static void b_deletes(void) { seen = mp_delete(&b, target.entry, target.birth); }
static void b_evicts(void) { seen = mp_evict(&b, target.entry, target.birth); }

static void b_views(void) {
    uint64_t offset, size;
    seen = mp_view(&b, target.entry, target.birth, &offset, &size);
}

/* PAIR pin-evict, the reader first: its bit is set, control not loaded. */
static void eviction_sees_a_pin(void) {
    uint64_t offset, size;
    open_store();
    target = make(&a, 1000);
    spill(&a, target);
    CHECK_EQ(mp_restore_begin(&a, target.entry, target.birth, &offset), MP_OK);
    CHECK_EQ(mp_restore_end(&a, target.entry, target.birth, MP_RESIDENT), MP_OK);
    at("pin.bit", b_evicts);
    CHECK_EQ(mp_view(&a, target.entry, target.birth, &offset, &size), MP_OK);
    happened();
    CHECK_EQ(seen, MP_IS_PINNED);
    CHECK_EQ(size, 1000);
    mp_unpin(&a, target.entry, MP_ONE_VIEW);
    b_evicts();
    CHECK_EQ(seen, MP_OK);
    close_store();
}

/* The eviction first: a reader in its middle goes away again, and the eviction succeeds. */
static void a_reader_sees_an_eviction(void) {
    uint64_t offset, size;
    mp_place place;
    open_store();
    target = make(&a, 100000);
    spill(&a, target);
    CHECK_EQ(mp_place_read(&a, target.entry, target.birth, &place, &size), MP_IS_SPILLED);
    CHECK_EQ(size, 100000);
    CHECK_EQ(mp_restore_begin(&a, target.entry, target.birth, &offset), MP_OK);
    CHECK_EQ(mp_restore_end(&a, target.entry, target.birth, MP_RESIDENT), MP_OK);
    CHECK_EQ(mp_evict(&a, target.entry, target.birth), MP_IS_PINNED); /* by our own operation */
    mp_unpin(&a, target.entry, MP_ONE_OP);
    uint64_t free_pages = a.header->free_pages;
    at("evict.evicting", b_views);
    CHECK_EQ(mp_evict(&a, target.entry, target.birth), MP_OK);
    happened();
    CHECK_EQ(seen, MP_IS_SPILLED);
    CHECK(!pinned_by(&b, target));
    CHECK_EQ(a.header->free_pages, free_pages + 25);
    close_store();
}

/* The object dies between the look at its state and the pin. */
static void a_claim_looks_twice(void) {
    uint64_t offset, size;
    open_store();
    target = make(&a, 1000);
    at("pin.bit", b_deletes);
    CHECK_EQ(mp_clean_claim(&a, target.entry, target.birth, &offset, &size), MP_NOT_FOUND);
    happened();
    CHECK(!pinned_by(&a, target));
    CHECK_EQ(a.entries[target.entry].extent, 0);
    close_store();
}

/* A record that was written while its object died is dead space. */
static void a_death_while_cleaning(void) {
    uint64_t offset, size;
    open_store();
    target = make(&a, 1000);
    mp_place place = record(&a, 4096);
    CHECK_EQ(mp_clean_claim(&a, target.entry, target.birth, &offset, &size), MP_OK);
    b_deletes();
    CHECK_EQ(seen, MP_OK);
    CHECK_EQ(a.entries[target.entry].extent, 1); /* pinned: it stays */
    CHECK_EQ(fixture_publish(&a, target.entry, target.birth, &place, true), MP_NOT_FOUND);
    CHECK_EQ(a.entries[target.entry].extent, 0);
    CHECK_EQ(atomic_load(&a.entries[target.entry].place.segment), 0);
    close_store();
}

/* Each item of a batch meets its own fate: evicted, kept, dead, in use, refused. */
static void one_hold_publishes_many(void) {
    static const mp_code codes[] = {MP_OK, MP_OK, MP_NOT_FOUND, MP_IS_PINNED, MP_INVALID};
    static const mp_code states[] = {MP_IS_SPILLED, MP_OK, MP_IS_DELETED, MP_OK, MP_OK};
    mp_cleaned items[5];
    uint64_t offset, size, id;
    uint32_t segment, closed;
    open_store();
    CHECK_EQ(mp_segment_open(&a, 0, &closed, &id), MP_OK);
    mp_segment_close(&a, closed);
    CHECK_EQ(mp_segment_open(&a, 0, &segment, &id), MP_OK);
    for (uint32_t i = 0; i < 5; i++) {
        object o = make(&a, 1000);
        items[i] = (mp_cleaned){.place = {.length = 4096}, .birth = o.birth, .entry = o.entry, .evict = i != 1};
        CHECK_EQ(mp_segment_reserve(&a, segment, 4096, &items[i].place.offset), MP_OK);
        items[i].place.segment = i == 4 ? closed : segment;
        CHECK_EQ(mp_clean_claim(&a, o.entry, o.birth, &offset, &size), MP_OK);
    }
    target = (object){items[2].entry, items[2].birth};
    b_deletes();
    target = (object){items[3].entry, items[3].birth};
    b_views();
    CHECK_EQ(mp_clean_publish(&a, items, 5), MP_OK);
    for (uint32_t i = 0; i < 5; i++) {
        object o = {items[i].entry, items[i].birth};
        CHECK_EQ(items[i].code, codes[i]);
        CHECK_EQ(mp_state(&a, o.entry, o.birth), states[i]);
        CHECK(!pinned_by(&a, o));
        CHECK_EQ(a.entries[o.entry].extent, i != 0 && i != 2);
    }
    CHECK_EQ(a.segments[segment].live, 3 * 4096);
    mp_unpin(&b, target.entry, MP_ONE_VIEW);
    mp_segment_close(&a, segment);
    close_store();
}

/* PAIR unpin-delete: whichever comes second buries, and the memory is given back once. */
static void delete_meets_unpin(void) {
    static const char *const points[] = {"unpin.count", "unpin.bit"};
    for (int i = 0; i < 2; i++) {
        uint64_t offset, size;
        open_store();
        uint64_t free_pages = a.header->free_pages;
        target = make(&a, 20000);
        CHECK_EQ(mp_view(&a, target.entry, target.birth, &offset, &size), MP_OK);
        at(points[i], b_deletes);
        mp_unpin(&a, target.entry, MP_ONE_VIEW);
        happened();
        CHECK_EQ(seen, MP_OK);
        CHECK_EQ(mp_state(&a, target.entry, target.birth), MP_IS_DELETED);
        CHECK_EQ(a.entries[target.entry].extent, 0);
        CHECK_EQ(a.header->free_pages, free_pages);
        close_store();
    }
}

/* Garbage that is looked at lives until the last look. */
static void the_last_unpin_frees_garbage(void) {
    uint64_t offset, size;
    open_store();
    object o = make(&a, 20000);
    CHECK_EQ(mp_view(&a, o.entry, o.birth, &offset, &size), MP_OK);
    CHECK_EQ(mp_drop(&a, o.entry, -1), MP_OK);
    CHECK_EQ(a.header->pool_entries.used, 2);
    CHECK_EQ(a.arena_read[offset + 19999], 7);
    mp_unpin(&a, o.entry, MP_ONE_VIEW);
    CHECK_EQ(a.header->pool_entries.used, 1);
    close_store();
}

/* --- drafts --- */

static void seal_after_delete(void) {
    uint64_t offset, birth;
    uint32_t entry;
    open_store();
    CHECK_EQ(mp_draft(&a, 50000, &entry, &birth, &offset), MP_OK);
    mp_pin(&a, entry, MP_ONE_OP);
    CHECK_EQ(mp_hold(&b, entry, birth), MP_OK);
    CHECK_EQ(mp_state(&b, entry, birth), MP_IS_DRAFT);
    CHECK_EQ(mp_delete(&b, entry, birth), MP_OK);
    CHECK_EQ(a.entries[entry].extent, 1);
    CHECK_EQ(mp_seal(&a, entry, birth), MP_IS_DELETED);
    mp_unpin(&a, entry, MP_ONE_OP);
    CHECK_EQ(a.entries[entry].extent, 0);
    CHECK_EQ(mp_drop(&b, entry, -1), MP_OK);
    close_store();
}

static void a_seals(void) { CHECK_EQ(mp_seal(&a, target.entry, target.birth), MP_OK); }

/* The seal needs no mutex, so it may come between a delete's look at the state and its step. */
static void delete_meets_seal(void) {
    uint64_t offset;
    open_store();
    CHECK_EQ(mp_draft(&a, 100, &target.entry, &target.birth, &offset), MP_OK);
    CHECK_EQ(mp_hold(&b, target.entry, target.birth), MP_OK);
    at("kill.chosen", a_seals);
    CHECK_EQ(mp_delete(&b, target.entry, target.birth), MP_OK);
    happened();
    CHECK_EQ(mp_state(&a, target.entry, target.birth), MP_IS_DELETED);
    CHECK_EQ(mp_drop(&b, target.entry, -1), MP_OK);
    close_store();
}

/* One thread seals while another lets the only ref go. */
static void the_last_drop_meets_a_seal(void) {
    uint64_t offset;
    open_store();
    CHECK_EQ(mp_draft(&a, 100, &target.entry, &target.birth, &offset), MP_OK);
    at("kill.chosen", a_seals);
    CHECK_EQ(mp_drop(&a, target.entry, -1), MP_OK);
    happened();
    CHECK_EQ(a.header->pool_entries.used, 1);
    close_store();
}

static void a_dead_writer_abandons(void) {
    uint64_t offset, birth, free_pages;
    uint32_t entry;
    open_store();
    free_pages = a.header->free_pages;
    CHECK_EQ(mp_draft(&b, 50000, &entry, &birth, &offset), MP_OK);
    CHECK_EQ(mp_hold(&a, entry, birth), MP_OK);
    CHECK_EQ(mp_reap_dead(&a), 0);
    fixture_die(&b);
    CHECK_EQ(mp_reap_dead(&a), 1);
    CHECK_EQ(mp_usable(&b), MP_CLOSED);
    CHECK_EQ(mp_state(&a, entry, birth), MP_IS_ABANDONED);
    CHECK_EQ(a.header->free_pages, free_pages);
    CHECK_EQ(mp_reap_dead(&a), 0);
    close_store();
}

static void a_dead_restorer_leaves_it_spilled(void) {
    uint64_t offset, size;
    mp_place place;
    open_store();
    uint64_t free_pages = a.header->free_pages;
    object o = make(&a, 50000);
    spill(&a, o);
    CHECK_EQ(mp_place_read(&b, o.entry, o.birth, &place, &size), MP_IS_SPILLED);
    CHECK_EQ(mp_restore_begin(&b, o.entry, o.birth, &offset), MP_OK);
    CHECK_EQ(mp_state(&a, o.entry, o.birth), MP_IS_RESTORING);
    CHECK_EQ(mp_restore_begin(&a, o.entry, o.birth, &offset), MP_IS_RESTORING);
    fixture_die(&b);
    CHECK_EQ(mp_reap_dead(&a), 1);
    CHECK_EQ(mp_state(&a, o.entry, o.birth), MP_IS_SPILLED);
    CHECK_EQ(a.header->free_pages, free_pages);
    CHECK(!mp_pinned(&a.entries[o.entry]));
    close_store();
}

/* A cleaner's pin may land on an entry that was freed a moment ago, and must not stay there. */
static void a_dead_cleaner_leaves_no_pin(void) {
    open_store();
    target = make(&a, 1000);
    CHECK_EQ(mp_drop(&a, target.entry, -1), MP_OK);
    mp_pin(&b, target.entry, MP_ONE_OP);
    fixture_die(&b);
    CHECK_EQ(mp_reap_dead(&a), 1);
    CHECK(!mp_pinned(&a.entries[target.entry]));
    close_store();
}

/* --- waiting --- */

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void *wait_for_target(void *argument) {
    (void)argument;
    mp_wait(&b, target.entry, target.birth, 60000000000ll);
    return NULL;
}

/* Starts a waiter, and returns when it has said that it waits. */
static pthread_t start_waiter(void) {
    pthread_t waiter;
    CHECK_EQ(pthread_create(&waiter, NULL, wait_for_target, NULL), 0);
    while (!(atomic_load(&a.entries[target.entry].control) & MP_WAIT_BIT)) sched_yield();
    while (!atomic_load(&a.header->waiters)) sched_yield();
    return waiter;
}

static void a_waiter_wakes(void) {
    for (int how = 0; how < 3; how++) {
        uint64_t offset;
        open_store();
        double start = seconds();
        CHECK_EQ(mp_draft(&a, 100, &target.entry, &target.birth, &offset), MP_OK);
        pthread_t waiter = start_waiter();
        if (how == 0) CHECK_EQ(mp_seal(&a, target.entry, target.birth), MP_OK);
        if (how == 1) CHECK_EQ(mp_abort(&a, target.entry, target.birth), MP_OK);
        if (how == 2) CHECK_EQ(mp_delete(&a, target.entry, target.birth), MP_OK);
        pthread_join(waiter, NULL);
        CHECK(seconds() - start < 20);
        CHECK_EQ(mp_state(&b, target.entry, target.birth), how == 0 ? MP_OK : MP_IS_DELETED);
        close_store();
    }
}

static void a_wait_for_nothing_returns(void) {
    open_store();
    target = make(&a, 10);
    double start = seconds();
    wait_for_target(NULL);
    CHECK(seconds() - start < 20);
    CHECK_EQ(atomic_load(&a.entries[target.entry].control), mp_word(target.birth, MP_RESIDENT));
    close_store();
}

/* --- holders --- */

static void a_put_off_drop(void) {
    open_store();
    object o = make(&a, 100);
    CHECK_EQ(mp_hold(&a, o.entry, o.birth), MP_OK);
    mp_drop_later(&a, o.entry); /* two: only the count goes down */
    CHECK_EQ(atomic_load(&a.deferred), 0);
    mp_drop_later(&a, o.entry);
    CHECK_EQ(atomic_load(&a.locals[o.entry].refs), 1);
    CHECK_EQ(mp_hold(&a, o.entry, o.birth), MP_OK); /* loaded again meanwhile */
    CHECK_EQ(mp_drain(&a), 0);
    CHECK_EQ(mp_state(&a, o.entry, o.birth), MP_OK);
    CHECK_EQ(mp_drop(&a, o.entry, -1), MP_OK);
    CHECK_EQ(a.header->pool_entries.used, 1);
    close_store();
}

static void a_stale_ref_is_refused(void) {
    uint64_t offset, size;
    open_store();
    object old = make(&a, 100);
    CHECK_EQ(mp_drop(&a, old.entry, -1), MP_OK);
    object now = make(&a, 100);
    CHECK_EQ(now.entry, old.entry);
    CHECK_EQ(mp_hold(&b, old.entry, old.birth), MP_NOT_FOUND);
    CHECK_EQ(mp_hold(&a, old.entry, old.birth), MP_NOT_FOUND); /* although this process holds the entry */
    CHECK_EQ(mp_view(&b, old.entry, old.birth, &offset, &size), MP_NOT_FOUND);
    CHECK_EQ(mp_hold(&b, 299, 1), MP_NOT_FOUND);
    CHECK_EQ(mp_hold(&b, 0, 1), MP_NOT_FOUND);
    CHECK_EQ(mp_hold(&b, UINT32_MAX, 1), MP_NOT_FOUND);
    CHECK_EQ(mp_delete(&b, old.entry, old.birth), MP_NOT_FOUND);
    CHECK_EQ(mp_state(&a, now.entry, now.birth), MP_OK);
    close_store();
}

/* --- hand-offs and names --- */

static void hand_offs_hold(void) {
    uint32_t token, other;
    open_store();
    object o = make(&a, 100);
    CHECK_EQ(mp_token_issue(&a, o.entry, o.birth, 2, SOON, 11, &token), MP_OK);
    CHECK_EQ(mp_token_issue(&a, o.entry, o.birth, 1, SOON, 12, &other), MP_OK);
    CHECK_EQ(mp_drop(&a, o.entry, -1), MP_OK);
    CHECK_EQ(mp_state(&b, o.entry, o.birth), MP_OK);
    CHECK_EQ(mp_token_load(&b, token, 99, o.entry, o.birth), MP_OK); /* wrong nonce: uses nothing up */
    CHECK_EQ(mp_token_load(&b, token, 11, o.entry, o.birth), MP_OK);
    CHECK_EQ(a.tokens[token].deliveries, 1);
    CHECK_EQ(mp_token_load(&b, token, 11, o.entry, o.birth), MP_OK);
    CHECK_EQ(atomic_load(&a.tokens[token].nonce), 0);
    CHECK_EQ(mp_token_withdraw(&a, 13), MP_OK); /* not this one */
    CHECK_EQ(mp_token_expire(&a, SOON - 1), 0);
    mp_drop_all(&b);
    CHECK_EQ(mp_state(&b, o.entry, o.birth), MP_OK);
    CHECK_EQ(mp_token_expire(&a, SOON), 1);
    CHECK_EQ(mp_state(&b, o.entry, o.birth), MP_NOT_FOUND);
    CHECK_EQ(mp_token_load(&b, other, 12, o.entry, o.birth), MP_NOT_FOUND);
    close_store();
}

static void names_hold(void) {
    uint32_t entry;
    uint64_t birth;
    char text[MP_NAME_MAX + 1];
    memset(text, 'x', sizeof text);
    open_store();
    object o = make(&a, 100), p = make(&a, 200);
    CHECK_EQ(mp_name_set(&a, text, MP_NAME_MAX, o.entry, o.birth, false), MP_OK);
    CHECK_EQ(mp_name_set(&a, text, MP_NAME_MAX + 1, o.entry, o.birth, false), MP_INVALID);
    CHECK_EQ(mp_name_set(&a, text, 0, o.entry, o.birth, false), MP_INVALID);
    CHECK_EQ(mp_name_set(&b, text, MP_NAME_MAX, p.entry, p.birth, false), MP_TAKEN);
    mp_drop_all(&a);
    CHECK_EQ(mp_state(&a, p.entry, p.birth), MP_NOT_FOUND);
    CHECK_EQ(mp_name_hold(&b, text, MP_NAME_MAX, &entry, &birth), MP_OK);
    CHECK(entry == o.entry && birth == o.birth);
    CHECK_EQ(mp_name_hold(&b, text, MP_NAME_MAX - 1, &entry, &birth), MP_NOT_FOUND);
    mp_drop_all(&b);
    p = make(&a, 300);
    CHECK_EQ(mp_name_set(&a, text, MP_NAME_MAX, p.entry, p.birth, true), MP_OK);
    CHECK_EQ(mp_state(&a, o.entry, o.birth), MP_NOT_FOUND);
    CHECK_EQ(mp_name_set(&a, "other", 5, p.entry, p.birth, false), MP_OK);
    mp_drop_all(&a);
    CHECK_EQ(mp_name_remove(&a, text, MP_NAME_MAX), MP_OK);
    CHECK_EQ(mp_name_remove(&a, text, MP_NAME_MAX), MP_NOT_FOUND);
    CHECK_EQ(mp_state(&a, p.entry, p.birth), MP_OK);
    CHECK_EQ(mp_name_remove(&a, "other", 5), MP_OK);
    close_store();
}

/* --- disk --- */

static void a_lost_value_says_so(void) {
    uint64_t offset;
    open_store();
    object o = make(&a, 50000);
    spill(&a, o);
    CHECK_EQ(mp_restore_begin(&a, o.entry, o.birth, &offset), MP_OK);
    CHECK_EQ(mp_restore_end(&a, o.entry, o.birth, MP_LOST), MP_OK);
    CHECK_EQ(mp_state(&b, o.entry, o.birth), MP_IS_LOST);
    CHECK_EQ(a.entries[o.entry].extent, 0);
    object p = make(&a, 10);
    CHECK_EQ(mp_lose(&a, p.entry, p.birth), MP_NOT_FOUND); /* it is not on disk */
    spill(&a, p);
    CHECK_EQ(mp_lose(&a, p.entry, p.birth), MP_OK);
    CHECK_EQ(mp_state(&b, p.entry, p.birth), MP_IS_LOST);
    close_store();
}

/* --- limits --- */

static void pools_say_which_is_full(void) {
    uint64_t offset, birth;
    uint32_t entry, count = 0;
    mp_code code;
    open_store();
    for (; (code = mp_draft(&a, 10, &entry, &birth, &offset)) == MP_OK; count++) mp_seal(&a, entry, birth);
    CHECK_EQ(code, MP_POOL_FULL);
    CHECK_EQ(strcmp(a.full_pool, "objects"), 0);
    CHECK_EQ(count, 299);
    mp_drop_all(&a);
    CHECK_EQ(mp_draft(&a, 10, &entry, &birth, &offset), MP_OK);
    CHECK_EQ(mp_seal(&a, entry, birth), MP_OK);
    close_store();
}

static void there_are_so_many_slots(void) {
    static mp_member others[MP_SLOTS];
    mp_member last;
    open_store();
    for (uint32_t i = 2; i < MP_SLOT_ORPHANS; i++) fixture_join(&a, &others[i]);
    CHECK_EQ(mp_map_shared(&last, &a), MP_OK);
    CHECK_EQ(mp_claim_slot(&last), MP_NO_SLOT);
    mp_release_slot(&others[100]);
    CHECK_EQ(mp_claim_slot(&last), MP_OK);
    CHECK_EQ(last.slot, others[100].slot);
    mp_release_slot(&last);
    fixture_leave(&last);
    for (uint32_t i = 2; i < MP_SLOT_ORPHANS; i++) {
        if (i != 100) mp_release_slot(&others[i]);
        fixture_leave(&others[i]);
    }
    close_store();
}

static void a_reaped_member_is_told(void) {
    uint64_t offset, birth;
    uint32_t entry;
    open_store();
    object o = make(&b, 100);
    CHECK_EQ(mp_hold(&a, o.entry, o.birth), MP_OK);
    fixture_die(&b);
    CHECK_EQ(mp_guard_slot(&b), MP_OK); /* lost its lock, alive: takes it again */
    CHECK_EQ(mp_reap_dead(&a), 0);
    fixture_die(&b);
    CHECK_EQ(mp_reap_dead(&a), 1);
    CHECK_EQ(mp_guard_slot(&b), MP_CLOSED);
    CHECK_EQ(mp_draft(&b, 10, &entry, &birth, &offset), MP_CLOSED);
    CHECK_EQ(mp_state(&a, o.entry, o.birth), MP_OK);
    close_store();
}

/* --- attaching --- */

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    RUN(eviction_sees_a_pin);
    RUN(a_reader_sees_an_eviction);
    RUN(a_claim_looks_twice);
    RUN(a_death_while_cleaning);
    RUN(one_hold_publishes_many);
    RUN(delete_meets_unpin);
    RUN(the_last_unpin_frees_garbage);
    RUN(seal_after_delete);
    RUN(delete_meets_seal);
    RUN(the_last_drop_meets_a_seal);
    RUN(a_dead_writer_abandons);
    RUN(a_dead_restorer_leaves_it_spilled);
    RUN(a_dead_cleaner_leaves_no_pin);
    RUN(a_waiter_wakes);
    RUN(a_wait_for_nothing_returns);
    RUN(a_put_off_drop);
    RUN(a_stale_ref_is_refused);
    RUN(hand_offs_hold);
    RUN(names_hold);
    RUN(a_lost_value_says_so);
    RUN(pools_say_which_is_full);
    RUN(there_are_so_many_slots);
    RUN(a_reaped_member_is_told);
    return 0;
}
