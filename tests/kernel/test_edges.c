/* Refs inside values: what they keep, how they go, and that a crash leaves none behind. */
#define _GNU_SOURCE
#include <string.h>

#include "fixture.h"

#define MANY 20000u

static fixture store;
static mp_member a, b;

typedef struct object {
    uint32_t entry;
    uint64_t birth;
} object;

static void open_store(void) {
    fixture_create(&store, (fixture_shape){.arena_bytes = 64 << 20, .memory_limit = 32 << 20, .entries = MANY + 100});
    fixture_first(&store, &a);
    fixture_join(&a, &b);
}

static void close_store(void) {
    fixture_check(&a);
    mp_release_slot(&b);
    mp_drop_all(&a);
    fixture_check(&a);
    CHECK_EQ(a.header->pool_entries.used, 1);
    CHECK_EQ(a.header->pool_edges.used, 1);
    CHECK_EQ(a.header->free_pages, a.header->committed_blocks * MP_BLOCK_PAGES);
    fixture_leave(&b);
    fixture_unmap(&a);
    fixture_close(&store);
}

static object make(mp_member *m, const object *inside, uint32_t count) {
    object o;
    uint64_t offset;
    mp_code code;
    while ((code = mp_draft(m, 64, &o.entry, &o.birth, &offset)) == MP_NO_ROOM) CHECK_EQ(mp_grow(m, 64), MP_OK);
    CHECK_EQ(code, MP_OK);
    for (uint32_t i = 0; i < count; i++)
        CHECK_EQ(mp_contain(m, o.entry, o.birth, &inside[i].entry, &inside[i].birth, 1), MP_OK);
    CHECK_EQ(mp_seal(m, o.entry, o.birth), MP_OK);
    return o;
}

static void drop(mp_member *m, object o) {
    CHECK_EQ(mp_drop(m, o.entry, -1), MP_OK);
    mp_undertake(m);
}

static void a_container_keeps_its_refs(void) {
    open_store();
    object inner = make(&a, NULL, 0), outer = make(&a, &inner, 1), second = make(&a, &inner, 1);
    drop(&a, inner);
    CHECK_EQ(mp_state(&b, inner.entry, inner.birth), MP_OK);
    CHECK_EQ(mp_hold(&b, inner.entry, inner.birth), MP_OK);
    drop(&a, outer);
    drop(&b, inner);
    CHECK_EQ(mp_state(&b, inner.entry, inner.birth), MP_OK);
    uint32_t found[4];
    CHECK_EQ(mp_containers(&b, inner.entry, found, 4), 1);
    CHECK_EQ(found[0], second.entry);
    drop(&a, second);
    CHECK_EQ(mp_state(&b, inner.entry, inner.birth), MP_NOT_FOUND);
    close_store();
}

static void a_deleted_container_lets_go_though_it_is_held(void) {
    open_store();
    object inner = make(&a, NULL, 0), outer = make(&a, &inner, 1);
    drop(&a, inner);
    uint64_t offset, size;
    CHECK_EQ(mp_view(&b, outer.entry, outer.birth, &offset, &size), MP_OK);
    CHECK_EQ(mp_delete(&a, outer.entry, outer.birth), MP_OK);
    CHECK_EQ(mp_state(&a, inner.entry, inner.birth), MP_OK); /* a reader may be about to load it */
    mp_unpin(&b, outer.entry, MP_ONE_VIEW);
    CHECK_EQ(mp_state(&a, inner.entry, inner.birth), MP_NOT_FOUND);
    CHECK_EQ(mp_state(&a, outer.entry, outer.birth), MP_IS_DELETED);
    close_store();
}

static void a_long_chain_goes_without_recursion(void) {
    open_store();
    object last = make(&a, NULL, 0);
    for (uint32_t i = 0; i < MANY; i++) {
        object next = make(&a, &last, 1);
        drop(&a, last);
        last = next;
    }
    fixture_check(&a);
    drop(&a, last);
    CHECK_EQ(a.header->pool_entries.used, 1);
    close_store();
}

