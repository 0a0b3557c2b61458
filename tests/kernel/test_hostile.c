/* A table that somebody has scribbled on: no call may crash, write outside or go on for ever.
 *
 * A small store with some of everything is copied once. Each round puts the copy back, changes a few
 * words of it, then calls the kernel at random. What the calls return does not matter; that they do return
 * does. Not changed: the mutex itself (the C library trusts it), and what is read once at attach
 * (test_attach.c). MP_ROUNDS is how many rounds there are, MP_SEED repeats a run.
 *
 * Before that, each damage that is kept in tests/corpus/table. A file there has a line for each word that is
 * changed, as a round that fails prints them: region, item, offset in the item, width in bytes, value.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "fixture.h"

#define ENTRIES 64u
#define CALLS 24u
#define ROUND_SECONDS 5u
#define KEPT_ROUNDS 20u /* of calls at random, for each kept damage */

static fixture store;
static mp_member a, b;
static uint8_t *copy;
static mp_local copied_locals[2][ENTRIES + 1];
static check_random dice;
static volatile uint64_t round_seed;

typedef struct range {
    uint64_t start, end;
} range;

static range ranges[32];
static uint32_t range_count;

/* A part of the table that a kept damage can name. */
typedef struct region {
    const char *name;
    const void *base;
    uint64_t stride, items;
} region;

static region regions[12];
static uint32_t region_count;

static struct {
    uint64_t at, width, value;
} changes[6]; /* of this round */
static uint32_t change_count;

static uint32_t below(uint32_t limit) { return (uint32_t)random_below(&dice, limit); }

/* --- the store that is damaged --- */

static void make(mp_member *m, uint64_t size, uint32_t *entry, uint64_t *birth) {
    uint64_t offset;
    mp_code code;
    while ((code = mp_draft(m, size, entry, birth, &offset)) == MP_NO_ROOM) CHECK_EQ(mp_grow(m, size), MP_OK);
    CHECK_EQ(code, MP_OK);
}

static void clean(uint32_t entry, uint64_t birth, bool evict) {
    uint64_t offset, size, at, id;
    uint32_t segment;
    CHECK_EQ(mp_segment_open(&a, 0, &segment, &id), MP_OK);
    CHECK_EQ(mp_segment_reserve(&a, segment, 4096, &at), MP_OK);
    CHECK_EQ(mp_clean_claim(&a, entry, birth, &offset, &size), MP_OK);
    mp_place place = {.offset = at, .length = 4096, .segment = segment};
    CHECK_EQ(fixture_publish(&a, entry, birth, &place, evict), MP_OK);
}

static void furnish(void) {
    static const uint64_t sizes[] = {64, 100, 3000, 9000, 70000, 300000};
    uint32_t entry, before = 0, token;
    uint64_t birth, old = 0;
    for (uint32_t i = 0; i < 24; i++) {
        mp_member *m = i % 3 ? &a : &b;
        make(m, sizes[i % 6], &entry, &birth);
        if (before && i % 4 == 0) CHECK_EQ(mp_contain(m, entry, birth, &before, &old, 1), MP_OK);
        if (i != 7) CHECK_EQ(mp_seal(m, entry, birth), MP_OK);
        if (i % 6 == 1) CHECK_EQ(mp_token_issue(&a, entry, birth, 2, 0, 99 + i, &token), MP_OK);
        if (i % 6 == 2) CHECK_EQ(mp_name_set(&a, (char[]){'n', (char)('a' + i)}, 2, entry, birth, false), MP_OK);
        if (i % 6 == 3) clean(entry, birth, i % 2);
        if (i % 6 == 5) mp_pin(m, entry, MP_ONE_VIEW);
        before = entry;
        old = birth;
    }
}

static void add_range(const void *start, uint64_t bytes) {
    uint64_t at = (uint64_t)((const uint8_t *)start - (const uint8_t *)a.header);
    ranges[range_count++] = (range){at, at + bytes};
}

