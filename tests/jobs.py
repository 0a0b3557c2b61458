"""What tests let the workers of a process pool do; in a module of its own, since workers import it."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import millpond
from workers import wait_until

Array = npt.NDArray[np.float64]
started_with: list[Any] = []


def double(x: Any) -> Any:
    return x * 2


def add(x: Any, y: Any = 0) -> Any:
    return x + y


def ones(n: int) -> Array:
    return np.ones(n)


def ones_in_a_store_of_its_own(address: str, n: int) -> Array:
    """Opens the store, and closes it, as if nobody else in this process had it."""
    with millpond.connect(address):
        return np.ones(n)


def echo(value: Any) -> Any:
    return value


def describe(*args: Any, **kwargs: Any) -> list[tuple[str, bool, float]]:
    """(type, can be written to, sum) of each argument."""
    values = [*args, *kwargs.values()]
    return [(type(v).__name__, getattr(getattr(v, "flags", None), "writeable", True), sum(v)) for v in values]


def double_in_store(ref: millpond.ObjectRef) -> millpond.ObjectRef:
    """Takes a ref and gives one."""
    return ref._store.put(ref.get() * 2)


def double_first(refs: list[millpond.ObjectRef]) -> millpond.ObjectRef:
    """The same, of a ref that is no argument by itself."""
    return double_in_store(refs[0])


def fail(message: str) -> None:
    raise LookupError(message)


def kill_oneself(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_sending(n: int) -> Array:
    """Its result is in the store and handed off, and never arrives."""
    Connection._send_bytes = kill_oneself  # type: ignore[attr-defined]
    return np.ones(n)


def announce_and_wait(directory: Path, value: Any = None) -> int:
    """Says that it runs, and goes on when it is told to."""
    (directory / str(os.getpid())).touch()
    wait_until(lambda: (directory / "go").exists(), 10)
    return 0 if value is None else len(value)


def start(value: Any) -> None:
    started_with.append(value)


def start_badly() -> None:
    raise LookupError("it cannot start")


def what_started() -> list[Any]:
    return started_with


def pid(_: Any = None) -> int:
    return os.getpid()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def judged(array: Array) -> int:
    """Bytes of a worker that its pool does not hold against it, once it has read an array."""
    import psutil
    from joblib.externals.loky import process_executor

    assert array.sum()
    return int(psutil.Process().memory_info().rss) - process_executor._get_memory_usage(os.getpid())


def die_while_joblib_sends(n: int) -> Array:
    """As above, in a worker of joblib."""
    from joblib.externals.loky.process_executor import _ResultItem

    _ResultItem.__reduce__ = kill_oneself
    return np.ones(n)


def die_while_loky_sends(n: int) -> Array:
    """As above, in a worker of loky."""
    from loky.process_executor import _ResultItem

    _ResultItem.__reduce__ = kill_oneself
    return np.ones(n)


class Unloadable:
    """Pickles, and fails when it is loaded."""

    def __reduce__(self) -> Any:
        return fail, ("cannot be loaded",)


class Tile:
    """A type whose memory pickle copies; tells how it came to be."""

    def __init__(self, data: Any, made_by: str = "itself") -> None:
        self.data = data
        self.made_by = made_by

    def __getstate__(self) -> dict[str, Any]:
        return {"data": self.data.tolist(), "made_by": self.made_by}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(np.array(state["data"]), state["made_by"])  # type: ignore[misc]


def rebuild_tile(buffer: Any, dtype: Any) -> Tile:
    return Tile(np.frombuffer(buffer, dtype), "rebuild_tile")


def reduce_tile(tile: Tile) -> tuple[Any, ...]:
    return rebuild_tile, (pickle.PickleBuffer(tile.data), tile.data.dtype)


def register_and_put(own: Any) -> Any:
    """A program of its own registers the rule, and puts."""
    millpond.register_reducer(Tile, reduce_tile)
    return own.store.put(Tile(np.arange(9)))


def describe_tile(tile: Tile) -> tuple[str, bool]:
    return tile.made_by, tile.data.flags.writeable


def writable(array: Any) -> tuple[bool, str, float]:
    """(can be written to, type, sum) of an array."""
    return array.flags.writeable, type(array).__name__, float(array.sum())


def sums_in_threads(arrays: list[Array]) -> list[float]:
    """A Parallel inside a call of another."""
    import joblib

    return joblib.Parallel(n_jobs=2)(joblib.delayed(np.sum)(array) for array in arrays)  # type: ignore[no-any-return]
