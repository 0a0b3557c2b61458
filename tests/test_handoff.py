"""Pickled refs: their encoding, damage, and the message when they come too late."""

from __future__ import annotations

import struct
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.errors import ObjectNotFoundError
from millpond.refcount.handoff import HANDOFF_BYTES, HandOff, boottime_ns, has_lapsed, lapsed, pack, unpack

BOOT = bytes(range(16))
EXAMPLE = HandOff(bytes.fromhex("0123456789abcdef" * 2), 7, 2**56 - 1, 3, 2**64 - 1, 5_000_000_000, BOOT)

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
BYTES16 = st.binary(min_size=16, max_size=16)


@given(st.builds(HandOff, BYTES16, U32, U64, U32, U64, U64, BYTES16))
def test_what_is_packed_comes_back(handoff: HandOff) -> None:
    data = pack(handoff)
    assert len(data) == HANDOFF_BYTES < 120
    assert unpack(data) == handoff


def test_the_bytes_are_the_documented_ones() -> None:
    data = pack(HandOff(b"S" * 16, 1, 2, 3, 4, 5, b"B" * 16))
    expected = b"mpnd" + struct.pack("<IIIQQQ", 1, 1, 3, 2, 4, 5) + b"S" * 16 + b"B" * 16
    assert data[:-4] == expected


def test_every_flipped_bit_is_noticed() -> None:
    for bit in range(8 * HANDOFF_BYTES):
        data = bytearray(pack(EXAMPLE))
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ObjectNotFoundError, match=r"not a pickled ref|damaged|another version"):
            unpack(bytes(data))


@pytest.mark.parametrize(
    "data", [b"", b"mpnd", pack(EXAMPLE)[:-1], pack(EXAMPLE) + b"x", b"x" * HANDOFF_BYTES]
)
def test_what_is_no_handoff_says_so(data: bytes) -> None:
    with pytest.raises(ObjectNotFoundError, match=f"^{len(data)} bytes that are not a pickled ref"):
        unpack(data)


def test_another_version_is_named() -> None:
    data = bytearray(pack(EXAMPLE))
    data[4] = 9
    with pytest.raises(ObjectNotFoundError, match=r"format 9, this one reads 1"):
        unpack(bytes(data))


@pytest.mark.parametrize(
    ("changes", "now", "expected"),
    [
        ({}, EXAMPLE.expiry - 1, False),
        ({}, EXAMPLE.expiry, True),
        ({"expiry": 0}, 2**63, False),
        ({"expiry": 0, "boot_id": bytes(16)}, 1, True),
        ({"boot_id": bytes(16)}, 1, True),
    ],
)
def test_when_a_handoff_lapses(changes: dict[str, Any], now: int, expected: bool) -> None:
    assert has_lapsed(EXAMPLE._replace(**changes), BOOT, now) is expected


@pytest.mark.parametrize(
    ("late_s", "when"), [(0, "0.0 s ago"), (1.5, "1.5 s ago"), (300, "5 min ago"), (9000, "2.5 h ago")]
)
def test_a_lapsed_handoff_says_when_and_what_to_do(late_s: float, when: str) -> None:
    text = str(lapsed(EXAMPLE, BOOT, EXAMPLE.expiry + int(late_s * 1e9)))
    assert f"object 7 lapsed {when}" in text and "handoff_timeout" in text


def test_a_handoff_from_before_a_restart() -> None:
    assert "machine was restarted" in str(lapsed(EXAMPLE, bytes(16), 0))


def test_the_clock_is_the_one_that_counts_sleep() -> None:
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert before <= boottime_ns() <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
