"""Free bytes that lie scattered, made usable: one object of half the limit among what 1 M small ones left.

A store is filled with objects of 1 KB; nine in ten, chosen at random, are dropped; then one array of half
the memory limit is put. It must be resident, and nothing may have been written to disk. Beside it: the same
put into an empty store, which must commit as much; and how long another process waited for its own small
puts meanwhile. Prints Markdown.

Run: python benchmarks/moving.py [--objects 1000000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import time
from multiprocessing.synchronize import Event

import numpy as np
from harness import Timing, machine, markdown, save

import millpond

SIZE = 1000
LIMIT_PER_OBJECT = 1500
"""Of memory_limit: 1000 bytes take a slot of 1088, and nothing is to be spilled while the store is filled."""


def probe(address: str, begun: Event, stop: Event, answers: multiprocessing.Queue) -> None:
    """Another member, which puts and drops small objects all the time: its longest and its median wait."""
    waits = []
    with millpond.connect(address) as store:
        keep = store.put(1)  # so that its small puts need no block of their own
        begun.set()
        while not stop.is_set():
            start = time.perf_counter()
            store.put(1)
            waits.append(time.perf_counter() - start)
        del keep
    answers.put((max(waits), float(np.median(waits))))


def put_half(store: millpond.Store) -> float:
    """Seconds for one array of half the limit."""
    array = np.ones(store.memory_limit // 16)
    start = time.perf_counter()
    ref = store.put(array)
    seconds = time.perf_counter() - start
    (info,) = [info for info in store.objects() if info.id == ref.id]
    assert info.state == "resident" and store.stats().spilled_objects == 0, info
    assert store.get(ref)[-1] == 1
    return seconds


def one_round(count: int) -> dict[str, float]:
    """One figure of each kind, in seconds."""
    limit = count * LIMIT_PER_OBJECT
    with millpond.Store(memory_limit=limit) as empty:
        figures = {"put into an empty store": put_half(empty)}
    context = multiprocessing.get_context("spawn")
    with millpond.Store(memory_limit=limit) as store:
        start = time.perf_counter()
        refs = [store.put(os.urandom(SIZE)) for _ in range(count)]
        figures["fill (all puts)"] = time.perf_counter() - start
        random.Random(1).shuffle(refs)
        start = time.perf_counter()
        del refs[count // 10 :]
        figures["drop nine in ten"] = time.perf_counter() - start
        before = store.stats()
        begun, stop, answers = context.Event(), context.Event(), context.Queue()
        other = context.Process(target=probe, args=(store.address, begun, stop, answers), daemon=True)
        other.start()
        begun.wait()
        figures["put after that"] = put_half(store)
        stop.set()
        figures["longest wait of another member"], figures["median wait of another member"] = answers.get()
        other.join()
        after = store.stats()
        assert after.spilled_bytes_total == 0, "something was spilled"
        figures["MB live before it"] = (before.committed_bytes - before.warm_bytes) / 1e6
        figures["MB committed before it"] = before.committed_bytes / 1e6
        assert store.check() == []
    return figures


def main() -> None:
    """Rounds, medians, one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rounds = [one_round(args.objects) for _ in range(args.rounds)]
    results = {what: Timing.of([figures[what] for figures in rounds]) for what in rounds[0]}
    rows = [[what, f"{t.median:.4g}", f"{t.low:.4g}-{t.high:.4g}"] for what, t in results.items()]
    print(markdown([f"{args.objects} objects of {SIZE} bytes", "median, s", "range"], rows))
    print(", ".join(f"{name} {text}" for name, text in machine().items()))
    print(f"saved to {save('moving', results)}")


if __name__ == "__main__":
    main()
