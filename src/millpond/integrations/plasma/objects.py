"""Where a Plasma object is in the store: a buffer under the name "plasma:" and its id in hex digits.

Layout of the buffer: the data, the metadata, a tail with the metadata's size and two times. One object, so
that data and metadata come and go together; the tail last, so that the data is aligned as the store aligns
it.
Invariants: only a sealed object's tail is read; an object whose writer has died keeps its name only until
somebody meets it.
Not here: who may remove objects, and when (client.py).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from millpond import Draft, ObjectNotFoundError, ObjectRef, Store
from millpond.hot import STATES, load_contained
from millpond.integrations.plasma.errors import PlasmaObjectNotFound
from millpond.integrations.plasma.ids import ObjectID

PREFIX = "plasma:"
BUFFER_HEAD = 64
"""Bytes that the store puts before a buffer's own."""

_TAIL = struct.Struct("<QddQ")
_RESIDENT = [code for code, text in STATES.items() if text == "resident"]
_IN_MEMORY = [code for code, text in STATES.items() if text in ("draft", "resident")]
_MAGIC = 0x6C61_7061_6D73_616C


class Parts(NamedTuple):
    """A sealed object: its bytes, and what is known about it."""

    data: memoryview
    metadata: memoryview
    create_time: float
    construct_duration: float


def name_of(object_id: ObjectID) -> str:
    """The name under which an object is held."""
    if not isinstance(object_id, ObjectID):
        raise TypeError(f"expected an ObjectID, not {type(object_id).__name__}")
    return PREFIX + object_id.binary().hex()


def id_of(name: str | None) -> ObjectID | None:
    """The id that a name belongs to, or None if it is no Plasma object's."""
    if name is None or not name.startswith(PREFIX):
        return None
    try:
        return ObjectID(bytes.fromhex(name[len(PREFIX) :]))
    except ValueError:
        return None


def nbytes(data_size: int, metadata: bytes) -> int:
    """Bytes of the buffer that holds an object."""
    return data_size + len(metadata) + _TAIL.size


def payload(stored: int) -> int:
    """Bytes of data and metadata of an object of which the store keeps `stored` bytes."""
    return stored - BUFFER_HEAD - _TAIL.size


def fill(draft: Draft, metadata: bytes) -> memoryview:
    """Writes everything but the data; gives the data's memory."""
    memory = draft.buffer
    end = memory.nbytes - _TAIL.size
    memory[end - len(metadata) : end] = metadata
    _TAIL.pack_into(memory, end, len(metadata), time.time(), 0.0, _MAGIC)
    return memory[: end - len(metadata)]


def finish(draft: Draft) -> tuple[int, int]:
    """Notes, before the seal, how long the writing took; (data size, metadata size)."""
    memory = draft.buffer
    at = memory.nbytes - _TAIL.size
    size, created, _, magic = _TAIL.unpack_from(memory, at)
    _TAIL.pack_into(memory, at, size, created, max(time.time() - created, 0.0), magic)
    return at - size, size


def parts(memory: Any, name: str) -> Parts:
    """The parts of an object's buffer. Raises PlasmaObjectNotFound for anything else."""
    if isinstance(memory, memoryview) and memory.nbytes >= _TAIL.size:
        end = memory.nbytes - _TAIL.size
        size, created, duration, magic = _TAIL.unpack_from(memory, end)
        if magic == _MAGIC and size <= end:
            return Parts(memory[: end - size], memory[end - size : end], created, duration)
    raise PlasmaObjectNotFound(f"{name!r} names something that no PlasmaClient has stored")


def forget(store: Store, name: str, ref: ObjectRef) -> None:
    """Takes the name off an object that is gone."""
    with suppress(ObjectNotFoundError):
        if store.lookup(name) == ref:
            store.delete(name)


def used(store: Store) -> int:
    """Bytes of data and metadata of all objects in memory."""
    survey = store._survey()
    rows = survey[np.isin(survey["state"], _IN_MEMORY) & (survey["name"] != 0)]
    return int(np.maximum(rows["size"].astype(np.int64) - BUFFER_HEAD - _TAIL.size, 0).sum())


def unused(store: Store) -> Iterator[tuple[ObjectID, ObjectRef]]:
    """Sealed objects in memory that nobody uses, the longest unread first; none that is used meanwhile."""
    survey = store._survey()
    rows = survey[
        np.isin(survey["state"], _RESIDENT)
        & (survey["pins"] == 0)
        & (survey["holders"] == 0)
        & (survey["name"] != 0)
    ]
    for row in rows[np.argsort(-rows["idle_s"], kind="stable")]:
        object_id = id_of(store._name_text(int(row["name"])))
        if object_id is None:
            continue
        with suppress(ObjectNotFoundError):
            ref = load_contained(store.uuid, int(row["entry"]), int(row["birth"]))
            if store.lookup(name_of(object_id)) == ref and not store.refs(ref).pins:
                yield object_id, ref
