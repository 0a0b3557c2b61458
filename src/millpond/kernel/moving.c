/* Moving: objects that nobody uses leave sparse blocks for fuller ones, so that whole blocks come free.
 *
 * A move happens inside one hold of the mutex: EVICTING, a look at the pins, the copy, one store of
 * the offset, RESIDENT. A death at any point leaves either the old offset or the new one, each with
 * the whole value behind it; everything else about extents is a cache and is rebuilt.
 *
 * Why no reader is misled, on any machine (PAIR pin-evict). A reader sets its pin, loads the control
 * word, then reads the offset; a mover stores EVICTING, then loads the pins; these four are seq_cst.
 * Either the mover's load sees the pin, and nothing moves; or it precedes the pin, so the reader's
 * load comes after EVICTING: it finds EVICTING, and takes the slow path, or the RESIDENT that the
 * mover stored afterwards. That store releases the copy and the offset, the reader's load acquires
 * them, and the offset is read after it. An offset that was read before the control word could be the
 * old one: nobody does that, nor keeps one without a pin.
 *
 * Invariants: a plan comes from a look without the mutex and is a guess; each move is judged again
 * under it. Values go only to blocks that the plan counted as no emptier than those they leave, never to
 * free ones: every move makes full blocks fuller and sparse ones sparser, so moving ends by itself.
 * Not here: when it pays (store/room.py), giving the free blocks back (memory.c).
 */
#include <stdlib.h>

#include "arena.h"
#include "failpoint.h"

#define MOVE_MAX (4u * MP_BLOCK)   /* larger extents stay where they are */
#define HOLD_COST (4u * MP_BLOCK)  /* of one hold of the mutex: bytes, and for each move some more */
#define MOVE_COST 1024u
#define BATCH 256u
#define TRIES 64u /* places looked at for one value */
#define NEST_MAX (MOVE_MAX / MP_PAGE) /* pages */
#define RUNS MP_CLASSES /* the group of the blocks that hold runs of pages; slabs have one for each class */
#define GROUPS (MP_CLASSES + 1u)

enum mark { TARGET = 0, VICTIM = 1, APART = 2 /* free, or given up */ };

typedef struct block {
    uint32_t used;  /* bytes of its extents */
    uint16_t pages; /* a bit for each page that is not free */
    uint8_t group;
    bool fixed; /* something in it cannot move */
} block;

/* Free pages behind the run of an entry, on the list of those with so many. */
typedef struct nest {
    uint32_t entry, next;
} nest;

/* The blocks of a kind: keys[first, end), the fullest first. Victims are taken from the end on. */
typedef struct group {
    uint32_t first, last, end, target;
    uint64_t room; /* free bytes of those that are no victims, less what the victims will need */
} group;

typedef struct plan {
    mp_member *m;
    uint32_t count;
    block *blocks;
    uint64_t *keys;
    uint8_t *marks;
    group groups[GROUPS];
    nest *nests; /* item 0 is none */
    uint32_t runs, nested, lists[NEST_MAX + 1];
    uint64_t emptied; /* bytes */
} plan;

typedef struct object {
    uint32_t entry;
    uint64_t birth;
} object;

/* --- one move; mutex held --- */

static bool move(mp_member *m, mp_entry *e, uint64_t birth, uint64_t to, uint32_t span) {
    uint64_t from = atomic_load(&e->offset), size = atomic_load(&e->size);
    uint32_t span_from = e->span;
    atomic_store(&e->control, mp_word(birth, MP_EVICTING)); /* PAIR pin-evict */
    MP_FAILPOINT("move.evicting");
    bool pinned = mp_pinned(e);
    if (!pinned) {
        memcpy(m->arena_write + to, m->arena_write + from, mp_extent_bytes(size));
        MP_FAILPOINT("move.copied");
        atomic_store(&e->offset, to);
        MP_FAILPOINT("move.stored");
        e->span = span;
    }
    atomic_store(&e->control, mp_word(birth, MP_RESIDENT));
    MP_FAILPOINT("move.moved");
    mp_arena_free(m, pinned ? to : from, size, pinned ? span : span_from);
    return !pinned;
}

/* --- the plan; without the mutex --- */

static uint32_t group_of(uint64_t size) { return size <= MP_SMALL_MAX ? mp_class_of(size) : RUNS; }

