"""Dask clusters whose workers share a store: moves, counts, kills, machines, limits. Real processes."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import daskjobs
import millpond
from workers import wait_until

pytest.importorskip("distributed", reason="dask's distributed is not installed")

import dask
from distributed import Client, LocalCluster, wait

from millpond.integrations.dask import attach, cluster_options

BIG = 200_000
LIMIT = 64 << 20
PRELOAD = "millpond.integrations.dask"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where this machine's stores are listed; what Dask itself leaves on the disk is beside it."""
    path = tmp_path_factory.mktemp("dask") / "registry"
    scratch = dask.config.set({"temporary-directory": str(path.parent)})
    with scratch, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DASK_TEMPORARY_DIRECTORY", str(path.parent))
        patch.setenv("MILLPOND_DIR", str(path))
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        yield path
    gc.collect()  # Dask closes some of its sockets in cycles: later tests count descriptors


@pytest.fixture(scope="module")
def cluster(registry: Path) -> Iterator[LocalCluster]:
    """Two workers, each with one thread and little memory of its own, that share 64 MiB."""
    options = cluster_options(LIMIT, name="dask", spill_dir=registry.parent / "spill")
    with LocalCluster(
        n_workers=2, threads_per_worker=1, memory_limit="400MiB", dashboard_address=":0", **options
    ) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    """Afterwards, nothing may be left in the store."""
    with Client(cluster) as client:
        yield client
    store = millpond.connect("dask")
    wait_until(lambda: len(store) == 0 and store.stats().members == 3)
    wait_until(lambda: store.stats().committed_bytes == store.stats().warm_bytes)
    assert store.check() == []


@pytest.fixture
def store(client: Client) -> millpond.Store:
    return millpond.connect("dask")


@pytest.fixture
def workers(client: Client) -> list[str]:
    client.wait_for_workers(2)
    return list(client.scheduler_info()["workers"])


def holders(store: millpond.Store) -> list[int]:
    return sorted(info.holders for info in store.objects())


def test_a_move_is_a_place_and_counts_follow_the_scheduler(
    client: Client, store: millpond.Store, workers: list[str]
) -> None:
    first, second = workers
    array = client.submit(daskjobs.ones, BIG, workers=first)
    sums = client.submit(daskjobs.total, array, workers=second)
    assert sums.result() == (BIG, False)
    assert holders(store) == [2]  # one object, held by both
    same = client.submit(daskjobs.identity, array, workers=second)
    wait(same)
    assert holders(store) == [2]
    del array, sums
    assert client.submit(daskjobs.total, same, workers=first).result() == (BIG, False)
    del same
    wait_until(lambda: len(store) == 0)


def test_nested_values_are_shared(client: Client, store: millpond.Store, workers: list[str]) -> None:
    value = client.submit(daskjobs.nested, BIG, workers=workers[0])
    told = client.submit(daskjobs.describe, value, workers=workers[1]).result()
    expected = daskjobs.describe(daskjobs.nested(BIG))
    assert told == (*expected[:3], False, "nested") and holders(store) == [2]


def test_python_objects_move_as_ever(client: Client, store: millpond.Store, workers: list[str]) -> None:
    value = client.submit(daskjobs.words, 5_000, workers=workers[0])
    assert client.submit(len, value, workers=workers[1]).result() == 5_000
    assert len(store) == 0


def test_a_client_reads_in_place(client: Client, store: millpond.Store) -> None:
    future = client.submit(daskjobs.ones, BIG)
    copied = future.result()  # through the scheduler
    assert copied.sum() == BIG
    wait_until(lambda: [info.pins for info in store.objects()] == [0])  # the worker has sent it
    attach(client)
    array, small = client.gather([future, client.submit(daskjobs.pid)])
    assert [info.pins for info in store.objects()] == [1]
    assert not array.flags.writeable and small != os.getpid()
    del future
    wait_until(lambda: len(store) == 0)
    assert array.sum() == BIG  # a view outlives its key


def test_a_client_of_workers_without_a_store_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as plain:
        attach(plain)
    assert "none of the 1 workers has a store on this machine" in caplog.text


def test_no_worker_loads_what_a_client_reads_in_place(client: Client, store: millpond.Store) -> None:
    attach(client)
    future = client.submit(daskjobs.ones, BIG)
    array = future.result()
    assert set(client.run(daskjobs.loaded).values()) == {0} and array.sum() == BIG


def test_scattered_replicated_and_kept_by_an_actor(client: Client, store: millpond.Store) -> None:
    scattered = client.scatter(np.ones(BIG))
    client.replicate(scattered, 2)
    assert holders(store) == [2]
    counter = client.submit(daskjobs.Counter, actor=True).result()
    assert [counter.add().result() for _ in range(2)] == [1.0, 2.0]


