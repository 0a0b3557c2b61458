"""Restoring ahead of need, in the background.

One thread per store, from the first request to the end of the last; requests are served in order. What is
restored counts as just used, so the coldest objects go for it; each request takes at most half of the
memory limit, and no more than was free or could be evicted when its turn came: a working set in use
and what the same request has restored stay.
Invariants: nothing is raised here: what cannot be restored says why at its get; the thread stops before
a fork and goes on after it, in the parent only; `stop` waits for it.
Not here: how objects are restored (`ahead`).
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Final

from millpond import log
from millpond.errors import MillpondError
from millpond.hot import Core, ObjectRef, Using
from millpond.threads import FORK_PATIENCE_S, await_end, start

if TYPE_CHECKING:
    from millpond.store.ahead import Ahead

SHARE: Final = 2
"""A request restores at most this part of the memory limit."""


def byte_limit(memory_limit: int, free: int, evictable: int) -> int:
    """Bytes that one request may restore, given the bytes that are free and those that could be evicted."""
    return max(0, min(memory_limit // SHARE, free + evictable))


class Prefetch:
    """The requests of one process to one store, and the thread that serves them."""

    def __init__(self, core: Core, ahead: Ahead | None) -> None:
        self._core = weakref.ref(core)
        self._ahead = ahead
        self._lock = threading.RLock()  # a destructor or a signal's handler may close the store anywhere
        self._requests: deque[list[ObjectRef]] = deque()
        self._thread: threading.Thread | None = None
        self._stopping = False
        _all.add(self)

    def add(self, refs: list[ObjectRef]) -> None:
        """Restores `refs` in the background. They are kept alive until their turn is over."""
        if self._ahead is not None and refs:
            with self._lock:
                self._requests.append(refs)
            self.start()

    def start(self) -> None:
        """Starts the thread if there is work and no thread."""
        with self._lock:
            if self._thread is not None or self._stopping or not self._requests:
                return
            thread = threading.Thread(target=self._run, name="millpond-prefetch", daemon=True)
            if start(thread):
                self._thread = thread
            else:
                self._requests.clear()  # gets will do the work

    def stop(self, forget: bool, timeout: float | None = None) -> None:
        """Ends the thread at its next step and waits for it, unless it may be waiting for this one, `timeout`
        seconds at most; with `forget`, also all requests."""
        with self._lock:
            self._stopping = True
            thread = self._thread
            if forget:
                self._requests.clear()
        try:
            if thread is not None:
                await_end(thread, self._ahead.room if self._ahead is not None else None, timeout)
        finally:
            self._stopping = False

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._thread is not threading.current_thread():
                    return  # whoever started it was interrupted, and does not know of it
                if self._stopping or not self._requests:
                    self._thread = None
                    return
                refs = self._requests[0]
            try:
                self._serve(refs)
            except (MillpondError, OSError):
                pass  # the gets will say
            except BaseException:  # a policy may raise anything
                log.exception("a prefetch failed; its objects stay on disk until they are read")
            with self._lock:
                if not self._stopping and self._requests and self._requests[0] is refs:
                    self._requests.popleft()
            del refs

    def _serve(self, refs: list[ObjectRef]) -> None:
        core, ahead = self._core(), self._ahead
        if core is None or ahead is None:
            return
        with Using(core):
            ahead.restore(
                refs,
                range(len(refs)),
                lambda batch, first, stop: batch.release(first, stop),
                lambda: self._stopping or core.closed,
                self._byte_limit(core),
            )

    def _byte_limit(self, core: Core) -> int:
        totals = core._totals()
        free = totals["memory_limit"] - totals["committed_bytes"] + totals["free_bytes"]
        return byte_limit(totals["memory_limit"], free, int(core._candidates()["size"].sum()))


_all: weakref.WeakSet[Prefetch] = weakref.WeakSet()


def _before_fork() -> None:
    for prefetch in list(_all):
        prefetch.stop(forget=False, timeout=FORK_PATIENCE_S)


def _after_fork_in_parent() -> None:
    for prefetch in list(_all):
        prefetch.start()


def _after_fork_in_child() -> None:
    for prefetch in list(_all):
        prefetch._lock = threading.RLock()
        prefetch._requests = deque()
        prefetch._thread = None
        prefetch._stopping = False


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
