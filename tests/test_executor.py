"""The process pool: large values by way of the store, everything else as in concurrent.futures."""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jobs
import millpond
from ponds import Pond, residue
from pools import LARGE, METHODS, helpers_of_multiprocessing, pool
from workers import wait_until

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def helpers() -> Iterator[None]:
    with helpers_of_multiprocessing():
        yield


@pytest.fixture
def running(tmp_path: Path) -> Path:
    """Where jobs announce themselves and wait for `go`."""
    directory = tmp_path / "running"
    directory.mkdir()
    return directory


Make = Callable[..., concurrent.futures.ProcessPoolExecutor]


@pytest.fixture(params=["concurrent.futures", "millpond"])
def make(request: pytest.FixtureRequest, store: millpond.Store) -> Make:
    """Makes a pool of ours, or the one that it must not differ from."""
    if request.param == "millpond":
        return lambda **options: pool(store, **options)
    context = multiprocessing.get_context("fork")
    return lambda workers=1, **options: concurrent.futures.ProcessPoolExecutor(workers, context, **options)


# --- values ---


@pytest.mark.parametrize("method", METHODS)
def test_values_come_and_go(store: millpond.Store, method: str) -> None:
    with pool(store, method) as executor:
        ref = store.put(np.arange(5.0))
        seen = executor.submit(
            jobs.describe, np.ones(LARGE), ref, b"ab", small=np.ones(3), by_name=ref
        ).result()
        view, copy = ("ndarray", False), ("ndarray", True)
        assert seen == [(*view, LARGE), (*view, 10), ("bytes", True, 195), (*copy, 3), (*view, 10)]
        future = executor.submit(jobs.ones, LARGE)
        assert (future.result() == 1).all() and not future.result().flags.writeable
        assert future.result() is future.result()
        assert executor.submit(jobs.ones, 3).result().flags.writeable
        assert executor.submit(jobs.echo, b"x" * LARGE * 8).result() == b"x" * LARGE * 8
        nested = executor.submit(jobs.echo, {"refs": [ref], "data": bytes(LARGE * 8)}).result()
        assert nested["refs"] == [ref], "a ref inside a value stays a ref, also of a result"
        del future, ref, nested
        if method != "fork":
            wait_until(lambda: len(store) == 0)
    assert residue(store) == {}


def test_everything_large_is_shared(store: millpond.Store) -> None:
    values = {
        "nested": {"list": [np.ones(LARGE), np.zeros(LARGE)]},
        "slice": np.ones((LARGE, 4))[:, ::2],
        "text": "\u00e9" * LARGE * 4,
        "many": list(range(LARGE * 4)),
        "fortran": np.asfortranarray(np.ones((200, 200))),
        "objects": np.array([1, "two"], dtype=object).repeat(LARGE),
    }
    with pool(store, share_above=1 << 16) as executor:
        for name, value in values.items():
            future = executor.submit(jobs.echo, value)
            concurrent.futures.wait([future])
            assert len(store) == 1, f"{name}: an unread result is an object"
            found = future.result()
            assert pickle.dumps(found) == pickle.dumps(value) or name in (
                "nested",
                "slice",
                "fortran",
                "many",
            )
            if name in ("slice", "fortran", "objects"):
                np.testing.assert_array_equal(found, value)
            elif name != "nested":
                assert found == value
            del future, found
            wait_until(lambda: len(store) == 0)


def test_share_above(store: millpond.Store) -> None:
    with pool(store, share_above=1000) as executor:
        assert not executor.submit(jobs.ones, 126).result().flags.writeable
        assert executor.submit(jobs.ones, 50).result().flags.writeable
    with pool(store, share_above=sys.maxsize) as executor:
        future = executor.submit(jobs.ones, LARGE)
        concurrent.futures.wait([future])
        assert len(store) == 0 and future.result().flags.writeable


