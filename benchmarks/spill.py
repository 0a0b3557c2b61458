"""2 GiB of noise through a store of 512 MiB and back, beside the disk itself.

The disk's figures come from plain O_DIRECT writes and reads of the same file pattern (one growing
file per array, calls of 8 MiB) in the same directory, in alternation with the store's. Rates count
bytes that really went to or came from disk. The arena is warm: every page has been used before.
Prints Markdown.

Run: python benchmarks/spill.py [--data 2147483648] [--memory 536870912] [--directory /var/tmp] [--rounds 5]
"""

from __future__ import annotations

import argparse
import mmap
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import Timing, machine, markdown, race_once, save

import millpond

ARRAY_BYTES = 16 << 20
CALL_BYTES = 8 << 20


class Disk:
    """The plain program: files of the arrays' size, direct I/O from one aligned buffer."""

    def __init__(self, directory: Path, data: int) -> None:
        self._paths = [directory / f"plain-{i}" for i in range(data // ARRAY_BYTES)]
        self._buffer = mmap.mmap(-1, CALL_BYTES)
        self._buffer[:] = np.random.default_rng(0).bytes(CALL_BYTES)
        self._bytes = data

    def write(self) -> float:
        """Bytes per second of writing everything."""
        for path in self._paths:
            path.unlink(missing_ok=True)
        start = time.perf_counter()
        for path in self._paths:
            self._each_call(path, os.O_WRONLY | os.O_CREAT, os.pwrite)
        return self._bytes / (time.perf_counter() - start)

    def read(self) -> float:
        """Bytes per second of reading everything."""
        start = time.perf_counter()
        for path in self._paths:
            self._each_call(path, os.O_RDONLY, lambda fd, buffer, at: os.preadv(fd, [buffer], at))
        return self._bytes / (time.perf_counter() - start)

    def _each_call(self, path: Path, flags: int, call: object) -> None:
        descriptor = os.open(path, flags | os.O_DIRECT, 0o600)
        try:
            for offset in range(0, ARRAY_BYTES, CALL_BYTES):
                done = call(descriptor, self._buffer, offset)  # type: ignore[operator]
                if done != CALL_BYTES:
                    raise OSError(f"{path}: {done} of {CALL_BYTES} bytes")
        finally:
            os.close(descriptor)


class Pond:
    """The store: puts until every array is in memory or on disk, then gets of what lies on disk."""

    def __init__(self, store: millpond.Store, data: int) -> None:
        self._store = store
        self._arrays = [
            np.random.default_rng(i).integers(0, 2**64, ARRAY_BYTES // 8, dtype=np.uint64) for i in range(4)
        ]
        self._count = data // ARRAY_BYTES
        self._refs: list[millpond.ObjectRef] = []
        self.write()  # warms the arena

    def write(self) -> float:
        """Bytes spilled per second of putting everything into an empty store."""
        self._refs = []
        before = self._store.stats().spilled_bytes_total
        start = time.perf_counter()
        self._refs = [self._store.put(self._arrays[i % 4]) for i in range(self._count)]
        seconds = time.perf_counter() - start
        return (self._store.stats().spilled_bytes_total - before) / seconds

    def read(self) -> float:
        """Bytes restored per second of reading everything, when everything lies on disk."""
        self._store.spill()
        before = self._store.stats().restored_bytes_total
        start = time.perf_counter()
        for ref in self._refs:
            self._store.get(ref)
        seconds = time.perf_counter() - start
        return (self._store.stats().restored_bytes_total - before) / seconds

    def verify(self) -> None:
        """Outside the measured time: every array is what was put."""
        for i, ref in enumerate(self._refs):
            assert np.array_equal(self._store.get(ref), self._arrays[i % 4]), f"array {i} is wrong"


def show(rate: Timing) -> str:
    """Median, slowest and fastest round in GB/s."""
    return f"{rate.median / 1e9:.2f} ({rate.low / 1e9:.2f}-{rate.high / 1e9:.2f})"


def main() -> None:
    """Alternates write and read of both sides."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=int, default=2 << 30)
    parser.add_argument("--memory", type=int, default=512 << 20)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=args.directory, prefix="millpond-bench-") as name,
        millpond.Store(memory_limit=args.memory, spill_dir=name) as store,
    ):
        disk, pond = Disk(Path(name), args.data), Pond(store, args.data)
        rates = race_once(
            {
                "disk write": disk.write,
                "store put": pond.write,
                "disk read": disk.read,
                "store get": pond.read,
            },
            args.rounds,
        )
        pond.verify()
    rows = [
        [what, show(rates[ours]), show(rates[plain]), f"{rates[ours].median / rates[plain].median:.2f}"]
        for what, ours, plain in (
            ("spill while putting", "store put", "disk write"),
            ("restore", "store get", "disk read"),
        )
    ]
    print(markdown(["GB/s: median (slowest-fastest round)", "millpond", "the disk", "ratio"], rows))
    print("\n" + ", ".join(f"{name} {text}" for name, text in machine().items()))
    print(f"saved to {save('spill', rates)}")


if __name__ == "__main__":
    main()
