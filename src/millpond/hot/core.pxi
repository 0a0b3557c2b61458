# Core: the fast paths of put and get, and the steps of the slow ones.

cdef class Core(Member):
    """A member that stores and reads; `Store` adds the slow paths."""

    # --- put ---

    def put(self, value, *, name=None, bint replace=False, timeout=None):
        """Stores a value and returns its ref. One copy, into memory that every member can read.

        value: any picklable object; an ndarray of a number type is stored without pickle.
        name: also hold the object under this name; a taken name is a ValueError unless `replace`.
        timeout: seconds to wait for room when nothing can be spilled; None: fail at once.
        Raises SerializationError, StoreFullError, SpillError, StoreClosedError, StoreBusyError.
        """
        cdef ObjectRef ref
        self.enter()
        try:
            ref = self.put_array(value, timeout) if plain_array(value) else self.put_pickled(value, timeout)
            if name is not None:
                self._name_set(name, ref, replace)
        finally:
            self.release_use()
        return ref

    cdef ObjectRef put_array(self, cnp.ndarray value, timeout):
        cdef uint32_t entry
        cdef uint64_t birth, offset, size
        cdef mp_code code
        cdef Head head
        cdef uint64_t start = array_head(value, &head, is_fortran(value))
        size = start + cnp.PyArray_NBYTES(value)
        cdef ObjectRef ref = unused_ref(self)
        with nogil:
            code = mp_draft(&self.m, size, &entry, &birth, &offset)
        if code != MP_OK:
            return self._put_slow(encode_array(value), code, timeout)
        try:
            born(ref, entry, birth)
            write_array(self.m.arena_write + offset, value, &head, start)
        except BaseException:
            mp_abort(&self.m, entry, birth)
            raise
        self.seal(ref)
        return ref

    cdef ObjectRef put_pickled(self, value, timeout):
        if type(value) is ObjectRef:
            raise TypeError("put(ref) would store the ref, not its value: wrap it in a list if that is meant")
        cdef Encoded encoded = encode_pickle(self, value)
        ref = self._put_encoded(encoded)
        return self._put_slow(encoded, MP_NO_ROOM, timeout) if ref is None else ref

    cdef int seal(self, ObjectRef ref) except -1:
        cdef mp_code code = mp_seal(&self.m, ref.entry, ref.birth)
        if code != MP_OK:
            raise self.failure(code, ref.id)
        return 0

    def _put_encoded(self, Encoded encoded):
        """The ref, or None when memory has no room just now."""
        cdef uint32_t entry
        cdef uint64_t birth, offset
        cdef mp_code code
        cdef ObjectRef ref = unused_ref(self)
        with nogil:
            code = mp_draft(&self.m, encoded.size, &entry, &birth, &offset)
        if code == MP_NO_ROOM or code == MP_NO_COMMIT:
            return None
        if code != MP_OK:
            raise self.failure(code, "a new object")
        try:
            born(ref, entry, birth)
            encoded.write(self.m.arena_write + offset)
            self._contain(ref, encoded)
        except BaseException:
            mp_abort(&self.m, entry, birth)
            raise
        self.seal(ref)
        return ref

    def _contain(self, ObjectRef ref, Encoded encoded):
        """The draft keeps the refs alive that its value contains."""
        cdef Py_ssize_t i, n = 0 if encoded.refs is None else len(encoded.refs)
        if n == 0:
            return
        cdef cnp.ndarray entries = np.empty(n, np.uint32), births = np.empty(n, np.uint64)
        cdef uint32_t *e = <uint32_t *>cnp.PyArray_DATA(entries)
        cdef uint64_t *b = <uint64_t *>cnp.PyArray_DATA(births)
        cdef mp_code code
        for i in range(n):
            e[i] = (<ObjectRef>encoded.refs[i]).entry
            b[i] = (<ObjectRef>encoded.refs[i]).birth
        with nogil:
            code = mp_contain(&self.m, ref.entry, ref.birth, e, b, <uint32_t>n)
        if code != MP_OK:
            raise self.failure(code, "a contained ref")

    def _draft_bare(self, uint64_t size):
        """A draft without memory, for a value that goes straight to disk: its ref."""
        cdef uint32_t entry
        cdef uint64_t birth
        cdef mp_code code
        cdef ObjectRef ref = unused_ref(self)
        with nogil:
            code = mp_draft_bare(&self.m, size, &entry, &birth)
        if code != MP_OK:
            raise self.failure(code, "a new object")
        try:
            born(ref, entry, birth)
        except BaseException:
            mp_abort(&self.m, entry, birth)
            raise
        return ref

    def _settle(self, ObjectRef ref, place):
        """The record of a bare draft is whole on disk: place is a spill.record.Place: (offset, length, checksum, segment, codec)."""
        cdef mp_place p
        p.offset, p.length, p.checksum, p.segment, p.codec = place
        cdef mp_code code
        with nogil:
            code = mp_settle(&self.m, ref.entry, ref.birth, &p)
        if code != MP_OK:
            raise self.failure(code, ref.id)

    def _abort(self, ObjectRef ref):
        """Gives a bare draft up."""
        with nogil:
            mp_abort(&self.m, ref.entry, ref.birth)

    def _draft(self, uint64_t nbytes, shape, dtype):
        """A Draft of `nbytes` of payload: an array if dtype is given. None: no room just now."""
        cdef uint32_t entry
        cdef uint64_t birth, offset, start
        cdef mp_code code
        cdef Head head
        cdef cnp.npy_intp dims[64]
        self.ensure_open()
        memset(&head, 0, sizeof(head))
        if dtype is None:
            head.kind, head.inband = KIND_BUFFER, nbytes
        else:
            head.kind, head.ndim, head.order, head.typenum = KIND_ARRAY, len(shape), c"C", dtype.num
            for i in range(head.ndim):
                dims[i] = shape[i]
        start = align_up(HEAD + 8 * <uint64_t>head.ndim)
        if head.kind == KIND_BUFFER:
            start = ALIGN
        cdef Draft draft = Draft.__new__(Draft)
        cdef ObjectRef ref = unused_ref(self)
        with nogil:
            code = mp_draft(&self.m, start + nbytes, &entry, &birth, &offset)
        if code == MP_NO_ROOM or code == MP_NO_COMMIT:
            return None
        if code != MP_OK:
            raise self.failure(code, "a new draft")
        cdef uint8_t *target = self.m.arena_write + offset
        memset(target, 0, start)
        memcpy(target, &head, HEAD)
        memcpy(target + HEAD, dims, 8 * <size_t>head.ndim)
        mp_pin(&self.m, entry, MP_ONE_OP)
        count_add(&self.uses, 1)
        draft.core, draft.ref, draft.owner = self, ref, self.m.slot_word
        draft.data, draft.nbytes, draft.shape, draft.dtype = target + start, nbytes, shape, dtype
        draft.pinned = True
        born(ref, entry, birth)
        return draft

    # --- get ---

    def get(self, ref, *, timeout=None, bint copy=False):
        """The value of a ref, or the list of values of a list of refs.

        Arrays are read-only views of the store's memory; copy=True gives private, writable memory.
        timeout: seconds to wait for a draft to be sealed or an object to be restored; None: for ever,
        as long as somebody is at work on it.
        Raises GetTimeoutError, ObjectDeletedError, ObjectLostError, ObjectNotFoundError, SpillError,
        StoreFullError (no room to restore), StoreClosedError, StoreBusyError.
        """
        cdef mp_code code
        if type(ref) is ObjectRef and (<ObjectRef>ref).core is self:
            self.ensure_open()
            value = self.read(<ObjectRef>ref, copy, &code)
            if code == MP_OK:
                return value
        return self._get_slow(ref, timeout, copy)

    cdef object read(self, ObjectRef ref, int copy, mp_code *code):
        """The value if it is resident; else None and why."""
        cdef uint64_t offset = 0, size = 0
        cdef const uint8_t *p
        cdef Head head
        cdef PyObject *raw
        code[0] = mp_view(&self.m, ref.entry, ref.birth, &offset, &size)
        if code[0] != MP_OK:
            return None
        if size > self.m.geometry.arena_bytes or offset > self.m.geometry.arena_bytes - size or size < HEAD:
            mp_unpin(&self.m, ref.entry, MP_ONE_VIEW)
            raise damaged(size)
        p = self.m.arena_read + offset
        memcpy(&head, p, HEAD)
        if head.kind == KIND_PICKLE and head.buffers == 0 and head.order == 0 and size <= INBAND_COPY_MAX and head.inband <= size - HEAD and copy != AS_BYTES:
            raw = bytes_or_null(<const char *>p + HEAD, head.inband)
            mp_unpin(&self.m, ref.entry, MP_ONE_VIEW)
            inband = checked(raw)
            return _copy_private(inband, []) if copy else _loads(inband, ())
        return build(take_view(self, ref.entry, offset, size), p, size, copy)

    def _read(self, ObjectRef ref, int copy):
        """(code, value): the value if the code is OK. copy may be STORED_BYTES."""
        cdef mp_code code
        self.ensure_open()
        value = self.read(ref, copy, &code)
        return code, value

    def _read_list(self, list refs, list values, bint copy):
        """Sets values[i] to the value of refs[i] where it is resident; the indices of those that are spilled.

        Ends at the first that can never be read: a get of it alone says why.
        """
        cdef Py_ssize_t i
        cdef mp_code code
        spilled = []
        for i in range(len(refs)):
            self.ensure_open()
            code = self.read_at(refs, i, values, copy)
            if code == MP_IS_SPILLED:
                spilled.append(i)
            elif code != MP_OK and code != MP_IS_DRAFT and code != MP_IS_RESTORING:
                break
        return spilled

    cdef mp_code read_at(self, list refs, Py_ssize_t i, list values, bint copy) except *:
        """One step of `_read_list`. A value that cannot be loaded is INVALID."""
        cdef mp_code code = MP_INVALID
        try:
            value = self.read(<ObjectRef?>refs[i], copy, &code)
        except Exception:
            return MP_INVALID
        if code == MP_OK:
            values[i] = value
        return code

    def _encode(self, value):
        """The value as `put` would store it."""
        self.ensure_open()
        return encode_array(value) if plain_array(value) else encode_pickle(self, value)

    def _build_private(self, buffer, int copy):
        """The value whose stored bytes are in a private buffer."""
        cdef Py_buffer b
        PyObject_GetBuffer(buffer, &b, PyBUF_CONTIG_RO)
        cdef const uint8_t *p = <const uint8_t *>b.buf
        cdef uint64_t n = b.len
        PyBuffer_Release(&b)
        return build(buffer, p, n, copy)

    # --- restoring: the steps; store/restore.py puts them together ---

    def _place(self, ObjectRef ref):
        """(code, place, stored bytes): if SPILLED or RESTORING the object is pinned, and `_unpin` ends that."""
        cdef mp_place p
        cdef uint64_t size = 0
        cdef mp_code code
        with nogil:
            code = mp_place_read(&self.m, ref.entry, ref.birth, &p, &size)
        if code != MP_IS_SPILLED and code != MP_IS_RESTORING:
            return code, None, 0
        return code, (p.offset, p.length, p.checksum, p.segment, p.codec), size

    def _unpin(self, ObjectRef ref):
        mp_unpin(&self.m, ref.entry, MP_ONE_OP)

    def _restore_begin(self, ObjectRef ref):
        """(code, writable memoryview of the extent): this member restores the object now."""
        cdef uint64_t offset = 0
        cdef mp_code code
        with nogil:
            code = mp_restore_begin(&self.m, ref.entry, ref.birth, &offset)
        if code != MP_OK:
            return code, None
        cdef uint64_t n = mp_extent_bytes(self.m.entries[ref.entry].size)
        return code, PyMemoryView_FromMemory(<char *>self.m.arena_write + offset, n, 0x200)

    def _restore_end(self, ObjectRef ref, str outcome):
        """outcome: "resident", "spilled" (it failed, the place is good) or "lost". The code."""
        cdef int state = MP_RESIDENT if outcome == "resident" else MP_SPILLED if outcome == "spilled" else MP_LOST
        cdef mp_code code
        with nogil:
            code = mp_restore_end(&self.m, ref.entry, ref.birth, state)
        return code

    def _restore_step(self, ObjectRef ref):
        """Others see that a restore of ours goes on. Raises StoreClosedError in a child that was forked in its middle."""
        if self.m.entries[ref.entry].owner != self.m.slot:
            raise errors.StoreClosedError(
                f"object {ref.id} is being restored by the process that began it, not by its forked child: get it again"
            )
        mp_restore_step(&self.m, ref.entry)

    def _steps(self, ObjectRef ref):
        """(steps, pid of the owner) of a restore that somebody else does."""
        cdef uint32_t owner = self.m.entries[ref.entry].owner
        return self.m.entries[ref.entry].step, self.m.slots[owner].pid if owner < MP_SLOTS else 0

    def _lose(self, ObjectRef ref):
        with nogil:
            mp_lose(&self.m, ref.entry, ref.birth)

    def _state(self, ObjectRef ref):
        """The code of a ref's object: OK when it is resident."""
        self.ensure_open()
        return mp_state(&self.m, ref.entry, ref.birth)

    def _wait(self, ObjectRef ref, double seconds):
        """Sleeps until a draft or restoring object changes, at most that long."""
        cdef int64_t slice_ns = <int64_t>(seconds * 1e9)
        with nogil:
            mp_wait(&self.m, ref.entry, ref.birth, slice_ns)

    def _wait_event(self, uint32_t seen, double seconds):
        cdef int64_t slice_ns = <int64_t>(seconds * 1e9)
        with nogil:
            mp_event_wait(&self.m, seen, slice_ns)

    def _event(self):
        return mp_event(&self.m)

    def _delete(self, ObjectRef ref):
        cdef mp_code code
        self.ensure_open()
        with nogil:
            code = mp_delete(&self.m, ref.entry, ref.birth)
        return code

    # --- memory ---

    def _grow(self, uint64_t size):
        """Commits memory for a value of `size` bytes, up to the limit. The code; raises OSError."""
        cdef mp_code code
        with nogil:
            code = mp_grow(&self.m, size)
        if code != MP_OK and code != MP_NO_COMMIT and code != MP_SYSTEM:
            raise self.failure(code, "memory")
        return code

    def _shrink(self, uint64_t nbytes):
        """Gives free memory back to the system; returns the bytes given."""
        cdef uint64_t given
        with nogil:
            given = mp_shrink(&self.m, nbytes)
        return given

    def _empty_blocks(self, uint64_t nbytes):
        """Moves unused values of up to 256 KiB together until about `nbytes` more of whole blocks are free; the bytes."""
        cdef uint64_t emptied
        with nogil:
            emptied = mp_empty_blocks(&self.m, nbytes)
        return emptied

    def _lacking(self, uint64_t size):
        """Bytes that must come free before this member may put `size`: others wait longer for what is free."""
        cdef uint64_t lacking
        with nogil:
            lacking = mp_queue_lacking(&self.m, size)
        return lacking

    def _fits(self, uint64_t size):
        """Whether committed memory has a hole for a value of `size` bytes, as it is now."""
        cdef bint fits
        with nogil:
            fits = mp_fits(&self.m, size)
        return fits

    def _evict(self, candidates):
        """Drops the memory of those candidates that are clean and unpinned; returns the bytes freed."""
        cdef const uint32_t[:] entries = candidates["entry"]
        cdef const uint64_t[:] births = candidates["birth"]
        cdef uint64_t freed = 0, size
        cdef Py_ssize_t i
        with nogil:
            for i in range(entries.shape[0]):
                size = self.m.entries[entries[i]].size
                if mp_evict(&self.m, entries[i], births[i]) == MP_OK:
                    freed += mp_extent_bytes(size)
        return freed

    def _idle(self):
        """Bytes that were committed and free all the time since this was last asked, by any member."""
        cdef uint64_t idle
        with nogil:
            idle = mp_idle_bytes(&self.m)
        return idle

    def _take_turn(self, bint shortage, double seconds):
        """Whether this member gives back for all now, what is idle or what the machine is short of: nobody has for
        so long."""
        return mp_take_turn(&self.m, MP_CHORE_SHORTAGE if shortage else MP_CHORE_IDLE, <uint64_t>(seconds * 1e9))

    def _set_codec(self, uint32_t number):
        """For all members: how what is spilled from now on is compressed."""
        self.m.header.codec = number

    def _codec(self):
        return self.m.header.codec

    def _set_policy(self, uint32_t number):
        """For all members that have none of their own: in which order objects are evicted."""
        self.m.header.policy = number

    def _policy(self):
        return self.m.header.policy

    def _set_limits(self, memory=None, spill=None, overflow=None):
        cdef uint64_t values[3]
        cdef int i
        for i, value in enumerate((memory, spill, overflow)):
            values[i] = value or 0
        mp_set_limits(&self.m, &values[0] if memory is not None else NULL, &values[1] if spill is not None else NULL,
                      &values[2] if overflow is not None else NULL)

    def _overflow(self, int64_t delta):
        """Counts private copies of this member; returns the sum over all members."""
        cdef uint64_t total = 0
        cdef int i
        if delta < 0 and self.m.slots[self.m.slot].overflow_bytes < <uint64_t>-delta:
            delta = 0  # of a forked child, which gives back what its parent has counted
        atomic_add(<int64_t *>&self.m.slots[self.m.slot].overflow_bytes, delta, ACQ_REL)
        for i in range(MP_SLOTS):
            total += self.m.slots[i].overflow_bytes
        return total

    def _count_restored(self, uint64_t size):
        """A spilled object was read without becoming resident."""
        atomic_add(<int64_t *>&self.m.header.restored_bytes, size, ACQ_REL)
        atomic_add(<int64_t *>&self.m.header.restored_objects, 1, ACQ_REL)

    def _candidates(self):
        """Unpinned resident objects, as a CANDIDATE array."""
        cdef uint32_t cursor = 0, n
        cdef cnp.ndarray rows
        cdef mp_candidate *p
        cdef uint32_t room = min(self.m.header.pool_entries.used, mp_entries_backed(&self.m))
        rows = np.empty(max(room, 16), CANDIDATE)
        p = <mp_candidate *>cnp.PyArray_DATA(rows)
        room = len(rows)
        with nogil:
            n = mp_candidates(&self.m, &cursor, p, room)
        return rows[:n]

    def _unread(self, candidates):
        """Which candidates were not read since they were ranked, as a mask."""
        cdef const uint32_t[:] entries = candidates["entry"]
        cdef const uint64_t[:] stamps = candidates["stamp"]
        cdef Py_ssize_t i
        mask = np.empty(len(candidates), np.bool_)
        cdef uint8_t[:] same = mask.view(np.uint8)
        with nogil:
            for i in range(entries.shape[0]):
                same[i] = self.m.entries[entries[i]].stamp >> 8 == stamps[i]
        return mask

    # --- hand-offs and names ---

    def _token_issue(self, ObjectRef ref, uint32_t deliveries, uint64_t expiry, uint64_t family=0):
        """(token, nonce) of a hand-off that holds the object until `expiry` (CLOCK_BOOTTIME ns, 0: never).

        family: 48 random bits by which `_token_withdraw` knows it; 0: none.
        """
        cdef uint32_t token = 0
        cdef uint64_t nonce = 0
        cdef mp_code code
        self.ensure_open()
        while nonce == 0:
            nonce = int.from_bytes(os.urandom(8), "little")
        if family:
            nonce = family << MP_FAMILY_SHIFT | nonce & ((1 << MP_FAMILY_SHIFT) - 1)
        with nogil:
            code = mp_token_issue(&self.m, ref.entry, ref.birth, deliveries, expiry, nonce, &token)
        if code != MP_OK:
            raise self.failure(code, ref.id)
        return token, nonce

    def _token_load(self, uint32_t token, uint64_t nonce, uint32_t entry, uint64_t birth):
        """(code, ref or None): takes a delivery of the hand-off, or a plain ref while the object lives."""
        cdef mp_code code
        self.ensure_open()
        cdef ObjectRef ref = unused_ref(self)
        with nogil:
            code = mp_token_load(&self.m, token, nonce, entry, birth)
        return code, taken(ref, entry, birth) if code == MP_OK else None

    def _token_withdraw(self, uint64_t family):
        """Ends the hand-offs of a family that were not loaded; behind a stopped process, later."""
        self.ensure_open()
        with nogil:
            mp_token_withdraw(&self.m, family)

    def _name_set(self, str name not None, ObjectRef ref, bint replace):
        cdef bytes text = name.encode()
        cdef const char *p = text
        cdef uint32_t n = len(text)
        cdef mp_code code
        if not 0 < n <= MP_NAME_MAX:
            raise ValueError(f"a name has 1 to {MP_NAME_MAX} bytes of UTF-8, this one {n}")
        with nogil:
            code = mp_name_set(&self.m, p, n, ref.entry, ref.birth, replace)
        if code == MP_TAKEN:
            raise ValueError(f"the name {name!r} is taken: use replace=True or delete({name!r}) first")
        if code != MP_OK:
            raise self.failure(code, ref.id)

    def _name_hold(self, str name not None):
        """A ref to what the name holds, or None."""
        cdef bytes text = name.encode()
        cdef const char *p = text
        cdef uint32_t n = len(text), entry = 0
        cdef uint64_t birth = 0
        cdef mp_code code
        self.ensure_open()
        cdef ObjectRef ref = unused_ref(self)
        with nogil:
            code = mp_name_hold(&self.m, p, n, &entry, &birth)
        if code == MP_NOT_FOUND:
            return None
        if code != MP_OK:
            raise self.failure(code, f"the name {name!r}")
        return taken(ref, entry, birth)

    def _name_remove(self, str name not None):
        cdef bytes text = name.encode()
        cdef const char *p = text
        cdef uint32_t n = len(text)
        cdef mp_code code
        self.ensure_open()
        with nogil:
            code = mp_name_remove(&self.m, p, n)
        if code != MP_OK:
            raise self.failure(code, f"the name {name!r}")


@cython.final
@cython.no_gc_clear
cdef class Restoring:
    """One attempt to read an object that is not resident; a context manager.

    Its pin, and the restore that it has begun, end with it. An interrupt can strike after any call and
    before its result is noted, hence they are noted here.
    """

    cdef Core core
    cdef ObjectRef ref
    cdef bint pinned, begun

    def __init__(self, Core core not None, ObjectRef ref not None):
        self.core, self.ref = core, ref

    def place(self):
        """As `Core._place`, once."""
        found = self.core._place(self.ref)
        self.pinned = found[1] is not None
        return found

    def begin(self):
        """As `Core._restore_begin`."""
        found = self.core._restore_begin(self.ref)
        self.begun = found[1] is not None
        return found

    def end(self, str outcome):
        """As `Core._restore_end`. Without it the object stays spilled."""
        self.begun = False
        return self.core._restore_end(self.ref, outcome)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.finish()

    def __dealloc__(self):
        self.finish()

    cdef int finish(self) except -1:
        if self.begun:
            self.end("spilled")
        if self.pinned:
            self.pinned = False
            self.core._unpin(self.ref)
        return 0
