"""An event between threads that an interrupt cannot break.

`threading.Event` takes a lock in lines of Python: an exception that a signal's handler raises between two of
them leaves it locked for ever, and whoever sets or awaits the event next with it. Here each change is one
call of compiled code.
Not here: conditions, and events between processes (the kernel has those).
"""

from __future__ import annotations

from contextlib import suppress
from threading import Lock

SLICE_S = 1.0
"""Who is interrupted between the two steps of `set` wakes nobody: so nobody sleeps longer without a look."""


class Flag:
    """Set or not; the calls are those of `threading.Event`, but a wait may return early."""

    def __init__(self) -> None:
        self._set = False
        # Who waits acquires it, who sets releases it. Not a SimpleQueue: its `get` waits for ever if the
        # thread is held up for as long as its timeout (CPython 3.11).
        self._bell = Lock()
        self._bell.acquire()

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._set

    def set(self) -> None:
        """Sets it and wakes whoever waits."""
        self._set = True
        self._ring()

    def _ring(self) -> None:
        with suppress(RuntimeError):  # it rings already
            self._bell.release()

    def clear(self) -> None:
        """Takes it back. One thread clears, always the same."""
        self._set = False
        self._bell.acquire(blocking=False)

    def wait(self, timeout: float = SLICE_S) -> bool:
        """Sleeps until it is set, at most `timeout` seconds and no longer than a slice; whether it is set."""
        if self.is_set():
            return True
        if self._bell.acquire(timeout=max(0, min(timeout, SLICE_S))) and self.is_set():
            self._ring()  # for the next one who waits
        return self.is_set()
