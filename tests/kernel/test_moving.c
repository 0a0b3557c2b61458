/* Moving: sparse blocks are emptied, values stay whole, what is in use stays where it is, and it ends.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <string.h>

#include "failpoint_page.h"
#include "fixture.h"

#define LIMIT (16u << 20)
#define OBJECTS 6000u
#define WATCHED 250u /* with as many others at times, whatever their sizes: less than memory */

static fixture store;
static mp_member a, b;

typedef struct object {
    uint32_t entry;
    uint64_t birth, size;
} object;

static object objects[OBJECTS];
static check_random rnd;

static void open_store(void) {
    fixture_shape shape = {.arena_bytes = 4ull * LIMIT, .memory_limit = LIMIT, .entries = OBJECTS + 300};
    rnd.state = check_seed();
    fixture_create(&store, shape);
    fixture_first(&store, &a);
    fixture_join(&a, &b);
}

static void close_store(void) {
    fixture_check(&a);
    mp_drop_all(&a);
    mp_release_slot(&b);
    fixture_check(&a);
    CHECK_EQ(a.header->pool_entries.used, 1);
    CHECK_EQ(a.header->free_slot_bytes, 0);
    CHECK_EQ(a.header->free_pages, a.header->committed_blocks * MP_BLOCK_PAGES);
    fixture_leave(&b);
    fixture_unmap(&a);
    fixture_close(&store);
}

static bool fits(uint64_t size, object *o) {
    uint64_t offset;
    mp_code code;
    o->size = size;
    while ((code = mp_draft(&a, size, &o->entry, &o->birth, &offset)) == MP_NO_ROOM)
        if (mp_grow(&a, size) != MP_OK) return false;
    CHECK_EQ(code, MP_OK);
    memset(a.arena_write + offset, (uint8_t)o->birth, size);
    CHECK_EQ(mp_seal(&a, o->entry, o->birth), MP_OK);
    return true;
}

static object make(uint64_t size) {
    object o;
    CHECK(fits(size, &o));
    return o;
}

static void verify(object o) {
    uint64_t offset, size;
    CHECK_EQ(mp_view(&b, o.entry, o.birth, &offset, &size), MP_OK);
    CHECK_EQ(size, o.size);
    for (uint64_t i = 0; i < size; i++) CHECK_EQ(a.arena_write[offset + i], (uint8_t)o.birth);
    mp_unpin(&b, o.entry, MP_ONE_VIEW);
}

static void drop(object o) { CHECK_EQ(mp_drop(&a, o.entry, -1), MP_OK); }
static uint64_t offset_of(object o) { return atomic_load(&a.entries[o.entry].offset); }

/* Objects of size(i) until memory is full; each stays with that probability. Returns how many stay. */
static uint32_t scatter(uint64_t (*size)(void), uint32_t percent) {
    uint32_t made = 0, left = 0;
    while (made < OBJECTS && fits(size(), &objects[made])) made++;
    for (uint32_t i = 0; i < made; i++) {
        if (random_below(&rnd, 100) < percent) objects[left++] = objects[i];
        else drop(objects[i]);
    }
    return left;
}

static uint64_t four_kilobytes(void) { return 4000; }
static uint64_t small_sizes(void) { return 500 + random_below(&rnd, MP_SMALL_MAX - 500); }
static uint64_t twelve_kilobytes(void) { return 12000; }
static uint64_t run_sizes(void) { return MP_SMALL_MAX + 1 + random_below(&rnd, 60000); }
static uint64_t all_sizes(void) { return random_below(&rnd, 2) ? small_sizes() : run_sizes(); }

/* As a member that needs so much in one piece does it: empty, give back, commit elsewhere. */
static bool fits_after_moving(uint64_t size, object *o) {
    while (!fits(size, o))
        if (mp_empty_blocks(&a, size) == 0 || mp_shrink(&a, size + MP_BLOCK) == 0) return false;
    return true;
}

static void half_of_memory_fits_after(uint64_t (*size)(void)) {
    object big;
    open_store();
    uint32_t left = scatter(size, 10);
    CHECK(!fits(LIMIT / 2, &big));
    CHECK(fits_after_moving(LIMIT / 2, &big));
    fixture_check(&a);
    for (uint32_t i = 0; i < left; i++) verify(objects[i]);
    verify(big);
    close_store();
}

/* --- tests --- */

