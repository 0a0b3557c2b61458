/* The shared table: every byte that members exchange, and nothing else.
 *
 * Invariants: fixed-width fields; cross-process references are indices or offsets, never
 * pointers; index 0 of every pool is reserved, so 0 means "none"; a field marked (cache) can
 * be rebuilt from the others by one scan (recovery.c) and is never trusted after a crash.
 * Layout: the regions follow one another in the order of enum mp_region, each starting on a
 * page. A change here means a new MP_LAYOUT_VERSION.
 * Not here: behaviour (kernel.h), the format of values and of spill records (Python).
 */
#ifndef MILLPOND_LAYOUT_H
#define MILLPOND_LAYOUT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define MP_MAGIC 0x31646e6f706c6c4dull /* "Mllpond1", little endian */
#define MP_LAYOUT_VERSION 1u

#define MP_SLOTS 256u         /* member slots, those of orphans included */
#define MP_SLOT_ORPHANS 254u  /* from here on, two that orphans of fork share */
#define MP_BIT_WORDS (MP_SLOTS / 64u)
#define MP_PAGE 4096u         /* unit of extents */
#define MP_BLOCK 65536u       /* unit of commitment, and the size of a slab */
#define MP_BLOCK_PAGES (MP_BLOCK / MP_PAGE)
#define MP_SMALL_MAX 8192u    /* larger values get pages of their own */
#define MP_SLAB_WORDS 16u     /* bits for the 1024 slots of the smallest class */
#define MP_BINS 232u          /* 29 powers of two of pages, eight steps each */
#define MP_NAME_MAX 240u
#define MP_NAME_BUCKETS 65536u
#define MP_CONFIG_BYTES 8192u

/* The control word of an entry: bits 0-6 state, bit 7 "somebody waits", bits 8-63 birth. */
enum mp_state {
    MP_FREE = 0,
    MP_DRAFT = 1,     /* owner writes it */
    MP_RESIDENT = 2,  /* readable in memory; with a place it is also clean */
    MP_EVICTING = 3,  /* inside one hold of the mutex */
    MP_SPILLED = 4,   /* on disk only */
    MP_RESTORING = 5, /* owner reads it back */
    MP_DELETED = 6,   /* the four deaths; see mp_is_dead */
    MP_GARBAGE = 7,
    MP_LOST = 8,
    MP_ABANDONED = 9,
};
#define MP_STATE_MASK 0x7full
#define MP_WAIT_BIT 0x80ull
#define MP_BIRTH_SHIFT 8

/* Where the disk copy is. Valid if and only if segment != 0, which is written last. */
typedef struct mp_place {
    uint64_t offset;   /* of the record's header in the segment file */
    uint64_t length;   /* bytes of header, stored payload and padding */
    uint64_t checksum; /* xxh3_64 of the stored payload */
    _Atomic uint32_t segment;
    uint8_t codec;
    uint8_t reserved[3];
} mp_place;

typedef struct mp_entry {
    /* one cache line: all that a read touches */
    _Atomic uint64_t control;
    _Atomic uint64_t pins[MP_BIT_WORDS];
    _Atomic uint64_t offset; /* of the extent in the arena; meaningful in states that own one */
    _Atomic uint64_t size;   /* bytes of the stored value */
    _Atomic uint64_t stamp;  /* last access: ticks << 8 | reads since it came to memory, see mp_stamp_read */
    /* under the mutex */
    _Atomic uint64_t holders[MP_BIT_WORDS];
    uint64_t created; /* ticks, as in stamp before the shift */
    uint32_t span;    /* (cache) descriptor of the extent; 0 for slab objects */
    uint32_t owner;   /* slot that writes (DRAFT) or restores (RESTORING) */
    uint32_t tokens;  /* (cache) hand-offs */
    uint32_t name;    /* (cache) index of the first name; 0 = none */
    uint32_t names;   /* (cache) how many names hold it */
    uint32_t next;    /* (cache) free list */
    mp_place place;
    _Atomic uint32_t step; /* bumped by a restorer for every 8 MiB */
    uint32_t extent;       /* 1 while the entry owns its extent */
    uint32_t edges_out;    /* first of the refs inside this value */
    uint32_t edges_in;     /* (cache) values that this object's refs are inside of */
    uint32_t doomed;       /* (cache) it is on the list of the DEAD that have edges left */
    uint32_t reserved0;
    _Atomic uint64_t arrived; /* ticks when it last came to memory: by a put or a restore */
} mp_entry;

/* The word of a member slot: bits 0-7 state, bits 8-63 generation. */
enum mp_slot_state {
    MP_SLOT_FREE = 0,
    MP_SLOT_RESERVED = 1,
    MP_SLOT_LIVE = 2,
    MP_SLOT_REAPING = 3,
    MP_SLOT_KEPT = 4, /* of orphans, one of which came without a lock: nobody can tell when it ends */
};

#define MP_PID_UNSEEN UINT32_MAX /* of a slot: a forked child that came without a lock, and that nobody can see yet */

