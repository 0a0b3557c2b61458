"""A store or several, the processes that use them, and a check that nothing of them is left."""

from __future__ import annotations

import gc
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import millpond
from millpond.store import registry
from workers import Worker, inherited, wait_until


def residue(store: millpond.Store) -> dict[str, Any]:
    """What is wrong with a store in which nothing should be left."""
    store._tidy()
    stats, totals = store.stats(), store._totals()
    found = {
        "faults": store.check(),
        "objects": list(store.objects()),
        "deleted but not gone": len(store._survey()),
        "tokens": totals["tokens"],
        "other slots": {pool: used for pool, used in totals["in_use"].items() if used},
        "other members": stats.members - 1,
        "used memory": stats.committed_bytes - stats.warm_bytes,
        "disk": stats.disk_bytes,
        "overflow": stats.overflow_bytes,
    }
    return {key: value for key, value in found.items() if value}


def settled(store: millpond.Store, timeout: float = 10.0) -> dict[str, Any]:
    """What `residue` found at last: other threads and the dead may take a moment. When it was nothing, it is
    not looked at once more, since the janitor may just be giving memory back."""
    found: dict[str, Any] = {}

    def nothing() -> bool:
        nonlocal found
        found = residue(store)
        return not found

    with suppress(AssertionError):
        wait_until(nothing, timeout)
    return found


def descriptor_of(store: millpond.Store, what: str) -> int:
    """This process's descriptor of the store's memory: "table" or "arena"."""
    wanted = f"millpond-{what}-{store.uuid.hex()}"
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        if os.path.lexists(path) and wanted in os.readlink(path):
            return int(name)
    raise AssertionError(f"no {wanted}")


class Pond:
    """Stores and workers of one test."""

    def __init__(self, directory: Path) -> None:
        self.registry = directory / "registry"
        self.spill = directory / "spill"
        self._stores: list[millpond.Store] = []
        self._workers: list[Worker] = []

    def store(self, memory_limit: int | str = "64MiB", **options: Any) -> millpond.Store:
        """A new store that spills here unless told otherwise."""
        store = millpond.Store(memory_limit, **{"spill_dir": self.spill, **options})
        self._stores.append(store)
        return store

    def worker(self, program: bool = False) -> Worker:
        """Another process: a fork of this one, or a program that imports everything anew."""
        self._workers.append(Worker(program))
        return self._workers[-1]

    def member(self, store: millpond.Store) -> Worker:
        """A program that has connected to `store` as `own.store`."""
        worker = self.worker(program=True)
        worker.run(join, store.address)
        return worker

    def spilled_files(self) -> list[Path]:
        """All segment files."""
        return sorted(self.spill.rglob("*.seg"))

    def end_workers(self) -> None:
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def close(self) -> None:
        """Closes all without asking what is left."""
        inherited.clear()
        for worker in self._workers:
            with suppress(ProcessLookupError):
                worker.kill()
        for store in self._stores:
            store.close()

    def close_empty(self) -> None:
        """Ends the workers, asserts that nothing is left in the stores, closes them."""
        self.end_workers()
        inherited.clear()
        for store in self._stores:
            if not store.closed:
                for info in store.objects():
                    if info.name:
                        store.delete(info.name)
                if residue(store):
                    gc.collect()
                assert settled(store) == {}
            store.close()
        self._stores.clear()
        if self.registry.exists():
            registry.sweep(str(self.registry))  # of programs that were killed
        assert sorted(path.name for path in self.registry.glob("*")) in ([], ["dirlock"])
        assert [path for path in self.spill.rglob("*") if path.parent != self.spill] == []


def join(own: Any, address: str) -> None:
    """A worker connects to a store."""
    import millpond

    own.store = millpond.connect(address)


def connection(own: Any, address: str) -> str:
    """A worker tries to connect to a store: "joined", or the error."""
    try:
        millpond.connect(address).close()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "joined"
