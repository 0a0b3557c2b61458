"""loky's reusable pool, with large arguments and results in a store.

    from millpond.integrations.loky import get_reusable_executor

    executor = get_reusable_executor(max_workers=4)

Functions and arguments are pickled by cloudpickle, as loky does it: lambdas work.
Invariants: as in calls.py; the workers, which loky keeps for whoever asks next, leave the store when they get
no more calls from it.
Not here: the pool (loky), how calls and results travel (calls.py).
"""

from __future__ import annotations

import concurrent.futures
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import loky
from loky import process_executor

from millpond import ObjectRef, Store
from millpond.integrations.calls import (
    SHARE_ABOVE,
    Call,
    Lease,
    Outcome,
    Task,
    carried,
    check_options,
    cloudpickled,
)
from millpond.integrations.executor import Future, MappingExecutor, perform
from millpond.integrations.visit import Visit

__all__ = ["LokyExecutor", "get_reusable_executor"]

T = TypeVar("T")


def get_reusable_executor(
    max_workers: int | None = None,
    *,
    store: Store | None = None,
    share_above: int = SHARE_ABOVE,
    **options: Any,
) -> LokyExecutor:
    """loky's pool of this thread, whose calls share what is large.

    store: where that goes; it is left open. None: a private one, which ends with the executor that is
        returned here and its last unread result; the workers stay.
    share_above: bytes. The other arguments are those of loky.
    Raises ValueError, TypeError.
    """
    check_options(store, share_above)
    pool = loky.get_reusable_executor(max_workers, **options)
    return LokyExecutor(pool, Lease(Store() if store is None else store, private=store is None), share_above)


class LokyExecutor(MappingExecutor):
    """What `get_reusable_executor` gives: an executor of loky, with these differences.

    - A ref among the arguments of a call arrives as its value. Refs inside lists, dicts and so on stay refs,
      and so does a ref that a function returns.
    - A call, or a result, whose pickle has more than `share_above` bytes goes through the store. Its arrays
      arrive as read-only views; the memory is released when the last view is gone.
    """

    def __init__(self, pool: concurrent.futures.Executor, lease: Lease, share_above: int) -> None:
        self.store = lease.store
        """Where large values go; calls can be given refs to what was put here."""
        self._pool: Any = pool
        self._lease: Lease | None = lease
        self._share_above = share_above

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        """Schedules `fn(*args, **kwargs)`, where refs among the arguments arrive as values."""
        if self._lease is None:
            raise process_executor.ShutdownExecutorError("cannot schedule new futures after shutdown")
        call = Call(self._lease, self.store, self._share_above, _dumps, (fn, args, kwargs))
        future = self._pool.submit(_run, self.store.address, self._lease.family, self._share_above, call)
        future.__class__ = _LokyFuture  # as in executor.py
        return future  # type: ignore[no-any-return]

    def shutdown(self, wait: bool = True, kill_workers: bool = False) -> None:  # type: ignore[override]
        """Ends loky's pool, as loky does it. A private store is closed; results can still be read."""
        self._pool.shutdown(wait=wait, kill_workers=kill_workers)
        if kill_workers and self._lease is not None:
            self._lease.withdraw()
        self._lease = None


class _LokyFuture(Future[T], process_executor.Future):  # type: ignore[misc]
    """Its results as ours, its callbacks as loky's."""


def _dumps(value: Any, refs: list[ObjectRef]) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """The `Dumps` of this module."""

    def carry(ref: ObjectRef) -> tuple[Any, ...]:
        refs.append(ref)
        return carried, (len(refs) - 1,)

    return cloudpickled(value, {ObjectRef: carry})


# --- in the worker ---

_visit = Visit(process_executor)


def _run(address: str, family: int, share_above: int, task: Task) -> Outcome:
    with _visit.to(address) as store:
        return Outcome(perform(task), store, family, share_above, _dumps)
