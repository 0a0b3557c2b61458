/* The kernel's face: bits, offsets and states of one store, as seen by one member.
 *
 * Every call takes a member; there are no globals but the table of system calls. Nothing here
 * knows Python, pickle, files or policy. A call either returns mp_code or cannot fail.
 * Unless a comment says "mutex held", a call takes the store's mutex itself if it needs it.
 * Order of locks: refs_mutex -> store mutex; pins_mutex is a leaf. Nobody holds any of them
 * over I/O, the GIL or anything that can block.
 */
#ifndef MILLPOND_KERNEL_H
#define MILLPOND_KERNEL_H

#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "layout.h"
#include "system.h"

typedef enum mp_code {
    MP_OK = 0,
    MP_NOT_FOUND,      /* no such entry, birth, name */
    MP_IS_DELETED,     /* somebody deleted the value */
    MP_IS_LOST,        /* its disk copy is gone or damaged */
    MP_IS_ABANDONED,   /* its writer died before the seal */
    MP_IS_DRAFT,       /* not sealed yet: wait */
    MP_IS_SPILLED,     /* on disk only: restore */
    MP_IS_RESTORING,   /* somebody restores it: wait */
    MP_IS_PINNED,      /* in use by somebody else: cannot go */
    MP_NO_ROOM,        /* no committed hole fits */
    MP_NO_COMMIT,      /* memory_limit (or address space) leaves no block to commit */
    MP_POOL_FULL,      /* see mp_member.full_pool */
    MP_NO_SLOT,        /* MP_SLOTS members already */
    MP_BUSY,           /* a stopped process holds the mutex; see mp_member.busy_pid */
    MP_CORRUPTED,      /* the table failed its check */
    MP_CLOSED,         /* this member is closed, reaped or an orphan of fork */
    MP_TAKEN,          /* the name is in use */
    MP_DISK_LIMIT,     /* spill_limit */
    MP_INVALID,        /* the caller's arguments, or a table that cannot be attached */
    MP_SYSTEM,         /* a system call failed; see mp_member.error */
} mp_code;

/* Private counts of one entry: how often this process holds and pins it. */
typedef struct mp_local {
    _Atomic uint32_t refs;
    uint32_t deferred; /* link of the list of put-off decrements: index + 1 */
    _Atomic uint64_t pins; /* views in the low half, operations in the high half */
} mp_local;
#define MP_ONE_VIEW 1ull
#define MP_ONE_OP (1ull << 32)

typedef struct mp_run { uint32_t block, blocks; } mp_run;

/* The rest of a call that met a stopped holder of the mutex: what a member does later, see unfinished.c. */
enum mp_unfinished_kind { MP_GROWN, MP_NOT_GROWN, MP_PUNCH, MP_NOT_RESTORED, MP_FOUND_LOST, MP_SEGMENT_FULL, MP_HAND_OFFS, MP_QUEUED };
typedef struct mp_unfinished {
    enum mp_unfinished_kind kind;
    uint32_t item;   /* an entry or a segment, */
    mp_run run;      /* or blocks; */
    uint64_t number; /* its birth or id, bytes of the queue, or a family of hand-offs */
} mp_unfinished;
#define MP_UNFINISHED_MAX 32u