static void one_value_with_many_refs(void) {
    open_store();
    static uint32_t targets[MANY];
    static uint64_t births[MANY];
    for (uint32_t i = 0; i < MANY; i++) {
        object o = make(&a, NULL, 0);
        targets[i] = o.entry, births[i] = o.birth;
    }
    object outer;
    uint64_t offset;
    CHECK_EQ(mp_draft(&a, 64, &outer.entry, &outer.birth, &offset), MP_OK);
    CHECK_EQ(mp_contain(&a, outer.entry, outer.birth, targets, births, MANY), MP_OK);
    CHECK_EQ(mp_seal(&a, outer.entry, outer.birth), MP_OK);
    for (uint32_t i = 0; i < MANY; i++) CHECK_EQ(mp_drop(&a, targets[i], -1), MP_OK);
    CHECK_EQ(a.header->pool_entries.used, MANY + 2);
    drop(&a, outer);
    CHECK_EQ(a.header->pool_entries.used, 1);
    close_store();
}

static void a_rebuild_finds_the_edges_again(void) {
    open_store();
    object inner = make(&a, NULL, 0), outer = make(&a, &inner, 1);
    drop(&a, inner);
    CHECK_EQ(mp_lock(&a, -1), MP_OK);
    a.entries[inner.entry].edges_in = 77; /* caches may hold anything after a crash */
    a.header->pool_edges.free = 12345;
    atomic_store(&a.header->doomed, 9);
    CHECK_EQ(mp_rebuild(&a), MP_OK);
    CHECK_EQ(mp_rebuild(&a), MP_OK);
    mp_unlock(&a);
    fixture_check(&a);
    CHECK_EQ(mp_state(&b, inner.entry, inner.birth), MP_OK);
    drop(&a, outer);
    CHECK_EQ(mp_state(&b, inner.entry, inner.birth), MP_NOT_FOUND);
    close_store();
}

static void a_dead_writer_leaves_no_edge(void) {
    open_store();
    object inner = make(&a, NULL, 0), outer;
    uint64_t offset, word = atomic_load(&b.slots[b.slot].word);
    CHECK_EQ(mp_draft(&b, 64, &outer.entry, &outer.birth, &offset), MP_OK);
    CHECK_EQ(mp_contain(&b, outer.entry, outer.birth, &inner.entry, &inner.birth, 1), MP_OK);
    drop(&a, inner);
    CHECK_EQ(mp_state(&a, inner.entry, inner.birth), MP_OK);
    CHECK_EQ(mp_reap(&a, b.slot, word), MP_OK);
    CHECK_EQ(mp_state(&a, inner.entry, inner.birth), MP_NOT_FOUND);
    CHECK_EQ(a.header->pool_edges.used, 1);
    close_store();
}

static void strangers_are_not_contained(void) {
    open_store();
    object inner = make(&a, NULL, 0), outer;
    uint64_t offset, wrong = inner.birth + 1;
    uint32_t beyond = a.geometry.entries + 5;
    CHECK_EQ(mp_draft(&a, 64, &outer.entry, &outer.birth, &offset), MP_OK);
    CHECK_EQ(mp_contain(&a, outer.entry, outer.birth, &inner.entry, &wrong, 1), MP_NOT_FOUND);
    CHECK_EQ(mp_contain(&a, outer.entry, outer.birth, &beyond, &inner.birth, 1), MP_NOT_FOUND);
    CHECK_EQ(mp_seal(&a, outer.entry, outer.birth), MP_OK);
    CHECK_EQ(mp_contain(&a, outer.entry, outer.birth, &inner.entry, &inner.birth, 1), MP_IS_DELETED);
    close_store();
}

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    RUN(a_container_keeps_its_refs);
    RUN(a_deleted_container_lets_go_though_it_is_held);
    RUN(a_long_chain_goes_without_recursion);
    RUN(one_value_with_many_refs);
    RUN(a_rebuild_finds_the_edges_again);
    RUN(a_dead_writer_leaves_no_edge);
    RUN(strangers_are_not_contained);
    return 0;
}