static void find_ranges(void) {
    mp_header *h = a.header;
    uint64_t limits = offsetof(mp_header, memory_limit), mutex = offsetof(mp_header, mutex);
    uint64_t after = offsetof(mp_header, next_birth);
    add_range((uint8_t *)h + limits, mutex - limits);
    add_range((uint8_t *)h + after, offsetof(mp_header, config) - after);
    add_range(a.slots, 3 * sizeof *a.slots);
    add_range(a.buckets, MP_NAME_BUCKETS * sizeof *a.buckets);
    add_range(a.entries, 32 * sizeof *a.entries);
    add_range(a.tokens, 8 * sizeof *a.tokens);
    add_range(a.edges, 12 * sizeof *a.edges);
    add_range(a.names, 8 * sizeof *a.names);
    add_range(a.segments, 8 * sizeof *a.segments);
    add_range(a.spans, 24 * sizeof *a.spans);
    add_range((void *)a.commit, 64 * sizeof *a.commit);
    add_range(a.slabs, 48 * sizeof *a.slabs);
}

static void add_region(const char *name, const void *base, uint64_t stride, uint64_t items) {
    regions[region_count++] = (region){name, base, stride, items};
}

static void name_regions(void) {
    const mp_geometry *g = &a.geometry;
    add_region("header", a.header, sizeof *a.header, 1);
    add_region("slot", a.slots, sizeof *a.slots, MP_SLOTS);
    add_region("bucket", a.buckets, sizeof *a.buckets, MP_NAME_BUCKETS);
    add_region("entry", a.entries, sizeof *a.entries, g->entries);
    add_region("token", a.tokens, sizeof *a.tokens, g->tokens);
    add_region("edge", a.edges, sizeof *a.edges, g->edges);
    add_region("name", a.names, sizeof *a.names, g->names);
    add_region("segment", a.segments, sizeof *a.segments, g->segments);
    add_region("span", a.spans, sizeof *a.spans, g->spans);
    add_region("commit", (const void *)a.commit, sizeof *a.commit, g->blocks);
    add_region("slab", a.slabs, sizeof *a.slabs, g->blocks);
}

static void open_store(void) {
    fixture_create(&store, (fixture_shape){.arena_bytes = 16 << 20, .memory_limit = 8 << 20, .entries = ENTRIES});
    fixture_first(&store, &a);
    fixture_join(&a, &b);
    furnish();
    fixture_check(&a);
    find_ranges();
    name_regions();
    copy = malloc(a.geometry.table_bytes);
    CHECK(copy != NULL);
    memcpy(copy, a.header, a.geometry.table_bytes);
    memcpy(copied_locals[0], a.locals, ENTRIES * sizeof(mp_local));
    memcpy(copied_locals[1], b.locals, ENTRIES * sizeof(mp_local));
}

static void restore_store(void) {
    memcpy((void *)a.header, copy, a.geometry.table_bytes);
    memcpy(a.locals, copied_locals[0], ENTRIES * sizeof(mp_local));
    memcpy(b.locals, copied_locals[1], ENTRIES * sizeof(mp_local));
    atomic_store(&a.deferred, 0);
    atomic_store(&b.deferred, 0);
}

/* --- damage --- */

static uint64_t bad_value(uint64_t old) {
    switch (below(8)) {
    case 0: return 0;
    case 1: return UINT64_MAX;
    case 2: return old + 1;
    case 3: return old - 1;
    case 4: return old ^ 1ull << below(64);
    case 5: return below(64);
    case 6: return (uint64_t)1 << below(64);
    default: return random_next(&dice);
    }
}

static void scribble(void) {
    const range *r = &ranges[below(range_count)];
    uint64_t width = (uint64_t)1 << below(4), at = r->start + random_below(&dice, (r->end - r->start) / width) * width;
    uint64_t value = 0;
    memcpy(&value, (uint8_t *)a.header + at, width);
    value = bad_value(value);
    memcpy((uint8_t *)a.header + at, &value, width);
    changes[change_count].at = at;
    changes[change_count].width = width;
    changes[change_count++].value = value;
}

