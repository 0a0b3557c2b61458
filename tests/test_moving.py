"""Free bytes that lie scattered are usable: objects that nobody uses are moved together."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

import millpond
from ponds import Pond
from workers import wait_until

MIB = 1 << 20
LIMIT = 32 * MIB


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def fill(store: millpond.Store, size: Callable[[], int], keep: float) -> dict[int, millpond.ObjectRef]:
    """Objects until memory is full, of which some, chosen at random, stay: by seed."""
    refs: dict[int, millpond.ObjectRef] = {}
    with pytest.raises(millpond.StoreFullError):
        while True:
            refs[len(refs)] = store.put(noise(size(), len(refs)))
    return {seed: ref for seed, ref in refs.items() if random.random() < keep}


@pytest.mark.parametrize(
    "sizes", [(1000, 1000), (100, 8000), (12_000, 12_000), (9_000, 60_000), (100, 60_000)]
)
def test_half_of_memory_fits_after_nine_in_ten_are_dropped(pond: Pond, sizes: tuple[int, int]) -> None:
    store = pond.store(LIMIT, spill_limit=0)
    kept = fill(store, lambda: random.randint(*sizes), 0.1)
    views = {seed: ref.get() for seed, ref in list(kept.items())[::9]}
    array = np.ones(LIMIT // 16)
    ref = store.put(array)
    assert [info.state for info in store.objects() if info.id == ref.id] == ["resident"]
    for seed, kept_ref in kept.items():
        value = kept_ref.get()
        assert value == noise(len(value), seed)
    assert all(value == noise(len(value), seed) for seed, value in views.items())
    assert store.check() == [] and (ref.get() == array).all()


def test_moving_comes_before_writing(pond: Pond) -> None:
    """Enough is free: nothing needs to go to disk."""
    store = pond.store(LIMIT)
    refs = [store.put(noise(1000, seed)) for seed in range(25_000)]
    random.shuffle(refs)
    del refs[2500:]
    store.put(np.ones(LIMIT // 16))
    stats = store.stats()
    assert stats.spilled_bytes_total == 0 and stats.committed_bytes <= LIMIT


def test_moving_comes_before_writing_when_another_waits(pond: Pond) -> None:
    """What came free belongs to the other one; what lies scattered is enough for this one."""
    store = pond.store(LIMIT)
    large = store.put(np.zeros(4 * MIB, "u1"))
    refs = [store.put(noise(1000, seed)) for seed in range(25_000)]
    random.shuffle(refs)
    del refs[2500:]
    other = pond.member(store)
    other.run(lambda own: setattr(own, "place", own.store._room.wait(8 << 20).__enter__()))
    del large
    other.run(lambda own: own.place.renew() and None)
    lacking = store._lacking(5 * MIB)
    array = store.put(np.ones(5 * MIB // 8))
    other.run(lambda own: own.place.__exit__(None, None, None))
    assert lacking > 0 and store.stats().spilled_bytes_total == 0 and array.get()[-1] == 1


def test_small_puts_beside_a_large_one_write_nothing(pond: Pond) -> None:
    """They need slots, not pages: nothing lacks, however much is put by for the large one."""
    store = pond.store(4 * LIMIT)
    refs = [store.put(noise(1000, seed)) for seed in range(100_000)]
    random.shuffle(refs)
    del refs[10_000:]
    other = pond.member(store)

    def keep_putting(own: object) -> int:
        store, count = own.store, 0  # type: ignore[attr-defined]
        keep = store.put(1)
        while "over" not in store.names():
            store.put(1)
            count += 1
        del keep
        return count

    other.start(keep_putting)
    ref = store.put(np.ones(4 * LIMIT // 16))
    over = store.put(0, name="over")
    assert other.result() > 0 and over.get() == 0 and len(ref.get()) == 4 * LIMIT // 16
    assert store.stats().spilled_bytes_total == 0


def test_objects_in_use_stay_where_they_are(pond: Pond) -> None:
    store = pond.store(LIMIT, spill_limit=0)
    arrays = [store.put(np.full(500, seed)) for seed in range(5000)]
    views = [ref.get() for ref in arrays[::50]]
    addresses = [view.ctypes.data for view in views]
    del arrays
    assert store._empty_blocks(LIMIT) >= 0
    assert [view.ctypes.data for view in views] == addresses
    assert all((view == seed * 50).all() for seed, view in enumerate(views))


def test_idle_sparse_blocks_go_back(pond: Pond) -> None:
    """Nobody asks for room; the janitor empties what lies scattered and gives it to the system."""
    store = pond.store(2 * LIMIT)
    refs = [store.put(noise(1000, seed)) for seed in range(45_000)]
    random.shuffle(refs)
    del refs[4500:]
    before = store.stats()
    live = before.committed_bytes - before.warm_bytes
    store._janitor.start()
    wait_until(lambda: store.stats().committed_bytes < live + 20 * MIB)
    assert store.stats().returned_bytes_total > 20 * MIB
    assert all(len(ref.get()) == 1000 for ref in refs)


def test_another_process_reads_while_objects_move(pond: Pond) -> None:
    store = pond.store(LIMIT, spill_limit=0)
    refs = [store.put(noise(2000, seed)) for seed in range(400)]
    reader = pond.member(store)
    reader.run(
        lambda own, data: setattr(own, "refs", [millpond.load_ref(one) for one in data]),
        [r.export() for r in refs],
    )

    def read(own: object) -> int:
        import random

        refs = own.refs  # type: ignore[attr-defined]
        for _ in range(30):
            for seed, ref in enumerate(refs):
                assert ref.get() == random.Random(seed).randbytes(2000)
        return len(refs)

    reader.start(read)
    emptied = 0
    while not reader.answered():
        others = [store.put(noise(2000, seed)) for seed in range(400)]
        random.shuffle(others)
        del others[100:]
        emptied += store._empty_blocks(LIMIT)
    assert reader.result() == 400 and emptied > 0
