"""Millpond: the memory your processes share. When it is full, it spills."""

from millpond.errors import (
    AttachError,
    GetTimeoutError,
    MillpondError,
    ObjectDeletedError,
    ObjectLostError,
    ObjectNotFoundError,
    SerializationError,
    SpillError,
    StoreBusyError,
    StoreClosedError,
    StoreCorruptedError,
    StoreFullError,
)
from millpond.hot import Draft, ObjectRef, weak_pickling
from millpond.spill.codec import Codec, register_codec
from millpond.store.culprit import Failure
from millpond.store.explain import Explanation, Part
from millpond.store.info import Holders, ObjectInfo, Stats
from millpond.store.reducers import register_reducer
from millpond.store.serializability import Serializability, inspect_serializability
from millpond.store.store import Store, connect, load_ref
from millpond.store.timeline import timeline

__version__ = "0.1.0"

__all__ = [
    "AttachError",
    "Codec",
    "Draft",
    "Explanation",
    "Failure",
    "GetTimeoutError",
    "Holders",
    "MillpondError",
    "ObjectDeletedError",
    "ObjectInfo",
    "ObjectLostError",
    "ObjectNotFoundError",
    "ObjectRef",
    "Part",
    "Serializability",
    "SerializationError",
    "SpillError",
    "Stats",
    "Store",
    "StoreBusyError",
    "StoreClosedError",
    "StoreCorruptedError",
    "StoreFullError",
    "__version__",
    "connect",
    "inspect_serializability",
    "load_ref",
    "register_codec",
    "register_reducer",
    "timeline",
    "weak_pickling",
]
