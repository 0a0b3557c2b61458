# Member: one process in one store: attaching and leaving, errors, segments, inspection.

OBJECT = np.dtype([
    ("entry", "<u4"), ("name", "<u4"), ("tokens", "<u4"), ("names", "<u4"), ("birth", "<u8"), ("size", "<u8"),
    ("age_s", "<f8"), ("idle_s", "<f8"), ("holders", "<u4"), ("pins", "<u4"), ("state", "u1"), ("clean", "u1"),
    ("pad", "V6"),
])
CANDIDATE = np.dtype([
    ("entry", "<u4"), ("clean", "u1"), ("hits", "u1"), ("pad", "<u2"), ("birth", "<u8"), ("size", "<u8"),
    ("stamp", "<u8"), ("arrived", "<u8"),
])
STATES = {
    MP_DRAFT: "draft", MP_RESIDENT: "resident", MP_SPILLED: "spilled", MP_RESTORING: "spilled", MP_DELETED: "deleted",
    MP_GARBAGE: "garbage", MP_LOST: "lost", MP_ABANDONED: "lost",
}
SMALL_MAX = MP_SMALL_MAX
BLOCK = MP_BLOCK
NO_LIMIT = 2**64 - 1


cdef enum:
    NAMES_AT_ONCE = 256


class Code:
    """The kernel's answers that the slow paths act upon."""

    OK = MP_OK
    NOT_FOUND = MP_NOT_FOUND
    DRAFT = MP_IS_DRAFT
    SPILLED = MP_IS_SPILLED
    RESTORING = MP_IS_RESTORING
    PINNED = MP_IS_PINNED
    NO_ROOM = MP_NO_ROOM
    NO_COMMIT = MP_NO_COMMIT
    TAKEN = MP_TAKEN
    DISK_LIMIT = MP_DISK_LIMIT
    BUSY = MP_BUSY
    SYSTEM = MP_SYSTEM


def table_bytes(uint64_t arena_bytes, uint32_t entries, uint32_t names, uint32_t segments):
    """Bytes of the table for an arena of that address space and pools of those sizes."""
    cdef mp_geometry g
    mp_geometry_plan(&g, arena_bytes, entries, names, names, segments)
    return g.table_bytes, g.arena_bytes


def create_table(int table_fd, int arena_fd, uint64_t arena_bytes, uint32_t entries, uint32_t names,
                 uint32_t segments, *, bytes uuid, bytes boot_id, uint64_t pid_namespace, uint64_t memory_limit,
                 uint64_t spill_limit, uint64_t overflow_limit, uint64_t handoff_ns, bytes config):
    """Writes a fresh table into empty memfds of the sizes that `table_bytes` tells. Raises OSError."""
    cdef mp_geometry g
    cdef mp_creation c
    if len(config) >= MP_CONFIG_BYTES or len(uuid) != 16 or len(boot_id) != 16:
        raise ValueError(f"the store's options take {len(config)} bytes, at most {MP_CONFIG_BYTES - 1} fit")
    mp_geometry_plan(&g, arena_bytes, entries, names, names, segments)
    memcpy(c.uuid, PyBytes_AS_STRING(uuid), 16)
    memcpy(c.boot_id, PyBytes_AS_STRING(boot_id), 16)
    c.pid_namespace = pid_namespace
    c.uid, c.gid = os.geteuid(), os.getegid()
    c.memory_limit, c.spill_limit, c.overflow_limit = memory_limit, spill_limit, overflow_limit
    c.handoff_ns = handoff_ns
    c.config = PyBytes_AS_STRING(config)
    cdef mp_code code = mp_create(table_fd, arena_fd, &g, &c)
    if code == MP_SYSTEM:
        raise OSError(system_error, f"cannot create the store's table: {os.strerror(system_error)}")
    if code != MP_OK:
        raise OSError(f"cannot create the store's table: kernel code {code}")


def extent_bytes(uint64_t size):
    """What a value of `size` bytes occupies in the arena."""
    return mp_extent_bytes(size)


cdef extern from "Python.h":
    void *PyInterpreterState_Get()
    void *PyInterpreterState_Main()


def is_main_interpreter():
    """Whether the caller runs in the process's first interpreter."""
    return PyInterpreterState_Get() == PyInterpreterState_Main()


cdef struct Faults:
    char text[65536]
    size_t used


cdef void note_fault(void *context, const char *text) noexcept nogil:
    """Called with the store's mutex held: plain memory only."""
    cdef Faults *faults = <Faults *>context
    cdef size_t n = strlen(text) + 1
    if faults.used + n <= sizeof(faults.text):
        memcpy(faults.text + faults.used, text, n)
        faults.used += n


