"""Fork at any time: the child has refs and views of its own, and takes nothing from its parent.

Children report through a pipe and end by os._exit, so that a child that hangs or fails is seen here.
What a child has without a slot is in test_slots.py, deaths in the middle of a fork in test_failpoints.py.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import operator
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import millpond
from millpond.hot import Code, Restoring
from ponds import Pond
from pools import helpers_of_multiprocessing
from workers import in_threads, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
TIMEOUT_S = 30.0


class Child:
    """A fork that calls `function(pipe)`; what it returns, or raises, is the result."""

    def __init__(self, function: Callable[[Connection], Any]) -> None:
        self.pipe, theirs = Pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.pipe.close()
                try:
                    theirs.send((function(theirs), None))
                except BaseException as error:
                    theirs.send((None, repr(error)))
            finally:
                os._exit(0)
        theirs.close()

    def receive(self) -> Any:
        """What the child sends."""
        if not self.pipe.poll(TIMEOUT_S):
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
            raise AssertionError(f"child {self.pid} has not answered for {TIMEOUT_S} s")
        return self.pipe.recv()

    def result(self) -> Any:
        value, error = self.receive()
        self.wait()
        assert error is None, error
        return value

    def wait(self) -> None:
        self.pipe.close()
        os.waitpid(self.pid, 0)


def in_child(function: Callable[[], Any]) -> Any:
    """What `function` returns in a forked child."""
    return Child(lambda pipe: function()).result()


def expect_members(store: millpond.Store, count: int) -> None:
    """The dead may take a moment."""
    wait_until(lambda: not store._reap() and store.stats().members == count)


# --- what a child has ---


def test_a_child_reads_what_is_spilled_while_it_is_forked(pond: Pond) -> None:
    store = pond.store("4MiB")
    refs = [store.put(np.full(100_000, number)) for number in range(12)]
    view = refs[3].get()
    assert pond.spilled_files()

    def read() -> tuple[list[int], int, list[str]]:
        return [int(ref.get(copy=True)[-1]) for ref in refs], int(view[0]), store.check()

    assert in_child(read) == (list(range(12)), 3, [])
    assert read() == (list(range(12)), 3, [])


def test_a_child_does_not_end_what_its_parent_restores(pond: Pond) -> None:
    """A signal's handler may fork in the middle of a get; the child leaves it by an exception."""
    store = pond.store("4MiB")
    refs = [store.put(np.full(100_000, number)) for number in range(12)]
    ref = next(ref for ref in refs if store._state(ref) == Code.SPILLED)
    refs = [ref]

    def leave() -> int:
        with pytest.raises(millpond.StoreClosedError, match="get it again"):
            store._restore_step(ref)
        work.__exit__()
        return store._state(ref)

    with Restoring(store, ref) as work:
        assert work.place()[0] == Code.SPILLED
        assert work.begin()[0] == Code.OK
        assert in_child(leave) == Code.RESTORING
        assert store._state(ref) == Code.RESTORING
    assert store.check() == []
    assert int(ref.get()[-1]) == int(ref.get(copy=True)[0])


def test_a_child_does_not_give_back_what_its_parent_has_counted(pond: Pond) -> None:
    """It leaves, by an exception, a get that has found no room and makes a private copy."""
    store = pond.store("4MiB")

    def leave() -> tuple[int, int]:
        return store._overflow(-1000), store._overflow(0)

    assert store._overflow(1000) == 1000
    assert in_child(leave) == (1000, 1000)
    assert store._overflow(-1000) == 0