typedef struct mp_member {
    mp_header *header; /* the table */
    mp_slot *slots;
    uint32_t *buckets;
    mp_entry *entries;
    mp_token *tokens;
    mp_edge *edges;
    mp_name *names;
    mp_segment *segments;
    mp_span *spans;
    _Atomic uint16_t *commit;
    mp_slab *slabs;
    mp_site *sites;
    uint8_t *arena_write, *arena_read; /* two mappings of the arena */
    mp_geometry geometry;              /* the private, validated copy */
    const mp_system *system;
    int table_fd, arena_fd, lock_fd, birth_fd;
    uint64_t arena_device, arena_inode; /* what arena_fd was when it was mapped */

    uint32_t slot;
    uint64_t slot_word; /* as claimed; differs from the table's once reaped */
    mp_local *locals;
    _Atomic uint32_t *wipe; /* a page that fork zeroes: 1 while the process is the one that attached */
    _Atomic uint32_t state; /* enum mp_member_state */
    pthread_mutex_t refs_mutex, pins_mutex;
    _Atomic uint32_t deferred; /* head of the put-off decrements: index + 1 */

    /* the reasons behind the last failing call of this member, for messages; a hint under threads */
    _Atomic int error;
    _Atomic uint32_t busy_pid;
    const char *_Atomic full_pool;

    int64_t patience_ns; /* how long a call waits for the mutex: 5 s */
    mp_unfinished unfinished[MP_UNFINISHED_MAX]; /* under pins_mutex */
    _Atomic uint32_t unfinished_count;

    uint32_t queued; /* threads that wait for room; under the store's mutex */
    uint64_t queue_served; /* of what they need: taken by those that have not left yet; under it as well */

    /* fork in progress */
    uint32_t fork_slot;
    int fork_fd, spare_fd;
} mp_member;

enum mp_member_state { MP_MEMBER_OPEN = 0, MP_MEMBER_CLOSING = 1, MP_MEMBER_CLOSED = 2, MP_MEMBER_ORPHAN = 3 };

/* --- table.c: creation, mapping, pools, entries --- */

/* Geometry for an arena of at least arena_bytes; pools at their full size. */
/* edges: four for each entry. */
void mp_geometry_plan(mp_geometry *geometry, uint64_t arena_bytes, uint32_t entries, uint32_t tokens,
                      uint32_t names, uint32_t segments);
bool mp_geometry_valid(const mp_geometry *geometry);
uint32_t mp_abi(void);

/* Writes a fresh table into table_fd, which must be empty; ready is stored last. MP_SYSTEM: see errno. */
typedef struct mp_creation {
    uint8_t uuid[16], boot_id[16];
    uint64_t pid_namespace;
    uint32_t uid, gid;
    uint64_t memory_limit, spill_limit, overflow_limit, handoff_ns;
    const char *config;
} mp_creation;
mp_code mp_create(int table_fd, int arena_fd, const mp_geometry *geometry, const mp_creation *creation);

/* Maps and validates; why (256 bytes) receives the reason of MP_INVALID. Claims no slot. */
mp_code mp_map(mp_member *m, int table_fd, int arena_fd, int lock_fd, int birth_fd, char *why);
/* A second member over the mappings of another one, for members that are threads. */
mp_code mp_map_shared(mp_member *m, const mp_member *other);
void mp_unmap_arena(mp_member *m);
void mp_unmap(mp_member *m); /* leaves the mutex's page reserved: see reliability notes in docs */

/* Makes sure that a pool has an item to give: populates the next step outside the mutex. */
mp_code mp_pool_ensure(mp_member *m, mp_pool *pool, uint32_t count);
uint32_t mp_pool_take(mp_member *m, mp_pool *pool); /* mutex held; 0: empty, full_pool is set */
void mp_pool_give(mp_member *m, mp_pool *pool, uint32_t item);
void mp_pool_reset(mp_pool *pool); /* before a rebuild puts every item back */

/* --- lock.c --- */
mp_code mp_lock(mp_member *m, int64_t timeout_ns); /* negative: our patience. Repairs after a dead owner */
/* The same, with our patience, for what takes a slot's number to be this member's: entries, segments, blocks, bits,
 * tickets. MP_CLOSED: it was given up for dead, and the slot may be another's by now. */
mp_code mp_lock_own(mp_member *m);
void mp_unlock(mp_member *m);
/* Sleeps until the event word differs from seen, at most slice_ns. */
uint32_t mp_event(mp_member *m);
void mp_event_wait(mp_member *m, uint32_t seen, int64_t slice_ns);
void mp_event_bump(mp_member *m);

