"""Cleaning batches and writing values straight to disk: round trips, failures at every call, forks."""

from __future__ import annotations

import errno
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from millpond.errors import SpillError, StoreBusyError, StoreClosedError
from millpond.spill import segments
from millpond.spill.codec import CODECS, NONE, Codec
from millpond.spill.directory import Directories
from millpond.spill.disk import System
from millpond.spill.reader import SpillReader
from millpond.spill.record import OWN_FILE_MIN, PAGED_MIN, padded
from millpond.spill.sweep import sweep_dead
from millpond.spill.writer import SpillWriter
from spill_fakes import CLOSED, Failing, FakeBatch, FakeTable, NoDirect, open_descriptors

MIB = 1 << 20
EDGES = [
    *(1, 63, 64, 65, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 8193),
    *(PAGED_MIN - 64, PAGED_MIN - 1, PAGED_MIN, PAGED_MIN + 1, PAGED_MIN + 4096, 3 * MIB + 5),
    *(OWN_FILE_MIN - 4096, OWN_FILE_MIN - 1, OWN_FILE_MIN, OWN_FILE_MIN + 1, 2 * OWN_FILE_MIN, 20 * MIB + 7),
]
NOISE = random.Random(3).randbytes(24 * MIB)


def noise(size: int) -> bytes:
    return NOISE[size % 1000 : size % 1000 + size]