typedef struct mp_slot {
    _Atomic uint64_t word;
    _Atomic uint64_t start_time; /* of the process, in clock ticks since boot */
    _Atomic uint32_t pid;
    uint32_t reserved0;
    char command[40];
    _Atomic uint64_t overflow_bytes; /* private copies of reads that found no room */
    uint64_t ticket;         /* its place among those who wait for room; 0 = it does not */
    uint64_t ticket_renewed; /* CLOCK_BOOTTIME ns */
    uint64_t room_needed;    /* bytes */
    uint64_t room_reserved;  /* of these, what was freed while it was first */
    uint64_t reserved[3];
} mp_slot;

typedef struct mp_token {
    _Atomic uint64_t nonce; /* written last; 0 = free */
    uint64_t birth;
    uint64_t expiry; /* CLOCK_BOOTTIME ns; 0 = never */
    uint64_t issued;
    uint32_t entry;
    uint32_t deliveries;
    uint32_t issuer_pid;
    uint32_t next; /* (cache) free list */
    uint64_t reserved[2];
} mp_token;

/* A ref inside a stored value: the container, alive, keeps the target alive. Reachable from a
 * container's chain it is in use; else it is free. */
typedef struct mp_edge {
    uint64_t birth; /* of the target; 0 = free (cache); bit 63 marks it in a rebuild */
    uint32_t target;
    uint32_t next; /* in the container's chain, or (cache) in the free list */
} mp_edge;
#define MP_EDGE_MARK (1ull << 63)

typedef struct mp_name {
    _Atomic uint32_t target; /* entry that it holds; 0 = free */
    uint32_t next;           /* (cache) bucket chain or free list */
    uint16_t length;
    uint8_t reserved[6];
    char text[MP_NAME_MAX];
} mp_name;

/* A file of spilled records. Its live bytes are those of the places that point to it. */
enum mp_segment_state { MP_SEGMENT_FREE = 0, MP_SEGMENT_OPEN = 1, MP_SEGMENT_CLOSED = 2, MP_SEGMENT_DEAD = 3 };

typedef struct mp_segment {
    uint64_t id;      /* names the file; unique in the store */
    uint64_t size;    /* bytes handed out to appends */
    uint64_t live;    /* (cache) bytes of records that places point to */
    uint64_t punched; /* bytes given back to the filesystem, of all that a closed segment could give */
    _Atomic uint32_t state;
    uint32_t owner;     /* slot that appends, while OPEN */
    uint32_t directory; /* index into the spill directories */
    uint32_t next;      /* (cache) free list */
    uint64_t reserved[2];
} mp_segment;

/* Commit map: 16 bits a block, bits 0-7 the slot, bits 8-9 the state. */
enum mp_commit_state { MP_NONE = 0, MP_COMMITTING = 1, MP_COMMITTED = 2, MP_PUNCHING = 3 };
#define MP_COMMIT(state, slot) ((uint16_t)(((state) << 8) | (slot)))
#define MP_COMMIT_STATE(word) (((word) >> 8) & 3u)
#define MP_COMMIT_SLOT(word) ((word)&255u)

/* (cache) A slab: a block cut into equal slots for small objects. */
typedef struct mp_slab {
    uint64_t used_bits[MP_SLAB_WORDS];
    uint32_t used;
    uint32_t slots;
    uint32_t size_class; /* index of the class + 1; 0 = not a slab */
    uint32_t span; /* that ends with this block, of slabs and of other runs */
    uint32_t next; /* slabs of this class with a free slot, by block + 1 */
    uint32_t prev;
    uint32_t reserved[2];
} mp_slab;

/* (cache) A run of pages, in address order; free runs lie inside committed blocks. */
typedef struct mp_span {
    uint32_t page;
    uint32_t pages;
    uint32_t next, prev;         /* neighbours by address, whether or not they touch */
    uint32_t bin_next, bin_prev; /* free runs of one size bin */
    uint32_t used;               /* enum mp_span_use, in arena.h */
    uint32_t reserved;
} mp_span;

/* Which line created an object, if its process was told to note that: beside the entry of the
 * same index, valid if the birth is the same. */
typedef struct mp_site {
    _Atomic uint64_t birth; /* written last */
    char text[56];
} mp_site;

enum mp_region {
    MP_REGION_HEADER,
    MP_REGION_SLOTS,
    MP_REGION_NAME_BUCKETS,
    MP_REGION_ENTRIES,
    MP_REGION_TOKENS,
    MP_REGION_EDGES,
    MP_REGION_NAMES,
    MP_REGION_SEGMENTS,
    MP_REGION_SPANS,
    MP_REGION_COMMIT,
    MP_REGION_SLABS,
    MP_REGION_SITES,
    MP_REGIONS,
};

/* How large each pool is; chosen at creation, never changed. */
typedef struct mp_geometry {
    uint64_t arena_bytes; /* address space; a multiple of MP_BLOCK */
    uint32_t entries, tokens, edges, names, segments, spans;
    uint32_t blocks, reserved;
    uint64_t region_offset[MP_REGIONS];
    uint64_t table_bytes;
} mp_geometry;

