"""compression="auto": the rule, the disk's speed, samples, and that whatever is chosen comes back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.hot import item_bytes
from millpond.spill import auto
from millpond.spill.auto import Auto, DiskSpeed, gain, pays, try_on
from millpond.spill.codec import NONE, ShuffledLz4
from millpond.spill.frames import FRAME, encode
from ponds import Pond
from test_spill_codec import decoded

MB, GB = 1e6, 1e9
MIB = 1 << 20


def stored_array(array: np.ndarray) -> memoryview:
    """As the store keeps it: 16 bytes of head, the shape, the data at a multiple of 64."""
    head = bytes([1, array.ndim, ord("C"), array.dtype.num]) + bytes(12)
    head += np.array(array.shape, "i8").tobytes()
    return memoryview(head + bytes(-len(head) % 64) + array.tobytes())


IDS = np.sort(np.random.default_rng(0).integers(0, 1 << 40, MIB // 4))
NOISE = np.random.default_rng(0).integers(0, 1 << 63, MIB // 4)


# --- the rule ---


@pytest.mark.parametrize(
    ("rate", "ratio", "disk", "answer"),
    [
        (1000 * MB, 2.0, 400 * MB, True),
        (1000 * MB, 2.0, 499 * MB, True),  # the border is at W = C (1 - 1/r)
        (1000 * MB, 2.0, 501 * MB, False),
        (1000 * MB, 1.19, 1 * MB, False),  # hardly shorter
        (1000 * MB, 1.0, 1 * MB, False),
        (656 * MB, 1.86, 290 * MB, True),  # pickled dicts, lz4
        (656 * MB, 1.86, 310 * MB, False),
        (3100 * MB, 4.09, 2300 * MB, True),  # sorted ids, lz4 and shuffle
        (3100 * MB, 4.09, 2400 * MB, False),
    ],
)
def test_the_rule(rate: float, ratio: float, disk: float, answer: bool) -> None:
    assert pays(rate, ratio, disk) is answer


@given(st.floats(1e6, 1e11), st.floats(1.2, 100), st.floats(1e6, 1e11))
def test_it_pays_where_it_gains(rate: float, ratio: float, disk: float) -> None:
    if abs(gain(rate, ratio, disk) - 1) > 1e-9:
        assert pays(rate, ratio, disk) == (gain(rate, ratio, disk) > 1)
    assert pays(rate * 2, ratio, disk) >= pays(rate, ratio, disk)
    assert pays(rate, ratio * 2, disk) >= pays(rate, ratio, disk)
    assert pays(rate, ratio, disk / 2) >= pays(rate, ratio, disk)


# --- the disk's speed ---


def test_it_is_unknown_at_first() -> None:
    speed = DiskSpeed()
    assert speed.rate is None
    speed.note(100_000, 10.0)
    speed.note(3 << 20, 1.0)
    assert speed.rate is None
    speed.note(2 << 20, 1.0)
    assert speed.rate == pytest.approx((5 << 20) / 2, rel=0.01)


def test_it_follows_the_disk() -> None:
    speed = DiskSpeed()
    for _ in range(100):
        speed.note(8 << 20, (8 << 20) / (2 * GB))
    assert speed.rate == pytest.approx(2 * GB)
    for _ in range(400):
        speed.note(8 << 20, (8 << 20) / (100 * MB))
    assert speed.rate == pytest.approx(100 * MB, rel=0.01)
    speed.note(0, 3600)
    assert speed.rate < MB, "waits count"


# --- samples and choices ---


def test_items() -> None:
    assert item_bytes(stored_array(IDS)) == 8
    assert item_bytes(stored_array(IDS.astype("f4"))) == 4
    assert item_bytes(stored_array(IDS.astype("?"))) == 1
    assert item_bytes(bytes([2, 0, 0, 0, 3, 0, 0, 0]) + bytes(8)) == 8, "a pickle with buffers"
    assert item_bytes(bytes([2]) + bytes(15)) == 1
    assert item_bytes(bytes([3]) + bytes(15)) == 1
    assert item_bytes(b"") == item_bytes(bytes(15)) == 1


@given(st.binary(min_size=16, max_size=16))
def test_items_of_anything(head: bytes) -> None:
    assert 1 <= item_bytes(head) <= 255


def test_samples() -> None:
    ids = stored_array(IDS)
    plain, shuffled = try_on(ids, 1), try_on(ids, 8)
    assert 1 < plain.ratio < shuffled.ratio
    assert shuffled.rate > 0
    assert try_on(stored_array(NOISE), 8).ratio == 1.0
    assert try_on(memoryview(b"x"), 1).ratio == 1.0


def measured(rate: float) -> DiskSpeed:
    speed = DiskSpeed()
    speed.note(64 << 20, (64 << 20) / rate)
    return speed


def test_nothing_is_compressed_before_the_disk_is_known() -> None:
    assert Auto(DiskSpeed()).for_value(stored_array(IDS)) is None


def test_a_slow_disk_a_fast_one_and_noise() -> None:
    slow, fast = Auto(measured(1 * MB)), Auto(measured(1000 * GB))
    chosen = slow.for_value(stored_array(IDS))
    assert isinstance(chosen, ShuffledLz4)
    assert chosen._item_bytes == 8
    assert fast.for_value(stored_array(IDS)) is None
    assert slow.for_value(stored_array(NOISE)) is None
    text = slow.for_value(memoryview(b"some words, and again some words. " * 10_000))
    assert isinstance(text, ShuffledLz4)
    assert text._item_bytes == 1


def test_the_choice_comes_back() -> None:
    codec = Auto(measured(1 * MB))
    for value in (stored_array(IDS), memoryview(b"some words " * 200), memoryview(bytes(3 * FRAME + 5))):
        pieces = encode(codec, value)
        assert pieces is not None
        assert decoded(ShuffledLz4(), b"".join(pieces), len(value)) == value
    assert encode(codec, stored_array(NOISE)) is None


def test_small_values_are_not_sampled_each(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(auto, "try_on", lambda *args: calls.append(args) or try_on(*args))
    codec = Auto(measured(1 * MB))
    chosen = [codec.for_value(memoryview(b"some words " * 100)) for _ in range(100)]
    assert all(chosen)
    assert len(calls) == -(-100 // auto.SAMPLED_EACH)


# --- in a store ---


def values() -> list[Any]:
    dice = random.Random(4)
    found: list[Any] = [{"i": i, "words": dice.choices(["mill", "pond"], k=300)} for i in range(50)]
    found += [IDS, IDS.reshape(256, -1), np.asfortranarray(IDS.reshape(256, -1)), NOISE, IDS.astype("c16")]
    return [*found, np.zeros(3 * MIB), [IDS, NOISE], bytes(100), b"", 3]


def same(one: Any, other: Any) -> bool:
    if isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return np.array_equal(one, other) if isinstance(other, np.ndarray) else one == other


@pytest.mark.parametrize("rate", [1 * MB, 1000 * GB])
def test_whatever_is_chosen_comes_back(pond: Pond, monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    store = pond.store("128MiB", compression="auto")
    monkeypatch.setattr(DiskSpeed, "rate", rate)
    expected = values()
    refs = [store.put(value) for value in expected]
    store.spill()
    payload = sum(ref.size for ref in refs)
    assert (store.stats().disk_bytes < 0.6 * payload) == (rate == 1 * MB)
    assert all(map(same, store.get(refs), expected))
    store.spill()
    assert all(same(store.get(ref), value) for ref, value in zip(refs, expected, strict=True))


def test_it_may_be_changed_at_any_time(pond: Pond, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiskSpeed, "rate", 1 * MB)
    store = pond.store("128MiB")
    assert store._writer is not None
    refs = []
    for compression in ("auto", "none", "lz4", "auto"):
        store.configure(compression=compression)
        refs.append(store.put(IDS))
        store.spill()
    assert isinstance(store._writer.codec, Auto)
    assert all(np.array_equal(value, IDS) for value in store.get(refs))
    store.configure(memory_limit="64MiB")
    assert isinstance(store._writer.codec, Auto), "what is not named stays"
    store.configure(compression="none")
    assert store._writer.codec is NONE
    with pytest.raises(ValueError, match="choose one of none, lz4"):
        store.configure(compression="zip")


def test_writes_are_measured(pond: Pond) -> None:
    store = pond.store("128MiB", compression="auto")
    assert store._writer is not None
    ref = store.put(np.random.default_rng(0).bytes(20 * MIB))
    store.spill()
    rate = store._writer._segments.speed.rate
    assert rate is not None
    assert 1 * MB < rate < 1000 * GB
    del ref
