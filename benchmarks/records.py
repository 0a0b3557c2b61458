"""Many small objects through a store that is too small for them: they go to disk as fused records.

The limit beside them is what cannot be avoided: the copy into memory, and the disk's own time for the
bytes that really were written; for objects of 1 KB, the cost of the same puts in a store with room.
The arena is warm. The time counts until the last put has returned.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path

import numpy as np

import millpond

PAGE = 4096


class Crowd:
    """`count` puts of `size` bytes of noise each into one store."""

    def __init__(self, count: int, size: int, memory_limit: int, directory: Path) -> None:
        self._store = millpond.Store(memory_limit=memory_limit, spill_dir=directory)
        noise = np.random.default_rng(1).integers(0, 256, 64 * size, dtype=np.uint8)
        self._values = [noise[i * size : (i + 1) * size] for i in range(64)]
        self._count = count
        self._refs: list[millpond.ObjectRef] = []
        self.written = 0
        """Bytes that went to disk in the last round."""

    def put(self) -> float:
        """Seconds for all puts, into an empty store."""
        self._refs = []
        settle(self._store)
        warm(self._store, min(self._store.memory_limit, self._count * self._values[0].nbytes))
        values, put, refs = self._values, self._store.put, self._refs
        before = self._store.stats().spilled_bytes_total
        gc.disable()  # a list of a million refs is walked again and again while it grows
        start = time.perf_counter()
        for i in range(self._count):
            refs.append(put(values[i & 63]))
        seconds = time.perf_counter() - start
        gc.enable()
        self.written = self._store.stats().spilled_bytes_total - before
        return seconds

    def verify(self) -> None:
        """Outside the measured time: a sample of the objects is what was put, and the table is sound."""
        for i in range(0, self._count, 997):
            found = self._store.get(self._refs[i])
            assert np.array_equal(found, self._values[i & 63]), f"object {i} is wrong"
        assert not self._store.check()

    def close(self) -> None:
        """Ends the store."""
        self._refs = []
        self._store.close()


class Copy:
    """The bare copy of the same bytes into warm memory."""

    def __init__(self, count: int, size: int) -> None:
        self._source = np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8)
        self._target = np.ones((count, size), np.uint8)  # touched: warm

    def run(self) -> float:
        """Seconds for all of it in one call."""
        start = time.perf_counter()
        self._target[:] = self._source
        return time.perf_counter() - start


def warm(store: millpond.Store, nbytes: int) -> None:
    """Touches `nbytes` of an empty store's arena now, at most all but 2 MiB, so that nothing is spilled: a
    store gives back what was idle for a second, and fresh pages are ten times as slow."""
    piece = np.ones(1 << 20, np.uint8)
    room = min(nbytes, store.memory_limit) - (2 << 20)
    refs = [store.put(piece) for _ in range(room // (len(piece) + PAGE))]
    refs.clear()


def settle(store: millpond.Store, timeout_s: float = 10.0) -> None:
    """Waits until nothing of dropped refs is left on disk: removing files is not what is measured."""
    deadline = time.monotonic() + timeout_s
    while store.stats().disk_bytes and time.monotonic() < deadline:
        time.sleep(0.02)
