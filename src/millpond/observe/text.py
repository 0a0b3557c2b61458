"""Numbers and records as text: sizes, times, JSON.

Not here: tables (tables.py), parsing of sizes and times (millpond.units).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

from millpond.store.info import ObjectInfo, Stats
from millpond.units import format_bytes


def format_limit(limit: int | None) -> str:
    """A limit in bytes, where None is no limit."""
    return "none" if limit is None else format_bytes(limit)


def stats_json(stats: Stats) -> str:
    """One JSON object with the fields and properties of Stats; bytes as integers, no limit as null."""
    properties = {"live_bytes": stats.live_bytes, "over_limit": stats.over_limit}
    return json.dumps({**dataclasses.asdict(stats), **properties}, indent=2)


def objects_json(objects: Iterable[ObjectInfo]) -> str:
    """A JSON array of objects with the fields of ObjectInfo."""
    return json.dumps([dataclasses.asdict(each) for each in objects], indent=2)
