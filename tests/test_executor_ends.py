"""The process pool when workers or the parent are killed, and how it ends."""

from __future__ import annotations

import concurrent.futures
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jobs
import millpond
from millpond.integrations.executor import ProcessPoolExecutor
from ponds import Pond, residue
from pools import LARGE, METHODS, helpers_of_multiprocessing, pool
from workers import inherited, wait_until

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


# --- kills ---


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("job", [jobs.kill_oneself, jobs.die_while_sending])
def test_a_worker_is_killed(pond: Pond, method: str, job: Callable[..., Any]) -> None:
    store = pond.store()
    kept = store.put(np.arange(LARGE))
    reader = pond.member(store)
    name = store.put(np.arange(7), name="kept")
    with pool(store, method, workers=2) as executor:
        argument = np.ones(LARGE) if job is jobs.kill_oneself else LARGE
        futures = [executor.submit(job, argument) for _ in range(6)]
        for future in futures:
            with pytest.raises(BrokenProcessPool):
                future.result()
        with pytest.raises(BrokenProcessPool):
            executor.submit(jobs.double, 4)
        del future
    assert store.check() == []
    wait_until(lambda: len(store) == 2)
    assert store._totals()["tokens"] == 0, "hand-offs that never arrived are withdrawn"
    assert reader.run(lambda own: int(own.store.lookup("kept").get()[-1])) == 6
    assert kept.get()[-1] == LARGE - 1 and name.get()[-1] == 6
    with pool(store, method) as executor:
        assert executor.submit(jobs.ones, LARGE).result().sum() == LARGE


def test_a_worker_is_killed_from_outside(store: millpond.Store, running: Path) -> None:
    with pool(store, workers=2) as executor:
        futures = [executor.submit(jobs.announce_and_wait, running, np.ones(LARGE)) for _ in range(9)]
        wait_until(lambda: len(list(running.iterdir())) == 2)
        os.kill(int(next(running.iterdir()).name), signal.SIGKILL)
        assert all(isinstance(future.exception(), BrokenProcessPool) for future in futures)
    del futures
    assert len(store) == 0 and store.stats().members == 1, "shutdown has waited for the dead and reaped them"
    assert residue(store) == {}


def test_a_call_that_is_cancelled_leaves_nothing(store: millpond.Store, running: Path) -> None:
    with pool(store, "spawn") as executor:
        job = jobs.announce_and_wait
        calls = [executor.submit(job, running, store.put(np.ones(LARGE + n))) for n in range(6)]
        wait_until(lambda: list(running.iterdir()))
        assert [call.cancel() for call in calls[3:]] == [True] * 3
        (running / "go").touch()
        assert [call.result() for call in calls[:3]] == [LARGE + n for n in range(3)]
        wait_until(lambda: len(store) == 0)  # the pool and the futures are there
        assert store._totals()["tokens"] == 0


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_results_that_are_refs(store: millpond.Store, method: str) -> None:
    with pool(store, method) as executor:
        single, nested = store.put(np.ones(LARGE)), [store.put(np.zeros(LARGE))]
        double = executor.submit(jobs.double_first, [single]).result()
        assert double.get().sum() == 2 * LARGE and double != single
        assert executor.submit(jobs.double, double).result()[-1] == 4, "and into the next call"
        assert executor.submit(jobs.echo, nested).result() == nested
        unread = executor.submit(jobs.double_first, [single])
        concurrent.futures.wait([unread])
        del unread, double, nested
        if method == "spawn":
            wait_until(lambda: len(store) == 1)


def test_arrays_when_everything_is_pinned(pond: Pond) -> None:
    store = pond.store("2MiB")
    views = [store.get(store.put(np.ones(LARGE))) for _ in range(11)]
    assert store.stats().pinned_bytes > 0.8 * store.memory_limit
    with pool(store) as executor:
        found = executor.map(jobs.double, (np.full(LARGE, n) for n in range(12)), buffersize=2)
        assert [int(array[-1]) for array in found] == [2 * n for n in range(12)], "by way of the disk"
    assert store.stats().spilled_objects_total > 0 and store.stats().committed_bytes <= store.memory_limit
    store.configure(spill_limit=0)
    with pool(store) as executor:
        with pytest.raises(millpond.StoreFullError, match="spilling is off"):
            executor.submit(jobs.double, np.ones(2 * LARGE)).result()
        assert executor.submit(jobs.double, 4).result() == 8
    del views