/* --- members.c: slots and liveness --- */
mp_code mp_claim_slot(mp_member *m); /* takes a byte lock, marks the slot LIVE */
void mp_release_slot(mp_member *m);  /* reaps itself; pins of live views must be gone */
bool mp_slot_dead(mp_member *m, uint32_t slot, uint64_t *word);
mp_code mp_reap(mp_member *m, uint32_t slot, uint64_t word); /* what the member of that word left */
uint32_t mp_reap_dead(mp_member *m);          /* mp_finish, then polls all slots; returns how many were reaped */
mp_code mp_usable(mp_member *m);              /* MP_OK, MP_CLOSED, MP_CORRUPTED */
mp_code mp_guard_slot(mp_member *m);          /* the same, and takes a lost byte lock again */
void mp_slot_adopt(mp_member *m, uint32_t slot); /* RESERVED for this process by its parent: LIVE */
void mp_slot_mark(mp_member *m, uint32_t slot, enum mp_slot_state state); /* the next generation */
bool mp_slot_change(mp_member *m, uint32_t slot, uint64_t word, enum mp_slot_state state); /* the same, if it has that word */
static inline enum mp_slot_state mp_slot_state_of(uint64_t word) { return (enum mp_slot_state)(word & 255u); }
/* Orphans of fork own none. */
static inline bool mp_owns_slot(const mp_member *m) {
    return m->slot < MP_SLOT_ORPHANS && atomic_load(&m->slots[m->slot].word) == m->slot_word;
}

/* --- refs.c: pins, holders, tokens --- */
static inline uint64_t mp_word(uint64_t birth, enum mp_state state) { return birth << MP_BIRTH_SHIFT | (uint64_t)state; }
static inline enum mp_state mp_state_of(uint64_t control) { return (enum mp_state)(control & MP_STATE_MASK); }
static inline uint64_t mp_birth_of(uint64_t control) { return control >> MP_BIRTH_SHIFT; }
static inline bool mp_is_dead(enum mp_state s) { return s >= MP_DELETED; }
static inline bool mp_owns_extent(enum mp_state s) {
    return s == MP_DRAFT || s == MP_RESIDENT || s == MP_EVICTING || s == MP_RESTORING || mp_is_dead(s);
}

void mp_pin(mp_member *m, uint32_t entry, uint64_t unit);   /* unit: MP_ONE_VIEW or MP_ONE_OP */
void mp_unpin(mp_member *m, uint32_t entry, uint64_t unit); /* buries what died meanwhile */
/* Pins and reads offset and size if the entry is RESIDENT; else unpins and says why not. */
mp_code mp_view(mp_member *m, uint32_t entry, uint64_t birth, uint64_t *offset, uint64_t *size);

mp_code mp_hold(mp_member *m, uint32_t entry, uint64_t birth); /* a first or further local ref */
mp_code mp_drop(mp_member *m, uint32_t entry, int64_t timeout_ns); /* MP_BUSY: nothing was done. Then mp_undertake */
void mp_drop_later(mp_member *m, uint32_t entry); /* puts the decrement off: the count stays 1 */
uint32_t mp_drain(mp_member *m);                  /* does the put-off decrements; 0: none is left */
uint32_t mp_drain_quickly(mp_member *m);          /* the same, without a long wait */
void mp_drop_all(mp_member *m);                   /* close: every local ref at once */

mp_code mp_token_issue(mp_member *m, uint32_t entry, uint64_t birth, uint32_t deliveries, uint64_t expiry,
                       uint64_t nonce, uint32_t *token);
mp_code mp_token_load(mp_member *m, uint32_t token, uint64_t nonce, uint32_t entry, uint64_t birth);
#define MP_FAMILY_SHIFT 16 /* what is above in a nonce says which hand-offs are withdrawn together */
mp_code mp_token_withdraw(mp_member *m, uint64_t family); /* those not loaded; behind a stopped holder, later */
uint32_t mp_token_expire(mp_member *m, uint64_t now); /* returns how many lapsed */

/* --- objects.c: the life of an entry --- */
/* A DRAFT of size bytes with an extent, held by one local ref, owned by this member. It is not
 * pinned: a writer that shows the ref to others before the seal pins it first (one operation). */
