"""loky's reusable pool: refs through it as it is, and with large arguments and results in a store."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jobs
import millpond
from ponds import residue
from workers import wait_until

pytest.importorskip("loky", reason="loky is not installed")

import loky
from loky.process_executor import ShutdownExecutorError, TerminatedWorkerError

from millpond.integrations.loky import get_reusable_executor

LARGE = 20_000


@pytest.fixture(scope="module", autouse=True)
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Workers outlive a test: all have one registry. Afterwards they end."""
    path = tmp_path_factory.mktemp("loky") / "registry"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILLPOND_DIR", str(path))
        yield path
        wait_until(lambda: list(path.glob("?" * 32)) == [])  # workers leave by themselves
    loky.get_reusable_executor(1).shutdown(wait=True, kill_workers=True)


@pytest.fixture
def store(registry: Path) -> Iterator[millpond.Store]:
    """Afterwards nothing may be left in it but the workers, which are on their way."""
    with millpond.Store("16MiB", spill_dir=registry.parent / "spill") as store:
        yield store
        gc.collect()
        wait_until(lambda: residue(store).keys() <= {"other members"})


@pytest.fixture
def executor(store: millpond.Store) -> Any:
    return get_reusable_executor(2, store=store)


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """Where jobs announce themselves and wait for `go`."""
    return tmp_path


@pytest.mark.parametrize("name", ["loky", "joblib.externals.loky"])
def test_refs_through_loky_as_it_is(store: millpond.Store, name: str) -> None:
    plain = pytest.importorskip(name).get_reusable_executor(max_workers=1)
    try:
        futures = [plain.submit(jobs.double_in_store, store.put(np.full(LARGE, n))) for n in range(3)]
        refs = [future.result() for future in futures]
        assert [int(ref.get()[-1]) for ref in refs] == [0, 2, 4]
        assert plain.submit(lambda refs: [ref.get().sum() for ref in refs], refs).result()[2] == 4 * LARGE
        assert store._totals()["tokens"] == 0
        del refs, futures
        wait_until(lambda: len(store) == 0)
    finally:
        plain.shutdown()  # its workers are members until they end


def test_values_come_and_go(store: millpond.Store, executor: Any) -> None:
    ref = store.put(np.arange(5.0))
    seen = executor.submit(jobs.describe, np.ones(LARGE), ref, small=np.ones(3), by_name=ref).result()
    view, copy = ("ndarray", False), ("ndarray", True)
    assert seen == [(*view, LARGE), (*view, 10), (*copy, 3), (*view, 10)]
    future = executor.submit(jobs.ones, LARGE)
    assert future.result() is future.result() and not future.result().flags.writeable
    offset = 3
    assert executor.submit(lambda array: float(array[0]) + offset, np.ones(LARGE)).result() == 4
    [back] = executor.submit(jobs.echo, [ref]).result()
    assert back == ref and executor.submit(jobs.echo, {"data": bytes(LARGE * 8)}).result()["data"][-1] == 0
    assert executor.submit(jobs.double_in_store, ref).exception() is not None, "it got the value"
    error = executor.submit(jobs.fail, "why").exception()  # raised here, it would keep this frame
    assert type(error) is LookupError and str(error) == "why"
    assert executor.submit(jobs.double, 4).result() == 8


def test_a_result_that_is_a_ref(store: millpond.Store, executor: Any) -> None:
    ref = store.put(np.ones(LARGE))
    double = executor.submit(jobs.double_first, [ref]).result()
    assert double.get().sum() == 2 * LARGE
    assert executor.submit(np.sum, double).result() == 2 * LARGE


def test_map_over_a_generator(store: millpond.Store, executor: Any) -> None:
    taken = []

    def chunks() -> Iterator[Any]:
        for number in range(40):  # 32 MB
            taken.append(number)
            yield np.full(100_000, number)

    for number, array in enumerate(executor.map(jobs.double, chunks(), buffersize=3)):
        assert array[-1] == 2 * number and len(taken) <= number + 4
    del array
    assert list(executor.map(jobs.add, [store.put(1), 2], [3, 4], chunksize=2)) == [4, 6]


def test_a_call_that_is_cancelled_leaves_nothing(store: millpond.Store, executor: Any, running: Path) -> None:
    calls = [
        executor.submit(jobs.announce_and_wait, running, store.put(np.ones(LARGE + n))) for n in range(12)
    ]
    wait_until(lambda: len(list(running.iterdir())) == 2)
    assert calls[-1].cancel() and not calls[0].cancel()
    with pytest.raises(CancelledError):
        calls[-1].result()
    (running / "go").touch()
    assert [call.result() for call in calls[:-1]] == [LARGE + n for n in range(11)]
    wait_until(lambda: len(store) == 0)


@pytest.mark.parametrize("job", [jobs.kill_oneself, jobs.die_while_loky_sends])
def test_a_worker_that_dies(store: millpond.Store, job: Any) -> None:
    executor = get_reusable_executor(2, store=store)
    kept = store.put(np.arange(LARGE))
    futures = [executor.submit(job, n) for n in (LARGE, LARGE + 1)]
    # Raised in here, loky's error would keep this frame, and what is in it.
    assert all(isinstance(future.exception(), TerminatedWorkerError) for future in futures)
    del futures, executor
    argument = get_reusable_executor(2, store=store).submit(jobs.kill_oneself, np.ones(LARGE))
    assert isinstance(argument.exception(), TerminatedWorkerError)
    del argument
    wait_until(lambda: len(store) == 1)
    assert kept.get()[-1] == LARGE - 1 and store._totals()["tokens"] == 0
    assert get_reusable_executor(2, store=store).submit(jobs.ones, LARGE).result().sum() == LARGE


def test_a_private_store_ends_and_the_workers_stay(registry: Path) -> None:
    executor = get_reusable_executor(1)
    store = executor.store
    first = executor.submit(jobs.pid).result()
    future = executor.submit(jobs.ones, LARGE)
    wait([future])
    assert len(store) == 1
    del executor
    array = future.result()
    del future
    wait_until(lambda: store.closed)
    assert array.sum() == LARGE, "a view outlives it"
    del array
    assert get_reusable_executor(1).submit(jobs.pid).result() == first, "the next store, the same worker"
    wait_until(lambda: list(registry.glob("?" * 32)) == [])


def test_the_options_are_those_of_loky(store: millpond.Store) -> None:
    with get_reusable_executor(1, store=store, initializer=jobs.start, initargs=("this",)) as executor:
        assert executor.submit(jobs.what_started).result() == ["this"]
    with pytest.raises(ShutdownExecutorError):
        executor.submit(jobs.double, 4)
    with pytest.raises(ValueError, match="max_workers"):
        get_reusable_executor(-1, store=store)
    with pytest.raises(ValueError, match="share_above"):
        get_reusable_executor(1, store=store, share_above=-1)
    with pytest.raises(TypeError, match=r"millpond\.Store"):
        get_reusable_executor(1, store="shared")  # type: ignore[arg-type]
