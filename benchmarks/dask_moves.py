"""What it costs Dask to move an array between workers of one machine, stock beside Millpond.

Times: from the submission of a task on another worker, which needs the array, to its result. Memory: what
three workers and the store take when all three hold and have read the array. Then two of them are killed.
With --shuffle, a table of 4 GiB is shuffled by a cluster whose store may take 1 GiB.
Prints Markdown.

Run: python benchmarks/dask_moves.py [--bytes 400000000] [--rounds 5] [--shuffle]
Needs: pip install millpond[bench-dask]
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import time
from functools import partial
from typing import Any

import dask
import numpy as np
from distributed import Client, LocalCluster, wait
from footprint import Footprint, anonymous_bytes, wait_until
from harness import Timing, figures, machine, markdown, ratios, save

import millpond
from millpond.integrations.dask import cluster_options

# It would drop replicas between their making and their counting.
dask.config.set({"distributed.scheduler.active-memory-manager.start": False})

WORKERS = 3


def ones(size: int) -> Any:
    """An array of so many bytes."""
    return np.ones(size // 8)


def total(array: Any) -> float:
    """Reads all of it."""
    return float(array.sum())


def first(array: Any) -> float:
    """Reads one item."""
    return float(array[0])


class Contestant:
    """A cluster of three workers of one thread each."""

    def __init__(self, **options: Any) -> None:
        self.cluster = LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, memory_limit="4GiB", dashboard_address=":0", **options
        )
        self.client = Client(self.cluster)
        self.workers = list(self.client.scheduler_info()["workers"])

    def move(self, size: int) -> float:
        """Seconds until a task on the second worker has the array that the first one made."""
        array = self.client.submit(ones, size, workers=self.workers[0], pure=False)
        wait(array)
        start = time.perf_counter()
        self.client.submit(first, array, workers=self.workers[1], pure=False).result()
        return time.perf_counter() - start

    def pids(self) -> list[int]:
        """Of the workers."""
        return list(self.client.run(os.getpid).values())

    def hold(self, size: int, shared: Any) -> int:
        """Bytes that the workers and the store have more when all workers hold and have read one array."""
        before = anonymous_bytes(self.pids()) + shared()
        array = self.client.submit(ones, size, workers=self.workers[0], pure=False)
        for worker in self.workers:
            self.client.submit(total, array, workers=worker, pure=False).result()
        return anonymous_bytes(self.pids()) + shared() - before

    def close(self) -> None:
        """Ends the processes."""
        self.client.close()
        self.cluster.close()


def kill(contestant: Contestant, store: millpond.Store, size: int) -> str:
    """Kills the worker that made the array, and one that only has it, and says what is left at the end."""
    array = contestant.client.submit(ones, size, workers=contestant.workers[0], allow_other_workers=True)
    contestant.client.submit(total, array, workers=contestant.workers[1]).result()
    pids = contestant.client.run(os.getpid)
    for worker in contestant.workers[:2]:
        os.kill(pids[worker], signal.SIGKILL)
    assert contestant.client.submit(total, array, pure=False).result() == size // 8
    del array
    wait_until(lambda: len(store) == 0 and store.stats().members == WORKERS + 1)
    stats = store.stats()
    used = stats.committed_bytes - stats.warm_bytes
    return f"{stats.objects} objects, {used} bytes in use, {len(store.check())} faults"


def part(index: int, rows: int) -> Any:
    """One part of the table: 32 bytes a row."""
    import pandas as pd

    random = np.random.default_rng(index)
    return pd.DataFrame(
        {"key": random.integers(0, 100_000, rows)} | {name: random.random(rows) for name in ("a", "b", "c")}
    )


def shuffle(size: int, limit: str) -> dict[str, Any]:
    """Shuffles a table of that size by its key, under that node-wide limit."""
    import dask.dataframe as dd

    parts = size >> 26
    rows = (size // parts) // 32
    options = cluster_options(limit, name="shuffle")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", **options) as cluster,
        Client(cluster),
    ):
        store = millpond.connect("shuffle")
        table = dd.from_map(part, range(parts), rows=rows, meta=part(0, 1))
        shuffled = table.shuffle("key", shuffle_method="tasks", npartitions=parts)
        keys = shuffled["key"].map_partitions(lambda part: part.drop_duplicates())
        start = time.perf_counter()
        with Footprint(lambda: store.stats().committed_bytes) as footprint:
            length, distinct, mean = dask.compute(shuffled.shape[0], keys.shape[0], shuffled["a"].mean())
        seconds = time.perf_counter() - start
        assert length == rows * parts and distinct == 100_000 and 0.499 < mean < 0.501
        stats = store.stats()
        assert stats.committed_bytes <= stats.memory_limit
        return {
            "bytes": size,
            "memory_limit": stats.memory_limit,
            "seconds": seconds,
            "peak_bytes": footprint.peak - footprint.start,
            "spilled_bytes": stats.spilled_bytes_total,
            "restored_bytes": stats.restored_bytes_total,
        }


def compare(size: int, rounds: int) -> dict[str, Any]:
    """Moves, memory and a kill; prints a table."""
    stock = Contestant()
    ours = Contestant(**cluster_options(2 * size + (64 << 20), name="dask-moves"))
    store = millpond.connect("dask-moves")
    try:
        contestants = {"stock": stock, "millpond": ours}
        for contestant in contestants.values():
            contestant.move(size)
        measures = {name: partial(contestant.move, size) for name, contestant in contestants.items()}
        samples = figures(measures, rounds)
        times = {name: Timing.of(seconds) for name, seconds in samples.items()}
        held = {
            "stock": stock.hold(size, lambda: 0),
            "millpond": ours.hold(size, lambda: store.stats().committed_bytes - store.stats().warm_bytes),
        }
        rows = [[name, _seconds(times[name]), f"{held[name] / size:.2f}"] for name in contestants]
        print(markdown(["", f"move of {size / 1e6:.0f} MB, s", "memory of three holders, copies"], rows))
        ratio = Timing.of(ratios(samples["stock"], samples["millpond"])).median
        left = kill(ours, store, size)
        print(f"\n{ratio:.1f} times as fast. After two of three workers were killed: {left}.")
        return {"bytes": size, "times": times, "held_bytes": held, "ratio": ratio, "after_kill": left}
    finally:
        store.close()
        stock.close()
        ours.close()


def _seconds(timing: Timing) -> str:
    return f"{timing.median:.4f} ({timing.low:.4f}-{timing.high:.4f})"


def main() -> None:
    """Prints the tables and saves them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bytes", type=int, default=400_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shuffle", action="store_true")
    args = parser.parse_args()
    logging.getLogger("distributed").setLevel(logging.ERROR)
    if args.shuffle:
        found = shuffle(4 << 30, "1GiB")
        print(markdown(list(found), [[f"{value:.4g}" for value in found.values()]]))
        print(f"saved to {save('dask_shuffle', found)}")
    else:
        print(f"saved to {save('dask_moves', compare(args.bytes, args.rounds))}")
    print(", ".join(f"{name} {text}" for name, text in machine().items()))


if __name__ == "__main__":
    main()
