"""Millpond: the memory your processes share. When it is full, it spills."""

from importlib import import_module
from os import environ
from typing import TYPE_CHECKING, Any

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
from millpond.store.connect import connect, load_ref
from millpond.store.store import Store
from millpond.values.reducers import register_reducer

if TYPE_CHECKING:
    from millpond.refcount.holders import Holders
    from millpond.store.info import ObjectInfo, Stats
    from millpond.store.recorder import timeline
    from millpond.values.culprit import Failure
    from millpond.values.explain import Explanation, Part
    from millpond.values.serializability import Serializability, inspect_serializability

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

_LATER = {
    "Explanation": "values.explain",
    "Failure": "values.culprit",
    "Holders": "refcount.holders",
    "ObjectInfo": "store.info",
    "Part": "values.explain",
    "Serializability": "values.serializability",
    "Stats": "store.info",
    "inspect_serializability": "values.serializability",
    "timeline": "store.recorder",
}
"""Public names that no put or get needs, and their modules: imported when they are first used. They are slow
to import."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"millpond.{_LATER[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


if "MILLPOND_TIMELINE" in environ:
    import_module("millpond.store.recorder")  # begins to record
