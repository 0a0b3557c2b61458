"""What it costs to be told about a value: `explain` of what is stored, and the search for what cannot be.

Beside `explain`: `pickle.loads` of the same bytes, which it does a few times itself; `pickletools.genops`
reads the opcodes and makes nothing of them. Beside the search, and the error of `put`, which ends at
the first culprit: cloudpickle's one attempt, which says that there is one. Prints Markdown; figures are
milliseconds per call.

Run: python benchmarks/values.py
"""

from __future__ import annotations

import collections
import json
import pickle
import pickletools
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import cloudpickle
import numpy as np
from harness import machine, save, timings
from shown import values

import millpond

VALUES: dict[str, Any] = {
    "100 arrays of 80 kB": [np.full(10_000, index) for index in range(100)],
    "a million floats": [index / 7 for index in range(1_000_000)],
    "10 000 records": [{"id": i, "name": str(i), "tags": ("a", i)} for i in range(10_000)],
}
AT_FAULT: dict[str, Any] = {
    "a lock at the end of 10 000 numbers": [*range(10_000), threading.Lock()],
    "a lock in one of 1000 records": [
        {"id": i, "lock": threading.Lock() if i == 999 else i} for i in range(1000)
    ],
}
ROUNDS = 5


def timed(call: Callable[[], Any]) -> Callable[[], float]:
    """Seconds of one call."""

    def measure() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return measure


def read(store: millpond.Store, value: Any) -> dict[str, Callable[[], float]]:
    """Contestants that read a stored value."""
    ref = store.put(value)
    buffers: list[Any] = []
    data = pickle.dumps(value, 5, buffer_callback=buffers.append)
    return {
        "explain": timed(lambda: store.explain(ref)),
        "pickle.loads": timed(lambda: pickle.loads(data, buffers=buffers)),
        "pickletools.genops": timed(lambda: collections.deque(pickletools.genops(data), maxlen=0)),
    }


def refused(store: millpond.Store, value: Any) -> dict[str, Callable[[], float]]:
    """Contestants that come to know that a value cannot be stored."""

    def put() -> None:
        with suppress(millpond.SerializationError):
            store.put(value)

    def attempt() -> None:
        with suppress(TypeError):
            cloudpickle.dumps(value, 5)

    return {
        "inspect_serializability": timed(lambda: millpond.inspect_serializability(value)),
        "put": timed(put),
        "cloudpickle.dumps": timed(attempt),
    }


def main() -> None:
    """Measures each value in alternating rounds and prints two tables."""
    with millpond.Store("256MiB", spill_limit=0) as store:
        told = {what: timings(read(store, value), ROUNDS) for what, value in VALUES.items()}
        culprits = {what: timings(refused(store, value), ROUNDS) for what, value in AT_FAULT.items()}
    results = {"explain": told, "culprits": culprits}
    print(values(json.loads(json.dumps(results, default=asdict))))
    print("\n" + ", ".join(f"{name} {text}" for name, text in machine().items()))
    print(f"saved to {save('values', results)}")


if __name__ == "__main__":
    main()