def test_the_argument_of_a_call_is_one_object_until_the_call_is_done(
    store: millpond.Store, running: Path
) -> None:
    array = np.ones(LARGE)
    with pool(store, "spawn") as executor:
        future = executor.submit(jobs.announce_and_wait, running, array)
        wait_until(lambda: list(running.iterdir()))
        (info,) = store.objects()
        assert info.pins == 1 and info.holders == 2 and array.nbytes < info.size < array.nbytes + 2000
        (running / "go").touch()
        assert future.result() == LARGE
        wait_until(lambda: len(store) == 0)


def test_a_ref_that_the_sender_drops_at_once(store: millpond.Store) -> None:
    with pool(store, "spawn") as executor:
        futures = [executor.submit(jobs.add, store.put(np.full(LARGE, i)), y=store.put(i)) for i in range(5)]
        for number, future in enumerate(futures):
            assert (future.result() == 2 * number).all()


def test_a_view_outlives_future_pool_and_store(pond: Pond) -> None:
    with pool(None) as executor:
        view = executor.submit(jobs.ones, LARGE).result()
    assert executor.store.closed
    assert view.sum() == LARGE


def test_errors_of_the_store_are_those_of_the_call(pond: Pond) -> None:
    store = pond.store("1MiB", spill_limit=0)
    with pool(store) as executor:
        gone = store.put(1)
        store.delete(gone)
        with pytest.raises(millpond.ObjectDeletedError):
            executor.submit(jobs.echo, gone).result()
        for args in ((jobs.describe, np.ones(10 * LARGE)), (jobs.ones, 10 * LARGE)):
            with pytest.raises(millpond.StoreFullError):
                executor.submit(*args).result()
        assert executor.submit(jobs.double, 4).result() == 8


