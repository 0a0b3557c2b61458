#define _GNU_SOURCE
#include "agent.h"

#include <string.h>
#include <sys/mman.h>

#define SEGMENTS 64u
#define STRETCHES 2048u /* of the disk; a segment has that of its id, which no other has for long */
#define RETRIES 50
#define AGENT_NAMES 12u
#define NAME_BYTES 16u
#define WAIT_NS 1000000 /* a slice; every wait is for a word that somebody changes */

static uint64_t id_of(uint32_t entry, uint64_t birth) { return birth << 16 | entry; }
static uint32_t entry_of(uint64_t id) { return (uint32_t)(id & 0xffffu); }
static uint64_t birth_of(uint64_t id) { return id >> 16; }
static bool chance(agent *a, uint32_t percent) { return random_below(&a->random, 100) < percent; }

static void *shared_memory(uint64_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}

playground *playground_open(void) {
    playground *g = shared_memory(sizeof *g);
    g->disk = shared_memory(STRETCHES * SEGMENT_BYTES);
    return g;
}

void playground_close(playground *g) {
    munmap(g->disk, STRETCHES * SEGMENT_BYTES);
    munmap(g, sizeof *g);
}

/* --- values --- */

uint64_t agent_word(uint64_t birth, uint64_t at) {
    return (birth + 1) * 0x9e3779b97f4a7c15ull ^ (at * 0xbf58476d1ce4e5b9ull);
}

static void write_value(uint8_t *to, uint64_t birth, uint64_t size) {
    uint64_t word, at = 0;
    for (; at + 8 <= size; at += 8) word = agent_word(birth, at), memcpy(to + at, &word, 8);
    word = agent_word(birth, at), memcpy(to + at, &word, size - at);
}

/* Where it differs from the value of that birth; size: nowhere. */
static uint64_t difference(const uint8_t *from, uint64_t birth, uint64_t size) {
    uint64_t word, at = 0;
    for (; at + 8 <= size; at += 8) {
        memcpy(&word, from + at, 8);
        if (word != agent_word(birth, at)) return at;
    }
    word = agent_word(birth, at);
    return memcmp(from + at, &word, size - at) == 0 ? size : at;
}

static bool is_value(const uint8_t *from, uint64_t birth, uint64_t size) { return difference(from, birth, size) == size; }

static void verify_value(const uint8_t *from, uint64_t birth, uint64_t size) {
    CHECK_EQ(difference(from, birth, size), size);
}

/* ThreadSanitizer sees a race only if both sides use one mapping. */
static const uint8_t *readable(const mp_member *m, uint64_t offset) {
#ifdef __SANITIZE_THREAD__
    return m->arena_write + offset;
#else
    return m->arena_read + offset;
#endif
}

/* --- the agent's refs and views --- */

/* A stopped process has the mutex, and this agent does not wait for it: nothing was done, or it was put off. */
static bool is_busy(const agent *a, mp_code code) { return a->hasty && code == MP_BUSY; }

static void drop_ref(agent *a, uint32_t i) {
    mp_code code = mp_drop(a->m, entry_of(a->refs[i]), -1);
    CHECK(code == MP_OK || is_busy(a, code));
    if (code != MP_OK) mp_drop_later(a->m, entry_of(a->refs[i]));
    a->refs[i] = a->refs[--a->ref_count];
}

static void keep_ref(agent *a, uint64_t id) {
    if (a->ref_count == AGENT_REFS) drop_ref(a, (uint32_t)random_below(&a->random, AGENT_REFS));
    a->refs[a->ref_count++] = id;
}

static uint64_t own_ref(agent *a) {
    return a->ref_count ? a->refs[random_below(&a->random, a->ref_count)] : 0;
}

static void post(agent *a, uint64_t id) {
    uint64_t at = a->ground->shielded + random_below(&a->random, BOARD - a->ground->shielded);
    atomic_store_explicit(&a->ground->board[at], id, memory_order_relaxed);
}

