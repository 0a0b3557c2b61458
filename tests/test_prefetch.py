"""prefetch: objects come back before they are asked for, and nothing goes wrong that a get would not say."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import millpond
import workers
from millpond.store.prefetch import byte_limit
from ponds import Pond
from test_overflow import noise, states
from workers import inherited, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
MIB = 1 << 20


def spilled(store: millpond.Store, sizes: list[int]) -> list[millpond.ObjectRef]:
    refs = [store.put(noise(size, seed)) for seed, size in enumerate(sizes)]
    store.spill()
    assert states(store, refs) == ["spilled"] * len(refs)
    return refs


def done(store: millpond.Store) -> bool:
    return store._prefetch._thread is None


def test_what_was_prefetched_is_in_memory(pond: Pond) -> None:
    store = pond.store("64MiB")
    sizes = [100, 5000, 70_000, 300_000, 9 * MIB] * 2
    refs = spilled(store, sizes)
    store.prefetch(refs[0])
    store.prefetch(iter(refs))
    wait_until(lambda: states(store, refs) == ["clean"] * len(refs))
    wait_until(lambda: done(store))
    restored = store.stats().restored_objects_total
    for seed, ref in enumerate(refs):
        assert np.array_equal(store.get(ref), noise(sizes[seed], seed))
    assert store.stats().restored_objects_total == restored == len(refs)
    assert store.stats().pinned_bytes == 0


def test_how_much_it_may_take() -> None:
    assert byte_limit(100, free=100, evictable=0) == 50
    assert byte_limit(100, free=10, evictable=20) == 30
    assert byte_limit(100, free=0, evictable=0) == 0
    assert byte_limit(100, free=-40, evictable=10) == 0, "more is committed than a lowered limit allows"


def test_half_of_memory_and_the_first_refs_first(pond: Pond) -> None:
    store = pond.store("16MiB")
    refs = spilled(store, [MIB - 1000] * 15)
    store.prefetch(refs)
    wait_until(lambda: done(store))
    assert states(store, refs) == ["clean"] * 8 + ["spilled"] * 7


def test_what_is_in_use_stays(pond: Pond) -> None:
    store = pond.store("16MiB")
    refs = spilled(store, [MIB - 1000] * 20)
    views = [store.get(ref) for ref in refs[:10]]
    store.prefetch(refs[10:])
    wait_until(lambda: done(store))
    found = states(store, refs)
    assert found[:10] == ["clean"] * 10
    assert 1 <= found[10:].count("clean") <= 6
    assert found[10] == "clean"
    del views


def test_with_everything_pinned_nothing_happens(pond: Pond) -> None:
    store = pond.store("4MiB")
    (first, *rest) = spilled(store, [2 * MIB] * 3)
    views = [store.get(first), store.put(noise(MIB + 800_000)).get()]
    store.prefetch(rest)
    wait_until(lambda: done(store))
    assert states(store, rest) == ["spilled"] * 2
    del views


def test_errors_are_left_to_get(pond: Pond) -> None:
    store = pond.store()
    refs = spilled(store, [5000] * 10 + [9 * MIB] * 2)
    for file in pond.spilled_files():
        file.write_bytes(b"\0" * 100)
    store.prefetch(refs)
    wait_until(lambda: done(store))
    assert set(states(store, refs)) == {"spilled"}
    for ref in refs:
        with pytest.raises(millpond.ObjectLostError):
            store.get(ref)
    store.prefetch(refs)
    with pytest.raises(TypeError, match="expected a ref"):
        store.prefetch([1])  # type: ignore[list-item]


def test_without_a_disk_it_does_nothing(pond: Pond) -> None:
    store = pond.store(spill_limit=0)
    ref = store.put(1)
    store.prefetch(ref)
    assert done(store)
    assert store.get(ref) == 1


def test_delete_and_drop_meanwhile(pond: Pond) -> None:
    store = pond.store()
    for _ in range(5):
        refs = spilled(store, [100_000] * 40)
        store.prefetch(refs)
        store.delete(refs[::2])
        for ref in refs[1::2]:
            assert store.get(ref).nbytes == 100_000
        del refs[:], ref
    wait_until(lambda: len(store) == 0)


def test_close_meanwhile(pond: Pond) -> None:
    store = pond.store()
    refs = spilled(store, [9 * MIB] * 6)
    store.prefetch(refs)
    store.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("millpond")]
    with pytest.raises(millpond.StoreClosedError):
        store.prefetch(refs)


def test_fork_meanwhile(pond: Pond) -> None:
    store = pond.store("128MiB")
    refs = spilled(store, [2 * MIB] * 30)
    expected = sum(int(noise(2 * MIB, seed)[7]) for seed in range(30))
    inherited.append(refs)
    store.prefetch(refs)
    for worker in [pond.worker() for _ in range(3)]:
        assert worker.run(read_inherited) == expected
    wait_until(lambda: done(store))
    assert states(store, refs) == ["clean"] * 30
    inherited.clear()


def read_inherited(own: Any) -> int:
    (refs,) = workers.inherited
    assert not refs[0]._store._prefetch._requests, "the parent's requests are not the child's"
    return sum(int(ref.get()[7]) for ref in refs)


def prefetch_for_ever(own: Any) -> None:
    (refs,) = workers.inherited
    store = refs[0]._store
    while True:
        store.prefetch(refs)
        store.spill(refs)


def test_killed_in_the_middle(pond: Pond) -> None:
    store = pond.store()
    sizes = [3000] * 200 + [MIB] * 20
    refs = spilled(store, sizes)
    inherited.append(refs)
    for pause in (0.0, 0.05, 0.2):
        worker = pond.worker()
        worker.start(prefetch_for_ever)
        time.sleep(pause)
        os.kill(worker.pid, signal.SIGKILL)
        values = store.get(refs)
        for seed, value in enumerate(values):
            assert np.array_equal(value, noise(sizes[seed], seed))
        del values, value
        worker.kill()
        assert store.check() == []
        store.spill()
    inherited.clear()


def test_a_vanished_directory(pond: Pond, tmp_path: Path) -> None:
    store = pond.store()
    refs = spilled(store, [5000, 9 * MIB])
    aside = tmp_path / "aside"
    pond.spill.rename(aside)
    store.prefetch(refs)
    wait_until(lambda: done(store))
    assert states(store, refs) == ["spilled"] * 2
    aside.rename(pond.spill)
    assert [value.nbytes for value in store.get(refs)] == [5000, 9 * MIB]