def test_more_than_memory(client: Client, store: millpond.Store) -> None:
    futures = client.map(daskjobs.ones, range(1_000_000, 1_000_025))  # 200 MB
    sums = client.map(daskjobs.total, futures)
    assert [number for number, _ in client.gather(sums)] == list(range(1_000_000, 1_000_025))
    stats = store.stats()
    assert stats.spilled_bytes_total > LIMIT and stats.committed_bytes <= LIMIT


def test_xarray(client: Client, store: millpond.Store, workers: list[str]) -> None:
    xarray = pytest.importorskip("xarray", reason="xarray is not installed")
    grid = xarray.DataArray(np.arange(4.0 * BIG).reshape(4, BIG), dims=("time", "x"), name="grid")
    chunked = xarray.Dataset({"grid": grid, "mask": grid > 7}).chunk(time=1).persist()
    wait(chunked)
    assert store.stats().memory_bytes >= 4 * BIG * 9 and 8 <= len(store) <= 9  # chunks; maybe their source
    means = chunked["grid"].where(chunked["mask"], 0).mean("x").compute()
    assert float(means[-1]) == float(grid[-1].mean())
    writable = chunked["grid"].data.map_blocks(daskjobs.writable, dtype=bool, chunks=(1, 1)).compute()
    assert not writable.any()
    attach(client)
    row = chunked["grid"].isel(time=2).data
    assert not client.compute(row).result().flags.writeable and float(row[-1].compute()) == 3 * BIG - 1
    del chunked, row


def test_shared_pages_are_nobodys_own(client: Client, store: millpond.Store, workers: list[str]) -> None:
    futures = client.map(daskjobs.ones, [1_000_000] * 6, pure=False, workers=workers[0])
    wait(futures)
    keys = [future.key for future in futures]
    [(resident, reported)] = client.run(daskjobs.read_everything, keys, workers=workers[:1]).values()
    assert resident - reported >= 48_000_000


def test_a_killed_worker_leaves_nothing(client: Client, store: millpond.Store, workers: list[str]) -> None:
    first, second = workers
    kept = client.submit(daskjobs.ones, BIG, workers=first, allow_other_workers=True)
    moved = client.submit(daskjobs.identity, kept, workers=second)
    alone = client.submit(daskjobs.ones, BIG + 1, workers=first, allow_other_workers=True)
    wait([kept, moved, alone])
    wait_until(lambda: holders(store) == [1, 2])
    os.kill(client.run(daskjobs.pid, workers=[first])[first], signal.SIGKILL)
    assert client.submit(daskjobs.total, moved, pure=False).result() == (BIG, False)
    assert client.submit(daskjobs.total, alone, pure=False).result() == (BIG + 1, False)  # made again
    client.wait_for_workers(2)
    wait_until(lambda: store.stats().members == 3)


def test_another_machine_gets_bytes(
    client: Client, cluster: LocalCluster, store: millpond.Store, workers: list[str], tmp_path: Path
) -> None:
    """A second machine, as far as stores are concerned: another registry, a worker from the command line."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
    command += ["--nthreads", "1", "--no-dashboard", "--name", "other", "--preload", PRELOAD]
    command += ["--preload-nanny", PRELOAD, "--store-memory-limit", "32MiB", "--store-spill-limit", "0"]
    environment = {**os.environ, "MILLPOND_DIR": str(tmp_path / "other")}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        client.wait_for_workers(3, timeout=20)
        [other] = [w for w, about in client.scheduler_info()["workers"].items() if about["id"] == "other"]
        array = client.submit(daskjobs.ones, BIG, workers=workers[0])
        there = client.submit(daskjobs.total, array, workers=other)
        assert there.result() == (BIG, False)  # in the other store, read-only there too
        made = client.submit(daskjobs.ones, BIG + 1, workers=other)
        back = client.submit(daskjobs.identity, made, workers=other)
        assert client.submit(daskjobs.total, back, workers=workers[0]).result() == (BIG + 1, False)
        assert [len(list((tmp_path / "other").glob("?" * 32))), holders(store)] == [1, [1, 1]]
        limit = client.run(daskjobs.limits, workers=[other])[other]
        assert limit == (32 << 20, 0)
        del array, there, made, back
    finally:
        process.terminate()
        process.wait(20)
    wait_until(lambda: len(client.scheduler_info()["workers"]) == 2)
    assert list((tmp_path / "other").glob("?" * 32)) == []


def test_workers_that_are_threads(registry: Path) -> None:
    options = cluster_options(LIMIT, name="threads", processes=False)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", **options) as cluster,
        Client(cluster) as client,
    ):
        first, second = client.scheduler_info()["workers"]
        array = client.submit(daskjobs.ones, BIG, workers=first)
        assert client.submit(daskjobs.total, array, workers=second).result() == (BIG, False)
        assert len(millpond.connect("threads")) == 1
        assert array.result().sum() == BIG
