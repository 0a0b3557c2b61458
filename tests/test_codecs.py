"""Codecs of users, through whole stores: registered or not, right or wrong, here and in other members."""

from __future__ import annotations

import errno
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import millpond
import workers
from millpond.spill import codec as codec_module
from millpond.spill.directory import Directories
from millpond.spill.reader import SpillReader
from millpond.spill.writer import SpillWriter
from ponds import Pond
from spill_fakes import Failing, FakeBatch, FakeTable
from test_overflow import states
from workers import inherited

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
MIB = 1 << 20


class Zlib:
    """Deflate, as a user would plug it in."""

    name = "zlib"
    number = 200
    broken = False

    def compress(self, frame: memoryview) -> bytes | None:
        return zlib.compress(frame, 1)

    def decompress_into(self, stored: memoryview, frame: memoryview) -> None:
        if Zlib.broken:
            raise ImportError("the library is gone")
        frame[:] = zlib.decompress(stored)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(codec_module, "_by_number", dict(codec_module._by_number))


def values() -> list[Any]:
    return [list(range(1000)), "word " * 2000, bytes(300_000), b"spill " * (2 * MIB), list(range(5))]


def test_an_instance_is_all_it_takes(pond: Pond) -> None:
    store = pond.store("128MiB", compression=Zlib())
    refs = [store.put(value) for value in values()]
    store.spill()
    assert store.stats().disk_bytes < MIB
    assert store.get(refs) == values()
    store.spill()
    assert [store.get(ref) for ref in refs] == values()


def test_by_name_and_by_configure(pond: Pond) -> None:
    millpond.register_codec(Zlib())
    store = pond.store("128MiB", compression="zlib")
    one = store.put("one " * 1000)
    store.configure(compression="lz4")
    store.spill()
    store.configure(compression=Zlib())
    two = store.put("two " * 1000)
    store.spill()
    assert store.get([one, two]) == ["one " * 1000, "two " * 1000]
    with pytest.raises(TypeError, match="is no codec"):
        store.configure(compression=7)  # type: ignore[arg-type]


def read_all(own: Any) -> list[Any]:
    return own.store.get([own.store.lookup(name) for name in "abcde"])


def put_and_spill(own: Any) -> list[str]:
    refs = [own.store.put("more " * 1000) for _ in range(3)]
    own.store.spill(refs)
    assert own.store.get(refs) == ["more " * 1000] * 3
    return sorted({info.state for info in own.store.objects()})


def register(own: Any) -> None:
    import millpond
    from test_codecs import Zlib

    millpond.register_codec(Zlib())


def test_a_member_that_does_not_know_it(pond: Pond) -> None:
    store = pond.store("128MiB", compression=Zlib())
    for name, value in zip("abcde", values(), strict=True):
        store.put(value, name=name)
    store.spill()
    before = states(store, [store.lookup(name) for name in "abcde"])
    assert before == ["spilled"] * 5
    member = pond.member(store)
    with pytest.raises(millpond.SpillError, match=r"object.*number 200.*register_codec.*on disk: .*seg"):
        member.run(read_all)
    assert member.run(put_and_spill), "what it spills is not compressed"
    member.run(register)
    assert member.run(read_all) == values()


def test_a_codec_that_fails_at_reading(pond: Pond, monkeypatch: pytest.MonkeyPatch) -> None:
    store = pond.store("128MiB", compression=Zlib())
    refs = [store.put(value) for value in values()]
    store.spill()
    monkeypatch.setattr(Zlib, "broken", True)
    for ref in refs[:4]:
        with pytest.raises(millpond.SpillError, match=r"codec 'zlib' \(200\) failed: the library is gone"):
            store.get(ref)
    with pytest.raises(millpond.SpillError):
        store.get(refs)
    assert states(store, refs)[:4] == ["spilled"] * 4
    monkeypatch.setattr(Zlib, "broken", False)
    assert store.get(refs) == values()


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 255
    file.write_bytes(data)