static bool shielded(agent *a, uint64_t id) {
    for (uint32_t i = 0; i < a->ground->shielded; i++)
        if (atomic_load_explicit(&a->ground->board[i], memory_order_relaxed) == id) return true;
    return false;
}

static uint64_t any_id(agent *a) {
    return atomic_load_explicit(&a->ground->board[random_below(&a->random, BOARD)], memory_order_relaxed);
}

/* A pinned value stays where it is, even when deleted. */
static void verify_view(const agent *a, uint64_t id) {
    mp_entry *e = &a->m->entries[entry_of(id)];
    CHECK_EQ(mp_birth_of(atomic_load(&e->control)), birth_of(id));
    verify_value(readable(a->m, atomic_load(&e->offset)), birth_of(id), atomic_load(&e->size));
}

static void end_view(agent *a, uint32_t i) {
    verify_view(a, a->views[i]);
    mp_unpin(a->m, entry_of(a->views[i]), MP_ONE_VIEW);
    a->views[i] = a->views[--a->view_count];
}

/* --- spilling --- */

uint8_t *playground_disk(const playground *g, uint64_t segment_id, uint64_t offset) {
    CHECK_EQ(offset / SEGMENT_BYTES, 0);
    return g->disk + segment_id % STRETCHES * SEGMENT_BYTES + offset;
}

uint8_t *playground_record(const playground *g, const mp_member *m, const mp_place *place) {
    CHECK(place->segment < m->geometry.segments);
    return playground_disk(g, m->segments[place->segment].id, place->offset);
}

static void forget_dead_segments(mp_member *m, const playground *g) {
    mp_segment copy;
    for (uint32_t s = mp_segment_dead(m, 1, &copy); s != 0; s = mp_segment_dead(m, s + 1, &copy)) {
        madvise(playground_disk(g, copy.id, 0), SEGMENT_BYTES, MADV_REMOVE);
        mp_code code = mp_segment_forget(m, s, copy.id);
        if (code == MP_BUSY) return;
        CHECK(code == MP_OK || code == MP_NOT_FOUND); /* somebody else was faster */
    }
}

static bool append(agent *a, const uint8_t *from, uint64_t size, mp_place *place) {
    uint64_t length = (size + 4095) / 4096 * 4096 + 4096, offset;
    if (a->segment == 0) {
        if (mp_segment_open(a->m, 0, &a->segment, &a->segment_id) != MP_OK) {
            a->segment = 0;
            forget_dead_segments(a->m, a->ground);
            return false;
        }
    }
    if (mp_segment_reserve(a->m, a->segment, length, &offset) != MP_OK) return false;
    if (offset + length > SEGMENT_BYTES) {
        mp_segment_close(a->m, a->segment);
        a->segment = 0;
        return false;
    }
    memcpy(playground_disk(a->ground, a->segment_id, offset), from, size);
    *place = (mp_place){.offset = offset, .length = length, .checksum = size, .segment = a->segment};
    return true;
}

static void clean(agent *a, uint64_t id, bool evict) {
    uint64_t offset, size;
    mp_place place;
    mp_code code = mp_clean_claim(a->m, entry_of(id), birth_of(id), &offset, &size);
    if (code == MP_TAKEN && evict) mp_evict(a->m, entry_of(id), birth_of(id));
    if (code != MP_OK) return;
    verify_value(readable(a->m, offset), birth_of(id), size);
    if (!append(a, readable(a->m, offset), size, &place)) {
        mp_clean_cancel(a->m, entry_of(id));
        return;
    }
    mp_cleaned item = {.place = place, .birth = birth_of(id), .entry = entry_of(id), .evict = evict};
    code = mp_clean_publish(a->m, &item, 1);
    if (is_busy(a, code)) return;
    CHECK_EQ(code, MP_OK);
    code = item.code;
    CHECK(code == MP_OK || code == MP_NOT_FOUND || code == MP_IS_PINNED);
    if (code == MP_OK) a->spills++;
}

