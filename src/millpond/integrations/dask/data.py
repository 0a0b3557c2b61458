"""What a worker keeps: its values by key, the large ones as objects of the machine's store.

Invariants: a worker's ref to an object lives as long as its key, so counts follow the scheduler, and a
worker that is killed drops its refs; a value that the store cannot take stays in the worker's own memory,
where Dask's monitor sees it; copying and disk reads can be done in threads, off the event loop.
Not here: who asks for a value (worker.py), how it is sent (transfer.py).
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Collection, Iterator, MutableMapping
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from typing import Any

from distributed.sizeof import safe_sizeof

from millpond import MillpondError, ObjectRef, Store, StoreFullError, connect
from millpond.integrations.dask.weight import buffer_bytes

__all__ = ["SHARE_ABOVE", "Datum", "WorkerData"]

SHARE_ABOVE = 64 << 10


class Datum:
    """A value of a worker: an object of the store (`ref`), or private to the worker (`ref` is None)."""

    __slots__ = ("_alive", "_value", "nbytes", "ref")

    def __init__(self, ref: ObjectRef | None, value: object = None) -> None:
        self.ref = ref
        self.nbytes: int = safe_sizeof(value) if ref is None else ref.size
        self._value = value
        self._alive: weakref.ref[Any] | None = None

    @property
    def at_hand(self) -> bool:
        """Whether `load` reads nothing: the value is private, or somebody in this process has it."""
        return self.ref is None or (self._alive is not None and self._alive() is not None)

    def load(self) -> Any:
        """The value; the same object as long as anybody here has it. Raises what `ref.get` raises."""
        if self.ref is None:
            return self._value
        value = None if self._alive is None else self._alive()
        if value is None:
            value = self.ref.get()
            with suppress(TypeError):  # not everything can be referred to weakly
                self._alive = weakref.ref(value)
        return value


class WorkerData(MutableMapping[Any, object]):
    """The values of one worker by key: its `data=`. Those with large buffers are in the store `name`.

    The store is made by the first worker of the machine, with `options`, and ends with the last. What tasks
    returned is read from here with read-only views for arrays.
    `fast`, `evict` and `spilled_total` are Dask's protocol for mappings that relieve a worker's memory: what
    was left private goes into the store then.
    """

    def __init__(self, name: str, share_above: int = SHARE_ABOVE, **options: Any) -> None:
        self._store: Store | None = connect(name, create=True, **options)
        self.address = self._store.address
        self.uuid = self._store.uuid
        self._share_above = share_above
        self._data: dict[Any, Datum] = {}
        self.fast: dict[Any, Datum] = {}
        self._shared_bytes = 0

    def __getitem__(self, key: Any) -> Any:
        prepared = _prepared.get()
        return prepared[key] if key in prepared else self._data[key].load()

    def __setitem__(self, key: Any, value: object) -> None:
        datum = value if type(value) is Datum else self.datum(value)
        if key in self._data:
            del self[key]
        self._data[key] = datum
        if datum.ref is None:
            self.fast[key] = datum
        else:
            self._shared_bytes += datum.nbytes

    def __delitem__(self, key: Any) -> None:
        datum = self._data.pop(key)
        if datum.ref is None:
            self.fast.pop(key, None)
        else:
            self._shared_bytes -= datum.nbytes

    def __contains__(self, key: object) -> bool:
        return key in self._data

    def __iter__(self) -> Iterator[Any]:
        return iter(self._data)

    def __len__(self) -> int:
        return len(self._data)

    @property
    def spilled_total(self) -> tuple[int, int]:
        """(bytes of values that are not in this process's own memory, bytes of them in the store)."""
        return self._shared_bytes, self._shared_bytes

    def evict(self) -> int:
        """Moves the private value that came first into the store; its bytes, or -1 if that failed."""
        key, datum = next(iter(self.fast.items()))
        try:
            shared = Datum(self._put(datum.load()))
        except StoreFullError:
            return -1
        except MillpondError:
            del self.fast[key]  # it cannot be stored: not asked again
            return -1
        self[key] = shared
        return datum.nbytes

    def _put(self, value: object) -> ObjectRef:
        if self._store is None:
            raise StoreFullError("the worker has been closed")
        return self._store.put(value)

    def close(self) -> None:
        """Drops everything, and leaves the store if nothing else in this process uses it. Idempotent."""
        self._data.clear()
        self.fast.clear()
        self._shared_bytes = 0
        self._store = None

    def datum(self, value: object, inputs: Collection[Datum] = ()) -> Datum:
        """A value on its way in here. Copies it into the store if it has large buffers.

        inputs: what the value was made from; a task that returns an argument makes no second object.
        """
        if safe_sizeof(value) < self._share_above:
            return Datum(None, value)
        for known in inputs:
            if known.ref is not None and known.at_hand and known.load() is value:
                return known
        if buffer_bytes(value) < self._share_above:
            return Datum(None, value)
        try:
            return Datum(self._put(value))
        except MillpondError:
            return Datum(None, value)  # there is no room: Dask pauses a worker whose own memory fills up

    async def offer(self, value: object, inputs: Collection[Datum] = ()) -> Datum:
        """The same; large values are copied in a thread, so that the event loop goes on."""
        if type(value) is Datum:
            return value
        if safe_sizeof(value) < self._share_above:
            return Datum(None, value)
        return await asyncio.to_thread(self.datum, value, inputs)

    @asynccontextmanager
    async def prepare(
        self, keys: Collection[Any], *, place: bool = False, load: bool = True
    ) -> AsyncIterator[list[Datum]]:
        """A context in which these keys are read without waiting for the disk, also once they are deleted.

        place: what is shared is read as its `Datum`. load: the values are at hand for as long.
        """
        found = {key: self._data[key] for key in keys if key in self._data}
        values: dict[Any, Any] = {}
        if load and all(datum.at_hand for datum in found.values()):
            values = _load_all(found)
        elif load:
            values = await asyncio.to_thread(_load_all, found)
        places = {key: datum for key, datum in found.items() if place and datum.ref is not None}
        prepared = {**values, **places}
        token = _prepared.set(prepared)
        try:
            yield list(found.values())
        finally:
            _prepared.reset(token)
            prepared.clear()  # tasks that were started in here have copies of the context


_prepared: ContextVar[dict[Any, Any]] = ContextVar("millpond_prepared", default={})  # noqa: B039


def _load_all(data: dict[Any, Datum]) -> dict[Any, Any]:
    values = {}
    for key, datum in data.items():
        try:
            values[key] = datum.load()
        except StoreFullError:
            break  # after a wait, which each of the others would repeat
        except Exception:
            continue  # whoever reads the key meets the error again
    return values