static uint32_t capacity(uint32_t g) {
    return g == RUNS ? MP_BLOCK : MP_BLOCK / mp_class_bytes(g) * mp_class_bytes(g);
}

static bool inside(const plan *p, uint64_t offset, uint64_t bytes) {
    uint64_t all = (uint64_t)p->count * MP_BLOCK;
    return bytes <= all && offset <= all - bytes;
}

static uint32_t overlap(uint64_t offset, uint64_t bytes, uint64_t b) {
    uint64_t low = b * MP_BLOCK, high = low + MP_BLOCK;
    return (uint32_t)((offset + bytes < high ? offset + bytes : high) - (offset > low ? offset : low));
}

/* The pages of block b that an extent covers. */
static uint16_t page_bits(uint64_t offset, uint64_t bytes, uint64_t b) {
    uint64_t start = offset > b * MP_BLOCK ? offset - b * MP_BLOCK : 0;
    uint32_t first = (uint32_t)(start / MP_PAGE), count = (overlap(offset, bytes, b) + MP_PAGE - 1) / MP_PAGE;
    return (uint16_t)(((1u << count) - 1) << first);
}

static bool movable(mp_entry *e, enum mp_state state, uint64_t bytes) {
    return state == MP_RESIDENT && bytes <= MOVE_MAX && !mp_pinned(e);
}

static void count_entry(plan *p, mp_entry *e) {
    enum mp_state state = mp_state_of(atomic_load_explicit(&e->control, memory_order_relaxed));
    if (!mp_seems_in_memory(e, state)) return;
    uint64_t offset = atomic_load_explicit(&e->offset, memory_order_relaxed);
    uint64_t size = atomic_load_explicit(&e->size, memory_order_relaxed), bytes = mp_extent_bytes(size);
    if (!inside(p, offset, bytes)) return;
    p->runs += size > MP_SMALL_MAX;
    for (uint64_t b = offset / MP_BLOCK; b <= (offset + bytes - 1) / MP_BLOCK; b++) {
        block *at = &p->blocks[b];
        at->used += overlap(offset, bytes, b);
        at->pages |= size > MP_SMALL_MAX ? page_bits(offset, bytes, b) : UINT16_MAX;
        at->group = (uint8_t)group_of(size);
        at->fixed |= !movable(e, state, bytes);
    }
}

static block *block_of(const plan *p, uint32_t i) { return &p->blocks[(uint32_t)p->keys[i]]; }

