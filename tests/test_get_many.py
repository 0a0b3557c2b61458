"""get of a list: what is spilled comes back together, and nobody can tell but by the clock."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
from typing import Any

import numpy as np
import pytest

import millpond
from millpond.hot import NO_LIMIT, Code, RestoreBatch
from millpond.spill.record import PAGED_MIN
from millpond.store import ahead
from ponds import Pond
from spill_fakes import Failing
from test_overflow import noise, states

MIB = 1 << 20


def values_of(count: int, seed: int = 0) -> list[Any]:
    """Of every shape that records have."""
    dice = random.Random(seed)
    sizes = [10, 600, 5000, 20_000, 70_000, 300_000, 2 * MIB, 9 * MIB]
    return [
        {"number": i, "text": "x" * dice.randrange(2000)} if i % 3 else noise(dice.choice(sizes), i)
        for i in range(count)
    ]


def same(one: Any, other: Any) -> bool:
    return np.array_equal(one, other) if isinstance(other, np.ndarray) else one == other


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_everything_comes_back_in_order(pond: Pond, compression: str) -> None:
    store = pond.store("128MiB", compression=compression)
    values = values_of(120)
    refs = [store.put(value) for value in values]
    store.spill(refs[::2])
    store.spill(refs[1::2])
    order = list(range(120)) * 2
    random.Random(1).shuffle(order)
    got = store.get([refs[i] for i in order])
    assert all(same(value, values[i]) for value, i in zip(got, order, strict=True))
    stats = store.stats()
    assert stats.restored_objects_total == 120, "each once, though it was asked for twice"
    del got
    assert store.stats().pinned_bytes == 0


def test_more_than_memory_one_after_another(pond: Pond) -> None:
    """Plain values need no pin, so that a list of any length passes through."""
    store = pond.store("4MiB")
    refs = [store.put([i, "y" * 3000]) for i in range(5000)]
    assert store.stats().restored_objects_total == 0
    assert [value[0] for value in store.get(refs)] == list(range(5000))
    assert store.stats().overflow_bytes == 0
    assert store.stats().committed_bytes <= 4 * MIB


def test_views_of_more_than_memory(pond: Pond) -> None:
    store = pond.store("8MiB", overflow_limit="64MiB")
    refs = [store.put(noise(MIB, seed)) for seed in range(24)]
    got = store.get(refs)
    assert all(np.array_equal(value, noise(MIB, seed)) for seed, value in enumerate(got))
    assert 0 < store.stats().overflow_bytes <= 64 * MIB
    assert store.stats().committed_bytes <= 8 * MIB
    del got


def test_neighbours_of_medium_size(pond: Pond) -> None:
    """They are read together, where they follow each other."""
    store = pond.store("128MiB")
    refs = [store.put(noise(PAGED_MIN + 777 * seed, seed)) for seed in range(100)]
    store.spill()
    refs[17].get()
    got = store.get(refs)
    assert all(np.array_equal(value, noise(PAGED_MIN + 777 * seed, seed)) for seed, value in enumerate(got))
    assert store.stats().restored_objects_total == 100


def test_nothing_is_restored_twice(pond: Pond) -> None:
    store = pond.store("8MiB", overflow_limit="64MiB")
    refs = [store.put(noise(MIB, seed)) for seed in range(24)]
    store._room.spiller.stop()  # it may still evict
    before = store.stats().restored_objects_total
    resident = states(store, refs).count("resident") + states(store, refs).count("clean")
    got = store.get(refs)
    assert store.stats().restored_objects_total - before == 24 - resident
    del got


def test_copies(pond: Pond) -> None:
    store = pond.store()
    refs = [store.put(noise(100_000, seed)) for seed in range(20)]
    store.spill()
    for value in store.get(refs, copy=True):
        value[0] = 1
    assert store.stats().pinned_bytes == 0


# --- errors ---


def test_the_first_error_in_the_order_of_the_list(pond: Pond) -> None:
    store = pond.store()
    refs = [store.put(noise(9 * MIB, seed)) for seed in range(3)]
    late = store.put(noise(1000, 7))
    gone = store.put(1)
    store.spill()
    store.delete(gone)
    for file in pond.spilled_files():
        if file.stat().st_size > MIB:
            file.unlink()
            break
    with pytest.raises(millpond.ObjectDeletedError):
        store.get([late, gone, *refs])
    with pytest.raises(millpond.ObjectLostError):
        store.get([late, *refs, gone])
    assert store.get([late, late])[0].nbytes == 1000
    assert store.stats().pinned_bytes == 0


def test_damage_is_that_objects_alone(pond: Pond) -> None:
    store = pond.store()
    values = [noise(700, seed) for seed in range(300)]
    refs = [store.put(value) for value in values]
    store.spill()
    (file,) = pond.spilled_files()
    data = bytearray(file.read_bytes())
    at = data.find(values[137].tobytes())
    data[at + 300] ^= 1
    file.write_bytes(data)
    with pytest.raises(millpond.ObjectLostError):
        store.get(refs)
    assert states(store, refs).count("lost") == 1
    left = [i for i in range(300) if i != 137]
    got = store.get([refs[i] for i in left])
    assert all(np.array_equal(value, values[i]) for value, i in zip(got, left, strict=True))


def restored_ahead(store: millpond.Store, refs: list[millpond.ObjectRef]) -> list[Any]:
    """What can be had without reading anything a second time, None for the rest."""
    found: list[Any] = [None] * len(refs)
    reader = store._restore.ahead
    assert reader is not None
    reader.restore(
        refs, range(len(refs)), lambda batch, at, stop: batch.take(at, stop, found, False), lambda: False
    )
    return found


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_any_damage_is_seen(pond: Pond, compression: str) -> None:
    store = pond.store(compression=compression)
    values: list[Any] = [[seed, "z" * 900] for seed in range(40)]
    refs = [store.put(value) for value in values]
    store.spill()
    (file,) = pond.spilled_files()
    whole = file.read_bytes()
    dice = random.Random(3)
    for _ in range(60):
        data = bytearray(whole)
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        file.write_bytes(data)
        batch = RestoreBatch(store, refs, range(40), NO_LIMIT)
        restored = batch.count
        del batch
        found = restored_ahead(store, refs)
        assert restored == 40
        assert sum(value is None for value in found) <= 1
        assert all(value is None or value == values[i] for i, value in enumerate(found))
        store.spill()
        assert states(store, refs) == ["spilled"] * 40
    file.write_bytes(whole)
    assert store.get(refs) == values


@pytest.mark.parametrize("size", [1000, 200_000, 9 * MIB])
def test_behind_a_stopped_process_one_wait_is_enough(
    pond: Pond, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Each try to begin a restore waits for 5 s: with thousands of objects that were hours."""
    waits: list[int] = []

    class Behind:
        """A batch that finds the store's lock in the hands of a stopped process."""

        def __init__(self, *arguments: Any) -> None:
            self._batch = RestoreBatch(*arguments)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._batch, name)

        def begin(self, item: int) -> tuple[int, None]:
            waits.append(item)
            return Code.BUSY, None

        def copy_packed(self, first: int, *_: Any) -> tuple[int, int]:
            return first, self.begin(first)[0]

    store = pond.store()
    refs = [store.put(noise(size, seed)) for seed in range(6)]
    store.spill()
    monkeypatch.setattr(ahead, "RestoreBatch", Behind)
    assert restored_ahead(store, refs) == [None] * 6
    assert 1 <= len(waits) <= ahead.HELPERS
    monkeypatch.undo()
    assert all(value.nbytes == size for value in store.get(refs))


