"""Codecs and frames: every codec keeps the contract, what is worth compressing, hostile bytes."""

from __future__ import annotations

import os
import random
import struct
import threading
import zlib
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_digest

from millpond.spill import codec as codec_module
from millpond.spill import frames
from millpond.spill.codec import (
    CODECS,
    NONE,
    Codec,
    CodecError,
    CodecFailure,
    Lz4,
    ShuffledLz4,
    compress,
    decompress_into,
    known_codec,
    number_of,
    register_codec,
)
from millpond.spill.frames import FRAME, WORTH_MIN, decode, encode, spread

LZ4 = CODECS["lz4"]


class Zlib:
    """A user's codec."""

    name = "zlib"
    number = 200

    def compress(self, frame: memoryview) -> bytes | None:
        return zlib.compress(frame, 1)

    def decompress_into(self, stored: memoryview, frame: memoryview) -> None:
        frame[:] = zlib.decompress(stored)


class Broken(Zlib):
    """A user's codec that does everything wrong."""

    name = "broken"
    number = 201

    def compress(self, frame: memoryview) -> Any:
        return {0: b"x" * len(frame), 1: "text", 2: None}[len(frame) % 4]  # or a KeyError


ALL = [Lz4(), ShuffledLz4(), ShuffledLz4(2), ShuffledLz4(8), ShuffledLz4(7), Zlib()]
NAMES = [f"{codec.name}-{getattr(codec, '_item_bytes', '')}" for codec in ALL]
every_codec = pytest.mark.parametrize("codec", ALL, ids=NAMES)


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