static void free_bytes_are_usable(void) {
    half_of_memory_fits_after(four_kilobytes);
    half_of_memory_fits_after(small_sizes);
    half_of_memory_fits_after(twelve_kilobytes);
    half_of_memory_fits_after(run_sizes);
    half_of_memory_fits_after(all_sizes);
}

/* Every second object of three pages goes: no free run is a whole block. */
static void holes_smaller_than_a_block_are_joined(void) {
    uint32_t made = 0;
    object big;
    open_store();
    while (made < OBJECTS && fits(12000, &objects[made])) made++;
    for (uint32_t i = 0; i < made; i += 2) drop(objects[i]);
    CHECK_EQ(mp_shrink(&a, LIMIT), 0);
    CHECK(fits_after_moving(LIMIT / 3, &big));
    for (uint32_t i = 1; i < made; i += 2) verify(objects[i]);
    close_store();
}

static void it_ends(void) {
    open_store();
    scatter(all_sizes, 30);
    uint32_t rounds = 0;
    while (mp_empty_blocks(&a, LIMIT) != 0) CHECK(++rounds < 50);
    fixture_check(&a);
    CHECK_EQ(mp_empty_blocks(&a, LIMIT), 0);
    close_store();
}

static void what_is_asked_is_enough(void) {
    open_store();
    scatter(four_kilobytes, 20);
    uint64_t emptied = mp_empty_blocks(&a, 3 * MP_BLOCK);
    CHECK_EQ(emptied, 3 * MP_BLOCK);
    CHECK_EQ(mp_empty_blocks(&a, 0), 0);
    close_store();
}

static void what_is_in_use_stays(void) {
    static uint64_t offsets[OBJECTS];
    uint64_t size;
    open_store();
    uint32_t left = scatter(all_sizes, 20);
    for (uint32_t i = 0; i < left; i += 3) CHECK_EQ(mp_view(&b, objects[i].entry, objects[i].birth, &offsets[i], &size), MP_OK);
    (void)mp_empty_blocks(&a, LIMIT);
    for (uint32_t i = 0; i < left; i++) verify(objects[i]);
    for (uint32_t i = 0; i < left; i += 3) {
        CHECK_EQ(offset_of(objects[i]), offsets[i]);
        mp_unpin(&b, objects[i].entry, MP_ONE_VIEW);
    }
    close_store();
}

/* Drafts are being written; a spilled object has no memory. */
static void only_what_is_resident_moves(void) {
    uint32_t entry;
    uint64_t birth, offset;
    open_store();
    for (uint32_t i = 0; i < 32; i++) objects[i] = make(4000);
    for (uint32_t i = 4; i < 32; i++) drop(objects[i]);
    CHECK_EQ(mp_draft(&a, 4000, &entry, &birth, &offset), MP_OK);
    for (uint32_t i = 32; i < 52; i++) objects[i] = make(4000);
    for (uint32_t i = 34; i < 52; i++) drop(objects[i]);
    (void)mp_empty_blocks(&a, LIMIT);
    CHECK_EQ(atomic_load(&a.entries[entry].offset), offset);
    CHECK_EQ(mp_abort(&a, entry, birth), MP_OK);
    CHECK_EQ(mp_drop(&a, entry, -1), MP_OK);
    close_store();
}

/* --- a reader between two steps of a move --- */

static object watched;
static uint32_t seen;

static void pins(const char *name) {
    if (strcmp(name, "move.evicting") != 0) return;
    uint64_t offset, size;
    failpoint_hook = NULL;
    CHECK_EQ(mp_view(&b, watched.entry, watched.birth, &offset, &size), MP_IS_SPILLED); /* it looks again, under the mutex */
    mp_pin(&b, watched.entry, MP_ONE_VIEW);
    seen++;
}

/* Should the mover die here, this is what the next owner of the mutex makes readable. */
static void whole_where_it_is(object o) {
    for (uint64_t i = 0; i < o.size; i++) CHECK_EQ(a.arena_write[offset_of(o) + i], (uint8_t)o.birth);
}

static void looks(const char *name) {
    if (strcmp(name, "move.copied") != 0 && strcmp(name, "move.stored") != 0) return;
    uint64_t offset, size;
    whole_where_it_is(watched);
    void (*self)(const char *) = failpoint_hook;
    failpoint_hook = NULL;
    CHECK_EQ(mp_view(&b, watched.entry, watched.birth, &offset, &size), MP_IS_SPILLED);
    failpoint_hook = self;
    seen++;
}

