"""What sixteen joblib tasks over one 1 GB array, with results of 100 MB each, take in memory and time.

Stock joblib shares the argument through a file in /dev/shm and pipes the results; Millpond has both in a
store.
Memory is the peak of all processes' own pages plus the shared ones, beyond what the array itself takes before
the call. Each contestant runs in a program of its own, in alternating rounds.
Prints Markdown.

Run: python benchmarks/joblib_memory.py [--bytes 1000000000] [--result 100000000] [--tasks 16] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from footprint import Footprint
from harness import Timing, machine, markdown, save
from joblib import Parallel, delayed

import millpond
import millpond.integrations.joblib

CONTESTANTS = {"loky": "stock joblib", "millpond": "Millpond"}


def part(array: Any, index: int, size: int) -> Any:
    """A result: some of the array, changed."""
    start = index * 1000
    return array[start : start + size // 8] * 2


def piped_files() -> int:
    """Bytes of joblib's own files in shared memory."""
    total = 0
    for path in Path("/dev/shm").glob("joblib_memmapping_folder_*/*"):
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def measure(backend: str, size: int, result: int, tasks: int) -> dict[str, float]:
    """Peak bytes and seconds of one run."""
    array = np.random.default_rng(0).random(size // 8)
    store = millpond.Store(2 * (size + tasks * result)) if backend == "millpond" else None
    options = {"store": store} if store is not None else {}
    shared = piped_files if store is None else lambda: store.stats().committed_bytes
    with joblib.parallel_config(backend, n_jobs=2, **options):
        Parallel()(delayed(part)(array[:1000], 0, 80) for _ in range(2))  # starts the workers
        with Footprint(shared) as footprint:
            start = time.perf_counter()
            results = Parallel()(delayed(part)(array, index, result) for index in range(tasks))
            seconds = time.perf_counter() - start
    assert all(np.array_equal(found[:10], part(array, index, 80)) for index, found in enumerate(results))
    return {"peak_bytes": footprint.peak - footprint.start, "seconds": seconds}


def main() -> None:
    """Runs every contestant in every round; prints a table and saves it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bytes", type=int, default=10**9)
    parser.add_argument("--result", type=int, default=10**8)
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contestant", choices=CONTESTANTS, help="measure one, once, and print JSON")
    args = parser.parse_args()
    if args.contestant:
        print(json.dumps(measure(args.contestant, args.bytes, args.result, args.tasks)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for _ in range(args.rounds):
        for name in CONTESTANTS:
            command = [sys.executable, *sys.argv, "--contestant", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[name].append(json.loads(done.stdout))
    results = {
        name: {key: Timing.of([run[key] for run in runs]) for key in runs[0]} for name, runs in found.items()
    }
    rows = [
        [CONTESTANTS[name], f"{figures['peak_bytes'].median / 1e9:.2f}", f"{figures['seconds'].median:.2f}"]
        for name, figures in results.items()
    ]
    print(markdown(["", "peak memory beyond the array, GB", "time, s"], rows))
    print(", ".join(f"{name} {text}" for name, text in machine().items()))
    print(f"saved to {save('joblib_memory', {**vars(args), 'figures': results})}")


if __name__ == "__main__":
    main()
