"""Calls and results on their way between processes: what is small in the message, the rest in a store.

A call is pickled when it is sent, not when it is submitted. Up to `share_above` bytes travel as ever; more
go into the store as one object, and only its place travels. The receiver's arrays are views of it.
Invariants: an argument's object is held by the pending call and nothing else, so it is gone whichever way the
call ends; a result's object is held by a hand-off of its lease's family until it has arrived, and what never
arrives is withdrawn when the lease ends; an unread result is a ref, not a view, and may be spilled.
Not here: who runs the calls (executor.py, loky.py, joblib.py), how objects are stored (millpond.store).
"""

from __future__ import annotations

import io
import os
import pickle
import secrets
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

import cloudpickle

from millpond import ObjectRef, Store, StoreClosedError, load_ref
from millpond.values import reducers

__all__ = [
    "SHARE_ABOVE",
    "Arrived",
    "Call",
    "Dumps",
    "Lease",
    "Outcome",
    "Task",
    "by_value",
    "carried",
    "check_options",
    "cloudpickled",
]

SHARE_ABOVE = 64 << 10

Inline: TypeAlias = tuple[bytes, list[bytes | bytearray]]
Dumps: TypeAlias = Callable[[Any, list[ObjectRef]], tuple[bytes, list[pickle.PickleBuffer]]]
"""Gives (pickle, its buffers) of a value. What is to travel as a ref it appends to the list, and pickles as
`carried` of its index."""


class _Carrying(threading.local):
    refs: list[ObjectRef]


_carrying = _Carrying()


def carried(index: int) -> ObjectRef:
    """The ref of that number, among those that travel beside the pickle that is being loaded."""
    return _carrying.refs[index]


class _CloudPickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, target: Any, buffer_callback: Callable[..., Any], own: dict[type, Any]) -> None:
        # The compiled pickler reads the table once, when it is initialized.
        self.dispatch_table = reducers.over({**cloudpickle.Pickler.dispatch_table, **own})
        super().__init__(target, 5, buffer_callback)


def cloudpickled(value: Any, own: dict[type, Any]) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """(pickle, its buffers), with `own` rules by type beside those of `register_reducer` and cloudpickle."""
    target = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    _CloudPickler(target, buffers.append, own).dump(value)
    return target.getvalue(), buffers


def _pack(value: Any, store: Store, share_above: int, dumps: Dumps) -> tuple[Inline | None, list[ObjectRef]]:
    """(pickle and buffers, refs in the value); if they are large, (None, those refs and one to all of it)."""
    refs: list[ObjectRef] = []
    inband, buffers = dumps(value, refs)
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


def by_value(argument: Any) -> Any:
    """An argument as a function gets it: the value, of a ref."""
    return argument.get() if type(argument) is ObjectRef else argument


# --- in the process that submits ---


def check_options(store: object, share_above: object) -> None:
    """Raises TypeError, ValueError for what all who send calls are given alike."""
    if store is not None and not isinstance(store, Store):
        raise TypeError(f"store must be a millpond.Store or None, not {type(store).__name__}")
    if not isinstance(share_above, int):
        raise TypeError(f"share_above is a number of bytes, not {share_above!r}")
    if share_above < 0:
        raise ValueError(f"share_above is {share_above} bytes: it must not be negative")


class Lease:
    """What an executor, its pending calls and its unread results have in common. When all of them are gone,
    hand-offs of results that never arrived are withdrawn, or, if the store is private, it is closed."""

    def __init__(self, store: Store, private: bool) -> None:
        self.family = secrets.randbits(47) + 1
        self.store = store
        _leases[self.family] = self
        weakref.finalize(self, _end_lease, store, self.family, private, os.getpid())

    def withdraw(self) -> None:
        """Gives up the results that are still on their way: nobody waits for them."""
        _withdraw(self.store, self.family)


_leases: weakref.WeakValueDictionary[int, Lease] = weakref.WeakValueDictionary()


def _end_lease(store: Store, family: int, private: bool, pid: int) -> None:
    if pid != os.getpid():
        return  # a forked child has a copy of everything and owns nothing of it
    if private:
        store.close()
        return
    _withdraw(store, family)


def _withdraw(store: Store, family: int) -> None:
    with suppress(StoreClosedError):
        store._token_withdraw(family)
        store._tidy()  # workers that were killed hold nothing any more


class Call:
    """A submitted call. It holds its arguments, and their object, until the pool is done with it."""

    __slots__ = ("_dumps", "_lease", "_refs", "_share_above", "_store", "_task")

    def __init__(self, lease: Lease | None, store: Store, share_above: int, dumps: Dumps, task: Any) -> None:
        self._dumps = dumps
        self._lease = lease
        self._store = store
        self._share_above = share_above
        self._task = task
        self._refs: list[ObjectRef] = []

    def __reduce__(self) -> Any:
        inline, self._refs = _pack(self._task, self._store, self._share_above, self._dumps)
        # Deliveries 0: what the worker loads is held here for as long as that can happen.
        return Task, (inline, [ref._store._hand_off(ref, 0) for ref in self._refs])


class Arrived:
    """A result that has come back and was not read yet; afterwards, its value."""

    def __init__(
        self, lease: Lease | None, inline: Inline | None, refs: list[ObjectRef], error: Exception | None
    ) -> None:
        self._unread: tuple[Lease | None, Inline | None, list[ObjectRef]] | None = (lease, inline, refs)
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


def _receive(family: int, inline: Inline | None, hand_offs: list[bytes]) -> Arrived:
    """Takes over the refs of a result. Must not raise: the pool would break."""
    lease = _leases.get(family)
    try:
        return Arrived(lease, inline, [load_ref(data) for data in hand_offs], None)
    except Exception as error:
        return Arrived(lease, None, [], error)


# --- in the worker ---


class Task:
    """A call that has come to a worker, not loaded yet: what fails there is the call's error."""

    __slots__ = ("_hand_offs", "_inline")

    def __init__(self, inline: Inline | None, hand_offs: list[bytes]) -> None:
        self._inline = inline
        self._hand_offs = hand_offs

    def load(self) -> tuple[Any, list[ObjectRef]]:
        """What was submitted, and the refs that hold it: to be dropped with it when the call is done."""
        refs = [load_ref(data) for data in self._hand_offs]
        return _unpack(self._inline, refs), refs


class Outcome:
    """A result on its way back."""

    __slots__ = ("_family", "_hand_offs", "_inline")

    def __init__(self, result: Any, store: Store, family: int, share_above: int, dumps: Dumps) -> None:
        self._family = family
        self._inline, refs = _pack(result, store, share_above, dumps)
        self._hand_offs = [ref._store._hand_off(ref, 1, family=family) for ref in refs]

    def __reduce__(self) -> Any:
        return _receive, (self._family, self._inline, self._hand_offs)
