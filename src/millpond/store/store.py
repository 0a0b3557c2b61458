"""The public `Store`: the kernel's fast paths, and what they leave to Python.

Invariants: a method either does what it says or raises a typed error and leaves everything as it was; the
slow paths compose `room`, `restore` and the spill writer, and own no rule of their own. Safe to use from
many threads.
Not here: the fast paths of put and get (hot.pyx), becoming a member (membership.py, connect.py).
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from millpond import hot
from millpond.errors import (
    GetTimeoutError,
    ObjectNotFoundError,
    SpillError,
    StoreClosedError,
    StoreFullError,
)
from millpond.eviction.named import NAMES, resolve
from millpond.hot import Code, Core, Draft, Encoded, ObjectRef, Places, Queued, Using
from millpond.refcount import handoff
from millpond.refcount.names import names
from millpond.spill.codec import Codec
from millpond.spill.directory import Directories
from millpond.spill.reader import SpillReader
from millpond.spill.reclaim import Reclaimer
from millpond.spill.sweep import sweep_dead
from millpond.spill.writer import SpillWriter
from millpond.store import inspection, membership, peers
from millpond.store.cleaner import Cleaner
from millpond.store.janitor import Janitor
from millpond.store.options import Options, PathLike, check_lapse, parse_config
from millpond.store.prefetch import Prefetch
from millpond.store.restore import Deadline, Restore
from millpond.store.room import Room
from millpond.values import serialize

if TYPE_CHECKING:
    import numpy.typing as npt

    from millpond.refcount.holders import Holders
    from millpond.store.info import ObjectInfo, Stats
    from millpond.values.explain import Explanation

KEEP: Any = object()
"""The default of what `configure` may change: leave it as it is."""

hot.set_serializer(serialize.wants_care, serialize.careful, serialize.loads, serialize.copy_private)


class Store(Core):
    """A shared-memory object store of one machine, and this process's membership in it.

    memory_limit: bytes of shared memory at most: an int, "2GiB", "30%", or None for 30 % of what this
        process may use.
    spill_dir: where objects go when memory is full: a path, a list of paths, or None for a private
        directory on a disk.
    spill_limit: bytes on disk at most; None: as much as the disk has; 0: never spill.
    compression: of what goes to disk: "none", "lz4", "auto" (whatever is sooner there), or a Codec.
    eviction: "lru", "sieve", "gdsf", "mru", or a function of the candidate table that gives the order in
        which they go (in this process; the other members use "lru" then).
    name: under which other processes can connect; None: by `address` and by unpickled refs only.
    handoff_timeout: seconds that an undelivered pickled ref keeps its object alive; None: for ever.
    overflow_limit: bytes of private copies for reads that find no room; None: a quarter of memory_limit, at
        least 8 MiB.

    Raises AttachError (the name is taken, the registry is not safe to use), SpillError (no directory fit
    for spilling), ValueError, TypeError. A context manager; `close` is idempotent.
    """

    def __init__(
        self,
        memory_limit: int | str | None = None,
        spill_dir: PathLike | Sequence[PathLike] | None = None,
        spill_limit: int | str | None = None,
        compression: str | Codec = "none",
        eviction: str | Callable[..., Any] = "lru",
        name: str | None = None,
        handoff_timeout: float | None = 600.0,
        overflow_limit: int | str | None = None,
    ) -> None:
        options = Options.check(
            memory_limit, spill_dir, spill_limit, compression, eviction, handoff_timeout, overflow_limit
        )
        membership.sweep(options.spill_dirs)
        with membership.exclusive():
            self._start(name, options)

    def _start(self, name: str | None, options: Options) -> None:
        self._files = membership.create(self, name, options)
        self._set_codec(options.codec)
        self._compose(options.spill_dirs)
        self._set_eviction(options.eviction)

    @classmethod
    def _join(cls, key: str | bytes) -> Store:
        """A new member of a live store; the caller is in `membership.exclusive`."""
        store = cls.__new__(cls)
        store._files = membership.join(store, key)
        store._compose(parse_config(store._config()))
        store._janitor.start()
        return store

    def _compose(self, spill_dirs: Sequence[str]) -> None:
        writer = reader = None
        self._directories: Directories | None = None
        self._reclaimer: Reclaimer | None = None
        try:
            if spill_dirs:
                self._directories = Directories(spill_dirs, self.uuid, registry=self.address)
                self._reclaimer = Reclaimer(self, Places(self), self._directories)
                reclaimer = self._reclaimer
                writer = SpillWriter(
                    self, self._directories, relief=reclaimer.make_room, relieving=reclaimer.in_the_middle
                )
                writer.use_codec(self._codec())
                reader = SpillReader(self, self._directories)
            self._writer = writer
            self._room = Room(self, writer)
            self._cleaner = Cleaner(self, writer) if writer is not None else None
            self._restore = Restore(self, self._room, reader)
            self._prefetch = Prefetch(self, self._restore.ahead)
            self._janitor = Janitor(self)
            membership.announce(self)
        except BaseException:
            if self._directories is not None:
                self._directories.close()
            self._leave()
            raise

    # --- membership ---

    @property
    def address(self) -> str:
        """Where `connect` finds this store: an absolute path. Known to nobody else until it is passed on."""
        return self._files.path

    @property
    def name(self) -> str | None:
        """The name that the store was created with."""
        return self._files.name

    def close(self) -> None:
        """Leaves the store: operations end, this process's refs are dropped, views stay valid.

        The last member takes memory and files with it. Idempotent.
        """
        if self.closed:
            return
        self._janitor.stop()
        self._prefetch.stop(forget=True)
        self._room.spiller.stop()
        with suppress(StoreClosedError), Using(self):
            if self._writer is not None:
                self._writer.leave()
        if self._directories is not None:
            self._directories.close()
        self._leave()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"at {self.address}"
        return f"<Store {self.name or self.uuid.hex()} {state}>"

    def __reduce__(self) -> Any:
        raise TypeError("a store is not pickled: pass store.address and use millpond.connect(address)")

    def _tidy(self) -> None:
        """What the janitor does each second, and slow paths when they need room."""
        with Using(self):
            self._reap()
            if self._writer is not None and self._directories is not None:
                self._writer.use_codec(self._codec())
                self._writer.roll_sparse()
                sweep_dead(self, self._directories)

    def _relieve(self) -> None:
        """What one member's janitor does for all: keep to the limits, give idle memory and files back, clean
        what is cold before memory is full."""
        with Using(self):
            if not self._room.relieve():
                return
            if self._reclaimer is not None:
                self._reclaimer.routine()
            if self._cleaner is not None:
                self._cleaner.look(self._room.policy, time.monotonic())

    # --- put ---

    def _put_slow(self, encoded: Encoded, code: int, timeout: float | None) -> ObjectRef:
        """A put that found no hole: makes room, or goes straight to disk, or waits."""
        if code not in (Code.NO_ROOM, Code.NO_COMMIT):
            raise self._fail(code, "a new object")
        self._guard()
        self._janitor.start()
        deadline = Deadline(0.0 if timeout is None else timeout)
        with self._room.wait(encoded.size) as place:
            while True:
                seen = place.renew()
                ref = self._put_in_memory(encoded, place)
                refusal = None
                if ref is None and self._writer is not None:
                    try:
                        ref = self._put_on_disk(encoded, self._writer)
                    except SpillError as error:
                        refusal = error.with_traceback(None)  # this very frame is in it
                if ref is not None:
                    return ref
                if deadline.passed:
                    raise self._room.full(encoded.size, refusal) from refusal
                self._wait_event(seen, deadline.slice())
                self._tidy()

    def _put_in_memory(self, encoded: Encoded, place: Queued) -> ObjectRef | None:
        while True:
            ref = self._put_encoded(encoded)
            if ref is not None or not self._make_room(encoded.size):
                return ref
            place.renew()

    def _make_room(self, size: int) -> bool:
        try:
            return self._room.make(size)
        except SpillError:
            return False  # the disk's own words come from the attempt to put the value there

    def _put_on_disk(self, encoded: Encoded, writer: SpillWriter) -> ObjectRef:
        """Everything resident is in use, or the value is larger than memory: it lives on disk."""
        ref = self._draft_bare(encoded.size)
        try:
            self._contain(ref, encoded)
            with writer.write_through(encoded.parts(), encoded.size, *ref._key) as place:
                self._settle(ref, place)
        except BaseException:
            self._abort(ref)
            raise
        return ref

    def create(
        self,
        shape: int | Sequence[int],
        dtype: npt.DTypeLike,
        *,
        name: str | None = None,
        timeout: float | None = None,
    ) -> Draft:
        """A draft whose `array` is the store's memory, to be filled in place and sealed without a copy.

        shape, dtype: of a C-contiguous array of numbers. timeout: seconds to wait for room.
        Raises StoreFullError (a draft must be in memory: use `put` for what is larger), ValueError.
        """
        try:
            dims = tuple(operator.index(n) for n in ([shape] if hasattr(shape, "__index__") else shape))
        except TypeError:
            raise TypeError(f"the shape is {shape!r}: pass an int, or a sequence of ints") from None
        kind = np.dtype(dtype)
        if (kind.num > 16 and kind.num != 23) or not kind.isnative:
            raise ValueError(f"a draft holds numbers in native byte order, not {kind}: use put")
        nbytes = kind.itemsize * math.prod(dims)
        if any(n < 0 for n in dims) or len(dims) > 32 or nbytes >> 63:
            raise ValueError(
                f"{dims} is no shape of an array of {kind}: up to 32 dimensions, below 2**63 bytes"
            )
        return self._new_draft(nbytes, dims, kind, name, timeout)

    def create_buffer(self, nbytes: int, *, name: str | None = None, timeout: float | None = None) -> Draft:
        """A draft of `nbytes` bytes whose `buffer` is a writable memoryview; `get` gives a read-only one."""
        nbytes = operator.index(nbytes)
        if nbytes < 0 or nbytes >> 63:
            raise ValueError(f"a buffer of {nbytes} bytes cannot be: pass 0 or more, below 2**63")
        return self._new_draft(nbytes, None, None, name, timeout)

    def _new_draft(
        self, nbytes: int, shape: Any, dtype: Any, name: str | None, timeout: float | None
    ) -> Draft:
        with Using(self):
            draft: Draft = self._draft(nbytes, shape, dtype) or self._draft_slow(
                nbytes, shape, dtype, Deadline(0.0 if timeout is None else timeout)
            )
            if name is not None:
                self._name_set(name, draft.ref, False)
            return draft

    def _draft_slow(self, nbytes: int, shape: Any, dtype: Any, deadline: Deadline) -> Draft:
        """A draft that found no hole: makes room, or waits for it."""
        self._janitor.start()
        with self._room.wait(nbytes + hot.BLOCK) as place:
            while True:
                seen = place.renew()
                draft: Draft | None = self._draft(nbytes, shape, dtype)
                if draft is not None:
                    return draft
                if self._make_room(nbytes + hot.BLOCK):
                    continue
                if deadline.passed:
                    raise StoreFullError(
                        f"{self._room.full(nbytes)}. A draft must be in memory; put need not"
                    )
                self._wait_event(seen, deadline.slice())
                self._tidy()

    # --- get ---

    def _get_slow(self, ref: Any, timeout: float | None, copy: bool) -> Any:
        with Using(self):
            deadline = Deadline(timeout)
            if isinstance(ref, list | tuple):
                return self._restore.get_list(self._own_all(ref), deadline, copy)
            return self._restore.get(self._own(ref, "a ref or a list of refs"), deadline, copy)

    def _own_all(self, refs: ObjectRef | Iterable[ObjectRef]) -> list[ObjectRef]:
        """One ref or several, as a list: looked at before anything is done with any of them."""
        if isinstance(refs, ObjectRef) or not isinstance(refs, Iterable):
            return [self._own(refs, "a ref or several")]
        return [self._own(ref) for ref in refs]

    def _own(self, ref: Any, expected: str = "a ref") -> ObjectRef:
        if type(ref) is not ObjectRef:
            hint = ": lookup(name) gives the ref" if isinstance(ref, str) else ""
            raise TypeError(f"expected {expected}, not {type(ref).__name__}{hint}")
        if ref._store is not self:
            if ref._store.uuid == self.uuid:
                raise ValueError(f"{ref!r} came from a membership that was closed: load or look it up again")
            raise ValueError(f"{ref!r} belongs to another store, not to {self!r}")
        return ref

    def wait(
        self, refs: Sequence[ObjectRef], *, num_returns: int = 1, timeout: float | None = None
    ) -> tuple[list[ObjectRef], list[ObjectRef]]:
        """(ready, pending): ready are those sealed or known to be gone. Restores nothing.

        Returns when `num_returns` are ready or `timeout` seconds are over; both lists keep the order.
        """
        with Using(self):
            mine = self._own_all(refs)
            if not 0 <= num_returns <= len(mine):
                raise ValueError(f"num_returns is {num_returns}, there are {len(mine)} refs")
            deadline = Deadline(timeout)
            while True:
                pending = [ref for ref in mine if self._state(ref) == Code.DRAFT]
                if len(mine) - len(pending) >= num_returns or deadline.passed:
                    waiting = set(pending)
                    return [ref for ref in mine if ref not in waiting], pending
                self._reap()
                self._wait(pending[0], deadline.slice())

    # --- refs and names ---

    def lookup(self, name: str, timeout: float | None = 0) -> ObjectRef:
        """A ref to the object that `name` holds; waits up to `timeout` seconds (None: for ever) for it.

        Raises ObjectNotFoundError at once, or GetTimeoutError when a wait was in vain.
        """
        with Using(self):
            deadline = Deadline(timeout)
            while True:
                seen = self._event()
                ref = self._name_hold(name)
                if ref is not None:
                    return ref
                if deadline.passed:
                    if timeout:
                        raise GetTimeoutError(f"the name {name!r} did not appear within {timeout} s")
                    raise ObjectNotFoundError(f"no object has the name {name!r} in {self!r}")
                self._wait_event(seen, deadline.slice())

    def delete(self, what: ObjectRef | Iterable[ObjectRef] | str) -> None:
        """Takes a value away from all of its holders (views stay valid), or a name off its object.

        Their next `get` raises ObjectDeletedError. Deleting what is deleted already does nothing; an
        unknown name is an ObjectNotFoundError.
        """
        with Using(self):
            if isinstance(what, str):
                self._name_remove(what)
                return
            for ref in self._own_all(what):
                self._delete(ref)

    def __contains__(self, ref: object) -> bool:
        """Whether a ref's value, or a name, is there: sealed or being written, in memory or on disk."""
        with Using(self):
            if isinstance(ref, str):
                return self._name_hold(ref) is not None
            if type(ref) is not ObjectRef or ref._store is not self:
                return False
            return self._state(ref) in (Code.OK, Code.DRAFT, Code.SPILLED, Code.RESTORING)

    def __len__(self) -> int:
        with Using(self):
            return inspection.count(self)

    def __bool__(self) -> bool:
        return True

    def _hand_off(
        self, ref: ObjectRef, deliveries: int, timeout: float | None = None, family: int = 0
    ) -> bytes:
        """The bytes of a pickled ref: a hand-off that keeps the object alive in transit.

        deliveries: loads that it is good for; 0: it keeps nothing alive. timeout: seconds; None: the store's.
        family: with it, `_token_withdraw` can end the hand-off.
        """
        if not 0 <= operator.index(deliveries) < 1 << 32:
            raise ValueError(f"{deliveries} deliveries: pass a count below 2**32")
        check_lapse("timeout", timeout)
        entry, birth = ref._key
        with Using(self):
            if deliveries == 0:
                return handoff.pack(handoff.HandOff(self.uuid, entry, birth, 0, 0, 0, peers.boot_id()))
            self._janitor.start()
            lasting = self._totals()["handoff_ns"] if timeout is None else int(timeout * 1e9)
            expiry = handoff.boottime_ns() + lasting if lasting else 0
            token, nonce = self._token_issue(ref, deliveries, expiry, family)
        return handoff.pack(handoff.HandOff(self.uuid, entry, birth, token, nonce, expiry, peers.boot_id()))

    def configure(
        self,
        *,
        memory_limit: int | str | None = KEEP,
        spill_limit: int | str | None = KEEP,
        overflow_limit: int | str | None = KEEP,
        compression: str | Codec = KEEP,
        eviction: str | Callable[..., Any] = KEEP,
    ) -> None:
        """Changes options while the store runs; what is not named stays. Values are those of `Store`.

        They hold for all members; only a function as eviction is for this process alone, until it names a
        policy again. A lower memory_limit spills at once what is not pinned; while more than it is pinned,
        `stats().over_limit` says so and new objects go to disk.
        Raises ValueError, TypeError, StoreClosedError.
        """
        with Using(self):
            self._guard()
            now = self._totals()
            changes: dict[str, Any] = {
                "memory_limit": memory_limit,
                "spill_limit": spill_limit,
                "overflow_limit": overflow_limit,
                "compression": compression,
                "eviction": eviction,
            }
            stays = {**now, "compression": "none", "eviction": "lru"}
            options = Options.check(
                **{key: stays[key] if value is KEEP else value for key, value in changes.items()},
                spill_dir=self._files.spill or None,
            )
            if self._writer is None and options.spill_limit:
                raise ValueError("the store was created with spill_limit=0: it has no spill directory")
            self._set_limits(options.memory_limit, options.spill_limit, options.overflow_limit)
            if compression is not KEEP:
                self._set_codec(options.codec)
            if eviction is not KEEP:
                self._set_eviction(options.eviction)
            self._tidy()
            self._room.shrink_to(options.memory_limit)

    def _set_eviction(self, eviction: str | Callable[..., Any]) -> None:
        """A name is for all members that have no function of their own, a function for this process."""
        if isinstance(eviction, str):
            self._set_policy(NAMES.index(eviction))
            self._room.own_policy = None
        else:
            self._room.own_policy = resolve(eviction)

    # --- spilling and inspection ---

    def spill(self, refs: ObjectRef | Iterable[ObjectRef] | None = None) -> int:
        """Cleans and evicts the given objects, or all, as far as they are not pinned; the bytes freed.

        Raises SpillError when spilling is off or the disk refuses.
        """
        with Using(self):
            self._guard()
            if self._writer is None:
                raise SpillError("spilling is off in this store (spill_limit=0)")
            self._room.spiller.stop()  # what it is writing is nobody else's to spill
            rows = self._candidates()
            if refs is not None:
                births = np.array([ref._key[1] for ref in self._own_all(refs)], "u8")
                rows = rows[np.isin(rows["birth"], births)]
            return self._room.clean_and_evict(rows)

    def prefetch(self, refs: ObjectRef | Iterable[ObjectRef]) -> None:
        """Restores objects in the background, before somebody asks for them; returns at once.

        Calls are served in order. Each restores at most half of memory_limit, the first refs first, and
        counts as a use of them: the coldest of the others are evicted for it. What cannot be restored
        stays on disk, and its `get` says why. Raises TypeError, ValueError, StoreClosedError.
        """
        with Using(self):
            self._prefetch.add([ref for ref in self._own_all(refs) if self._state(ref) == Code.SPILLED])

    def stats(self) -> Stats:
        """Bytes and counts by place and state, and totals since creation. Scans the table."""
        with Using(self):
            return inspection.stats(self)

    def refs(self, ref: ObjectRef) -> Holders:
        """Who keeps an object alive, and who has it in use: members, pins, containers, hand-offs, name."""
        from millpond.refcount.holders import holders  # slow to import

        with Using(self):
            return holders(self, self._own(ref))

    def names(self, prefix: str = "") -> Iterator[str]:
        """The names that begin with `prefix`, in no order, as they are now."""
        with Using(self):
            return iter(names(self, prefix))

    def objects(self) -> Iterator[ObjectInfo]:
        """Every object, one ObjectInfo each."""
        with Using(self):
            return iter(inspection.objects(self))

    def explain(self, what: Any) -> Explanation:
        """What `get` shares of a value and what it copies, part by part, why, and what would change it.

        what: a ref, or a value as `put` takes it, which is not stored. The result prints as one screen, and
        has fields for programs. The value is built as `get` builds it, and dropped; to read its pickle takes
        some microseconds for each object that is copied. Raises what `get`, or `put`, raises.
        """
        from millpond.values import explain  # slow to import

        with Using(self):
            if not isinstance(what, ObjectRef):
                return explain.of_encoded(self._encode(what))
            stored = self._restore.get(self._own(what), Deadline(None), hot.STORED_BYTES)
            return explain.of_stored(stored, lambda: self._build_private(stored, False))

    @property
    def memory_limit(self) -> int:
        """Bytes of shared memory at most."""
        limit: int = self._totals()["memory_limit"]
        return limit