mp_code mp_draft(mp_member *m, uint64_t size, uint32_t *entry, uint64_t *birth, uint64_t *offset);
/* The same without an extent: goes to disk through mp_settle. */
mp_code mp_draft_bare(mp_member *m, uint64_t size, uint32_t *entry, uint64_t *birth);
mp_code mp_seal(mp_member *m, uint32_t entry, uint64_t birth);
mp_code mp_settle(mp_member *m, uint32_t entry, uint64_t birth, const mp_place *place); /* DRAFT -> SPILLED */
mp_code mp_abort(mp_member *m, uint32_t entry, uint64_t birth);
mp_code mp_delete(mp_member *m, uint32_t entry, uint64_t birth);
mp_code mp_state(mp_member *m, uint32_t entry, uint64_t birth); /* MP_OK = resident, else the reason */

/* Cleaning: claim pins (one operation) a RESIDENT entry that nobody uses. MP_TAKEN: it has a place already
 * and is not pinned: evict it. */
mp_code mp_clean_claim(mp_member *m, uint32_t entry, uint64_t birth, uint64_t *offset, uint64_t *size);
/* A claimed entry whose record is on disk. code: MP_IS_PINNED: clean, not evicted; MP_NOT_FOUND: it died. */
typedef struct mp_cleaned {
    mp_place place;
    uint64_t birth;
    uint32_t entry;
    mp_code code; /* out */
    bool evict;   /* in: asked for; out: tried */
} mp_cleaned;
#define MP_CLEANED_MAX 64u /* some 10 us a hold */
/* Records the places of at most MP_CLEANED_MAX items in one hold, ends their pins in any case, and evicts what is
 * asked for and possible in another hold. Not MP_OK: the mutex was not to be had. */
mp_code mp_clean_publish(mp_member *m, mp_cleaned *items, uint32_t count);
void mp_clean_cancel(mp_member *m, uint32_t entry);
mp_code mp_evict(mp_member *m, uint32_t entry, uint64_t birth); /* a clean, unpinned entry */

/* Restoring: pins the entry with an operation and copies its place; the caller unpins. MP_IS_SPILLED or
 * MP_IS_RESTORING: it is pinned and the place is valid. Anything else: neither (MP_OK: it is resident). */
mp_code mp_place_read(mp_member *m, uint32_t entry, uint64_t birth, mp_place *place, uint64_t *size);
/* Then: allocate and become the owner (MP_NO_ROOM: overflow), fill, finish. The pin stays the caller's. */
mp_code mp_restore_begin(mp_member *m, uint32_t entry, uint64_t birth, uint64_t *offset);
mp_code mp_restore_end(mp_member *m, uint32_t entry, uint64_t birth, enum mp_state state); /* RESIDENT, SPILLED or LOST */
void mp_restore_step(mp_member *m, uint32_t entry);
mp_code mp_lose(mp_member *m, uint32_t entry, uint64_t birth); /* SPILLED -> LOST */

/* Waits for a DRAFT or RESTORING entry to change, at most slice_ns. */
void mp_wait(mp_member *m, uint32_t entry, uint64_t birth, int64_t slice_ns);

/* mutex held */
void mp_bury(mp_member *m, uint32_t entry);    /* takes a DEAD entry apart as far as pins and holders allow */
void mp_collect(mp_member *m, uint32_t entry); /* an unreachable value becomes GARBAGE; the DEAD are buried */
void mp_place_free(mp_member *m, mp_entry *e);
bool mp_pinned(mp_entry *e);
bool mp_seems_in_memory(mp_entry *e, enum mp_state state); /* needs no mutex, and is a guess: of a bare draft it is wrong */
bool mp_leave(mp_member *m, mp_entry *e, uint64_t from, enum mp_state to); /* DRAFT, RESTORING -> to; wakes */

/* --- edges.c: refs inside values --- */
/* Makes a DRAFT of this member hold count targets, which the caller holds. Done before the seal. */
mp_code mp_contain(mp_member *m, uint32_t entry, uint64_t birth, const uint32_t *targets, const uint64_t *births,
                   uint32_t count);
