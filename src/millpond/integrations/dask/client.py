"""A client on the workers' machine that reads results in place."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import Any

from distributed import Client, Worker

from millpond import AttachError, Store, connect, log
from millpond.integrations.dask.data import WorkerData
from millpond.integrations.dask.transfer import CLIENT, declare

__all__ = ["attach"]

_stores: weakref.WeakKeyDictionary[Client, list[Store]] = weakref.WeakKeyDictionary()


def attach(client: Client) -> Any:
    """Lets `client` read results where they are: their arrays are read-only views of the store.

    Call it before the first result is read. Results are then fetched from the workers, not through the
    scheduler; those of workers on other machines come as bytes. Await it if the client is asynchronous.
    A warning is logged if no worker has a store here.
    """
    return client.sync(_attach, client)


async def _attach(client: Client) -> None:
    addresses = await client._run(_address)
    stores = []
    for address in {address for address in addresses.values() if address is not None}:
        with suppress(AttachError):  # a store of another machine
            stores.append(connect(address))
    if not stores:
        log.warning(
            "none of the %d workers has a store on this machine: results will be copied. Workers share one "
            "when the cluster is started with cluster_options()",
            len(addresses),
        )
    _stores[client] = stores
    declare(client.rpc, CLIENT, [store.uuid for store in stores])
    client.direct_to_workers = True


def _address(dask_worker: Worker) -> str | None:
    return dask_worker.data.address if isinstance(dask_worker.data, WorkerData) else None
