"""What a Dask worker keeps: values by key in one store, places that travel, memory that is counted once."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import millpond
from daskjobs import Traced, nested, words
from ponds import Pond

pytest.importorskip("distributed", reason="dask's distributed is not installed")

from distributed.comm import CommClosedError
from distributed.protocol import deserialize, serialize

from millpond.integrations.dask import cluster_options, worker
from millpond.integrations.dask.data import Datum, WorkerData
from millpond.integrations.dask.transfer import CLIENT, WORKER
from millpond.integrations.dask.weight import buffer_bytes
from millpond.integrations.own_memory import own_memory
from millpond.store import restore

BIG = 50_000


@pytest.fixture
def data(pond: Pond) -> Iterator[WorkerData]:
    """A worker's values in a store of 64 MiB named "dask"."""
    pond.store(name="dask")
    data = WorkerData("dask")
    yield data
    data.close()


@pytest.fixture
def store(data: WorkerData) -> millpond.Store:
    return millpond.connect("dask")


def test_large_values_are_objects_and_counts_follow_the_keys(data: WorkerData, store: millpond.Store) -> None:
    data["a"] = np.arange(BIG)
    data["b"] = {"inner": [np.ones(BIG)], "rest": "text"}
    data["c"] = 1
    assert (len(data), set(data), len(store)) == (3, {"a", "b", "c"}, 2)
    assert not data["a"].flags.writeable and not data["b"]["inner"][0].flags.writeable
    assert (data["a"][7], data["b"]["rest"], data["c"]) == (7, "text", 1)
    assert data.spilled_total == (sum(info.size for info in store.objects()),) * 2
    data["a"] = 2
    assert (data["a"], len(store)) == (2, 1)
    del data["b"]
    assert (len(store), data.spilled_total) == (0, (0, 0))
    with pytest.raises(KeyError):
        data["b"]


def test_a_value_is_built_once_as_long_as_somebody_has_it(data: WorkerData) -> None:
    data["a"] = nested(BIG)["table"]
    table = data["a"]
    assert data["a"] is table


@pytest.mark.parametrize(
    ("value", "shared"),
    [
        (np.ones(BIG), True),
        (np.ones((BIG, 2))[:, 0], True),
        (np.array([object()] * BIG), False),
        (nested(BIG), True),
        (words(200_000), False),
        ((lambda: None, np.ones(BIG)), False),
        (b"x" * (2 << 20), False),
    ],
    ids=["array", "array with gaps", "objects", "nested", "strings", "not picklable", "bytes"],
)
def test_what_is_worth_sharing(value: Any, shared: bool) -> None:
    assert (buffer_bytes(value) >= 8 * BIG) == shared


def test_private_values_go_into_the_store_when_dask_asks(data: WorkerData, store: millpond.Store) -> None:
    data["lock"] = threading.Lock()
    data["words"] = words(10_000)
    data["more"] = words(10)
    assert list(data.fast) == ["lock", "words", "more"] and len(store) == 0
    assert data.evict() == -1  # nobody can store a lock; it is not asked again
    assert data.evict() > 10_000
    assert list(data.fast) == ["more"] and len(store) == 1
    assert data["words"][-1] == "word 9999"
    del data["words"], data["more"], data["lock"]
    assert not data.fast


def test_what_the_store_cannot_take_stays_private(pond: Pond) -> None:
    store = pond.store("2MiB", spill_dir=None, spill_limit=0, name="small")
    data = WorkerData("small")
    data["a"] = np.ones(1_000_000)
    assert data["a"].sum() == 1_000_000 and len(store) == 0
    assert data.evict() == -1 and "a" in data.fast
    data.close()


def test_a_task_that_returns_its_argument_makes_no_second_object(
    data: WorkerData, store: millpond.Store
) -> None:
    async def run() -> None:
        data["a"] = np.ones(BIG)
        async with data.prepare(["a"]) as inputs:
            data["b"] = await data.offer(data["a"], inputs)
            data["c"] = await data.offer(data["a"] * 2, inputs)

    asyncio.run(run())
    assert len(store) == 2
    del data["a"]
    assert data["b"].sum() == BIG


