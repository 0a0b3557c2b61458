"""More data than memory: 2 GiB of noise through a store of 512 MiB and back, and many small objects.

The disk's figures come from plain O_DIRECT writes and reads of the same file pattern (one growing
file per array, calls of 8 MiB) in the same directory, in alternation with the store's; ratios are
medians over the rounds. Rates count bytes that really went to or came from disk. The arena is warm:
its memory was used just before. Prints Markdown.

Run: python benchmarks/spill.py [--data 2147483648] [--memory 536870912] [--directory /var/tmp]
     [--rounds 5] [--ray PYTHON] [--only noise|records]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
from disk import Disk, arguments, measure
from harness import Timing, figures, gigabytes, markdown, share
from records import Copy, Crowd, settle, warm

import millpond

ARRAY_BYTES = 16 << 20


class Pond:
    """The store: puts until every array is in memory or on disk, then gets of what lies on disk."""

    def __init__(self, store: millpond.Store, data: int) -> None:
        self._store = store
        self._arrays = [
            np.random.default_rng(i).integers(0, 2**64, ARRAY_BYTES // 8, dtype=np.uint64) for i in range(4)
        ]
        self._count = data // ARRAY_BYTES
        self._refs: list[millpond.ObjectRef] = []

    def write(self) -> float:
        """Bytes spilled per second of putting everything into an empty store."""
        self._refs = []
        settle(self._store)
        warm(self._store, self._store.memory_limit)
        before = self._store.stats().spilled_bytes_total
        start = time.perf_counter()
        for i in range(self._count):
            self._refs.append(self._store.put(self._arrays[i % 4]))
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

    def respill(self) -> float:
        """Bytes written by evicting what was restored. After `read`."""
        before = self._store.stats().spilled_bytes_total
        self._store.spill()
        return float(self._store.stats().spilled_bytes_total - before)

    def verify(self) -> None:
        """Outside the measured time: every array is what was put."""
        for i, ref in enumerate(self._refs):
            assert np.array_equal(self._store.get(ref), self._arrays[i % 4]), f"array {i} is wrong"


class Ray:
    """Ray's store of the same size, in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.version = ""

    def write(self) -> float:
        """Bytes spilled per second of putting everything into an empty store."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        round_ = json.loads(self._process.stdout.readline())
        self.version = round_["version"]
        return float(round_["spilled"] / round_["seconds"])


@contextmanager
def started_ray(python: str, data: int, memory: int, directory: Path) -> Iterator[Ray]:
    """Ray, up and warm."""
    script = Path(__file__).with_name("ray_spill.py")
    command = [python, str(script), str(data), str(memory), str(ARRAY_BYTES), str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Ray(process)
        assert process.stdin is not None
        process.stdin.close()


def measure_noise(args: argparse.Namespace, directory: Path) -> dict[str, list[float]]:
    """Large arrays: rates of both sides, and what Ray reaches."""
    with ExitStack() as stack:
        store = stack.enter_context(millpond.Store(memory_limit=args.memory, spill_dir=directory))
        disk, pond = Disk(directory, args.data, ARRAY_BYTES), Pond(store, args.data)
        contestants = {
            "disk write": disk.write,
            "store put": pond.write,
            "disk read": disk.read,
            "store get": pond.read,
            "written again": pond.respill,
        }
        if args.ray:
            ray = stack.enter_context(started_ray(args.ray, args.data, args.memory, directory))
            contestants["ray put"] = ray.write
        rates = figures(contestants, args.rounds)
        pond.verify()
        disk.clear()
    rows = [
        [what, gigabytes(rates[ours]), gigabytes(rates[plain]), share(rates[ours], rates[plain])]
        for what, ours, plain in (
            ("spill while putting", "store put", "disk write"),
            ("restore", "store get", "disk read"),
        )
    ]
    if args.ray:
        rays, plain = rates["ray put"], rates["disk write"]
        rows.append([f"the same, Ray {ray.version}", gigabytes(rays), gigabytes(plain), share(rays, plain)])
    print(markdown(["GB/s: median (slowest-fastest round)", "measured", "the disk", "ratio"], rows))
    print(f"\nWritten by evicting what was restored: {max(rates['written again']):.0f} bytes")
    return rates


def measure_records(args: argparse.Namespace, directory: Path) -> dict[str, list[float]]:
    """Small objects: seconds of the puts, beside the limit of the same round."""
    disk = Disk(directory, 1 << 29, ARRAY_BYTES)
    with ExitStack() as stack:

        def crowd(count: int, size: int, memory: int) -> Crowd:
            return stack.enter_context(closing(Crowd(count, size, memory, directory)))

        medium, copy = crowd(30_000, 20_000, 512 << 20), Copy(30_000, 20_000)
        tiny, roomy = crowd(1_000_000, 1_000, 250_000_000), crowd(1_000_000, 1_000, 2 << 30)
        samples = figures(
            {
                "disk write, beside records": disk.write,
                "20 KB": medium.put,
                "20 KB to disk": lambda: float(medium.written),
                "20 KB copy": copy.run,
                "1 KB": tiny.put,
                "1 KB to disk": lambda: float(tiny.written),
                "1 KB with room": roomy.put,
            },
            args.rounds,
        )
        for each in (medium, tiny, roomy):
            each.verify()
        disk.clear()
    rows = []
    for what, ours, base in (
        ("30 000 puts of 20 KB, 512 MiB", "20 KB", "20 KB copy"),
        ("1 000 000 puts of 1 KB, 250 MB", "1 KB", "1 KB with room"),
    ):
        written = samples[f"{ours} to disk"]
        limit = [
            seconds + nbytes / rate
            for seconds, nbytes, rate in zip(
                samples[base], written, samples["disk write, beside records"], strict=True
            )
        ]
        parts = [samples[ours], samples[base], limit]
        megabytes = f"{Timing.of(written).median / 1e6:.0f}"
        rows.append([what, *map(show_seconds, parts), megabytes, share(limit, samples[ours])])
    header = ["seconds: median (fastest-slowest round)", "measured", "copy, or puts with room"]
    print(markdown([*header, "the same + disk", "MB written", "limit / measured"], rows))
    return samples


def show_seconds(samples: list[float]) -> str:
    """Median, fastest and slowest round."""
    timing = Timing.of(samples)
    return f"{timing.median:.3f} ({timing.low:.3f}-{timing.high:.3f})"


def main() -> None:
    """Measures one after the other, each in alternating rounds."""
    parts = {"noise": measure_noise, "records": measure_records}
    parser = arguments(__doc__, parts)
    parser.add_argument("--ray", metavar="PYTHON", help="a Python that has Ray: measured beside")
    measure("spill", parts, parser.parse_args())


if __name__ == "__main__":
    main()
