"""SIGTERM: a process that created a store takes it away before it dies of the signal.

By default SIGTERM ends a process at once, and nothing of it runs. So whoever creates a store, in the main
thread and with the default action in place, gets a handler that gives its stores up and then dies of the
signal as before. A handler of the program's own, set before or after, is left alone.
Invariants: nothing here waits for a thread of this process, which may wait for what the interrupted code
holds; a forked child has the default action again, so that ending a worker takes no longer than it did.
Not here: what is left when the process had no chance (the registry's sweep).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

_leave: Callable[[], None] | None = None


def leave_at_sigterm(leave: Callable[[], None]) -> None:
    """Has `leave` called before SIGTERM ends this process, unless the program has a handler for it."""
    global _leave
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        _leave = leave
        with suppress(ValueError):  # another interpreter than the main one
            signal.signal(signal.SIGTERM, _end)


def _end(number: int, _: FrameType | None) -> None:
    try:
        if _leave is not None:
            _leave()
    finally:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _after_fork_in_child() -> None:
    if signal.getsignal(signal.SIGTERM) is _end:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_after_fork_in_child)
