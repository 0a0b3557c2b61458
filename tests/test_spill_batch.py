"""The compiled side of spilling: claims, the twin of the record format, and whole objects out and back."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

import millpond
from millpond.errors import StoreClosedError
from millpond.hot import Batch, Code, ObjectRef
from millpond.spill.codec import CODECS
from millpond.spill.directory import Directories
from millpond.spill.disk import aligned_buffer
from millpond.spill.frames import decode, encode
from millpond.spill.reader import SpillReader
from millpond.spill.record import HEADER_BYTES, PAGE, PAGED_MIN, RecordHeader, record_length
from millpond.spill.sweep import sweep_dead
from millpond.spill.writer import SpillWriter

MIB = 1 << 20
CALL = 8 * MIB


@pytest.fixture
def store(tmp_path: Path) -> Iterator[millpond.Store]:
    with millpond.Store(memory_limit=128 * MIB, spill_dir=tmp_path / "store") as store:
        yield store
        assert store.check() == []


@pytest.fixture
def directories(store: millpond.Store, tmp_path: Path) -> Iterator[Directories]:
    directories = Directories([tmp_path / "store"], store.uuid, floor=0)
    yield directories
    directories.close()


def everything(store: millpond.Store, limit: int = 1 << 40) -> Batch:
    return Batch(store, store._candidates(), limit)


def sizes_of(batch: Batch) -> list[int]:
    return [batch.item(index)[2] for index in range(batch.count)]


def noise(size: int) -> np.ndarray:
    return np.frombuffer(random.Random(size).randbytes(size), np.uint8)


def test_claims_are_sorted_by_shape(store: millpond.Store) -> None:
    refs = [store.put(noise(size)) for size in (10, 100_000, 20, PAGED_MIN, 50_000, 9 * MIB, 30)]
    batch = everything(store)
    keys = [batch.item(index)[:2] for index in range(batch.count)]
    assert keys == [refs[i]._key for i in (0, 2, 4, 6, 1, 3, 5)]
    assert (batch.count, batch.small, batch.examined) == (7, 4, 7)
    assert all((size >= PAGED_MIN) == (index >= 4) for index, size in enumerate(sizes_of(batch)))
    assert batch.nbytes >= sum(sizes_of(batch))


def test_claiming_stops_at_the_limit(store: millpond.Store) -> None:
    refs = [store.put(noise(100_000)) for _ in range(10)]
    batch = everything(store, 250_000)
    assert (batch.count, batch.examined) == (3, 3)
    rest = Batch(store, store._candidates()[batch.examined :], 1 << 40)
    assert batch.count + rest.count <= 10
    assert everything(store, 0).count == 0
    del refs


def test_what_cannot_be_cleaned_is_passed_over(store: millpond.Store, directories: Directories) -> None:
    refs = [store.put(noise(100_000 + i)) for i in range(5)]
    candidates = store._candidates()
    view = store.get(refs[0])
    store.delete(refs[1])
    writer = SpillWriter(store, directories)
    assert writer.clean(Batch(store, candidates[2:3], 1), evict=False).objects == 1
    wrong = candidates.copy()
    wrong["birth"][3] += 1
    wrong["entry"][4] = 2**32 - 1
    assert Batch(store, wrong, 1 << 40).count == 0
    batch = Batch(store, np.concatenate([candidates, candidates]), 1 << 40)
    assert [batch.item(i)[:2] for i in range(batch.count)] == [refs[3]._key, refs[4]._key]
    assert batch.examined == 10
    writer._segments.roll()
    del view


def test_a_batch_that_goes_ends_its_claims(store: millpond.Store) -> None:
    refs = [store.put(noise(1000 + i)) for i in range(10)]
    for end in (Batch.cancel, lambda batch: None):
        batch = everything(store)
        assert batch.count == 10
        assert everything(store).count == 0, "claimed is pinned"
        assert store._member_bits(refs[0])[1]
        end(batch)
        del batch
        assert not store._member_bits(refs[0])[1]


def test_a_forked_child_has_no_claims(store: millpond.Store) -> None:
    refs = [store.put(noise(1000 + i)) for i in range(3)]
    batch = everything(store)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with suppress(StoreClosedError):
                batch.publish(0, 3, 1, 0, True)
                os._exit(2)
            batch.cancel()
            status = 0 if everything(store).count == 0 and store.check() == [] else 3
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    batch.cancel()
    store._reap()
    assert everything(store).count == 3
    del refs


def test_a_batch_of_a_closed_store(tmp_path: Path) -> None:
    store = millpond.Store(memory_limit=8 * MIB, spill_dir=tmp_path)
    ref = store.put(noise(100_000))
    candidates = store._candidates()
    batch = Batch(store, candidates, 1)
    memory = batch.memory(0)
    store.close()
    assert memory[-100:] == noise(100_000).data[-100:], "the mapping lives as long as the batch"
    del memory
    batch.cancel()
    with pytest.raises(StoreClosedError):
        Batch(store, candidates, 1)
    del batch, ref


def test_candidates_of_another_shape_are_refused(store: millpond.Store) -> None:
    with pytest.raises(ValueError):
        Batch(store, np.zeros(1, [("entry", "u8"), ("birth", "u8")]), 1)
    with pytest.raises(ValueError):
        Batch(store, np.zeros(1, [("entry", "u4")]), 1)
    packed = np.zeros(3, np.dtype([("pad", "u1"), ("entry", "u4"), ("birth", "u8")]))
    assert Batch(store, packed, 1).count == 0


def test_indices_are_checked(store: millpond.Store) -> None:
    ref = store.put(noise(100))
    batch = everything(store)
    for index in (-1, 1, 2**31):
        with pytest.raises(IndexError):
            batch.item(index)
        with pytest.raises(IndexError):
            batch.memory(index)
        with pytest.raises(IndexError):
            batch.set_place(index, 0, 0, 0, 0)
    with pytest.raises(IndexError, match="small"):
        batch.memory(0)
    for first, stop in ((-1, 1), (0, 2)):
        with pytest.raises(IndexError):
            batch.publish(first, stop, 1, 0, False)
    del ref


# --- framing ---


def frame_all(batch: Batch, codec: str = "none") -> list[tuple[RecordHeader, bytes]]:
    """Every record that `frame` makes, taken apart by the Python side of the format."""
    compress = None
    if codec != "none":

        def compress(value: memoryview) -> bytes | None:
            pieces = encode(CODECS[codec], value)
            return None if pieces is None else b"".join(pieces)

    records, first = [], 0
    target = aligned_buffer(MIB)
    while first < batch.small:
        target[:] = b"\xff" * len(target)
        stop, used = batch.frame(first, target, CODECS[codec].number, compress)
        assert used % PAGE == 0
        at = 0
        for index in range(first, stop):
            header = RecordHeader.unpack(bytes(target[at : at + HEADER_BYTES]))
            assert (header.entry, header.birth, header.raw) == batch.item(index)
            payload = bytes(target[at + HEADER_BYTES :][: header.stored])
            assert xxh3_64_intdigest(payload) == header.checksum
            length = record_length(header.codec, header.raw, header.stored)
            assert bytes(target[at : at + length]) == (header.pack() + payload).ljust(length, b"\0")
            records.append((header, payload))
            at += length
        assert bytes(target[at:used]) == bytes(used - at)
        assert used - at < PAGE
        assert bytes(target[used:]) == b"\xff" * (len(target) - used), "nothing beyond is touched"
        first = stop
    return records


def test_frames_are_records(store: millpond.Store) -> None:
    rng = random.Random(7)
    refs = [
        store.put(noise(rng.choice([1, 63, 64, 500, 4096, 60_000]) + rng.randrange(50))) for _ in range(300)
    ]
    batch = everything(store)
    records = frame_all(batch)
    assert len(records) == batch.small == 300
    for (header, payload), ref in zip(records, refs, strict=True):
        assert (header.uuid, header.codec) == (store.uuid, 0)
        assert bytes(payload).endswith(bytes(ref.get()))


def test_compressed_frames_are_records(store: millpond.Store) -> None:
    values = [noise(3000), np.zeros(3000, np.uint8), np.zeros(10, np.uint8), np.zeros(60_000, np.uint8)]
    refs = [store.put(value) for value in values]
    batch = everything(store)
    plain, compressed = frame_all(batch), frame_all(batch, "lz4")
    assert [header.codec for header, _ in compressed] == [0, 1, 0, 1]
    for (_, raw), (header, payload) in zip(plain, compressed, strict=True):
        if header.codec:
            target = memoryview(bytearray(header.raw))
            assert decode(CODECS["lz4"], memoryview(payload), target, 0) == (header.stored, header.raw)
            payload = bytes(target)
        assert payload == raw
    del refs


def test_a_buffer_takes_what_fits(store: millpond.Store) -> None:
    refs = [store.put(noise(2000)) for _ in range(10)]
    batch = everything(store)
    length = record_length(0, batch.item(0)[2], batch.item(0)[2])
    for pages in range(1, 7):
        stop, used = batch.frame(0, aligned_buffer(pages * PAGE), 0, None)
        assert stop == min(10, pages * PAGE // length)
        assert used <= pages * PAGE
    assert batch.frame(10, aligned_buffer(PAGE), 0, None) == (10, 0)
    with pytest.raises(ValueError, match="too small"):
        batch.frame(0, memoryview(bytearray(1000)), 0, None)
    with pytest.raises((BufferError, TypeError, ValueError)):
        batch.frame(0, bytes(8192), 0, None)
    del refs


@pytest.mark.parametrize(
    ("compress", "error"), [(lambda value: bytes(len(value) + 1), ValueError), (lambda value: 7, TypeError)]
)
def test_a_codec_that_cheats(store: millpond.Store, compress: object, error: type[Exception]) -> None:
    ref = store.put(noise(2000))
    with pytest.raises(error):
        everything(store).frame(0, aligned_buffer(CALL), 1, compress)  # type: ignore[arg-type]
    del ref


# --- publishing ---


def written(store: millpond.Store, batch: Batch) -> int:
    """An open segment in which all items of the batch claim to be."""
    segment, _ = store.segment_open(0)
    assert store.segment_reserve(segment, 64 * batch.count) == 0
    for index in range(batch.count):
        batch.set_place(index, 64 * index, 64, 17, 0)
    return segment


def test_publish_records_places_and_evicts(store: millpond.Store) -> None:
    refs = [store.put(noise(100_000)) for _ in range(4)]
    batch = everything(store)
    segment = written(store, batch)
    assert batch.publish(0, 1, segment, 0, False) == (1, 0)
    assert batch.publish(0, 3, segment, 0, True) == (2, 2 * batch.nbytes // 4), "each is published once"
    batch.cancel()
    assert [store._state(ref) for ref in refs] == [Code.OK, Code.SPILLED, Code.SPILLED, Code.OK]
    code, place, size = store._place(refs[2])
    assert (code, place) == (Code.SPILLED, (128, 64, 17, segment, 0))
    assert size == batch.item(2)[2]
    store._unpin(refs[2])
    store.segment_close(segment)
    store.delete(refs)


def test_publish_after_death_and_with_a_view(store: millpond.Store) -> None:
    refs = [store.put(noise(100_000)) for _ in range(3)]
    batch = everything(store)
    segment = written(store, batch)
    store.delete(refs[0])
    view = store.get(refs[1])
    assert batch.publish(0, 3, segment, 0, True) == (2, batch.nbytes // 3)
    assert store._state(refs[1]) == Code.OK, "clean, but a view keeps it in memory"
    assert (view == noise(100_000)).all()
    store.segment_close(segment)
    store.delete(refs[1:])
    del view


# --- out and back ---


def restored(store: millpond.Store, reader: SpillReader, ref: ObjectRef) -> Any:
    code, place, size = store._place(ref)
    assert (code, place is not None) == (Code.SPILLED, True)
    code, target = store._restore_begin(ref)
    assert code == Code.OK
    reader.read_into(place, *ref._key, size, target)
    assert store._restore_end(ref, "resident") == Code.OK
    store._unpin(ref)
    return store.get(ref)


@pytest.mark.parametrize("codec", CODECS)
def test_objects_go_to_disk_and_come_back(
    store: millpond.Store, directories: Directories, codec: str
) -> None:
    sizes = [
        1,
        40,
        2000,
        4040,
        8100,
        8130,
        8200,
        65_400,
        65_500,
        65_536,
        100_000,
        MIB,
        CALL - 64,
        CALL,
        CALL + 9,
    ]
    values = [array for size in sizes for array in (noise(size), np.arange(size, dtype=np.uint16) // 50)]
    refs = [store.put(value) for value in values]
    writer = SpillWriter(store, directories, CODECS[codec])
    reader = SpillReader(store, directories)
    report = writer.clean(everything(store), evict=True)
    assert (report.objects, report.error) == (len(values), None)
    assert store._candidates().size == 0
    for _ in range(2):
        for ref, value in zip(refs, values, strict=True):
            assert np.array_equal(restored(store, reader, ref), value)
        again = everything(store)
        assert again.count == 0, "the disk copies are kept"
        store.spill(refs)
    assert report.bytes_written == store.stats().disk_bytes
    writer._segments.roll()
    store.delete(refs)
    sweep_dead(store, directories)
    assert store.stats().disk_bytes == 0
    assert list(Path(directories.paths[0]).iterdir()) == []


def test_a_value_straight_to_disk(store: millpond.Store, directories: Directories) -> None:
    writer, reader = SpillWriter(store, directories), SpillReader(store, directories)
    for size in (1000, 100_000, 9 * MIB):
        value = noise(size)
        model = store.put(value)
        stored = (
            bytes(everything(store).memory(0)) if size >= PAGED_MIN else frame_all(everything(store))[0][1]
        )
        store.delete(model)
        ref = store._draft_bare(len(stored))
        with writer.write_through([stored[:10], memoryview(stored)[10:]], len(stored), *ref._key) as place:
            store._settle(ref, place)
        assert np.array_equal(restored(store, reader, ref), value)
        store.delete(ref)
    writer._segments.roll()
    assert sweep_dead(store, directories) == 2