/* Takes apart what is dead and contains refs, a bounded piece in each hold, until nothing is left. */
void mp_undertake(mp_member *m);
bool mp_doom(mp_member *m, uint32_t entry);   /* mutex held: puts a DEAD entry with edges on the list */
mp_code mp_edges_rebuild(mp_member *m);       /* mutex held */
uint32_t mp_containers(mp_member *m, uint32_t target, uint32_t *found, uint32_t count); /* who contains it */

/* --- names.c --- */
mp_code mp_name_set(mp_member *m, const char *text, uint32_t length, uint32_t entry, uint64_t birth, bool replace);
mp_code mp_name_hold(mp_member *m, const char *text, uint32_t length, uint32_t *entry, uint64_t *birth);
mp_code mp_name_remove(mp_member *m, const char *text, uint32_t length);
void mp_name_link(mp_member *m, uint32_t name); /* mutex held, for the rebuild */

/* --- segments.c: files of spilled records, as far as the table knows them --- */
mp_code mp_segment_open(mp_member *m, uint32_t directory, uint32_t *segment, uint64_t *id);
mp_code mp_segment_reserve(mp_member *m, uint32_t segment, uint64_t bytes, uint64_t *offset);
void mp_segment_close(mp_member *m, uint32_t segment);  /* of ours; behind a stopped holder, later */
mp_code mp_segment_end(mp_member *m, uint32_t segment, uint64_t id); /* the same, if it has that id */
void mp_segment_retire(mp_member *m, uint32_t segment); /* the same, mutex held */
bool mp_segment_mine(mp_member *m, uint32_t segment);   /* mp_lock_own held: OPEN, and this member appends to it */
void mp_segment_vacate(mp_member *m, uint32_t segment, uint64_t bytes); /* mutex held: a place of that length is gone */
/* All that could be punched in a CLOSED segment, bytes in total, is. */
mp_code mp_segment_punched(mp_member *m, uint32_t segment, uint64_t id, uint64_t bytes);
typedef struct mp_segment_row {
    uint64_t id, size, live, punched;
    uint32_t segment, directory, state, owner;
} mp_segment_row;
mp_code mp_segments(mp_member *m, uint32_t *cursor, mp_segment_row *rows, uint32_t count, uint32_t *found);
/* The next DEAD segment at or after from, and its record; 0: there is none, or the mutex was not to be had. */
uint32_t mp_segment_dead(mp_member *m, uint32_t from, mp_segment *copy);
mp_code mp_segment_read(mp_member *m, uint32_t segment, mp_segment *copy);
mp_code mp_segment_forget(mp_member *m, uint32_t segment, uint64_t id); /* the file is unlinked */

/* --- places.c: where disk copies are. The scans take a bounded number of entries in each call, and are over when
 * cursor reaches mp_entries_backed --- */
typedef struct mp_page_map { /* pages of segment s are the bits from bases[s] on, up to bases[s + 1] */
    const uint64_t *bases;   /* one more than segments; equal for a segment that is not of interest */
    uint64_t *bits;
    uint32_t segments;
} mp_page_map;
mp_code mp_live_pages(mp_member *m, uint32_t *cursor, const mp_page_map *map); /* sets the bit of each page in use */
typedef struct mp_record { /* the disk copy of an object that is alive and that nobody pins */
    uint64_t birth, size, offset, length, checksum;
    uint32_t entry, segment;
    uint8_t codec, resident, pad[6];
} mp_record;
mp_code mp_records(mp_member *m, uint32_t *cursor, const uint8_t *wanted, uint32_t segments, mp_record *rows,
                   uint32_t count, uint32_t *found);
/* A copy of that record is whole on disk, in an OPEN segment of this member: the place becomes that. MP_NOT_FOUND:
 * the record is not the object's place any more. MP_IS_PINNED: somebody may read it. */
mp_code mp_place_move(mp_member *m, const mp_record *record, uint32_t segment, uint64_t offset);
void mp_move_finish(mp_member *m); /* mutex held: what a dead member began */
mp_code mp_drop_place(mp_member *m, uint32_t entry, uint64_t birth); /* of a RESIDENT, unpinned entry */