/* --- disk space that comes back --- */

/* Nobody pins what is moved: it may die meanwhile and its bytes be punched, which the verification finds. */
__attribute__((no_sanitize("thread"))) static void copy_unpinned(uint8_t *to, const uint8_t *from, uint64_t size) {
    for (uint64_t i = 0; i < size; i++) to[i] = ((const volatile uint8_t *)from)[i];
}

static void move_record(agent *a, const mp_record *record) {
    static _Thread_local uint8_t value[200000];
    mp_place place;
    mp_segment segment;
    if (record->size > sizeof value || mp_segment_read(a->m, record->segment, &segment) != MP_OK) return;
    if (record->offset >= SEGMENT_BYTES) return;
    copy_unpinned(value, playground_disk(a->ground, segment.id, record->offset), record->size);
    if (!is_value(value, record->birth, record->size) || !append(a, value, record->size, &place)) return;
    mp_code code = mp_place_move(a->m, record, a->segment, place.offset);
    CHECK(code == MP_OK || code == MP_NOT_FOUND || code == MP_IS_PINNED || is_busy(a, code));
    if (code == MP_OK) a->moves++;
}

static void rewrite(agent *a) {
    uint8_t wanted[SEGMENTS] = {0};
    mp_record rows[8];
    uint32_t found;
    for (uint32_t s = 1; s < SEGMENTS; s++) wanted[s] = s != a->segment;
    for (uint32_t cursor = 0; cursor < mp_entries_backed(a->m) && chance(a, 90);) {
        if (mp_records(a->m, &cursor, wanted, SEGMENTS, rows, 8, &found) != MP_OK) return;
        for (uint32_t i = 0; i < found; i++) move_record(a, &rows[i]);
    }
}

/* What is punched is overwritten: whoever reads it after all gets wrong bytes. A closed segment gets no records. */
__attribute__((no_sanitize("thread"))) static uint64_t punch(uint8_t *disk, const uint64_t *bits, uint64_t pages) {
    uint64_t punched = 0;
    for (uint64_t page = 0; page < pages; page++) {
        if (bits[page / 64] >> (page % 64) & 1) continue;
        for (uint64_t at = page * MP_PAGE; at < (page + 1) * MP_PAGE; at++) ((volatile uint8_t *)disk)[at] = 0xdd;
        punched += MP_PAGE;
    }
    return punched;
}

static void punch_segment(agent *a) {
    uint64_t bases[SEGMENTS + 1] = {0}, bits[SEGMENT_BYTES / MP_PAGE / 64] = {0};
    uint32_t chosen = 1 + (uint32_t)random_below(&a->random, SEGMENTS - 1);
    mp_segment segment;
    if (mp_segment_read(a->m, chosen, &segment) != MP_OK || segment.size > SEGMENT_BYTES) return;
    if (atomic_load(&segment.state) != MP_SEGMENT_CLOSED) return;
    uint64_t pages = segment.size / MP_PAGE;
    for (uint32_t s = chosen + 1; s <= SEGMENTS; s++) bases[s] = pages;
    mp_page_map map = {.bases = bases, .bits = bits, .segments = SEGMENTS};
    for (uint32_t cursor = 0; cursor < mp_entries_backed(a->m);)
        if (mp_live_pages(a->m, &cursor, &map) != MP_OK) return;
    uint64_t punched = punch(playground_disk(a->ground, segment.id, 0), bits, pages);
    if (punched == 0) return;
    mp_code code = mp_segment_punched(a->m, chosen, segment.id, punched);
    CHECK(code == MP_OK || code == MP_NOT_FOUND || is_busy(a, code));
    if (code == MP_OK) a->punches++;
}

/* --- room --- */

bool agent_make_room(agent *a, uint64_t size) {
    mp_code code = mp_grow(a->m, size);
    if (code == MP_OK) return true;
    CHECK(code == MP_NO_COMMIT || is_busy(a, code) || (a->refused && code == MP_SYSTEM));
    for (int i = 0; i < 8; i++) clean(a, any_id(a), true);
    mp_shrink(a->m, size);
    return false;
}

