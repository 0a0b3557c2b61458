"""Codecs and frames: round trips, what is worth compressing, hostile bytes."""

from __future__ import annotations

import os
import random
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.spill.codec import (
    CODECS,
    FRAME,
    NONE,
    WORTH_MIN,
    Codec,
    CodecError,
    Lz4,
    decode,
    encode,
)

LZ4 = CODECS["lz4"]


def decoded(codec: Codec, payload: bytes, size: int, window: int | None = None) -> bytes:
    """The value, given the payload in windows of at most `window` bytes."""
    target, at, done = memoryview(bytearray(size)), 0, 0
    while done < size:
        used, done = decode(codec, memoryview(payload)[at:][:window], target, done)
        if used == 0:
            raise CodecError("stuck")
        at += used
    assert at == len(payload)
    return bytes(target)


def payload_of(codec: Codec, value: bytes) -> bytes:
    pieces = encode(codec, memoryview(value))
    assert pieces is not None
    return b"".join(pieces)


@pytest.mark.parametrize("size", [WORTH_MIN, 4096, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME + 17])
def test_round_trip(size: int) -> None:
    value = (b"millpond " * (size // 9 + 1))[:size]
    payload = payload_of(LZ4, value)
    assert len(payload) < size / 2
    assert decoded(LZ4, payload, size) == value
    assert decoded(LZ4, payload, size, window=FRAME + 4) == value


def test_frames_that_do_not_shrink_are_stored_as_they_are() -> None:
    noise = os.urandom(FRAME)
    value = bytes(2 * FRAME) + noise + bytes(100) + noise[:50]
    payload = payload_of(LZ4, value)
    assert noise in payload
    assert len(payload) < FRAME + 20_000
    assert decoded(LZ4, payload, len(value)) == value


@pytest.mark.parametrize(
    "value",
    [os.urandom(4096), os.urandom(3 * FRAME), b"x" * (WORTH_MIN - 1), os.urandom(2 * FRAME) + bytes(FRAME)],
)
def test_what_does_not_pay_is_left_alone(value: bytes) -> None:
    assert encode(LZ4, memoryview(value)) is None


def test_the_verdict_falls_early() -> None:
    class Counting(Lz4):
        frames = 0

        def compress(self, frame: memoryview) -> bytes | None:
            self.frames += 1
            return super().compress(frame)

    codec = Counting()
    assert encode(codec, memoryview(os.urandom(8 * FRAME))) is None
    assert codec.frames == 2


def test_the_threshold_is_ten_percent() -> None:
    noise = os.urandom(100_000)
    assert encode(LZ4, memoryview(noise + bytes(10_000))) is None
    assert encode(LZ4, memoryview(noise + bytes(13_000))) is not None


def test_none_compresses_nothing() -> None:
    assert encode(NONE, memoryview(bytes(FRAME))) is None
    assert NONE.compress(memoryview(bytes(100))) is None
    with pytest.raises(CodecError):
        NONE.decompress_into(memoryview(b"x"), memoryview(bytearray(1)))


def test_numbers_are_for_ever() -> None:
    assert {name: codec.number for name, codec in CODECS.items()} == {"none": 0, "lz4": 1}


def test_a_frame_that_is_not_whole_waits_for_more() -> None:
    value = bytes(FRAME) + b"x" * 1000
    payload = payload_of(LZ4, value)
    first = 4 + struct.unpack_from("<I", payload)[0]
    target = memoryview(bytearray(len(value)))
    for cut in (0, 1, 3, 4, first - 1):
        assert decode(LZ4, memoryview(payload)[:cut], target, 0) == (0, 0)
    assert decode(LZ4, memoryview(payload)[: first + 2], target, 0) == (first, FRAME)


@pytest.mark.parametrize(
    "payload",
    [
        struct.pack("<I", 101) + bytes(101),  # longer than the frame
        struct.pack("<I", 0x7FFFFFFF) + bytes(200),
        struct.pack("<I", 0xFFFFFFFF) + bytes(200),
        struct.pack("<I", 0x80000000 | 99) + bytes(99),  # as it is, but shorter
        struct.pack("<I", 0x80000000),
        struct.pack("<I", 50) + os.urandom(50),  # no block
        struct.pack("<I", 0),
        struct.pack("<I", 1) + b"\x00",  # an empty block
    ],
)
def test_hostile_lengths(payload: bytes) -> None:
    target = bytearray(300)
    with pytest.raises(CodecError):
        decode(LZ4, memoryview(payload), memoryview(target)[100:200], 0)
    assert target[:100] == target[200:] == bytes(100), "nothing outside may be touched"


def test_a_block_of_another_length() -> None:
    for length in (99, 101):
        stored = LZ4.compress(memoryview(bytes(length)))
        assert stored is not None
        with pytest.raises(CodecError):
            LZ4.decompress_into(memoryview(stored), memoryview(bytearray(100)))


@given(st.binary(max_size=300), st.integers(1, 2000))
def test_any_bytes_give_a_value_or_the_error(payload: bytes, size: int) -> None:
    target = bytearray(size + 200)
    try:
        used, done = decode(LZ4, memoryview(payload), memoryview(target)[100 : 100 + size], 0)
    except CodecError:
        pass
    else:
        assert 0 <= used <= len(payload)
        assert 0 <= done <= size
    assert target[:100] == target[100 + size :] == bytes(100)


def test_any_damage_to_a_payload_gives_bytes_or_the_error() -> None:
    rng = random.Random(5)
    value = bytes(rng.choices(b"abc", k=5000))
    payload = bytearray(payload_of(LZ4, value))
    for _ in range(2000):
        damaged = bytearray(payload)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        target = bytearray(len(value) + 100)
        with suppress(CodecError):
            decode(LZ4, memoryview(damaged), memoryview(target)[: len(value)], 0)
        assert target[len(value) :] == bytes(100)
