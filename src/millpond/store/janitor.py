"""The helper thread: what must happen even when nobody calls.

Every 0.7 s: reap dead members, let hand-offs lapse, do put-off decrements, unlink files that no object
needs, collect Python's garbage if a member that is short of memory has asked for it, give idle memory back
(whoever comes first, for all). All of it is idempotent and also done on slow paths, so two helpers or none
are harmless.
Invariants: at most one thread per member; it stops before a fork and comes back after it.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING

from millpond import log
from millpond.flag import Flag
from millpond.threads import FORK_PATIENCE_S, await_end, start

if TYPE_CHECKING:
    from millpond.store.store import Store

INTERVAL_S = 0.7
GC_INTERVAL_S = 10.0


class Janitor:
    """Runs `Store._tidy` in the background, from the first `start` to `stop`."""

    def __init__(self, store: Store) -> None:
        self._store = weakref.ref(store)
        self._lock = threading.RLock()  # a destructor or a signal's handler may close the store anywhere
        self._thread: threading.Thread | None = None
        self._ending = Flag()  # each thread has one of its own
        self._epoch, self._collected = store._gc_epoch(), 0.0
        _janitors.add(self)

    def start(self) -> None:
        """Starts the thread if there is none and the store is open. Cheap when there is."""
        store = self._store()
        if self._thread is not None or store is None or store.closed:
            return
        with self._lock:
            if self._thread is None:
                ending = Flag()
                thread = threading.Thread(
                    target=self._run, args=(ending,), name="millpond-janitor", daemon=True
                )
                self._ending = ending
                if start(thread):  # else slow paths do the work
                    self._thread = thread

    def stop(self, timeout: float | None = None) -> bool:
        """Ends the thread and waits for it, unless it may be waiting for this one, `timeout` seconds at most;
        whether there was one. Harmless in the thread itself."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._ending.set()
        if thread is None:
            return False
        store = self._store()
        await_end(thread, store._room if store is not None else None, timeout)
        return True

    def _collect_garbage(self, store: Store) -> None:
        """Cycles of Python objects may hold refs and views. Seldom: looking for them is slow."""
        epoch, now = store._gc_epoch(), time.monotonic()
        if epoch != self._epoch and now - self._collected > GC_INTERVAL_S:
            self._epoch, self._collected = epoch, now
            gc.collect()

    def _run(self, ending: Flag) -> None:
        with self._lock:
            if self._thread is not threading.current_thread():
                return  # whoever started it was interrupted, and does not know of it
        while not ending.wait(INTERVAL_S):
            store = self._store()
            if store is None or store.closed:
                return
            try:
                store._tidy()
                store._relieve()
                self._collect_garbage(store)
            except BaseException:  # a policy may raise anything
                if not store.closed:
                    log.exception("background work of a store failed; it is tried again")
            del store


_janitors: weakref.WeakSet[Janitor] = weakref.WeakSet()
_stopped: list[Janitor] = []


def _before_fork() -> None:
    for janitor in list(_janitors):
        if janitor.stop(FORK_PATIENCE_S):
            _stopped.append(janitor)  # while we wait for its end, another thread may fork as well


def _after_fork_in_parent() -> None:
    _stopped.clear()
    for janitor in list(_janitors):  # the child is a member that may die unnoticed
        janitor.start()


def _after_fork_in_child() -> None:
    for janitor in list(_janitors):
        janitor._lock = threading.RLock()
        if janitor._thread is not None:  # another thread has started it meanwhile, for the parent only
            janitor._thread = None
            _stopped.append(janitor)
    while _stopped:
        _stopped.pop().start()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