@every_codec
@pytest.mark.parametrize(
    "size", [WORTH_MIN, WORTH_MIN + 1, 4096, FRAME - 1, FRAME, FRAME + 1, 3 * FRAME + 17, 11 * FRAME + 5]
)
def test_round_trip(codec: Codec, size: int) -> None:
    value = (b"millpond " * (size // 9 + 1))[:size]
    payload = payload_of(codec, value)
    assert len(payload) < size / 2
    assert decoded(codec, payload, size) == value
    assert decoded(codec, payload, size, window=FRAME + 4) == value


@every_codec
def test_single_frames_of_any_length(codec: Codec) -> None:
    for size in [*range(70), 255, 256, 257, 5003]:
        value = bytes(i // 9 & 255 for i in range(size))
        stored = codec.compress(memoryview(value))
        if stored is None:
            continue
        target = bytearray(b"\xee" * (size + 20))
        codec.decompress_into(memoryview(stored), memoryview(target)[10 : 10 + size])
        assert target == b"\xee" * 10 + value + b"\xee" * 10


@pytest.mark.parametrize("item", [2, 4, 8])
def test_shuffling_makes_near_numbers_short(item: int) -> None:
    numbers = np.sort(np.random.default_rng(1).integers(0, 1 << min(8 * item - 2, 40), 50_000)).astype(
        f"i{item}"
    )
    value = numbers.tobytes()
    assert len(payload_of(ShuffledLz4(item), value)) < 0.8 * len(compress_plainly(value))


def compress_plainly(value: bytes) -> bytes:
    pieces = encode(LZ4, memoryview(value))
    return value if pieces is None else b"".join(pieces)


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
    assert {name: codec.number for name, codec in CODECS.items()} == {"none": 0, "lz4": 1, "lz4+shuffle": 2}
    assert number_of("auto") == 256


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


@every_codec
def test_any_damage_to_a_payload_gives_bytes_or_the_error(codec: Codec) -> None:
    rng = random.Random(5)
    value = bytes(rng.choices(b"abc", k=5000))
    payload = bytearray(payload_of(codec, value))
    for _ in range(1000):
        damaged = bytearray(payload)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        target = bytearray(len(value) + 100)
        with suppress(CodecError, CodecFailure):
            decode(codec, memoryview(damaged), memoryview(target)[: len(value)], 0)
        assert target[len(value) :] == bytes(100)


# --- the codecs of users ---


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(codec_module, "_by_number", dict(codec_module._by_number))
    monkeypatch.setattr(codec_module, "_complained", set())


@pytest.mark.usefixtures("registry")
def test_registering() -> None:
    first, second = Zlib(), Zlib()
    register_codec(first)
    register_codec(second)
    assert known_codec(200) is second
    assert number_of("zlib") == 200
    other = Zlib()
    other.name = "zlib2"  # type: ignore[misc]
    with pytest.raises(ValueError, match="number 200 of codec 'zlib2' is taken by 'zlib'"):
        register_codec(other)
    other.number = 202  # type: ignore[misc]
    register_codec(other)
    for name, number in (
        ("zlib", 203),
        ("lz4", 203),
        ("auto", 203),
        ("new", 127),
        ("new", 256),
        ("new", "1"),
    ):
        other.name, other.number = name, number  # type: ignore[misc,assignment]
        with pytest.raises(ValueError, match=r"number|name"):
            register_codec(other)
    with pytest.raises(TypeError, match="is no codec"):
        register_codec("zlib")  # type: ignore[arg-type]


def test_names() -> None:
    for bad in ("", "LZ4", "lz4+shuffle", "zip"):
        with pytest.raises(ValueError, match=r"choose one of none, lz4, .*auto, or a Codec"):
            number_of(bad)
    with pytest.raises(TypeError):
        number_of(3)  # type: ignore[arg-type]


@pytest.mark.usefixtures("registry")
def test_a_codec_that_fails_costs_nothing_but_space(caplog: pytest.LogCaptureFixture) -> None:
    broken = Broken()
    for size in (4000, 4001, 4002, 4003):
        assert compress(broken, memoryview(bytes(size))) is None
    assert compress(broken, memoryview(bytes(4003))) is None
    assert len(caplog.records) == 1, "said once"
    assert "compress returned str, not bytes or None" in caplog.text
    assert encode(broken, memoryview(bytes(4001))) is None


def stored_by(codec: Codec, value: bytes) -> memoryview:
    stored = compress(codec, memoryview(value))
    assert stored is not None
    return memoryview(stored)


def test_what_a_users_codec_raises_is_kept_apart() -> None:
    damaged = bytes(stored_by(Zlib(), bytes(100)))[:-3]
    what = rf"codec 'zlib' \(200\) failed on a frame of 100 bytes, stored in {len(damaged) - 8}: error: "
    with pytest.raises(CodecFailure, match=what):
        decompress_into(Zlib(), memoryview(damaged), memoryview(bytearray(100)))


@pytest.mark.usefixtures("registry")
def test_what_a_users_codec_has_compressed_bears_the_checksum_of_its_value() -> None:
    value = b"spill" * 100
    stored = stored_by(Zlib(), value)
    assert stored[:8] == xxh3_64_digest(value)
    assert zlib.decompress(stored[8:]) == value
    for length in range(8):
        with pytest.raises(CodecError, match="lacks its checksum"):
            decompress_into(Zlib(), stored[:length], memoryview(bytearray(500)))


@pytest.mark.usefixtures("registry")
def test_a_checksum_makes_no_frame_longer() -> None:
    class Least(Zlib):
        """Saves as many bytes as it is told."""

        def __init__(self, saves: int) -> None:
            self.saves = saves

        def compress(self, frame: memoryview) -> bytes | None:
            return bytes(len(frame) - self.saves)

    assert compress(Least(8), memoryview(bytes(1000))) is None
    assert len(stored_by(Least(9), bytes(1000))) == 999


# --- lanes ---


def test_all_is_done_in_order_whatever_the_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    for lanes in (1, 2, 7):
        monkeypatch.setattr(frames, "LANES", lanes)
        for count in (0, 1, 3, 50):
            assert spread(lambda i: i * i, range(count)) == [i * i for i in range(count)]


@pytest.mark.parametrize("lanes", [1, 3])
def test_the_error_of_a_lane_is_raised(monkeypatch: pytest.MonkeyPatch, lanes: int) -> None:
    monkeypatch.setattr(frames, "LANES", lanes)
    for bad in (0, 5, 19):
        with pytest.raises(ZeroDivisionError):
            spread(lambda i, bad=bad: 1 // (i - bad), range(20))
    assert threading.active_count() == 1 or not [
        thread for thread in threading.enumerate() if thread.name == "millpond-disk"
    ]
