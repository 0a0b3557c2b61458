"""Not the median but the worst: how long single puts and gets take while another process works too.

Two processes, each with objects of its own: of ten calls three put a value in place of another, seven get one
at random. Small dicts, then arrays of 1 MiB; both with room, then through about a quarter of the memory that
they need. Every call is timed. What the machine itself does to a process is in the same table: the pauses of
two loops that only look at the clock. Prints Markdown.

Run: python benchmarks/tails.py [--seconds 8] [--directory /var/tmp]
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine, markdown, save
from shown import plain

import millpond

FORK = multiprocessing.get_context("fork")
SMALL: dict[str, Any] = {"id": 4711, "name": "millpond", "scores": [1.5, 2.5], "ok": True}
PERCENTILES = (50.0, 99.0, 99.9, 100.0)
PROCESSES = 2
MIB = 1 << 20

Times = dict[str, np.ndarray]


def work(store: millpond.Store, value: Any, count: int, seconds: float, seed: int) -> Times:
    """Seconds of each call of this process."""
    dice = random.Random(seed)
    refs = [store.put(value) for _ in range(count)]
    times: dict[str, list[float]] = {"put": [], "get": []}
    until = time.perf_counter() + seconds
    start = 0.0
    while start < until:
        at = dice.randrange(count)
        start = time.perf_counter()
        if dice.random() < 0.3:
            refs[at] = store.put(value)
            kind = "put"
        else:
            store.get(refs[at])
            kind = "get"
        times[kind].append(time.perf_counter() - start)
    return {kind: np.array(found) for kind, found in times.items()}


def idle(seconds: float) -> Times:
    """Seconds between two looks at the clock."""
    times, last = [], time.perf_counter()
    until = last + seconds
    while last < until:
        now = time.perf_counter()
        times.append(now - last)
        last = now
    return {"nothing": np.array(times)}


def together(task: Callable[[int], Times]) -> Times:
    """What two forked processes measured at the same time."""
    answers = FORK.Queue()
    processes = [FORK.Process(target=lambda n=n: answers.put(task(n))) for n in range(PROCESSES)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=600) for _ in processes]
    for process in processes:
        process.join(60)
    return {kind: np.concatenate([each[kind] for each in found]) for kind in found[0]}


def in_store(value: Any, count: int, memory: int, directory: Path, seconds: float) -> Times:
    """Both processes are members of one store."""
    with millpond.Store(memory_limit=memory, spill_dir=directory) as store:
        times = together(lambda seed: work(store, value, count, seconds, seed))
        assert store.check() == []
    return times


def percentiles(times: np.ndarray) -> list[float]:
    """Seconds, in the order of PERCENTILES."""
    return [float(each) for each in np.percentile(times, PERCENTILES)]


def main() -> None:
    """One table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="of each row (%(default)s)")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk (%(default)s)")
    args = parser.parse_args()
    array = np.random.default_rng(0).random(MIB // 8)
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=args.directory, prefix="millpond-bench-") as name:
        for what, value, count, memory in (
            ("small dicts", SMALL, 20_000, 256 * MIB),
            ("arrays of 1 MiB", array, 64, 512 * MIB),
            ("small dicts, a quarter fits", SMALL, 100_000, 8 * MIB),
            ("arrays of 1 MiB, a quarter fits", array, 256, 128 * MIB),
        ):
            for kind, times in in_store(value, count, memory, Path(name), args.seconds).items():
                results[f"{kind}: {what}"] = {"calls": len(times), "seconds": percentiles(times)}
    for kind, times in together(lambda _: idle(args.seconds / 2)).items():
        results[f"{kind}: the pauses of the machine"] = {"calls": len(times), "seconds": percentiles(times)}
    rows = [[what, f"{found['calls']:,}", *map(plain, found["seconds"])] for what, found in results.items()]
    print(markdown(["microseconds", "calls", "median", "99 %", "99.9 %", "longest"], rows))
    print("\n" + ", ".join(f"{key} {text}" for key, text in machine().items()))
    print(f"saved to {save('tails', results)}")


if __name__ == "__main__":
    main()
