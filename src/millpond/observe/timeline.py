"""A recorded timeline, read again: who spent how long on what.

Not here: recording (millpond.store.recorder), drawing (Perfetto).
"""

from __future__ import annotations

import json
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table
from rich.text import Text

from millpond.observe.tables import plain_table
from millpond.units import format_bytes, format_seconds

_NUMBERS_END = 1 << 63


class Spans(NamedTuple):
    """All spans of one name in one process; times in seconds."""

    process: str
    name: str
    durations: list[float]
    bytes: int


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The events of a timeline, as long as they are whole: the last line of a killed process may not be.

    Raises OSError; ValueError for a file that is no timeline.
    """
    events = list(_events(Path(path).read_text(errors="replace").splitlines()))
    if not events:
        raise ValueError(f"{path} is no timeline: it holds no event")
    return events


def _events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            event = json.loads(line.strip().removesuffix(","))
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and "ph" in event and _is_whole(event):
            yield event


def _is_whole(event: dict[str, Any]) -> bool:
    """Whether what `summary` needs is there, and can be added and printed: the file may be anybody's."""
    if event["ph"] not in ("M", "X"):
        return True
    details = event.get("args")
    if not isinstance(event.get("pid"), int) or not isinstance(details, dict):
        return False
    name = details.get("name") if event["ph"] == "M" else event.get("name")
    numbers = (0, 0) if event["ph"] == "M" else (event.get("dur"), details.get("bytes", 0))
    return (
        isinstance(name, str)
        and name.isprintable()
        and all(isinstance(number, int | float) and 0 <= number < _NUMBERS_END for number in numbers)
    )


def summary(events: Iterable[dict[str, Any]]) -> list[Spans]:
    """The spans by process and name, those with most time first within each process."""
    names: dict[int, str] = {}
    durations: dict[tuple[int, str], list[float]] = defaultdict(list)
    sizes: dict[tuple[int, str], int] = defaultdict(int)
    for event in events:
        if event["ph"] == "M":
            names[event["pid"]] = event["args"]["name"]
        elif event["ph"] == "X":
            key = event["pid"], event["name"]
            durations[key].append(event["dur"] / 1e6)
            sizes[key] += event["args"].get("bytes", 0)
    ordered = sorted(durations, key=lambda key: (key[0], -sum(durations[key])))
    return [
        Spans(f"{names.get(pid, 'process')} {pid}", name, durations[pid, name], sizes[pid, name])
        for pid, name in ordered
    ]


def summary_table(spans: Iterable[Spans]) -> Table:
    """One row per process and kind of span. Spans lie inside others: a get holds its restore."""
    table = plain_table("process", "span", "count", "total", "median", "longest", "bytes", left=("span",))
    last = ""
    for each in spans:
        process, last = ("" if each.process == last else each.process), each.process
        table.add_row(
            Text(process),
            Text(each.name),
            str(len(each.durations)),
            format_seconds(sum(each.durations)),
            format_seconds(statistics.median(each.durations)),
            format_seconds(max(each.durations)),
            format_bytes(each.bytes) if each.bytes else "",
        )
    return table
