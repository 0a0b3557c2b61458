"""`ProcessPoolExecutor`: the one of concurrent.futures, with large arguments and results in a store.

A call is pickled when it is sent, not when it is submitted. What is small travels through the pool's pipe as
ever; a call or result of more than `share_above` bytes goes into the store as one object, and only its place
travels. The receiver's arrays are views of it.
Invariants: an argument's object is held by the pending call and nothing else, so it is gone whichever way the
call ends; a result's object is held by a hand-off of the executor's own family until it has arrived, and what
never arrives is withdrawn when the executor ends; an unread result is a ref, not a view, and may be spilled.
Not here: the pool (concurrent.futures), how objects are stored (millpond.store).
"""

from __future__ import annotations

import concurrent.futures
import io
import itertools
import multiprocessing
import multiprocessing.util
import os
import pickle
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing.context import BaseContext
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple, TypeAlias, TypeVar

from millpond import ObjectRef, Store, StoreClosedError, connect, load_ref
from millpond.store import reducers

__all__ = ["Future", "ProcessPoolExecutor"]

T = TypeVar("T")
Inline: TypeAlias = tuple[bytes, list[bytes | bytearray]]

SHARE_ABOVE = 64 << 10


class ProcessPoolExecutor(concurrent.futures.ProcessPoolExecutor):
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
        if store is not None and not isinstance(store, Store):
            raise TypeError(f"store must be a millpond.Store or None, not {type(store).__name__}")
        if share_above < 0:
            raise ValueError(f"share_above is {share_above} bytes: it must not be negative")
        self.store = Store() if store is None else store
        """Where large values go; calls can be given refs to what was put here."""
        self._share_above = share_above
        self._lease: _Lease | None = _Lease(self.store, private=store is None)
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
        call = _Call(self._lease, self.store, self._share_above, (fn, args, kwargs))
        future: Any = super().submit(_run, call)  # type: ignore[arg-type]  # it is a _Task where it arrives
        # The standard library makes futures of its own class; ours has no fields of its own. Nobody else has
        # seen this one, and it makes no difference whether it is done by now.
        future.__class__ = Future
        return future  # type: ignore[no-any-return]

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
        function = partial(_by_value, fn)
        if buffersize is None:
            return super().map(function, *iterables, timeout=timeout, chunksize=chunksize)
        if not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize < 1 or chunksize < 1:
            raise ValueError("buffersize and chunksize must be >= 1")
        items = zip(*iterables, strict=False)
        chunks = iter(lambda: list(itertools.islice(items, chunksize)), [])
        end = None if timeout is None else time.monotonic() + timeout
        calls = (self.submit(_each, function, chunk) for chunk in chunks)
        return _results(calls, deque(itertools.islice(calls, buffersize)), end)

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
        return found.value() if isinstance(found, _Arrived) else found

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What the call raised, or why its result could not be received, or None."""
        error = super().exception(timeout)
        found: Any = self._result
        return found.error if error is None and isinstance(found, _Arrived) else error

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


# --- values on their way ---


class _Carrying(threading.local):
    refs: list[ObjectRef]


_carrying = _Carrying()


def _carried(index: int) -> ObjectRef:
    """What a ref is pickled as: its number among those that travel beside the pickle."""
    return _carrying.refs[index]


def _dumps(value: Any, refs: list[ObjectRef]) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """(pickle, its buffers), as multiprocessing pickles; the refs that are met are appended to `refs`."""

    def carry(ref: ObjectRef) -> tuple[Any, ...]:
        refs.append(ref)
        return _carried, (len(refs) - 1,)

    file = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    pickler: Any = ForkingPickler(file, 5, True, buffers.append)
    pickler.dispatch_table = reducers.over({**pickler.dispatch_table, ObjectRef: carry})
    pickler.dump(value)
    return file.getvalue(), buffers


def _pack(value: Any, store: Store, share_above: int) -> tuple[Inline | None, list[ObjectRef]]:
    """(pickle and buffers, refs in the value); if they are large, (None, those refs and one to all of it)."""
    refs: list[ObjectRef] = []
    inband, buffers = _dumps(value, refs)
    views = [buffer.raw() for buffer in buffers]
    if len(inband) + sum(view.nbytes for view in views) <= share_above:
        return (inband, [bytes(view) if view.readonly else bytearray(view) for view in views]), refs
    refs.append(store.put([pickle.PickleBuffer(inband), *buffers]))
    return None, refs


def _unpack(inline: Inline | None, refs: list[ObjectRef]) -> Any:
    """The value that was packed; its arrays are views if it was large."""
    inband, *buffers = refs[-1].get() if inline is None else (inline[0], *inline[1])
    outer = getattr(_carrying, "refs", [])
    _carrying.refs = refs
    try:
        return pickle.loads(inband, buffers=buffers)
    finally:
        _carrying.refs = outer


def _value(argument: Any) -> Any:
    return argument.get() if type(argument) is ObjectRef else argument


def _by_value(function: Callable[..., T], *args: Any) -> T:
    return function(*map(_value, args))


def _each(function: Callable[..., T], chunk: list[tuple[Any, ...]]) -> list[T]:
    return [function(*args) for args in chunk]


# --- in the process that submits ---


class _Lease:
    """What an executor, its pending calls and its unread results have in common. When all of them are gone,
    hand-offs of results that never arrived are withdrawn, or, if the store is private, it is closed."""

    def __init__(self, store: Store, private: bool) -> None:
        self.family = secrets.randbits(47) + 1
        _leases[self.family] = self
        weakref.finalize(self, _end_lease, store, self.family, private, os.getpid())


_leases: weakref.WeakValueDictionary[int, _Lease] = weakref.WeakValueDictionary()


def _end_lease(store: Store, family: int, private: bool, pid: int) -> None:
    if pid != os.getpid():
        return  # a forked child has a copy of everything and owns nothing of it
    if private:
        store.close()
        return
    with suppress(StoreClosedError):
        store._token_withdraw(family)
        store._tidy()  # workers that were killed hold nothing any more


class _Call:
    """A submitted call. It holds its arguments, and their object, until the pool is done with it."""

    __slots__ = ("_lease", "_refs", "_share_above", "_store", "_task")

    def __init__(self, lease: _Lease | None, store: Store, share_above: int, task: tuple[Any, ...]) -> None:
        self._lease = lease
        self._store = store
        self._share_above = share_above
        self._task = task
        self._refs: list[ObjectRef] = []

    def __reduce__(self) -> Any:
        inline, self._refs = _pack(self._task, self._store, self._share_above)
        # Deliveries 0: what the worker loads is held here for as long as that can happen.
        return _Task, (inline, [ref._store._hand_off(ref, 0) for ref in self._refs])


class _Arrived:
    """A result that has come back and was not read yet; afterwards, its value."""

    def __init__(
        self, lease: _Lease | None, inline: Inline | None, refs: list[ObjectRef], error: Exception | None
    ) -> None:
        self._unread: tuple[_Lease | None, Inline | None, list[ObjectRef]] | None = (lease, inline, refs)
        self._lock = threading.Lock()
        self._value: Any = None
        self.error = error

    def value(self) -> Any:
        """Loads it the first time. What fails then is tried again the next time."""
        if self.error is not None:
            raise self.error
        with self._lock:
            if self._unread is not None:
                _, inline, refs = self._unread
                self._value = _unpack(inline, refs)
                self._unread = None
            return self._value


def _receive(family: int, inline: Inline | None, hand_offs: list[bytes]) -> _Arrived:
    """Takes over the refs of a result. Must not raise: the pool would break."""
    lease = _leases.get(family)
    try:
        return _Arrived(lease, inline, [load_ref(data) for data in hand_offs], None)
    except Exception as error:
        return _Arrived(lease, None, [], error)


# --- in the worker ---


class _Worker(NamedTuple):
    store: Store
    family: int
    share_above: int


_worker: _Worker


def _start_worker(
    address: str, family: int, share_above: int, initializer: Callable[..., object] | None, initargs: Any
) -> None:
    """The pool's initializer: runs once in each worker, and then that of the user."""
    global _worker
    _worker = _Worker(connect(address), family, share_above)
    # A worker ends without the interpreter's own exit functions: the last member must tidy up.
    multiprocessing.util.Finalize(None, _worker.store.close, exitpriority=0)
    threading.Thread(target=_end_with_parent, name="millpond-parent", daemon=True).start()
    if initializer is not None:
        initializer(*initargs)


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for calls, and keep the store, for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Task:
    """A call that has come to a worker, not loaded yet: what fails there is the call's error."""

    __slots__ = ("_hand_offs", "_inline")

    def __init__(self, inline: Inline | None, hand_offs: list[bytes]) -> None:
        self._inline = inline
        self._hand_offs = hand_offs

    def perform(self) -> Any:
        """What the function returns. All that was loaded for it is dropped then."""
        refs = [load_ref(data) for data in self._hand_offs]
        function, args, kwargs = _unpack(self._inline, refs)
        return function(*map(_value, args), **{name: _value(value) for name, value in kwargs.items()})


class _Outcome:
    """A result on its way back."""

    __slots__ = ("_inline", "_refs")

    def __init__(self, result: Any) -> None:
        self._inline, self._refs = _pack(result, _worker.store, _worker.share_above)

    def __reduce__(self) -> Any:
        family = _worker.family
        hand_offs = [ref._store._hand_off(ref, 1, family=family) for ref in self._refs]
        return _receive, (family, self._inline, hand_offs)


def _run(task: _Task) -> _Outcome:
    return _Outcome(task.perform())
