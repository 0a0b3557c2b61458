"""What a ref costs: to pickle, to load, to copy and to drop, beside a plain small object.

The plain object is a class with two slots: what any handle costs in Python. A ref's pickle takes a hand-off,
and loading it consumes that: both change the shared table under its mutex, as do the first and the last ref
of a process. Prints Markdown; figures are microseconds per call.

Run: python benchmarks/references.py
"""

from __future__ import annotations

import copy
import pickle
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from harness import Timing, machine, markdown, microseconds, save

import millpond

HANDLES = 2000
ROUNDS = 25


class Plain:
    """A handle of something that nobody counts."""

    __slots__ = ("birth", "entry")

    def __init__(self, entry: int, birth: int) -> None:
        self.entry, self.birth = entry, birth

    def __reduce__(self) -> Any:
        return Plain, (self.entry, self.birth)


def timed(work: Callable[[Any], Any], items: list[Any]) -> tuple[float, list[Any]]:
    """(seconds per item, results)."""
    start = time.perf_counter()
    results = [work(item) for item in items]
    return (time.perf_counter() - start) / len(items), results


def dropped(items: list[Any]) -> float:
    """Seconds per item to drop what only this list knows."""
    count, start = len(items), time.perf_counter()
    items.clear()
    return (time.perf_counter() - start) / count


def one_round(handles: list[Any]) -> dict[str, float]:
    """Seconds per call; uses the handles up."""
    taken = {}
    taken["pickle.dumps"], sent = timed(pickle.dumps, handles)
    taken["pickle.loads, held here"], loaded = timed(pickle.loads, sent)
    taken["copy.copy"], copies = timed(copy.copy, handles)
    taken["drop, not the last here"] = dropped(copies)
    loaded.clear()
    sent = [pickle.dumps(handle) for handle in handles]
    handles.clear()
    taken["pickle.loads, not held here"], loaded = timed(pickle.loads, sent)
    taken["drop, the last: frees the object"] = dropped(loaded)
    return taken


def main() -> None:
    """Measures refs and plain objects in alternating rounds and prints one table."""
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with millpond.Store(memory_limit="64MiB") as store:
        for _ in range(ROUNDS):
            refs: list[Any] = [store.put(number) for number in range(HANDLES)]
            size = len(pickle.dumps(refs[0]))
            plain: list[Any] = [Plain(number, number) for number in range(HANDLES)]
            for name, handles in (("ref", refs), ("plain object", plain)):
                for what, seconds in one_round(handles).items():
                    samples[what][name].append(seconds)
    results = {what: {name: Timing.of(times) for name, times in by.items()} for what, by in samples.items()}
    rows = [[what, *(microseconds(timing) for timing in by.values())] for what, by in results.items()]
    print(markdown(["microseconds: median (fastest-slowest round)", "ref", "plain object"], rows))
    print(
        f"\na pickled ref has {size} bytes; "
        + ", ".join(f"{name} {text}" for name, text in machine().items())
    )
    print(f"saved to {save('references', results)}")


if __name__ == "__main__":
    main()
