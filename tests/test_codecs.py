"""Codecs of users, through whole stores: registered or not, right or wrong, here and in other members."""

from __future__ import annotations

import errno
import re
import zlib
from contextlib import suppress
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
from workers import inherited, wait_until

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
        with pytest.raises(
            millpond.SpillError, match=r"codec 'zlib' \(200\) failed.*ImportError: the library"
        ):
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
    """Keeps the memory that it gets, or ends it."""

    number, name = 207, "keeping"

    def __init__(self, act: Any) -> None:
        self.act = act

    def compress(self, frame: memoryview) -> bytes | None:
        stored = zlib.compress(frame, 1)
        self.act(frame)
        return stored

    def decompress_into(self, stored: memoryview, frame: memoryview) -> None:
        frame[:] = zlib.decompress(stored)
        self.act(stored)
        self.act(frame)


def test_a_codec_gets_no_memory_of_the_stores(pond: Pond) -> None:
    """What it keeps stays as it was and may be written to: it is nobody else's."""
    kept: list[np.ndarray] = []
    store = pond.store("8MiB", compression=Keeping(lambda memory: kept.append(np.frombuffer(memory, "u1"))))
    ref = store.put(np.zeros(100_000, np.uint8))
    store.spill()
    assert store.get(ref).sum() == 0
    assert len(kept) >= 3
    assert [array.flags.writeable for array in kept[-2:]] == [False, True]
    before = [bytes(array) for array in kept]
    kept[-1][:] = 77
    assert store.get(ref).sum() == 0
    store.spill()
    refs = [store.put(np.full(100_000, 5, np.uint8)) for _ in range(50)]
    store.get(refs)
    store.close()
    assert [bytes(array) for array in kept[: len(before) - 1]] == before[:-1]


def test_a_codec_that_ends_its_memory(pond: Pond) -> None:
    store = pond.store("8MiB", compression=Keeping(memoryview.release))
    ref = store.put(np.arange(100_000))
    assert store.spill() > 0
    assert (store.get(ref) == np.arange(100_000)).all()


def fill_right(stored: memoryview, frame: memoryview) -> Any:
    frame[:] = zlib.decompress(stored)


def leave_it(stored: memoryview, frame: memoryview) -> Any:
    pass