/* One object in a block of its own beside a block with room. */
static void prepare_move(void) {
    open_store();
    for (uint32_t i = 0; i < 17; i++) objects[i] = make(4000);
    drop(objects[3]);
    drop(objects[7]);
    uint32_t alone = offset_of(objects[0]) / MP_BLOCK == offset_of(objects[16]) / MP_BLOCK ? 15 : 16;
    while (alone > 0 && offset_of(objects[alone]) / MP_BLOCK == offset_of(objects[0]) / MP_BLOCK) alone--;
    watched = objects[alone];
    seen = 0;
}

static void a_pin_that_comes_in_between_wins(void) {
    prepare_move();
    uint64_t before = offset_of(watched);
    failpoint_hook = pins;
    CHECK_EQ(mp_empty_blocks(&a, MP_BLOCK), 0);
    failpoint_hook = NULL;
    CHECK_EQ(seen, 1);
    CHECK_EQ(offset_of(watched), before);
    fixture_check(&a);
    mp_unpin(&b, watched.entry, MP_ONE_VIEW);
    verify(watched);
    close_store();
}

static void nobody_reads_in_the_middle(void) {
    prepare_move();
    uint64_t before = offset_of(watched);
    failpoint_hook = looks;
    CHECK_EQ(mp_empty_blocks(&a, MP_BLOCK), MP_BLOCK);
    failpoint_hook = NULL;
    CHECK_EQ(seen, 2);
    CHECK(offset_of(watched) != before);
    verify(watched);
    close_store();
}

/* --- a rebuild between the plan and the moves --- */

static jmp_buf grave;

static void dies(const char *name) {
    if (strcmp(name, "bury.extent") == 0) longjmp(grave, 1);
}

/* b dies with the mutex, while it takes apart what the mover has counted on. Whoever comes next makes the spans anew,
 * far fewer ones: those of before are still to be read behind them. */
static void dies_and_is_repaired(const char *name) {
    if (strcmp(name, "move.planned") != 0) return;
    failpoint_hook = dies;
    if (setjmp(grave) == 0) CHECK_EQ(mp_delete(&b, watched.entry, watched.birth), MP_NOT_FOUND);
    failpoint_hook = NULL;
    CHECK_EQ(mp_rebuild(&a), MP_OK);
    mp_unlock(&a);
    fixture_check(&a);
    seen++;
}

/* Of runs of three pages two side by side stay in a block that has room for a third, and one in a block of its own. */
static void the_mover_knows_a_run_that_is_gone(void) {
    enum { RUNS = 300, ALONE = 100 };
    open_store();
    for (uint32_t i = 0; i < RUNS; i++) objects[i] = make(12000);
    uint32_t i = RUNS - 8, alone = ALONE;
    while (offset_of(objects[i]) / MP_PAGE % MP_BLOCK_PAGES != 6) i--;
    while (offset_of(objects[alone]) / MP_PAGE % MP_BLOCK_PAGES > 13) alone++;
    for (uint32_t k = 0; k < RUNS; k++)
        if (k != i && k != i - 1 && k != alone) drop(objects[k]);
    watched = objects[i];
    seen = 0;
    failpoint_hook = dies_and_is_repaired;
    (void)mp_empty_blocks(&a, MP_BLOCK);
    failpoint_hook = NULL;
    CHECK_EQ(seen, 1);
    fixture_check(&a);
    verify(objects[i - 1]);
    verify(objects[alone]);
    close_store();
}

/* --- others at work between the holds of a mover --- */

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define STORMS 40u
#else
#define STORMS 300u
#endif
enum { ACTS = 12, VIEWS = 8 };

static uint32_t alive;           /* objects that a holds */
static object chosen;            /* of these, the one that b is at */
static uint32_t fuse;            /* failpoints until b dies; 0: it does not */
static bool gone;                /* b is dead, and its slot not reaped yet */
static object views[VIEWS];      /* what b pins; entry 0: nothing */
static uint32_t segment, deaths; /* of a; of b, with the mutex in hand */

static void burns(const char *name) {
    (void)name;
    if (fuse != 0 && --fuse == 0) longjmp(grave, 1);
}

static void deletes(void) { (void)mp_delete(&b, chosen.entry, chosen.birth); }
static void evicts(void) { (void)mp_evict(&b, chosen.entry, chosen.birth); }
static void grows(void) { (void)mp_grow(&b, all_sizes()); }
static void shrinks(void) { (void)mp_shrink(&b, random_below(&rnd, LIMIT)); }