/* --- arena.c: extents, commitment. Mutex held, except the two that call the system --- */
uint64_t mp_extent_bytes(uint64_t size); /* what a value of size bytes occupies */
mp_code mp_arena_alloc(mp_member *m, uint64_t size, uint64_t *offset, uint32_t *span);
void mp_arena_free(mp_member *m, uint64_t offset, uint64_t size, uint32_t span);
bool mp_arena_fits(mp_member *m, uint64_t size); /* whether a hole for it is committed */
/* Marks blocks COMMITTING so that a value of size bytes will fit. MP_NO_COMMIT: the limit, or no such run. */
mp_code mp_arena_plan_grow(mp_member *m, uint64_t size, mp_run *run);
int mp_arena_commit(mp_member *m, mp_run run);           /* system calls, no mutex: 0 or errno */
/* COMMITTED and free; not ok: PUNCHING, since a commit that fails may have taken a part. false: not ours any more. */
bool mp_arena_grown(mp_member *m, mp_run run, bool ok);
/* Marks up to blocks whole free blocks PUNCHING; false: there are none. */
bool mp_arena_plan_punch(mp_member *m, uint32_t blocks, mp_run *run);
int mp_arena_punch(mp_member *m, mp_run run);            /* system calls, no mutex */
void mp_arena_punched(mp_member *m, mp_run run);         /* NONE */
/* Takes over the COMMITTING and PUNCHING blocks of a dead slot; call until false. */
bool mp_arena_plan_reclaim(mp_member *m, uint32_t slot, mp_run *run);
mp_code mp_arena_rebuild(mp_member *m); /* every arena cache, from entries and the commit map */

/* --- memory.c: the above, composed; these take the mutex themselves --- */
mp_code mp_grow(mp_member *m, uint64_t size);               /* one step of commitment for a value of size bytes */
uint64_t mp_shrink(mp_member *m, uint64_t bytes);           /* punches free blocks; returns bytes given back */
/* The second halves of both, which are put off behind a stopped holder of the mutex. */
mp_code mp_grown(mp_member *m, mp_run run, uint64_t borrowed, bool ok);
mp_code mp_punch(mp_member *m, mp_run run, uint64_t borrowed);
bool mp_fits(mp_member *m, uint64_t size);                  /* whether committed memory has a hole for it now */
uint64_t mp_idle_bytes(mp_member *m);                       /* committed and free all the time since the last call */
/* Whether we do this work now: it was not done for that long, and nobody else begins just now. Whoever did it last
 * goes on, unless it stays away for twice as long. */
bool mp_take_turn(mp_member *m, enum mp_chore chore, uint64_t interval_ns);
void mp_set_limits(mp_member *m, const uint64_t *memory, const uint64_t *spill, const uint64_t *overflow);

/* --- queue.c: waiting for room, in order --- */
mp_code mp_queue_enter(mp_member *m, uint64_t bytes); /* a ticket, unless this member has one; each enter wants a leave */
mp_code mp_queue_renew(mp_member *m);                 /* at least every 250 ms; then freeing bumps the event word once */
mp_code mp_queue_leave(mp_member *m, uint64_t bytes); /* behind a stopped holder it is put off */
/* So much more must come free until we may take room for such a value: what is free is put by for another. */
uint64_t mp_queue_lacking(mp_member *m, uint64_t size);
/* mutex held */
uint64_t mp_queue_lacks(mp_member *m, uint64_t size); /* the same as mp_queue_lacking */
void mp_queue_freed(mp_member *m, uint64_t bytes);
void mp_queue_taken(mp_member *m, uint64_t bytes); /* by a draft of ours: what it was waiting for is not put by any more */
uint64_t mp_queue_borrow(mp_member *m, uint64_t bytes); /* of what is put by for us, while it is being committed or punched */
void mp_queue_return(mp_member *m, uint64_t borrowed);
void mp_queue_void(mp_member *m, uint32_t slot);
void mp_queue_rebuild(mp_member *m);

/* --- unfinished.c --- */
void mp_put_off(mp_member *m, mp_unfinished what);
mp_code mp_finish(mp_member *m); /* does what was put off; MP_BUSY: the mutex is still not to be had */