/* --- creating --- */

static uint64_t some_size(agent *a) {
    switch (random_below(&a->random, 6)) {
    case 0: return random_below(&a->random, 100);
    case 1:
    case 2: return random_below(&a->random, MP_SMALL_MAX + 1);
    case 3:
    case 4: return random_below(&a->random, 40000);
    default: return random_below(&a->random, 200000);
    }
}

static void create_on_disk(agent *a, uint64_t size) {
    static _Thread_local uint8_t value[200000];
    uint32_t entry;
    uint64_t birth;
    mp_place place;
    if (mp_draft_bare(a->m, size, &entry, &birth) != MP_OK) return;
    write_value(value, birth, size);
    mp_code code = append(a, value, size, &place) ? mp_settle(a->m, entry, birth, &place) : mp_abort(a->m, entry, birth);
    CHECK(code == MP_OK || is_busy(a, code));
    keep_ref(a, id_of(entry, birth));
    post(a, id_of(entry, birth));
}

void agent_finish_draft(agent *a, uint64_t id, uint64_t offset, uint64_t size) {
    bool shown = chance(a, 40);
    if (shown) { /* a writer that shows its draft pins it first */
        mp_pin(a->m, entry_of(id), MP_ONE_OP);
        post(a, id);
    }
    write_value(a->m->arena_write + offset, birth_of(id), size);
    mp_code (*end)(mp_member *, uint32_t, uint64_t) = chance(a, 8) ? mp_abort : mp_seal;
    mp_code code = end(a->m, entry_of(id), birth_of(id));
    CHECK(code == MP_OK || (shown && (code == MP_IS_DELETED || code == MP_NOT_FOUND)) || is_busy(a, code));
    if (shown) mp_unpin(a->m, entry_of(id), MP_ONE_OP);
    else post(a, id);
    keep_ref(a, id);
}

/* There are no entries, hand-offs or names left. */
static void thin_out(agent *a) {
    mp_token_expire(a->m, UINT64_MAX - 1);
    while (a->ref_count > AGENT_REFS / 2) drop_ref(a, (uint32_t)random_below(&a->random, a->ref_count));
}

mp_code agent_draft(agent *a, uint64_t size, uint64_t *id, uint64_t *offset) {
    uint32_t entry;
    uint64_t birth;
    mp_code code = mp_draft(a->m, size, &entry, &birth, offset);
    CHECK(code == MP_OK || code == MP_NO_ROOM || code == MP_POOL_FULL || is_busy(a, code));
    if (code == MP_OK) *id = id_of(entry, birth);
    if (code == MP_POOL_FULL) thin_out(a);
    return code;
}

static void create(agent *a) {
    uint64_t size = some_size(a), id, offset;
    for (int i = 0; i < RETRIES; i++) {
        mp_code code = agent_draft(a, size, &id, &offset);
        if (code == MP_OK) agent_finish_draft(a, id, offset, size);
        if (code == MP_OK || code == MP_POOL_FULL) return;
        agent_make_room(a, size);
    }
    create_on_disk(a, size);
}

uint64_t agent_create(agent *a, uint64_t size) {
    uint32_t entry;
    uint64_t birth, offset;
    mp_code code;
    while ((code = mp_draft(a->m, size, &entry, &birth, &offset)) == MP_NO_ROOM) CHECK(agent_make_room(a, size));
    CHECK_EQ(code, MP_OK);
    write_value(a->m->arena_write + offset, birth, size);
    CHECK_EQ(mp_seal(a->m, entry, birth), MP_OK);
    return id_of(entry, birth);
}

/* --- reading --- */

