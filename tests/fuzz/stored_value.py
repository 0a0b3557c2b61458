"""The stored value: the head that `get` reads in the arena, where every process of the user can write.

Right: an error, or a value whose memory lies inside of the input. Unpickling is replaced by a look at what it
would be given, so that the pickles themselves, which are trusted like the program, are not run.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.guard import Fence, address_of
from millpond import ObjectRef, Store, hot
from millpond.errors import StoreCorruptedError
from millpond.values import anatomy, serialize
from ponds import descriptor_of

_BUFFER_HEAD = 64
_RESIDENT_MAX = 1024
_VALUES: dict[str, Any] = {
    "none": None,
    "text": "text of a few words",
    "a-list": [1, 2.5, b"three", {"four": (5, 6)}],
    "bytes": bytes(range(200)),
    "array": np.arange(24, dtype=np.int32).reshape(2, 3, 4),
    "array-fortran": np.asfortranarray(np.arange(24.0).reshape(4, 6)),
    "array-scalar": np.array(7.0),
    "array-empty": np.zeros((0, 5)),
    "array-half": np.ones(9, np.float16),
    "arrays-out-of-band": [np.arange(200), np.ones((30, 30))],
    "memoryview": memoryview(bytes(300)),
}


class StoredValue:
    """See above."""

    name = "stored-value"
    most = 16 << 10

    def __init__(self, store: Store) -> None:
        self._store = store
        self._fence = Fence(self.most)
        self._start = self._end = 0
        self._objects: dict[int, tuple[ObjectRef, memoryview, int]] = {}
        self._arena = descriptor_of(store, "arena")
        hot.set_serializer(serialize.wants_care, serialize.careful, self._loads, self._loads)

    def close(self) -> None:
        self._objects.clear()
        hot.set_serializer(serialize.wants_care, serialize.careful, serialize.loads, serialize.copy_private)

    def seeds(self) -> dict[str, bytes]:
        found = {}
        for name, value in _VALUES.items():
            ref = self._store.put(value)
            _, stored = self._store._read(ref, hot.STORED_BYTES)
            found[name] = bytes(stored)
        most = struct.pack("<qq", 0, 2**62)
        found["array-empty-too-large"] = found["array-empty"][:16] + most + found["array-empty"][32:]
        return found

    def mend(self, data: bytes) -> bytes:
        """Nothing protects these bytes; but the kind decides what is read, so it is made a known one."""
        return bytes([1 + data[0] % 3]) + data[1:] if data else data

    def run(self, data: bytes) -> str:
        held = self._fence.hold(data)
        self._start = self._fence.start + self._fence.size - -(-len(data) // 64) * 64
        self._end = self._start + len(data)
        assert 1 <= hot.item_bytes(held) <= 255
        explained = self._explained(held)
        copied = self._look(self._store._build_private(held, True), copied=True)
        shared = self._look(self._store._build_private(held, False), copied=False)
        assert copied == shared, f"a copy is {copied}, a view {shared}"
        if len(data) in range(_BUFFER_HEAD, _RESIDENT_MAX):
            ref, stored, offset = self._resident(len(data))
            os.pwrite(self._arena, data, offset)
            self._start = address_of(stored)
            self._end = self._start + len(data)
            assert self._look(ref.get(), copied=False) == shared
        return f"{shared}, {explained}"

    def _resident(self, size: int) -> tuple[ObjectRef, memoryview, int]:
        """An object of so many bytes, its memory, and where in the arena that is: what `get` reads."""
        found = self._objects.get(size)
        if found is None:
            ref = self._store.create_buffer(size - _BUFFER_HEAD).seal()
            _, stored = self._store._read(ref, hot.STORED_BYTES)
            found = self._objects[size] = ref, stored, self._offset_of(address_of(stored))
        return found

    def _offset_of(self, address: int) -> int:
        for line in Path("/proc/self/maps").read_text().splitlines():
            span, _, offset, *_, name = line.split(maxsplit=5)
            start, end = (int(number, 16) for number in span.split("-"))
            if start <= address < end:
                assert f"millpond-arena-{self._store.uuid.hex()}" in name
                return int(offset, 16) + address - start
        raise AssertionError("the arena is not mapped")

    def _explained(self, held: memoryview) -> str:
        """As `explain` reads it: what may be no pickle is a ValueError there."""
        try:
            kind, inband, sizes = hot.layout(held, held.nbytes)
        except StoreCorruptedError:
            return "no layout"
        if kind == "pickle":
            try:
                anatomy.dissect(inband, sizes)
            except ValueError:
                return "no pickle"
        return kind

    def _look(self, value: Any, copied: bool) -> str:
        if isinstance(value, np.ndarray):
            value.tobytes()
            if not copied and value.nbytes:
                self._inside(value.ctypes.data, value.nbytes)
                assert not value.flags.writeable
            return f"array of {min(value.ndim, 3)}"
        if isinstance(value, bytearray | memoryview):
            if not copied:
                self._inside(address_of(memoryview(value)), memoryview(value).nbytes)
            return "buffer" if len(value) else "empty buffer"
        assert isinstance(value, str)
        return value

    def _loads(self, inband: Any, buffers: Any) -> str:
        """Stands for unpickling."""
        for view in (inband, *buffers):
            if isinstance(view, memoryview):
                self._inside(address_of(view), view.nbytes)
            bytes(view)
        return f"pickle with {'buffers' if buffers else 'none'}"

    def _inside(self, start: int, nbytes: int) -> None:
        if nbytes:
            assert self._start <= start and start + nbytes <= self._end, "memory outside of the value"
