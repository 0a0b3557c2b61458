"""More data than memory: the limit holds, the coldest go to disk, everything comes back, errors are typed."""

from __future__ import annotations

import ctypes
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import millpond
import workers
from millpond.spill import record
from millpond.store import restore
from ponds import Pond
from workers import in_threads, inherited, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
MIB = 1 << 20


def noise(nbytes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def states(store: millpond.Store, refs: list[millpond.ObjectRef]) -> list[str]:
    found = {info.id: info.state for info in store.objects()}
    return [found[ref.id] for ref in refs]


def arena_bytes(store: millpond.Store) -> int:
    """What the system counts as the arena's memory."""
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            if f"millpond-arena-{store.uuid.hex()}" in os.readlink(f"/proc/self/fd/{fd}"):
                return os.fstat(int(fd)).st_blocks * 512
    raise AssertionError("no arena")


class Sampled:
    """Watches the committed memory of a store in a thread, as long as the block lasts."""

    def __init__(self, store: millpond.Store) -> None:
        self.peak = self.samples = 0
        self._store, self._stop = store, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.peak = max(self.peak, arena_bytes(self._store), self._store.stats().committed_bytes)
            self.samples += 1

    def __enter__(self) -> Sampled:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        wait_until(lambda: self.samples)
        self._stop.set()
        self._thread.join()


# --- the limit ---


def test_the_limit_holds_all_along_and_everything_comes_back(pond: Pond) -> None:
    store = pond.store("4MiB")
    dice = random.Random(1)
    sizes = [dice.choice([10, 700, 5000, 9000, 60_000, 70_000, 300_000, 1_000_000]) for _ in range(250)]
    values = [noise(size, seed) for seed, size in enumerate(sizes)]
    assert sum(sizes) > 40 * MIB
    with Sampled(store) as watch:
        refs = [store.put(value) for value in values]
        order = list(range(len(refs)))
        dice.shuffle(order)
        for at in order:
            assert (store.get(refs[at]) == values[at]).all()
    assert watch.samples > 10 and watch.peak <= store.memory_limit
    stats = store.stats()
    assert stats.memory_bytes <= 4 * MIB and stats.spilled_bytes_total >= 35 * MIB
    assert stats.restored_objects_total >= 100
    assert store.check() == []


def test_what_fits_is_not_spilled(pond: Pond) -> None:
    store = pond.store("8MiB")
    refs = [store.put(noise(500_000, seed)) for seed in range(14)]
    assert store.stats().spilled_objects_total == 0 and pond.spilled_files() == []
    assert states(store, refs) == ["resident"] * 14


def test_memory_is_given_by_dropped_objects_before_the_disk_is_asked(pond: Pond) -> None:
    store = pond.store("4MiB")
    for number in range(50):
        ref = store.put(noise(1_000_000 + 50_000 * (number % 7), number))
    assert store.stats().spilled_objects_total == 0
    assert (ref.get() == noise(1_000_000, 49)).all()


def test_the_order_of_a_policy_is_kept_exactly(pond: Pond) -> None:
    """Of one that gives the least recently used first, and has no preference for what is clean."""
    store = pond.store("4MiB", eviction=lambda candidates: np.argsort(candidates["stamp"]))
    dice = random.Random(2)
    refs: list[millpond.ObjectRef] = []  # the least recently used first
    for step in range(300):
        if step < 20 or dice.random() < 0.3:
            refs.append(store.put(np.full(30_000, step)))
        else:
            ref = refs.pop(dice.randrange(len(refs)))
            store.get(ref)
            refs.append(ref)
        store._room.spiller.stop()  # what it is writing has left its place in the order already
        in_memory = [state in ("resident", "clean") for state in states(store, refs)]
        assert in_memory == sorted(in_memory), "everything in memory was used later than everything on disk"
    assert store.stats().spilled_objects_total > 30 and not all(in_memory)


def test_an_object_that_comes_back_is_evicted_again_for_nothing(pond: Pond) -> None:
    store = pond.store("2MiB")
    refs = [store.put(noise(200_000, seed)) for seed in range(20)]
    store.spill()
    assert states(store, refs) == ["spilled"] * 20
    written = store.stats().spilled_bytes_total
    for _ in range(3):
        for seed, ref in enumerate(refs):
            assert (store.get(ref) == noise(200_000, seed)).all()
    stats = store.stats()
    assert stats.spilled_bytes_total == written
    assert stats.restored_objects_total == 60 and stats.clean_objects > 3


def test_objects_can_be_spilled_on_request(pond: Pond, store: millpond.Store) -> None:
    refs = [store.put(noise(100_000, seed)) for seed in range(6)]
    view = refs[2].get()
    assert store.spill(refs[0]) >= 100_000
    assert store.spill(refs[1:3]) >= 100_000
    assert states(store, refs) == ["spilled", "spilled", *["resident"] * 4]
    store.spill()
    assert states(store, refs) == ["spilled", "spilled", "resident", *["spilled"] * 3]
    assert (view == refs[2].get()).all()
    assert all((ref.get() == noise(100_000, seed)).all() for seed, ref in enumerate(refs))


# --- nothing can go ---


def test_when_everything_is_pinned_new_objects_go_to_disk(
    pond: Pond, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "GIVE_UP_S", 0.05)
    store = pond.store("4MiB", overflow_limit="1MiB")
    kept = [store.put(noise(700_000, seed)) for seed in range(5)]
    views = [ref.get() for ref in kept]
    late = [store.put(noise(300_000, seed)) for seed in range(100, 110)]
    store._room.spiller.stop()  # it frees a little more, ahead of the next put
    assert states(store, late).count("spilled") >= 8
    views += [ref.get() for ref in late[-2:]]  # what fits beside the others
    outside = late[:-2]
    assert states(store, outside) == ["spilled"] * 8
    with Sampled(store) as watch:
        copies = [store.get(ref) for ref in outside[:3]]
        assert all(
            (copy == noise(300_000, 100 + late.index(ref))).all()
            for copy, ref in zip(copies, outside, strict=False)
        )
        assert not copies[0].flags.writeable
        assert 900_000 <= store.stats().overflow_bytes <= MIB
        with pytest.raises(millpond.StoreFullError, match=r"overflow_limit 1 MiB"):
            store.get(outside[3])
        with pytest.raises(millpond.GetTimeoutError, match="not restored within 0 s"):
            store.get(outside[3], timeout=0)
        copies.pop()
        assert (store.get(outside[3]) == noise(300_000, 100 + late.index(outside[3]))).all()
        copies.clear()
        assert store.stats().overflow_bytes == 0
    assert watch.peak <= 4 * MIB
    assert all((view == noise(700_000, seed)).all() for seed, view in enumerate(views[:5]))
    views.clear()
    again = [store.get(ref) for ref in outside]
    assert store.stats().overflow_bytes == 0 and len(again) >= 8


def test_private_copies_of_a_forked_process(pond: Pond) -> None:
    store = pond.store("2MiB", overflow_limit="1MiB")
    view = store.put(noise(1_500_000)).get()
    ref = store.put(noise(600_000, 1))
    inherited.append(store.get(ref))
    child = pond.worker()
    child.run(lambda own: workers.inherited.clear())
    assert store.stats().overflow_bytes == ref.size, "the child counts none of its parent's copies"
    inherited.clear()
    assert store.stats().overflow_bytes == 0
    again = store.get(ref)
    assert (again == noise(600_000, 1)).all() and view[0] == noise(10)[0]


def test_a_copy_leaves_nothing_behind(pond: Pond) -> None:
    store = pond.store("2MiB", overflow_limit="1MiB")
    view = store.put(noise(1_500_000)).get()
    refs = [store.put(value) for value in (noise(600_000, 1), {"a": noise(600_000, 2)}, bytes(600_000))]
    for _ in range(3):
        assert (store.get(refs[0], copy=True) == noise(600_000, 1)).all()
        assert (store.get(refs[1], copy=True)["a"] == noise(600_000, 2)).all()
        assert store.get(refs[2]) == bytes(600_000)
    assert store.stats().overflow_bytes == 0 and view.size == 1_500_000


@pytest.mark.parametrize("size", [5 * MIB, 9 * MIB + 17])
def test_an_object_larger_than_the_limit(pond: Pond, size: int) -> None:
    store = pond.store("4MiB", overflow_limit="6MiB")
    small, large = store.put(noise(1000)), store.put(noise(size, 1))
    nested = store.put({"x": noise(size, 2), "y": [1]})
    assert states(store, [large, nested]) == ["spilled"] * 2
    with Sampled(store) as watch:
        found = large.get()
        assert (found == noise(size, 1)).all() and not found.flags.writeable
        if size > 8 * MIB:
            assert (nested.get()["x"] == noise(size, 2)).all(), (
                "a file of its own is mapped, whatever the budget"
            )
            store.delete(large)
            store._tidy()
            assert (found == noise(size, 1)).all(), "a map outlives its file"
        del found
        private = nested.get(copy=True)
        private["x"][0] ^= 1
        assert private["y"] == [1] and nested.get()["x"][0] == noise(1, 2)[0]
    assert watch.peak <= 4 * MIB and (small.get() == noise(1000)).all()


def test_a_limit_full_of_small_objects(pond: Pond) -> None:
    store = pond.store("1MiB")
    values = [{"number": number, "text": "x" * (number % 900)} for number in range(6000)]
    refs = [store.put(value) for value in values]
    assert store.stats().spilled_objects > 3000
    assert store.get(refs) == values
    large = store.put(noise(900_000))
    assert (large.get() == noise(900_000)).all()
    assert store.get(refs[::7]) == values[::7]
    assert store.check() == []


# --- limits on the disk ---


def test_without_spilling_the_store_says_that_it_is_full(pond: Pond) -> None:
    store = pond.store("4MiB", spill_limit=0)
    refs: list[millpond.ObjectRef] = []
    with pytest.raises(millpond.StoreFullError) as caught:
        while True:
            refs.append(store.put(noise(500_000, len(refs))))
    message = str(caught.value)
    assert re.search(r"no room for 488\.\d KiB: \S+ MiB of memory_limit 4 MiB are committed", message)
    assert re.search(rf"held are 3\.\d+ MiB by \S+ \({os.getpid()}\)", message) and "spill_limit=0" in message
    assert 7 <= len(refs) <= 8
    start = time.monotonic()
    with pytest.raises(MemoryError):
        store.put(noise(500_000))
    assert time.monotonic() - start < 1
    view = refs[0].get()
    with pytest.raises(millpond.SpillError, match="spilling is off"):
        store.spill()
    assert all((ref.get() == noise(500_000, seed)).all() for seed, ref in enumerate(refs))
    assert not list(pond.spill.rglob("*")) and view.size == 500_000
    refs.pop()
    assert (store.put(noise(500_000, 77)).get() == noise(500_000, 77)).all()


def test_a_put_waits_for_room_as_long_as_told(pond: Pond) -> None:
    store = pond.store("4MiB", spill_limit=0)
    refs = [store.put(noise(1_200_000, seed)) for seed in range(3)]
    start = time.monotonic()
    with pytest.raises(millpond.StoreFullError):
        store.put(noise(1_200_000), timeout=0.2)
    assert 0.2 <= time.monotonic() - start < 5
    found: list[millpond.ObjectRef] = []
    thread = threading.Thread(target=lambda: found.append(store.put(noise(1_200_000, 9), timeout=20)))
    thread.start()
    refs.pop()
    thread.join(20)
    assert (found[0].get() == noise(1_200_000, 9)).all()


def test_a_put_waits_for_room_that_another_process_gives(pond: Pond) -> None:
    store = pond.store("4MiB", spill_limit=0)
    other = pond.member(store)

    def fill(own: Any) -> int:
        own.refs = []
        with suppress(millpond.StoreFullError):
            while True:
                own.refs.append(own.store.put(np.zeros(100_000)))
        return len(own.refs)

    assert other.run(fill) >= 3
    with pytest.raises(millpond.StoreFullError, match=rf"held are 3\.\d+ MiB by \S+ \({other.pid}\)"):
        store.put(noise(1_500_000))
    other.start(lambda own: own.refs.clear())
    assert store.put(noise(1_500_000), timeout=20).size > 1_500_000
    other.result()


def test_the_spill_limit(pond: Pond) -> None:
    store = pond.store("2MiB", spill_limit="4MiB")
    refs: list[millpond.ObjectRef] = []
    with pytest.raises(millpond.StoreFullError, match=r"spill_limit.*raise it"):
        while True:
            refs.append(store.put(noise(300_000, len(refs))))
    assert 16 <= len(refs) <= 21
    stats = store.stats()
    assert stats.disk_bytes <= 4 * MIB and stats.spill_limit == 4 * MIB
    assert sum(path.stat().st_size for path in pond.spilled_files()) <= 4 * MIB
    assert all((ref.get() == noise(300_000, seed)).all() for seed, ref in enumerate(refs))
    del refs[:]
    store._tidy()
    refs = [store.put(noise(300_000, seed)) for seed in range(12)]
    assert all((ref.get() == noise(300_000, seed)).all() for seed, ref in enumerate(refs))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    where = tmp_path / "disk"
    where.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", os.fsencode(where), b"tmpfs", 0, b"size=8m") != 0:
        pytest.skip(f"cannot mount: {os.strerror(ctypes.get_errno())}")
    yield where
    assert libc.umount2(os.fsencode(where), 0) == 0, os.strerror(ctypes.get_errno())


def test_a_full_disk(small_disk: Path, pond: Pond) -> None:
    store = pond.store("2MiB", spill_dir=small_disk, overflow_limit="1MiB")
    refs: list[millpond.ObjectRef] = []
    with pytest.raises(millpond.StoreFullError, match=r"The disk said: .*free"):
        while True:
            refs.append(store.put(noise(300_000, len(refs))))
    assert len(refs) > 25
    assert all((ref.get() == noise(300_000, seed)).all() for seed, ref in enumerate(refs))
    assert store.check() == []
    refs.clear()
    store._tidy()
    (small_disk / "ballast").write_bytes(bytes(4 * MIB))
    with pytest.raises(millpond.StoreFullError):
        while True:
            refs.append(store.put(noise(300_000, len(refs))))
    (small_disk / "ballast").unlink()
    for _ in range(5):
        refs.append(store.put(noise(300_000, len(refs))))
    assert all((ref.get() == noise(300_000, seed)).all() for seed, ref in enumerate(refs))


# --- compression ---


def test_compression(pond: Pond) -> None:
    store = pond.store("2MiB", compression="lz4")
    values = [np.full(40_000 + 9000 * seed, seed) for seed in range(20)]
    values += [noise(size) for size in (1000, 100_000, 1_000_000)]
    values += [np.zeros(1200, np.int64) + seed for seed in range(100)]
    values.append(np.arange(9 * MIB // 8))
    refs = [store.put(value) for value in values]
    store.spill()
    assert store.stats().spilled_objects == len(refs)
    assert store.stats().disk_bytes < sum(value.nbytes for value in values) * 0.75
    for ref, value in zip(refs, values, strict=True):
        assert (store.get(ref) == value).all()


# --- damage ---


def damage_truncate(path: Path, marker: bytes) -> None:
    os.truncate(path, record.padded(path.read_bytes().index(marker) + 1000))


def damage_flip(path: Path, marker: bytes) -> None:
    with path.open("r+b") as file:
        at = file.read().index(marker) + 500
        file.seek(at)
        byte = file.read(1)[0] ^ 4
        file.seek(at)
        file.write(bytes([byte]))


def damage_header(path: Path, marker: bytes) -> None:
    with path.open("r+b") as file:
        content = file.read()
        at = content.rindex(
            record.MAGIC.to_bytes(2, "little") + bytes([record.VERSION, 0]), 0, content.index(marker)
        )
        file.seek(at + 5)
        file.write(b"\xff")


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_header])
@pytest.mark.parametrize("size", [3000, 200_000, 9 * MIB])
def test_damage_loses_one_object(pond: Pond, damage: Callable[[Path, bytes], None], size: int) -> None:
    store = pond.store("32MiB")
    refs = [store.put(noise(size, seed)) for seed in range(3)]
    store.spill()
    # The last one in its file, or truncating would take others as well.
    path = pond.spilled_files()[-1]
    content = path.read_bytes()
    victim = max(range(3), key=lambda seed: content.find(noise(size, seed).tobytes()))
    damage(path, noise(size, victim).tobytes())
    for _ in range(2):
        with pytest.raises(millpond.ObjectLostError, match="lost"):
            refs[victim].get()
    with pytest.raises(millpond.ObjectLostError):
        store.get(refs)
    others = [seed for seed in range(3) if seed != victim]
    assert all((refs[seed].get() == noise(size, seed)).all() for seed in others)
    assert refs[victim] not in store and states(store, refs)[victim] == "lost"
    assert store.check() == []


def test_the_error_names_the_file(pond: Pond) -> None:
    store = pond.store("32MiB")
    refs = [store.put(noise(9 * MIB, seed)) for seed in range(2)]
    store.spill()
    gone = pond.spilled_files()[0]
    gone.unlink()
    errors = []
    for seed, ref in enumerate(refs):
        try:
            assert (ref.get() == noise(9 * MIB, seed)).all()
        except millpond.ObjectLostError as error:
            errors.append(str(error))
    assert len(errors) == 1 and str(gone) in errors[0] and "Make it again" in errors[0]


# --- several processes ---


def churn(own: Any, address: str, seed: int, rounds: int) -> int:
    """Puts, reads and drops objects of all sizes, and verifies every byte; how many were read."""
    store = millpond.connect(address)
    dice, mine, count = random.Random(seed), [], 0
    for step in range(rounds):
        size = dice.choice([50, 3000, 20_000, 100_000, 400_000])
        mine.append((store.put(np.full(size, (seed + step) % 251, np.uint8)), size, (seed + step) % 251))
        for _ in range(2):
            ref, size, byte = dice.choice(mine)
            value = store.get(ref)
            assert value.size == size and (value == byte).all()
            del value
            count += 1
        if len(mine) > 40:
            del mine[dice.randrange(40)]
    return count


def test_two_processes_contend_for_little_memory(pond: Pond) -> None:
    store = pond.store("2MiB")
    members = [pond.worker(), pond.worker()]
    with Sampled(store) as watch:
        for seed, member in enumerate(members):
            member.start(churn, store.address, seed, 250)
        assert [member.result(40) for member in members] == [500, 500]
    assert watch.peak <= 2 * MIB
    assert store.check() == []


def test_threads_contend_for_little_memory(pond: Pond) -> None:
    store = pond.store("3MiB")
    with in_threads(lambda seed: churn(None, store.address, seed, 120), 4):
        pass
    assert store.check() == []


def test_others_restore_what_a_killed_process_spilled(pond: Pond) -> None:
    store = pond.store("2MiB")
    creator = pond.member(store)

    def create(own: Any) -> list[millpond.ObjectRef]:
        return [own.store.put(np.full(150_000, number, np.uint8)) for number in range(40)]

    refs = creator.run(create)
    creator.kill()
    assert store.stats().spilled_objects > 20
    for _ in range(2):
        for number, ref in enumerate(refs):
            assert (ref.get() == number).all()
    del refs, ref
    wait_until(lambda: store._tidy() or not pond.spilled_files())


def test_one_of_many_readers_restores(pond: Pond, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "STALLED_S", 30.0)  # on a busy machine a reader may seem to be stopped
    store = pond.store("64MiB")
    inherited.append(store.put(noise(8 * MIB)))
    members = [pond.worker() for _ in range(4)]
    for _ in range(3):
        store.spill()
        before = store.stats().restored_objects_total
        for member in members:
            member.start(lambda own: int(workers.inherited[0].get().sum()))
        assert {member.result() for member in members} == {int(noise(8 * MIB).sum())}
        assert store.stats().restored_objects_total == before + 1


def test_larger_than_memory_and_too_small_for_a_file_of_its_own(pond: Pond) -> None:
    store = pond.store("1MiB")
    array = np.arange(300_000)
    ref = store.put(array)
    assert np.array_equal(ref.get(), array)
