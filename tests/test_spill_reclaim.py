"""Disk space of dead records comes back: holes, dropped copies, rewriting; and nothing is lost by it."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import millpond
from millpond.hot import ObjectRef
from millpond.spill import reclaim
from millpond.spill.reclaim import HOLE_MIN, dead_runs
from millpond.spill.record import PAGE
from spill_fakes import Failing
from workers import in_threads

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[millpond.Store]:
    with millpond.Store(memory_limit=64 * MIB, spill_dir=tmp_path / "spill") as store:
        yield store
        assert store.check() == []


def noise(seed: int, nbytes: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def spilled(store: millpond.Store, count: int, nbytes: int) -> dict[int, ObjectRef]:
    """Objects on disk only, in closed segments; the seed of each leads to its ref. On a slow machine the
    store's own thread would begin to reclaim as well."""
    refs = {seed: store.put(noise(seed, nbytes)) for seed in range(count)}
    store.spill()
    roll(store)
    store._janitor.stop()
    reclaimer(store)._next_routine = 0.0
    return refs


def roll(store: millpond.Store) -> None:
    assert store._writer is not None
    store._writer._segments.roll()


def reclaimer(store: millpond.Store) -> reclaim.Reclaimer:
    assert store._reclaimer is not None
    return store._reclaimer


def verify(store: millpond.Store, refs: dict[int, ObjectRef], nbytes: int) -> None:
    for seed, ref in refs.items():
        assert np.array_equal(store.get(ref, copy=True), noise(seed, nbytes))


def on_disk(store: millpond.Store) -> int:
    """What the filesystem says."""
    assert store._directories is not None
    directory = Path(store._directories.paths[0])
    return sum(path.stat().st_blocks * 512 for path in directory.iterdir())


def is_true(store: millpond.Store) -> bool:
    """The store's own figure is the filesystem's, but for blocks that the filesystem keeps for itself."""
    files = len(store._directories.paths) + len(reclaimer(store)._places.segments())
    return abs(on_disk(store) - store.stats().disk_bytes) <= 4 * PAGE * files


def live_bytes(store: millpond.Store) -> int:
    return int(reclaimer(store)._places.segments()["live"].sum())


# --- holes ---


@pytest.mark.parametrize(
    ("live", "block", "expected"),
    [
        ([], 4096, [(0, 256 * PAGE)]),
        ([0], 4096, [(PAGE, 256 * PAGE)]),
        ([255], 4096, [(0, 255 * PAGE)]),
        ([63], 4096, [(64 * PAGE, 256 * PAGE)]),  # a run of 63 pages is too short
        ([64], 4096, [(0, 64 * PAGE), (65 * PAGE, 256 * PAGE)]),
        (range(0, 256, 60), 4096, []),
        ([0], 1 << 17, [(1 << 17, 256 * PAGE)]),  # whole blocks only
        ([100, 130], 1 << 17, [(0, 96 * PAGE), (160 * PAGE, 256 * PAGE)]),
    ],
)
def test_runs_of_dead_pages(live: Any, block: int, expected: list[tuple[int, int]]) -> None:
    bits = np.zeros(5, np.uint64)
    for page in live:
        bits[page // 64] |= np.uint64(1) << np.uint64(page % 64)
    assert list(dead_runs(bits, 256 * PAGE, block)) == expected
    assert HOLE_MIN == 64 * PAGE


def test_holes_give_dead_bytes_back(store: millpond.Store) -> None:
    refs = spilled(store, 40, MIB)
    before = store.stats().disk_bytes
    assert is_true(store)
    for seed in range(40):
        if seed % 4:
            del refs[seed]
    assert store.stats().disk_bytes == before, "the file is there as long as one record is"
    assert reclaimer(store).routine() >= 29 * MIB
    assert store.stats().disk_bytes < before - 29 * MIB
    assert is_true(store)
    verify(store, refs, MIB)


def test_little_that_is_dead_stays(store: millpond.Store) -> None:
    refs = spilled(store, 40, MIB)
    del refs[7]
    assert reclaimer(store).routine() == 0
    verify(store, refs, MIB)


def test_routine_work_is_seldom(store: millpond.Store) -> None:
    refs = spilled(store, 40, MIB)
    assert reclaimer(store).routine() == 0
    for seed in range(39):
        del refs[seed]
    assert reclaimer(store).routine() == 0, "just looked"
    reclaimer(store)._next_routine = 0
    assert reclaimer(store).routine() > 0


def test_punching_again_counts_nothing_twice(store: millpond.Store) -> None:
    refs = spilled(store, 40, MIB)
    for half in (range(20), range(20, 38)):
        for seed in half:
            del refs[seed]
        for _ in range(2):  # a second one finds nothing
            reclaimer(store)._punch(reclaimer(store)._places.segments())
            assert is_true(store)
    assert store.stats().disk_bytes < 4 * MIB
    verify(store, refs, MIB)


def test_a_death_between_the_hole_and_its_record(
    store: millpond.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = spilled(store, 40, MIB)
    for seed in range(30):
        del refs[seed]
    with monkeypatch.context() as patch:
        patch.setattr(reclaimer(store)._table.__class__, "segment_punched", lambda *_: None, raising=False)
        reclaimer(store)._punch(reclaimer(store)._places.segments())
    assert not is_true(store)
    reclaimer(store)._punch(reclaimer(store)._places.segments())
    assert is_true(store)
    verify(store, refs, MIB)


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EIO])
def test_a_filesystem_that_punches_no_holes(store: millpond.Store, error: int) -> None:
    """It is asked once, and rewriting helps where little is alive."""
    refs = spilled(store, 40, MIB)
    for seed in range(36):
        del refs[seed]
    assert store._directories is not None
    store._directories.system = system = Failing(error, 1, ["punch"], for_ever=True)
    assert reclaimer(store).routine() > 30 * MIB
    assert store._directories.can_punch(0) == (error == errno.EIO)
    assert system.failed == 1
    verify(store, refs, MIB)


