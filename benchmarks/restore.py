"""Reading back what was spilled: one by one, as lists, and what a single small object takes.

2 GiB of arrays of 16 MiB through a store of 512 MiB, beside plain direct reads of the same file pattern in
the same directory, in alternating rounds; lists are of 256 MiB. Small objects: one get for all of them
beside one get each. The latency of restoring one object of 1 KB stands beside a direct read of one page of
the same file. The arena is warm. Prints Markdown.

Run: python benchmarks/restore.py [--data 2147483648] [--memory 536870912] [--directory /var/tmp]
     [--rounds 5] [--only noise|small]
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
from disk import Disk, arguments, measure
from harness import Timing, figures, gigabytes, markdown, microseconds, ratios, share

import millpond

ARRAY_BYTES = 16 << 20
LIST_BYTES = 256 << 20
PAGE = 4096
SMALL = ((20_000, 10_000), (1_000, 50_000), (100_000, 2_000))
"""Bytes of an object, and how many."""


class Spilled:
    """`count` arrays of `size` bytes of noise, all of them on disk before each reading."""

    def __init__(self, store: millpond.Store, size: int, count: int) -> None:
        self._store = store
        self._arrays = [np.random.default_rng(i).integers(0, 256, size, dtype=np.uint8) for i in range(4)]
        self._refs = [store.put(self._arrays[i % 4]) for i in range(count)]
        self._bytes = size * count
        self._list = max(1, LIST_BYTES // size)
        for i, value in enumerate(self._refs):
            assert np.array_equal(store.get(value), self._arrays[i % 4]), f"array {i} is wrong"

    def singly(self) -> float:
        """Bytes per second of one get for each."""
        self._store.spill()
        start = time.perf_counter()
        for ref in self._refs:
            self._store.get(ref)
        return self._rate(start)

    def as_lists(self) -> float:
        """Bytes per second of gets of lists; each list is dropped before the next."""
        self._store.spill()
        start = time.perf_counter()
        for i in range(0, len(self._refs), self._list):
            self._store.get(self._refs[i : i + self._list])
        return self._rate(start)

    def prefetched(self) -> float:
        """The same, each list prefetched while the one before it is read through once."""
        self._store.spill()
        start = time.perf_counter()
        step = self._list // 2 or 1
        parts = [self._refs[i : i + step] for i in range(0, len(self._refs), step)]
        for part, following in zip(parts, [*parts[1:], []], strict=True):
            self._store.prefetch(following)
            for value in self._store.get(part):
                value.max()
        return self._rate(start)

    def read_through(self) -> float:
        """As `prefetched`, but without prefetching."""
        self._store.spill()
        start = time.perf_counter()
        step = self._list // 2 or 1
        for i in range(0, len(self._refs), step):
            for value in self._store.get(self._refs[i : i + step]):
                value.max()
        return self._rate(start)

    def latency(self) -> float:
        """Seconds of the median get of one of them, at random."""
        self._store.spill()
        samples = []
        for ref in random.Random(0).sample(self._refs, 500):
            start = time.perf_counter()
            self._store.get(ref)
            samples.append(time.perf_counter() - start)
        return Timing.of(samples).median

    def _rate(self, start: float) -> float:
        return self._bytes / (time.perf_counter() - start)


class Page:
    """Direct reads of one page, at random, of a file of 64 MiB."""

    def __init__(self, directory: Path) -> None:
        self._path, self._buffer = directory / "pages", mmap.mmap(-1, PAGE)
        with self._path.open("wb") as file:
            file.write(random.Random(0).randbytes(64 << 20))
            os.fsync(file.fileno())

    def latency(self) -> float:
        """Seconds of the median read, opening and closing included."""
        samples = []
        for page in random.Random(1).sample(range((64 << 20) // PAGE), 500):
            start = time.perf_counter()
            fd = os.open(self._path, os.O_RDONLY | os.O_DIRECT)
            os.preadv(fd, [self._buffer], page * PAGE)
            os.close(fd)
            samples.append(time.perf_counter() - start)
        return Timing.of(samples).median


def measure_noise(args: argparse.Namespace, directory: Path) -> dict[str, list[float]]:
    """Large arrays."""
    with millpond.Store(memory_limit=args.memory, spill_dir=directory) as store:
        disk = Disk(directory, args.data, ARRAY_BYTES)
        disk.write()
        arrays = Spilled(store, ARRAY_BYTES, args.data // ARRAY_BYTES)
        rates = figures(
            {
                "disk": disk.read,
                "get": arrays.singly,
                "lists": arrays.as_lists,
                "read": arrays.read_through,
                "prefetch": arrays.prefetched,
            },
            args.rounds,
        )
        disk.clear()
    plain = rates["disk"]
    rows = [
        [what, gigabytes(rates[name]), share(rates[name], plain)]
        for what, name in (
            ("the disk", "disk"),
            ("get one by one", "get"),
            ("get of lists", "lists"),
            ("lists of half the size, read through", "read"),
            ("the same, each prefetched during the one before", "prefetch"),
        )
    ]
    print(markdown(["GB/s: median (slowest-fastest round)", "measured", "of the disk"], rows))
    return rates


def measure_small(args: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Small objects, and the latency of one."""
    results: dict[str, Any] = {}
    rows = []
    for size, count in SMALL:
        with millpond.Store(memory_limit=args.memory, spill_dir=directory) as store:
            few = Spilled(store, size, count)
            rates = figures({"get": few.singly, "list": few.as_lists}, args.rounds)
            if size == 1_000:
                waits = figures({"restore": few.latency, "page": Page(directory).latency}, args.rounds)
        per_object = {name: microseconds(Timing.of([size / rate for rate in rates[name]])) for name in rates}
        gain = Timing.of(ratios(rates["list"], rates["get"])).median
        rows.append(
            [
                f"{count} of {size} B",
                per_object["get"],
                per_object["list"],
                gigabytes(rates["list"]),
                f"{gain:.1f}",
            ]
        )
        results[f"{size}"] = rates
    header = ["us per object", "one get each", "one get for all", "GB/s", "times"]
    print(markdown(header, rows))
    restore, page = Timing.of(waits["restore"]), Timing.of(waits["page"])
    print(
        f"\nRestoring one object of 1 KB takes {microseconds(restore)} us, a direct read of a page "
        f"{microseconds(page)} us: {share(waits['restore'], waits['page'])} times as long."
    )
    return {**results, "latency": waits}


def main() -> None:
    """Measures one after the other, each in alternating rounds."""
    parts = {"noise": measure_noise, "small": measure_small}
    measure("restore", parts, arguments(__doc__, parts).parse_args())


if __name__ == "__main__":
    main()