def test_a_result_that_cannot_be_received(pond: Pond, running: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = pond.store()
    with pool(store) as executor, monkeypatch.context() as elsewhere:
        future = executor.submit(jobs.ones, LARGE)
        concurrent.futures.wait([future])
        late = executor.submit(jobs.announce_and_wait, running)
        store.close()
        (running / "go").touch()
        assert late.result() == 0
        with pytest.raises(millpond.StoreClosedError):
            future.result()
        elsewhere.setenv("MILLPOND_DIR", str(running / "elsewhere"))
        lost = executor.submit(jobs.ones, LARGE)
        with pytest.raises(millpond.AttachError):
            lost.result()
        assert isinstance(lost.exception(), millpond.AttachError)
        assert executor.submit(jobs.double, 4).result() == 8, "the pool is not broken by it"
    pond.store()  # sweeps what the worker left


# --- as in the standard library ---


def test_errors(make: Make) -> None:
    with make() as executor:
        future = executor.submit(jobs.fail, "why")
        with pytest.raises(LookupError, match="why") as caught:
            future.result()
        assert "in fail" in str(caught.value.__cause__), "the traceback of the worker"
        assert future.exception() is caught.value
        with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
            executor.submit(lambda: 1).result()
        with pytest.raises(TypeError, match="pickle"):
            executor.submit(jobs.echo, threading.Lock()).result()
        with pytest.raises(TypeError, match="argument"):
            executor.submit(jobs.double).result()
        assert executor.submit(jobs.double, 4).result() == 8
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(jobs.double, 4)
    with pytest.raises(ValueError):
        make(workers=0)
    with pytest.raises(TypeError, match="initializer"):
        make(initializer=3)


def test_an_argument_that_cannot_be_loaded_is_an_error_of_its_call(store: millpond.Store) -> None:
    with pool(store) as executor:
        with pytest.raises(LookupError, match="cannot be loaded"):
            executor.submit(jobs.echo, jobs.Unloadable()).result()
        assert executor.submit(jobs.double, 4).result() == 8


def test_a_future_that_failed_is_in_no_cycle(make: Make) -> None:
    with make() as executor:
        future = executor.submit(jobs.fail, "why")
        gone = weakref.ref(future)
        with suppress(LookupError):
            future.result()
        del future
        wait_until(lambda: gone() is None)


def test_futures(make: Make) -> None:
    with make(workers=2) as executor:
        futures = [executor.submit(jobs.ones, n) for n in (1, LARGE, 2, LARGE)]
        done = [future.result().size for future in concurrent.futures.as_completed(futures)]
        assert sorted(done) == [1, 2, LARGE, LARGE]
        called: list[Any] = []
        futures[1].add_done_callback(lambda future: called.append(future.result().sum()))
        assert called == [LARGE]
        assert futures[0].exception() is None and "returned" in repr(futures[0])


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_map(make: Make, chunksize: int) -> None:
    with make(workers=2) as executor:
        found = executor.map(jobs.add, (np.full(LARGE, i) for i in range(7)), range(7), chunksize=chunksize)
        assert [int(array[0]) for array in found] == [0, 2, 4, 6, 8, 10, 12]
        assert list(executor.map(jobs.double, [], chunksize=chunksize)) == []
        results = executor.map(jobs.fail, ["first", "second"], chunksize=chunksize)
        with pytest.raises(LookupError, match="first"):
            next(results)
        with pytest.raises(ValueError, match="chunksize"):
            executor.map(jobs.double, [1], chunksize=0)


def test_map_times_out(make: Make, running: Path) -> None:
    with make() as executor:
        results = executor.map(jobs.announce_and_wait, [running, running], timeout=0.05)
        with pytest.raises(TimeoutError):
            next(results)
        (running / "go").touch()


def test_cancel(make: Make, running: Path) -> None:
    with make() as executor:
        futures = [executor.submit(jobs.announce_and_wait, running, np.ones(LARGE)) for _ in range(5)]
        wait_until(lambda: list(running.iterdir()))
        assert futures[-1].cancel() and not futures[0].cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            futures[-1].result()
        (running / "go").touch()
        assert [future.result() for future in futures[:-1]] == [LARGE] * 4


@pytest.mark.parametrize("wait", [True, False])
def test_shutdown_with_calls_that_never_run(make: Make, running: Path, wait: bool) -> None:
    executor = make()
    futures = [executor.submit(jobs.announce_and_wait, running, np.ones(LARGE)) for _ in range(8)]
    wait_until(lambda: list(running.iterdir()))
    threading.Timer(0.05, (running / "go").touch).start()
    executor.shutdown(wait, cancel_futures=True)
    assert futures[0].result() == LARGE
    assert [future.cancelled() for future in futures[:1] + futures[3:]] == [False] + [True] * 5
    executor.shutdown()


@pytest.mark.parametrize("method", METHODS)
def test_initializer(store: millpond.Store, method: str) -> None:
    with pool(store, method, initializer=jobs.start, initargs=("this",)) as executor:
        assert executor.submit(jobs.what_started).result() == ["this"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_initializer_that_fails(make: Make) -> None:
    with make(initializer=jobs.start_badly) as executor, pytest.raises(BrokenProcessPool):
        executor.submit(jobs.double, 4).result()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_max_tasks_per_child(store: millpond.Store, method: str) -> None:
    with pool(store, method, max_tasks_per_child=1) as executor:
        futures = [executor.submit(jobs.ones, LARGE) for _ in range(3)]
        assert [future.result().sum() for future in futures] == [LARGE] * 3, "a result outlives its worker"
        assert executor.submit(jobs.pid).result() != executor.submit(jobs.pid).result()
    with pytest.raises(ValueError, match="max_tasks_per_child"):
        pool(store, max_tasks_per_child=2)


def test_many_threads_submit(store: millpond.Store) -> None:
    with pool(store, workers=2) as executor:
        found: list[Any] = []

        def work(number: int) -> None:
            array = np.full(LARGE, number)
            found.append(
                [(executor.submit(jobs.double, array).result() == 2 * number).all() for _ in range(5)]
            )

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [[True] * 5] * 4


def test_asyncio(store: millpond.Store) -> None:
    async def work() -> Any:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, jobs.ones, LARGE) for _ in range(3)))

    with pool(store) as executor:
        assert [array.sum() for array in asyncio.run(work())] == [LARGE] * 3
        future: Any = executor.submit(jobs.ones, LARGE)
        concurrent.futures.wait([future])
        assert future._get_snapshot()[2].sum() == LARGE
        failed: Any = executor.submit(jobs.fail, "why")
        concurrent.futures.wait([failed])
        assert failed._get_snapshot()[:3] == (True, False, None)