static void restores(void) {
    mp_place place;
    uint64_t size, offset;
    mp_code code = mp_place_read(&b, chosen.entry, chosen.birth, &place, &size);
    if (code == MP_IS_SPILLED && mp_restore_begin(&b, chosen.entry, chosen.birth, &offset) == MP_OK) {
        memset(a.arena_write + offset, (uint8_t)chosen.birth, size);
        CHECK_EQ(mp_restore_end(&b, chosen.entry, chosen.birth, random_below(&rnd, 4) ? MP_RESIDENT : MP_SPILLED), MP_OK);
    }
    if (code == MP_IS_SPILLED || code == MP_IS_RESTORING) mp_unpin(&b, chosen.entry, MP_ONE_OP);
}

static void views_one(void) {
    object *view = &views[random_below(&rnd, VIEWS)];
    uint64_t offset, size;
    if (view->entry) mp_unpin(&b, view->entry, MP_ONE_VIEW);
    view->entry = 0;
    if (mp_view(&b, chosen.entry, chosen.birth, &offset, &size) == MP_OK) *view = chosen;
}

static void creates(void) {
    object o = {.size = all_sizes()};
    uint64_t offset;
    if (mp_draft(&b, o.size, &o.entry, &o.birth, &offset) != MP_OK) return;
    memset(a.arena_write + offset, (uint8_t)o.birth, o.size);
    CHECK_EQ(mp_seal(&b, o.entry, o.birth), MP_OK);
    failpoint_hook = NULL; /* a does not die */
    if (alive < OBJECTS && mp_hold(&a, o.entry, o.birth) == MP_OK) objects[alive++] = o;
    failpoint_hook = burns;
    CHECK_EQ(mp_drop(&b, o.entry, -1), MP_OK);
}

/* Not by b, so that there is one segment all the time. */
static void clean(object o) {
    mp_place place = {.segment = segment};
    uint64_t size;
    if (mp_clean_claim(&a, o.entry, o.birth, &place.offset, &size) != MP_OK) return;
    place.length = mp_extent_bytes(size);
    CHECK_EQ(mp_segment_reserve(&a, segment, place.length, &place.offset), MP_OK);
    CHECK_EQ(fixture_publish(&a, o.entry, o.birth, &place, false), MP_OK);
}

/* Who finds the mutex in the hand of the dead may die of the repair: the next one begins it again. */
static void repair(void) {
    fuse = random_below(&rnd, 4) ? 0 : 1 + (uint32_t)random_below(&rnd, 20);
    (void)setjmp(grave);
    failpoint_hook = burns;
    CHECK_EQ(mp_rebuild(&a), MP_OK);
    failpoint_hook = NULL;
    mp_unlock(&a);
    fixture_check(&a);
    deaths++;
}

static void return_from_the_dead(void) {
    if (!gone) return;
    gone = false;
    fixture_die(&b);
    (void)pthread_mutex_trylock(&b.refs_mutex), pthread_mutex_unlock(&b.refs_mutex);
    (void)pthread_mutex_trylock(&b.pins_mutex), pthread_mutex_unlock(&b.pins_mutex);
    CHECK_EQ(mp_reap_dead(&a), 1);
    fixture_leave(&b);
    fixture_join(&a, &b);
    memset(views, 0, sizeof views);
}

typedef struct deed {
    void (*done)(void);
    uint32_t steps; /* failpoints on its way, about */
} deed;

/* b does something, in the middle of which it may die. */
static void attempt(deed d) {
    return_from_the_dead();
    fuse = random_below(&rnd, 3) ? 0 : 1 + (uint32_t)random_below(&rnd, d.steps);
    failpoint_hook = burns;
    if (setjmp(grave) == 0) d.done();
    else gone = true;
    failpoint_hook = NULL;
    if (gone && atomic_load(&a.header->mutex_slot) != 0) repair();
    if (random_below(&rnd, 2)) return_from_the_dead();
}

static void forget(uint32_t i) {
    drop(objects[i]);
    objects[i] = objects[--alive];
}