/* --- moving.c --- */
/* Moves values of up to 256 KiB that nobody uses out of the sparsest blocks, until about so many bytes of blocks
 * are empty, in holds of the mutex that are short; returns the bytes emptied. They are free, not given back. */
uint64_t mp_empty_blocks(mp_member *m, uint64_t bytes);

/* --- recovery.c --- */
mp_code mp_rebuild(mp_member *m); /* mutex held: every cache, by scan */
typedef void mp_fault(void *context, const char *text);
uint32_t mp_check(mp_member *m, mp_fault *report, void *context); /* mutex taken; returns the faults */

/* --- survey.c: what there is, for policies and people; rows may be a moment old --- */
typedef struct mp_candidate { /* an object that may go; the layout of eviction's CANDIDATE */
    uint32_t entry;
    uint8_t clean, hits;
    uint16_t pad;
    uint64_t birth, size, stamp, arrived;
} mp_candidate;
uint32_t mp_candidates(mp_member *m, uint32_t *cursor, mp_candidate *rows, uint32_t count);
typedef struct mp_object {
    uint32_t entry, name, tokens, names;
    uint64_t birth, size;
    double age_s, idle_s;
    uint32_t holders, pins;
    uint8_t state, clean, pad[6];
} mp_object;
/* How much each slot pins in memory, or holds there; what several do counts for each. */
void mp_kept_bytes(mp_member *m, bool pinned, uint64_t bytes[MP_SLOTS]);
mp_code mp_objects(mp_member *m, uint32_t *cursor, mp_object *rows, uint32_t count, uint32_t *found);

/* --- fork.c: called by pthread_atfork handlers, for each member of the process --- */
void mp_fork_ready(mp_member *m); /* once a member: keeps a descriptor for the next fork */
void mp_fork_prepare(mp_member *m);
void mp_fork_parent(mp_member *m);
void mp_fork_child(mp_member *m);

/* --- time and bits --- */
static inline uint64_t mp_ticks(void) {
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc() >> 4;
#elif defined(__aarch64__)
    uint64_t t;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(t));
    return t;
#else
#error "millpond runs on x86-64 and arm64"
#endif
}

/* The low byte of a stamp: reads since the object came to memory, at most MP_READS_MAX. The read that
 * had it restored does not count, as the put does not: policies ask whether it was used again. */
#define MP_READS_MAX 254u
#define MP_READS_RESTORED 255u /* back from disk; the next read is the one that asked for it, and makes it 0 */
static inline uint64_t mp_stamp_read(uint64_t stamp, uint64_t now) {
    uint64_t reads = stamp & 255u;
    return now << 8 | (reads == MP_READS_MAX ? reads : (uint8_t)(reads + 1));
}
static inline uint8_t mp_stamp_reads(uint64_t stamp) {
    uint8_t reads = stamp & 255u;
    return reads == MP_READS_RESTORED ? 0 : reads;
}
/* Items below this have memory behind them; the rest of the pool was never used. The word is anybody's to write. */
static inline uint32_t mp_backed(const mp_pool *pool, uint32_t capacity) {
    uint32_t high = atomic_load(&pool->high);
    return high < capacity ? high : capacity;
}
static inline uint32_t mp_entries_backed(const mp_member *m) {
    return mp_backed(&m->header->pool_entries, m->geometry.entries);
}
static inline uint32_t mp_segments_backed(const mp_member *m) {
    return mp_backed(&m->header->pool_segments, m->geometry.segments);
}
static inline uint32_t mp_tokens_backed(const mp_member *m) {
    return mp_backed(&m->header->pool_tokens, m->geometry.tokens);
}
static inline uint32_t mp_names_backed(const mp_member *m) {
    return mp_backed(&m->header->pool_names, m->geometry.names);
}
static inline uint64_t mp_bit(uint32_t slot) { return 1ull << (slot & 63u); }
static inline _Atomic uint64_t *mp_pin_word(mp_entry *e, uint32_t slot) { return &e->pins[slot >> 6]; }
static inline _Atomic uint64_t *mp_holder_word(mp_entry *e, uint32_t slot) { return &e->holders[slot >> 6]; }

#endif
