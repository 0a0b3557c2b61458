"""A recorded timeline, which people hand around: `millpond timeline FILE` prints a table of it.

Right: a ValueError that says so, or a table.
"""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

from rich.console import Console

from millpond.observe import timeline

_EVENT: dict[str, object] = {"ph": "X", "pid": 7, "ts": 1, "dur": 2, "name": "get", "args": {"bytes": 80}}
_VALUES = (None, -1, 1e308, 1 << 80, "text", "[/b]", [], {}, {"name": 1}, {"bytes": "x"}, True, "\ud800")


class TimelineFile:
    """See above."""

    name = "timeline-file"
    most = 4 << 10

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self._path = Path(self._directory.name, "timeline")
        self._printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
        self._console = Console(file=self._printed, width=200)

    def close(self) -> None:
        self._directory.cleanup()

    def seeds(self) -> dict[str, bytes]:
        process = {"ph": "M", "pid": 7, "name": "process_name", "args": {"name": "python"}}
        span = {"ph": "X", "pid": 7, "tid": 7, "ts": 1.5, "dur": 20.25, "name": "get", "args": {"bytes": 80}}
        lines = [json.dumps(each).encode() + b",\n" for each in (process, span, span)]
        return {"two-spans": b"[\n" + b"".join(lines)}

    def mend(self, data: bytes) -> bytes:
        """A value of one of the events becomes another: the JSON stays whole."""
        number = int.from_bytes(data[-4:], "little")
        event = dict(_EVENT)
        event["ph"] = "XM"[number % 2]
        keys = sorted(event)
        event[keys[number // 2 % len(keys)]] = _VALUES[number // 16 % len(_VALUES)]
        event[keys[number // 256 % len(keys)]] = _VALUES[number // 4096 % len(_VALUES)]
        return b"[\n" + json.dumps(event).encode() + b",\n" + data

    def run(self, data: bytes) -> str:
        self._path.write_bytes(data)
        try:
            spans = timeline.summary(timeline.read(self._path))
        except ValueError:
            return "no timeline"
        self._console.print(timeline.summary_table(spans))
        self._printed.buffer.truncate(0)
        return f"{'some' if spans else 'no'} spans"
