"""A store whose spill files are damaged in every way: the objects that were hit are lost, by an error that
names the file, and no other; no byte is wrong, nothing hangs, and the store goes on."""

from __future__ import annotations

import errno
import os
import random
import shutil
import socket
import stat
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from millpond import ObjectLostError, ObjectRef, SpillError
from millpond.hot import punch_hole
from millpond.spill import directory as directory_module
from millpond.spill.record import (
    HEADER_BYTES,
    MAGIC,
    OWN_FILE_MIN,
    PAGE,
    VERSION,
    RecordError,
    RecordHeader,
    padded,
    payload_start,
)
from ponds import Pond
from spill_fakes import NoDirect

KIB, MIB = 1 << 10, 1 << 20
NIGHTLY = bool(os.environ.get("MILLPOND_NIGHTLY"))
Key = tuple[int, int]
SIZES = (100, 100, 700, 5000, 5000, 20 * KIB, 20 * KIB, 100 * KIB, 100 * KIB, 3 * MIB)
"""Fused, on pages of their own, and more than one frame where they are compressed. Two of a size can change
places."""
OWN = (OWN_FILE_MIN + 100, OWN_FILE_MIN + 100)


class Record(NamedTuple):
    """A disk copy, found by reading the files and not by asking the table."""

    path: Path
    offset: int
    start: int
    """Of the payload, from the offset on."""
    stored: int

    def end(self) -> int:
        return self.offset + self.start + self.stored

    def spans(self) -> tuple[range, range]:
        """The bytes that count: header and payload. Between and behind them is padding."""
        begin = self.offset + self.start
        return range(self.offset, self.offset + HEADER_BYTES), range(begin, begin + self.stored)

    def touches(self, first: int, stop: int) -> bool:
        return any(first < span.stop and span.start < stop for span in self.spans())


def records_in(path: Path, uuid: bytes) -> Iterator[tuple[Key, Record]]:
    data = path.read_bytes()
    offset = -1
    while (offset := data.find(struct.pack("<HB", MAGIC, VERSION), offset + 1)) >= 0:
        try:
            header = RecordHeader.unpack(data[offset : offset + HEADER_BYTES])
        except RecordError:
            continue
        if header.uuid == uuid:
            record = Record(path, offset, payload_start(header.codec, header.raw), header.stored)
            yield (header.entry, header.birth), record


class World:
    """A store with a value of every kind on disk, in two shared files and some of their own."""

    def __init__(self, pond: Pond, compression: str) -> None:
        self.pond = pond
        self.store = pond.store("64MiB", compression=compression, overflow_limit="16MiB")
        self.packs = compression != "none"
        self.dice = random.Random(7)
        self.made = 0
        self.refs: dict[Key, ObjectRef] = {}
        self.values: dict[Key, np.ndarray[Any, Any]] = {}
        self.fill()

    def fill(self) -> None:
        for sizes in (SIZES, SIZES, OWN):
            for size in sizes:
                value = self.value(size)
                ref = self.store.put(value)
                self.refs[ref._key], self.values[ref._key] = ref, value
            self.store.spill()
            self.store._writer._segments.roll()  # the next ones go to another file
        self.records = {
            key: record
            for path in self.pond.spilled_files()
            if path.parent.name == self.store.uuid.hex()  # another world's files may be huge, or vanish
            for key, record in records_in(path, self.store.uuid)
            if key in self.refs
        }
        assert self.records.keys() == self.refs.keys()
        assert self.store.stats().spilled_objects == len(self.refs)

    def value(self, size: int) -> np.ndarray[Any, Any]:
        """All differ; those of a size are equally long when they are compressed."""
        self.made += 1
        if self.packs:
            same = np.frombuffer(random.Random(size).randbytes(size), np.uint8)
            return (same & 1) + 2 * (self.made % 100)
        return np.frombuffer(self.dice.randbytes(size), np.uint8)

    def empty(self) -> None:
        self.refs.clear()
        self.values.clear()
        self.store._tidy()

    @property
    def files(self) -> list[Path]:
        return sorted({record.path for record in self.records.values()})

    def of(self, path: Path) -> set[Key]:
        return {key for key, record in self.records.items() if record.path == path}

    def touching(self, path: Path, first: int, stop: int) -> set[Key]:
        return {key for key in self.of(path) if self.records[key].touches(first, stop)}

    def pairs(self, within: bool) -> list[tuple[Record, Record]]:
        """Disjoint pairs of records that are equally long, in one file or in two."""
        found, left = [], sorted(self.records.values())
        while left:
            one = left.pop(0)
            for other in left:
                if one[2:] == other[2:] and (one.path == other.path) == within:
                    left.remove(other)
                    found.append((one, other))
                    break
        return found

    def keys(self, records: Iterator[Record] | set[Record]) -> set[Key]:
        wanted = set(records)
        return {key for key, record in self.records.items() if record in wanted}


