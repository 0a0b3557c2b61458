"""Stand-ins for the compiled side of spilling: a table of segments, a claimed batch, a failing system.

They do in plain Python what `millpond.hot` does in the shared table, so that the disk side can be tested
alone and every system call of it can be made to fail.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, SupportsIndex

from xxhash import xxh3_64_intdigest

from millpond.errors import SpillError
from millpond.hot import Descriptor
from millpond.spill.disk import System, aligned_buffer
from millpond.spill.record import (
    ALIGN,
    CODEC_NONE,
    HEADER_BYTES,
    PAGED_MIN,
    Place,
    RecordHeader,
    padded,
    record_length,
)

OPEN, CLOSED, DEAD = 1, 2, 3


class FakeTable:
    """The table of segments, with the places of the objects that were published."""

    def __init__(self, limit: int | None = None) -> None:
        self.uuid = bytes(range(16))
        self.limit = limit
        self.segments: dict[int, list[int]] = {}  # index: id, directory, size, live, state
        self.places: dict[tuple[int, int], Place] = {}
        self.sizes: dict[tuple[int, int], int] = {}
        self.resident: set[tuple[int, int]] = set()
        self._ids = 0

    def segment_open(self, directory: int) -> tuple[int, int]:
        self._ids += 1
        index = next(i for i in range(1, 10_000) if i not in self.segments)
        self.segments[index] = [self._ids, directory, 0, 0, OPEN]
        return index, self._ids

    def segment_reserve(self, segment: int, nbytes: int) -> int:
        entry = self.segments[segment]
        assert entry[4] == OPEN
        if self.limit is not None and self.disk_bytes + nbytes > self.limit:
            raise SpillError(errno.EDQUOT, f"spill_limit of {self.limit} bytes")
        offset = entry[2]
        entry[2] += nbytes
        return offset

    def segment_close(self, segment: int) -> None:
        entry = self.segments[segment]
        assert entry[4] == OPEN, "closed twice"
        entry[4] = CLOSED if entry[3] else DEAD

    def segment_dead(self) -> list[tuple[int, int, int]]:
        return [(i, s[0], s[1]) for i, s in self.segments.items() if s[4] == DEAD]

    def segment_forget(self, segment: int, segment_id: int) -> None:
        if segment in self.segments and self.segments[segment][0] == segment_id:
            del self.segments[segment]

    def segment_punched(self, segment: int, segment_id: int, nbytes: int) -> None:
        assert self.segments[segment][0] == segment_id

    def segment_info(self, segment: int) -> tuple[int, int, int, int, int] | None:
        entry = self.segments.get(segment)
        return None if entry is None else (entry[0], entry[1], entry[2], entry[3], entry[4])

    @property
    def disk_bytes(self) -> int:
        return sum(entry[2] for entry in self.segments.values())

    @property
    def open_segments(self) -> int:
        return sum(entry[4] == OPEN for entry in self.segments.values())

    def record(self, key: tuple[int, int], size: int, place: Place) -> None:
        assert self.segments[place.segment][4] == OPEN, "a place in a segment that may be gone"
        assert place.offset + place.length <= self.segments[place.segment][2]
        self.segments[place.segment][3] += place.length
        self.places[key] = place
        self.sizes[key] = size

    def drop(self, key: tuple[int, int]) -> None:
        """The object dies."""
        place = self.places.pop(key)
        entry = self.segments[place.segment]
        entry[3] -= place.length
        if entry[3] == 0 and entry[4] == CLOSED:
            entry[4] = DEAD


class FakeBatch:
    """Claimed objects with values of their own; items are ordered like the compiled batch's."""

    def __init__(self, table: FakeTable, values: Iterable[bytes], first_entry: int = 1) -> None:
        self._table = table
        keyed = [(first_entry + i, 1000 + i, value) for i, value in enumerate(values)]
        self._items = [k for k in keyed if len(k[2]) < PAGED_MIN] + [
            k for k in keyed if len(k[2]) >= PAGED_MIN
        ]
        self.small = sum(len(value) < PAGED_MIN for _, _, value in keyed)
        self.count = len(keyed)
        self.open = set(range(self.count))
        self.dead: set[int] = set()
        self._places: dict[int, tuple[int, int, int, int]] = {}
        table.resident |= {(entry, birth) for entry, birth, _ in keyed}
        self._memory = [
            _arena(value) if len(value) >= PAGED_MIN else memoryview(value) for *_, value in self._items
        ]

    def value(self, index: int) -> bytes:
        return self._items[index][2]

    def key(self, index: int) -> tuple[int, int]:
        return self._items[index][0], self._items[index][1]

    def item(self, index: int) -> tuple[int, int, int]:
        entry, birth, value = self._items[index]
        return entry, birth, len(value)

    def memory(self, index: int) -> memoryview:
        assert index >= self.small
        return self._memory[index]

    def frame(
        self,
        first: int,
        target: memoryview,
        codec: int,
        compress: Callable[[memoryview], bytes | None] | None,
    ) -> tuple[int, int]:
        index, used = first, 0
        while index < self.small:
            entry, birth, value = self._items[index]
            if used + padded(HEADER_BYTES + len(value), ALIGN) > len(target):
                break
            payload = None if compress is None else compress(memoryview(value))
            number = CODEC_NONE if payload is None else codec
            stored = value if payload is None else payload
            checksum = xxh3_64_intdigest(stored)
            header = RecordHeader(self._table.uuid, entry, birth, number, len(value), len(stored), checksum)
            length = record_length(number, len(value), len(stored))
            record = header.pack() + stored
            target[used : used + length] = record + bytes(length - len(record))
            self._places[index] = used, length, checksum, number
            used += length
            index += 1
        assert index > first, "the buffer is too small"
        target[used : padded(used)] = bytes(padded(used) - used)
        return index, padded(used)

    def set_place(self, index: int, offset: int, length: int, checksum: int, codec: int) -> None:
        self._places[index] = offset, length, checksum, codec

    def publish(self, first: int, stop: int, segment: int, base: int, evict: bool) -> tuple[int, int]:
        objects = freed = 0
        for index in range(first, stop):
            assert index in self.open, "published twice"
            self.open.remove(index)
            if index in self.dead:
                continue
            offset, length, checksum, codec = self._places[index]
            key, size = self.key(index), len(self.value(index))
            self._table.record(key, size, Place(base + offset, length, checksum, segment, codec))
            objects += 1
            if evict:
                freed += size
                self._table.resident.discard(key)
        return objects, freed

    def cancel(self) -> None:
        self.open.clear()


