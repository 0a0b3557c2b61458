"""The joblib backend "millpond": what is shared, what is copied, how calls end. In joblib's own processes."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import jobs
import millpond
from ponds import residue
from workers import wait_until

pytest.importorskip("joblib", reason="joblib is not installed")

import joblib
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from millpond.integrations.joblib import MillpondBackend

BIG = 50_000


@pytest.fixture(scope="module", autouse=True)
def end_workers() -> Iterator[None]:
    yield
    get_reusable_executor().shutdown(wait=True, kill_workers=True)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MILLPOND_DIR", str(tmp_path / "registry"))
    return tmp_path / "registry"


@pytest.fixture
def store(registry: Path) -> Iterator[millpond.Store]:
    """Afterwards nothing may be left in it but the workers, which are on their way."""
    with millpond.Store("64MiB", spill_dir=registry.parent / "spill") as store:
        yield store
        wait_until(lambda: residue(store).keys() <= {"other members"})


@pytest.fixture
def puts(store: millpond.Store, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What this process has put into the store."""
    seen: list[Any] = []
    put = store.put
    monkeypatch.setattr(store, "put", lambda value: seen.append(type(value)) or put(value), raising=False)
    return seen


@pytest.fixture
def parallel(store: millpond.Store) -> Iterator[Any]:
    """A function that makes a Parallel in the usual way."""
    with joblib.parallel_config("millpond", n_jobs=2, store=store):
        yield Parallel


def test_one_array_for_many_calls_is_stored_once(parallel: Any, puts: list[Any]) -> None:
    array = np.ones(BIG)
    found = parallel()(delayed(jobs.writable)(array) for _ in range(6))
    assert found == [(False, "ndarray", BIG)] * 6
    assert puts == [np.ndarray]


def test_workers_leave_the_store(parallel: Any, store: millpond.Store) -> None:
    found = parallel()(delayed(jobs.writable)(np.ones(BIG)) for _ in range(2))
    assert store.stats().members > 1 and len(found) == 2
    wait_until(lambda: residue(store) == {})


def test_an_array_may_change_between_two_parallels(parallel: Any) -> None:
    array = np.ones(BIG)
    with parallel() as pool:
        first = pool(delayed(jobs.writable)(array) for _ in range(2))
        array[:] = 2
        second = pool(delayed(jobs.writable)(array) for _ in range(2))
    assert [found[2] for found in first + second] == [BIG, BIG, 2 * BIG, 2 * BIG]


def test_results_are_views_and_are_passed_on_without_a_copy(
    parallel: Any, store: millpond.Store, puts: list[Any]
) -> None:
    arrays = parallel()(delayed(jobs.ones)(BIG + n) for n in range(3))
    assert [array.sum() for array in arrays] == [BIG, BIG + 1, BIG + 2]
    assert not any(array.flags.writeable for array in arrays) and len(store) == 3
    assert parallel()(delayed(jobs.writable)(array) for array in arrays)[2] == (False, "ndarray", BIG + 2)
    again = parallel()(delayed(jobs.echo)(array) for array in arrays)
    assert puts == [] and len(store) == 3
    del arrays
    assert len(store) == 3 and again[0].sum() == BIG
    del again
    assert len(store) == 0


def test_nested_and_small_values(parallel: Any, store: millpond.Store) -> None:
    table = pd.DataFrame({"a": np.arange(BIG), "b": np.arange(BIG) * 0.5})
    value = {"table": table, "small": np.ones(10), "text": "x" * 200_000}
    [back] = parallel()(delayed(jobs.echo)(v) for v in [value])
    pd.testing.assert_frame_equal(back["table"], table)
    assert back["small"].sum() == 10 and back["text"] == value["text"] and len(store) > 0
    [small] = parallel()(delayed(jobs.echo)(v) for v in [np.ones(10)])
    small += 1
    del back


def test_lambdas_and_refs(parallel: Any, store: millpond.Store) -> None:
    ref = store.put(np.ones(BIG))
    assert parallel()(delayed(lambda array, *, n: array.sum() * n)(ref, n=n) for n in range(3)) == [
        0,
        BIG,
        2 * BIG,
    ]
    assert [inner.get().sum() for [inner] in parallel()(delayed(jobs.echo)([ref]) for _ in range(2))] == [
        BIG
    ] * 2


