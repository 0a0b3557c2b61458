"""`ProcessPoolExecutor`: the one of concurrent.futures, with large arguments and results in a store.

Invariants: as in calls.py; a private store ends with the pool, its pending calls and its unread results.
Not here: the pool (concurrent.futures), how calls and results travel (calls.py).
"""

from __future__ import annotations

import concurrent.futures
import io
import itertools
import multiprocessing
import multiprocessing.util
import os
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.context import BaseContext
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple, TypeVar

from millpond import ObjectRef, Store, connect
from millpond.integrations.calls import (
    SHARE_ABOVE,
    Arrived,
    Call,
    Lease,
    Outcome,
    Task,
    by_value,
    carried,
    check_options,
)
from millpond.threads import start
from millpond.values import reducers

__all__ = ["Future", "MappingExecutor", "ProcessPoolExecutor", "perform"]

T = TypeVar("T")


class MappingExecutor(concurrent.futures.Executor):
    """An executor whose `map` takes refs for values, and reads no further ahead than it is told."""

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """As in the standard library, where refs among the items arrive as values.

        buffersize: chunks that are submitted and not yet read, at most: `iterables` are read no further
        ahead, so that a generator may yield more than fits into memory. None: all are submitted at once.
        """
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if chunksize < 1 or (buffersize is not None and buffersize < 1):
            raise ValueError("buffersize and chunksize must be >= 1")
        items = zip(*iterables, strict=False)
        chunks = iter(lambda: list(itertools.islice(items, chunksize)), [])
        end = None if timeout is None else time.monotonic() + timeout
        calls = (self.submit(_each, fn, chunk) for chunk in chunks)
        return _results(calls, deque(itertools.islice(calls, buffersize)), end)


class ProcessPoolExecutor(MappingExecutor, concurrent.futures.ProcessPoolExecutor):
    """A pool of processes that reads large arguments and results in shared memory instead of copying them.

    Everything is as in concurrent.futures, and besides:

    - A ref among the arguments of a call arrives as its value. Refs inside lists, dicts and so on stay refs,
      and so does a ref that a function returns.
    - A call, or a result, whose pickle has more than `share_above` bytes goes through the store. Its arrays
      arrive as read-only views; the memory is released when the last view is gone.
    - A function's error to load its arguments is that call's error and does not break the pool.
    - Workers end when the process that made them is killed.

    store: where large values go; it is left open. None: a private one, which ends with `shutdown`, or when
        the last result that was not read by then has been read or dropped.
    share_above: bytes. The other arguments are those of the standard library.
    Raises ValueError, TypeError; a call that does not fit into the store fails with StoreFullError.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        store: Store | None = None,
        share_above: int = SHARE_ABOVE,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        check_options(store, share_above)
        self.store = Store() if store is None else store
        """Where large values go; calls can be given refs to what was put here."""
        self._share_above = share_above
        self._lease: Lease | None = Lease(self.store, private=store is None)
        start = (self.store.address, self._lease.family, share_above, initializer, initargs)
        try:
            super().__init__(
                max_workers, mp_context, _start_worker, start, max_tasks_per_child=max_tasks_per_child
            )
        except BaseException:
            self._lease = None
            raise

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        """Schedules `fn(*args, **kwargs)`, where refs among the arguments arrive as values."""
        call = Call(self._lease, self.store, self._share_above, _dumps, (fn, args, kwargs))
        future: Any = super().submit(_run, call)  # type: ignore[arg-type]  # it is a Task where it arrives
        # The standard library makes futures of its own class; ours has no fields of its own. Nobody else has
        # seen this one, and it makes no difference whether it is done by now.
        future.__class__ = Future
        return future  # type: ignore[no-any-return]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As in the standard library; a private store is closed. Results can still be read."""
        super().shutdown(wait, cancel_futures=cancel_futures)
        self._lease = None


class Future(concurrent.futures.Future[T]):
    """The future of the standard library; a large result stays in the store until it is asked for."""

    def result(self, timeout: float | None = None) -> T:
        """What the call returned, or raises what it raised. Every time the same object."""
        try:
            found = super().result(timeout)
        finally:
            del self  # an error, its traceback and this future would hold each other
        return found.value() if isinstance(found, Arrived) else found

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, or why its result could not be received, or None."""
        error = super().exception(timeout)
        found: Any = self._result
        return found.error if error is None and isinstance(found, Arrived) else error

    def _get_snapshot(self) -> tuple[bool, bool, T | None, BaseException | None]:
        """(done, cancelled, result, exception): newer versions of asyncio take these from a future."""
        if not self.done() or self.cancelled():
            return self.done(), self.cancelled(), None, None
        error = self.exception()
        return True, False, self.result() if error is None else None, error


def _results(
    calls: Iterator[concurrent.futures.Future[list[T]]],
    pending: deque[concurrent.futures.Future[list[T]]],
    end: float | None,
) -> Iterator[T]:
    """The items of the results, in order; a call is made whenever a result was taken."""
    try:
        while pending:
            values = pending[0].result(None if end is None else end - time.monotonic())
            pending.popleft()
            pending.extend(itertools.islice(calls, 1))
            values.reverse()
            while values:
                yield values.pop()  # keeps no reference to what it yields
    finally:
        for future in pending:
            future.cancel()


def _dumps(value: Any, refs: list[ObjectRef]) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """(pickle, its buffers), as multiprocessing pickles; the refs that are met are appended to `refs`."""

    def carry(ref: ObjectRef) -> tuple[Any, ...]:
        refs.append(ref)
        return carried, (len(refs) - 1,)

    file = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    pickler: Any = ForkingPickler(file, 5, True, buffers.append)
    pickler.dispatch_table = reducers.over({**pickler.dispatch_table, ObjectRef: carry})
    pickler.dump(value)
    return file.getvalue(), buffers


def _each(function: Callable[..., T], chunk: list[tuple[Any, ...]]) -> list[T]:
    return [function(*map(by_value, args)) for args in chunk]


# --- in the worker ---


class _Worker(NamedTuple):
    address: str
    family: int
    share_above: int


_worker: _Worker
_store: Store


def _open_store() -> Store:
    """The store: joined again when a call has closed it, who meant a store of its own."""
    global _store
    if _store.closed:
        _store = connect(_worker.address)
    return _store


def _start_worker(
    address: str, family: int, share_above: int, initializer: Callable[..., object] | None, initargs: Any
) -> None:
    """The pool's initializer: runs once in each worker, and then that of the user."""
    global _worker, _store
    _worker, _store = _Worker(address, family, share_above), connect(address)
    # A worker ends without the interpreter's own exit functions: the last member must tidy up.
    multiprocessing.util.Finalize(None, lambda: _store.close(), exitpriority=0)
    if not start(threading.Thread(target=_end_with_parent, name="millpond-parent", daemon=True)):
        raise RuntimeError("no thread can be started that ends this worker with its parent")
    if initializer is not None:
        initializer(*initargs)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for calls, and keep the store, for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run(task: Task) -> Outcome:
    result = perform(task)
    return Outcome(result, _open_store(), _worker.family, _worker.share_above, _dumps)


def perform(task: Task) -> Any:
    """What the function of a submitted call returns. All that was loaded for it is dropped then."""
    (function, args, kwargs), _refs = task.load()
    return function(*map(by_value, args), **{name: by_value(value) for name, value in kwargs.items()})
