"""Waiting for the end of a thread that works in the background, where that cannot be a wait for oneself.

Not here: the threads (janitor.py, spiller.py, prefetch.py).
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from millpond.store.room import Room

__all__ = ["await_end", "may_await"]


def may_await(thread: threading.Thread | None, room: Room | None) -> bool:
    """Whether this thread is another one, and not in the middle of what that one may be waiting for."""
    return thread is not threading.current_thread() and (room is None or not room.in_the_middle())


def await_end(thread: threading.Thread, room: Room | None) -> None:
    """Waits for the end of `thread`, if this one may.

    `join` returns a moment before the system has let the thread go; a fork in that moment would be one of
    a process with two threads, of which Python warns.
    """
    if not may_await(thread, room):
        return
    thread.join()
    deadline = time.monotonic() + 0.1
    while os.path.exists(f"/proc/self/task/{thread.native_id}") and time.monotonic() < deadline:
        time.sleep(0)