static void restore(agent *a, uint64_t id) {
    mp_place place;
    uint64_t size, offset;
    uint32_t entry = entry_of(id);
    mp_code code = mp_place_read(a->m, entry, birth_of(id), &place, &size);
    if (code != MP_IS_SPILLED && code != MP_IS_RESTORING) return;
    const uint8_t *record = playground_record(a->ground, a->m, &place);
    CHECK_EQ(place.checksum, size);
    verify_value(record, birth_of(id), size);
    if (code == MP_IS_SPILLED) {
        code = mp_restore_begin(a->m, entry, birth_of(id), &offset);
        if (code == MP_OK) {
            memcpy(a->m->arena_write + offset, record, size);
            mp_restore_step(a->m, entry);
            code = mp_restore_end(a->m, entry, birth_of(id), chance(a, 5) ? MP_SPILLED : MP_RESIDENT);
            CHECK(code == MP_OK || code == MP_IS_DELETED || is_busy(a, code));
            a->restores++;
        } else if (code == MP_NO_ROOM)
            agent_make_room(a, size); /* and the caller tries again */
    }
    mp_unpin(a->m, entry, MP_ONE_OP);
}

static bool read_once(agent *a, uint64_t id, bool keep) {
    uint64_t offset, size;
    uint32_t entry = entry_of(id);
    mp_code code = mp_view(a->m, entry, birth_of(id), &offset, &size);
    switch (code) {
    case MP_OK:
        verify_value(readable(a->m, offset), birth_of(id), size);
        a->reads++;
        if (keep && a->view_count < 8) a->views[a->view_count++] = id;
        else mp_unpin(a->m, entry, MP_ONE_VIEW);
        return true;
    case MP_IS_SPILLED: restore(a, id); return false;
    case MP_IS_DRAFT:
    case MP_IS_RESTORING: mp_wait(a->m, entry, birth_of(id), WAIT_NS); return false;
    default: /* a held entry is never unknown */
        CHECK(code == MP_IS_DELETED || code == MP_IS_ABANDONED || code == MP_IS_LOST);
        return true;
    }
}

void agent_expect_value(agent *a, uint64_t id) {
    uint64_t before = a->reads;
    for (int i = 0; i < 1000 && a->reads == before; i++)
        if (read_once(a, id, false)) break;
    if (a->reads == before) CHECK_EQ(mp_state(a->m, entry_of(id), birth_of(id)), MP_OK);
    CHECK_EQ(a->reads, before + 1);
}

static void read_value(agent *a, uint64_t id, bool keep) {
    for (int i = 0; id != 0 && i < 5; i++)
        if (read_once(a, id, keep)) return;
}

/* --- passing on --- */

static void hold(agent *a, uint64_t id) {
    mp_code code = id ? mp_hold(a->m, entry_of(id), birth_of(id)) : MP_NOT_FOUND;
    CHECK(code == MP_OK || code == MP_NOT_FOUND || is_busy(a, code));
    if (code == MP_OK) keep_ref(a, id);
}

static void issue(agent *a) {
    uint64_t id = own_ref(a), nonce = random_next(&a->random) | 1;
    uint32_t token;
    if (id == 0) return;
    uint64_t expiry = a->m->system->boottime() + 3600ull * 1000000000u;
    uint32_t deliveries = 1 + (uint32_t)random_below(&a->random, 2);
    mp_code code = mp_token_issue(a->m, entry_of(id), birth_of(id), deliveries, expiry, nonce, &token);
    CHECK(code == MP_OK || code == MP_POOL_FULL || is_busy(a, code));
    if (code != MP_OK) {
        thin_out(a);
        return;
    }
    if (chance(a, 20)) {
        code = mp_token_withdraw(a->m, nonce >> MP_FAMILY_SHIFT);
        CHECK(code == MP_OK || is_busy(a, code));
        return;
    }
    _Atomic uint64_t *slot = a->ground->hand_offs[random_below(&a->random, 16)];
    atomic_store_explicit(&slot[0], id, memory_order_relaxed);
    atomic_store_explicit(&slot[1], token, memory_order_relaxed);
    atomic_store_explicit(&slot[2], nonce, memory_order_relaxed);
}

