"""The joblib backend "millpond": joblib's own processes, with large arguments and results in a store.

    import millpond.integrations.joblib

    with joblib.parallel_config("millpond", n_jobs=4, memory_limit="8GiB"): ...

A large array becomes an object of its own, once for all calls of one `Parallel` that are given it; a result
comes back as the view that it is. What else is large goes into the store with its call.
Invariants: as in calls.py; an array that was read from the store is passed on as its ref, without a copy;
workers, which joblib keeps for the next `Parallel`, leave the store when they get no more calls from it.
Not here: workers, batches, nesting (joblib), how calls and results travel (calls.py).
"""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import joblib
import numpy as np
from joblib._memmapping_reducer import _get_backing_memmap, _reduce_memmap_backed
from joblib._parallel_backends import LokyBackend
from joblib.externals.loky import process_executor

from millpond import ObjectRef, Store
from millpond.integrations.calls import (
    SHARE_ABOVE,
    Arrived,
    Call,
    Dumps,
    Lease,
    Outcome,
    Task,
    by_value,
    carried,
    check_options,
    cloudpickled,
)
from millpond.integrations.visit import Visit
from millpond.store.options import Options

__all__ = ["MillpondBackend", "register"]

STORE_OPTIONS = ("memory_limit", "spill_dir", "spill_limit", "compression", "eviction", "overflow_limit")
PINNED_SHARE = 0.75
"""Views may hold that part of a store's memory; beyond it, results are private copies. So calls have room."""


class MillpondBackend(LokyBackend):  # type: ignore[misc]
    """What `parallel_config("millpond", ...)` and `Parallel(backend="millpond")` make.

    store: where large values go; it is left open. None: a private one, with `memory_limit` and the other
        options of `Store`, that ends with the `with` block, or the `Parallel`, and its last unread result.
    share_above: bytes above which arrays and calls go through the store.
    The other arguments are those of joblib's "loky" backend. A ref among the arguments of a call arrives as
    its value. Arrays arrive as read-only views. Raises ValueError, TypeError.
    """

    def __init__(self, *args: Any, store: Store | None = None, share_above: int = SHARE_ABOVE, **kwargs: Any):
        self._options = {name: kwargs.pop(name) for name in STORE_OPTIONS if name in kwargs}
        if store is not None and self._options:
            raise TypeError(f"{', '.join(self._options)} describe a new store: leave them out, or store=")
        check_options(store, share_above)
        Options.check(**self._options)
        super().__init__(*args, **kwargs)
        self.parallel: Any = None
        self._given = store
        self._share_above = share_above
        self._sent = _Known()
        self._lease: Lease | None = None

    def configure(self, n_jobs: int = 1, parallel: Any = None, **kwargs: Any) -> int:
        """Called by joblib before the first call: gets the workers ready, and the store."""
        count: int = super().configure(n_jobs, parallel, **kwargs)
        if self._lease is None:
            store = Store(**self._options) if self._given is None else self._given
            self._lease = Lease(store, private=self._given is None)
        return count

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> Any:
        """Schedules a batch of calls."""
        lease = self._lease
        assert lease is not None
        dumps = partial(_dumps, lease.store, self._share_above, self._sent)
        call: Any = Call(lease, lease.store, self._share_above, dumps, func)  # it is a Task where it arrives
        run = partial(_run, lease.store.address, lease.family, self._share_above, call)
        return super().submit(run, callback)

    def retrieve_result_callback(self, future: Any) -> Any:
        """The results of a batch."""
        arrived: Arrived = super().retrieve_result_callback(future)
        return arrived.value()

    def stop_call(self) -> None:
        """A `Parallel` call is over: arrays may change before the next one."""
        super().stop_call()
        self._sent = _Known()

    def terminate(self) -> None:
        """A `Parallel` is done with its workers."""
        super().terminate()
        # It refers to itself and to this backend, and the store would wait for the garbage collector.
        parallel, self.parallel = self.parallel, None
        if parallel is not None:
            parallel._reducer_callback = None
        if self._lease is not None:
            self._lease.withdraw()


def register() -> None:
    """Makes "millpond" known to joblib. Importing this module has done that."""
    joblib.register_parallel_backend("millpond", MillpondBackend)


register()


# --- arrays on their way ---


class _Known:
    """The refs of arrays that are in a store, by the identity of the array, as long as that lives."""

    def __init__(self) -> None:
        self._refs: dict[int, tuple[weakref.ref[Any], ObjectRef]] = {}

    def get(self, array: Any) -> ObjectRef | None:
        alive, ref = self._refs.get(id(array), (None, None))
        return ref if alive is not None and alive() is array else None

    def set(self, array: Any, ref: ObjectRef) -> None:
        key, itself = id(array), weakref.ref(self)  # no cycle: refs are to be dropped at once

        def forget(_: object) -> None:
            if (known := itself()) is not None:
                known._refs.pop(key, None)

        self._refs[key] = weakref.ref(array, forget), ref


_loaded = _Known()
"""Arrays that were read from a store: they never change."""


def _carried_array(index: int) -> Any:
    """What an array of a store is pickled as."""
    ref = carried(index)
    stats = ref._store.stats()
    if stats.pinned_bytes + ref.size > stats.memory_limit * PINNED_SHARE:
        return ref.get(copy=True)
    array = ref.get()
    _loaded.set(array, ref)
    return array


def _dumps(
    store: Store, share_above: int, sent: _Known, value: Any, refs: list[ObjectRef]
) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """The `Dumps` of this module: as joblib pickles, and large arrays by their refs."""

    def carry(ref: ObjectRef) -> tuple[Any, ...]:
        refs.append(ref)
        return carried, (len(refs) - 1,)

    def carry_array(array: Any) -> Any:
        file = _get_backing_memmap(array)
        if isinstance(file, np.memmap):
            return _reduce_memmap_backed(array, file)
        if array.dtype.hasobject or array.nbytes <= share_above:
            return array.__reduce_ex__(5)
        ref = _loaded.get(array)
        if ref is None or ref._store is not store:
            ref = sent.get(array)
        if ref is None:
            ref = store.put(np.asarray(array))
            sent.set(array, ref)
        refs.append(ref)
        return _carried_array, (len(refs) - 1,)

    return cloudpickled(value, {ObjectRef: carry, np.ndarray: carry_array, np.memmap: carry_array})


# --- in the worker ---

_visit = Visit(process_executor)


def _run(address: str, family: int, share_above: int, task: Task) -> Outcome:
    with _visit.to(address) as store:
        dumps: Dumps = partial(_dumps, store, share_above, _Known())
        return Outcome(_perform(task), store, family, share_above, dumps)


def _perform(task: Task) -> Any:
    """What the batch returns. All that was loaded for it is dropped then."""
    batch, _refs = task.load()
    batch.items = [
        (function, tuple(map(by_value, args)), {name: by_value(value) for name, value in kwargs.items()})
        for function, args, kwargs in batch.items
    ]
    return batch()
