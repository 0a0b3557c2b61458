"""Limits that change while the store runs, and memory that goes back to the system."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import millpond
from ponds import join
from workers import Worker

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[millpond.Store]:
    """A store of 64 MiB that spills to a directory of its own."""
    monkeypatch.setenv("MILLPOND_DIR", str(tmp_path / "registry"))
    with millpond.Store(memory_limit="64MiB", spill_dir=tmp_path / "spill") as store:
        yield store
        gc.collect()
        assert store.check() == []


def arena_bytes(store: millpond.Store) -> int:
    """What the system counts for the arena."""
    links = (
        (fd, os.readlink(f"/proc/self/fd/{fd}"))
        for fd in os.listdir("/proc/self/fd")
        if Path(f"/proc/self/fd/{fd}").is_symlink()
    )
    [fd] = {int(fd) for fd, link in links if f"millpond-arena-{store.uuid.hex()}" in link}
    return os.fstat(fd).st_blocks * 512


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Waits for what the janitor does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_a_lower_limit_spills_at_once(store: millpond.Store) -> None:
    """And a higher one takes effect for the next put; every byte survives."""
    refs = [store.put(np.full(MIB, i, "u8")) for i in range(6)]
    store.configure(memory_limit="16MiB")
    stats = store.stats()
    assert (stats.memory_limit, stats.committed_bytes <= 16 * MIB, stats.over_limit) == (
        16 * MIB,
        True,
        False,
    )
    assert arena_bytes(store) <= 16 * MIB
    assert [int(store.get(ref)[-1]) for ref in refs] == list(range(6))
    store.configure(memory_limit="64MiB")
    views = [store.get(ref) for ref in refs]
    assert store.stats().overflow_bytes == 0
    assert all((view == i).all() for i, view in enumerate(views))


def test_lowered_below_what_is_pinned(store: millpond.Store) -> None:
    """It is reported, new objects go to disk, and it comes right when the views go."""
    refs = [store.put(np.full(MIB, i, "u8")) for i in range(4)]
    views = [store.get(ref) for ref in refs]
    store.configure(memory_limit="8MiB")
    assert store.stats().over_limit
    late = store.put(np.ones(MIB))
    assert store.get(late).sum() == MIB
    assert [int(view[0]) for view in views] == [0, 1, 2, 3]
    del views
    store._janitor.start()
    until(lambda: not store.stats().over_limit)
    assert [int(store.get(ref)[0]) for ref in refs] == [0, 1, 2, 3]


def test_another_member_may_change_it(store: millpond.Store) -> None:
    """Limits and compression belong to the store."""
    child = os.fork()
    if child == 0:
        try:
            store.configure(memory_limit="24MiB", spill_limit="1GiB", compression="lz4")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    stats = store.stats()
    assert (stats.memory_limit, stats.spill_limit) == (24 * MIB, 1 << 30)
    store._tidy()
    ref = store.put(np.zeros(2 * MIB, "u8"))
    before = store.stats().spilled_bytes_total
    store.spill(ref)
    assert store.stats().spilled_bytes_total - before < MIB, "zeros compress"
    assert not store.get(ref).any()
    store.configure(spill_limit=None)
    assert store.stats().spill_limit is None


def test_what_is_wrong_changes_nothing(store: millpond.Store, tmp_path: Path) -> None:
    """The error comes before any change."""
    for wrong in (
        {"memory_limit": 5},
        {"memory_limit": "64MiB", "compression": "zip"},
        {"eviction": "random"},
    ):
        with pytest.raises(ValueError):
            store.configure(**wrong)
    assert store.stats().memory_limit == 64 * MIB
    with (
        millpond.Store(memory_limit="4MiB", spill_limit=0) as dry,
        pytest.raises(ValueError, match="spill_limit=0"),
    ):
        dry.configure(spill_limit="1GiB")


def test_idle_memory_goes_back(store: millpond.Store) -> None:
    """As the store and the system count it, soon after the last ref is dropped."""
    before = arena_bytes(store)
    store._janitor.start()
    ref = store.put(np.ones(5 * MIB))
    assert arena_bytes(store) >= 40 * MIB
    del ref
    until(lambda: store.stats().committed_bytes <= before and arena_bytes(store) <= before, 5.0)


def test_memory_in_use_stays_warm(store: millpond.Store) -> None:
    """What a workload uses again and again is not given back between."""
    for _ in range(3):
        store.put(np.ones(4 * MIB))
        assert store._idle() < 32 * MIB, "it was in use since the last look"
    assert store._idle() >= 32 * MIB, "and now it was not"


def test_another_member_gives_idle_memory_back(store: millpond.Store) -> None:
    """The first one has had no reason to start its helper thread."""
    worker = Worker(program=True)
    worker.run(join, store.address)

    def put_and_drop(own: object) -> None:
        own.store.put(np.zeros(8 * MIB, "u1"))  # type: ignore[attr-defined]

    worker.run(put_and_drop)
    returned = store.stats().returned_bytes_total
    until(lambda: store.stats().committed_bytes == 0)
    assert store.stats().returned_bytes_total >= returned + 8 * MIB or returned >= 8 * MIB
    worker.end()