static void load(agent *a) {
    _Atomic uint64_t *slot = a->ground->hand_offs[random_below(&a->random, 16)];
    uint64_t id = atomic_load_explicit(&slot[0], memory_order_relaxed);
    uint32_t token = (uint32_t)atomic_load_explicit(&slot[1], memory_order_relaxed);
    uint64_t nonce = atomic_load_explicit(&slot[2], memory_order_relaxed);
    mp_code code = id ? mp_token_load(a->m, token, nonce, entry_of(id), birth_of(id)) : MP_NOT_FOUND;
    CHECK(code == MP_OK || code == MP_NOT_FOUND || is_busy(a, code));
    if (code == MP_OK) keep_ref(a, id);
}

static uint32_t name_text(char text[NAME_BYTES], uint32_t i) {
    return (uint32_t)snprintf(text, NAME_BYTES, "n%u", i);
}

static void name(agent *a) {
    char text[NAME_BYTES];
    uint32_t entry, length = name_text(text, (uint32_t)random_below(&a->random, AGENT_NAMES));
    uint64_t birth, id = own_ref(a);
    switch (random_below(&a->random, 3)) {
    case 0: {
        if (id == 0) break;
        mp_code code = mp_name_set(a->m, text, length, entry_of(id), birth_of(id), chance(a, 50));
        CHECK(code == MP_OK || code == MP_TAKEN || is_busy(a, code));
        break;
    }
    case 1:
        if (mp_name_hold(a->m, text, length, &entry, &birth) == MP_OK) keep_ref(a, id_of(entry, birth));
        break;
    default: mp_name_remove(a->m, text, length);
    }
}

static void end_value(agent *a) {
    uint64_t id = chance(a, 50) ? own_ref(a) : any_id(a);
    if (id == 0 || shielded(a, id)) return;
    mp_code (*end)(mp_member *, uint32_t, uint64_t) = chance(a, 80) ? mp_delete : mp_lose;
    mp_code code = end(a->m, entry_of(id), birth_of(id));
    CHECK(code == MP_OK || code == MP_NOT_FOUND || is_busy(a, code));
    if (code != MP_OK) return;
    code = mp_state(a->m, entry_of(id), birth_of(id)); /* a death is for good */
    CHECK(code == MP_NOT_FOUND || code == MP_IS_DELETED || code == MP_IS_LOST);
}

static void housekeep(agent *a) {
    switch (random_below(&a->random, 10)) {
    case 0: mp_reap_dead(a->m); break;
    case 6: mp_empty_blocks(a->m, 1 + random_below(&a->random, 1 << 20)); break;
    case 1: mp_shrink(a->m, 1 + random_below(&a->random, 1 << 20)); break;
    case 2: forget_dead_segments(a->m, a->ground); break;
    case 3:
        if (a->segment) mp_segment_close(a->m, a->segment);
        a->segment = 0;
        break;
    case 4:
        if (own_ref(a)) mp_drop_place(a->m, entry_of(a->refs[0]), birth_of(a->refs[0]));
        break;
    case 5: mp_drain(a->m); break;
    case 7: rewrite(a); break;
    case 8: punch_segment(a); break;
    default:
        if (a->ref_count == 0) break;
        mp_drop_later(a->m, entry_of(a->refs[0])); /* and mp_drain does it */
        a->refs[0] = a->refs[--a->ref_count];
    }
}

void agent_step(agent *a) {
    uint64_t choice = random_below(&a->random, 100);
    if (choice < 16) create(a);
    else if (choice < 40) read_value(a, own_ref(a), choice < 20);
    else if (choice < 54) hold(a, any_id(a));
    else if (choice < 64) clean(a, any_id(a), choice < 60);
    else if (choice < 74 && a->ref_count) drop_ref(a, (uint32_t)random_below(&a->random, a->ref_count));
    else if (choice < 80 && a->view_count) end_view(a, (uint32_t)random_below(&a->random, a->view_count));
    else if (choice < 84) issue(a);
    else if (choice < 88) load(a);
    else if (choice < 93) name(a);
    else if (choice < 96) end_value(a);
    else housekeep(a);
}

