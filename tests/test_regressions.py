"""Faults that attacks on the whole found: awkward moments to close, to fork, to be interrupted.

Those of the kernel alone are in kernel/test_regressions.c.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import threading
from types import FrameType
from typing import Any

import numpy as np
import pytest

import millpond
from millpond.hot import NO_LIMIT, Batch, RestoreBatch
from millpond.spill.overlap import Overlap
from millpond.store import membership
from millpond.store.store import Store
from ponds import Pond


class Calls:
    """Pickles as a call of `act`."""

    def __reduce__(self) -> Any:
        return act, ()


action: list[Any] = []


def act() -> int:
    for call in action:
        call()
    return 1


def forked(function: Any, seconds: int = 10) -> int:
    """The exit code of a forked child that runs `function`; -14 when it hangs."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(seconds)
            function()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_a_value_that_closes_the_store_while_it_is_read(pond: Pond, size: int) -> None:
    store = pond.store()
    ref = store.put([Calls(), "y" * size])
    action[:] = [store.close]
    try:
        assert store.get(ref)[1] == "y" * size
    finally:
        action.clear()
    assert store.closed


def test_put_in_one_thread_and_close_in_another(pond: Pond) -> None:
    store = pond.store("256MiB")
    errors: list[BaseException] = []
    array, started = np.ones(4_000_000), threading.Event()

    def put_for_ever() -> None:
        try:
            while True:
                store.put(array)
                started.set()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=put_for_ever) for _ in range(2)]
    for thread in threads:
        thread.start()
    started.wait()
    store.close()
    for thread in threads:
        thread.join()
    assert [type(error) for error in errors] == [millpond.StoreClosedError] * 2


@pytest.mark.parametrize("shape", [(1000, 0), (0, 1000), (3, 0, 70_000), (0,), ()])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_without_items(store: millpond.Store, shape: tuple[int, ...], order: Any) -> None:
    array = np.zeros(shape, "f4", order=order)
    for copy in (False, True):
        value = store.get(store.put(array), copy=copy)
        assert (value.shape, value.dtype) == (array.shape, array.dtype)


@pytest.mark.parametrize("nbytes", [2**63, 2**64 - 64, 2**64 - 1, 2**64])
def test_a_size_that_would_wrap_around(store: millpond.Store, nbytes: int) -> None:
    with pytest.raises(ValueError):
        store.create_buffer(nbytes)


@pytest.mark.parametrize(
    "options",
    [
        {"memory_limit": 2**45},
        {"memory_limit": 2**70},
        {"spill_limit": 2**64},
        {"overflow_limit": 2**65},
        {"handoff_timeout": float("inf")},
    ],
)
def test_limits_that_no_machine_has(pond: Pond, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        pond.store(**options)


def test_a_store_is_opened_once(pond: Pond) -> None:
    store = pond.store()
    ref = store.put(1)
    with pytest.raises(TypeError, match="opened before"):
        store.__init__(memory_limit="8MiB", spill_dir=pond.spill)  # type: ignore[misc]
    assert store.get(ref) == 1


def test_a_ref_that_no_store_has_made(store: millpond.Store) -> None:
    ref = millpond.ObjectRef.__new__(millpond.ObjectRef)
    with pytest.raises(TypeError, match="not made by a store"):
        store.get(ref)


def test_a_fork_while_another_thread_evicts(pond: Pond) -> None:
    store = pond.store("16MiB")
    refs = [store.put(np.ones(100_000)) for _ in range(10)]
    inside, go_on = threading.Event(), threading.Event()

    def evicting() -> None:
        with store._room._lock:
            inside.set()
            go_on.wait()

    thread = threading.Thread(target=evicting)
    thread.start()
    inside.wait()
    code = forked(lambda: [store.put(np.ones(100_000)) for _ in range(30)])
    go_on.set()
    thread.join()
    assert code == 0
    del refs


def test_a_forked_child_does_not_count_its_parents_private_copies(pond: Pond) -> None:
    store = pond.store("8MiB", overflow_limit="4MiB")
    refs = [store.put(np.ones(125_000)) for _ in range(20)]
    views = [store.get(ref) for ref in refs[:9]]
    before = store.stats().overflow_bytes
    assert before > 0

    def drop() -> None:
        views.clear()
        gc.collect()
        assert store.stats().overflow_bytes == before

    assert forked(drop) == 0
    views.clear()
    assert store.stats().overflow_bytes == 0
    del refs


def test_a_signal_handler_closes_the_store_in_the_middle_of_a_spill(pond: Pond) -> None:
    store = pond.store("16MiB")
    writer = store._writer
    assert writer is not None
    closed = []

    def handler(number: int, frame: FrameType | None) -> None:
        store.close()
        closed.append(number)

    old = signal.signal(signal.SIGUSR1, handler)
    refs = [store.put(np.ones(100_000)) for _ in range(5)]
    segments: Any = writer._segments
    reserve = segments.reserve

    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGUSR1)
        return reserve(*arguments)

    segments.reserve = interrupted
    try:
        store.spill(refs[0])
    finally:
        signal.signal(signal.SIGUSR1, old)
        del segments.reserve
    assert closed == [signal.SIGUSR1] and store.closed