def test_a_forked_child_ends_nothing(pond: Pond, store: millpond.Store) -> None:
    with pool(store) as executor:
        assert executor._lease is not None
        sent = store._hand_off(store.put(np.arange(5)), 1, family=executor._lease.family)
        inherited.append(executor)

        def drop(own: Any) -> None:
            import workers

            workers.inherited.pop()._lease = None

        pond.worker().run(drop)
        assert millpond.load_ref(sent).get()[-1] == 4
        inherited.clear()


def test_other_hand_offs_are_left_alone(store: millpond.Store) -> None:
    with pool(store) as executor:
        sent = pickle.dumps(store.put(np.arange(5)))
        executor.submit(jobs.double, 4).result()
    assert pickle.loads(sent).get()[-1] == 4


def parent_that_is_killed(method: str) -> str:
    return f"""
import multiprocessing, os, signal
from pathlib import Path
import jobs
from millpond.integrations.executor import ProcessPoolExecutor
from pools import LARGE, METHODS, helpers_of_multiprocessing, pool

if __name__ == "__main__":
    executor = ProcessPoolExecutor(2, multiprocessing.get_context("{method}"))
    directory = Path("running")
    directory.mkdir()
    futures = [executor.submit(jobs.announce_and_wait, directory) for _ in range(2)]
    jobs.wait_until(lambda: len(list(directory.iterdir())) == 2)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run(code: str, directory: Path) -> subprocess.CompletedProcess[str]:
    script = directory / "program.py"
    script.write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, str(script)],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
    )


def alive(pid: str) -> bool:
    with suppress(FileNotFoundError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_end_when_their_parent_is_killed(pond: Pond, tmp_path: Path, method: str) -> None:
    assert run(parent_that_is_killed(method), tmp_path).returncode == -signal.SIGKILL
    pids = [path.name for path in (tmp_path / "running").iterdir()]
    assert len(pids) == 2
    wait_until(lambda: not any(map(alive, pids)))
    pond.store()  # sweeps what they left


# --- the store of its own ---


def test_a_private_store_ends_with_the_pool(pond: Pond) -> None:
    with pool(None) as executor:
        ref = executor.submit(jobs.echo, [executor.store.put(3)]).result()[0]
        assert ref.get() == 3
        assert executor.submit(jobs.double, ref).result() == 6
    assert executor.store.closed
    with pytest.raises(millpond.StoreClosedError):
        ref.get()


def all_have_left(pond: Pond) -> bool:
    return [path for path in pond.registry.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("wait", [True, False])
def test_results_can_be_read_after_shutdown(pond: Pond, wait: bool) -> None:
    threads = set(threading.enumerate())
    executor = pool(None, "spawn")
    store = executor.store
    futures = [executor.submit(jobs.ones, LARGE) for _ in range(3)]
    dropped = executor.submit(jobs.ones, LARGE)
    executor.shutdown(wait)
    assert [future.result().sum() for future in futures] == [LARGE] * 3
    concurrent.futures.wait([dropped])
    assert not store.closed
    del dropped, futures  # with the views that they hold
    wait_until(lambda: store.closed)
    wait_until(lambda: all_have_left(pond) and set(threading.enumerate()) <= threads)


def test_a_pool_that_is_only_dropped(pond: Pond) -> None:
    executor = pool(None)
    store = executor.store
    assert executor.submit(jobs.ones, LARGE).result().sum() == LARGE
    del executor
    gc.collect()
    wait_until(lambda: store.closed)
    wait_until(lambda: all_have_left(pond))


def test_a_pool_that_cannot_be_made(pond: Pond) -> None:
    for wrong in ({"max_workers": 0}, {"share_above": -1}):
        with pytest.raises(ValueError):
            ProcessPoolExecutor(**wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="store must be a millpond"):
        ProcessPoolExecutor(store="shared")  # type: ignore[arg-type]
    assert all_have_left(pond)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_functions_and_classes_of_the_main_program(tmp_path: Path, method: str) -> None:
    done = run(
        f"""
import multiprocessing
from dataclasses import dataclass
import numpy as np
from millpond.integrations.executor import ProcessPoolExecutor
from pools import LARGE, METHODS, helpers_of_multiprocessing, pool

@dataclass
class Point:
    data: np.ndarray

def double(point):
    return Point(point.data * 2)

if __name__ == "__main__":
    with ProcessPoolExecutor(2, multiprocessing.get_context("{method}")) as executor:
        points = list(executor.map(double, [Point(np.ones(n)) for n in (1, {LARGE})]))
    print(all(type(point) is Point for point in points), points[1].data.sum())
""",
        tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"True {2.0 * LARGE}\n", "")
