"""The disk by itself: a plain program with the same file pattern as the store's, direct I/O. And the command
line of the benchmarks that measure a store beside it.

Invariants: one growing file per array, calls of 8 MiB, one buffer; every byte is on the disk when a
figure is returned.
"""

from __future__ import annotations

import argparse
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine, save

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


Part = Callable[[argparse.Namespace, Path], dict[str, Any]]
"""Measures something in a directory, prints its table, returns its figures."""


def arguments(description: str | None, parts: Mapping[str, Part]) -> argparse.ArgumentParser:
    """The options that such a benchmark has; `--only` is one of `parts`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=int, default=2 << 30, help="bytes (%(default)s)")
    parser.add_argument("--memory", type=int, default=512 << 20, help="memory_limit, bytes (%(default)s)")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--only", choices=parts)
    return parser


def measure(name: str, parts: Mapping[str, Part], args: argparse.Namespace) -> None:
    """One part after the other in a directory that goes afterwards; saves the figures as `name`."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=args.directory, prefix="millpond-bench-") as directory:
        for part, run in parts.items():
            if args.only in (None, part):
                results |= run(args, Path(directory))
                print()
    print(", ".join(f"{what} {text}" for what, text in machine().items()))
    print(f"saved to {save(name, results)}")