def _arena(value: bytes) -> memoryview:
    """The value on pages of its own, with somebody else's bytes behind it."""
    memory = aligned_buffer(padded(len(value)))
    memory[:] = b"\xee" * len(memory)
    memory[: len(value)] = value
    return memory[: len(value)].toreadonly()


class Failing(System):
    """Lets call number `nth` of the named methods fail with `error`: once, or from then on."""

    def __init__(self, error: int, nth: int, names: Sequence[str], for_ever: bool = False) -> None:
        self.calls = 0
        self.failed = 0
        self.broken = True
        self._error, self._nth, self._names, self._for_ever = error, nth, names, for_ever

    def _count(self, name: str) -> None:
        if not self.broken or name not in self._names:
            return
        self.calls += 1
        if self.calls == self._nth or (self._for_ever and self.calls > self._nth):
            self.failed += 1
            raise OSError(self._error, os.strerror(self._error))

    def open(self, path: str, flags: int, mode: int = 0o600) -> Descriptor:
        self._count("open")
        return super().open(path, flags, mode)

    def fstat(self, fd: SupportsIndex) -> os.stat_result:
        self._count("fstat")
        return super().fstat(fd)

    def pwritev(self, fd: SupportsIndex, buffers: Any, offset: int) -> int:
        self._count("pwritev")
        return super().pwritev(fd, buffers, offset)

    def preadv(self, fd: SupportsIndex, buffers: Any, offset: int) -> int:
        self._count("preadv")
        return super().preadv(fd, buffers, offset)

    def fdatasync(self, fd: SupportsIndex) -> None:
        self._count("fdatasync")
        super().fdatasync(fd)

    def punch(self, fd: SupportsIndex, offset: int, length: int) -> None:
        self._count("punch")
        super().punch(fd, offset, length)

    def unlink(self, path: str) -> None:
        self._count("unlink")
        super().unlink(path)

    def statvfs(self, path: str) -> os.statvfs_result:
        self._count("statvfs")
        return super().statvfs(path)


class NoDirect(System):
    """A filesystem that refuses direct I/O: when a file is opened, or only when it is written."""

    def __init__(self, at_open: bool) -> None:
        self._at_open = at_open
        self._direct: set[SupportsIndex] = set()
        self.buffered_writes = 0
        self.synced = 0

    def open(self, path: str, flags: int, mode: int = 0o600) -> Descriptor:
        fd = super().open(path, flags & ~os.O_DIRECT, mode)
        if flags & os.O_DIRECT:
            if self._at_open:  # as the kernel does it: the file exists now
                fd.close()
                raise OSError(errno.EINVAL, "no direct I/O")
            self._direct.add(fd)
        return fd

    def close(self, fd: Descriptor) -> None:
        self._direct.discard(fd)
        super().close(fd)

    def _check(self, fd: SupportsIndex) -> None:
        if fd in self._direct:
            raise OSError(errno.EINVAL, "no direct I/O")

    def pwritev(self, fd: SupportsIndex, buffers: Any, offset: int) -> int:
        self._check(fd)
        self.buffered_writes += 1
        return super().pwritev(fd, buffers, offset)

    def preadv(self, fd: SupportsIndex, buffers: Any, offset: int) -> int:
        self._check(fd)
        return super().preadv(fd, buffers, offset)

    def fdatasync(self, fd: SupportsIndex) -> None:
        self.synced += 1
        super().fdatasync(fd)


def open_descriptors() -> int:
    """How many this process has."""
    return len(os.listdir("/proc/self/fd"))
