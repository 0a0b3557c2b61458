"""Starting a thread that works in the background, and waiting for its end where that is no wait for oneself.

Not here: the threads (janitor.py, spiller.py, prefetch.py).
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from millpond.store.room import Room

__all__ = ["FORK_PATIENCE_S", "await_end", "may_await", "start"]

FORK_PATIENCE_S = 2.0
"""A fork waits so long for each thread: one that waits for a disk may do so for ever. The child has not got
it then, as it has none of the threads of others, and makes all locks anew."""


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