def text(size: int) -> bytes:
    return (b"%d millpond " % size * (size // 10 + 1))[:size]


def mixed(size: int) -> bytes:
    """The first frames shrink, others do not."""
    return (bytes(min(size, 2 * MIB)) + noise(size))[:size]


class Place:
    """A table, its directories and both ends of the disk side."""

    def __init__(
        self, base: Path, count: int = 1, system: System | None = None, limit: int | None = None
    ) -> None:
        self.table = FakeTable(limit)
        bases = [base / f"disk{i}" for i in range(count)]
        self.directories = Directories(bases, self.table.uuid, floor=0, system=system)
        self.writer = SpillWriter(self.table, self.directories)
        self.reader = SpillReader(self.table, self.directories)

    def check(self, batch: FakeBatch) -> int:
        """Every recorded object reads back; returns how many there are."""
        found = 0
        for index in range(batch.count):
            key, value = batch.key(index), batch.value(index)
            if key in self.table.places:
                found += 1
                assert self.reader.read_private(self.table.places[key], *key, len(value)) == value
        return found

    def files(self) -> list[Path]:
        return sorted(path for directory in self.directories.paths for path in Path(directory).iterdir())

    def end(self) -> None:
        """Nothing may be left once every object is dead."""
        self.writer._segments.roll()
        assert self.table.open_segments == 0
        for key in list(self.table.places):
            self.table.drop(key)
        sweep_dead(self.table, self.directories)
        assert self.table.segments == {}
        assert self.files() == []
        self.directories.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    before = open_descriptors()
    place = Place(tmp_path)
    yield place
    place.end()
    assert open_descriptors() == before


@pytest.mark.parametrize("content", [noise, text, mixed])
@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_every_size_comes_back(place: Place, codec: Codec, content: Callable[[int], bytes]) -> None:
    place.writer.codec = codec
    batch = FakeBatch(place.table, [content(size) for size in EDGES])
    report = place.writer.clean(batch, evict=True)
    assert report.error is None
    assert report.objects == place.check(batch) == len(EDGES)
    assert report.bytes_evicted == sum(EDGES)
    assert place.table.resident == set()
    on_disk = sum(path.stat().st_size for path in place.files())
    assert on_disk == report.bytes_written == place.table.disk_bytes
    if codec is not NONE and content is text:
        assert report.bytes_written < sum(EDGES) / 20
    for path in place.files():
        assert path.stat().st_mode & 0o777 == 0o600


def test_what_follows_a_value_in_memory_stays_there(place: Place) -> None:
    """The padding on disk is zeros, whatever was in the arena or in the buffers before."""
    for first, size in enumerate([PAGED_MIN - 1, PAGED_MIN + 4000, OWN_FILE_MIN + 4000, 2000]):
        for entry, used in ((1 + 10 * first, size), (5 + 10 * first, size - 900)):
            batch = FakeBatch(place.table, [b"\xdd" * used], entry)
            place.writer.clean(batch, evict=True)
            with place.writer.write_through([b"\xdd" * used], used, entry + 1, 1) as where:
                place.table.record((entry + 1, 1), used, where)
    on_disk = sum(path.read_bytes().count(b"\xdd") for path in place.files())
    checksums = 16 * len(place.table.places)
    assert 0 <= on_disk - sum(place.table.sizes.values()) <= checksums
    assert not any(b"\xee" * 64 in path.read_bytes() for path in place.files())


def test_without_evict_memory_stays(place: Place) -> None:
    batch = FakeBatch(place.table, [noise(1000), noise(100_000)])
    report = place.writer.clean(batch, evict=False)
    assert (report.objects, report.bytes_evicted) == (2, 0)
    assert len(place.table.resident) == 2


def test_an_empty_batch(place: Place) -> None:
    report = place.writer.clean(FakeBatch(place.table, []), evict=True)
    assert (report.objects, report.bytes_written, report.error) == (0, 0, None)
    assert place.files() == []


def test_many_small_ones_share_few_writes(tmp_path: Path) -> None:
    system = Failing(0, 10**9, ["pwritev"])
    place = Place(tmp_path, system=system)
    batch = FakeBatch(place.table, [noise(random.Random(i).randrange(100, 6000)) for i in range(4000)])
    place.writer.clean(batch, evict=True)
    assert place.check(batch) == 4000
    assert system.calls <= 1 + 1 + place.table.disk_bytes // (8 * MIB)
    assert len(place.files()) == 1
    place.end()


def test_medium_ones_share_writes_too(tmp_path: Path) -> None:
    system = Failing(0, 10**9, ["pwritev"])
    place = Place(tmp_path, system=system)
    batch = FakeBatch(place.table, [noise(PAGED_MIN + i) for i in range(250)])
    place.writer.clean(batch, evict=True)
    assert place.check(batch) == 250
    assert system.calls <= 4
    place.end()


def test_a_mixture_of_shapes_in_one_write(tmp_path: Path) -> None:
    system = Failing(0, 10**9, ["pwritev"])
    place = Place(tmp_path, system=system)
    place.writer.codec = CODECS["lz4"]
    values = [(text if i % 2 else noise)(70_000 + 1000 * i) for i in range(60)]
    values += [(text if i % 2 else noise)(1000 + i) for i in range(60)]
    batch = FakeBatch(place.table, values)
    place.writer.clean(batch, evict=True)
    assert place.check(batch) == 120
    assert system.calls == 1 + 1, "one probe, one write"
    place.end()


def test_objects_that_died_meanwhile_are_not_recorded(place: Place) -> None:
    batch = FakeBatch(place.table, [noise(1000), noise(100_000), noise(9 * MIB), noise(2000)])
    batch.dead = {0, 3}
    report = place.writer.clean(batch, evict=True)
    assert report.objects == place.check(batch) == 2


def test_segments_roll(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 3 * MIB)
    for start in range(0, 100, 10):
        batch = FakeBatch(place.table, [noise(100_000) for _ in range(10)], first_entry=1 + start)
        place.writer.clean(batch, evict=True)
        assert place.check(batch) == 10
    assert len(place.files()) == 5
    assert [s[4] for s in place.table.segments.values()].count(CLOSED) == 4
    assert max(s[2] for s in place.table.segments.values()) <= 3 * MIB


def test_a_segment_goes_when_its_last_record_is_dead(place: Place) -> None:
    batch = FakeBatch(place.table, [noise(1000), noise(2000)])
    place.writer.roll_sparse()
    place.writer.clean(batch, evict=True)
    for index in range(2):
        place.writer.roll_sparse()
        assert sweep_dead(place.table, place.directories) == 0
        place.table.drop(batch.key(index))
    with place.writer._turn():
        place.writer.roll_sparse()
        assert place.table.open_segments == 1, "not while somebody writes"
    place.writer.roll_sparse()
    assert sweep_dead(place.table, place.directories) == 1


def test_large_values_have_files_of_their_own(place: Place) -> None:
    batch = FakeBatch(place.table, [noise(OWN_FILE_MIN), noise(OWN_FILE_MIN + 5), noise(10)])
    place.writer.clean(batch, evict=True)
    assert len(place.files()) == 3
    place.table.drop(batch.key(1))
    assert sweep_dead(place.table, place.directories) == 1
    assert len(place.files()) == 2


# --- write_through ---


@pytest.mark.parametrize("size", EDGES)
def test_values_that_never_were_in_memory(place: Place, size: int) -> None:
    value = memoryview(noise(size))
    cuts = sorted({0, size, *(random.Random(size).randrange(size + 1) for _ in range(5))})
    parts = [value[a:b] for a, b in pairwise(cuts)]
    with place.writer.write_through([b"", *parts], size, 5, 77) as where:
        place.table.record((5, 77), size, where)
    assert place.reader.read_private(where, 5, 77, size) == value
    assert where.codec == 0
    if size >= OWN_FILE_MIN:
        assert place.reader.map_private(where, 5, 77, size) == value


@pytest.mark.parametrize("size", [100, 100_000, OWN_FILE_MIN])
@pytest.mark.parametrize("wrong", [-1, 1, 5000])
def test_parts_of_another_size_are_refused(place: Place, size: int, wrong: int) -> None:
    through = place.writer.write_through([bytes(size + wrong)], size, 5, 77)
    with pytest.raises(ValueError, match=f"{size + wrong} bytes instead of {size}"), through:
        raise AssertionError("not reached")


def test_a_place_that_is_not_recorded_leaves_nothing(place: Place) -> None:
    for size in (100, 100_000, OWN_FILE_MIN):
        with pytest.raises(ZeroDivisionError), place.writer.write_through([bytes(size)], size, 5, 77):
            raise ZeroDivisionError
    place.writer._segments.roll()
    assert len(place.table.segment_dead()) == 2


# --- failures ---

NAMES = ("open", "pwritev", "fdatasync", "statvfs")


def failing_batch(table: FakeTable) -> FakeBatch:
    sizes = [100, 5000, *[60_000] * 150, 70_000, *[MIB] * 9, OWN_FILE_MIN - 1, OWN_FILE_MIN + 1]
    return FakeBatch(table, [(text if i % 3 else noise)(size) for i, size in enumerate(sizes)])


@pytest.mark.parametrize(
    ("error", "for_ever", "codec"),
    [(errno.ENOSPC, False, "none"), (errno.EIO, True, "none"), (errno.EIO, False, "lz4")],
)
def test_every_call_may_fail(tmp_path: Path, error: int, for_ever: bool, codec: str) -> None:
    """Objects stay in memory unless their copy is whole; afterwards everything works again."""
    nth, failed = 0, True
    before = open_descriptors()
    while failed:
        nth += 1
        system = Failing(error, nth, NAMES, for_ever)
        place = Place(tmp_path / str(nth), system=system)
        place.writer.codec = CODECS[codec]
        batch = failing_batch(place.table)
        try:
            report = place.writer.clean(batch, evict=True)
        except SpillError as refused:
            assert refused.errno == error
            assert refused.filename.startswith(place.directories.paths[0])
            objects, reported = 0, True
        else:
            objects, reported = report.objects, report.error is not None
            assert report.error is None or report.error.errno == error
        failed = system.failed > 0
        system.broken = False
        assert reported == failed, "with one directory, a failure cannot go unnoticed"
        assert batch.open == set(), "every claim must have ended"
        assert place.check(batch) == objects
        kept = {batch.key(i) for i in range(batch.count)} - place.table.places.keys()
        assert kept == place.table.resident
        again = FakeBatch(place.table, [noise(100), noise(70_000), noise(OWN_FILE_MIN)], first_entry=1000)
        assert place.writer.clean(again, evict=True).objects == place.check(again) == again.count
        place.end()
        assert open_descriptors() == before
    assert nth > 10


@pytest.mark.parametrize("for_ever", [False, True])
@pytest.mark.parametrize("size", [1000, 100_000, 20 * MIB])
def test_every_call_of_write_through_may_fail(tmp_path: Path, size: int, for_ever: bool) -> None:
    nth, failed = 0, True
    while failed:
        nth += 1
        system = Failing(errno.EIO, nth, NAMES, for_ever)
        place = Place(tmp_path / str(nth), system=system)
        try:
            with place.writer.write_through([noise(size)], size, 5, 77) as where:
                place.table.record((5, 77), size, where)
            assert place.reader.read_private(where, 5, 77, size) == noise(size)
            assert not system.failed
        except SpillError as refused:
            assert refused.errno == errno.EIO
        failed = system.failed > 0
        system.broken = False
        place.end()
    assert nth >= 5


@pytest.mark.parametrize(
    ("name", "codec"), [("open", "none"), ("pwritev", "none"), ("pwritev", "lz4"), ("statvfs", "none")]
)
def test_another_directory_takes_over(tmp_path: Path, name: str, codec: str) -> None:
    nth, failed = 0, True
    while failed:
        nth += 1
        system = Failing(errno.ENOSPC, nth, [name])
        place = Place(tmp_path / str(nth), count=2, system=system)
        place.writer.codec = CODECS[codec]
        batch = failing_batch(place.table)
        report = place.writer.clean(batch, evict=True)
        failed = system.failed > 0
        system.broken = False
        assert report.error is None
        assert report.objects == place.check(batch) == batch.count
        place.end()


def test_directories_are_used_in_turns(tmp_path: Path) -> None:
    place = Place(tmp_path, count=3)
    batch = FakeBatch(place.table, [noise(OWN_FILE_MIN + i) for i in range(6)])
    place.writer.clean(batch, evict=True)
    assert [len(list(Path(path).iterdir())) for path in place.directories.paths] == [2, 2, 2]
    place.end()


@pytest.mark.parametrize("at_open", [False, True])
@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_without_direct_io_nothing_counts_before_it_is_synced(
    tmp_path: Path, at_open: bool, codec: Codec
) -> None:
    system = NoDirect(at_open)
    place = Place(tmp_path, system=system)
    place.writer.codec = codec
    record = place.table.record

    def check_first(*arguments: object) -> None:
        assert system.synced > 0
        record(*arguments)  # type: ignore[arg-type]

    place.table.record = check_first  # type: ignore[method-assign, assignment]
    batch = FakeBatch(place.table, [text(size) for size in EDGES])
    place.writer.clean(batch, evict=True)
    assert not place.directories.direct(0)
    assert system.synced >= len(place.files())
    assert place.check(batch) == len(EDGES)
    place.end()


def test_a_failed_sync_frees_nothing(tmp_path: Path) -> None:
    class BadSync(NoDirect):
        def fdatasync(self, fd: int) -> None:
            raise OSError(errno.EIO, "gone")

    place = Place(tmp_path, system=BadSync(at_open=True))
    batch = FakeBatch(place.table, [noise(100), noise(100_000), noise(OWN_FILE_MIN)])
    with pytest.raises(SpillError):
        place.writer.clean(batch, evict=True)
    assert place.table.places == {}
    assert len(place.table.resident) == 3
    place.end()


def test_the_spill_limit(tmp_path: Path) -> None:
    place = Place(tmp_path, limit=3 * MIB)
    batch = FakeBatch(place.table, [noise(MIB), noise(9 * MIB)])
    report = place.writer.clean(batch, evict=True)
    assert report.objects == place.check(batch) == 1
    assert report.error is not None and report.error.errno == errno.EDQUOT
    with pytest.raises(SpillError) as error:
        place.writer.clean(FakeBatch(place.table, [noise(2 * MIB)], first_entry=50), evict=True)
    assert error.value.errno == errno.EDQUOT
    small = FakeBatch(place.table, [noise(MIB)], first_entry=60)
    assert place.writer.clean(small, evict=True).objects == 1, "the segment is not broken"
    assert len([path for path in place.files() if path.stat().st_size > 0]) == 1
    place.end()


def test_the_limit_is_met_before_a_large_value_is_written(tmp_path: Path) -> None:
    system = Failing(0, 10**9, ["pwritev"])
    place = Place(tmp_path, system=system, limit=10 * MIB)
    with pytest.raises(SpillError), place.writer.write_through([bytes(30 * MIB)], 30 * MIB, 1, 1):
        pass
    assert system.calls <= 1, "the probe"
    place.end()


@pytest.mark.parametrize("trouble", [StoreClosedError, StoreBusyError])
@pytest.mark.parametrize("size", [100_000, OWN_FILE_MIN])
@pytest.mark.parametrize("appended", [False, True])
@pytest.mark.parametrize("where", ["segment_open", "segment_reserve", "publish"])
def test_errors_of_the_store_end_the_claims(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
    appended: bool,
    size: int,
    trouble: type[Exception],
) -> None:
    """They are no refusals of the disk, though the one about a stopped process is an OSError as well."""
    if appended and where == "segment_open" and size < OWN_FILE_MIN:
        pytest.skip("opens no further one")
    if appended:
        place.writer.clean(FakeBatch(place.table, [noise(10_000)]), evict=True)

    def refuse(*_: object) -> None:
        raise trouble

    batch = FakeBatch(place.table, [noise(size)], first_entry=7)
    monkeypatch.setattr(batch if where == "publish" else place.table, where, refuse)
    with pytest.raises(trouble):
        place.writer.clean(batch, evict=True)
    assert batch.open == set()
    assert caplog.messages == [], "the directory is to blame for nothing"
    monkeypatch.undo()
    place.writer.leave()
    assert place.table.open_segments == 0


# --- threads and forks ---


def test_threads_take_turns(place: Place) -> None:
    batches = [
        FakeBatch(place.table, [noise(1000 + 100 * i + j) for j in range(200)] + [noise(MIB)], 1 + 1000 * i)
        for i in range(6)
    ]
    threads = [threading.Thread(target=place.writer.clean, args=(batch, True)) for batch in batches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [place.check(batch) for batch in batches] == [201] * 6


def test_a_forked_child_writes_files_of_its_own(place: Place) -> None:
    first = FakeBatch(place.table, [noise(1000)])
    place.writer.clean(first, evict=True)
    parents = set(place.table.segments)
    place.writer._turns[0].lock.acquire()  # as if other threads of the parent were writing at this moment
    place.writer._segments._lane.acquire()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(20)
            batch = FakeBatch(place.table, [noise(2000)], first_entry=50)
            place.writer.clean(batch, evict=True)
            own = {place.table.places[batch.key(0)].segment}
            if place.check(batch) == 1 and place.check(first) == 1 and not own & parents:
                status = 0
        finally:
            os._exit(status)
    place.writer._segments._lane.release()
    place.writer._turns[0].lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    second = FakeBatch(place.table, [noise(3000)], first_entry=90)
    place.writer.clean(second, evict=True)
    assert place.table.places[second.key(0)].segment in parents, "the parent goes on where it was"
    os.unlink(place.directories.file(0, place.table._ids + 1))


def test_a_forked_child_keeps_no_file_open(place: Place) -> None:
    place.writer.clean(FakeBatch(place.table, [noise(1000)]), evict=True)
    value = noise(OWN_FILE_MIN)
    with place.writer.write_through([value], len(value), 70, 71):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                files = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
                status = sum(file.endswith(".seg") for file in files)
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    sweep_dead(place.table, place.directories)


# --- sweeping ---


def test_sweeping_twice_does_no_harm(place: Place) -> None:
    batch = FakeBatch(place.table, [noise(OWN_FILE_MIN)])
    place.writer.clean(batch, evict=True)
    place.table.drop(batch.key(0))
    os.unlink(place.files()[0])
    assert sweep_dead(place.table, place.directories) == 1
    assert sweep_dead(place.table, place.directories) == 0


def test_a_file_that_cannot_be_removed_is_tried_again(tmp_path: Path) -> None:
    system = Failing(errno.EIO, 1, ["unlink"])
    place = Place(tmp_path, system=system)
    batch = FakeBatch(place.table, [noise(OWN_FILE_MIN)])
    place.writer.clean(batch, evict=True)
    place.table.drop(batch.key(0))
    assert sweep_dead(place.table, place.directories) == 0
    assert place.table.disk_bytes > padded(OWN_FILE_MIN)
    assert sweep_dead(place.table, place.directories) == 1
    place.end()
