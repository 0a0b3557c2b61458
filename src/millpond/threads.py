"""Starting a thread that works in the background, and waiting for its end where that is no wait for oneself.

Not here: the threads (store/janitor.py, store/spiller.py, store/prefetch.py, spill/overlap.py).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from types import FrameType
from typing import Final, Protocol

__all__ = ["FORK_PATIENCE_S", "await_calls", "await_end", "may_await", "start"]

FORK_PATIENCE_S: Final = 2.0
"""A fork waits so long for each thread: one that waits for a disk may do so for ever. The child has not got
it then, as it has none of the threads of others, and makes all locks anew."""

_POLL_S: Final = 0.001


class Room(Protocol):
    """What a background thread works in."""

    def in_the_middle(self) -> bool:
        """Whether this thread holds what others may be waiting for."""


def start(thread: threading.Thread) -> bool:
    """Starts `thread`, unless there are too many or the interpreter ends. What a signal's handler raises
    meanwhile comes out as it is.

    `Thread.start` takes every exception for a thread that has not begun, and loses it to a KeyError of its
    own (CPython 3.11) when this one has.
    """
    try:
        thread.start()
    except RuntimeError:
        return False
    except KeyError as error:
        raise error.__context__ or error from None
    return True


def may_await(thread: threading.Thread | None, room: Room | None) -> bool:
    """Whether this thread is another one, and not in the middle of what that one may be waiting for."""
    return thread is not threading.current_thread() and (room is None or not room.in_the_middle())


def await_end(thread: threading.Thread, room: Room | None, timeout: float | None = None) -> None:
    """Waits for the end of `thread`, if this one may: `timeout` seconds at most, None: as long as it takes.

    `join` returns a moment before the system has let the thread go; a fork in that moment would be one of
    a process with two threads, of which Python warns.
    """
    if not may_await(thread, room):
        return
    thread.join(timeout)
    if thread.is_alive():
        return
    deadline = time.monotonic() + 0.1
    while os.path.exists(f"/proc/self/task/{thread.native_id}") and time.monotonic() < deadline:
        time.sleep(0)


def await_calls(packages: tuple[str, ...], seconds: float) -> bool:
    """Waits until no other thread is in the middle of a function of these packages, at most so long; whether
    that is so.

    For the end of the interpreter: there, a daemon thread that wants the GIL back is ended where it is, by
    unwinding its stack, and C++ that must not be unwound (NumPy's sorts, for one) aborts the process instead.
    """
    deadline = time.monotonic() + seconds
    while _called_in(packages):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _called_in(packages: tuple[str, ...]) -> bool:
    own = threading.get_ident()
    frames = sys._current_frames()
    return any(thread != own and _reaches(frame, packages) for thread, frame in frames.items())


def _reaches(frame: FrameType | None, packages: tuple[str, ...]) -> bool:
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(packages):
            return True
        frame = frame.f_back
    return False
