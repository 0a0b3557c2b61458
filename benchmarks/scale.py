"""How cost grows: with objects (a thousand to a million), processes (one to eight) and members (to 250).

Random access reads values in an order that no cache can guess, among a thousand and among a million in the
same rounds; beside it the same order over a list of pickles, since a million of anything do not fit into a
cache, and over a dict of them in one process, which finds a value by its key as a store does. Processes work
on objects of their own; beside them the same loops without a store, and gets alone and puts alone. Memory for
each object is what table and arena take beyond its stored bytes.
Prints Markdown.

Run: python benchmarks/scale.py [--objects 1000000]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from harness import Timing, machine, markdown, save, timings

import millpond

CALLS = 20_000
VALUE = {"id": 4711, "name": "millpond", "scores": [1.5, 2.5], "ok": True}
LOOP_S = 0.5
MEMBERS = (2, 64, 250)
MEMBERS_OBJECTS = 20_000
PROCESSES = (2, 4, 8)
ROUNDS = 7
FORK = multiprocessing.get_context("fork")


def order(count: int) -> list[int]:
    """CALLS random indices below `count`."""
    return np.random.default_rng(count).integers(0, count, CALLS).tolist()


def per_call(calls: Callable[[], None]) -> Callable[[], float]:
    """Seconds for one of the CALLS that `calls` makes."""

    def measure() -> float:
        start = time.perf_counter()
        calls()
        return (time.perf_counter() - start) / CALLS

    return measure


def reads(store: millpond.Store, refs: list[Any]) -> Callable[[], float]:
    """Random gets."""
    chosen = [refs[i] for i in order(len(refs))]

    def calls() -> None:
        for ref in chosen:
            store.get(ref)

    return per_call(calls)


def puts(store: millpond.Store) -> Callable[[], float]:
    """Puts of a small dict, each dropped when the next one is there."""

    def calls() -> None:
        for _ in range(CALLS):
            store.put(VALUE)

    return per_call(calls)


def loads(count: int, value: Any) -> dict[str, Callable[[], float]]:
    """The same without a store: pickles, or the bytes of arrays, out of a list and out of a dict."""
    load: Callable[[Any], object] = pickle.loads
    if isinstance(value, np.ndarray):
        load = np.frombuffer
        stored = [value.tobytes() for _ in range(count)]
    else:
        stored = [pickle.dumps({**value, "id": i}) for i in range(count)]
    keyed = {f"{i:x}-entry": data for i, data in enumerate(stored)}
    keys = list(keyed)
    chosen = [stored[i] for i in order(count)]
    chosen_keys = [keys[i] for i in order(count)]

    def from_list() -> None:
        for data in chosen:
            load(data)

    def from_dict() -> None:
        for key in chosen_keys:
            load(keyed[key])

    return {"from a list": per_call(from_list), "from a dict": per_call(from_dict)}


def objects(store: millpond.Store, counts: list[int]) -> tuple[dict[str, dict[str, Timing]], float]:
    """Access among few and many objects; and the bytes that each of the most takes beyond its own."""
    results, overhead = {}, 0.0
    for what, value in (("dict", VALUE), ("array of 100 B", np.arange(12.0))):
        results[what], contestants, held = {}, {}, []
        for count in counts:
            before = store.stats()
            held.append([store.put(value) for _ in range(count)])
            after = store.stats()
            measures = {"get": reads(store, held[-1]), **loads(count, value)}
            contestants.update({f"{key}, {count:,}": measure for key, measure in measures.items()})
            results[what].update(timings({f"put, {count:,}": puts(store)}, ROUNDS))
            taken = after.table_bytes - before.table_bytes + after.live_bytes - before.live_bytes
            each = (taken - (after.memory_bytes - before.memory_bytes)) / count
            overhead = max(overhead, each if count == counts[-1] else 0.0)
        results[what].update(timings(contestants, ROUNDS))
        held.clear()
    return results, overhead


def loop(work: Callable[[], object], counts: Any, number: int, go: Any) -> None:
    """Counts how often `work` is done in LOOP_S."""
    go.wait()
    end = time.perf_counter() + LOOP_S
    done = 0
    while done == 0 or time.perf_counter() < end:
        for _ in range(100):
            work()
        done += 100
    counts[number] = done


def together(make: Callable[[], Callable[[], object]], processes: int) -> float:
    """Calls per second of so many processes, each with work of its own."""
    counts, go = FORK.Array("q", processes), FORK.Event()

    def run(number: int) -> None:
        loop(make(), counts, number, go)
        os._exit(0)

    workers = [FORK.Process(target=run, args=(number,)) for number in range(processes)]
    for worker in workers:
        worker.start()
    time.sleep(0.3)
    go.set()
    for worker in workers:
        worker.join()
    return sum(counts) / LOOP_S


def processes(store: millpond.Store) -> dict[str, Timing]:
    """How many times as much several processes do as one: with the store, and the same without one."""

    def stored() -> Callable[[], object]:
        ref = store.put(VALUE)
        return lambda: (store.put(VALUE), store.get(ref))

    def private() -> Callable[[], object]:
        data = pickle.dumps(VALUE)
        return lambda: (pickle.dumps(VALUE), pickle.loads(data), dict(VALUE))

    def gets() -> Callable[[], object]:
        ref = store.put(VALUE)
        return lambda: store.get(ref)

    def only_puts() -> Callable[[], object]:
        return lambda: store.put(VALUE)

    makers = {"store": stored, "private": private, "gets only": gets, "puts only": only_puts}
    gains = {}
    for count in PROCESSES:  # what only two can show, without waiting for a core, gets more rounds
        names = makers if count == 2 else ("store", "private")
        contestants = {
            f"{name}, {count}": lambda make=makers[name], count=count: (
                together(make, count) / together(make, 1)
            )
            for name in names
        }
        gains.update(timings(contestants, ROUNDS if count == 2 else 3))
    return gains


def members(store: millpond.Store, count: int) -> dict[str, float]:
    """Seconds: a fork that makes a member, an attach among so many, the reaping of one that was killed."""
    refs = [store.put(np.arange(1000.0)) for _ in range(MEMBERS_OBJECTS)]
    pids = []
    start = time.perf_counter()
    for _ in range(count):
        pid = os.fork()
        if pid == 0:
            view = refs[0].get()
            signal.pause()
            os._exit(int(view[0]))
        pids.append(pid)
    forked = (time.perf_counter() - start) / count
    attached = attach(store.address)
    store._janitor.stop()  # it would reap in the background, as each of the others would
    for signum in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, signum)
    for pid in pids:
        os.waitpid(pid, 0)
    start = time.perf_counter()
    count_reaped = store._reap()
    reaped = (time.perf_counter() - start) / count_reaped
    return {
        f"a fork, of {count}": forked,
        f"attaching beside {count}": attached,
        f"reaping one of {count}, {MEMBERS_OBJECTS:,} objects": reaped,
    }


def attach(address: str) -> float:
    """Seconds that a new program takes to connect, imports apart."""
    results = multiprocessing.get_context("spawn").Queue()
    worker = multiprocessing.get_context("spawn").Process(target=_connect, args=(address, results))
    worker.start()
    seconds: float = results.get()
    worker.join()
    return seconds


def _connect(address: str, results: Any) -> None:
    start = time.perf_counter()
    store = millpond.connect(address)
    results.put(time.perf_counter() - start)
    store.close()


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=1_000_000)
    args = parser.parse_args()
    with millpond.Store("2GiB", spill_limit=0) as store:
        counts = [count for count in (1_000, 10_000, 100_000) if count < args.objects]
        access, overhead = objects(store, [*counts, args.objects])
    with millpond.Store("256MiB", spill_limit=0) as store:
        gains = processes(store)
    many: dict[str, float] = {}
    for count in MEMBERS:
        with millpond.Store("256MiB", spill_limit=0) as store:
            many |= members(store, count)
    rows = [
        [f"{what}: {key}", f"{timing.median * 1e6:.2f} us"]
        for what, found in access.items()
        for key, timing in found.items()
    ]
    rows += [
        ["memory for each object beyond its bytes", f"{overhead:.0f} B"],
        *(
            [f"gain over one process: {what}", f"{gain.median:.2f} ({gain.low:.2f}-{gain.high:.2f})"]
            for what, gain in gains.items()
        ),
        *([what, f"{seconds * 1e3:.3f} ms"] for what, seconds in many.items()),
    ]
    print(markdown(["", "median"], rows))
    print("\n" + ", ".join(f"{name} {text}" for name, text in machine().items()))
    results = {"access": access, "overhead": overhead, "processes": gains, "members": many}
    print(f"saved to {save('scale', results)}")


if __name__ == "__main__":
    main()