def test_what_parent_and_child_drop_is_their_own(store: millpond.Store) -> None:
    refs = [store.put(np.full(20_000, number)) for number in range(4)]
    views = [refs[0].get(), refs[1].get()]

    def hold(pipe: Connection) -> tuple[list[int], list[int], list[str]]:
        """Drops the refs 0 and 2; what is left of 1 is a view, of 3 a ref."""
        kept, view = refs[3], views[1]
        views.clear()
        refs.clear()
        pipe.send("dropped")
        pipe.recv()
        return [int(view[-1])], [int(kept.get()[-1])], store.check()

    child = Child(hold)
    assert child.receive() == "dropped"
    assert [len(store.refs(ref).members) for ref in refs] == [1, 1, 1, 2]
    assert [len(store.refs(ref).pins) for ref in refs] == [1, 2, 0, 0]
    assert [int(ref.get()[0]) for ref in refs] == [0, 1, 2, 3]
    refs.clear()
    views.clear()
    assert len(store) == 1, "the ref that the child has"
    child.pipe.send("go on")
    assert child.result() == ([1], [3], [])
    expect_members(store, 1)
    assert len(store) == 0


@pytest.mark.parametrize("who", ["parent", "child"])
def test_closing_is_no_matter_of_the_other(pond: Pond, who: str) -> None:
    store = pond.store()
    other = millpond.connect(store.address)
    assert other is store
    ref = store.put(np.arange(5000))
    view = ref.get()
    data = ref.export(deliveries=2)

    def close_and_join_again(pipe: Connection | None = None) -> tuple[int, int]:
        store.close()
        with pytest.raises(millpond.StoreClosedError):
            ref.get()
        again = millpond.load_ref(data)
        return int(view[-1]), int(again.get()[0])

    def read(pipe: Connection) -> tuple[int, int]:
        pipe.recv()
        return int(ref.get()[-1]), int(view[0])

    if who == "child":
        assert in_child(close_and_join_again) == (4999, 0)
        assert ref.get()[-1] == 4999
        millpond.load_ref(data)
    else:
        child = Child(read)
        assert close_and_join_again() == (4999, 0)
        child.pipe.send("go on")
        assert child.result() == (4999, 0)
        again = millpond.connect(store.address)
        expect_members(again, 2)  # the second is ours: it lasts as long as the view
        millpond.load_ref(data)
        again.close()


# --- families ---


def test_five_generations_whose_parents_do_not_wait(store: millpond.Store) -> None:
    ref = store.put(np.arange(1000))
    view = ref.get()

    def descend(pipe: Connection, generation: int = 5) -> list[bytes]:
        made = store.put({"generation": generation, "older": ref})
        if generation > 1 and os.fork():
            os._exit(0)
        if generation > 1:
            return [made.export(), *descend(pipe, generation - 1)]
        assert view[-1] == ref.get()[-1] == 999
        return [made.export()]

    child = Child(descend)
    exported, error = child.receive()
    assert error is None, error
    child.wait()
    values = [millpond.load_ref(data).get() for data in exported]
    assert [value["generation"] for value in values] == [5, 4, 3, 2, 1]
    assert all(value["older"] == ref for value in values)
    del values
    expect_members(store, 1)
    assert len(store) == 1


def test_siblings_of_one_parent(store: millpond.Store) -> None:
    refs = [store.put(np.full(3000, number)) for number in range(30)]

    def work(seed: int) -> Callable[[Connection], int]:
        def work(pipe: Connection) -> int:
            dice, total = random.Random(seed), 0
            for _ in range(100):
                ref = dice.choice(refs)
                total += int(ref.get()[0]) == refs.index(ref)
                store.put([ref]).get()
            return total

        return work

    children = [Child(work(seed)) for seed in range(6)]
    assert [child.result() for child in children] == [100] * 6
    expect_members(store, 1)
    assert store.check() == []


def test_a_daemon_that_outlives_everybody(pond: Pond) -> None:
    """Forked twice, in a session of its own: it holds the object when no other process does."""
    store = pond.store()
    address = store.address
    held = [store.put(np.arange(20_000))]
    held.append(held[0].get())

    def become_daemon(pipe: Connection) -> bytes | None:
        os.setsid()
        if os.fork():
            os._exit(0)
        pipe.send(os.getpid())
        pipe.recv()
        assert held[1][-1] == held[0].get()[-1] == 19_999
        pipe.send(store.put(held[:1]).export())
        pipe.recv()
        return None

    daemon = Child(become_daemon)
    daemon.receive()
    held.clear()
    store.close()
    daemon.pipe.send("alone")
    [inner] = millpond.load_ref(daemon.receive()).get()
    again = millpond.connect(address)
    assert again.address == address and inner.get()[5] == 5
    daemon.pipe.send("end")
    assert daemon.result() is None
    expect_members(again, 1)
    assert len(again) == 1 and again.check() == []
    again.close()