/* --- endings --- */

void agent_check(agent *a) {
    for (uint32_t i = 0; i < a->view_count; i++) verify_view(a, a->views[i]);
    for (uint32_t i = 0; i < a->ref_count; i++) read_value(a, a->refs[i], false);
}

void agent_let_go(agent *a) {
    while (a->view_count) end_view(a, 0);
    while (a->ref_count) drop_ref(a, 0);
    if (a->segment) mp_segment_close(a->m, a->segment);
    a->segment = 0;
    CHECK(mp_drain(a->m) == 0 || a->hasty);
}

void agent_abandon(agent *a, uint32_t kind) {
    uint32_t entry;
    uint64_t birth, offset, size;
    mp_place place;
    mp_run run;
    uint64_t id = any_id(a);
    switch (kind) {
    case 0: /* a draft that others know of */
        if (mp_draft(a->m, some_size(a), &entry, &birth, &offset) == MP_OK) post(a, id_of(entry, birth));
        break;
    case 1: /* a restore, of what we must not be looking at ourselves */
        while (a->view_count) end_view(a, 0);
        id = atomic_load(&a->ground->board[0]);
        clean(a, id, true);
        clean(a, id, true);
        if (mp_place_read(a->m, entry_of(id), birth_of(id), &place, &size) == MP_IS_SPILLED)
            (void)mp_restore_begin(a->m, entry_of(id), birth_of(id), &offset);
        break;
    case 4: (void)mp_queue_enter(a->m, 1 << 20); break; /* a place among the waiting */
    case 2: (void)mp_clean_claim(a->m, entry_of(id), birth_of(id), &offset, &size); break;
    case 3: issue(a); break;
    default: /* memory on its way in and out */
        if (mp_lock(a->m, -1) != MP_OK) break;
        (void)mp_arena_plan_grow(a->m, 1, &run);
        (void)mp_arena_plan_punch(a->m, 2, &run);
        mp_unlock(a->m);
    }
}

void agent_sweep(mp_member *m, const playground *g) {
    char text[NAME_BYTES];
    for (uint32_t i = 0; i < AGENT_NAMES; i++) mp_name_remove(m, text, name_text(text, i));
    mp_token_expire(m, UINT64_MAX - 1);
    forget_dead_segments(m, g);
}

void agent_expect_only(mp_member *m, uint32_t objects) {
    mp_header *h = m->header;
    fixture_check(m);
    CHECK_EQ(h->pool_entries.used, objects + 1); /* item 0 counts */
    CHECK_EQ(h->pool_tokens.used, 1);
    CHECK_EQ(h->pool_names.used, 1);
    for (uint32_t slot = 0; slot < MP_SLOTS; slot++)
        CHECK(slot == m->slot || mp_slot_state_of(atomic_load(&m->slots[slot].word)) == MP_SLOT_FREE);
    CHECK_EQ(h->queue_first, 0);
    for (uint32_t b = 0; b < h->commit_high; b++)
        CHECK(mp_block_state(m, b) == MP_NONE || mp_block_state(m, b) == MP_COMMITTED);
    for (uint32_t s = 1; s < atomic_load(&h->pool_segments.high) && s < SEGMENTS; s++) {
        uint32_t state = atomic_load(&m->segments[s].state);
        CHECK(state == MP_SEGMENT_FREE || (state == MP_SEGMENT_CLOSED && m->segments[s].live != 0));
    }
    if (objects != 0) return;
    CHECK_EQ(h->disk_bytes, 0);
    CHECK_EQ(h->free_pages, h->committed_blocks * MP_BLOCK_PAGES);
    mp_shrink(m, UINT64_MAX / 2);
    CHECK_EQ(h->committed_blocks, 0);
    CHECK_EQ(h->pool_spans.used, 1);
}
