"""Which objects there are, as one client sees them: finding, waiting, making room, removing, listing.

When memory is full, the objects that nobody uses go, the longest unread first and at least a fifth of the
capacity at once. In a store that keeps what it evicts they go to disk, as always in Millpond.
Invariants: nobody waits for another client, except for a seal that was asked for; the capacity counts data
and metadata, as Plasma's did, and lies below the store's own limit.
Not here: writing objects (client.py), their bytes (objects.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from millpond import Draft, GetTimeoutError, ObjectNotFoundError, ObjectRef, Store, StoreFullError
from millpond.integrations.plasma import objects
from millpond.integrations.plasma.errors import PlasmaObjectExists, PlasmaObjectNotFound, PlasmaStoreFull
from millpond.integrations.plasma.ids import ObjectID
from millpond.integrations.plasma.keeper import terms_of
from millpond.integrations.plasma.notices import DELETED, Publisher

T = TypeVar("T")

EVICTED_AT_ONCE = 5  # a fifth of the capacity


class Catalogue:
    """The objects of a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.terms = terms_of(store)
        self._publisher = Publisher(store)

    # --- finding ---

    def sealed(self, object_id: ObjectID) -> ObjectRef | None:
        """A ref to the object, if it is there and sealed."""
        with suppress(ObjectNotFoundError):
            ref = self.store.lookup(objects.name_of(object_id))
            if ref in self.store and self.store.wait([ref], timeout=0)[0]:
                return ref
        return None

    def wait(self, object_id: ObjectID, end: float | None) -> objects.Parts | None:
        """The object, as soon as it is sealed; None at `end` (monotonic seconds; None: never)."""
        name = objects.name_of(object_id)
        while True:
            try:
                ref = self.store.lookup(name, _left(end))
            except (ObjectNotFoundError, GetTimeoutError):
                return None
            try:
                return objects.parts(self.store.get(ref, timeout=_left(end)), name)
            except GetTimeoutError:
                return None
            except StoreFullError as error:
                raise PlasmaStoreFull(str(error)) from error
            except PlasmaObjectNotFound:
                raise
            except ObjectNotFoundError:  # its writer died, or it was deleted: the next of that id may come
                objects.forget(self.store, name, ref)

    def ensure_free(self, object_id: ObjectID) -> None:
        """Raises PlasmaObjectExists if there is such an object, also an unsealed one."""
        name = objects.name_of(object_id)
        with suppress(ObjectNotFoundError):
            ref = self.store.lookup(name)
            if ref in self.store:
                raise PlasmaObjectExists(f"{object_id!r} exists already")
            objects.forget(self.store, name, ref)

    # --- room ---

    def with_room(self, size: int, store: Callable[[], T]) -> T:
        """What `store` gives, after unused objects have made room for `size` bytes of data and metadata."""
        if size > self.terms.capacity:
            raise PlasmaStoreFull(f"{size} bytes are more than the store's capacity, {self.terms.capacity}")
        while True:
            excess = self._excess(size)
            full = f"no room for {size} bytes: all other objects are in use, or not sealed yet"
            if excess <= 0:
                try:
                    return store()
                except StoreFullError as error:
                    full = str(error)
            wanted = max(excess, size, self.terms.capacity // EVICTED_AT_ONCE)
            if self.terms.keeps_evicted or not self.evict(wanted)[1]:
                raise PlasmaStoreFull(full)

    def _excess(self, size: int) -> int:
        """Bytes by which `size` more would go beyond the capacity."""
        if self.terms.keeps_evicted:
            return 0
        totals = self.store._totals()
        excess: int = totals["committed_bytes"] - totals["free_bytes"] + size - self.terms.capacity
        # That counts whole pages. Only when it is close are the objects themselves counted.
        return excess if excess <= 0 else objects.used(self.store) + size - self.terms.capacity

    def evict(self, num_bytes: int) -> tuple[int, int]:
        """(bytes, objects) that went: at least `num_bytes`, if so much is unused."""
        freed = count = 0
        for object_id, ref in objects.unused(self.store):
            size = objects.payload(ref.size)
            if self.terms.keeps_evicted:
                went = self.store.spill(ref) > 0
            else:
                del ref
                went = self.remove(object_id)
            freed += size * went
            count += went
            if freed >= num_bytes:
                break
        return freed, count

    def remove(self, object_id: ObjectID) -> bool:
        """Takes the name off the object, and tells subscribers; whether there was one."""
        sealed = self.sealed(object_id) is not None
        try:
            self.store.delete(objects.name_of(object_id))
        except ObjectNotFoundError:
            return False
        if sealed:
            self.publish(object_id, DELETED, DELETED)
        return True

    def publish(self, object_id: ObjectID, data_size: int, metadata_size: int) -> None:
        """Tells subscribers that an object was sealed, or deleted."""
        self._publisher.publish(self.put_notice, object_id, data_size, metadata_size)

    def put_notice(self, value: Any, **options: Any) -> ObjectRef:
        """As `Store.put`, for what is neither data nor metadata."""
        return self.with_room(0, lambda: self.store.put(value, **options))

    # --- listing ---

    def describe(self, drafts: Mapping[ObjectID, Draft]) -> dict[ObjectID, dict[str, Any]]:
        """See `PlasmaClient.list`; `drafts` are the client's own."""
        now = time.time()
        found = {}
        # From the longest unread on: reading their tails does not change the order in which they go.
        for info in sorted(self.store.objects(), key=lambda info: -info.idle_s):
            object_id = objects.id_of(info.name)
            if object_id is None or info.state == "lost":
                continue
            known = self._known(object_id, info.state, drafts.get(object_id))
            found[object_id] = {
                "data_size": known.data.nbytes if known else objects.payload(info.size),
                "metadata_size": known.metadata.nbytes if known else 0,
                "ref_count": info.pins,
                "create_time": known.create_time if known else now - info.age_s,
                "construct_duration": known.construct_duration if known else 0.0,
                "state": "created" if info.state == "draft" else "sealed",
            }
        return found

    def _known(self, object_id: ObjectID, state: str, draft: Draft | None) -> objects.Parts | None:
        name = objects.name_of(object_id)
        with suppress(ObjectNotFoundError, StoreFullError, GetTimeoutError):
            if draft is not None:
                return objects.parts(draft.buffer, name)
            if state in ("resident", "clean"):
                return objects.parts(self.store.lookup(name).get(timeout=0), name)
        return None


def _left(end: float | None) -> float | None:
    return None if end is None else max(end - time.monotonic(), 0.0)
