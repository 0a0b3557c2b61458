# The kernel's face (kernel/kernel.h) for Cython; comments and contracts are there.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "kernel.h" nogil:
    ctypedef enum mp_code:
        MP_OK
        MP_NOT_FOUND
        MP_IS_DELETED
        MP_IS_LOST
        MP_IS_ABANDONED
        MP_IS_DRAFT
        MP_IS_SPILLED
        MP_IS_RESTORING
        MP_IS_PINNED
        MP_NO_ROOM
        MP_NO_COMMIT
        MP_POOL_FULL
        MP_NO_SLOT
        MP_BUSY
        MP_CORRUPTED
        MP_CLOSED
        MP_TAKEN
        MP_DISK_LIMIT
        MP_INVALID
        MP_SYSTEM
    enum:
        MP_CLEANED_MAX
        MP_FREE
        MP_DRAFT
        MP_RESIDENT
        MP_SPILLED
        MP_RESTORING
        MP_DELETED
        MP_GARBAGE
        MP_LOST
        MP_ABANDONED
        MP_SLOTS
        MP_SLOT_ORPHANS
        MP_PID_UNSEEN
        MP_PAGE
        MP_BLOCK
        MP_SMALL_MAX
        MP_NAME_MAX
        MP_FAMILY_SHIFT
        MP_CONFIG_BYTES
        MP_SLOT_FREE
        MP_SLOT_LIVE
        MP_SEGMENT_FREE
        MP_SEGMENT_OPEN
        MP_SEGMENT_CLOSED
        MP_SEGMENT_DEAD
        MP_MEMBER_OPEN
        MP_MEMBER_CLOSING
        MP_MEMBER_CLOSED
        MP_MEMBER_ORPHAN
        MP_COMMITTED
    uint64_t MP_ONE_VIEW
    uint64_t MP_ONE_OP

    ctypedef struct mp_place:
        uint64_t offset
        uint64_t length
        uint64_t checksum
        uint32_t segment
        uint8_t codec
    ctypedef struct mp_cleaned:
        mp_place place
        uint64_t birth
        uint32_t entry
        mp_code code
        bint evict "evict"
    ctypedef struct mp_geometry:
        uint64_t arena_bytes
        uint32_t entries
        uint32_t blocks
        uint64_t table_bytes
    ctypedef struct mp_segment:
        uint64_t id
        uint64_t size
        uint64_t live
        uint64_t punched
        uint32_t state
        uint32_t owner
        uint32_t directory
    ctypedef struct mp_pool:
        uint32_t high
        uint32_t used
    ctypedef struct mp_header:
        uint8_t uuid[16]
        uint8_t boot_id[16]
        uint64_t pid_namespace
        uint32_t uid
        uint32_t gid
        uint64_t created_ns
        uint64_t memory_limit
        uint64_t spill_limit
        uint64_t overflow_limit
        uint64_t handoff_ns
        uint32_t codec
        uint32_t policy
        uint32_t poisoned
        uint64_t recoveries
        uint64_t disk_bytes
        uint32_t dead_segments
        uint32_t doomed
        uint32_t gc_epoch
        uint32_t unburied
        uint64_t committed_blocks
        uint64_t free_pages
        uint64_t free_slot_bytes
        uint64_t returned_bytes
        uint64_t spilled_bytes
        uint64_t restored_bytes
        uint64_t spilled_objects
        uint64_t restored_objects
        mp_pool pool_entries
        mp_pool pool_tokens
        mp_pool pool_edges
        mp_pool pool_names
        mp_pool pool_segments
        mp_pool pool_spans
        char config[1]
    ctypedef struct mp_slot:
        uint64_t word
        uint32_t pid
        uint64_t start_time
        char command[40]
        uint64_t overflow_bytes
        uint64_t ticket
    ctypedef struct mp_name:
        uint32_t target
        uint16_t length
        char text[1]
    ctypedef struct mp_token:
        uint64_t nonce
        uint64_t birth
        uint64_t expiry
        uint64_t issued
        uint32_t entry
        uint32_t deliveries
        uint32_t issuer_pid
    ctypedef struct mp_entry:
        uint64_t control
        uint64_t offset
        uint64_t size
        uint64_t stamp
        uint32_t step
        uint32_t owner
        uint32_t name
        uint64_t holders[4]
        uint64_t pins[4]
        mp_place place
    ctypedef struct mp_site:
        uint64_t birth
        char text[56]
    ctypedef struct mp_local:
        uint32_t refs
        uint64_t pins
    ctypedef struct mp_member:
        mp_header *header
        mp_slot *slots
        mp_entry *entries
        mp_token *tokens
        mp_name *names
        mp_site *sites
        uint8_t *arena_write
        uint8_t *arena_read
        mp_geometry geometry
        mp_local *locals
        uint32_t *wipe
        int table_fd
        int arena_fd
        int lock_fd
        int birth_fd
        uint32_t slot
        uint64_t slot_word
        uint32_t state
        uint32_t deferred
        int error
        uint32_t busy_pid
        const char *full_pool
    ctypedef struct mp_creation:
        uint8_t uuid[16]
        uint8_t boot_id[16]
        uint64_t pid_namespace
        uint32_t uid
        uint32_t gid
        uint64_t memory_limit
        uint64_t spill_limit
        uint64_t overflow_limit
        uint64_t handoff_ns
        const char *config
    ctypedef struct mp_candidate:
        uint32_t entry
        uint8_t clean
        uint8_t hits
        uint64_t birth
        uint64_t size
        uint64_t stamp
    ctypedef struct mp_object:
        uint32_t entry
        uint32_t name
        uint32_t tokens
        uint32_t names
        uint64_t birth
        uint64_t size
        double age_s
        double idle_s
        uint32_t holders
        uint32_t pins
        uint8_t state
        uint8_t clean
    ctypedef struct mp_segment_row:
        uint64_t id
    ctypedef struct mp_page_map:
        const uint64_t *bases
        uint64_t *bits
        uint32_t segments
    ctypedef struct mp_record:
        uint64_t birth
        uint32_t entry
    ctypedef void (*mp_fault_ptr "mp_fault *")(void *context, const char *text) noexcept

    void mp_geometry_plan(mp_geometry *geometry, uint64_t arena_bytes, uint32_t entries, uint32_t tokens,
                          uint32_t names, uint32_t segments)
    mp_code mp_create(int table_fd, int arena_fd, const mp_geometry *geometry, const mp_creation *creation)
    bint mp_dies_unnoticed()
    mp_code mp_map(mp_member *m, int table_fd, int arena_fd, int lock_fd, int birth_fd, char *why)
    void mp_unmap(mp_member *m)
    mp_code mp_claim_slot(mp_member *m)
    void mp_release_slot(mp_member *m)
    uint32_t mp_reap_dead(mp_member *m)
    mp_code mp_usable(mp_member *m)
    mp_code mp_guard_slot(mp_member *m)
    uint32_t mp_event(mp_member *m)
    void mp_event_wait(mp_member *m, uint32_t seen, int64_t slice_ns)
    void mp_event_bump(mp_member *m)

    void mp_pin(mp_member *m, uint32_t entry, uint64_t unit)
    void mp_unpin(mp_member *m, uint32_t entry, uint64_t unit)
    mp_code mp_view(mp_member *m, uint32_t entry, uint64_t birth, uint64_t *offset, uint64_t *size)
    mp_code mp_state(mp_member *m, uint32_t entry, uint64_t birth)
    mp_code mp_hold(mp_member *m, uint32_t entry, uint64_t birth)
    mp_code mp_drop(mp_member *m, uint32_t entry, int64_t timeout_ns)
    void mp_drop_later(mp_member *m, uint32_t entry)
    uint32_t mp_drain(mp_member *m)
    uint32_t mp_drain_quickly(mp_member *m)
    void mp_drop_all(mp_member *m)
    mp_code mp_token_issue(mp_member *m, uint32_t entry, uint64_t birth, uint32_t deliveries, uint64_t expiry,
                           uint64_t nonce, uint32_t *token)
    mp_code mp_token_load(mp_member *m, uint32_t token, uint64_t nonce, uint32_t entry, uint64_t birth)
    mp_code mp_lock(mp_member *m, int64_t timeout_ns)
    void mp_unlock(mp_member *m)
    mp_code mp_token_withdraw(mp_member *m, uint64_t family)
    uint32_t mp_token_expire(mp_member *m, uint64_t now)

    mp_code mp_draft(mp_member *m, uint64_t size, uint32_t *entry, uint64_t *birth, uint64_t *offset)
    mp_code mp_draft_bare(mp_member *m, uint64_t size, uint32_t *entry, uint64_t *birth)
    mp_code mp_seal(mp_member *m, uint32_t entry, uint64_t birth)
    mp_code mp_settle(mp_member *m, uint32_t entry, uint64_t birth, const mp_place *place)
    mp_code mp_abort(mp_member *m, uint32_t entry, uint64_t birth)
    mp_code mp_delete(mp_member *m, uint32_t entry, uint64_t birth)
    mp_code mp_clean_claim(mp_member *m, uint32_t entry, uint64_t birth, uint64_t *offset, uint64_t *size)
    mp_code mp_clean_publish(mp_member *m, mp_cleaned *items, uint32_t count)
    void mp_clean_cancel(mp_member *m, uint32_t entry)
    mp_code mp_evict(mp_member *m, uint32_t entry, uint64_t birth)
    mp_code mp_place_read(mp_member *m, uint32_t entry, uint64_t birth, mp_place *place, uint64_t *size)
    mp_code mp_restore_begin(mp_member *m, uint32_t entry, uint64_t birth, uint64_t *offset)
    mp_code mp_restore_end(mp_member *m, uint32_t entry, uint64_t birth, int state)
    void mp_restore_step(mp_member *m, uint32_t entry)
    mp_code mp_lose(mp_member *m, uint32_t entry, uint64_t birth)
    void mp_wait(mp_member *m, uint32_t entry, uint64_t birth, int64_t slice_ns)

    mp_code mp_contain(mp_member *m, uint32_t entry, uint64_t birth, const uint32_t *targets, const uint64_t *births,
                       uint32_t count)
    void mp_undertake(mp_member *m)
    uint32_t mp_containers(mp_member *m, uint32_t target, uint32_t *found, uint32_t count)

    mp_code mp_name_set(mp_member *m, const char *text, uint32_t length, uint32_t entry, uint64_t birth, bint replace)
    mp_code mp_name_hold(mp_member *m, const char *text, uint32_t length, uint32_t *entry, uint64_t *birth)
    mp_code mp_name_remove(mp_member *m, const char *text, uint32_t length)

    mp_code mp_segment_open(mp_member *m, uint32_t directory, uint32_t *segment, uint64_t *id)
    mp_code mp_segment_reserve(mp_member *m, uint32_t segment, uint64_t bytes, uint64_t *offset)
    void mp_segment_close(mp_member *m, uint32_t segment)
    uint32_t mp_segment_dead(mp_member *m, uint32_t start, mp_segment *copy)
    mp_code mp_segment_read(mp_member *m, uint32_t segment, mp_segment *copy)
    mp_code mp_segment_forget(mp_member *m, uint32_t segment, uint64_t id)
    mp_code mp_segment_punched(mp_member *m, uint32_t segment, uint64_t id, uint64_t bytes)
    mp_code mp_segments(mp_member *m, uint32_t *cursor, mp_segment_row *rows, uint32_t count, uint32_t *found)
    uint32_t mp_entries_backed(const mp_member *m)
    uint32_t mp_tokens_backed(const mp_member *m)
    uint32_t mp_names_backed(const mp_member *m)
    mp_code mp_live_pages(mp_member *m, uint32_t *cursor, const mp_page_map *map)
    mp_code mp_records(mp_member *m, uint32_t *cursor, const uint8_t *wanted, uint32_t segments, mp_record *rows,
                       uint32_t count, uint32_t *found)
    mp_code mp_place_move(mp_member *m, const mp_record *record, uint32_t segment, uint64_t offset)
    mp_code mp_drop_place(mp_member *m, uint32_t entry, uint64_t birth)

    uint64_t mp_extent_bytes(uint64_t size)
    mp_code mp_grow(mp_member *m, uint64_t size)
    uint64_t mp_shrink(mp_member *m, uint64_t bytes)
    bint mp_fits(mp_member *m, uint64_t size)
    uint64_t mp_idle_bytes(mp_member *m)
    ctypedef enum mp_chore "enum mp_chore":
        MP_CHORE_IDLE
        MP_CHORE_SHORTAGE
    bint mp_take_turn(mp_member *m, mp_chore chore, uint64_t interval_ns)
    uint64_t mp_empty_blocks(mp_member *m, uint64_t bytes)
    mp_code mp_queue_enter(mp_member *m, uint64_t bytes)
    mp_code mp_queue_renew(mp_member *m)
    mp_code mp_queue_leave(mp_member *m, uint64_t bytes)
    uint64_t mp_queue_lacking(mp_member *m, uint64_t size)
    void mp_kept_bytes(mp_member *m, bint pinned, uint64_t *bytes)
    void mp_set_limits(mp_member *m, const uint64_t *memory, const uint64_t *spill, const uint64_t *overflow)
    uint32_t mp_check(mp_member *m, mp_fault_ptr report, void *context)
    uint32_t mp_candidates(mp_member *m, uint32_t *cursor, mp_candidate *rows, uint32_t count)
    mp_code mp_objects(mp_member *m, uint32_t *cursor, mp_object *rows, uint32_t count, uint32_t *found)
    void mp_fork_prepare(mp_member *m)
    void mp_fork_parent(mp_member *m)
    void mp_fork_child(mp_member *m)