def test_the_event_loop_neither_reads_nor_copies(data: WorkerData, store: millpond.Store) -> None:
    async def run() -> None:
        copied_by: list[int] = []
        data._put = lambda value: copied_by.append(threading.get_ident()) or store.put(value)  # type: ignore[method-assign, func-returns-value]
        data["a"] = await data.offer(Traced(np.ones(BIG)))
        store.spill()
        async with data.prepare(["a"]):
            del data["a"]
            assert data["a"].loaded_by != threading.get_ident()
            assert data["a"].array.sum() == BIG
        assert "a" not in data and copied_by != [threading.get_ident()]
        with pytest.raises(KeyError):
            data["a"]

    asyncio.run(run())


def test_a_place_is_loaded_once_often_or_never(data: WorkerData, store: millpond.Store) -> None:
    data["a"] = np.ones(BIG)
    datum = data._data["a"]
    assert datum.ref is not None
    header, frames = serialize(datum, context={"recipient": {WORKER: [data.uuid.hex()]}})
    assert frames == []
    copies = [deserialize(header, frames) for _ in range(3)]
    assert all(type(copy) is Datum and copy.ref == datum.ref for copy in copies)
    assert store.refs(datum.ref).handoffs == ()
    whole = deserialize(*serialize(datum, context={"recipient": {CLIENT: [data.uuid.hex()]}}))
    assert whole.sum() == BIG and not whole.flags.writeable
    del copies, datum, data["a"]
    assert len(store) == 0
    with pytest.raises(CommClosedError, match="gone"):
        deserialize(header, frames)


def test_closing_gives_up_everything_and_late_results_are_private(
    data: WorkerData, store: millpond.Store
) -> None:
    data["a"] = np.ones(BIG)
    data.close()
    assert len(store) == 0 and len(data) == 0
    assert data.datum(np.ones(BIG)).ref is None


def test_memory_is_counted_without_shared_pages(pond: Pond) -> None:
    store = pond.store("192MiB")
    before = own_memory(os.getpid())
    array = store.get(store.put(np.ones(16_000_000)))
    assert array.sum() == 16_000_000
    assert own_memory(os.getpid()) - before < 64_000_000
    assert own_memory(2**22 + 1) == 0


def test_a_nanny_judges_only_who_has_too_much_of_its_own() -> None:
    judged: list[bool] = []
    monitor = SimpleNamespace(callback=lambda: judged.append(True))
    nanny = SimpleNamespace(
        periodic_callbacks={"memory_monitor": monitor},
        memory_manager=SimpleNamespace(memory_limit=1 << 40, memory_terminate_fraction=0.95),
        process=SimpleNamespace(process=SimpleNamespace(pid=os.getpid())),
    )
    worker._guard(nanny)
    monitor.callback()
    assert judged == []
    nanny.memory_manager.memory_limit = 1
    monitor.callback()
    assert judged == [True]
    nanny.process = None
    monitor.callback()
    worker._guard(SimpleNamespace(periodic_callbacks={}))
    assert judged == [True]


def test_options_are_checked_where_they_are_given() -> None:
    with pytest.raises(ValueError, match="memory_limit"):
        cluster_options(1)
    with pytest.raises(ValueError, match="share_above"):
        cluster_options("1GiB", share_above=-1)
    with pytest.raises(TypeError):
        cluster_options("1GiB", colour="red")
    assert cluster_options()["data"][1]["name"] != cluster_options()["data"][1]["name"]


def test_a_task_that_needs_more_than_memory(pond: Pond, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused after one wait for room, not after one for each of its arguments."""
    monkeypatch.setattr(restore, "GIVE_UP_S", 0.01)
    refused, load = [], Datum.load

    def counted(datum: Datum) -> Any:
        try:
            return load(datum)
        except millpond.StoreFullError:
            refused.append(1)
            raise

    monkeypatch.setattr(Datum, "load", counted)
    pond.store("4MiB", overflow_limit="1MiB", name="dask")
    data = WorkerData("dask")
    for n in range(20):
        data[n] = np.full(BIG, n)

    async def run() -> float:
        async with data.prepare(list(data)):
            with pytest.raises(millpond.StoreFullError, match="raise memory_limit"):
                [data[n] for n in data]
            return float(data[0][0])

    assert asyncio.run(run()) == 0 and len(refused) == 2
    data.close()