Outcome = str
"""right, wrong, or what the error said."""
Harm = Callable[[World], set[Key]]
"""Damages files; which objects must be lost by it."""


def write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def read_at(path: Path, offset: int, count: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(count)


def flip(world: World, which: int) -> set[Key]:
    """A bit in the header (0) or payload (1) of every other record."""
    hit = sorted(world.records)[::2]
    for key in hit:
        record = world.records[key]
        at = world.dice.choice(record.spans()[which])
        write_at(record.path, at, bytes([read_at(record.path, at, 1)[0] ^ 1 << world.dice.randrange(8)]))
    return set(hit)


def exchange(world: World, within: bool) -> set[Key]:
    """Two whole records of the same length, each sound in itself."""
    pairs = world.pairs(within)
    assert len(pairs) >= 3
    for one, other in pairs:
        for first, second in zip(one.spans(), other.spans(), strict=True):
            ours, theirs = (
                read_at(one.path, first.start, len(first)),
                read_at(other.path, second.start, len(second)),
            )
            write_at(one.path, first.start, theirs)
            write_at(other.path, second.start, ours)
    return world.keys({record for pair in pairs for record in pair})


def exchange_files(world: World) -> set[Key]:
    for one, other in zip(world.files[::2], world.files[1::2], strict=True):
        spare = one.with_name("spare")
        one.rename(spare)
        other.rename(one)
        spare.rename(other)
    return set(world.records)


def cut(world: World) -> set[Key]:
    """Each file in the middle, at a page: what lies whole before that is as it was."""
    lost = set()
    for path in world.files:
        length = path.stat().st_size // 2 & -PAGE
        os.truncate(path, length)
        lost |= {key for key in world.of(path) if padded(world.records[key].end()) > length}
    assert lost != set(world.records)
    return lost


def cut_to_nothing(world: World) -> set[Key]:
    for path in world.files:
        os.truncate(path, 0)
    return set(world.records)


def grow(world: World) -> set[Key]:
    for path in world.files:
        with path.open("ab") as file:
            file.write(world.dice.randbytes(10_000))
    return set()


def blank(world: World, punch: bool) -> set[Key]:
    """A page of each file becomes zeros: written, or a hole that an error of the filesystem left."""
    lost = set()
    for path in world.files:
        first = world.dice.randrange(path.stat().st_size // PAGE) * PAGE
        if punch:
            with path.open("r+b") as file:
                punch_hole(file.fileno(), first, PAGE)
        else:
            write_at(path, first, bytes(PAGE))
        lost |= world.touching(path, first, first + PAGE)
    return lost


def all_zeros(world: World) -> set[Key]:
    for path in world.files:
        size = path.stat().st_size
        os.truncate(path, 0)
        os.truncate(path, size)
    return set(world.records)


def noise(world: World) -> set[Key]:
    for path in world.files:
        path.write_bytes(world.dice.randbytes(path.stat().st_size))
    return set(world.records)


def of_another_store(world: World) -> set[Key]:
    """The same values in the same places under the same names, but of a store that was before."""
    other = World(world.pond, "lz4" if world.packs else "none")
    assert [path.name for path in other.pond.spilled_files() if path not in world.files]
    theirs = {path.name: path.read_bytes() for path in {record.path for record in other.records.values()}}
    assert theirs.keys() == {path.name for path in world.files}
    other.empty()
    for path in world.files:
        path.write_bytes(theirs[path.name])
    return set(world.records)


def of_before(world: World) -> set[Key]:
    """What the same entries of the same store had in the same places, when they were other objects."""
    before = [path.read_bytes() for path in world.files]
    entries = {entry for entry, _ in world.refs}
    world.empty()
    world.fill()
    assert {entry for entry, _ in world.refs} == entries, "used again"
    for path, data in zip(world.files, before, strict=True):
        path.write_bytes(data)
    return set(world.records)


def remove(world: World) -> set[Key]:
    for path in world.files:
        path.unlink()
    return set(world.records)


def remove_directory(world: World) -> set[Key]:
    shutil.rmtree(world.files[0].parent)
    return set(world.records)


def replace(world: World, by: Callable[[Path], object]) -> set[Key]:
    """Something else, or somebody else's, in the place of every other file."""
    lost = set()
    for path in world.files[::2]:
        lost |= world.of(path)
        kept = path.with_name(f"kept {path.name}")
        path.rename(kept)
        by(path)
    return lost


def kept(path: Path) -> Path:
    return path.with_name(f"kept {path.name}")


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(path.parent, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/{path.name}")  # a path of any length
        os.close(here)


def of_another_user(path: Path) -> None:
    shutil.copy(kept(path), path)
    os.chown(path, 65534, 65534)


HARMS: dict[str, Harm] = {
    "flipped header": partial(flip, which=0),
    "flipped payload": partial(flip, which=1),
    "records exchanged": partial(exchange, within=True),
    "records exchanged between files": partial(exchange, within=False),
    "files exchanged": exchange_files,
    "cut": cut,
    "cut to nothing": cut_to_nothing,
    "grown": grow,
    "a page of zeros": partial(blank, punch=False),
    "a hole": partial(blank, punch=True),
    "all zeros": all_zeros,
    "noise": noise,
    "another store's": of_another_store,
    "other objects of the same entries": of_before,
    "removed": remove,
    "directory removed": remove_directory,
    "a directory": partial(replace, by=Path.mkdir),
    "a fifo": partial(replace, by=os.mkfifo),
    "a socket": partial(replace, by=listen),
    "a symbolic link": partial(replace, by=lambda path: path.symlink_to(kept(path))),
}
if os.geteuid() == 0:
    HARMS["a device"] = partial(
        replace, by=lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    )  # /dev/zero
    HARMS["another user's"] = partial(replace, by=of_another_user)


def looks(world: World, key: Key, value: Any) -> Outcome:
    return "right" if np.array_equal(value, world.values[key]) else "wrong"


def one_by_one(world: World) -> dict[Key, Outcome]:
    """What each object gives; no error but this."""
    found: dict[Key, Outcome] = {}
    for key, ref in world.refs.items():
        try:
            found[key] = looks(world, key, ref.get(timeout=30))
        except ObjectLostError as lost:
            found[key] = str(lost)
    return found


def as_list(world: World) -> dict[Key, Outcome]:
    """All with one call, which reads several records with one read, and ends with the first error."""
    try:
        values = world.store.get(list(world.refs.values()), timeout=30)
        return {key: looks(world, key, value) for key, value in zip(world.refs, values, strict=True)}
    except ObjectLostError as lost:
        first = str(lost)
    found = one_by_one(world)
    assert first in found.values()
    return found


def ahead(world: World) -> dict[Key, Outcome]:
    """After a prefetch, which says nothing of what it could not read."""
    world.store.prefetch(list(world.refs.values()))
    return one_by_one(world)


def without_room(world: World) -> dict[Key, Outcome]:
    """While all memory is pinned: private copies, and maps of the large files."""
    world.store.configure(memory_limit=MIB)
    view = world.store.put(np.zeros(900 * KIB, np.uint8)).get()
    found = one_by_one(world)
    del view
    return found


WAYS = {"one by one": one_by_one, "list": as_list, "prefetch": ahead, "without room": without_room}


CASES = [
    pytest.param(harm, direct, compression, id=f"{harm}-{'direct' if direct else 'buffered'}-{compression}")
    for number, harm in enumerate(HARMS)
    for direct in (True, False)
    for compression in ("none", "lz4")
    if NIGHTLY or (number + direct + (compression == "none")) % 2
]


@pytest.mark.parametrize(("harm", "direct", "compression"), CASES)
def test_who_is_hit_is_lost_and_nobody_else(
    pond: Pond,
    monkeypatch: pytest.MonkeyPatch,
    harm: str,
    direct: bool,
    compression: str,
    tally: Counter[str],
) -> None:
    if not direct:
        monkeypatch.setattr(directory_module, "System", partial(NoDirect, True))
    turn = list(HARMS).index(harm) // 2 + 2 * direct
    for number, (name, way) in enumerate(WAYS.items()):
        if NIGHTLY or (turn + number) % len(WAYS) == 0:
            world = World(pond, compression)
            lost = HARMS[harm](world)
            reckon(world, lost, way(world), f"{harm}, {name}")
            tally["spill files damaged"] += len(world.files)
            tally["objects read from damaged files"] += len(world.refs)
            goes_on(world)


def reckon(world: World, lost: set[Key], found: dict[Key, Outcome], where: str) -> None:
    for key, outcome in found.items():
        record = world.records[key]
        if key in lost:
            assert outcome not in ("right", "wrong"), (where, outcome, record)
            assert str(record.path) in outcome, (where, outcome)
        else:
            assert outcome == "right", (where, outcome, record)


def goes_on(world: World) -> None:
    """The store is sound, takes and spills new values, and gives everything back."""
    assert world.store.check() == []
    world.store.configure(memory_limit="64MiB")
    kinds = {size: world.value(size) for size in (100, 20 * KIB, 100 * KIB, OWN_FILE_MIN)}
    fresh = {size: world.store.put(value) for size, value in kinds.items()}
    world.store.spill()
    for size, ref in fresh.items():
        assert np.array_equal(ref.get(timeout=30), kinds[size])
    world.refs.clear()
    for path in world.files:  # what is no file cannot be unlinked as one
        if path.is_dir():
            path.rmdir()
        kept(path).unlink(missing_ok=True)


@pytest.mark.parametrize("kind", ["file", "link", "fifo", "directory"])
def test_what_lies_in_the_way_of_a_new_file_is_left_alone(pond: Pond, kind: str) -> None:
    """A typed error at worst, and the next attempt takes another name."""
    store = pond.store()
    assert store._directories is not None
    place, target = Path(store._directories.paths[0]), pond.spill / "target"
    in_the_way = [place / f"{number:016x}.seg" for number in (1, 2)]
    for path in in_the_way:
        if kind == "file":
            path.write_bytes(b"theirs")
        elif kind == "link":
            path.symlink_to(target)
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.mkdir()
    before = [path.lstat() for path in in_the_way]
    value = np.arange(100_000)
    ref = store.put(value)
    for _ in in_the_way:
        with pytest.raises(SpillError, match=str(place)) as error:
            store.spill()
        assert error.value.errno == errno.EEXIST
        assert np.array_equal(ref.get(), value)
    store.spill()
    assert store.stats().spilled_objects == 1
    assert np.array_equal(ref.get(), value)
    assert not target.exists()
    for path, status in zip(in_the_way, before, strict=True):
        assert os.path.samestat(path.lstat(), status) and path.lstat().st_mtime_ns == status.st_mtime_ns
        path.rmdir() if kind == "directory" else path.unlink()