# --- rewriting ---


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_sparse_segments_are_rewritten(store: millpond.Store, compression: str) -> None:
    store.configure(compression=compression)
    text = {seed: store.put(np.arange(seed, seed + 9000, dtype=np.int32) // 50) for seed in range(900)}
    refs = spilled(store, 1800, 10_000)
    before = store.stats().disk_bytes
    chosen = random.Random(1)
    for seed in list(refs):
        if chosen.random() < 0.9:
            del refs[seed]
            text.pop(seed, None)
    for seed in list(text):
        if seed not in refs:
            del text[seed]
    files = set(Path(store._directories.paths[0]).iterdir())
    assert reclaimer(store).routine() > before // 2
    assert store.stats().disk_bytes < 1.1 * live_bytes(store) + MIB
    assert is_true(store)
    assert not files & set(Path(store._directories.paths[0]).iterdir()), "the old files are gone"
    verify(store, refs, 10_000)
    for seed, ref in text.items():
        assert np.array_equal(store.get(ref, copy=True), np.arange(seed, seed + 9000, dtype=np.int32) // 50)


def test_a_segment_that_is_half_alive_stays(store: millpond.Store) -> None:
    refs = spilled(store, 1800, 10_000)
    for seed in range(0, 1800, 2):
        del refs[seed]
    assert reclaimer(store).routine() == 0
    verify(store, refs, 10_000)


def test_a_damaged_record_stays_for_its_reader(store: millpond.Store) -> None:
    refs = spilled(store, 1200, 10_000)
    for seed in range(1200):
        if seed % 10:
            del refs[seed]
    row = next(iter(reclaimer(store)._places.segments()))
    path = Path(store._directories.file(0, int(row["id"])))
    records = next(iter(reclaimer(store)._records(np.array([row["segment"]]))))
    victim = records[3]
    with path.open("r+b") as file:
        file.seek(int(victim["offset"]) + 100)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    assert reclaimer(store).routine() > 0
    assert store.stats().disk_bytes < 2 * MIB
    lost = 0
    for seed, ref in refs.items():
        try:
            assert np.array_equal(ref.get(copy=True), noise(seed, 10_000))
        except millpond.ObjectLostError as error:
            lost += 1
            assert str(path) in str(error)
    assert lost == 1


def test_what_is_in_use_stays_where_it_is(store: millpond.Store) -> None:
    refs = spilled(store, 1200, 10_000)
    for seed in range(1200):
        if seed % 10:
            del refs[seed]
    view = refs[500].get()
    (row,) = reclaimer(store)._places.segments()
    assert reclaimer(store).routine() > 0
    left = reclaimer(store)._places.segments()
    assert left["live"][left["id"] == row["id"]] == [10_176], "one record, and the padding up to 64 bytes"
    assert is_true(store)
    del view
    reclaimer(store)._next_routine = 0
    reclaimer(store)._make_room(1 << 40)
    assert row["id"] not in reclaimer(store)._places.segments()["id"]
    verify(store, refs, 10_000)


def test_readers_and_deaths_beside_it(store: millpond.Store) -> None:
    """Threads read and drop what is being moved and punched."""
    refs = spilled(store, 2400, 10_000)
    done = threading.Event()

    def read(reader: int) -> None:
        chosen = random.Random(reader)
        while not done.is_set():
            seed = chosen.choice(range(10 * reader, 2400, 30))
            assert np.array_equal(store.get(refs[seed], copy=True), noise(seed, 10_000))
            store.spill(refs[seed])

    with in_threads(read, 2, done):
        for part in range(20):
            for seed in range(part, 2400, 20):
                if seed % 10:
                    refs.pop(seed, None)
            roll(store)
            reclaimer(store)._make_room(1 << 40)
    verify(store, refs, 10_000)
    roll(store)
    reclaimer(store)._make_room(1 << 40)
    assert is_true(store)


# --- on the way to an error ---


def test_clean_copies_go_before_an_error(tmp_path: Path) -> None:
    with millpond.Store(memory_limit=64 * MIB, spill_dir=tmp_path, spill_limit=40 * MIB) as store:
        refs = {seed: store.put(noise(seed, MIB)) for seed in range(30)}
        store.spill()
        verify(store, refs, MIB)
        assert {info.state for info in store.objects()} == {"clean"}
        more = {seed: store.put(noise(seed, MIB)) for seed in range(100, 130)}
        assert store.spill(more.values()) >= 29 * MIB
        assert store.stats().disk_bytes <= 40 * MIB
        states = [info.state for info in store.objects()]
        assert "resident" in states, "some have lost their copies"
        assert store.check() == []
        verify(store, {**refs, **more}, MIB)


def test_whole_files_go_first(tmp_path: Path) -> None:
    with millpond.Store(memory_limit=96 * MIB, spill_dir=tmp_path, spill_limit=48 * MIB) as store:
        small = {seed: store.put(noise(seed, MIB)) for seed in range(16)}
        large = {seed: store.put(noise(seed, 9 * MIB)) for seed in range(100, 102)}
        store.spill()
        for ref in [*large.values(), *small.values()][:-1]:  # one of the small ones stays on disk
            store.get(ref, copy=True)
        more = store.put(noise(7, 16 * MIB))
        store.spill(more)
        copies = [info.state for info in store.objects() if info.size < 10 * MIB]
        assert copies == ["clean"] * 15 + ["spilled"] + ["resident"] * 2
        assert store.check() == []


def test_pinned_copies_stay_and_the_error_is_typed(tmp_path: Path) -> None:
    with millpond.Store(memory_limit=64 * MIB, spill_dir=tmp_path, spill_limit=20 * MIB) as store:
        refs = [store.put(noise(seed, MIB)) for seed in range(18)]
        store.spill()
        views = [ref.get() for ref in refs]
        more = [store.put(noise(seed, MIB)) for seed in range(18)]
        with pytest.raises(millpond.SpillError, match="spill_limit is reached") as error:
            for _ in range(20):
                store.spill(more)
        assert error.value.errno == errno.EDQUOT
        assert {info.state for info in store.objects() if info.pins} == {"clean"}
        del views
        reclaimer(store)._barren_until = 0  # a second has passed
        assert store.spill(more) > 0, "without views, their copies can go"
        assert store.check() == []


def test_a_search_that_found_nothing_is_not_repeated_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with millpond.Store(memory_limit=64 * MIB, spill_dir=tmp_path, spill_limit=8 * MIB) as store:
        refs = [store.put(noise(seed, MIB)) for seed in range(16)]
        calls = []
        monkeypatch.setattr(reclaim.Reclaimer, "_punch", lambda *_: calls.append(1) or 0)
        for _ in range(5):
            with pytest.raises(millpond.SpillError):
                store.spill(refs[8:])
                store.spill(refs)
        assert len(calls) <= 4
        del refs


def test_a_full_disk_that_can_be_rewritten(tmp_path: Path) -> None:
    """At the limit, with one record in ten alive in every segment, there is room after all."""
    with millpond.Store(memory_limit=64 * MIB, spill_dir=tmp_path, spill_limit=32 * MIB) as store:
        refs = spilled(store, 3000, 10_000)
        for seed in range(3000):
            if seed % 10:
                del refs[seed]
        assert store.stats().disk_bytes > 28 * MIB
        more = {seed: store.put(noise(seed, 10_000)) for seed in range(4000, 6000)}
        assert store.spill(more.values()) > 0
        assert store.stats().disk_bytes <= 32 * MIB
        verify(store, {**refs, **more}, 10_000)
        assert store.check() == []