def test_a_store_is_known_only_when_it_can_do_everything(pond: Pond, monkeypatch: pytest.MonkeyPatch) -> None:
    store = pond.store()
    address = store.address
    seen: list[Any] = []
    compose = Store._compose

    def looked_at(self: Store, *arguments: Any) -> None:
        seen.append(membership.known(self.uuid))
        compose(self, *arguments)
        seen.append(membership.known(self.uuid))

    monkeypatch.setattr(Store, "_compose", looked_at)
    other = pond.store()
    assert seen == [None, other]
    assert membership.known(address) is store


def test_no_thread_to_be_had_for_the_janitor(pond: Pond, monkeypatch: pytest.MonkeyPatch) -> None:
    store = pond.store()

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    ref = store.put(1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        data = pickle.dumps(ref)
    assert pickle.loads(data).get() == 1
    del ref


def test_two_interrupts_leave_no_call_behind() -> None:
    began, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def call() -> None:
        began.set()
        go_on.wait(5)
        ended.set()

    def strike() -> None:
        began.wait()
        for _ in range(2):
            signal.pthread_kill(main, signal.SIGINT)
            threading.Event().wait(0.05)
        go_on.set()

    main = threading.main_thread().ident
    assert main is not None
    striker = threading.Thread(target=strike)
    with pytest.raises(KeyboardInterrupt), Overlap[None]() as disk:
        disk.start(call)
        striker.start()
        disk.finish()
    assert ended.is_set()
    striker.join()


def test_what_is_no_state_is_an_error_and_no_loop(pond: Pond) -> None:
    store = pond.store()
    ref = store.put(np.ones(100_000))
    store.spill(ref)
    full = 11  # any answer of the kernel that waiting does not change
    with pytest.raises(millpond.MillpondError):
        store._restore._changed(ref, full)
    assert store.get(ref).sum() == 100_000


def test_threads_that_fork_at_once_leave_the_janitor_running(pond: Pond) -> None:
    store = pond.store()
    store._janitor.start()
    threads = [threading.Thread(target=forked, args=(lambda: None,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store._janitor._thread is not None and store._janitor._thread.is_alive()


@pytest.mark.parametrize("kind", ["clean", "restore"])
def test_claims_end_when_the_garbage_collector_finds_them(store: millpond.Store, kind: str) -> None:
    """As in the traceback of an interrupted call: it may clear the batch before what refers to it."""
    ref = store.put(np.arange(100_000))
    if kind == "restore":
        store.spill()
    batch = (
        Batch(store, store._candidates(), 1 << 62)
        if kind == "clean"
        else RestoreBatch(store, [ref], (0,), NO_LIMIT)
    )
    assert batch.count == 1
    cycle = [batch]
    cycle.append(cycle)
    del batch, cycle
    gc.collect()
    assert store.refs(ref).pins == ()
    assert store.spill() == (0 if kind == "restore" else 802_816)


def test_a_store_that_the_garbage_collector_finds_is_left(pond: Pond) -> None:
    """It is finalized together with what uses it, and cleared before that goes."""
    store = millpond.Store("8MiB", spill_dir=pond.spill)
    ref = store.put(np.arange(100_000))
    store.spill()
    cycle = [store, RestoreBatch(store, [ref], (0,), NO_LIMIT)]
    cycle.append(cycle)
    address = store.address
    del store, ref, cycle
    for _ in range(3):  # what a finalizer has touched waits for the next time
        gc.collect()
    assert not os.path.exists(address)


class Blocking:
    """A codec that waits until it may go on."""

    name, number = "blocking", 250

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def compress(self, frame: memoryview) -> bytes | None:
        self.reached.set()
        self.go_on.wait(10)
        return None

    def decompress_into(self, stored: memoryview, frame: memoryview) -> None:
        raise NotImplementedError


def test_close_while_another_thread_writes(pond: Pond) -> None:
    """What that thread opens is closed when it ends: the fixture counts descriptors."""
    codec = Blocking()
    store = pond.store("8MiB", compression=codec)
    ref = store.put(np.arange(10_000))
    thread = threading.Thread(target=store.spill)
    thread.start()
    codec.reached.wait(10)
    store.close()
    codec.go_on.set()
    thread.join()
    assert [fd for fd in os.listdir("/proc/self/fd") if _is_segment(fd)] == []
    with pytest.raises(millpond.StoreClosedError):
        store.get(ref)


def _is_segment(fd: str) -> bool:
    try:
        return ".seg" in os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:  # of the listing itself
        return False
