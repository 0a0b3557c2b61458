"""An event between threads that an interrupt cannot break.

`threading.Event` takes a lock in lines of Python: an exception that a signal's handler raises between two of
them leaves it locked for ever, and whoever sets or awaits the event next with it. Here each change is one
call of compiled code.
Not here: conditions, and events between processes (the kernel has those).
"""

from __future__ import annotations

from queue import Empty, SimpleQueue

SLICE_S = 1.0
"""Who is interrupted between the two steps of `set` wakes nobody: so nobody sleeps longer without a look."""


class Flag:
    """Set or not; the calls are those of `threading.Event`, but a wait may return early."""

    def __init__(self) -> None:
        self._set = False
        self._bells: SimpleQueue[None] = SimpleQueue()

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._set

    def set(self) -> None:
        """Sets it and wakes whoever waits."""
        self._set = True
        self._bells.put(None)

    def clear(self) -> None:
        """Takes it back. One thread clears, always the same."""
        self._set = False
        try:
            while True:
                self._bells.get_nowait()
        except Empty:
            pass

    def wait(self, timeout: float = SLICE_S) -> bool:
        """Sleeps until it is set, at most `timeout` seconds and no longer than a slice; whether it is set."""
        if self.is_set():
            return True
        try:
            self._bells.get(timeout=min(timeout, SLICE_S))
        except Empty:
            return self.is_set()
        if self.is_set():
            self._bells.put(None)  # for the next one who waits
        return self.is_set()