# --- map of more than fits ---


def test_map_of_refs(store: millpond.Store) -> None:
    with pool(store, "spawn", workers=2) as executor:
        refs = [store.put(np.full(10, number)) for number in range(6)]
        for options in ({}, {"chunksize": 4}, {"buffersize": 2}, {"buffersize": 2, "chunksize": 4}):
            found = list(executor.map(jobs.add, refs, refs, **options))  # type: ignore[arg-type]
            assert [int(array[0]) for array in found] == [0, 2, 4, 6, 8, 10]


def test_the_store_holds_few_arguments_at_a_time(store: millpond.Store, running: Path) -> None:
    with pool(store) as executor:
        futures = [executor.submit(jobs.announce_and_wait, running, np.ones(LARGE)) for _ in range(30)]
        wait_until(lambda: list(running.iterdir()) and len(store) >= 2)
        seen: list[int] = []
        for future in futures:
            future.add_done_callback(lambda _: seen.append(len(store)))
        (running / "go").touch()
        concurrent.futures.wait(futures)
    assert max(seen) <= 8, "what is queued, running, or done and not yet noticed"


def test_unread_results_are_spilled(pond: Pond) -> None:
    store = pond.store("4MiB")
    with pool(store) as executor:
        futures = [executor.submit(jobs.ones, 100_000 + i) for i in range(12)]
        concurrent.futures.wait(futures)
        assert store.stats().spilled_objects >= 6
        for number, future in enumerate(futures):
            assert future.result().sum() == 100_000 + number
            futures[number] = None  # type: ignore[call-overload]
            del future


def test_buffersize(store: millpond.Store) -> None:
    taken = []

    def items() -> Iterator[Any]:
        for number in range(20):
            taken.append(number)
            yield np.full(LARGE, number)

    with pool(store, workers=2) as executor:
        results = executor.map(jobs.double, items(), buffersize=3)
        assert len(taken) == 3
        for number, array in enumerate(results):
            assert array[0] == 2 * number
            assert len(taken) <= number + 4
        assert len(taken) == 20
        del array
        for wrong in (0, -1):
            with pytest.raises(ValueError, match="buffersize"):
                executor.map(jobs.double, [1], buffersize=wrong)
        with pytest.raises(TypeError, match="buffersize"):
            executor.map(jobs.double, [1], buffersize=1.5)  # type: ignore[arg-type]


def test_buffersize_and_errors(store: millpond.Store, running: Path) -> None:
    with pool(store) as executor:
        results = executor.map(jobs.fail, ["first", "second"], buffersize=1)
        with pytest.raises(LookupError, match="first"):
            next(results)
        waiting = executor.map(jobs.announce_and_wait, [running] * 9, timeout=0.05, buffersize=6)
        with pytest.raises(TimeoutError):
            next(waiting)
        (running / "go").touch()
        executor.submit(jobs.pid).result()
        assert next(waiting, None) is None


def test_a_call_that_closes_the_store(store: millpond.Store) -> None:
    """It cannot know that its worker has it, too: `connect` gives a process the store that is open there."""
    with pool(store) as executor:
        for _ in range(2):
            result = executor.submit(jobs.ones_in_a_store_of_its_own, store.address, LARGE).result()
            assert result.sum() == executor.submit(jobs.ones, LARGE).result().sum() == LARGE
