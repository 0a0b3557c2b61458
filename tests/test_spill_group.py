"""How records lie in one call: places, pages, and zeros everywhere else."""

from __future__ import annotations

import random

import pytest
from xxhash import xxh3_64_intdigest

from millpond.spill.group import Group
from millpond.spill.record import (
    HEADER_BYTES,
    PAGE,
    PAGED_MIN,
    RecordHeader,
    is_paged,
    payload_start,
    record_length,
)
from spill_fakes import FakeBatch, FakeTable

CALL = 8 << 20


class Collected:
    """A group over dirty memory, and what was put into it."""

    def __init__(self, values: list[bytes]) -> None:
        self.table = FakeTable()
        self.batch = FakeBatch(self.table, values)
        self.group = Group()
        self.dirty()

    def dirty(self) -> None:
        self.group.bounce[:] = b"\xff" * len(self.group.bounce)
        for number in range(CALL // PAGED_MIN):
            self.group.page_pair(number)[1][:] = b"\xff" * PAGE

    def add(self, index: int, payload: bytes | None) -> None:
        """An item that is not small: as it is, or as `payload`."""
        entry, birth, size = self.batch.item(index)
        stored = self.batch.memory(index) if payload is None else payload
        header = RecordHeader(
            self.table.uuid,
            entry,
            birth,
            int(payload is not None),
            size,
            len(stored),
            xxh3_64_intdigest(stored),
        )
        assert self.group.fits(record_length(header.codec, size, len(stored)))
        if payload is None:
            self.group.add_paged(self.batch, index, header, self.batch.memory(index))
        else:
            self.group.add_packed(self.batch, index, header, payload)

    def check(self) -> None:
        """Every record is where its place says, and there is nothing else."""
        buffers = self.group.finish()
        assert all(len(buffer) % PAGE == 0 for buffer in buffers)
        pages = bytearray(b"".join(buffers))
        assert len(pages) == self.group.nbytes
        segment, _ = self.table.segment_open(0)
        assert self.table.segment_reserve(segment, len(pages)) == 0
        for first, stop, base in self.group.runs:
            self.batch.publish(first, stop, segment, base, False)
        for (entry, birth), place in self.table.places.items():
            header = RecordHeader.unpack(bytes(pages[place.offset :][:HEADER_BYTES]))
            assert (header.entry, header.birth, header.codec) == (entry, birth, place.codec)
            start = place.offset + payload_start(header.codec, header.raw)
            assert (
                xxh3_64_intdigest(pages[start : start + header.stored]) == place.checksum == header.checksum
            )
            assert place.length == record_length(header.codec, header.raw, header.stored)
            assert place.offset % (PAGE if is_paged(header.codec, header.raw) else 64) == 0
            pages[place.offset : place.offset + HEADER_BYTES] = bytes(HEADER_BYTES)
            pages[start : start + header.stored] = bytes(header.stored)
        assert not any(pages), "something that is part of no record"


def large(count: int, seed: int) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(rng.randrange(PAGED_MIN, 3 * PAGED_MIN)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_records_of_all_shapes(seed: int) -> None:
    rng = random.Random(seed)
    small = [rng.randbytes(rng.randrange(1, 9000)) for _ in range(40)]
    it = Collected(small + large(20, seed))
    assert it.group.add_small(it.batch, 0, 0, None) == 40
    for index in range(40, 60):
        it.add(index, rng.randbytes(rng.randrange(1, 60_000)) if rng.random() < 0.5 else None)
    it.check()


def test_a_group_is_used_again(seed: int = 1) -> None:
    it = Collected(large(6, seed))
    it.add(0, None)
    it.add(1, b"x" * 5000)
    it.check()
    it.group.clear()
    it.dirty()
    it.table.places.clear()
    it.add(2, b"y" * 700)
    it.add(3, None)
    it.check()


def test_small_ones_fill_a_call() -> None:
    it = Collected([b"v" * 60_000] * 200)
    stop = it.group.add_small(it.batch, 0, 0, None)
    assert stop == CALL // record_length(0, 60_000, 60_000)
    assert not it.group.fits(HEADER_BYTES + PAGED_MIN)
    it.check()


def test_what_fits() -> None:
    it = Collected(large(200, 2))
    assert it.group.fits(CALL + PAGE), "into an empty one everything goes"
    index = 0
    while it.group.fits(PAGE + 3 * PAGED_MIN):
        it.add(index, None)
        index += 1
    assert 0 < CALL - it.group.nbytes < PAGE + 3 * PAGED_MIN
    it.check()
