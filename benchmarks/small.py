"""What one get or put costs: arrays of 0 B to 1 GB and a small dict, beside the alternatives.

Alternatives: numpy.frombuffer over plain memory (as far as Python can get without a store), LMDB on
tmpfs, and plain pickle. Every round has all sizes, so that the sizes can be compared as well. Prints
Markdown; figures are microseconds per call.

Run: python benchmarks/small.py   (needs lmdb)
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
from harness import Timing, machine, markdown, microseconds, race, save

import millpond

ARRAY_BYTES = (0, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
COPIED_MAX = 100_000_000
"""Larger arrays are not given to LMDB and pickle, which copy them."""
SMALL = {"id": 4711, "name": "millpond", "scores": [1.5, 2.5], "ok": True}


def get_arrays(store: millpond.Store, database: lmdb.Environment) -> dict[str, dict[str, Timing]]:
    """By size: a store's get, frombuffer over memory, LMDB's get, pickle.loads."""
    contestants: dict[tuple[int, str], Callable[[], object]] = {}
    arrays = {size: np.random.default_rng(size).standard_normal((size // 80, 10)) for size in ARRAY_BYTES}
    with database.begin(write=True) as writing:
        for size, array in arrays.items():
            if size <= COPIED_MAX:
                writing.put(str(size).encode(), array.tobytes())
    with database.begin(buffers=True) as reading:
        for size in ARRAY_BYTES:
            array = arrays.pop(size)  # the largest take a gigabyte: not longer than needed
            for name, get in array_getters(store, reading, array, size).items():
                assert np.array_equal(get(), array)
                contestants[size, name] = get
        timings = race(contestants)
    results: dict[str, dict[str, Timing]] = {}
    for (size, name), timing in timings.items():
        results.setdefault(f"get array, {size:,} B", {})[name] = timing
    return results


def array_getters(
    store: millpond.Store, reading: lmdb.Transaction, array: np.ndarray, size: int
) -> dict[str, Callable[[], object]]:
    """One call for each of the alternatives, all giving the same array."""
    ref, plain, key, shape = store.put(array), array.tobytes(), str(size).encode(), array.shape
    getters: dict[str, Callable[[], object]] = {
        "millpond": lambda: store.get(ref),
        "frombuffer": lambda: np.frombuffer(plain, np.float64).reshape(shape),
    }
    if size <= COPIED_MAX:
        pickled = pickle.dumps(array, protocol=5)
        getters["lmdb"] = lambda: np.frombuffer(reading.get(key), np.float64).reshape(shape)
        getters["pickle"] = lambda: pickle.loads(pickled)
    return getters


def small_values(store: millpond.Store, database: lmdb.Environment) -> dict[str, dict[str, Timing]]:
    """Put and get of a dict; all sides include pickling or loading."""
    ref, pickled = store.put(SMALL), pickle.dumps(SMALL, protocol=5)

    def lmdb_put() -> None:
        with database.begin(write=True) as writing:
            writing.put(b"small", pickle.dumps(SMALL, protocol=5))

    def lmdb_get() -> object:
        with database.begin(buffers=True) as reading:
            return pickle.loads(reading.get(b"small"))

    lmdb_put()
    assert store.get(ref) == lmdb_get() == SMALL
    return {
        "put dict": race(
            {
                "millpond": lambda: store.put(SMALL),
                "lmdb": lmdb_put,
                "pickle": lambda: pickle.dumps(SMALL, protocol=5),
            }
        ),
        "get dict": race(
            {"millpond": lambda: store.get(ref), "lmdb": lmdb_get, "pickle": lambda: pickle.loads(pickled)}
        ),
    }


def main() -> None:
    """Runs both groups and prints one table."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        # Without sync: LMDB need not survive power loss here, as the store does not.
        database = lmdb.open(str(Path(directory) / "db"), map_size=1 << 30, sync=False)
        with millpond.Store(memory_limit="1536MiB") as store, database:
            results = {**get_arrays(store, database), **small_values(store, database)}
    columns = ("millpond", "frombuffer", "lmdb", "pickle")
    rows = [
        [what, *(microseconds(timings[name]) if name in timings else "" for name in columns)]
        for what, timings in results.items()
    ]
    print(markdown(["microseconds: median (fastest-slowest round)", *columns], rows))
    print("\n" + ", ".join(f"{name} {text}" for name, text in machine().items()))
    print(f"saved to {save('small', results)}")


if __name__ == "__main__":
    main()
