"""Bytes, seconds and paths as people write and read them: "2GiB", "30%", "10min".

Invariants: what cannot be read without guessing is an error that shows what would be understood;
results are exact integers for bytes, floats for seconds.
Not here: what is a sensible limit (eviction/limits.py).
"""

from __future__ import annotations

import math
import operator
import re
from typing import SupportsIndex

__all__ = ["check_seconds", "format_bytes", "format_seconds", "parse_bytes", "parse_seconds", "shortened"]

# A bare letter is binary, as in `ulimit`, Docker and the JVM.
_BYTES = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgtp", start=1):
    _BYTES[_letter] = _BYTES[_letter + "ib"] = 1024**_power
    _BYTES[_letter + "b"] = 1000**_power

_SECONDS = {"": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z%]*)\s*", re.ASCII | re.IGNORECASE)

_BYTES_HELP = 'write a number of bytes, or text like "512MB", "2GiB", "1.5g" or "30%"'
_SECONDS_HELP = 'write a number of seconds, or text like "250ms", "90s", "10min" or "2h"'


def parse_bytes(value: SupportsIndex | float | str, total: int | None = None) -> int:
    """The number of bytes that `value` stands for.

    `value`: bytes as a whole number, or text: a number with an optional unit (KiB, MiB, ... and
    the bare letters k, m, g, t, p are powers of 1024; kB, MB, ... powers of 1000; case is
    ignored), or a percentage of `total` bytes. Fractions of a byte are dropped.
    Raises ValueError when it is negative, malformed, or a percentage without a total, TypeError
    when it is neither a number nor text.
    """
    if isinstance(value, str):
        return _parse_bytes_text(value, total)
    if isinstance(value, bool):
        raise TypeError(f"{value!r} is not a number of bytes: {_BYTES_HELP}")
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError(f"{value!r} is not a whole number of bytes: {_BYTES_HELP}")
        value = int(value)
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{type(value).__name__} is not a number of bytes: {_BYTES_HELP}") from None
    if count < 0:
        raise ValueError(f"{count} bytes is negative: {_BYTES_HELP}")
    return count


def _parse_bytes_text(text: str, total: int | None) -> int:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a number of bytes: {_BYTES_HELP}")
    number, unit = match[1], match[2].lower()
    if unit == "%":
        if total is None:
            raise ValueError(f"{text!r} is a percentage, and there is no total to take it of: {_BYTES_HELP}")
        return _scaled(number, total, 100)
    if unit not in _BYTES:
        raise ValueError(f"{text!r} has the unknown unit {match[2]!r}: {_BYTES_HELP}")
    return _scaled(number, _BYTES[unit], 1)


def _scaled(number: str, factor: int, divisor: int) -> int:
    """floor(number * factor / divisor) in integers: a float would be off by bytes at "7PiB"."""
    whole, _, fraction = number.partition(".")
    return int((whole + fraction) or "0") * factor // (int("1" + "0" * len(fraction)) * divisor)


def parse_seconds(value: float | str) -> float:
    """The number of seconds that `value` stands for: a number, or text with an optional unit
    (us, ms, s, sec, m, min, h).

    Raises ValueError when it is negative, infinite, not a number or malformed, TypeError when it
    is neither a number nor text.
    """
    if isinstance(value, str):
        match = _QUANTITY.fullmatch(value)
        if match is None or match[2].lower() not in _SECONDS:
            raise ValueError(f"{value!r} is not a time: {_SECONDS_HELP}")
        return float(match[1]) * _SECONDS[match[2].lower()]
    if isinstance(value, bool) or not _is_number(value):
        raise TypeError(f"{value!r} is not a time: {_SECONDS_HELP}")
    seconds = float(value)
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{value!r} is not a time of zero or more seconds: {_SECONDS_HELP}")
    return seconds


def check_seconds(option: str, value: object) -> None:
    """Raises TypeError unless `value`, which was passed as `option`, is a number or None."""
    if value is not None and not _is_number(value):
        raise TypeError(f"{option} is {value!r}: pass a number of seconds, or None")


def _is_number(value: object) -> bool:
    return hasattr(value, "__float__")  # NumPy's numbers as well


def format_bytes(count: int) -> str:
    """`count` bytes for a person: "0 B", "1023 B", "1.5 KiB", "2 GiB"; three digits or so."""
    if abs(count) < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        size /= 1024
        # 1023.95 would print as "1024.0": it belongs to the next unit.
        if abs(size) < 1023.95 or unit == "PiB":
            break
    digits = f"{size:.2f}" if abs(size) < 10 else f"{size:.1f}"
    return f"{digits.rstrip('0').rstrip('.')} {unit}"


def format_seconds(seconds: float) -> str:
    """A duration for a person, two or three digits: "250 us", "40 ms", "12.5 s", "3 min", "2 h", "5 d"."""
    if 0 < seconds < 0.001:
        return f"{seconds * 1e6:.3g} us"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    for unit, length in (("min", 60), ("h", 3600)):
        if seconds < 120 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def shortened(path: str, length_max: int) -> str:
    """A long path without its middle."""
    half = (length_max - 5) // 2
    return path if len(path) <= length_max else f"{path[:half]} ... {path[-half:]}"
