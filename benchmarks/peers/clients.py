"""The stores that are compared, each behind the same three calls. Runs in the environment of one of them.

A client answers lines on its standard input, each naming something to measure, with lines of JSON:
seconds per call, median over tens of milliseconds. Needs NumPy and the peer's own package, nothing else.
What is measured is what a user would write: a value in, a value out, serialization included on both sides.

Run: python clients.py NAME DIRECTORY [MEMORY]   (by run.py and through.py)
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import itertools
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MEMORY = 3 << 30
ROUND_S = 0.03
SMALL = {"id": 4711, "name": "millpond", "scores": [1.5, 2.5], "ok": True}


class Peer:
    """One store. `put` gives a key, which `get` and `drop` take."""

    package = ""

    def __init__(self, directory: Path) -> None:
        raise NotImplementedError

    def put(self, value: Any) -> Any:
        raise NotImplementedError

    def get(self, key: Any) -> Any:
        raise NotImplementedError

    def drop(self, key: Any) -> None:
        """The value is not needed any more."""

    def close(self) -> None:
        """Ends what it has started."""


class Millpond(Peer):
    package = "millpond"

    def __init__(self, directory: Path) -> None:
        import millpond

        self._store = millpond.Store(MEMORY, spill_dir=directory)
        self.put, self.get = self._store.put, self._store.get  # type: ignore[method-assign]

    def close(self) -> None:
        self._store.close()


class Ray(Peer):
    package = "ray"

    def __init__(self, directory: Path) -> None:
        import ray

        self._ray = ray
        ray.init(
            object_store_memory=MEMORY,
            num_cpus=1,
            object_spilling_directory=str(directory),
            include_dashboard=False,
            configure_logging=False,
            _temp_dir=str(directory),
        )
        self.put, self.get = ray.put, ray.get  # type: ignore[method-assign]

    def close(self) -> None:
        self._ray.shutdown()


class Plasma(Peer):
    package = "pyarrow"

    def __init__(self, directory: Path) -> None:
        import pyarrow.plasma as plasma

        socket = str(directory / "plasma")
        program = Path(sys.executable).with_name("plasma_store")
        self._server = subprocess.Popen(
            [program, "-m", str(MEMORY), "-s", socket], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        self._client = plasma.connect(socket, num_retries=50)
        self.put, self.get = self._client.put, self._client.get  # type: ignore[method-assign]

    def drop(self, key: Any) -> None:
        self._client.delete([key])

    def close(self) -> None:
        self._server.terminate()
        self._server.wait()


class Vineyard(Peer):
    package = "vineyard"

    def __init__(self, directory: Path) -> None:
        import vineyard

        socket = str(directory / "vineyard")
        command = [
            sys.executable,
            "-m",
            "vineyard",
            "--socket",
            socket,
            "--size",
            str(MEMORY),
            "--meta",
            "local",
        ]
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._client = _retry(lambda: vineyard.connect(socket))
        self.put, self.get = self._client.put, self._client.get  # type: ignore[method-assign]

    def drop(self, key: Any) -> None:
        self._client.delete(key)

    def close(self) -> None:
        self._server.terminate()
        self._server.wait()


class Redis(Peer):
    package = "redis"

    def __init__(self, directory: Path) -> None:
        import redis

        socket = str(directory / "redis")
        command = [
            "redis-server",
            "--port",
            "0",
            "--unixsocket",
            socket,
            "--save",
            "",
            "--dir",
            str(directory),
        ]
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        self._client = redis.Redis(unix_socket_path=socket)
        _retry(self._client.ping)
        self._names = itertools.count()

    def put(self, value: Any) -> Any:
        key = next(self._names)
        self._client.set(key, pickle.dumps(value, protocol=5))
        return key

    def get(self, key: Any) -> Any:
        return pickle.loads(self._client.get(key))

    def drop(self, key: Any) -> None:
        self._client.delete(key)

    def close(self) -> None:
        self._server.terminate()
        self._server.wait()


class SharedMemory(Peer):
    """Arrays only: what the standard library's documentation shows."""

    def __init__(self, directory: Path) -> None:
        from multiprocessing import shared_memory

        self._new = shared_memory.SharedMemory
        self._open: dict[str, Any] = {}

    def put(self, value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            raise TypeError("it takes bytes: pickling them in and out would be another store's work")
        block = self._new(create=True, size=max(1, value.nbytes))
        np.ndarray(value.shape, value.dtype, buffer=block.buf)[...] = value
        self._open[block.name] = block
        return block.name, value.shape, value.dtype

    def get(self, key: Any) -> Any:
        name, shape, dtype = key
        block = self._new(name=name)
        array = np.ndarray(shape, dtype, buffer=block.buf)
        self._open[name, "read"] = block  # must not be closed while the array lives
        return array

    def drop(self, key: Any) -> None:
        block = self._open.pop(key[0])
        block.close()
        block.unlink()

    def close(self) -> None:
        for name in [name for name in self._open if isinstance(name, str)]:
            self.drop((name,))


class Joblib(Peer):
    package = "joblib"

    def __init__(self, directory: Path) -> None:
        import joblib

        self._dump, self._load = joblib.dump, joblib.load
        self._directory = directory
        self._names = itertools.count()

    def put(self, value: Any) -> Any:
        path = self._directory / str(next(self._names))
        self._dump(value, path)
        return path

    def get(self, key: Any) -> Any:
        return self._load(key, mmap_mode="r")

    def drop(self, key: Any) -> None:
        key.unlink()


class Dask(Peer):
    """A worker's dict in its own process: nothing is shared or copied while it fits."""

    package = "distributed"

    def __init__(self, directory: Path) -> None:
        from distributed.spill import SpillBuffer

        self._buffer = SpillBuffer(str(directory), target=MEMORY)
        self._names = itertools.count()
        self.get = self._buffer.__getitem__  # type: ignore[method-assign]

    def put(self, value: Any) -> Any:
        key = str(next(self._names))
        self._buffer[key] = value
        return key

    def drop(self, key: Any) -> None:
        del self._buffer[key]


class Lmdb(Peer):
    """A file that is mapped: its memory is the system's page cache, which no limit here covers."""

    package = "lmdb"

    def __init__(self, directory: Path) -> None:
        import lmdb

        # Without sync, as none of the others waits for the disk at each put.
        self._database = lmdb.open(str(directory / "lmdb"), map_size=1 << 36, sync=False)
        self._names = itertools.count()

    def put(self, value: Any) -> Any:
        key = str(next(self._names)).encode()
        with self._database.begin(write=True) as writing:
            writing.put(key, memoryview(value).cast("B"))
        return key

    def get(self, key: Any) -> Any:
        self._reading = self._database.begin(buffers=True)  # the value is good until it ends
        return np.frombuffer(self._reading.get(key), np.uint64)

    def close(self) -> None:
        self._database.close()


PEERS: dict[str, type[Peer]] = {
    "millpond": Millpond,
    "ray": Ray,
    "plasma": Plasma,
    "vineyard": Vineyard,
    "redis": Redis,
    "shared_memory": SharedMemory,
    "joblib": Joblib,
    "dask": Dask,
    "lmdb": Lmdb,
}


def _retry(call: Callable[[], Any]) -> Any:
    for _ in range(100):
        try:
            return call()
        except Exception:
            time.sleep(0.1)
    return call()


def per_call(call: Callable[[], object], settle: Callable[[], object] = lambda: None) -> float:
    """Seconds per call, as many as fill ROUND_S. `settle` undoes them, outside of the time."""
    calls, taken = 1, 0.0
    while True:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        taken = time.perf_counter() - start
        settle()
        if taken >= ROUND_S:
            return taken / calls
        calls = max(calls * 2, int(calls * ROUND_S / max(taken, 1e-9)))


class Client:
    """What can be asked of a peer."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._keys: list[Any] = []
        self._dict: Any = None
        self._arrays: dict[int, tuple[Any, Any]] = {}

    def put_dict(self) -> float:
        return per_call(lambda: self._keys.append(self._peer.put(SMALL)), self._drop_all)

    def get_dict(self) -> float:
        self._dict = self._peer.put(SMALL) if self._dict is None else self._dict
        assert self._peer.get(self._dict) == SMALL
        return per_call(lambda: self._peer.get(self._dict))

    def get_array(self, nbytes: int) -> float:
        key, expected = self._stored(nbytes)
        assert np.array_equal(self._peer.get(key), expected)
        return per_call(lambda: self._peer.get(key))

    def put_array(self, nbytes: int) -> float:
        """The steady state: the process has put and dropped that size before."""
        array = np.random.default_rng(0).random(nbytes // 8)
        for _ in range(2):
            self._keys.append(self._peer.put(array))
            self._drop_all()
        start = time.perf_counter()
        self._keys.append(self._peer.put(array))
        taken = time.perf_counter() - start
        self._drop_all()
        return taken

    def through(self, data: int, array_bytes: int, per_step: int) -> dict[str, Any]:
        """Puts noise, more than memory holds, and reads it in the same order: seconds of each step."""
        arrays = [
            np.random.default_rng(i).integers(0, 2**64, array_bytes // 8, dtype=np.uint64) for i in range(4)
        ]
        steps = range(data // array_bytes // per_step)
        put, get = [], []
        for _ in steps:
            values = [arrays[i % 4].copy() for i in range(per_step)]  # some stores keep what they are given
            start = time.perf_counter()
            self._keys.extend(self._peer.put(value) for value in values)
            put.append(time.perf_counter() - start)
            del values
        start = time.perf_counter()
        os.sync()
        synced = time.perf_counter() - start
        with contextlib.suppress(OSError):  # only root may
            Path("/proc/sys/vm/drop_caches").write_text("1")
        for step in steps:
            start = time.perf_counter()
            for number in range(step * per_step, (step + 1) * per_step):
                value = self._peer.get(self._keys[number])
                assert value[::512].sum() == arrays[number % 4][::512].sum(), f"array {number} is wrong"
            get.append(time.perf_counter() - start)
        return {"put": put, "sync": synced, "get": get}

    def _stored(self, nbytes: int) -> tuple[Any, Any]:
        if nbytes not in self._arrays:
            for key, _ in self._arrays.values():
                self._peer.drop(key)
            self._arrays.clear()
            array = np.random.default_rng(nbytes).random(nbytes // 8)
            self._arrays[nbytes] = self._peer.put(array), array
        return self._arrays[nbytes]

    def _drop_all(self) -> None:
        while self._keys:
            self._peer.drop(self._keys.pop())


def main(name: str, directory: str, memory: str = str(MEMORY)) -> None:
    """Answers until the input ends."""
    globals()["MEMORY"] = int(memory)
    answers = sys.stdout
    sys.stdout = sys.stderr  # some peers print
    kind = PEERS[name]
    peer = kind(Path(directory))
    version = importlib.metadata.version(kind.package) if kind.package else sys.version.split()[0]
    print(json.dumps({"version": version}), file=answers, flush=True)
    client = Client(peer)
    try:
        for line in sys.stdin:
            operation, *arguments = json.loads(line)
            try:
                answer: dict[str, Any] = {"seconds": getattr(client, operation)(*arguments)}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"[:200]}
            print(json.dumps(answer), file=answers, flush=True)
    finally:
        peer.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
