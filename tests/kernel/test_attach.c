/* Attaching to tables that are not what they should be. */
#define _GNU_SOURCE
#include <string.h>

#include "fixture.h"

static fixture store;
static mp_member a;

static void open_store(void) {
    fixture_create(&store, (fixture_shape){.arena_bytes = 8 << 20, .memory_limit = 4 << 20, .entries = 300});
    fixture_first(&store, &a);
}

static void close_store(void) {
    fixture_check(&a);
    fixture_unmap(&a);
    fixture_close(&store);
}

static mp_code map_with(uint64_t offset, uint64_t flip) {
    char why[256] = "";
    mp_member m;
    uint8_t *at = (uint8_t *)a.header + offset;
    uint64_t word;
    memcpy(&word, at, sizeof word);
    uint64_t changed = word ^ flip;
    memcpy(at, &changed, sizeof word);
    mp_code code = mp_map(&m, store.table_fd, store.arena_fd, store.lock_fd, store.birth_fd, why);
    memcpy(at, &word, sizeof word);
    if (code == MP_OK) mp_unmap(&m);
    else CHECK(strlen(why) > 10);
    return code;
}

static void a_strange_table_is_refused(void) {
    open_store();
    CHECK_EQ(map_with(0, 0), MP_OK);
    CHECK_EQ(map_with(offsetof(mp_header, magic), 1), MP_INVALID);
    CHECK_EQ(map_with(offsetof(mp_header, layout_version), 1), MP_INVALID);
    CHECK_EQ(map_with(offsetof(mp_header, abi), 1), MP_INVALID);
    CHECK_EQ(map_with(offsetof(mp_header, ready), 1), MP_INVALID);
    for (uint64_t at = 0; at < sizeof(mp_geometry); at += 8)
        CHECK_EQ(map_with(offsetof(mp_header, geometry) + at, 1ull << (at % 60)), MP_INVALID);
    close_store();
}

int main(int argc, char **argv) {
    check_arguments(argc, argv);
    RUN(a_strange_table_is_refused);
    return 0;
}