cdef str shared_text(const char *text, size_t room):
    """Text that any member may have written, with or without an end."""
    return PyBytes_FromStringAndSize(text, strnlen(text, room)).decode("utf-8", "replace")


cdef str name_text(const mp_name *name):
    return PyBytes_FromStringAndSize(name.text, min(name.length, MP_NAME_MAX)).decode("utf-8", "replace")


@cython.final
cdef class Using:
    """A context in which a member's mappings stay, though another thread may close the store."""

    cdef Member member

    def __init__(self, Member member not None):
        self.member = member

    def __enter__(self):
        self.member.enter()

    def __exit__(self, *exc_info):
        self.member.release_use()


cdef dict _finishing = {}  # by id of the member: what the garbage collector may clear with it could not be called


cdef class Member:
    """This process as a member of one store: its slot, its mappings, its part of the table."""

    cdef mp_member m
    cdef readonly bytes uuid
    cdef int64_t uses        # views and drafts, and one for being open
    cdef bint attached
    cdef object __weakref__

    def __cinit__(self, *_, **__):
        self.m.state = MP_MEMBER_CLOSED

    def _attach(self, int table_fd, int arena_fd, int lock_fd, int birth_fd, on_finish):
        """Maps the store and claims a slot. `on_finish()` runs once, when all is unmapped; it must not refer to
        this member."""
        cdef char why[256]
        if self.uuid is not None: # refs of the first one would lead into the second
            raise TypeError("this store was opened before: make another one")
        if mp_dies_unnoticed():
            self.m.state = MP_MEMBER_CLOSED
            raise errors.AttachError("the system would not notice it if this process died with the store's lock in "
                                     "hand: a sandbox (seccomp) forbids set_robust_list: allow it")
        cdef mp_code code = mp_map(&self.m, table_fd, arena_fd, lock_fd, birth_fd, why)
        if code != MP_OK:
            self.m.state = MP_MEMBER_CLOSED
            raise errors.AttachError((<bytes>why).decode("utf-8", "replace") if code == MP_INVALID
                                     else f"cannot map the store: {os.strerror(self.m.error)} (are address space, "
                                     "ulimit -v, or maps, sysctl vm.max_map_count, limited?)")
        self.uuid = PyBytes_FromStringAndSize(<char *>self.m.header.uuid, 16)
        with nogil:
            code = mp_claim_slot(&self.m)
        if code != MP_OK:
            failure = self.failure(code, "a member slot")
            self.m.state = MP_MEMBER_CLOSED
            mp_unmap(&self.m)
            raise failure
        cdef int error = mp_atfork_add(&self.m)
        if error:
            mp_release_slot(&self.m)
            self.m.state = MP_MEMBER_CLOSED
            mp_unmap(&self.m)
            raise OSError(error, os.strerror(error))
        _finishing[id(self)] = on_finish
        self.uses = 1
        self.attached = True
        _cores[self.uuid] = self

    def __dealloc__(self):
        if self.attached:
            self.detach()
            self.finish()

    def _leave(self):
        """Ends this member's operations and drops its refs; its views stay. True the first time."""
        cdef uint32_t expected = MP_MEMBER_OPEN
        if not self.attached or not atomic_swap_if(&self.m.state, &expected, MP_MEMBER_CLOSING, False, ACQ_REL, ACQUIRE):
            return False
        with nogil:
            mp_drop_all(&self.m)
        self.release_use()
        return True

    cdef void undertake(self) noexcept:
        """Drops what was put off and frees what dead containers held, which may be much, without the GIL."""
        count_add(&self.uses, 1)
        with nogil:
            mp_drain_quickly(&self.m)
        self.release_use()

    cdef int enter(self) except -1:
        """Begins an operation: the mappings stay until `release_use`, though the store may be closed."""
        self.ensure_open()
        count_add(&self.uses, 1)
        return 0

    cdef void release_use(self) noexcept:
        if count_add(&self.uses, -1) == 0:
            self.detach()
            self.finish()

    cdef void detach(self) noexcept:
        """The last view of a closed member is gone: slot and mappings go."""
        self.attached = False
        mp_atfork_remove(&self.m)
        with nogil:
            mp_release_slot(&self.m)
        self.m.state = MP_MEMBER_CLOSED
        mp_unmap(&self.m)

    cdef void finish(self) noexcept:
        on_finish = _finishing.pop(id(self), None)
        if on_finish is not None:
            try:
                on_finish()
            except BaseException as error: # we may be inside a destructor: nobody could catch it
                errors.report_unraisable(error, "closing a store")

    # --- errors ---

    @property
    def closed(self):
        """Whether this process has left the store."""
        return self.m.state != MP_MEMBER_OPEN

    cdef int ensure_open(self) except -1:
        if self.m.state == MP_MEMBER_OPEN and self.m.wipe[0] and self.m.slots[self.m.slot].word == self.m.slot_word:
            return 0
        if self.m.state == MP_MEMBER_ORPHAN:
            raise errors.StoreClosedError(
                "no member slot was free when this process was forked: its views are valid, but it cannot use the store"
            )
        if self.m.state == MP_MEMBER_OPEN and self.m.wipe[0]:
            raise self.failure(MP_CLOSED, "the store")
        if self.m.state == MP_MEMBER_OPEN:
            raise errors.StoreClosedError("this process was cloned behind the store's back (not by fork): connect again")
        raise errors.StoreClosedError("the store is closed in this process: create or connect it again")

    cdef object failure(self, mp_code code, what):
        """The error that answers a kernel code."""
        if code == MP_IS_DELETED:
            return errors.ObjectDeletedError(f"{what} was deleted")
        if code == MP_IS_LOST:
            return errors.ObjectLostError(f"{what} is lost: its disk copy is gone or damaged")
        if code == MP_IS_ABANDONED:
            return errors.ObjectLostError(f"{what} is lost: its writer ended before the seal")
        if code == MP_NOT_FOUND:
            return errors.ObjectNotFoundError(f"{what} is not in this store (any more)")
        if code == MP_BUSY:
            who = f"process {self.m.busy_pid}" if self.m.busy_pid else "another process"
            return errors.StoreBusyError(
                f"{who} has held the store's lock for 5 s (is it stopped?): resume or end it"
            )
        if code == MP_CORRUPTED:
            return errors.StoreCorruptedError("the store's table failed its check: create a new store")
        if self.closed and (code == MP_CLOSED or code == MP_NOT_FOUND or code == MP_IS_ABANDONED):
            return errors.StoreClosedError("the store was closed by another thread of this process")
        if code == MP_CLOSED:
            return errors.StoreClosedError("this process was given up for dead by the store's members: connect again")
        if code == MP_POOL_FULL:
            name = self.m.full_pool.decode() if self.m.full_pool != NULL else "a"
            return errors.StoreFullError(f"the store's pool of {name} is full: drop some, or use a second store")
        if code == MP_NO_SLOT:
            return errors.AttachError(f"the store has {MP_SLOT_ORPHANS} members already: close some, or use a second store")
        if code == MP_DISK_LIMIT:
            return errors.StoreFullError(
                f"spill_limit is reached: {self.m.header.disk_bytes} of {self.m.header.spill_limit} bytes: raise it"
            )
        if code == MP_SYSTEM:
            return OSError(self.m.error, os.strerror(self.m.error))
        return errors.MillpondError(f"{what}: kernel code {code}")

    def _fail(self, int code, what):
        """The error for a code, for the slow paths to raise."""
        return self.failure(<mp_code>code, what)

    def _guard(self):
        """Raises StoreClosedError or StoreCorruptedError if this member must not go on."""
        self.ensure_open()
        cdef mp_code code = mp_guard_slot(&self.m)
        if code != MP_OK:
            raise self.failure(code, "the store")

    # --- segments: what spill needs of the table ---

    def segment_open(self, uint32_t directory):
        """(segment, id) of a new segment file, which this member appends to."""
        cdef uint32_t segment = 0
        cdef uint64_t id = 0
        cdef mp_code code
        with nogil:
            code = mp_segment_open(&self.m, directory, &segment, &id)
        if code != MP_OK:
            raise self.failure(code, "a spill segment")
        return segment, id

    def segment_reserve(self, uint32_t segment, uint64_t nbytes):
        """The file offset for `nbytes` more. Raises SpillError (EDQUOT) at `spill_limit`."""
        cdef uint64_t offset = 0
        cdef mp_code code
        with nogil:
            code = mp_segment_reserve(&self.m, segment, nbytes, &offset)
        if code == MP_DISK_LIMIT:
            import errno
            raise errors.SpillError(errno.EDQUOT, str(self.failure(code, "spill")))
        if code != MP_OK:
            raise self.failure(code, f"spill segment {segment}")
        return offset

    def segment_close(self, uint32_t segment):
        """Ends appending; the file goes when no object is left in it."""
        with nogil:
            mp_segment_close(&self.m, segment)

    def segment_info(self, uint32_t segment):
        """(id, directory, size, live bytes, state), or None if there is no such segment."""
        cdef mp_segment s
        cdef mp_code code
        with nogil:
            code = mp_segment_read(&self.m, segment, &s)
        return (s.id, s.directory, s.size, s.live, s.state) if code == MP_OK else None

    def segment_dead(self):
        """[(segment, id, directory)] of the files that no object needs any more."""
        cdef uint32_t segment = 0
        cdef mp_segment s
        dead = []
        if self.m.header.dead_segments == 0:
            return dead
        while True:
            with nogil:
                segment = mp_segment_dead(&self.m, segment + 1, &s)
            if segment == 0:
                return dead
            dead.append((segment, s.id, s.directory))

    def segment_forget(self, uint32_t segment, uint64_t id):
        """The file is unlinked: its record may be used again."""
        with nogil:
            mp_segment_forget(&self.m, segment, id)

    def segment_punched(self, uint32_t segment, uint64_t id, uint64_t nbytes):
        """All that a closed segment could give back, `nbytes` in total, is given back."""
        with nogil:
            mp_segment_punched(&self.m, segment, id, nbytes)

    # --- background work and inspection ---

    def _reap(self):
        """Takes apart what dead members left; returns how many there were."""
        cdef uint32_t n
        with nogil:
            n = mp_reap_dead(&self.m)
            mp_token_expire(&self.m, boottime())
            mp_drain_quickly(&self.m)
        return n

    def _survey(self):
        """Every object, as an OBJECT array."""
        cdef uint32_t cursor = 0, n = 1, room = 4096
        cdef cnp.ndarray rows
        cdef mp_object *p
        cdef mp_code code
        self.ensure_open()
        chunks = []
        while n:
            rows = np.empty(room, OBJECT)
            p = <mp_object *>cnp.PyArray_DATA(rows)
            with nogil:
                code = mp_objects(&self.m, &cursor, p, room, &n)
            if code != MP_OK:
                raise self.failure(code, "the table")
            chunks.append(rows[:n])
        return np.concatenate(chunks)

    def _ask_for_gc(self):
        """Would like every member to collect Python's garbage: cycles may hold refs and views."""
        self.m.header.gc_epoch += 1

    def _gc_epoch(self):
        return self.m.header.gc_epoch

    def _containers(self, ObjectRef ref):
        """[(entry, birth)] of the values that contain a ref to this object, at most 1000. Holds the store's
        mutex while it looks through all contained refs."""
        cdef uint32_t found[1000]
        cdef uint32_t n, entry = ref.entry
        with nogil:
            n = mp_containers(&self.m, entry, found, 1000)
        return [(found[i], self.m.entries[found[i]].control >> 8) for i in range(n)]

    def _tokens(self, ObjectRef ref):
        """[(pid of the issuer, issued ns, expiry ns, deliveries)] of the hand-offs of an object."""
        cdef uint32_t i
        cdef mp_token *t
        found = []
        for i in range(1, mp_tokens_backed(&self.m)):
            t = &self.m.tokens[i]
            if t.nonce and t.entry == ref.entry and t.birth == ref.birth:
                found.append((t.issuer_pid, t.issued, t.expiry, t.deliveries))
        return found

    def _name_text(self, uint32_t index):
        if index == 0 or index >= mp_names_backed(&self.m) or self.m.names[index].target == 0:
            return None
        return name_text(&self.m.names[index])

    def _names(self, uint32_t first):
        """(some names, where to go on: 0 at the end). Under the mutex, so that no text is half another's."""
        cdef uint32_t index = first, n = 0, high, i
        cdef mp_code code
        cdef mp_name *copies
        self.ensure_open()
        high = mp_names_backed(&self.m)
        copies = <mp_name *>malloc(NAMES_AT_ONCE * sizeof(mp_name))
        if copies == NULL:
            raise MemoryError
        try:
            with nogil:
                code = mp_lock(&self.m, -1)
                while code == MP_OK and index < high and index - first < NAMES_AT_ONCE:
                    if self.m.names[index].target:
                        memcpy(&copies[n], &self.m.names[index], sizeof(mp_name))
                        n += 1
                    index += 1
                if code == MP_OK:
                    mp_unlock(&self.m)
            if code != MP_OK:
                raise self.failure(code, "the names")
            texts = [name_text(&copies[i]) for i in range(n)]
        finally:
            free(copies)
        return texts, index if index < high else 0

    def _site_text(self, uint32_t entry, uint64_t birth):
        """`file:line` that created an object, or None if that was not noted."""
        if self.m.sites[entry].birth != birth:
            return None
        return shared_text(self.m.sites[entry].text, sizeof(self.m.sites[entry].text))

    def _name_of(self, ObjectRef ref):
        return self.m.entries[ref.entry].name

    def _members(self):
        """[(slot, pid, command)] of the members, orphans of fork included; pid 0: it is not known."""
        cdef uint32_t pid
        found = []
        for i in range(MP_SLOTS):
            if (self.m.slots[i].word & 255) != MP_SLOT_FREE:
                pid = self.m.slots[i].pid if self.m.slots[i].pid != MP_PID_UNSEEN else 0
                found.append((i, pid, shared_text(self.m.slots[i].command, sizeof(self.m.slots[i].command))))
        return found

    def _kept_bytes(self, bint pinned):
        """[(pid, command, bytes)] of the members that pin something in memory, or else that hold something there;
        what several keep counts for each of them."""
        cdef uint64_t kept[MP_SLOTS]
        with nogil:
            mp_kept_bytes(&self.m, pinned, kept)
        return [(pid, command, kept[slot]) for slot, pid, command in self._members() if kept[slot]]

    def _member_bits(self, ObjectRef ref):
        """([slots that hold], [slots that pin]) of a ref's object."""
        cdef mp_entry *e = &self.m.entries[ref.entry]
        holders = [s for s in range(MP_SLOTS) if e.holders[s >> 6] >> (s & 63) & 1]
        return holders, [s for s in range(MP_SLOTS) if e.pins[s >> 6] >> (s & 63) & 1]

    def _totals(self):
        """The table's own figures, as a dict."""
        cdef mp_header *h = self.m.header
        self.ensure_open()
        return {
            "memory_limit": h.memory_limit,
            "spill_limit": None if h.spill_limit == NO_LIMIT else h.spill_limit,
            "overflow_limit": h.overflow_limit,
            "committed_bytes": h.committed_blocks * MP_BLOCK,
            "free_bytes": h.free_pages * MP_PAGE,
            "free_slot_bytes": h.free_slot_bytes,
            "returned_bytes_total": h.returned_bytes,
            "disk_bytes": h.disk_bytes,
            "dead_segments": h.dead_segments,
            "unburied": h.unburied,
            "overflow_bytes": self._overflow(0),
            "spilled_bytes_total": h.spilled_bytes,
            "restored_bytes_total": h.restored_bytes,
            "spilled_objects_total": h.spilled_objects,
            "restored_objects_total": h.restored_objects,
            "recoveries": h.recoveries,
            "handoff_ns": h.handoff_ns,
            "tokens": h.pool_tokens.used - 1,
            "in_use": {  # of the other pools
                "entries": h.pool_entries.used - 1,
                "edges": h.pool_edges.used - 1,
                "names": h.pool_names.used - 1,
                "segments": h.pool_segments.used - 1,
            },
            "waiting": sum(1 for i in range(MP_SLOTS) if self.m.slots[i].ticket),
            "slot": self.m.slot,
        }

    def _config(self):
        """The options that were written at creation, as bytes."""
        return PyBytes_FromStringAndSize(self.m.header.config, strnlen(self.m.header.config, MP_CONFIG_BYTES))

    def _table_bytes(self):
        """Memory of the table, as the system counts it."""
        return os.fstat(self.m.table_fd).st_blocks * 512

    def check(self):
        """List of faults found in the shared table; empty means sound. Holds the store's mutex for its
        length: milliseconds per hundred thousand objects."""
        cdef Faults *faults = <Faults *>malloc(sizeof(Faults))
        if faults == NULL:
            raise MemoryError
        faults.used = 0
        try:
            self.enter()
            with nogil:
                mp_check(&self.m, note_fault, faults)
            self.release_use()
            text = PyBytes_FromStringAndSize(faults.text, faults.used)
        finally:
            free(faults)
        return text.decode("utf-8", "replace").split("\0")[:-1]


cdef extern from "kernel.h" nogil:
    uint64_t boottime "mp_linux.boottime"()


def table_identity(int table_fd):
    """(uuid, boot id, pid namespace, uid, gid) of a table, read without mapping it. Raises AttachError."""
    cdef mp_header h
    if pread(table_fd, &h, sizeof(h), 0) != sizeof(h):
        raise errors.AttachError("the table is too short for a header")
    return (PyBytes_FromStringAndSize(<char *>h.uuid, 16), PyBytes_FromStringAndSize(<char *>h.boot_id, 16),
            h.pid_namespace, h.uid, h.gid)