def test_memory_mapped_files_stay_files(parallel: Any, puts: list[Any], tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.arange(BIG))
    array = np.load(tmp_path / "array.npy", mmap_mode="r")
    [found] = parallel()(delayed(jobs.writable)(part) for part in [array[10:]])
    assert found == (False, "memmap", float(np.arange(10, BIG).sum())) and puts == []


def test_results_one_at_a_time(parallel: Any, store: millpond.Store) -> None:
    total = 0.0
    for array in parallel(return_as="generator")(delayed(jobs.ones)(BIG) for _ in range(5)):
        total += float(array.sum())
    assert total == 5 * BIG
    del array


def test_more_than_memory(parallel: Any, store: millpond.Store) -> None:
    arrays = parallel()(delayed(jobs.add)(np.full(1_000_000, n), 1) for n in range(20))  # 160 MB, 64 MiB
    assert [array[-1] for array in arrays] == list(range(1, 21))
    assert store.stats().committed_bytes <= store.memory_limit
    assert not arrays[0].flags.writeable  # a view, as long as there was room for it
    del arrays


def test_parallel_inside_a_call(parallel: Any) -> None:
    arrays = [np.ones(BIG), np.ones(BIG + 1)]
    assert parallel()(delayed(jobs.sums_in_threads)(arrays) for _ in range(2)) == [[BIG, BIG + 1]] * 2


def test_errors_are_those_of_the_call(parallel: Any) -> None:
    with pytest.raises(LookupError, match="it fails"):
        parallel()(delayed(jobs.fail)(word) for word in ["it fails"] * 2)
    with pytest.raises(LookupError, match="cannot be loaded"):
        parallel()(delayed(jobs.echo)(value) for value in [jobs.Unloadable()])
    assert parallel()(delayed(jobs.double)(n) for n in range(3)) == [0, 2, 4]


def test_a_killed_worker(parallel: Any) -> None:
    with pytest.raises(TerminatedWorkerError):
        parallel()(delayed(jobs.kill_oneself)(np.ones(BIG)) for _ in range(2))
    assert parallel()(delayed(jobs.writable)(np.ones(BIG)) for _ in range(2))[0][2] == BIG


def test_a_result_that_never_arrives_is_withdrawn(parallel: Any, store: millpond.Store) -> None:
    with pytest.raises(TerminatedWorkerError):
        parallel()(delayed(jobs.die_while_joblib_sends)(n) for n in [BIG, BIG])
    wait_until(lambda: len(store) == 0)


def test_what_a_worker_reads_is_not_held_against_it(parallel: Any) -> None:
    """joblib replaces workers that have grown, which costs their start for each call on a large array."""
    assert min(parallel()(delayed(jobs.judged)(np.ones(4_000_000)) for _ in range(2))) >= 32_000_000


def test_a_call_that_takes_too_long(parallel: Any) -> None:
    with pytest.raises(multiprocessing.TimeoutError):
        parallel(timeout=0.1)(delayed(time.sleep)(20) for _ in range(2))


def test_a_private_store_ends_with_the_block(registry: Path) -> None:
    with joblib.parallel_config("millpond", n_jobs=2, memory_limit="32MiB", spill_limit=0):
        arrays = Parallel()(delayed(jobs.ones)(BIG) for _ in range(2))
        assert len(list(registry.glob("?" * 32))) == 1
    assert [array.sum() for array in arrays] == [BIG, BIG]  # views outlive it
    del arrays
    wait_until(lambda: list(registry.glob("?" * 32)) == [])


def test_one_job_needs_no_store(registry: Path) -> None:
    assert Parallel(n_jobs=1, backend="millpond")(delayed(jobs.double)(n) for n in range(3)) == [0, 2, 4]
    assert not registry.exists()


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="memory_limit"):
        joblib.parallel_config("millpond", memory_limit=1)
    with pytest.raises(ValueError, match="share_above"):
        MillpondBackend(share_above=-1)
    with pytest.raises(TypeError, match="share_above is a number of bytes, not '64KiB'"):
        MillpondBackend(share_above="64KiB")
    with pytest.raises(TypeError, match=r"millpond\.Store"):
        MillpondBackend(store="shared")


def test_a_store_of_ones_own_has_options_of_its_own(store: millpond.Store) -> None:
    with pytest.raises(TypeError, match="memory_limit"):
        MillpondBackend(store=store, memory_limit="1GiB")