def fill_half(stored: memoryview, frame: memoryview) -> Any:
    frame[: len(frame) // 2] = zlib.decompress(stored)[: len(frame) // 2]


def fill_wrong(stored: memoryview, frame: memoryview) -> Any:
    frame[:] = zlib.decompress(stored)
    frame[-1] ^= 1


def fill_more(stored: memoryview, frame: memoryview) -> Any:
    frame[:] = zlib.decompress(stored) + b"more"


def give_back(stored: memoryview, frame: memoryview) -> Any:
    return zlib.decompress(stored)


def give_a_number(stored: memoryview, frame: memoryview) -> Any:
    return len(frame)


def fail(stored: memoryview, frame: memoryview) -> Any:
    raise RuntimeError("no such table")


def lack_memory(stored: memoryview, frame: memoryview) -> Any:
    raise MemoryError


def want_to_leave(stored: memoryview, frame: memoryview) -> Any:
    raise KeyboardInterrupt


class Hostile(Zlib):
    """Decodes as it is told."""

    name, number = "hostile", 210
    act: Any = staticmethod(fill_right)

    def decompress_into(self, stored: memoryview, frame: memoryview) -> None:
        result: None = Hostile.act(stored, frame)
        return result


OTHER = r"made other bytes than it was given of a frame of \d+ bytes, stored in \d+"
SAYS = {
    leave_it: OTHER,
    fill_half: OTHER,
    fill_wrong: OTHER,
    fill_more: r"failed on a frame of \d+ bytes, stored in \d+: ValueError: ",
    give_back: OTHER + r" \(it returned bytes: it must fill the frame\)",
    give_a_number: OTHER + r" \(it returned int",
    fail: r"failed on a frame of \d+ bytes, stored in \d+: RuntimeError: no such table",
    lack_memory: r"failed on .*: MemoryError",
}


def used_before(store: millpond.Store) -> None:
    """Memory and buffers hold other bytes than zeros."""
    refs = [store.put(b"\xee" * 3_000_000) for _ in range(6)]
    store.spill()
    store.get(refs)


def ways_to_read(store: millpond.Store, refs: list[millpond.ObjectRef]) -> list[Any]:
    everything = [
        lambda: store.get(refs),
        lambda: store.get(refs, copy=True),
        lambda: store.get(tuple(refs[::-1]), timeout=5),
    ]
    for ref in refs:
        everything += [
            lambda ref=ref: store.get(ref),
            lambda ref=ref: store.get(ref, copy=True),
            lambda ref=ref: store.explain(ref),
        ]
    return everything


@pytest.mark.parametrize("act", [*SAYS, want_to_leave], ids=lambda act: act.__name__)
def test_a_hostile_codec(
    pond: Pond, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, act: Any
) -> None:
    """However it decodes wrong: the error names codec, object and sizes, and nothing is lost or pinned."""
    store = pond.store("32MiB", compression=Hostile())
    refs = [store.put(value) for value in values()[:4]]
    store.spill()
    used_before(store)
    assert states(store, refs) == ["spilled"] * 4
    monkeypatch.setattr(Hostile, "act", staticmethod(act))
    error = KeyboardInterrupt if act is want_to_leave else millpond.SpillError
    for read in ways_to_read(store, refs):
        with pytest.raises(error) as caught:
            read()
        if error is millpond.SpillError:
            assert re.search(
                rf"object .* bytes: codec 'hostile' \(210\) {SAYS[act]}.*on disk", str(caught.value)
            )
    del caught
    store.prefetch(refs)
    wait_until(lambda: not store._prefetch._requests)
    store._prefetch.stop(forget=True)
    caplog.clear()  # records of errors keep what their frames had
    assert states(store, refs) == ["spilled"] * 4
    assert store.stats().pinned_bytes == 0 and store.stats().overflow_bytes == 0 and store.check() == []
    monkeypatch.setattr(Hostile, "act", staticmethod(fill_right))
    assert store.get(refs) == values()[:4]


def test_a_hostile_codec_where_all_memory_is_in_use(pond: Pond, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read around the memory: a private copy."""
    store = pond.store("2MiB", compression=Hostile(), overflow_limit="4MiB")
    ref = store.put(b"spill " * 100_000)
    store.spill()
    views = []
    with suppress(millpond.StoreFullError):
        while True:
            views.append(store.create_buffer(60_000))
    monkeypatch.setattr(Hostile, "act", staticmethod(leave_it))
    with pytest.raises(millpond.SpillError, match=OTHER):
        store.get(ref)
    assert store.stats().overflow_bytes == 0
    monkeypatch.setattr(Hostile, "act", staticmethod(fill_right))
    assert store.get(ref) == b"spill " * 100_000
    views.clear()


class Refusing(Zlib):
    """Compresses as it is told."""

    name, number = "refusing", 211

    def __init__(self, act: Any) -> None:
        self.act = act

    def compress(self, frame: memoryview) -> bytes | None:
        result: bytes | None = self.act(frame)
        return result


def longer(frame: memoryview) -> Any:
    return bytes(frame) + b"more"


def no_bytes(frame: memoryview) -> Any:
    return [1, 2]


@pytest.mark.parametrize(
    "act", [longer, no_bytes, lambda frame: fail(frame, frame), lambda frame: lack_memory(frame, frame)]
)
def test_a_codec_that_cannot_compress(pond: Pond, act: Any) -> None:
    store = pond.store("32MiB", compression=Refusing(act))
    refs = [store.put(value) for value in values()[:4]]
    store.spill()
    assert states(store, refs) == ["spilled"] * 4
    assert store.get(refs) == values()[:4]


def test_a_codec_that_is_interrupted(pond: Pond) -> None:
    """Here or in the spiller's thread: what was not written is in memory, and nothing is pinned."""
    store = pond.store("4MiB", compression=Refusing(lambda frame: want_to_leave(frame, frame)))
    refs = [store.put(np.full(100_000, n % 256, np.uint8)) for n in range(20)]
    with pytest.raises(KeyboardInterrupt):
        store.spill()
    assert states(store, refs) == ["resident"] * 20
    with suppress(KeyboardInterrupt):
        while True:
            refs.append(store.put(np.full(100_000, len(refs) % 256, np.uint8)))
    store._room.spiller.stop()
    assert store.stats().pinned_bytes == 0 and store.check() == []
    assert all((store.get(ref) == n % 256).all() for n, ref in enumerate(refs))


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
