"""Ctrl-C at any moment of a put or get that overflows: nothing is lost, pinned or half done for good."""

from __future__ import annotations

import gc
import linecache
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import numpy as np
import pytest

from millpond import threads
from millpond.spill.overlap import Overlap
from ponds import Pond
from workers import wait_until


def noise(nbytes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


class Interrupt:
    """Raises KeyboardInterrupt before the nth line of the slow paths, as Ctrl-C may."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.place = "nowhere"

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if not re.search(r"millpond/(store/(store|room|restore)|spill/\w+)\.py$", name):
            return None
        # No signal can come between: a "with" is reported once more before __exit__ is called, and a "try"
        # is an instruction that does nothing, which the "with" above it does not cover.
        is_bare = linecache.getline(name, frame.f_lineno).lstrip().startswith(("with ", "try:"))
        if event in ("line", "call") and not is_bare:
            self.left -= 1
            if self.left == 0:
                self.place = f"{name}:{frame.f_lineno}, {event}"
                raise KeyboardInterrupt
        return self.trace

    def during(self, call: Callable[[], Any]) -> bool:
        """Whether the call was interrupted."""
        sys.settrace(self.trace)
        try:
            call()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False


def close_all(pond: Pond) -> None:
    """Nothing is left, no descriptor of a spill file either."""
    pond.close_empty()
    gc.collect()  # a traceback in a cycle
    assert [path for path in map(target_of, os.listdir("/proc/self/fd")) if ".seg" in path] == []


def target_of(descriptor: str) -> str:
    with suppress(FileNotFoundError):
        return os.readlink(f"/proc/self/fd/{descriptor}")
    return ""


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # in a generator that is closed
def test_a_restore_may_be_interrupted_anywhere(pond: Pond) -> None:
    store = pond.store("4MiB")
    refs = [store.put(noise(300_000, seed)) for seed in range(2)]
    interrupts = 0
    for number in range(1, 1000):
        store.spill()
        assert store.stats().spilled_objects == 2, f"after an interrupt at step {number - 1}"
        interrupt = Interrupt(number)
        interrupts += interrupt.during(lambda: store.get(refs[0]))
        if interrupt.left > 0:
            break
        assert store.check() == []
        assert (store.get(refs[0], timeout=5) == noise(300_000)).all(), f"after an interrupt at step {number}"
        assert store.stats().pinned_bytes == 0, f"after an interrupt at step {number}"
    refs.clear()
    close_all(pond)
    assert interrupts > 40


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # in a generator that is closed
def test_a_put_may_be_interrupted_anywhere(pond: Pond) -> None:
    store = pond.store("2MiB")
    kept = [store.put(noise(200_000, seed)) for seed in range(3)]
    interrupts, in_time = 0, 0
    for number in range(1, 3000, 3):
        for ref in kept:
            store.get(ref)
        filling = [store.put(noise(180_000, 50 + seed)) for seed in range(12)]
        interrupt = Interrupt(number)
        interrupts += interrupt.during(lambda: store.put(noise(600_000)))
        filling.clear()
        store._room.spiller.stop()  # it pins what it writes
        assert {info.id for info in store.objects() if info.state != "deleted"} == {ref.id for ref in kept}, (
            f"after an interrupt at {interrupt.place}: {store.objects()}"
        )
        assert store.check() == [] and store.stats().pinned_bytes == 0, f"after one at {interrupt.place}"
        in_time = in_time + 1 if interrupt.left > 0 else 0
        if in_time == 3:
            break  # once may be luck: the spiller had made room
    assert all((ref.get() == noise(200_000, seed)).all() for seed, ref in enumerate(kept))
    kept.clear()
    del ref
    close_all(pond)
    assert interrupts > 20


def overlapped() -> None:
    with Overlap[None]() as slot:
        slot.start(lambda: None)
        slot.finish()


STARTS = {
    "millpond-janitor": lambda store, refs: store._janitor.start(),
    "millpond-spiller": lambda store, refs: store._room.spiller.wake(),
    "millpond-prefetch": lambda store, refs: store.prefetch(refs),
    "millpond-disk": lambda store, refs: overlapped(),
}


@pytest.mark.parametrize("name", STARTS)
def test_a_start_of_a_thread_may_be_interrupted(
    name: str, pond: Pond, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows of the thread then: it must not stay."""

    def running() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == name]

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    store = pond.store("8MiB")
    refs = [store.put(noise(300_000, seed)) for seed in range(4)]
    store.spill()
    for stop in (store._janitor.stop, store._room.spiller.stop):
        stop()
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        STARTS[name](store, refs)
    monkeypatch.undo()
    wait_until(lambda: not running())
    STARTS[name](store, refs)
    assert len(running()) <= 1
    assert [(ref.get() == noise(300_000, seed)).all() for seed, ref in enumerate(refs)] == [True] * 4


def start_one() -> None:
    threads.start(threading.Thread(target=lambda: None))


@pytest.mark.parametrize("begin", [start_one, overlapped])
def test_what_a_handler_raises_while_a_thread_starts_comes_out(
    monkeypatch: pytest.MonkeyPatch, begin: Callable[[], None]
) -> None:
    real: Any = getattr(threading, "_start_new_thread", None)
    if real is None:
        pytest.skip("this Python starts threads in another way")

    class TooLate(Exception):
        pass

    def interrupted(*arguments: Any) -> None:
        real(*arguments)
        wait_until(lambda: not threading._limbo)  # type: ignore[attr-defined]
        raise TooLate

    before = threading.active_count()
    monkeypatch.setattr(threading, "_start_new_thread", interrupted)
    with pytest.raises(TooLate):
        begin()
    monkeypatch.undo()
    wait_until(lambda: threading.active_count() <= before)


def test_signals_interrupt_at_random(pond: Pond) -> None:
    store = pond.store("2MiB")
    refs = [store.put(noise(250_000, seed)) for seed in range(20)]
    dice = random.Random(4)

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, interrupt)
    interrupts = 0
    try:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            try:
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(0.0005, 0.005))
                while True:
                    store.get(dice.choice(refs))
                    store.put(noise(100, 1))
            except KeyboardInterrupt:
                interrupts += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert interrupts > 50
    store._room.spiller.stop()  # it pins what it writes
    assert store.check() == []
    for seed, ref in enumerate(refs):
        assert (store.get(ref, timeout=5) == noise(250_000, seed)).all()
    store._room.spiller.stop()
    assert store.stats().pinned_bytes == 0 and store.stats().overflow_bytes == 0
    refs.clear()
    del ref
    close_all(pond)
