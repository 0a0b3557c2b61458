"""One call under way in a thread of its own, while the caller prepares the next.

Disk and processor take turns otherwise: framing and checksums cost a third of the time of a write.
Invariants: at most one call is under way; leaving the `with` block waits for it, whatever happened, so
that buffers are free again; where no thread can be started (interpreter shutdown), the call just runs.
Threads live for one call: none is left to disturb a fork.
Not here: what is called.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Event, Thread
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Overlap(Generic[T]):
    """A slot for one call; a context manager."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._done = Event()
        self._results: list[T] = []
        self._errors: list[BaseException] = []

    def start(self, call: Callable[[], T]) -> None:
        """Starts `call`; `finish` must have been called since the last start."""
        self._done.clear()
        thread = Thread(target=self._run, args=(call,), name="millpond-disk", daemon=True)
        try:
            thread.start()
            self._thread = thread
        except RuntimeError:
            self._run(call)

    def _run(self, call: Callable[[], T]) -> None:
        try:
            self._results.append(call())
        except BaseException as error:
            self._errors.append(error)
        finally:
            self._done.set()

    def finish(self) -> T | None:
        """Waits for the call; returns what it returned or raises what it raised. None: there was none."""
        self._wait()
        if self._errors:
            raise self._errors.pop()
        return self._results.pop() if self._results else None

    def _wait(self) -> None:
        interrupt = None
        while self._thread is not None:
            try:
                self._done.wait()  # before Python 3.13, a join that was interrupted takes the thread for dead
                thread, self._thread = self._thread, None
                thread.join()
            except BaseException as error:  # the call must not be left at work on memory that is used again
                interrupt = error
        if interrupt is not None:
            raise interrupt

    def __enter__(self) -> Overlap[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait()
