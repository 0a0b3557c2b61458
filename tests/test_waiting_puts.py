"""Where puts must wait they are served in order; nobody starves or hangs; the error names numbers."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

import millpond
from ponds import Pond
from workers import Worker, wait_until

MIB = 1 << 20


def put(own: Any, nbytes: int, timeout: float) -> float:
    """Puts so much and keeps it; when it was done."""
    own.ref = own.store.put(np.zeros(nbytes, "u1"), timeout=timeout)
    return time.monotonic()


def waiting(store: millpond.Store) -> int:
    """How many members wait for room."""
    return store._totals()["waiting"]


def in_line(
    pond: Pond, store: millpond.Store, count: int, nbytes: int, timeout: float = 25.0
) -> list[Worker]:
    """So many members that wait for room, one after the other."""
    workers = [pond.member(store) for _ in range(count)]
    for number, worker in enumerate(workers, 1):
        worker.start(put, nbytes, timeout)
        wait_until(lambda number=number: waiting(store) == number)
    return workers


def fill(pond: Pond) -> tuple[millpond.Store, list[millpond.ObjectRef]]:
    """A store of 8 MiB without a disk, and what fills it: 1 MiB each."""
    store = pond.store("8MiB", spill_limit=0)
    return store, [store.put(np.zeros(MIB - 4096, "u1")) for _ in range(8)]


def test_they_are_served_in_order(pond: Pond) -> None:
    store, refs = fill(pond)
    workers = in_line(pond, store, 4, MIB - 4096)
    for served in range(1, 5):
        refs.pop()
        wait_until(lambda served=served: sum(worker.answered() for worker in workers) == served)
        assert [worker.answered() for worker in workers] == [number < served for number in range(4)]
    ended = [worker.result() for worker in workers]
    assert ended == sorted(ended) and waiting(store) == 0


def test_a_large_put_is_not_starved_by_small_ones(pond: Pond) -> None:
    """Room comes a megabyte at a time; small puts want every one of them."""
    store, refs = fill(pond)
    (large,) = in_line(pond, store, 1, 3 * MIB)
    for _ in range(4):
        refs.pop()
        time.sleep(0.1)
        if not large.answered():
            with pytest.raises(millpond.StoreFullError, match="others wait longer"):
                store.put(np.zeros(MIB - 4096, "u1"))
    large.result()


def test_a_killed_head_does_not_block(pond: Pond) -> None:
    store, refs = fill(pond)
    first, second = in_line(pond, store, 2, MIB - 4096)
    first.kill()
    refs.pop()
    second.result()


def test_a_stopped_head_does_not_block(pond: Pond) -> None:
    store, refs = fill(pond)
    first, second = in_line(pond, store, 2, MIB - 4096)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        refs.pop()
        second.result()
    finally:
        os.kill(first.pid, signal.SIGCONT)
    refs.pop()
    first.result()


def test_a_head_that_gives_up_lets_the_next_one_in(pond: Pond) -> None:
    store, refs = fill(pond)
    (first,) = in_line(pond, store, 1, 4 * MIB, timeout=0.5)
    (second,) = in_line(pond, store, 1, MIB - 4096) if waiting(store) == 0 else [pond.member(store)]
    if not second.answered():
        second.start(put, MIB - 4096, 25.0)
    refs.pop()
    with pytest.raises(millpond.StoreFullError):
        first.result()
    second.result()


def test_what_is_larger_than_memory_blocks_nobody(pond: Pond) -> None:
    store, refs = fill(pond)
    (giant,) = in_line(pond, store, 1, 20 * MIB, timeout=3.0)
    refs.pop()
    refs.append(store.put(np.zeros(MIB - 4096, "u1")))
    with pytest.raises(millpond.StoreFullError):
        giant.result()


def test_a_raised_limit_wakes(pond: Pond) -> None:
    store, refs = fill(pond)
    (worker,) = in_line(pond, store, 1, 2 * MIB)
    store.configure(memory_limit="16MiB")
    worker.result()
    assert len(refs) == 8


def test_without_a_disk_nothing_is_ranked(pond: Pond, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits looks again and again: there is nothing to evict, however many objects there are."""
    store, refs = fill(pond)
    looks: list[float] = []
    step, rank = store._room.make, store._room._evict_ranked
    monkeypatch.setattr(store._room, "make", lambda size: (looks.append(time.monotonic()), step(size))[1])
    monkeypatch.setattr(store._room, "_evict_ranked", lambda *_: pytest.fail("it has ranked"))
    with pytest.raises(millpond.StoreFullError, match="spilling is off"):
        store.put(np.zeros(MIB, "u1"), timeout=0.3)
    store.configure(memory_limit="6MiB")
    assert len(looks) > 1 and len(refs) == 8 and store.stats().over_limit
    assert rank(MIB, False) == 0, "and there was nothing to find"


def test_a_draft_waits_in_line(pond: Pond) -> None:
    store, refs = fill(pond)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(store.create(MIB // 2, "u1", timeout=20)))
    thread.start()
    wait_until(lambda: waiting(store) == 1)
    refs.pop()
    thread.join(20)
    found[0].abort()


def test_the_error_names_who_pins_how_much(pond: Pond) -> None:
    """All is pinned, and the disk is full: the quota is reached."""
    store = pond.store("8MiB", spill_limit="1MiB")
    mine = [store.put(np.zeros(MIB - 4096, "u1")) for _ in range(5)]
    views = [ref.get() for ref in mine]
    other = pond.member(store)

    def pin(own: Any) -> None:
        own.view = own.store.get(own.store.put(np.zeros(2 * MIB, "u1")))

    other.run(pin)
    with pytest.raises(millpond.StoreFullError) as caught:
        store.put(np.zeros(2 * MIB, "u1"))
    text = str(caught.value)
    assert "of memory_limit 8 MiB" in text and "raise spill_limit: 0 B of 1 MiB are on the disk" in text
    assert "pinned are 5 MiB by" in text and f"({os.getpid()}), 2" in text and f"({other.pid})" in text
    assert len(views) == 5
