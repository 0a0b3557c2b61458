"""Restoring: every kind of damage ends in a typed error that names the file, never in wrong bytes."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest

from millpond.errors import ObjectLostError, SpillError
from millpond.spill import codec as codec_module
from millpond.spill.codec import CODECS
from millpond.spill.directory import Directories
from millpond.spill.disk import System, aligned_buffer
from millpond.spill.reader import WINDOW, SpillReader
from millpond.spill.record import (
    HEADER_BYTES,
    OWN_FILE_MIN,
    PAGE,
    PAGED_MIN,
    Place,
    RecordHeader,
    padded,
    record_length,
)
from millpond.spill.writer import SpillWriter
from spill_fakes import Failing, FakeBatch, FakeTable, NoDirect, open_descriptors

MIB = 1 << 20
NIGHTLY = bool(os.environ.get("MILLPOND_NIGHTLY"))
NOISE = random.Random(4).randbytes(10 * MIB)


def noise(size: int) -> bytes:
    return NOISE[:size]


def text(size: int) -> bytes:
    return b"".join(b"%d," % (i * i) for i in range(size // 4))[:size]


@pytest.fixture(autouse=True)
def leave_nothing(tmp_path: Path) -> Iterator[None]:
    """Hundreds of MiB would stay otherwise."""
    yield
    shutil.rmtree(tmp_path)


class Stored:
    """One object on disk among others, and a reader for it."""

    def __init__(self, base: Path, value: bytes, codec: str = "none", system: System | None = None) -> None:
        self.value = value
        self.table = FakeTable()
        self.directories = Directories([base], self.table.uuid, floor=0, system=system)
        writer = SpillWriter(self.table, self.directories, CODECS[codec])
        fill = [noise(n) for n in (100, 300, 70_000)] if len(value) < OWN_FILE_MIN else []
        batch = FakeBatch(self.table, [fill[0], value, *fill[1:]] if fill else [value])
        writer.clean(batch, evict=True)
        writer._segments.roll()
        self.key = next(batch.key(i) for i in range(batch.count) if batch.value(i) == value)
        self.place = self.table.places[self.key]
        self.reader = SpillReader(self.table, self.directories)
        info = self.table.segment_info(self.place.segment)
        assert info is not None
        self.path = Path(self.directories.file(info[1], info[0]))
        assert (self.place.codec != 0) == (codec != "none")

    def read(self) -> memoryview:
        return self.reader.read_private(self.place, *self.key, len(self.value))

    def header(self) -> RecordHeader:
        return RecordHeader.unpack(self.path.read_bytes()[self.place.offset :][:HEADER_BYTES])

    def write_at(self, offset: int, data: bytes) -> None:
        with self.path.open("r+b") as file:
            file.seek(self.place.offset + offset)
            file.write(data)

    def flip(self, offset: int, mask: int = 1) -> None:
        """Damages one byte, counted from the start of the record."""
        with self.path.open("r+b") as file:
            file.seek(self.place.offset + offset)
            byte = file.read(1)[0]
        self.write_at(offset, bytes([byte ^ mask]))

    def is_lost(self, reason: str = ".") -> bool:
        with pytest.raises(ObjectLostError, match=reason) as error:
            self.read()
        assert str(self.path) in str(error.value)
        assert f"{self.key[0]}.{self.key[1]}" in str(error.value)
        return True


SHAPES: list[tuple[Callable[[int], bytes], int, str]] = [
    (noise, 1000, "none"),
    (noise, PAGED_MIN + 100, "none"),
    (text, 20_000, "lz4"),
    (text, 3 * MIB, "lz4"),
    (noise, OWN_FILE_MIN + 100, "none"),
    (text, OWN_FILE_MIN + 100, "lz4"),
]
NAMES = ["packed", "paged", "packed-lz4", "packed-lz4-frames", "own", "own-lz4"]


@pytest.fixture(params=SHAPES, ids=NAMES)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Stored:
    content, size, codec = request.param
    return Stored(tmp_path, content(size), codec)


def every_flip_is_noticed(stored: Stored, offsets: Collection[int]) -> int:
    """One bit of each of these bytes of the record, one after another; how many."""
    for offset in offsets:
        stored.flip(offset, 1 << offset % 8)
        assert stored.is_lost()
        stored.flip(offset, 1 << offset % 8)
    assert stored.read() == stored.value
    return len(offsets)


def test_every_byte_of_the_header_counts(stored: Stored, tally: Counter[str]) -> None:
    assert stored.read() == stored.value
    tally["bits flipped in spill files"] += every_flip_is_noticed(stored, range(HEADER_BYTES))


def test_every_byte_of_the_payload_counts(stored: Stored, tally: Counter[str]) -> None:
    start = PAGE if stored.place.length % PAGE == 0 and stored.place.offset % PAGE == 0 else HEADER_BYTES
    count = stored.header().stored
    rng = random.Random(1)
    some = {0, 1, 3, 4, count - 1, *(rng.randrange(count) for _ in range(1000 if NIGHTLY else 15))}
    offsets = [start + offset for offset in sorted(some)]
    tally["bits flipped in spill files"] += every_flip_is_noticed(stored, offsets)


def test_padding_does_not_count(stored: Stored) -> None:
    stored.flip(stored.place.length - 1)
    assert stored.read() == stored.value


def test_a_truncated_file(stored: Stored, tally: Counter[str]) -> None:
    """At every 512 bytes, of a large file at some of them; and at a few odd lengths."""
    whole = stored.path.read_bytes()
    end = padded(stored.place.offset + stored.place.length)
    step = 512 if NIGHTLY or end <= 64 * 512 else end // 64 // 512 * 512
    lengths = {1, 511, min(4096, end - 1), end // 2, end - PAGE, end - 1, *range(0, end, step)}
    for length in sorted(lengths, reverse=True):
        os.truncate(stored.path, length)
        assert stored.is_lost("the file ends at")
    tally["truncated spill files"] += len(lengths)
    stored.path.write_bytes(whole)
    assert stored.read() == stored.value


def test_a_file_that_is_gone(stored: Stored) -> None:
    stored.path.unlink()
    assert stored.is_lost("No such file")
    stored.path.mkdir()
    assert stored.is_lost("not a regular file|direct|directory")


def test_something_else_in_the_files_place(stored: Stored, tmp_path: Path) -> None:
    other = stored.path.with_name("other")
    stored.path.rename(other)
    stored.path.symlink_to(other)
    assert stored.is_lost()
    stored.path.unlink()
    os.mkfifo(stored.path)
    assert stored.is_lost()


def test_a_directory_that_is_gone(stored: Stored) -> None:
    parent = stored.path.parent
    parent.rename(parent.with_name("moved"))
    assert stored.is_lost("No such file")
    parent.write_bytes(b"")
    assert stored.is_lost("Not a directory")


def test_an_older_file_of_the_same_name(tmp_path: Path) -> None:
    """Same place, same lengths, sound checksums, but another object, store or payload."""
    stored = Stored(tmp_path, noise(1000))
    payload = noise(1000)
    good = stored.header()
    for change in ({"entry": 9}, {"birth": 9}, {"uuid": bytes(16)}, {"checksum": 9}):
        stored.write_at(0, good._replace(**change).pack() + payload)
        assert stored.is_lost()
    stored.write_at(0, good.pack() + payload)
    assert stored.read() == payload


@pytest.mark.parametrize(
    "change",
    [
        {"stored": 0},
        {"stored": 2**64 - 1},
        {"stored": 2**63},
        {"raw": 0},
        {"raw": 2**64 - 1},
        {"codec": 1},
        {"codec": 255},
    ],
)
def test_hostile_lengths_with_a_sound_checksum(stored: Stored, change: dict[str, int]) -> None:
    header = stored.header()
    if header.codec == change.get("codec"):
        change = {"codec": 0}
    stored.write_at(0, header._replace(**change).pack())  # type: ignore[arg-type]
    assert stored.is_lost()


def test_a_place_that_claims_more_than_the_file_holds(stored: Stored) -> None:
    table_says = stored.place
    for place in (
        table_says._replace(offset=table_says.offset + (1 << 40)),
        table_says._replace(length=table_says.length + 64),
        table_says._replace(checksum=table_says.checksum ^ 1),
    ):
        with pytest.raises(ObjectLostError):
            stored.reader.read_private(place, *stored.key, len(stored.value))


def test_frames_that_end_early_or_late(tmp_path: Path) -> None:
    """A payload with a sound checksum whose frames make another value."""
    stored = Stored(tmp_path, text(20_000), "lz4")
    header = stored.header()
    payload = stored.path.read_bytes()[stored.place.offset + HEADER_BYTES :][: header.stored]
    for damaged in (payload[:4] + bytes(len(payload) - 4), payload[:-1], payload + b"x"):
        checksum, count = xxh3_64_intdigest(damaged), len(damaged)
        stored.write_at(0, header._replace(checksum=checksum, stored=count).pack() + damaged)
        length = record_length(header.codec, header.raw, count)
        stored.place = stored.place._replace(checksum=checksum, length=length)
        assert stored.is_lost()
    stored.place = stored.place._replace(length=record_length(header.codec, header.raw, len(payload)))
    for raw in (19_999, 20_001, 40_000):
        checksum = xxh3_64_intdigest(payload)
        stored.write_at(0, header._replace(checksum=checksum, raw=raw).pack() + payload)
        stored.place = stored.place._replace(checksum=checksum)
        with pytest.raises(ObjectLostError):
            stored.reader.read_private(stored.place, *stored.key, raw)


class Flaky(System):
    """Damages what the first `wrong` reads bring."""

    def __init__(self, wrong: int) -> None:
        self.wrong = wrong
        self.reads = 0

    def preadv(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        count = super().preadv(fd, buffers, offset)
        self.reads += 1
        if self.reads <= self.wrong:
            for buffer in buffers:
                buffer[:] = bytes(len(buffer))
        return count


@pytest.mark.parametrize(("content", "size", "codec"), SHAPES, ids=NAMES)
def test_wrong_bytes_are_read_a_second_time(
    tmp_path: Path, content: Callable[[int], bytes], size: int, codec: str
) -> None:
    system = Flaky(1)
    stored = Stored(tmp_path, content(size), codec, system)
    gc.collect()  # garbage of other tests may have some
    before = open_descriptors()
    assert stored.read() == stored.value
    system.reads, system.wrong = 0, 100
    assert stored.is_lost()
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("name", "error"),
    [("open", errno.EMFILE), ("open", errno.EACCES), ("fstat", errno.EIO), ("preadv", errno.EIO)],
)
def test_other_errors_leave_the_object_on_disk(tmp_path: Path, name: str, error: int) -> None:
    for content, size, codec in SHAPES:
        nth, failed = 0, True
        value = content(size)
        while failed:
            nth += 1
            system = Failing(error, nth, [name])
            system.broken = False
            stored = Stored(tmp_path / f"{size}{codec}{nth}", value, codec, system)
            system.broken = True
            before = open_descriptors()
            try:
                assert stored.read() == value
            except SpillError as refused:
                assert (refused.errno, refused.filename) == (error, str(stored.path))
            failed = system.failed > 0
            system.broken = False
            assert open_descriptors() == before
            assert stored.read() == value, "the next attempt finds it"
        assert nth >= 2


@pytest.mark.parametrize(("content", "size", "codec"), SHAPES, ids=NAMES)
@pytest.mark.parametrize("at_open", [False, True])
def test_without_direct_io(
    tmp_path: Path, content: Callable[[int], bytes], size: int, codec: str, at_open: bool
) -> None:
    stored = Stored(tmp_path, content(size), codec, NoDirect(at_open))
    assert stored.read() == stored.value
    stored.flip(3)
    assert stored.is_lost()


def test_the_target_is_filled_to_its_end_with_zeros(tmp_path: Path) -> None:
    for size, room in ((1000, 1024), (5000, 5120), (9000, 3 * PAGE), (PAGED_MIN + 1, PAGED_MIN + PAGE)):
        stored = Stored(tmp_path / str(size), noise(size))
        target = aligned_buffer(room)
        target[:] = b"\xaa" * room
        stored.reader.read_into(stored.place, *stored.key, size, target)
        assert target == noise(size) + bytes(room - size)


def test_a_plain_tuple_is_a_place(tmp_path: Path) -> None:
    stored = Stored(tmp_path, noise(1000))
    target = memoryview(bytearray(1000))
    stored.reader.read_into(tuple(stored.place), *stored.key, 1000, target)  # type: ignore[arg-type]
    assert target == stored.value


@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_steps_are_counted(tmp_path: Path, codec: str) -> None:
    value = (text if codec == "lz4" else noise)(9 * MIB) + bytes(17 * MIB)
    stored = Stored(tmp_path, value, codec)
    steps: list[int] = []
    target = aligned_buffer(padded(len(value)))
    stored.reader.read_into(stored.place, *stored.key, len(value), target, step=lambda: steps.append(1))
    assert target[: len(value)] == value
    assert len(steps) >= (4 if codec == "none" else 2)


def test_a_codec_that_is_not_known_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Stored(tmp_path, text(20_000), "lz4")
    monkeypatch.setattr(codec_module, "_by_number", {})
    with pytest.raises(SpillError, match="number 1"):
        stored.read()


def test_a_segment_that_cannot_be_looked_up_is_not_a_loss(tmp_path: Path) -> None:
    stored = Stored(tmp_path, noise(1000))
    stored.place = stored.place._replace(segment=99)
    with pytest.raises(SpillError, match="segment 99"):
        stored.read()


# --- maps ---


def test_a_map_is_the_value_and_read_only(tmp_path: Path) -> None:
    stored = Stored(tmp_path, noise(OWN_FILE_MIN + WINDOW + 5))
    mapped = stored.reader.map_private(stored.place, *stored.key, len(stored.value))
    assert isinstance(mapped.obj, mmap.mmap)
    assert mapped.readonly
    assert mapped == stored.value
    stored.path.unlink()
    assert mapped == stored.value, "it outlives the file's name"


def test_a_map_is_verified(tmp_path: Path) -> None:
    stored = Stored(tmp_path, noise(OWN_FILE_MIN + 5))
    for offset in (5, PAGE, PAGE + OWN_FILE_MIN + 4):
        stored.flip(offset)
        with pytest.raises(ObjectLostError, match=str(stored.path)):
            stored.reader.map_private(stored.place, *stored.key, len(stored.value))
        stored.flip(offset)
    os.truncate(stored.path, OWN_FILE_MIN)
    with pytest.raises(ObjectLostError, match="ends at"):
        stored.reader.map_private(stored.place, *stored.key, len(stored.value))


@pytest.mark.parametrize(("content", "size", "codec"), [SHAPES[1], SHAPES[5]])
def test_what_cannot_be_mapped(
    tmp_path: Path, content: Callable[[int], bytes], size: int, codec: str
) -> None:
    stored = Stored(tmp_path, content(size), codec)
    with pytest.raises(ValueError, match="no file to map"):
        stored.reader.map_private(stored.place, *stored.key, size)


def test_many_threads_read_at_once(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    stored = Stored(tmp_path, text(30_000), "lz4")
    others = [(key, place, stored.table.sizes[key]) for key, place in stored.table.places.items()]

    def read(i: int) -> int:
        key, place, size = others[i % len(others)]
        return len(stored.reader.read_private(Place(*place), *key, size))

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(read, range(200)))
    assert found == [others[i % len(others)][2] for i in range(200)]