/* A pool that is touched step by step: items below high are backed by memory. */
typedef struct mp_pool {
    _Atomic uint32_t high;
    uint32_t free; /* (cache) head of the free list */
    uint32_t fresh; /* (cache) items below this were in use at least once */
    _Atomic uint32_t used; /* (cache) */
} mp_pool;

/* Background work that one member does for all, whichever comes first. */
enum mp_chore { MP_CHORE_IDLE, MP_CHORE_SHORTAGE, MP_CHORES };

typedef struct mp_header {
    uint64_t magic;
    uint32_t layout_version;
    uint32_t abi; /* a hash of the struct sizes and of the mutex's kind */
    uint8_t uuid[16];
    uint8_t boot_id[16];
    uint64_t pid_namespace; /* inode of /proc/self/ns/pid */
    uint32_t uid, gid;
    mp_geometry geometry;
    uint64_t created_ns;    /* CLOCK_BOOTTIME */
    uint64_t created_ticks; /* mp_ticks at the same moment */
    _Atomic uint32_t ready; /* stored last */
    _Atomic uint32_t poisoned;

    /* limits, changed under the mutex, read anywhere */
    _Atomic uint64_t memory_limit;
    _Atomic uint64_t spill_limit;    /* UINT64_MAX = none */
    _Atomic uint64_t overflow_limit;
    _Atomic uint64_t handoff_ns;     /* 0 = never lapses */
    _Atomic uint32_t codec;          /* number of the compression for what is spilled from now on */
    _Atomic uint32_t policy;         /* number of the eviction policy of all who have none of their own */

    /* waiting */
    _Atomic uint32_t event;   /* bumped before every wake */
    _Atomic uint32_t waiters;
    _Atomic uint32_t mutex_slot; /* who holds the mutex, for messages: slot + 1 */
    _Atomic uint32_t gc_epoch;   /* bumped when a member would like all to collect Python's garbage */

    _Alignas(64) pthread_mutex_t mutex;

    /* under the mutex */
    _Alignas(64) uint64_t next_birth;
    uint64_t next_segment_id;
    uint64_t next_ticket;
    uint32_t commit_high; /* raised before a block is marked: from here on all are NONE */
    uint32_t queue_first;          /* (cache) slot + 1 of whoever waits longest for room */
    _Atomic uint32_t room_wanted;  /* somebody sleeps until something is freed */
    _Atomic uint64_t turns[MP_CHORES]; /* CLOCK_BOOTTIME ns of the last time, low byte: the slot */
    uint32_t reserved1;
    uint64_t recoveries;
    /* a place that changes: what a death inside of that one hold of the mutex leaves to be finished */
    uint64_t move_offset;
    uint32_t move_segment;
    _Atomic uint32_t move_entry; /* written last; 0 = none */
    mp_pool pool_entries, pool_tokens, pool_edges, pool_names, pool_segments, pool_spans;
    _Atomic uint64_t disk_bytes; /* (cache) sizes of the segments less what was punched */
    _Atomic uint32_t dead_segments; /* (cache) files that wait to be unlinked */
    _Atomic uint32_t doomed;        /* (cache) list of the DEAD entries that have edges left, linked by next */
    _Atomic uint32_t unburied;      /* an unpin found the mutex busy: some DEAD entry waits for a scan */

    /* arena (cache) */
    uint32_t span_first;       /* in address order; 0 = none */
    uint32_t bin_bits[(MP_BINS + 31) / 32];
    uint32_t bins[MP_BINS];
    uint32_t class_slabs[64];  /* slabs with a free slot, by block + 1 */
    _Atomic uint64_t committed_blocks; /* COMMITTING, COMMITTED and PUNCHING */
    _Atomic uint64_t free_pages;       /* in committed blocks, outside slabs */
    _Atomic uint64_t free_pages_low;   /* the least of it since mp_idle_bytes was last asked */
    _Atomic uint64_t free_slot_bytes;  /* in slabs */

    /* totals since creation */
    _Atomic uint64_t spilled_bytes, restored_bytes, spilled_objects, restored_objects;
    _Atomic uint64_t returned_bytes; /* arena memory given back to the system */

    char config[MP_CONFIG_BYTES]; /* JSON, written before ready */
} mp_header;

_Static_assert(sizeof(mp_place) == 32, "place");
_Static_assert(sizeof(mp_entry) == 192, "an entry is three cache lines");
_Static_assert(offsetof(mp_entry, holders) == 64, "a read touches one cache line");
_Static_assert(offsetof(mp_entry, place) == 128, "the disk place shares no line with a read");
_Static_assert(sizeof(mp_slot) == 128, "slot");
_Static_assert(sizeof(mp_token) == 64, "token");
_Static_assert(sizeof(mp_edge) == 16, "edge");
_Static_assert(sizeof(mp_site) == 64, "site");
_Static_assert(sizeof(mp_name) == 256, "name");
_Static_assert(sizeof(mp_segment) == 64, "segment");
_Static_assert(sizeof(mp_slab) == 160, "slab");
_Static_assert(sizeof(mp_span) == 32, "span");
_Static_assert(offsetof(mp_header, mutex) % 64 == 0, "the mutex has a line of its own");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2, "lock-free atomics");

#endif