static void act(void) {
    static const deed deeds[] = {{deletes, 5}, {evicts, 4}, {restores, 12}, {views_one, 8}, {creates, 12}, {grows, 10}, {shrinks, 10}};
    enum { TAKE_MEMORY = 2, DEEDS = sizeof deeds / sizeof *deeds };
    if (alive == 0) return;
    uint32_t i = (uint32_t)random_below(&rnd, alive), choice = (uint32_t)random_below(&rnd, DEEDS + 2);
    if (random_below(&rnd, 2)) choice %= TAKE_MEMORY;
    chosen = objects[i];
    if (choice < DEEDS) attempt(deeds[choice]);
    else if (choice == DEEDS) clean(chosen);
    else return forget(i);
    if (mp_state(&a, chosen.entry, chosen.birth) == MP_IS_DELETED) forget(i);
}

static void others_act(const char *name) {
    if (strcmp(name, "move.planned") != 0) return;
    failpoint_hook = NULL;
    for (uint32_t n = (uint32_t)random_below(&rnd, ACTS); n != 0; n--) act();
    failpoint_hook = others_act;
}

/* Most of what fills memory goes again: sparse blocks, and spans whose numbers a rebuild gives to others. */
static void make_sparse(uint64_t (*size)(void)) {
    while (alive < OBJECTS / 20 && fits(size(), &objects[alive])) alive++;
    for (uint32_t i = alive; i-- > 0;) {
        if (random_below(&rnd, 6)) forget(i);
        else if (random_below(&rnd, 4)) clean(objects[i]);
    }
}

static void a_plan_survives_what_others_do(void) {
    static uint64_t (*const sizes[])(void) = {twelve_kilobytes, twelve_kilobytes, run_sizes, all_sizes};
    uint64_t id;
    open_store();
    alive = deaths = 0;
    memset(views, 0, sizeof views);
    CHECK_EQ(mp_segment_open(&a, 0, &segment, &id), MP_OK);
    for (uint32_t round = 0; round < STORMS; round++) {
        make_sparse(sizes[random_below(&rnd, 4)]);
        failpoint_hook = others_act;
        (void)mp_empty_blocks(&a, 1 + random_below(&rnd, LIMIT));
        failpoint_hook = NULL;
        return_from_the_dead();
        fixture_check(&a);
        for (uint32_t i = 0; i < alive; i++)
            if (mp_state(&a, objects[i].entry, objects[i].birth) != MP_IS_SPILLED) verify(objects[i]);
    }
    CHECK(deaths != 0);
    close_store();
}

/* --- readers and putters beside a mover --- */

static _Atomic bool stop;

static void *read_on(void *unused) {
    (void)unused;
    check_random mine = {.state = check_seed() + 1};
    while (!atomic_load(&stop)) {
        object o = objects[random_below(&mine, WATCHED)];
        uint64_t offset, size;
        if (mp_view(&b, o.entry, o.birth, &offset, &size) != MP_OK) continue;
        for (uint64_t i = 0; i < size; i += 64) CHECK_EQ(a.arena_write[offset + i], (uint8_t)o.birth);
        mp_unpin(&b, o.entry, MP_ONE_VIEW);
    }
    return NULL;
}

static void readers_see_whole_values(void) {
    pthread_t readers[2];
    open_store();
    for (uint32_t i = 0; i < WATCHED; i++) objects[i] = make(all_sizes());
    atomic_store(&stop, false);
    for (uint32_t i = 0; i < 2; i++) CHECK_EQ(pthread_create(&readers[i], NULL, read_on, NULL), 0);
    for (uint32_t round = 0; round < 40; round++) {
        static object others[WATCHED];
        for (uint32_t i = 0; i < 100; i++) others[i] = make(all_sizes());
        for (uint32_t i = 0; i < 100; i++) drop(others[i]);
        (void)mp_empty_blocks(&a, LIMIT);
        (void)mp_shrink(&a, LIMIT);
    }
    atomic_store(&stop, true);
    for (uint32_t i = 0; i < 2; i++) CHECK_EQ(pthread_join(readers[i], NULL), 0);
    for (uint32_t i = 0; i < WATCHED; i++) verify(objects[i]);
    close_store();
}

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    RUN(free_bytes_are_usable);
    RUN(holes_smaller_than_a_block_are_joined);
    RUN(it_ends);
    RUN(what_is_asked_is_enough);
    RUN(what_is_in_use_stays);
    RUN(only_what_is_resident_moves);
    RUN(a_pin_that_comes_in_between_wins);
    RUN(nobody_reads_in_the_middle);
    RUN(the_mover_knows_a_run_that_is_gone);
    RUN(a_plan_survives_what_others_do);
    RUN(readers_see_whole_values);
    return 0;
}