def test_the_parent_is_killed_right_after_the_fork(pond: Pond, store: millpond.Store) -> None:
    for _ in range(10):

        def parent(pipe: Connection) -> None:
            ref = store.put(np.arange(30_000))
            view = ref.get()
            pid = os.getpid()
            if os.fork():
                os.kill(pid, signal.SIGKILL)
            pipe.send((ref.export(), int(view.sum()), store.put("mine").get(), os.getpid()))
            with suppress(EOFError):
                pipe.recv()  # until the test lets us go

        child = Child(parent)
        data, total, mine, pid = child.receive()
        assert (total, mine) == (449_985_000, "mine")
        ref = millpond.load_ref(data)
        assert ref.get()[-1] == 29_999
        assert pid in [member.pid for member in store.refs(ref).members]
        child.wait()
        del ref
        expect_members(store, 1)
        assert len(store) == 0 and store.check() == []


# --- threads ---


def test_fork_while_threads_spill_and_restore(pond: Pond) -> None:
    """The child finds no lock taken by a thread that it does not have."""
    store = pond.store("3MiB", overflow_limit="64MiB")
    refs = [store.put(np.full(50_000, number)) for number in range(20)]
    stop = threading.Event()

    def work(seed: int) -> None:
        dice = random.Random(seed)
        while not stop.is_set():
            number = dice.randrange(20)
            assert store.get(refs[number])[-1] == number
            mine = store.put([np.full(40_000, seed), refs[number]])
            data = pickle.dumps(mine)
            assert pickle.loads(data).get()[1] == refs[number]
            if dice.random() < 0.2:
                store.spill(refs[number])

    def look() -> tuple[bool, list[str]]:
        good = all(int(ref.get(copy=True)[-1]) == number for number, ref in enumerate(refs))
        mine = [store.put(np.full(60_000, number)) for number in range(8)]
        return good and all(int(ref.get()[0]) == number for number, ref in enumerate(mine)), store.check()

    with in_threads(work, 3, stop):
        for _ in range(12):
            assert in_child(look) == (True, [])
    assert look() == (True, [])


def test_fork_in_a_thread_while_others_wait(store: millpond.Store) -> None:
    """The main thread waits for a draft, another for a name; neither is in the child."""
    draft = store.create(1000, "i8")
    forked: list[Any] = []

    def fork() -> None:
        try:
            child = Child(
                lambda pipe: (pipe.recv(), int(draft.ref.get()[-1]), store.lookup("named").get())[1:]
            )
            draft.array[:] = 5
            draft.seal()
            store.put("late", name="named")
            child.pipe.send("go on")
            forked.append(child.result())
        except BaseException as error:
            forked.append(error)

    waiting = threading.Thread(target=lambda: forked.append(store.lookup("named", timeout=TIMEOUT_S).get()))
    waiting.start()
    forking = threading.Timer(0.05, fork)
    forking.start()
    assert draft.ref.get(timeout=TIMEOUT_S)[0] == 5
    forking.join()
    waiting.join()
    assert sorted(forked, key=str) == [(5, "late"), "late"]


COUNTS_THREADS = """
import os, threading
threads = []
def record():
    threads.append(len(os.listdir("/proc/self/task")))
os.register_at_fork(before=record)  # before ours, so it is called after ours
import millpond

def janitors():
    return [thread.name for thread in threading.enumerate()].count("millpond-janitor")

with millpond.Store("4MiB", spill_limit=0) as store:
    ref = store.put(1)
    data = ref.export()  # from now on there is work in the background
    assert janitors() == 1
    for _ in range(30):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if janitors() == 1 and ref.get() == 1 else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert janitors() == 1
    print(*threads, sep="")
"""


