"""The spiller: a thread that makes room ahead of the puts, so that disk and memory work at the same time.

A put that finds no room evicts for itself and wakes the spiller, which evicts as well: one of the two
prepares while the other one writes, and the next puts find room. It goes on until an eighth of the limit is
free, looks again every few milliseconds, and ends when nothing was to be done for a moment.
Invariants: at most one thread per member, and none without pressure; it stops before a fork, and the next
put without room brings it back; it has no rule of its own about what goes (`room`); a step that fails is
logged once and not tried again for a second, and whoever needs the room meets the error himself.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from functools import partial
from typing import TYPE_CHECKING

from millpond import log
from millpond.errors import StoreClosedError
from millpond.flag import Flag
from millpond.threads import FORK_PATIENCE_S, await_end, may_await, start

if TYPE_CHECKING:
    from millpond.store.room import Room

LOOK_S = 0.002
LINGER_S = 0.25
RETRY_S = 1.0
SLICE_S = 0.05


class Spiller:
    """Runs `Room.evict_ahead` in the background, from `wake` until nothing is to be done, or `stop`."""

    def __init__(self, room: Room) -> None:
        self.freed = 0
        """Bytes that the thread has freed so far."""
        self._room = weakref.ref(room)
        self._failed = False
        self._rest_until = 0.0
        self._reset()
        _spillers.add(self)

    def _reset(self) -> None:
        self._lock = threading.RLock()  # a destructor or a signal's handler may close the store anywhere
        self._thread: threading.Thread | None = None
        self._wanted = Flag()
        self._idle = Flag()
        self._idle.set()
        self._stopping = Flag()  # each thread has one of its own

    def wake(self) -> None:
        """Starts the thread if there is none, unless it has failed just now. Cheap when there is."""
        if (self._thread is not None and self._wanted.is_set()) or self._rest_until > time.monotonic():
            return
        with self._lock:
            self._wanted.set()
            if self._thread is None:
                stopping = Flag()
                run = partial(self._run, stopping)
                thread = threading.Thread(target=run, name="millpond-spiller", daemon=True)
                self._stopping = stopping
                if start(thread):  # else puts do the work
                    self._thread = thread

    def await_step(self, seen: int) -> bool:
        """Waits for the step that the thread is at, if any; whether `freed` is not `seen` any more."""
        if may_await(self._thread, self._room()):
            while self.freed == seen and not self._idle.wait(SLICE_S):
                pass
        return self.freed != seen

    def stop(self, timeout: float | None = None) -> None:
        """Ends the thread and waits for it, unless it may be waiting for this one; `timeout` seconds at most.
        Harmless in itself."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._stopping.set()
        self._wanted.set()
        if thread is not None:
            await_end(thread, self._room(), timeout)

    def _run(self, stopping: Flag) -> None:
        with self._lock:
            if self._thread is not threading.current_thread():
                return  # whoever started it was interrupted, and does not know of it
        worked = time.monotonic()
        while not stopping.is_set():
            self._wanted.clear()
            if self._step(stopping):
                worked = time.monotonic()
            elif self._rest_until > worked or time.monotonic() - worked > LINGER_S:
                with self._lock:
                    if self._wanted.is_set() and self._rest_until <= worked:
                        continue  # at the last moment
                    if self._thread is threading.current_thread():
                        self._thread = None
                    return
            else:
                self._wanted.wait(LOOK_S)

    def _step(self, stopping: Flag) -> bool:
        """Whether it freed anything."""
        room = self._room()
        if room is None:
            stopping.set()
            return False
        self._idle.clear()
        try:
            freed = room.evict_ahead()
            self.freed += freed
            self._failed = self._failed and not freed
            return freed > 0
        except StoreClosedError:
            stopping.set()
        except BaseException as error:  # a policy or a codec may raise anything
            self._rest_until = time.monotonic() + RETRY_S
            if not self._failed:
                log.warning("spilling ahead of the puts failed, they spill for themselves: %s", str(error))
            self._failed = True
        finally:
            self._idle.set()
        return False


_spillers: weakref.WeakSet[Spiller] = weakref.WeakSet()


def _before_fork() -> None:
    for spiller in list(_spillers):
        spiller.stop(FORK_PATIENCE_S)


def _after_fork_in_child() -> None:
    """Another thread may have started it after the stop, for the parent only."""
    for spiller in list(_spillers):
        spiller._reset()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
