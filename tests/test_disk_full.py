"""Disks that refuse: full, gone, read-only, broken. Typed errors, one line in the log, nothing lost."""

from __future__ import annotations

import errno
import gc
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import millpond
from disks import mounted_ext4
from millpond.spill import trouble
from millpond.store import registry
from ponds import Pond
from spill_fakes import Failing

MIB = 1 << 20
REFUSALS = (millpond.StoreFullError, millpond.SpillError)


def noise(seed: int, nbytes: int = MIB) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


def load(own: Any, first: int, count: int) -> tuple[int, int]:
    """Puts values until `count` were taken or twenty refused: how many of either."""
    own.refs = getattr(own, "refs", {})
    refused = 0
    for seed in range(first, first + count):
        try:
            own.refs[seed] = own.store.put(noise(seed, MIB // 4))
        except REFUSALS:
            refused += 1
            if refused == 20:
                break
    return len(own.refs), refused


def verify(own: Any) -> int:
    for seed, ref in own.refs.items():
        assert np.array_equal(ref.get(copy=True), noise(seed, MIB // 4))
    return len(own.refs)


def forget(own: Any) -> None:
    own.refs.clear()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 16 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    options = ["-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)]
    made = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no filesystem can be mounted here: {made.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def test_a_small_disk_fills_up_under_load(pond: Pond, small_disk: Path) -> None:
    """Two processes put more than memory and disk hold; it goes on when there is room again."""
    store = pond.store("8MiB", spill_dir=small_disk)
    one, two = pond.member(store), pond.member(store)
    (small_disk / "filler").write_bytes(bytes(6 * MIB))
    for first, worker in ((0, one), (1000, two)):
        worker.start(load, first, 200)
    counts = [worker.result() for worker in (one, two)]
    assert all(refused == 20 for _, refused in counts), "memory and disk are full"
    taken = sum(taken for taken, _ in counts)
    assert 40 <= taken <= 80
    assert [one.run(verify), two.run(verify)] == [taken for taken, _ in counts]
    assert store.check() == []

    (small_disk / "filler").unlink()
    assert one.run(load, 2000, 8)[0] == counts[0][0] + 8, "no restart is needed"
    assert one.run(verify) + two.run(verify) == taken + 8

    two.run(forget)
    store._tidy()
    more, _ = one.run(load, 3000, 16)
    assert more == counts[0][0] + 24
    assert one.run(verify) == more
    one.run(forget)
    assert store.check() == []


def test_the_error_says_what_is_kept_free(
    tmp_path: Path, pond: Pond, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = pond.store("4MiB")
    monkeypatch.setattr("millpond.spill.directory.FLOOR_BYTES", 1 << 60)
    monkeypatch.setattr("millpond.spill.directory.FLOOR_SHARE", 2.0)
    refs = [store.put(noise(0))]
    with pytest.raises(millpond.SpillError, match="are kept free for others") as error:
        store.spill(refs)
    assert error.value.errno == errno.ENOSPC


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.EROFS, errno.EINTR]
)
@pytest.mark.parametrize("name", ["open", "pwritev", "statvfs"])
def test_any_error_leaves_objects_in_memory(pond: Pond, name: str, number: int) -> None:
    store = pond.store("8MiB")
    refs = {seed: store.put(noise(seed, MIB // 4)) for seed in range(8)}
    store.spill(refs[0])
    if name == "open":
        store._writer._segments.roll()
    segments = store._writer._segments
    segments._system = store._directories.system = Failing(number, 1, [name], for_ever=True)
    with pytest.raises(millpond.SpillError) as error:
        store.spill(refs.values())
    assert error.value.errno == number
    assert all(store._state(ref) == millpond.hot.Code.OK for ref in list(refs.values())[1:])
    segments._system.broken = False
    assert store.spill(refs.values()) > 0
    assert all(np.array_equal(ref.get(copy=True), noise(seed, MIB // 4)) for seed, ref in refs.items())


NAMES = ["open", "fstat", "pwritev", "preadv", "statvfs", "unlink", "punch"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EINTR, errno.EMFILE])
@pytest.mark.parametrize("for_ever", [False, True])
def test_every_call_of_reclaiming_may_fail(pond: Pond, number: int, for_ever: bool) -> None:
    """Space may stay in use; no object is lost, and afterwards it comes back."""
    nth, failed = 0, True
    while failed:
        nth += 1
        store = pond.store("16MiB")
        refs = {seed: store.put(noise(seed, 20_000)) for seed in range(400)}
        store.spill()
        store._writer._segments.roll()
        for seed in range(400):
            if 100 <= seed < 250 or seed % 10:
                del refs[seed]
        reclaimer, directories = store._reclaimer, store._directories
        directories.system = system = Failing(number, nth, NAMES, for_ever)
        reclaimer._rewriter._segments._system = system
        reclaimer.make_room(1 << 40)
        failed = system.failed > 0
        system.broken = False
        assert store.check() == []
        for seed, ref in refs.items():
            assert np.array_equal(ref.get(copy=True), noise(seed, 20_000))
        reclaimer._rewriter._failed.clear()
        reclaimer._barren_until = 0.0
        reclaimer.make_room(1 << 40)
        assert store.stats().disk_bytes < 2 * MIB
        refs.clear()
        store.close()
    assert nth > 5


@pytest.mark.parametrize("direct", [True, False])
def test_a_disk_that_becomes_read_only(pond: Pond, tmp_path: Path, direct: bool) -> None:
    """As it does by itself after an error of the device: what is on it stays readable, also for a newcomer;
    what is in memory stays there."""
    with mounted_ext4(tmp_path, "64M") as disk:
        store = pond.store("8MiB", spill_dir=disk.path / "spill")
        store._directories._places[0].direct = direct
        refs = {seed: store.put(noise(seed, MIB // 4)) for seed in range(60)}
        assert store.stats().spilled_objects > 20
        disk.break_down()
        with pytest.raises(millpond.StoreFullError, match="Read-only file system"):
            for seed in range(60, 120):
                refs[seed] = store.put(noise(seed, MIB // 4))
        late = pond.member(store)
        late.run(load, 1000, 4)
        assert store.check() == []
        for seed, ref in refs.items():
            assert np.array_equal(ref.get(copy=True), noise(seed, MIB // 4))
        late.run(forget)
        refs.clear()
        del ref
        assert store.put(noise(0)).get(copy=True).nbytes == MIB, "memory is free at once"
        assert store.check() == []
        pond.end_workers()
        store.close()
        assert Path(store.address).is_dir(), "the record of what could not be removed"
    root = str(pond.registry)
    registry.sweep(root)


@pytest.mark.parametrize("direct", [True, False])
def test_a_real_disk_fills_up(pond: Pond, tmp_path: Path, direct: bool) -> None:
    """A filesystem on a device, with a journal and delayed allocation; nothing of it is kept free."""
    with mounted_ext4(tmp_path, "16M") as disk:
        store = pond.store("8MiB", spill_dir=disk.path / "spill")
        store._directories._floor = 0
        store._directories._places[0].direct = direct
        refs: dict[int, Any] = {}
        for turn in range(3):
            with pytest.raises(millpond.StoreFullError, match="spill"):
                for seed in range(turn * 1000, turn * 1000 + 200):
                    refs[seed] = store.put(noise(seed, 150_000))
            assert len(refs) > 60, "more than memory holds"
            assert store.check() == []
            for seed, ref in refs.items():
                assert np.array_equal(ref.get(copy=True), noise(seed, 150_000))
            for seed in [seed for seed in refs if seed % 3]:
                del refs[seed]
        refs.clear()
        del ref


def test_a_refusal_keeps_nobodys_refs(pond: Pond) -> None:
    """The error's frames do not hold each other: what the caller lets go is gone at once, without Python's
    garbage collection."""
    store = pond.store("8MiB")
    segments = store._writer._segments
    segments._system = store._directories.system = Failing(errno.EROFS, 1, ["statvfs"], for_ever=True)

    def fill() -> None:
        refs = []
        try:
            while True:
                refs.append(store.put(noise(0)))
        except millpond.StoreFullError:
            assert len(refs) > 5

    gc.disable()
    try:
        for _ in range(3):
            fill()
            assert len(list(store.objects())) == 0
    finally:
        gc.enable()


def test_a_directory_that_vanishes_is_made_again(pond: Pond, caplog: pytest.LogCaptureFixture) -> None:
    store = pond.store("8MiB")
    lost = store.put(noise(0))
    store.spill(lost)
    shutil.rmtree(pond.spill / f"millpond-{os.geteuid()}")
    kept = store.put(noise(1))
    store.spill(kept)
    assert np.array_equal(kept.get(copy=True), noise(1))
    with pytest.raises(millpond.ObjectLostError):
        lost.get()
    assert [record.message for record in caplog.records if "made again" in record.message]
    assert store.check() == []


def test_it_is_not_made_again_where_its_disk_is_missing(pond: Pond) -> None:
    store = pond.store("8MiB")
    ref = store.put(noise(0))
    shutil.rmtree(pond.spill)
    with pytest.raises(millpond.SpillError) as error:
        store.spill(ref)
    assert error.value.errno == errno.ENOENT
    assert np.array_equal(ref.get(copy=True), noise(0)) and not pond.spill.exists()


def test_a_failing_directory_is_skipped(pond: Pond, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = pond.store("8MiB", spill_dir=[tmp_path / "one", tmp_path / "two"])
    shutil.rmtree(tmp_path / "one")
    for _ in range(4):
        refs = [store.put(noise(seed)) for seed in range(4)]
        assert store.spill(refs) > 0
        assert all(np.array_equal(ref.get(copy=True), noise(seed)) for seed, ref in enumerate(refs))
        store._writer._segments.roll()
        del refs
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) <= 1


def test_troubles_are_named_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    troubles = trouble.Troubles()
    troubles.works("/a")
    for _ in range(100):
        now += 1
        troubles.met("/a", "no space")
        troubles.works("/a")
    assert [record.message.split(".")[0] for record in caplog.records] == ["/a: no space"]
    assert troubles.lately("/a", 10) and not troubles.lately("/b", 10)
    now += trouble.QUIET_S
    troubles.works("/a")
    troubles.works("/a")
    assert [record.message for record in caplog.records][1:] == ["/a: works again, after 109 s"]
    assert not troubles.lately("/a", 1e9)


DESCRIPTORS = """
import resource, sys, threading
import millpond, numpy as np
with millpond.Store("4MiB", spill_dir=sys.argv[1]) as store:
    store.put(0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    kept, refused, wrong = {}, [], []
    def work(first):
        for seed in range(first, first + 40):
            try:
                kept[seed] = store.put(np.full(40_000, seed))
                value = store.get(kept[max(first, seed - 20)], copy=True)
                if value[0] != max(first, seed - 20):
                    wrong.append(seed)
            except (millpond.MillpondError, KeyError) as error:
                refused.append(type(error).__name__)
            except BaseException as error:
                wrong.append(repr(error))
    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(24)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
    lost = [seed for seed, ref in kept.items() if store.get(ref, copy=True)[-1] != seed]
    print(len(kept) > 500, wrong, lost, store.check())
"""


def test_few_descriptors_and_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_DIR", str(tmp_path / "registry"))
    command = [sys.executable, "-c", DESCRIPTORS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "True [] [] []\n"), done.stderr