def test_the_disk_fails_for_a_while(pond: Pond, monkeypatch: pytest.MonkeyPatch) -> None:
    store = pond.store()
    refs = [store.put(noise(size, size)) for size in (500, 700, 90_000, 9 * MIB)]
    store.spill()
    reader = store._restore._reader
    assert reader is not None
    broken = Failing(errno.EIO, 1, ["preadv"], for_ever=True)
    monkeypatch.setattr(reader, "_system", broken)
    with pytest.raises(millpond.SpillError, match="stays on disk"):
        store.get(refs)
    assert states(store, refs) == ["spilled"] * 4
    broken.broken = False
    assert [value.nbytes for value in store.get(refs)] == [500, 700, 90_000, 9 * MIB]


class Fails:
    """Cannot be loaded."""

    def __reduce__(self) -> Any:
        return os.strerror, ("no number",)


def test_a_value_that_cannot_be_loaded(pond: Pond) -> None:
    store = pond.store()
    refs = [store.put([i]) for i in range(5)] + [store.put([Fails()])] + [store.put([6])]
    for spill in (False, True):
        if spill:
            store.spill()
        with pytest.raises(TypeError):
            store.get(refs)
    assert store.get(refs[:5] + refs[6:]) == [[0], [1], [2], [3], [4], [6]]


# --- time ---


class Forking:
    """Forks when it is loaded."""

    def __reduce__(self) -> Any:
        return fork, ()


children: list[int] = []


def fork() -> str:
    children.append(os.fork())
    if children[-1] == 0:
        signal.alarm(20)
    return "forked"


