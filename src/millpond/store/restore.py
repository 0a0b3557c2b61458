"""The slow side of `get`: waiting for a seal, restoring from disk, reading past a full memory.

Invariants: a spilled object stays pinned from the look at its place until the value is built, so that the
place stays good and the restored bytes are not evicted again before they are read; unverified bytes are
never shown; no wait is longer than a slice without looking again at the state, the clock and signals.
Not here: making room (`room`), the file formats (`millpond.spill`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from millpond.errors import (
    GetTimeoutError,
    ObjectLostError,
    SpillError,
    StoreBusyError,
    StoreFullError,
)
from millpond.hot import Code, Core, ObjectRef, PrivateCopy, Restoring
from millpond.spill.record import PAGED_MIN
from millpond.store.ahead import Ahead
from millpond.units import check_seconds, format_bytes

if TYPE_CHECKING:
    from millpond.spill.reader import SpillReader
    from millpond.store.room import Room

SLICE_S = 0.05
RETRY_S = 0.005
STALLED_S = 0.25
GIVE_UP_S = 5.0
MAP_MIN = 8 << 20
REASONS_MAX = 1000

Place = tuple[int, int, int, int, int]
_ABSENT: Any = object()


class Deadline:
    """When a call must have ended; `timeout` in seconds, None for never. Raises TypeError, ValueError."""

    def __init__(self, timeout: float | None) -> None:
        check_seconds("timeout", timeout)
        if timeout != timeout:
            raise ValueError(f"timeout is {timeout}: it would never be over. Pass a number of seconds")
        self.timeout = timeout
        self._end = None if timeout is None else time.monotonic() + timeout

    def slice(self) -> float:
        """Seconds to sleep next: 0 when the time is up."""
        if self._end is None:
            return SLICE_S
        return max(0.0, min(SLICE_S, self._end - time.monotonic()))

    @property
    def passed(self) -> bool:
        """Whether the time is up."""
        return self._end is not None and time.monotonic() >= self._end

    @property
    def cut(self) -> bool:
        """Whether a call that is at work must end. A timeout of 0 waits for nobody, but may work."""
        return bool(self.timeout) and self.passed


class _Watch:
    """How one get fares: whether the member that restores the object moves, how long room is refused."""

    def __init__(self, core: Core, ref: ObjectRef) -> None:
        self._core, self._ref = core, ref
        self._seen: tuple[int, int] | None = None
        self._since = time.monotonic()
        self._refused = 0.0

    def refused_for(self) -> float:
        """Seconds since a read found no room for the first time; 0 then."""
        self._refused = self._refused or time.monotonic()
        return time.monotonic() - self._refused

    def stalled_for(self) -> float:
        """Seconds since its last step."""
        steps = self._core._steps(self._ref)
        if steps != self._seen:
            self._seen, self._since = steps, time.monotonic()
        return time.monotonic() - self._since

    @property
    def pid(self) -> int:
        """The process that restores."""
        return 0 if self._seen is None else self._seen[1]


class Restore:
    """Reads values that are not resident, for one process of one store."""

    def __init__(self, core: Core, room: Room, reader: SpillReader | None) -> None:
        self._core = core
        self._room = room
        self._reader = reader
        self.ahead = None if reader is None else Ahead(core, room, reader)
        self._lost: dict[tuple[int, int], str] = {}  # why, for whoever asks again: the table knows no reasons

    def get_list(self, refs: list[ObjectRef], deadline: Deadline, copy: bool) -> list[Any]:
        """The values of `refs`: what is spilled is restored in the order of the disk as far as memory goes,
        then what is left one by one. Raises the error of the first ref in the list that has one."""
        values: list[Any] = [_ABSENT] * len(refs)
        spilled = self._core._read_list(refs, values, copy)
        if self.ahead is not None:
            self._restore_many(self.ahead, refs, spilled, values, deadline, copy)
        for i, ref in enumerate(refs):
            if values[i] is _ABSENT:
                if deadline.cut and self._core._state(ref) in (Code.SPILLED, Code.RESTORING):
                    raise GetTimeoutError(
                        f"{i} of {len(refs)} objects were read within {deadline.timeout} s: object {ref.id} "
                        "is still on disk"
                    )
                values[i] = self.get(ref, deadline, copy)
        return values

    def _restore_many(
        self,
        ahead: Ahead,
        refs: list[ObjectRef],
        spilled: list[int],
        values: list[Any],
        deadline: Deadline,
        copy: bool,
    ) -> None:
        """Again as long as it gets further: values without views leave room for the next."""
        left = 0
        while len(spilled) > 1 and len(spilled) != left and not deadline.cut:
            left = len(spilled)
            ahead.restore(
                refs,
                spilled,
                lambda batch, first, stop: batch.take(first, stop, values, copy),
                lambda: deadline.cut,
            )
            spilled = [i for i in spilled if values[i] is _ABSENT]

    def get(self, ref: ObjectRef, deadline: Deadline, copy: int) -> Any:
        """The value of `ref`, as `Store.get` promises it; its stored bytes if copy is hot.STORED_BYTES."""
        if self.ahead is not None and ref.size < PAGED_MIN and self._core._state(ref) == Code.SPILLED:
            try:
                self.ahead.restore_small(ref)
            except StoreBusyError:
                raise
            except (ObjectLostError, OSError):
                pass  # what is wrong is said below
        watch = _Watch(self._core, ref)
        while True:
            code, value = self._core._read(ref, copy)
            if code == Code.OK:
                return value
            if code == Code.SPILLED or (code == Code.RESTORING and watch.stalled_for() > STALLED_S):
                done, value = self._restore(ref, copy, watch)
                if done:
                    return value
            elif code not in (Code.DRAFT, Code.RESTORING):
                raise self._failure(code, ref)
            if code != Code.SPILLED:
                self._core._reap()  # whoever is at work on it may be dead
            self._sleep(ref, code, deadline)

    def _sleep(self, ref: ObjectRef, code: int, deadline: Deadline) -> None:
        if deadline.passed and deadline.timeout is not None:
            what = "sealed" if code == Code.DRAFT else "restored"
            raise GetTimeoutError(f"object {ref.id} was not {what} within {deadline.timeout} s")
        if code == Code.SPILLED:  # refused for want of room: nobody will wake us
            self._core._wait_event(self._core._event(), min(RETRY_S, deadline.slice()))
        else:
            self._core._wait(ref, deadline.slice())

    def _restore(self, ref: ObjectRef, copy: int, watch: _Watch) -> tuple[bool, Any]:
        """(True, value), or (False, None) when the state has changed and must be looked at again."""
        with Restoring(self._core, ref) as work:
            code, place, size = work.place()
            if code not in (Code.SPILLED, Code.RESTORING):
                return self._changed(ref, code)
            if self._reader is None:
                raise SpillError(f"object {ref.id} is on disk, but this process has no spill directory")
            if code == Code.RESTORING:
                if watch.stalled_for() <= STALLED_S:
                    return False, None  # somebody else has just begun
                return self._past_stalled(ref, place, size, copy, watch)
            return self._into_memory(work, ref, place, size, copy, watch)

    def _into_memory(
        self, work: Restoring, ref: ObjectRef, place: Place, size: int, copy: int, watch: _Watch
    ) -> tuple[bool, Any]:
        while True:
            code, target = work.begin()
            if code == Code.OK:
                self._fill(work, ref, place, size, target)
                code, value = self._core._read(ref, copy)
                return code == Code.OK, value
            if code not in (Code.NO_ROOM, Code.NO_COMMIT):
                return self._changed(ref, code)
            if not self._try_room(size):
                if self._core._state(ref) != Code.SPILLED:
                    return False, None  # what took the room was another restore of this very object
                return self._past_pinned(ref, place, size, copy, watch)

    def _changed(self, ref: ObjectRef, code: int) -> tuple[bool, Any]:
        """Another state is looked at again; what is none (a stopped holder of the lock, say) is an error."""
        if code in (Code.OK, Code.DRAFT, Code.SPILLED, Code.RESTORING, Code.TAKEN):
            return False, None
        raise self._failure(code, ref)

    def _failure(self, code: int, ref: ObjectRef) -> Exception:
        error: Exception = self._core._fail(code, f"object {ref.id}")
        if isinstance(error, ObjectLostError) and ref._key in self._lost:
            return ObjectLostError(self._lost[ref._key])
        return error

    def _note_lost(self, ref: ObjectRef, error: ObjectLostError) -> None:
        if len(self._lost) < REASONS_MAX:
            self._lost[ref._key] = str(error)

    def _past_pinned(
        self, ref: ObjectRef, place: Place, size: int, copy: int, watch: _Watch
    ) -> tuple[bool, Any]:
        """All memory is in use: read around it. Others' pins and copies may be gone in a moment, so a
        refusal counts only after a while."""
        try:
            return True, self._private(ref, place, size, copy)
        except StoreFullError:
            if watch.refused_for() > GIVE_UP_S:
                raise
            return False, None

    def _try_room(self, size: int) -> bool:
        try:
            return self._room.make(size)
        except SpillError:
            return False  # the disk takes nothing, but it may still be read

    def _fill(self, work: Restoring, ref: ObjectRef, place: Place, size: int, target: memoryview) -> None:
        """Reads the disk copy into the extent that is ours; the object becomes resident, or stays spilled."""
        assert self._reader is not None
        entry, birth = ref._key
        try:
            self._reader.read_into(
                place, entry, birth, size, target, step=lambda *_: self._core._restore_step(ref)
            )
        except ObjectLostError as error:
            self._note_lost(ref, error)
            work.end("lost")
            raise
        work.end("resident")

    def _past_stalled(
        self, ref: ObjectRef, place: Place, size: int, copy: int, watch: _Watch
    ) -> tuple[bool, Any]:
        """Somebody else restores, but does not move: read around it if the budget allows."""
        try:
            return True, self._private(ref, place, size, copy)
        except StoreFullError:
            if watch.stalled_for() > GIVE_UP_S:
                raise StoreBusyError(
                    f"process {watch.pid} restores object {ref.id} and has not moved for {GIVE_UP_S:g} s "
                    "(is it stopped?): resume or end it"
                ) from None
            return False, None

    def _private(self, ref: ObjectRef, place: Place, size: int, copy: int) -> Any:
        """The value from a private copy, or over a private map of the object's own file.

        Raises StoreFullError when neither can be: try again later.
        """
        assert self._reader is not None
        entry, birth = ref._key
        limit = self._core._totals()["overflow_limit"]
        total = self._core._overflow(size)
        if total <= limit:
            value = self._private_copy(ref, place, size, copy)
        else:
            self._core._overflow(-size)
            if size < MAP_MIN or place[4] != 0:
                raise StoreFullError(
                    f"object {ref.id} of {format_bytes(size)} is on disk, everything in memory is pinned, "
                    f"and private copies take {format_bytes(total - size)} of overflow_limit "
                    f"{format_bytes(limit)}: drop views, or raise memory_limit or overflow_limit"
                )
            memory = self._lost_marks(ref, self._reader.map_private, place, entry, birth, size)
            value = self._core._build_private(memory, copy)
        self._core._count_restored(size)
        return value

    def _private_copy(self, ref: ObjectRef, place: Place, size: int, copy: int) -> Any:
        """The bytes are counted already; the copy takes the count over, and gives it back when it goes."""
        assert self._reader is not None
        try:
            memory = self._lost_marks(ref, self._reader.read_private, place, *ref._key, size)
            counted = PrivateCopy(self._core, memory)
        except BaseException:
            self._core._overflow(-size)
            raise
        return self._core._build_private(counted, copy)

    def _lost_marks(self, ref: ObjectRef, read: Any, *arguments: Any) -> memoryview:
        try:
            memory: memoryview = read(*arguments)
            return memory
        except ObjectLostError as error:
            self._note_lost(ref, error)
            self._core._lose(ref)
            raise
