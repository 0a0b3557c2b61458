"""How a value travels: as its place, to a process that has said it takes places of this store.

Each side of Dask's connections tells the other about itself in a handshake; there the receiver names its
stores. Its request is answered with places then, and with bytes otherwise.
Invariants: a place takes no hand-off: the worker that sends it keeps its ref until the receiver has
confirmed (Dask's `get_data` does), so a place may be loaded once, often or never.
Not here: which values are shared (data.py).
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any

from dask.sizeof import sizeof
from distributed.comm.core import CommClosedError
from distributed.protocol.serialize import dask_deserialize, dask_serialize

from millpond import AttachError, ObjectNotFoundError, weak_pickling
from millpond.integrations.dask.data import Datum

__all__ = ["CLIENT", "WORKER", "declare", "takes_places"]

WORKER, CLIENT = "millpond-worker", "millpond-client"
"""Who asks, in the handshake: a worker keeps a place as it is, a client wants the value there."""


def declare(pool: Any, role: str, uuids: Iterable[bytes]) -> None:
    """Connections that this pool opens from now on say from which stores they take places."""
    overrides = pool.connection_args.get("handshake_overrides") or {}
    overrides = {**overrides, role: [uuid.hex() for uuid in uuids]}
    pool.connection_args = {**pool.connection_args, "handshake_overrides": overrides}


def takes_places(comm: Any, role: str, uuid: bytes) -> bool:
    """Whether the other side of a connection takes places of that store, in that role."""
    return uuid.hex() in comm.remote_info.get(role, ())


def _dump(datum: Datum, context: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    with weak_pickling():
        ref = pickle.dumps(datum.ref)
    return {"ref": ref, "value": CLIENT in context["recipient"]}, []


def _load(header: dict[str, Any], frames: list[bytes]) -> Any:
    try:
        datum = Datum(pickle.loads(header["ref"]))
        return datum.load() if header["value"] else datum
    except (ObjectNotFoundError, AttachError) as error:
        # Its sender has died since: to Dask that is a broken connection, after which it asks another worker.
        raise CommClosedError(f"the worker that sent a place in the store is gone: {error}") from error


def _sizeof(datum: Datum) -> int:
    return datum.nbytes


sizeof.register(Datum, _sizeof)
dask_serialize.register(Datum, _dump)
dask_deserialize.register(Datum, _load)
