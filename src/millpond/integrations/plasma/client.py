"""`PlasmaClient`: create, seal, get and the rest, as Plasma's documentation describes them.

The store knows what Plasma's server knew: a name holds an object, an unsealed object is a draft of its
client, a buffer pins it.
Invariants: a client that dies takes only its unsealed objects with it; a forked child ends nothing of its
parent's.
Not here: which objects there are, and which go (catalogue.py), bytes (objects.py, buffers.py),
subscriptions (notices.py), the process that keeps a store (keeper.py).
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from builtins import list as List  # in the class, `list` is the method
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import xxhash

import millpond
from millpond import AttachError, Draft, ObjectNotFoundError, Store
from millpond.integrations.plasma import buffers, notices, objects
from millpond.integrations.plasma.catalogue import Catalogue
from millpond.integrations.plasma.errors import (
    PlasmaConnectionError,
    PlasmaObjectExists,
    PlasmaObjectNotFound,
    PlasmaObjectSealed,
)
from millpond.integrations.plasma.ids import ObjectID, ObjectNotAvailable
from millpond.integrations.plasma.keeper import store_name
from millpond.store import membership

__all__ = ["PlasmaClient", "connect"]

RETRIES = 50
RETRY_S = 0.1

_opening = threading.Lock()
_clients: weakref.WeakKeyDictionary[Store, int] = weakref.WeakKeyDictionary()
"""Of the stores that were joined here, how many clients this process has. The last one leaves."""


def connect(store_socket_name: str, num_retries: int = -1) -> PlasmaClient:
    """A client of the store with that name, of any Millpond store by its name or address.

    num_retries: times to try again, a tenth of a second apart; -1: 50. The last client of the process leaves
    the store, unless the process had joined it before.
    Raises PlasmaConnectionError, which is an OSError.
    """
    for retries_left in range(RETRIES if num_retries < 0 else num_retries, -1, -1):
        try:
            return PlasmaClient(_join(store_name(store_socket_name)), store_socket_name)
        except AttachError as error:
            if retries_left == 0:
                raise PlasmaConnectionError(str(error)) from error
        time.sleep(RETRY_S)
    raise AssertionError("the last try returns or raises")


class PlasmaClient:
    """A client of a store. Made by `connect`; safe to use from many threads.

    Object ids are `ObjectID`; sizes are bytes; times to wait are milliseconds, -1 for ever, 0 not at all.
    """

    def __init__(self, store: Store, store_socket_name: str) -> None:
        self._objects: Catalogue | None = Catalogue(store)
        self._socket_name = store_socket_name
        self._drafts: dict[ObjectID, Draft] = {}
        self._subscription: notices.Subscription | None = None
        self._pid = os.getpid()

    @property
    def store_socket_name(self) -> str:
        """What `connect` was given."""
        return self._socket_name

    @property
    def _catalogue(self) -> Catalogue:
        if self._objects is None:
            raise PlasmaConnectionError("this client was disconnected")
        return self._objects

    def disconnect(self) -> None:
        """Ends the client: its unsealed objects and its subscription go, buffers stay valid. Idempotent."""
        catalogue, self._objects = self._objects, None
        subscription, self._subscription = self._subscription, None
        drafts, self._drafts = self._drafts, {}
        if catalogue is None or catalogue.store.closed or os.getpid() != self._pid:
            return
        if subscription is not None:
            subscription.end()
        for object_id, draft in drafts.items():
            _discard(catalogue.store, object_id, draft)
        del drafts
        _leave(catalogue.store)

    def __del__(self) -> None:
        if getattr(self, "_objects", None) is not None:
            self.disconnect()

    def __reduce__(self) -> Any:
        raise TypeError("a client is not pickled: pass its store_socket_name and connect")

    # --- storing ---

    def create(self, object_id: ObjectID, data_size: int, metadata: bytes = b"") -> Any:
        """A writable buffer of `data_size` bytes; nobody else sees the object before `seal`.

        Raises PlasmaObjectExists, PlasmaStoreFull, ValueError.
        """
        return buffers.buffer_over(self._create(object_id, data_size, bytes(metadata)))

    def seal(self, object_id: ObjectID) -> None:
        """Publishes an object that this client created. From now on, write no more into its buffer.

        Raises PlasmaObjectNotFound, PlasmaObjectSealed; PlasmaStoreFull if it is sealed, but a subscriber
        cannot be told for want of room.
        """
        catalogue, name = self._catalogue, objects.name_of(object_id)
        draft = self._drafts.pop(object_id, None)
        if draft is None:
            if catalogue.sealed(object_id):
                raise PlasmaObjectSealed(f"{object_id!r} is sealed already")
            raise PlasmaObjectNotFound(f"this client has created no {object_id!r}")
        data_size, metadata_size = objects.finish(draft)
        ref = draft._seal_shared()
        with suppress(ObjectNotFoundError):  # deleted while it was written
            if catalogue.store.lookup(name) == ref:
                catalogue.publish(object_id, data_size, metadata_size)

    def create_and_seal(self, object_id: ObjectID, data: bytes, metadata: bytes = b"") -> None:
        """Stores a copy of `data`. Raises PlasmaObjectExists, PlasmaStoreFull."""
        self._store_pieces(object_id, [(0, memoryview(data))], len(data), bytes(metadata))

    def put_raw_buffer(
        self, value: Any, object_id: ObjectID | None = None, metadata: bytes = b"", memcopy_threads: int = 6
    ) -> ObjectID:
        """Stores a copy of anything with the buffer interface under an id, which it returns.

        memcopy_threads: without meaning. Raises PlasmaObjectExists, PlasmaStoreFull.
        """
        object_id = object_id or ObjectID.from_random()
        view = memoryview(value)
        data = view.cast("B") if view.c_contiguous else memoryview(view.tobytes())
        self._store_pieces(object_id, [(0, data)], data.nbytes, bytes(metadata))
        return object_id

    def put(
        self,
        value: Any,
        object_id: ObjectID | None = None,
        memcopy_threads: int = 6,
        serialization_context: None = None,
    ) -> ObjectID:
        """Stores any picklable value under an id, which it returns.

        memcopy_threads: without meaning. serialization_context: was Arrow's; use `millpond.register_reducer`.
        Raises SerializationError, PlasmaObjectExists, PlasmaStoreFull.
        """
        _refuse_context(serialization_context)
        object_id = object_id or ObjectID.from_random()
        pieces, size = buffers.value_parts(value)
        self._store_pieces(object_id, pieces, size, b"")
        return object_id

    def _create(self, object_id: ObjectID, data_size: int, metadata: bytes) -> memoryview:
        catalogue, name = self._catalogue, objects.name_of(object_id)
        if data_size < 0:
            raise ValueError(f"an object has no {data_size} bytes")
        catalogue.ensure_free(object_id)
        size = objects.nbytes(data_size, metadata)
        try:
            draft = catalogue.with_room(
                data_size + len(metadata), lambda: catalogue.store.create_buffer(size, name=name)
            )
        except ValueError:
            raise PlasmaObjectExists(f"{object_id!r} exists already") from None
        self._drafts[object_id] = draft
        return objects.fill(draft, metadata)

    def _store_pieces(
        self, object_id: ObjectID, pieces: Iterable[tuple[int, Any]], size: int, metadata: bytes
    ) -> None:
        memory = self._create(object_id, size, metadata)
        try:
            target = np.frombuffer(memory, np.uint8)
            for offset, piece in pieces:  # numpy lets other threads run while it copies
                target[offset : offset + len(piece)] = np.frombuffer(piece, np.uint8)
            self.seal(object_id)
        except BaseException:
            draft = self._drafts.pop(object_id, None)
            if draft is not None:
                _discard(self._catalogue.store, object_id, draft)
            raise

    # --- reading ---

    def get_buffers(
        self, object_ids: Iterable[ObjectID], timeout_ms: int = -1, with_meta: bool = False
    ) -> List[Any]:
        """Read-only buffers, None for what is not there in time; with_meta: (metadata bytes, buffer) pairs.

        Raises PlasmaStoreFull when what is on disk finds no room.
        """
        found = []
        for parts in self._await(object_ids, timeout_ms):
            data = None if parts is None else buffers.buffer_over(parts.data)
            metadata = None if parts is None else bytes(parts.metadata)
            found.append((metadata, data) if with_meta else data)
        return found

    def get_metadata(self, object_ids: Iterable[ObjectID], timeout_ms: int = -1) -> List[Any]:
        """Read-only buffers of the metadata, None for what is not there in time."""
        found = self._await(object_ids, timeout_ms)
        return [None if parts is None else buffers.buffer_over(parts.metadata) for parts in found]

    def get(
        self,
        object_ids: ObjectID | Sequence[ObjectID],
        timeout_ms: int = -1,
        serialization_context: None = None,
    ) -> Any:
        """The value, or the list of values, that `put` stored; ObjectNotAvailable for what is not there in
        time. Arrays are read-only views. Raises SerializationError for what `put` did not store.
        """
        _refuse_context(serialization_context)
        if not isinstance(object_ids, Sequence):
            return self.get([object_ids], timeout_ms)[0]
        found = self._await(object_ids, timeout_ms)
        return [ObjectNotAvailable if parts is None else buffers.value_of(parts.data) for parts in found]

    def contains(self, object_id: ObjectID) -> bool:
        """Whether the object is there and sealed, in memory or on disk."""
        return self._catalogue.sealed(object_id) is not None

    def hash(self, object_id: ObjectID) -> bytes:
        """The xxh64 checksum, 8 bytes, of data and metadata. Raises PlasmaObjectNotFound."""
        (parts,) = self._await([object_id], 0)
        if parts is None:
            raise PlasmaObjectNotFound(f"there is no sealed {object_id!r}")
        state = xxhash.xxh64(parts.data)
        state.update(parts.metadata)
        return state.digest()

    def _await(self, object_ids: Iterable[ObjectID], timeout_ms: int) -> List[objects.Parts | None]:
        catalogue = self._catalogue
        end = None if timeout_ms < 0 else time.monotonic() + timeout_ms / 1000
        return [catalogue.wait(object_id, end) for object_id in object_ids]

    # --- removing and listing ---

    def delete(self, object_ids: Iterable[ObjectID]) -> None:
        """Removes objects. Who has a buffer keeps it; nobody else finds the object any more."""
        for object_id in object_ids:
            self._catalogue.remove(object_id)

    def evict(self, num_bytes: int) -> int:
        """Removes unused objects, the longest unread first, until at least `num_bytes` of data and metadata
        are gone; the bytes. In a store that keeps what it evicts they go to disk."""
        return self._catalogue.evict(num_bytes)[0]

    def list(self) -> dict[ObjectID, dict[str, Any]]:
        """What is known of each object: data_size, metadata_size, ref_count (processes that have a buffer),
        create_time (seconds since 1970), construct_duration (seconds), state ("created" or "sealed").

        Restores nothing: of what is on disk, and of what others are writing, data_size has the metadata's
        bytes in it, and metadata_size and construct_duration are 0.
        """
        return self._catalogue.describe(self._drafts)

    def store_capacity(self) -> int:
        """The bytes of data and metadata that the store was started with."""
        return self._catalogue.terms.capacity

    def debug_string(self) -> str:
        """The store's figures, for people."""
        return str(self._catalogue.store.stats())

    # --- notices ---

    def subscribe(self) -> None:
        """From now on this client is told what is sealed and deleted; first, of all that is there."""
        catalogue = self._catalogue
        if self._subscription is None:
            self._subscription = notices.Subscription(catalogue.store, catalogue.put_notice)
            self._subscription.begin_with(
                notices.RECORD.pack(object_id.binary(), info["data_size"], info["metadata_size"])
                for object_id, info in self.list().items()
                if info["state"] == "sealed"
            )

    def get_next_notification(self) -> tuple[ObjectID, int, int]:
        """(id, data size, metadata size) of the next object that was sealed, or (id, -1, -1) of one that was
        deleted; waits for it. Raises RuntimeError without a subscription."""
        (notice,) = notices.unpack(self._subscribed().receive())
        return notice

    def get_notification_socket(self) -> Any:
        """A stream socket, for event loops, of messages: the length in 8 bytes, then what
        `decode_notifications` takes. After this call all notices come through it."""
        return self._subscribed().stream()

    def decode_notifications(self, buf: bytes) -> tuple[List[ObjectID], List[int], List[int]]:
        """(ids, data sizes, metadata sizes) of a message from the socket."""
        ids, data_sizes, metadata_sizes = [], [], []
        for object_id, data_size, metadata_size in notices.unpack(buf):
            ids.append(object_id)
            data_sizes.append(data_size)
            metadata_sizes.append(metadata_size)
        return ids, data_sizes, metadata_sizes

    def _subscribed(self) -> notices.Subscription:
        if self._subscription is None:
            raise RuntimeError("call subscribe() first")
        return self._subscription

    def __repr__(self) -> str:
        return (
            f"<PlasmaClient {self._socket_name} {'disconnected' if self._objects is None else 'connected'}>"
        )


def _join(name: str) -> Store:
    with _opening:
        known = membership.known(name)
        store = known or millpond.connect(name)
        if known is None or store in _clients:
            _clients[store] = _clients.get(store, 0) + 1
        return store


def _leave(store: Store) -> None:
    with _opening:
        left = _clients.get(store, 0) - 1
        if left > 0:
            _clients[store] = left
        elif left == 0:
            del _clients[store]
            store.close()


def _discard(store: Store, object_id: ObjectID, draft: Draft) -> None:
    objects.forget(store, objects.name_of(object_id), draft.ref)
    draft.abort()


def _refuse_context(serialization_context: object) -> None:
    if serialization_context is not None:
        raise TypeError(
            "serialization contexts went with Arrow's own serialization: values are pickled, and "
            "millpond.register_reducer says how to take a type apart"
        )
