"""Dask workers of one machine keep their values in one store, and hand them to each other without copying.

    cluster = LocalCluster(n_workers=4, **cluster_options(memory_limit="8GiB"))

    dask worker tcp://scheduler:8786 --preload millpond.integrations.dask \\
        --preload-nanny millpond.integrations.dask --store-memory-limit 8GiB

data.py is what a worker keeps, transfer.py how it travels, worker.py what a worker does differently,
client.py how results are read in place. This module is Dask's preload.
Not here: what a store does when it is full (millpond.store), moves between machines (Dask).
"""

from __future__ import annotations

import uuid
from typing import Any

from millpond.integrations.calls import check_options
from millpond.integrations.dask.client import attach
from millpond.integrations.dask.data import SHARE_ABOVE, WorkerData
from millpond.integrations.dask.worker import dask_setup, dask_teardown
from millpond.store.options import Options

__all__ = ["WorkerData", "attach", "cluster_options", "dask_setup", "dask_teardown"]


def cluster_options(
    memory_limit: int | str | None = None,
    *,
    name: str | None = None,
    share_above: int = SHARE_ABOVE,
    processes: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Keyword arguments for `LocalCluster`, or for the workers of another cluster that starts nannies.

    memory_limit: bytes of shared memory for all workers of a machine together, as for `Store`; so are the
        other options. Dask's own memory_limit then bounds what each worker has beside it.
    name: of the store; None: a new one. Clusters of one name share a store.
    share_above: bytes of arrays and buffers from which on a value is shared.
    processes: False for workers that are threads of this process.
    Raises ValueError, TypeError.
    """
    Options.check(memory_limit, **options)
    check_options(None, share_above)
    store = {
        "name": name or f"dask-{uuid.uuid4().hex[:12]}",
        "share_above": share_above,
        "memory_limit": memory_limit,
        **options,
    }
    found = {"data": (WorkerData, store), "preload": [__name__], "processes": processes}
    return {**found, "preload_nanny": [__name__]} if processes else found
