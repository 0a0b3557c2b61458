"""The disk by itself: a plain program with the same file pattern as the store's, direct I/O.

Invariants: one growing file per array, calls of 8 MiB, one buffer; every byte is on the disk when a
figure is returned.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

CALL_BYTES = 8 << 20


class Disk:
    """Files of `file_bytes` each in `directory`, `data` bytes in all."""

    def __init__(self, directory: Path, data: int, file_bytes: int) -> None:
        self._paths = [directory / f"plain-{i}" for i in range(data // file_bytes)]
        self._file_bytes = file_bytes
        self._buffer = memoryview(mmap.mmap(-1, CALL_BYTES))
        self._buffer[:] = np.random.default_rng(0).bytes(CALL_BYTES)

    def write(self) -> float:
        """Bytes per second of writing everything."""
        self.clear()
        return self._pass(os.O_WRONLY | os.O_CREAT, os.pwritev)

    def read(self) -> float:
        """Bytes per second of reading everything."""
        return self._pass(os.O_RDONLY, os.preadv)

    def clear(self) -> None:
        """Removes the files."""
        for path in self._paths:
            path.unlink(missing_ok=True)

    def _pass(self, flags: int, call: Callable[[int, Sequence[memoryview], int], int]) -> float:
        start = time.perf_counter()
        for path in self._paths:
            self._each_call(path, flags, call)
        return len(self._paths) * self._file_bytes / (time.perf_counter() - start)

    def _each_call(
        self, path: Path, flags: int, call: Callable[[int, Sequence[memoryview], int], int]
    ) -> None:
        descriptor = os.open(path, flags | os.O_DIRECT, 0o600)
        try:
            for offset in range(0, self._file_bytes, CALL_BYTES):
                done = call(descriptor, [self._buffer], offset)
                if done != CALL_BYTES:
                    raise OSError(f"{path}: {done} of {CALL_BYTES} bytes")
        finally:
            os.close(descriptor)
