"""Spill files: what a restore reads from a directory that others may have written to.

An input is what the table says of one object (its place, number and size), then the file. Right: the value
that was written, whenever the table says what it said then; an error otherwise, or, when it names another
checksum that fits the bytes, any bytes of that size. 64 bits of checksum are honest, not secret: who can
write to the table can also forge a record.
"""

from __future__ import annotations

import errno
import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

from xxhash import xxh3_64_intdigest

from fuzz.engine import shape
from millpond.errors import ObjectLostError
from millpond.spill.codec import CODECS
from millpond.spill.directory import Directories
from millpond.spill.disk import System, aligned_buffer
from millpond.spill.reader import SpillReader
from millpond.spill.record import (
    HEADER_BYTES,
    PAGE,
    PAGED_MIN,
    Place,
    RecordHeader,
    padded,
    payload_start,
    record_length,
)
from millpond.spill.writer import SpillWriter
from spill_fakes import FakeBatch, FakeTable

_TABLE = struct.Struct("<QQQIIQQ")  # offset, length, checksum, codec, entry, birth, size
_SIZE_MAX = 9 << 20  # the kernel gives no more than the arena has
_DIRECT, _BUFFERED = 1000, 1001  # descriptors of what is in memory


def _text(size: int) -> bytes:
    return b"".join(b"%d," % (i * i) for i in range(size // 4))[:size]


def _numbers(size: int) -> bytes:
    return b"".join((i * 3).to_bytes(8, "little") for i in range(size // 8 + 1))[:size]


_VALUES = {
    "packed": (_text(1000), "none"),
    "packed-lz4": (_text(5000), "lz4"),
    "packed-lz4-shuffled": (_numbers(4003), "lz4+shuffle"),
    "packed-lz4-frames": (bytes(2 << 20) + _text(3000), "lz4"),
    "paged": (bytes(PAGED_MIN) + _text(100), "none"),
    "own-lz4": (bytes(8 << 20) + _text(100), "lz4"),
}


class InMemory(System):
    """One file that is bytes, whatever its name is. Reads past the page cache want whole pages."""

    def __init__(self) -> None:
        self.data = b""

    def open(self, path: str, flags: int, mode: int = 0o600) -> int:
        return _DIRECT if flags & os.O_DIRECT else _BUFFERED

    def close(self, fd: int) -> None:
        assert fd in (_DIRECT, _BUFFERED)

    def fstat(self, fd: int) -> os.stat_result:
        return os.stat_result((0o100600, 0, 0, 1, os.geteuid(), 0, len(self.data), 0, 0, 0))

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if offset >= 1 << 63:
            raise OverflowError("Python int too large to convert to C long")  # as os.preadv does
        done = 0
        if fd == _DIRECT and offset % PAGE:
            raise OSError(errno.EINVAL, "Invalid argument")
        for buffer in buffers:
            assert len(buffer) % PAGE == 0, "direct I/O wants whole pages"
            piece = self.data[offset + done : offset + done + len(buffer)]
            buffer[: len(piece)] = piece
            done += len(piece)
            if len(piece) < len(buffer):
                break
        return done


class SpillRecord:
    """See above."""

    name = "spill-record"
    most = 256 << 10

    def __init__(self) -> None:
        self._system = InMemory()
        self._base = tempfile.TemporaryDirectory()
        self._table = FakeTable()
        directories = Directories([self._base.name], self._table.uuid, floor=0, system=self._system)
        self._directories = directories
        self._reader = SpillReader(self._table, directories)
        self._segment, _ = self._table.segment_open(0)
        self._target = aligned_buffer(padded(_SIZE_MAX))
        self._reason = ""
        self._values: dict[bytes, bytes] = {}  # what the table said, and the value then
        self._seeds = {name: self._written(*pair) for name, pair in _VALUES.items()}

    def close(self) -> None:
        self._directories.close()
        self._base.cleanup()

    def _written(self, value: bytes, codec: str) -> bytes:
        """Two values in one file by the writer itself; the input is about the second."""
        with tempfile.TemporaryDirectory() as base:
            table = FakeTable()
            directories = Directories([base], table.uuid, floor=0)
            writer = SpillWriter(table, directories, CODECS[codec])
            other = value[: len(value) // 2] if len(value) < PAGED_MIN else b""
            batch = FakeBatch(table, [other, value] if other else [value])
            writer.clean(batch, evict=True)
            writer._segments.roll()
            key = next(key for key, size in table.sizes.items() if size == len(value))
            place = table.places[key]
            info = table.segment_info(place.segment)
            assert info is not None
            data = Path(directories.file(info[1], info[0])).read_bytes()
            directories.close()
        says = _TABLE.pack(place.offset, place.length, place.checksum, place.codec, *key, len(value))
        self._values[says] = value
        return says + data

    def seeds(self) -> dict[str, bytes]:
        return self._seeds

    def mend(self, data: bytes) -> bytes:
        """The record that the table speaks of gets a header that agrees with it, and both get the checksum of
        what lies behind it."""
        if len(data) < _TABLE.size:
            return data
        offset, _, _, codec, entry, birth, size = _TABLE.unpack_from(data)
        offset, codec, size = offset % (len(data) + 1), codec % 256, size % _SIZE_MAX or 1
        file = bytearray(data[_TABLE.size :])
        claimed = int.from_bytes(file[offset + 40 : offset + 48], "little")  # stored bytes
        stored = size if codec == 0 else claimed % (len(file) + 1)
        start = offset + payload_start(codec, size)
        checksum = xxh3_64_intdigest(bytes(file[start : start + stored]))
        header = RecordHeader(self._table.uuid, entry, birth, codec, size, stored, checksum).pack()
        file[offset : offset + HEADER_BYTES] = header
        length = record_length(codec, size, stored)
        return _TABLE.pack(offset, length, checksum, codec, entry, birth, size) + file

    def run(self, data: bytes) -> str:
        if len(data) < _TABLE.size:
            return "too short"
        offset, length, checksum, codec, entry, birth, size = _TABLE.unpack_from(data)
        size, codec = size % _SIZE_MAX or 1, codec % 256  # no value is empty; one byte in the table
        self._system.data = data[_TABLE.size :]
        place = Place(offset, length, checksum, self._segment, codec)
        expected = self._values.get(data[: _TABLE.size])
        outcomes = [
            self._one(place, entry, birth, size, expected),
            self._of_window(place, entry, birth, size, expected),
            self._paged(place, entry, birth, size, expected),
        ]
        found = {text for text in outcomes if text in ("value", "wrong")}
        assert len(found) <= 1, f"ways to read it do not agree: {outcomes}"
        return self._reason if "wrong" in found else outcomes[0]

    def _memory(self, size: int) -> memoryview:
        return self._target[: padded(size)]

    def _right(self, size: int, expected: bytes | None) -> str:
        memory = self._memory(size)
        assert expected is None or memory[:size] == expected, "wrong bytes"
        assert not any(memory[size:]), "what follows the value is not zero"
        return "value"

    def _one(self, place: Place, entry: int, birth: int, size: int, expected: bytes | None) -> str:
        """As a get of one object reads it."""
        try:
            self._reader.read_into(place, entry, birth, size, self._memory(size))
        except ObjectLostError as error:
            self._reason = f"lost: {shape(str(error.__cause__))}"
            return "wrong"
        return self._right(size, expected)

    def _of_window(self, place: Place, entry: int, birth: int, size: int, expected: bytes | None) -> str:
        """As one of several small records, compressed or not, that are read together."""
        if size >= PAGED_MIN or place.length > 1 << 20 or place.offset + place.length >= 1 << 63:
            return "not for a window"
        try:
            with self._reader.window(place, place.offset + place.length) as (window, base):
                if place.codec and self._reader.unpack(
                    place, entry, birth, size, window, base, self._memory(size)
                ):
                    return self._right(size, expected)
                return "wrong" if place.codec else "copied by compiled code"
        except OSError:
            return "no file"

    def _paged(self, place: Place, entry: int, birth: int, size: int, expected: bytes | None) -> str:
        """As one of several large records, which follow each other."""
        if size < PAGED_MIN or place.codec:
            return "not paged"
        wanted = [(place, entry, birth, size, self._memory(size))]
        try:
            right = self._reader.read_paged(wanted)
        except OSError:
            return "no file"
        return self._right(size, expected) if right[0] else "wrong"
