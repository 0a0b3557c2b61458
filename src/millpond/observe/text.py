"""Numbers and records as text: sizes, times, JSON.

Not here: tables (tables.py), parsing of sizes and times (millpond.units).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

from millpond.store.info import ObjectInfo, Stats
from millpond.units import format_bytes


def format_seconds(seconds: float) -> str:
    """A duration for a person, two or three digits: "0 ms", "12.5 s", "3 min", "2 h", "5 d"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    for unit, length in (("min", 60), ("h", 3600)):
        if seconds < 120 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def format_limit(limit: int | None) -> str:
    """A limit in bytes, where None is no limit."""
    return "none" if limit is None else format_bytes(limit)


def stats_json(stats: Stats) -> str:
    """One JSON object with the fields of Stats; bytes as integers, no limit as null."""
    return json.dumps(dataclasses.asdict(stats), indent=2)


def objects_json(objects: Iterable[ObjectInfo]) -> str:
    """A JSON array of objects with the fields of ObjectInfo."""
    return json.dumps([dataclasses.asdict(each) for each in objects], indent=2)