static int by_key(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Blocks in use, by group, the fullest first: group, free bytes, number of the block. */
static void arrange(plan *p) {
    uint32_t n = 0;
    for (uint32_t b = 0; b < p->count; b++) {
        block *at = &p->blocks[b];
        if (at->used > capacity(at->group)) at->used = capacity(at->group); /* it changed while we looked */
        if (at->used == 0) p->marks[b] = APART;
        else p->keys[n++] = (uint64_t)at->group << 56 | (uint64_t)(MP_BLOCK - at->used) << 32 | b;
    }
    qsort(p->keys, n, sizeof *p->keys, by_key);
    for (uint32_t g = 0, i = 0; g < GROUPS; g++) {
        group *q = &p->groups[g];
        q->first = i;
        for (; i < n && block_of(p, i)->group == g; i++) q->room += capacity(g) - block_of(p, i)->used;
        q->last = q->end = i;
        for (q->target = q->first; q->target < q->end && block_of(p, q->target)->used == capacity(g);) q->target++;
    }
}

/* The group whose next victim is the sparsest of all; GROUPS: the others of its kind could not take more. */
static uint32_t choose_group(plan *p) {
    uint32_t best = GROUPS, least = UINT32_MAX;
    for (uint32_t g = 0; g < GROUPS; g++) {
        group *q = &p->groups[g];
        while (q->last > q->first && block_of(p, q->last - 1)->fixed) q->last--;
        if (q->last == q->first || q->room < capacity(g) || block_of(p, q->last - 1)->used >= least) continue;
        best = g;
        least = block_of(p, q->last - 1)->used;
    }
    return best;
}

static void choose_victims(plan *p, uint64_t bytes) {
    uint32_t g;
    for (uint64_t chosen = 0; chosen < bytes && (g = choose_group(p)) < GROUPS; chosen += MP_BLOCK) {
        group *q = &p->groups[g];
        p->marks[(uint32_t)p->keys[--q->last]] = VICTIM;
        q->room -= capacity(g); /* its free bytes do not count any more, its values take some of the others' */
    }
}

static void add_nest(plan *p, uint32_t i, uint32_t entry, uint32_t pages) {
    p->nests[i] = (nest){entry, p->lists[pages]};
    p->lists[pages] = i;
}

/* Free pages from one on, in blocks that take values in. */
static uint32_t pages_from(const plan *p, uint64_t page) {
    uint32_t n = 0;
    for (; n < NEST_MAX; n++, page++) {
        uint64_t b = page / MP_BLOCK_PAGES;
        if (b >= p->count || p->marks[b] != TARGET || p->blocks[b].pages >> page % MP_BLOCK_PAGES & 1) break;
    }
    return n;
}

static void find_nests(plan *p) {
    for (uint32_t i = 1; i < mp_entries_backed(p->m) && p->nested < p->runs; i++) {
        mp_entry *e = &p->m->entries[i];
        if (!mp_owns_extent(mp_state_of(atomic_load_explicit(&e->control, memory_order_relaxed)))) continue;
        uint64_t size = atomic_load_explicit(&e->size, memory_order_relaxed), bytes = mp_extent_bytes(size);
        uint64_t offset = atomic_load_explicit(&e->offset, memory_order_relaxed);
        if (size <= MP_SMALL_MAX || !inside(p, offset, bytes)) continue;
        uint32_t pages = pages_from(p, (offset + bytes) / MP_PAGE);
        if (pages != 0) add_nest(p, ++p->nested, i, pages);
    }
}

/* --- the moves --- */

static bool in_victim(const plan *p, uint64_t offset, uint64_t bytes) {
    if (bytes > MOVE_MAX || !inside(p, offset, bytes)) return false;
    for (uint64_t b = offset / MP_BLOCK; b <= (offset + bytes - 1) / MP_BLOCK; b++)
        if (p->marks[b] == VICTIM) return true;
    return false;
}

/* What is left in these blocks stays there. */
static void give_up(plan *p, uint64_t offset, uint64_t bytes) {
    for (uint64_t b = offset / MP_BLOCK; b <= (offset + bytes - 1) / MP_BLOCK; b++)
        if (p->marks[b] == VICTIM) p->marks[b] = APART;
}

static void account(plan *p, uint64_t offset, uint64_t bytes) {
    for (uint64_t b = offset / MP_BLOCK; b <= (offset + bytes - 1) / MP_BLOCK; b++) {
        uint32_t gone = overlap(offset, bytes, b), used = p->blocks[b].used;
        p->blocks[b].used = used > gone ? used - gone : 0;
        if (p->blocks[b].used == 0 && p->marks[b] == VICTIM) p->emptied += MP_BLOCK;
    }
}

/* Mutex held. */
static bool find_slot(plan *p, uint32_t class, uint64_t *offset) {
    group *q = &p->groups[class];
    for (uint32_t tries = 0; q->target < q->end && tries < TRIES; q->target++, tries++) {
        uint32_t b = (uint32_t)p->keys[q->target];
        if (p->marks[b] != TARGET) continue;
        mp_code code = mp_slab_take(p->m, b, class, offset);
        if (code != MP_NO_ROOM) return code == MP_OK;
    }
    return false;
}

/* Mutex held. The span of an entry's run, and how many free pages follow; 0: none, or no such run. An entry that
 * has lost its extent since it was counted still names a span, and a rebuild leaves what it does not use as it was. */
static uint32_t look_into(const plan *p, uint32_t entry, uint32_t *span) {
    const mp_member *m = p->m;
    mp_entry *e = &m->entries[entry];
    uint64_t page = atomic_load(&e->offset) / MP_PAGE, pages = mp_extent_bytes(atomic_load(&e->size)) / MP_PAGE;
    *span = e->span;
    if (!mp_has_extent(e) || !mp_span_is(m, e->span, MP_SPAN_EXTENT, page, pages)) return 0;
    const mp_span *next = &m->spans[m->spans[e->span].next < m->geometry.spans ? m->spans[e->span].next : 0];
    if (next->used != MP_SPAN_FREE || next->page != page + pages) return 0;
    return next->pages < NEST_MAX ? next->pages : NEST_MAX;
}

static bool takes_in(const plan *p, uint64_t offset, uint64_t bytes) {
    if (!inside(p, offset, bytes)) return false;
    for (uint64_t b = offset / MP_BLOCK; b <= (offset + bytes - 1) / MP_BLOCK; b++)
        if (p->marks[b] != TARGET) return false;
    return true;
}

/* Mutex held. The tightest nest first; what is left of it lies behind the newcomer, whose entry that is. */
static bool find_run(plan *p, uint32_t entry, uint32_t pages, uint64_t *offset, uint32_t *span) {
    uint32_t tries = 0, before;
    for (uint32_t fit = pages; fit <= NEST_MAX; fit++)
        for (uint32_t i; (i = p->lists[fit]) != 0 && tries < TRIES; tries++) {
            p->lists[fit] = p->nests[i].next;
            uint32_t there = look_into(p, p->nests[i].entry, &before);
            if (there < pages || !takes_in(p, mp_span_end(&p->m->spans[before]) * MP_PAGE, pages * MP_PAGE)) continue;
            if (mp_run_take_behind(p->m, before, pages, offset, span) != MP_OK) return false;
            add_nest(p, i, entry, there - pages);
            return true;
        }
    return false;
}

/* Mutex held. Returns what it cost. */
static uint32_t move_out(plan *p, object o) {
    mp_entry *e = &p->m->entries[o.entry];
    if (atomic_load(&e->control) != mp_word(o.birth, MP_RESIDENT)) return MOVE_COST;
    uint64_t from = atomic_load(&e->offset), size = atomic_load(&e->size), bytes = mp_extent_bytes(size), to;
    uint32_t span = 0;
    if (!in_victim(p, from, bytes)) return MOVE_COST;
    bool found = !mp_pinned(e) && (size <= MP_SMALL_MAX ? find_slot(p, mp_class_of(size), &to)
                                                        : find_run(p, o.entry, (uint32_t)(bytes / MP_PAGE), &to, &span));
    if (!found || !move(p->m, e, o.birth, to, span))
        give_up(p, from, bytes);
    else
        account(p, from, bytes);
    return MOVE_COST + (uint32_t)bytes;
}

static bool move_batch(plan *p, const object *batch, uint32_t count) {
    for (uint32_t at = 0; at < count;) {
        MP_FAILPOINT("move.planned");
        if (mp_pool_ensure(p->m, &p->m->header->pool_spans, 8) != MP_OK || mp_lock(p->m, -1) != MP_OK) return false;
        for (uint32_t cost = 0; at < count && cost < HOLD_COST; at++) cost += move_out(p, batch[at]);
        mp_unlock(p->m);
    }
    return true;
}

static void move_all(plan *p) {
    object batch[BATCH];
    uint32_t n = 0;
    for (uint32_t i = 1; i < mp_entries_backed(p->m); i++) {
        mp_entry *e = &p->m->entries[i];
        uint64_t control = atomic_load_explicit(&e->control, memory_order_relaxed);
        if (mp_state_of(control) != MP_RESIDENT) continue;
        uint64_t size = atomic_load_explicit(&e->size, memory_order_relaxed);
        if (!in_victim(p, atomic_load_explicit(&e->offset, memory_order_relaxed), mp_extent_bytes(size))) continue;
        batch[n++] = (object){i, mp_birth_of(control)};
        if (n == BATCH && !move_batch(p, batch, n)) return;
        n %= BATCH;
    }
    (void)move_batch(p, batch, n);
}

static bool plan_moves(plan *p, uint64_t bytes) {
    for (uint32_t i = 1; i < mp_entries_backed(p->m); i++) count_entry(p, &p->m->entries[i]);
    arrange(p);
    choose_victims(p, bytes);
    p->nests = calloc((uint64_t)p->runs + 1, sizeof *p->nests);
    if (p->nests) find_nests(p);
    return p->nests != NULL;
}

uint64_t mp_empty_blocks(mp_member *m, uint64_t bytes) {
    plan p = {.m = m};
    if (mp_lock(m, -1) != MP_OK) return 0;
    p.count = mp_commit_high(m);
    mp_unlock(m);
    p.keys = calloc((uint64_t)p.count + 1, sizeof *p.keys + sizeof *p.blocks + sizeof *p.marks);
    if (!p.keys) return 0;
    p.blocks = (block *)(p.keys + p.count);
    p.marks = (uint8_t *)(p.blocks + p.count);
    if (plan_moves(&p, bytes)) move_all(&p);
    free(p.nests);
    free(p.keys);
    return p.emptied;
}
