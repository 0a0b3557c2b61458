"""The record format: bytes on disk, shapes, and what a header must agree with."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from millpond.spill import record
from millpond.spill.record import (
    HEADER_BYTES,
    OWN_FILE_MIN,
    PAGE,
    PAGED_MIN,
    Place,
    RecordError,
    RecordHeader,
    is_paged,
    padded,
    payload_start,
    record_length,
    verify,
)

UUID = bytes(range(16))
HEADER = RecordHeader(UUID, 7, 12345, 1, 5000, 3000, 0xDEADBEEF)
PLACE = Place(64, padded(64 + 3000, 64), 0xDEADBEEF, 3, 1)


def test_the_bytes_on_disk() -> None:
    packed = HEADER.pack()
    assert len(packed) == HEADER_BYTES
    fields = (
        b"Mp\x01\x01"
        + (7).to_bytes(4, "little")
        + (12345).to_bytes(8, "little")
        + UUID
        + (5000).to_bytes(8, "little")
        + (3000).to_bytes(8, "little")
        + (0xDEADBEEF).to_bytes(8, "little")
    )
    assert packed == fields + xxh3_64_intdigest(fields).to_bytes(8, "little")


@given(
    st.binary(min_size=16, max_size=16),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**56 - 1),
    st.integers(0, 255),
    st.integers(0, 2**63),
    st.integers(0, 2**63),
    st.integers(0, 2**64 - 1),
)
def test_unpack_is_the_inverse_of_pack(
    uuid: bytes, entry: int, birth: int, codec: int, raw: int, stored: int, checksum: int
) -> None:
    header = RecordHeader(uuid, entry, birth, codec, raw, stored, checksum)
    assert RecordHeader.unpack(header.pack()) == header


def test_every_flipped_bit_is_seen() -> None:
    packed = HEADER.pack()
    for bit in range(8 * HEADER_BYTES):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RecordError):
            RecordHeader.unpack(bytes(damaged))


@pytest.mark.parametrize("length", [0, 1, 63, 65, 4096])
def test_other_lengths_are_no_header(length: int) -> None:
    with pytest.raises(RecordError, match=f"{length} bytes"):
        RecordHeader.unpack(HEADER.pack().ljust(length, b"\0")[:length])


def test_verify_gives_the_header() -> None:
    assert verify(HEADER.pack(), UUID, 7, 12345, 5000, PLACE) == HEADER


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"uuid": bytes(16)}, "belongs to store 000"),
        ({"entry": 8}, r"object 8\.12345"),
        ({"birth": 12346}, r"object 7\.12346"),
        ({"codec": 2}, "codec 2 instead of 1"),
        ({"raw": 5001}, "5001 bytes instead of 5000"),
        ({"checksum": 1}, "another payload"),
        ({"stored": 3072}, "3072 stored bytes"),
        ({"stored": 2**64 - 1}, "stored bytes"),
    ],
)
def test_verify_refuses_what_the_table_does_not_say(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        verify(HEADER._replace(**change).pack(), UUID, 7, 12345, 5000, PLACE)


def test_uncompressed_means_as_long_as_the_value() -> None:
    header = HEADER._replace(codec=0)
    place = PLACE._replace(codec=0)
    with pytest.raises(RecordError, match="not compressed"):
        verify(header.pack(), UUID, 7, 12345, 5000, place)


def test_another_version_is_named() -> None:
    fields = bytearray(HEADER.pack()[:56])
    fields[2] = 9
    with pytest.raises(RecordError, match="version 9"):
        RecordHeader.unpack(bytes(fields) + xxh3_64_intdigest(bytes(fields)).to_bytes(8, "little"))


@pytest.mark.parametrize(
    ("codec", "raw", "stored", "paged", "length"),
    [
        (0, 1, 1, False, 128),
        (0, 64, 64, False, 128),
        (0, 65, 65, False, 192),
        (0, PAGED_MIN - 1, PAGED_MIN - 1, False, PAGED_MIN + 64),
        (0, PAGED_MIN, PAGED_MIN, True, PAGED_MIN + PAGE),
        (0, PAGED_MIN + 1, PAGED_MIN + 1, True, PAGED_MIN + 2 * PAGE),
        (1, PAGED_MIN, 100, False, 192),
        (1, OWN_FILE_MIN - 1, 100, False, 192),
        (1, OWN_FILE_MIN, 100, True, 2 * PAGE),
        (0, OWN_FILE_MIN, OWN_FILE_MIN, True, OWN_FILE_MIN + PAGE),
    ],
)
def test_shapes(codec: int, raw: int, stored: int, paged: bool, length: int) -> None:
    assert is_paged(codec, raw) == paged
    assert payload_start(codec, raw) == (PAGE if paged else HEADER_BYTES)
    assert record_length(codec, raw, stored) == length


@given(st.integers(0, 2**50), st.sampled_from([64, 4096]))
def test_padded(count: int, unit: int) -> None:
    assert padded(count, unit) % unit == 0
    assert 0 <= padded(count, unit) - count < unit


def test_the_magic_is_text() -> None:
    assert record.MAGIC.to_bytes(2, "little") == b"Mp"
