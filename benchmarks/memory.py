"""What ten readers of one 1 GB array cost in memory, and how soon memory that is dropped is back.

Each process measures its own proportional set size (PSS: private pages plus its share of the shared
ones) just before and just after all ten have read everything; page tables are reported beside it.
Then an array of that size is put and dropped: the seconds until `committed_bytes`, and the blocks of the
arena as the system counts them, are what they were. Prints Markdown.

Run: python benchmarks/memory.py [--bytes 1000000000] [--readers 10]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from contextlib import suppress
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

import numpy as np
from harness import machine, markdown, save

import millpond


class Memory(NamedTuple):
    """Bytes of this process: proportional share of its pages, and its page tables."""

    pss: int
    page_tables: int

    @classmethod
    def now(cls) -> Memory:
        """Reads both from /proc."""
        return cls(_field("smaps_rollup", "Pss:"), _field("status", "VmPTE:"))

    def __sub__(self, other: Memory) -> Memory:
        return Memory(self.pss - other.pss, self.page_tables - other.page_tables)


def _field(file: str, name: str) -> int:
    for line in Path("/proc/self", file).read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def read(ref: millpond.ObjectRef, step: Barrier, answers: multiprocessing.Queue) -> None:
    """A reader, in step with the others and the creator."""
    np.ones(1000).sum()
    step.wait()
    before = Memory.now()
    step.wait()
    array = ref.get()
    total = float(array.sum())
    step.wait()
    grown = Memory.now() - before
    step.wait()
    answers.put((total, grown))


def measure(size: int, readers: int) -> list[tuple[str, Memory]]:
    """Growth of the creator and of each reader."""
    context = multiprocessing.get_context("spawn")
    with millpond.Store(memory_limit=size + (64 << 20)) as store:
        draft = np.random.default_rng(1).standard_normal(size // 8)
        total = float(draft.sum())
        ref = store.put(draft)
        del draft
        step, answers = context.Barrier(readers + 1), context.Queue()
        processes = [context.Process(target=read, args=(ref, step, answers)) for _ in range(readers)]
        for process in processes:
            process.start()
        step.wait()
        before = Memory.now()
        step.wait()
        step.wait()
        grown = Memory.now() - before
        step.wait()
        results = [answers.get() for _ in processes]
        for process in processes:
            process.join()
    assert all(seen == total for seen, _ in results), "a reader saw another array"
    return [("creator", grown), *((f"reader {i}", memory) for i, (_, memory) in enumerate(results, 1))]


def arena_bytes(store: millpond.Store) -> int:
    """What the system counts for the arena."""
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if f"millpond-arena-{store.uuid.hex()}" in os.readlink(f"/proc/self/fd/{fd}"):
                return os.fstat(int(fd)).st_blocks * 512
    raise LookupError("no descriptor of the arena")


def measure_return(size: int) -> dict[str, float]:
    """Puts and drops an array: bytes before, with it and after, seconds until they were back."""
    array = np.ones(size // 8)
    with millpond.Store(memory_limit=size + (64 << 20)) as store:
        keep = store.put(1)
        figures = {"arena before": arena_bytes(store), "table before": store.stats().table_bytes}
        committed = store.stats().committed_bytes
        ref = store.put(array)
        figures["arena with it"] = arena_bytes(store)
        start = time.perf_counter()
        del ref
        while arena_bytes(store) > figures["arena before"] or store.stats().committed_bytes > committed:
            assert time.perf_counter() - start < 60, "it never came back"
            time.sleep(0.005)
        figures["seconds"] = time.perf_counter() - start
        figures |= {"arena after": arena_bytes(store), "table after": store.stats().table_bytes}
        assert keep.get() == 1
    return figures


def main() -> None:
    """Measures once: memory does not scatter as time does."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bytes", type=int, default=10**9)
    parser.add_argument("--readers", type=int, default=10)
    args = parser.parse_args()
    grown = measure(args.bytes, args.readers)
    total = Memory(sum(m.pss for _, m in grown), sum(m.page_tables for _, m in grown))
    rows = [
        [who, f"{m.pss / 1e6:+.2f}", f"{m.page_tables / 1e6:+.2f}"] for who, m in [*grown, ("sum", total)]
    ]
    print(markdown(["process", "PSS, MB", "page tables, MB"], rows))
    print(f"\nThe sum of PSS grew by {total.pss / args.bytes:.3%} of the array.")
    print(", ".join(f"{name} {text}" for name, text in machine().items()))
    back = [measure_return(args.bytes) for _ in range(5)]
    rows = [
        [what, *(f"{figures[what] / (1 if what == 'seconds' else 1e6):.2f}" for figures in back)]
        for what in back[0]
    ]
    print("\n" + markdown(["put and dropped, MB", *(f"round {i}" for i in range(1, 6))], rows))
    results = {"bytes": args.bytes, "returned": back, "growth": {who: m._asdict() for who, m in grown}}
    print(f"saved to {save('memory', results)}")


if __name__ == "__main__":
    main()
