"""Bytes and seconds as people write them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.units import format_bytes, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        (123, 123),
        (np.int64(7), 7),
        (2e9, 2_000_000_000),
        ("0", 0),
        ("123", 123),
        ("12b", 12),
        ("1k", 1024),
        ("1KiB", 1024),
        ("1kb", 1000),
        ("2GiB", 2 << 30),
        (" 2 gib ", 2 << 30),
        ("512MB", 512_000_000),
        ("1.5g", 3 << 29),
        (".5MiB", 1 << 19),
        ("3.TiB", 3 << 40),
        ("0.1KiB", 102),
        ("7.000000000000001PiB", 7 * 2**50 + 1),
    ],
)
def test_parse_bytes(value: Any, expected: int) -> None:
    result = parse_bytes(value)
    assert result == expected
    assert type(result) is int


@pytest.mark.parametrize(("text", "expected"), [("30%", 300), ("0.25 %", 2), ("100%", 1000), ("250%", 2500)])
def test_percentage_of_a_total(text: str, expected: int) -> None:
    assert parse_bytes(text, total=1000) == expected


def test_percentage_of_a_large_total_is_exact() -> None:
    assert parse_bytes("100%", total=2**62 + 1) == 2**62 + 1


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "''"),
        ("lots", "'lots'"),
        ("-1", "'-1'"),
        ("1 2", "'1 2'"),
        ("1e9", "'1e9'"),
        ("2XB", "'XB'"),
        ("\u0662GiB", "GiB"),
        ("1%B", "'%B'"),
        ("30%", "no total"),
        (-5, "-5"),
        (1.5, "1.5"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_unreadable_bytes_say_what_would_be_understood(value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=r'"2GiB"') as caught:
        parse_bytes(value)
    assert says in str(caught.value)


@pytest.mark.parametrize("value", [None, True, [1], b"2GiB", {}])
def test_bytes_of_a_wrong_type(value: Any) -> None:
    with pytest.raises(TypeError, match=r'"2GiB"'):
        parse_bytes(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0.0), (1.5, 1.5), ("90", 90.0), ("90s", 90.0), ("250ms", 0.25), ("10 min", 600.0), ("2H", 7200.0)],
)
def test_parse_seconds(value: Any, expected: float) -> None:
    assert parse_seconds(value) == pytest.approx(expected)
    assert type(parse_seconds(value)) is float


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "", "soon", "3 days", "-1s", "5%"])
def test_unreadable_seconds(value: Any) -> None:
    with pytest.raises(ValueError, match=r'"250ms"'):
        parse_seconds(value)


@pytest.mark.parametrize("value", [None, True, [1]])
def test_seconds_of_a_wrong_type(value: Any) -> None:
    with pytest.raises(TypeError, match=r'"250ms"'):
        parse_seconds(value)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (10 * 1024 + 100, "10.1 KiB"),
        (1024 * 1024 - 1, "1 MiB"),
        (2 << 30, "2 GiB"),
        (-(3 << 20), "-3 MiB"),
        (5000 << 50, "5000 PiB"),
    ],
)
def test_format_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


@given(st.integers(0, 2**60))
def test_format_and_parse_agree_within_rounding(count: int) -> None:
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=6e-3)
