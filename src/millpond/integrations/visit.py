"""A worker of loky in the store of its calls.

loky keeps its workers for whoever comes next, joblib too. So they enter the store that a call names, and
leave it when they get no more calls from it.
Not here: calls (calls.py), who has the workers (joblib.py, loky.py).
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from millpond import Store, connect
from millpond.integrations.own_memory import own_memory
from millpond.threads import start

__all__ = ["Visit"]

IDLE_S = 0.25
"""A worker leaves a store when it had no call for one to two times that long."""


class Visit:
    """A worker's membership in a store.

    process_executor: that module of loky, which judges workers by their memory.
    """

    def __init__(self, process_executor: ModuleType) -> None:
        self._lock = threading.Lock()
        self._process_executor = process_executor
        self._store: Store | None = None
        self._busy = self._used = False

    @contextmanager
    def to(self, address: str) -> Iterator[Store]:
        """The store, for one call."""
        with self._lock:
            if self._store is None or self._store.closed or self._store.address != address:
                self._enter(address)
            store = self._store
            assert store is not None
            self._busy = self._used = True
        try:
            yield store
        finally:
            self._busy = False

    def _enter(self, address: str) -> None:
        watched = self._store is not None
        if self._store is not None:
            self._store.close()
        self._store = connect(address)
        # A worker that has grown by 300 MB is replaced: what it reads in a store is not its own.
        self._process_executor._get_memory_usage = _own_memory  # type: ignore[attr-defined]
        if not watched:
            start(threading.Thread(target=self._watch, name="millpond-visit", daemon=True))

    def _watch(self) -> None:
        while True:
            time.sleep(IDLE_S)
            with self._lock:
                if not self._busy and not self._used:
                    if self._store is not None:
                        self._store.close()
                    self._store = None
                    return
                self._used = False


def _own_memory(pid: int, force_gc: bool = False) -> int:
    if force_gc:
        gc.collect()
    return own_memory(pid)