def test_damage_is_not_the_codecs_fault(pond: Pond) -> None:
    store = pond.store("128MiB", compression=Zlib())
    small, large = store.put("word " * 2000), store.put(b"spill " * (2 * MIB))
    store.spill()
    for file in pond.spilled_files():
        flip(file, 80 if file.stat().st_size <= 4096 else 4100)
    for ref in (small, large):
        with pytest.raises(millpond.ObjectLostError):
            store.get(ref)


def read_inherited(own: Any) -> Any:
    (refs,) = workers.inherited
    return refs[0]._store.get(refs)


def test_forked_children_know_it(pond: Pond) -> None:
    store = pond.store("128MiB", compression=Zlib())
    refs = [store.put(value) for value in values()]
    store.spill()
    inherited.append(refs)
    assert pond.worker().run(read_inherited) == values()
    inherited.clear()


class Fickle(Zlib):
    """Compresses `left` frames, and none after that."""

    left = 8

    def compress(self, frame: memoryview) -> bytes | None:
        self.left -= 1
        return super().compress(frame) if self.left >= 0 else None


def test_another_directory_and_another_verdict(tmp_path: Path) -> None:
    """The first directory refuses in the middle of a value; asked again, the codec does not want it."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    table, system = FakeTable(), Failing(errno.EIO, 2, ["pwritev"])  # the first probes
    directories = Directories([tmp_path / "one", tmp_path / "two"], table.uuid, floor=0, system=system)
    codec_module.register_codec(Fickle())
    value = b"spill " * (3 * MIB)
    batch = FakeBatch(table, [value])
    SpillWriter(table, directories, Fickle()).clean(batch, evict=True)
    assert system.failed == 1
    (place,) = table.places.values()
    assert place.codec == 0
    assert SpillReader(table, directories).read_private(place, *batch.key(0), len(value)) == value


class Keeping(Zlib):
    """Keeps, or ends, the memory that it was lent."""

    number, name = 207, "keeping"

    def __init__(self, act: Any) -> None:
        self.act = act

    def compress(self, frame: memoryview) -> bytes | None:
        stored = zlib.compress(frame, 1)
        self.act(frame)
        return stored

    def decompress_into(self, stored: memoryview, frame: memoryview) -> None:
        frame[:] = zlib.decompress(stored)
        self.act(frame)


def test_a_codec_cannot_keep_the_stores_memory(pond: Pond) -> None:
    kept: list[memoryview] = []
    store = pond.store("8MiB", compression=Keeping(kept.append))
    ref = store.put(np.zeros(100_000, np.uint8))
    store.spill()
    store.get(ref)
    assert len(kept) >= 2
    for memory in kept:
        with pytest.raises(ValueError, match="released"):
            memory[0]


@pytest.mark.parametrize(
    "keep", [memoryview.release, lambda frame: arrays.append(np.frombuffer(frame, np.uint8))]
)
def test_a_codec_that_ends_its_memory_or_keeps_an_array_of_it(pond: Pond, keep: Any) -> None:
    """An array is told, and costs nothing but space: as any failure to compress."""
    store = pond.store("8MiB", compression=Keeping(keep))
    ref = store.put(np.arange(100_000))
    try:
        assert store.spill() > 0
        assert (store.get(ref) == np.arange(100_000)).all()
    finally:
        arrays.clear()


arrays: list[Any] = []


def exit_program(candidates: Any) -> Any:
    raise SystemExit(3)


def test_a_policy_that_ends_the_program_ends_no_thread(pond: Pond) -> None:
    store = pond.store("4MiB")
    refs = [store.put(np.zeros(100_000, np.uint8)) for _ in range(30)]
    store.configure(eviction=exit_program)
    for _ in range(2):
        store._room.spiller._rest_until = 0.0
        store._room.spiller.wake()
        thread = store._room.spiller._thread
        assert thread is not None
        thread.join(10)
        assert store._room.spiller._thread is None
    store.configure(eviction="lru")
    assert len(refs) == 30
