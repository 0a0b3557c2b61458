"""What tests let Dask's workers do; in a module of its own, since workers import it."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

import millpond

Array = npt.NDArray[np.float64]


def ones(n: int) -> Array:
    return np.ones(n)


def identity(value: Any) -> Any:
    return value


def total(array: Array) -> tuple[float, bool]:
    """(sum, whether it can be written to)."""
    return float(array.sum()), array.flags.writeable


def writable(block: Array) -> Any:
    """Of an array's block, as a block."""
    return np.array([[block.flags.writeable]])


def nested(n: int) -> dict[str, Any]:
    """A table of which a slice is kept, in a dict: no top-level array, and one with gaps."""
    table = pd.DataFrame({"a": np.arange(n), "b": np.arange(n) * 0.5})
    return {"table": table.iloc[10 : n - 10], "mask": np.ones((n, 2), bool)[:, 0], "name": "nested"}


def describe(value: dict[str, Any]) -> tuple[int, float, int, bool, str]:
    """What is in a nested value, and whether its table can be written to."""
    table = value["table"]
    writable = any(table[column].to_numpy().flags.writeable for column in table)
    return len(table), float(table["b"].sum()), int(value["mask"].sum()), writable, value["name"]


def words(n: int) -> list[str]:
    return [f"word {i}" for i in range(n)]


def pid() -> int:
    return os.getpid()


def read_everything(keys: list[str], dask_worker: Any) -> tuple[int, int]:
    """(what the system says, what the worker says) about its memory while it reads its part of the values."""
    arrays = [dask_worker.data[key] for key in keys if key in dask_worker.data]
    assert len(arrays) > 2 and all(array.sum() for array in arrays)
    return dask_worker.monitor.proc.memory_info().rss, dask_worker.monitor.get_process_memory()


def limits(dask_worker: Any) -> tuple[int, int | None]:
    """Of the worker's store."""
    stats = millpond.connect(dask_worker.data.address).stats()
    return stats.memory_limit, stats.spill_limit


def kept(dask_worker: Any) -> tuple[str, list[int]]:
    """(address of the worker's store, holders of each of its objects)."""
    store = millpond.connect(dask_worker.data.address)
    return store.address, sorted(info.holders for info in store.objects())


def loaded(dask_worker: Any) -> int:
    """How many values of the store the worker itself has read."""
    return sum(datum._alive is not None for datum in dask_worker.data._data.values())


class Counter:
    """An actor."""

    def __init__(self) -> None:
        self.values = np.zeros(100_000)

    def add(self) -> float:
        self.values += 1
        return float(self.values[0])


class Traced:
    """An array that knows which thread has loaded it."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.loaded_by: int | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.loaded_by = threading.get_ident()