def test_a_value_that_forks(pond: Pond) -> None:
    """Parent and child both get the whole list, though only one of them has the threads that read."""
    store = pond.store("64MiB")
    values: list[Any] = [noise(300_000, i) for i in range(30)]
    refs = [store.put(value) for value in values]
    refs.insert(3, store.put(Forking()))
    store.spill()
    got = store.get(refs)
    child = children.pop()
    right = got.pop(3) == "forked" and all(same(value, one) for value, one in zip(got, values, strict=True))
    if child == 0:
        os._exit(0 if right and store.check() == [] else 1)
    assert right
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_timeout_is_for_the_whole_call(pond: Pond) -> None:
    store = pond.store("128MiB")
    refs = [store.put(noise(9 * MIB, seed)) for seed in range(8)]
    store.spill()
    with pytest.raises(millpond.GetTimeoutError, match="of 8 objects were read within 1e-06 s"):
        store.get(refs, timeout=1e-6)
    assert states(store, refs).count("spilled") >= 6
    assert len(store.get(refs, timeout=0)) == 8, "0 waits for nobody, but reads"


def test_a_draft_in_the_list_is_waited_for(pond: Pond) -> None:
    store = pond.store()
    first = [store.put(noise(1000, seed)) for seed in range(10)]
    store.spill()
    draft = store.create(10, "i4")
    with pytest.raises(millpond.GetTimeoutError, match="not sealed"):
        store.get([*first, draft.ref], timeout=0.01)
    threading.Timer(0.05, draft.seal).start()
    draft.array[:] = 3
    assert store.get([draft.ref, *first])[0].sum() == 30


# --- threads ---


def test_threads_want_the_same(pond: Pond) -> None:
    store = pond.store("128MiB")
    values = values_of(60)
    refs = [store.put(value) for value in values]
    for _ in range(3):
        store.spill()
        answers: list[list[Any]] = []
        threads = [
            threading.Thread(target=lambda into: into.append(store.get(refs)), args=(answers,))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 4
        for got in answers:
            assert all(same(value, expected) for value, expected in zip(got, values, strict=True))
        answers.clear()
        got.clear()


def test_no_thread_can_be_had(pond: Pond, monkeypatch: pytest.MonkeyPatch) -> None:
    store = pond.store("128MiB")
    values = values_of(60)
    refs = [store.put(value) for value in values]
    store.spill()

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        got = store.get(refs)
    assert all(same(value, expected) for value, expected in zip(got, values, strict=True))
    assert store.stats().restored_objects_total == 60


# --- the batch ---


def test_runs_follow_the_disk(pond: Pond) -> None:
    store = pond.store()
    refs = [store.put(noise(1000, seed)) for seed in range(100)]
    refs += [store.put(noise(PAGED_MIN + 5, seed)) for seed in range(3)]
    store.spill()
    order = list(range(103))
    random.Random(2).shuffle(order)
    batch = RestoreBatch(store, refs, order, NO_LIMIT)
    assert batch.count == 103
    places = [batch.place(item)[0] for item in range(103)]
    assert places == sorted(places, key=lambda place: (place[3], place[0]))
    assert batch.run(0, 1 << 30, 1 << 30) == 100
    stop = batch.run(0, 20_480, 1 << 30)  # five pages
    assert places[stop - 1][0] + places[stop - 1][1] <= 20_480 < places[stop][0] + places[stop][1]
    assert batch.run(100, 1 << 30, 0) == 103
    assert batch.run(100, 2 * PAGED_MIN, 1 << 30) == 101
    with pytest.raises(IndexError):
        batch.run(103, 1, 1)
    del batch
    few = RestoreBatch(store, refs, order[::2][:40], NO_LIMIT)
    assert few.run(0, 1 << 30, 0) < few.count, "a gap ends a run"
    del few
    assert store.stats().pinned_bytes == 0


def test_a_batch_gives_everything_back(pond: Pond) -> None:
    store = pond.store()
    refs = [store.put(noise(size, size)) for size in (1000, 2000, 100_000)]
    store.spill()
    batch = RestoreBatch(store, refs, range(3), 3200)
    assert (batch.count, batch.full, batch.nbytes > 3200) == (2, True, True)
    code, target = batch.begin(0)
    assert code == Code.OK
    target[:] = b"\x55" * len(target)
    del batch, target
    assert states(store, refs) == ["spilled"] * 3
    assert np.array_equal(store.get(refs)[0], noise(1000, 1000))
    assert store.check() == []
    assert RestoreBatch(store, refs, range(3), NO_LIMIT).count == 0