static void print_changes(void) {
    for (uint32_t i = 0; i < change_count; i++) {
        for (uint32_t n = region_count; n-- > 0;) {
            const region *r = &regions[n];
            uint64_t at = changes[i].at - (uint64_t)((const uint8_t *)r->base - (const uint8_t *)a.header);
            if (at >= r->stride * r->items) continue; /* or it lies before the region: then it is huge */
            fprintf(stderr, "%s %" PRIu64 " %" PRIu64 " %" PRIu64 " %#" PRIx64 "\n", r->name, at / r->stride,
                    at % r->stride, changes[i].width, changes[i].value);
            break;
        }
    }
}

/* Does what a file of tests/corpus/table says. */
static void damage(const char *path) {
    char line[128], name[16];
    uint64_t item, offset, width, value;
    FILE *file = fopen(path, "r");
    CHECK(file != NULL);
    while (fgets(line, sizeof line, file)) {
        CHECK_EQ(sscanf(line, "%15s %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNx64, name, &item, &offset, &width, &value), 5);
        uint32_t n = 0;
        while (n < region_count && strcmp(regions[n].name, name) != 0) n++;
        CHECK(n < region_count && item < regions[n].items && width <= 8 && offset + width <= regions[n].stride);
        memcpy((uint8_t *)regions[n].base + item * regions[n].stride + offset, &value, width);
    }
    fclose(file);
}

/* --- calls --- */

static void call_object(mp_member *m, uint32_t entry, uint64_t birth) {
    uint64_t offset, size;
    mp_place place;
    uint32_t target = 1 + below(ENTRIES - 1), token;
    switch (below(16)) {
    case 0: if (mp_view(m, entry, birth, &offset, &size) == MP_OK) mp_unpin(m, entry, MP_ONE_VIEW); break;
    case 1: if (mp_hold(m, entry, birth) == MP_OK) mp_drop(m, entry, -1); break;
    case 2: mp_drop(m, entry, -1); break;
    case 3: mp_delete(m, entry, birth); break;
    case 4:
        if (mp_clean_claim(m, entry, birth, &offset, &size) != MP_OK) break;
        place = (mp_place){.length = 4096, .segment = below(8)};
        fixture_publish(m, entry, birth, &place, below(2));
        break;
    case 5: mp_evict(m, entry, birth); break;
    case 6: {
        mp_code code = mp_place_read(m, entry, birth, &place, &size);
        if (code != MP_IS_SPILLED && code != MP_IS_RESTORING) break;
        if (mp_restore_begin(m, entry, birth, &offset) == MP_OK)
            mp_restore_end(m, entry, birth, below(2) ? MP_RESIDENT : MP_SPILLED);
        mp_unpin(m, entry, MP_ONE_OP);
        break;
    }
    case 7: mp_token_issue(m, entry, birth, 1, 1, 7, &token); break;
    case 8: mp_token_load(m, below(10), 99 + below(24), entry, birth); break;
    case 9: mp_name_set(m, (char[]){'n', (char)('a' + below(26))}, 2, entry, birth, below(2)); break;
    case 10: mp_contain(m, entry, birth, &target, &birth, 1); break;
    case 11: mp_seal(m, entry, birth); break;
    case 12: mp_drop_place(m, entry, birth); break;
    case 13: mp_containers(m, entry, &target, 1); break;
    case 14: mp_lose(m, entry, birth); break;
    default: mp_abort(m, entry, birth); break;
    }
}

static void call_store(mp_member *m) {
    static mp_candidate candidates[ENTRIES];
    static mp_object objects[ENTRIES];
    uint64_t birth, offset, id;
    uint32_t entry, cursor = 0, found, segment;
    mp_segment dead;
    switch (below(14)) {
    case 0: if (mp_draft(m, 1 + random_below(&dice, 200000), &entry, &birth, &offset) == MP_OK) mp_seal(m, entry, birth); break;
    case 1: mp_grow(m, random_below(&dice, 1 << 20)); break;
    case 2: mp_shrink(m, random_below(&dice, 4 << 20)); break;
    case 3: mp_token_expire(m, below(3)); break;
    case 4: mp_name_remove(m, (char[]){'n', (char)('a' + below(26))}, 2); break;
    case 5: if (mp_name_hold(m, (char[]){'n', (char)('a' + below(26))}, 2, &entry, &birth) == MP_OK) mp_drop(m, entry, -1); break;
    case 6: mp_candidates(m, &cursor, candidates, ENTRIES); break;
    case 7: mp_objects(m, &cursor, objects, ENTRIES, &found); break;
    case 8: if (mp_segment_open(m, 0, &segment, &id) == MP_OK && mp_segment_reserve(m, segment, 1 << 20, &offset) == MP_OK) mp_segment_close(m, segment); break;
    case 9: for (segment = 0; (segment = mp_segment_dead(m, segment, &dead)) != 0; segment++) mp_segment_forget(m, segment, dead.id); break;
    case 10: mp_check(m, NULL, NULL); break;
    case 11: mp_empty_blocks(m, random_below(&dice, 1 << 20)); break;
    case 12:
        if (mp_queue_enter(m, random_below(&dice, 1 << 20)) != MP_OK) break;
        mp_queue_renew(m);
        mp_queue_leave(m, random_below(&dice, 1 << 20));
        break;
    default:
        if (mp_lock(m, -1) != MP_OK) break;
        if (mp_rebuild(m) != MP_OK) atomic_store(&m->header->poisoned, 1);
        mp_unlock(m);
    }
}

static void call(void) {
    mp_member *m = below(4) ? &a : &b;
    uint32_t entry = 1 + below(ENTRIES - 1);
    if (below(3)) call_object(m, entry, mp_birth_of(atomic_load(&a.entries[entry].control)));
    else call_store(m);
}

static void give_up(int signal_number) {
    char text[96];
    int n = snprintf(text, sizeof text, "signal %d in the round with MP_SEED=%llu %.40s\n", signal_number,
                     (unsigned long long)round_seed, check_doing);
    (void)!write(2, text, (size_t)n);
    print_changes();
    _exit(1);
}

static void kept_damage_is_survived(void) {
    struct dirent *file;
    uint64_t count = 0;
    char path[512];
    DIR *directory = opendir(MP_CORPUS "/table");
    CHECK(directory != NULL);
    while ((file = readdir(directory)) != NULL) {
        if (file->d_name[0] == '.') continue;
        snprintf(check_doing, sizeof check_doing, "%.100s", file->d_name);
        snprintf(path, sizeof path, "%s/table/%.200s", MP_CORPUS, file->d_name);
        for (uint64_t i = 0; i < KEPT_ROUNDS; i++, count++) {
            round_seed = dice.state = i;
            alarm(ROUND_SECONDS);
            restore_store();
            damage(path);
            for (uint32_t n = 0; n < CALLS; n++) call();
        }
    }
    closedir(directory);
    check_doing[0] = 0;
    alarm(0);
    CHECK(count >= KEPT_ROUNDS);
    check_count("kept damages of the table", count / KEPT_ROUNDS);
}

static void damaged_tables_are_survived(void) {
    const char *rounds = getenv("MP_ROUNDS");
    uint64_t seed = check_seed(), count = rounds ? strtoull(rounds, NULL, 0) : 3000;
    for (uint64_t i = 0; i < count; i++) {
        round_seed = dice.state = seed + i;
        alarm(ROUND_SECONDS);
        restore_store();
        change_count = 0;
        for (uint32_t n = 1 + below(6); n > 0; n--) scribble();
        for (uint32_t n = 0; n < CALLS; n++) call();
    }
    alarm(0);
    check_count("damaged tables", count);
    restore_store();
    fixture_check(&a);
}

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    signal(SIGALRM, give_up);
    signal(SIGSEGV, give_up);
    signal(SIGBUS, give_up);
    signal(SIGABRT, give_up);
    open_store();
    RUN(kept_damage_is_survived);
    RUN(damaged_tables_are_survived);
    return 0;
}
