"""Other processes for tests, and threads. Processes carry out functions that tests send them until they end.

A function gets the worker's own namespace first, which lasts as long as the worker, then the arguments.
A forked worker starts with copies of the test's refs; a program starts with nothing and imports all anew.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import cloudpickle

TIMEOUT_S = 30.0

inherited: list[Any] = []
"""What a test puts here before it forks a worker is found here by the functions that run there."""


def wait_until(condition: Callable[[], Any], timeout: float = 30.0) -> Any:
    """What `condition` gives once that is true; fails when it does not become true in time."""
    deadline = time.monotonic() + timeout
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {condition}"
        time.sleep(0.002)
    return found


@contextmanager
def in_threads(
    work: Callable[[int], object], count: int, stop: threading.Event | None = None, timeout: float = TIMEOUT_S
) -> Iterator[None]:
    """So many threads are at `work`, each with a number from 0, all begun together.

    Leaving the block sets `stop` and waits. It raises the first error of a thread, and fails if one does not
    come to its end within `timeout` seconds.
    """
    errors: list[BaseException] = []
    begin = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            begin.wait(timeout)
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        if stop is not None:
            stop.set()
        for thread in threads:
            thread.join(timeout)
    assert [thread for thread in threads if thread.is_alive()] == [], f"still at work after {timeout} s"
    if errors:
        raise errors[0]


def serve(pipe: Connection, own: Any = None) -> None:
    """The life of a worker, which starts with what is in the namespace `own`."""
    own = SimpleNamespace() if own is None else own
    while True:
        try:
            message = pipe.recv_bytes()
        except (EOFError, ConnectionResetError):
            return
        if not message:
            return
        pipe.send_bytes(_perform(own, message))


def _perform(own: Any, message: bytes) -> bytes:
    try:
        function, arguments = pickle.loads(message)
        return cloudpickle.dumps((function(own, *arguments), None))
    except BaseException as error:
        error.add_note("in the worker:\n" + traceback.format_exc())
        return cloudpickle.dumps((None, (error, error.__notes__)))


class Worker:
    """A process, forked from this one unless it is told to be a program of its own."""

    def __init__(self, program: bool = False) -> None:
        self._pipe, theirs = Pipe()
        self._process = None
        if program:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
            self.pid = self._process.pid
        else:
            self.pid = os.fork()
            if self.pid == 0:
                try:
                    self._pipe.close()
                    serve(theirs)
                finally:
                    os._exit(0)
        theirs.close()
        self.alive = True

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function returns there; raises what it raises."""
        self.start(function, *arguments)
        return self.result()

    def start(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Sends a function; `result` must follow before the next one."""
        module = sys.modules[function.__module__]
        if module.__name__.rpartition(".")[2].startswith("test_"):
            cloudpickle.register_pickle_by_value(module)  # a program cannot import it
        self._pipe.send_bytes(cloudpickle.dumps((function, arguments)))

    def answered(self, timeout: float = 0.0) -> bool:
        """Whether the result is there, or comes within `timeout` seconds."""
        return self._pipe.poll(timeout)

    def result(self, timeout: float = TIMEOUT_S) -> Any:
        """What the function that was sent last has returned; raises what it raised."""
        if not self.answered(timeout):
            raise AssertionError(f"worker {self.pid} has not answered for {timeout} s")
        value, failure = pickle.loads(self._pipe.recv_bytes())
        if failure is not None:
            error, notes = failure
            error.__notes__ = notes
            raise error
        return value

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Ends the process by a signal and waits for that."""
        os.kill(self.pid, number)
        self._ended()

    def end(self) -> int:
        """Lets the process end as it likes to; its exit status. Idempotent."""
        if not self.alive:
            return 0
        with suppress(BrokenPipeError):
            self._pipe.send_bytes(b"")
        return self._ended()

    def _ended(self) -> int:
        self.alive = False
        self._pipe.close()
        if self._process is not None:
            return self._process.wait(TIMEOUT_S)
        deadline = time.monotonic() + TIMEOUT_S
        while (found := os.waitpid(self.pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise AssertionError(f"worker {self.pid} did not end for {TIMEOUT_S} s")
            time.sleep(0.002)
        return os.waitstatus_to_exitcode(found[1])


def total(ref: Any, answers: Any) -> None:
    """What processes of multiprocessing run: the sum of an array, and a ref to a new one, into a queue."""
    array = ref.get()
    answers.put((os.getpid(), int(array.sum()), ref._store.put(array + 1)))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