def run(code: str, directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MILLPOND_DIR": str(directory),
        "OPENBLAS_NUM_THREADS": "1",  # or NumPy brings threads of its own
    }
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)


def test_the_janitor_stops_for_the_fork_and_comes_back(tmp_path: Path) -> None:
    """So there is one thread when the system copies the process, and no warning about that."""
    done = run(COUNTS_THREADS, tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "1" * 30 + "\n")


# --- how children end ---

ENDS = """
import os, sys
import numpy as np
import millpond

store = millpond.Store("8MiB", spill_limit=0)
ref, draft = store.put(np.arange(10_000)), store.create(100, "u1")
view, data = ref.get(), ref.export(deliveries=5)
parent, pid = os.getpid(), os.fork()
if pid == 0:
    mine = [store.put([ref]), store.put(np.ones(9000)), millpond.load_ref(data), store.create(10, "u1")]
    {end}
else:
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
if os.getpid() == parent:
    store._tidy()
    draft.array[:] = 3
    assert draft.seal().get().sum() == 300 and view[-1] == ref.get()[-1] == 9999
    print(status, store.stats().members, len(store), store.check())
"""


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("os._exit(3)", 3),
        ("sys.exit(4)", 4),
        ("pass", 0),
        ("store.close()", 0),
        ("del view, mine; store.close()", 0),
        ("os.kill(os.getpid(), 9)", -9),
        ("os.execv('/bin/sh', ['sh', '-c', 'exit 6'])", 6),
        ("raise ZeroDivisionError", 1),
    ],
)
def test_however_a_child_ends(tmp_path: Path, end: str, expected: int) -> None:
    done = run(ENDS.format(end=end), tmp_path)
    assert done.stdout == f"{expected} 1 2 []\n", done.stderr
    assert ("ZeroDivisionError" in done.stderr) if expected == 1 else done.stderr == ""
    assert os.listdir(tmp_path) == ["dirlock"]


# --- the standard library's processes ---


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@helpers_of_multiprocessing()
def test_pools(store: millpond.Store, method: str) -> None:
    context = multiprocessing.get_context(method)
    get = operator.methodcaller("get")
    refs = [store.put([number, store.put(number)]) for number in range(20)]
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        found = list(executor.map(get, refs))
        assert [value[0] for value in found] == list(range(20))
        assert [value[1].get() for value in found] == list(range(20))
    expect_members(store, 1)
    assert store.check() == []


def test_a_pool_that_is_terminated(pond: Pond) -> None:
    """Its processes die of SIGTERM wherever they are; pickles that nobody has loaded lapse."""
    store = pond.store(handoff_timeout=1)
    refs = [store.put(np.full(10_000, number)) for number in range(20)]
    pool = multiprocessing.get_context("fork").Pool(2)
    results = pool.imap(operator.methodcaller("get"), refs * 10, chunksize=1)
    assert next(results)[0] == 0
    pool.terminate()
    pool.join()
    expect_members(store, 1)
    assert [int(ref.get()[-1]) for ref in refs] == list(range(20))
    assert store.check() == []


def test_without_a_free_descriptor(store: millpond.Store) -> None:
    """A process that has no descriptor left keeps one for this: its child is a member like any other."""
    ref = store.put(np.arange(100_000))
    view = ref.get()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1 + max(map(int, os.listdir("/proc/self/fd"))), hard))
    hogs = []
    try:
        with suppress(OSError):
            while True:
                hogs.append(os.open("/dev/null", os.O_RDONLY))
        pid = os.fork()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if pid == 0:
        good = view[-1] == 99_999 and ref.get()[0] == 0 and store.put(1).get() == 1
        os._exit(0 if good else 1)
    for hog in hogs:
        os.close(hog)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert view[0] == 0
