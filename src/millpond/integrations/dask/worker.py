"""What a worker does differently, and its nanny: Dask's preload.

Invariants: a task's arguments are read from disk, and its result is copied into the store, in threads; the
event loop of a worker waits for neither. Shared pages are nobody's own: the monitors of worker and nanny
count what a process has beside them.
Not here: the values (data.py), their places (transfer.py).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any

import click
from distributed import Nanny, Worker
from distributed.worker_state_machine import ExecuteSuccessEvent, GatherDepSuccessEvent

from millpond.integrations.dask.data import WorkerData
from millpond.integrations.dask.transfer import CLIENT, WORKER, declare, takes_places
from millpond.integrations.own_memory import own_memory

__all__ = ["dask_setup", "dask_teardown"]


def _setup(
    server: Worker | Nanny, store_name: str | None, store_spill_dir: tuple[str, ...], **options: Any
) -> None:
    """Makes a worker share its values, and a nanny count only its worker's own memory."""
    if isinstance(server, Nanny):
        _guard(server)
        return
    if not isinstance(server.data, WorkerData):
        name = store_name or "dask-" + re.sub(r"\W+", "-", server.scheduler.address)
        given = {key.removeprefix("store_"): value for key, value in options.items() if value is not None}
        data = WorkerData(name, spill_dir=list(store_spill_dir) or None, **given)
        server.memory_manager.data = server.state.data = data  # nothing is in it yet
    _share(server, server.data)


dask_setup = click.Command(
    "dask_setup",
    callback=_setup,
    params=[
        click.Option(["--store-memory-limit"], help="Shared memory of all workers of this machine together."),
        click.Option(["--store-spill-dir"], multiple=True, help="Where values go when memory is full."),
        click.Option(["--store-spill-limit"], help="Bytes on disk at most; 0: never spill."),
        click.Option(["--store-compression"], help="none, lz4 or auto."),
        click.Option(["--store-name"], help="The store that workers share; default: one per scheduler."),
    ],
)


def dask_teardown(server: Worker | Nanny) -> None:
    """A worker that closes gives its values up."""
    if isinstance(server, Worker) and isinstance(server.data, WorkerData):
        server.data.close()


def _share(worker: Worker, data: WorkerData) -> None:
    """Puts the steps below around those of a worker."""
    declare(worker.rpc, WORKER, [data.uuid])
    worker.monitor.get_process_memory = partial(own_memory, worker.monitor.proc.pid)
    worker.execute = partial(_execute, worker, data, worker.execute)
    worker.gather_dep = partial(_gather_dep, data, worker.gather_dep)
    worker.handlers["get_data"] = _get_data(data, worker.get_data)
    worker.handlers["update_data"] = _update_data(data, worker.update_data)


async def _execute(
    worker: Worker, data: WorkerData, execute: Callable[..., Awaitable[Any]], key: Any, **kwargs: Any
) -> Any:
    task = worker.state.tasks.get(key)
    needed = [] if task is None else [dependency.key for dependency in task.dependencies]
    async with data.prepare(needed) as inputs:
        event = await execute(key, **kwargs)
        if isinstance(event, ExecuteSuccessEvent) and key not in worker.state.actors:
            event.value = await data.offer(event.value, inputs)
    return event


async def _gather_dep(
    data: WorkerData, gather_dep: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any
) -> Any:
    event = await gather_dep(*args, **kwargs)
    if isinstance(event, GatherDepSuccessEvent):
        event.data = {key: await data.offer(value) for key, value in event.data.items()}
    return event


def _get_data(data: WorkerData, get_data: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def get_places_or_bytes(comm: Any, keys: Collection[Any], **kwargs: Any) -> Any:
        place = any(takes_places(comm, role, data.uuid) for role in (WORKER, CLIENT))
        async with data.prepare(keys, place=place, load=not place):
            return await get_data(comm, keys, **kwargs)

    return get_places_or_bytes


def _update_data(data: WorkerData, update_data: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    async def update(**kwargs: Any) -> Any:
        kwargs["data"] = {key: await data.offer(value) for key, value in kwargs["data"].items()}
        return update_data(**kwargs)

    return update


def _guard(nanny: Nanny) -> None:
    """The nanny ends a worker for its RSS: let it look only when the worker's own memory is too large."""
    monitor = nanny.periodic_callbacks.get("memory_monitor")
    if monitor is None:
        return
    manager, judge = nanny.memory_manager, monitor.callback

    def look() -> None:
        process = nanny.process and nanny.process.process
        limit = manager.memory_limit * manager.memory_terminate_fraction
        if process is not None and process.pid is not None and own_memory(process.pid) > limit:
            judge()

    monitor.callback = look
