"""One look at a store as `millpond top` draws it: memory, rates, members, the objects that matter.

Invariants: a frame is drawn from two looks and nothing else, so that every figure in it is of one moment and
every rate of one interval; who looks on is not in the picture; a frame fits the height that it is given.
Not here: when to look, and the terminal (millpond.cli.top).
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass, field

import psutil
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from millpond import MillpondError, ObjectInfo, Stats, Store
from millpond.hot import load_contained
from millpond.observe.tables import plain_table
from millpond.observe.text import format_limit
from millpond.refcount.holders import Holding
from millpond.units import format_bytes, format_seconds, shortened

ASKED_MAX = 200
"""Pinned objects, the largest, whose pinning members are asked for."""
HISTORY = 30
BARS = " ▁▂▃▄▅▆▇█"
MEMORY_WIDTH = 50
PROGRAM_WIDTH = 60
ID_WIDTH = 16
"""So that the columns of all tables of objects stand below each other."""


@dataclass(frozen=True)
class Look:
    """What one look at a store has found."""

    at: float
    """Seconds of the monotonic clock."""
    stats: Stats
    members: list[Holding]
    objects: list[ObjectInfo]
    """Largest first."""
    pinned_by: dict[str, tuple[Holding, ...]]
    """Object id to the members with a view of it, for the largest pinned ones."""


def look(store: Store) -> Look:
    """Looks at a store from a member of it, which leaves itself out."""
    me = os.getpid()
    objects = sorted(store.objects(), key=lambda info: -info.size)
    pinned = [info for info in objects if info.pins][:ASKED_MAX]
    return Look(
        at=time.monotonic(),
        stats=store.stats(),
        members=[Holding(pid, _program(pid) or command) for _, pid, command in store._members() if pid != me],
        objects=objects,
        pinned_by={info.id: _pinning(store, info) for info in pinned},
    )


def _program(pid: int) -> str:
    """How a process was started, in short; empty if it has gone or is not ours to ask."""
    try:
        process = psutil.Process(pid)
        words = process.cmdline()
        if "--multiprocessing-fork" in words:  # the rest of its words is the same for all such children
            return f"{os.path.basename(words[0])}, child of {process.ppid()}"
    except psutil.Error:
        return ""
    return shortened(" ".join([os.path.basename(words[0]), *words[1:]]), PROGRAM_WIDTH) if words else ""


def _pinning(store: Store, info: ObjectInfo) -> tuple[Holding, ...]:
    entry, birth = (int(part, 16) for part in info.id.split("-")[1:])
    try:
        return store.refs(load_contained(store.uuid, entry, birth)).pins
    except MillpondError:
        return ()  # it went meanwhile


@dataclass
class Rates:
    """Bytes a second since the look before, and a short history of them."""

    spilled: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    restored: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def add(self, before: Look, now: Look) -> None:
        """Takes the interval between two looks in."""
        seconds = max(now.at - before.at, 1e-9)
        for rates, name in ((self.spilled, "spilled_bytes_total"), (self.restored, "restored_bytes_total")):
            rates.append((getattr(now.stats, name) - getattr(before.stats, name)) / seconds)


def frame(title: str, now: Look, rates: Rates, height: int) -> RenderableType:
    """The picture, at most `height` lines high as far as the objects can be left out."""
    members = _members(now)
    left = height - members.row_count - 16
    rows = max(3, left // 2)
    oldest = sorted(now.objects, key=lambda info: -info.age_s)
    return Group(
        Text.assemble((title, "bold"), f"   {_counts(now)}"),
        Text(),
        *_bars(now.stats, rates),
        Text(),
        members,
        Text(),
        _objects("largest objects", now, now.objects[:rows]),
        Text(),
        _objects("oldest objects", now, oldest[:rows]),
    )


def _counts(now: Look) -> str:
    s = now.stats
    in_memory = s.resident_objects + s.clean_objects
    parts = [f"{s.objects} objects", f"{in_memory} in memory", f"{s.spilled_objects} on disk"]
    parts += [f"{s.draft_objects} drafts"] if s.draft_objects else []
    parts += [f"{s.lost_objects} lost"] if s.lost_objects else []
    return ", ".join(parts)


def _bars(stats: Stats, rates: Rates) -> list[Text]:
    return [
        Text.assemble(("memory   ", "bold"), _memory_bar(stats)),
        Text.assemble(
            "         ",
            ("█", "red"),
            f" pinned {format_bytes(stats.pinned_bytes)}   ",
            ("█", "cyan"),
            f" in use {format_bytes(_in_use(stats))}   ",
            ("▒", "cyan"),
            f" warm {format_bytes(stats.warm_bytes)}   ",
            f"limit {format_bytes(stats.memory_limit)}",
            ("   OVER THE LIMIT" if stats.over_limit else "", "bold red"),
        ),
        Text.assemble(
            ("disk     ", "bold"),
            f"{format_bytes(stats.disk_bytes)}, limit {format_limit(stats.spill_limit)}",
            f"   private copies {format_bytes(stats.overflow_bytes)}" if stats.overflow_bytes else "",
        ),
        _rate("spill    ", rates.spilled, stats.spilled_bytes_total),
        _rate("restore  ", rates.restored, stats.restored_bytes_total),
    ]


def _in_use(stats: Stats) -> int:
    return max(0, stats.committed_bytes - stats.warm_bytes)


def _memory_bar(stats: Stats) -> Text:
    """Pinned, otherwise in use, free but warm, and what is left to the limit."""
    whole = max(stats.memory_limit, stats.committed_bytes, 1)
    pinned = min(stats.pinned_bytes, _in_use(stats))
    ends = [pinned, _in_use(stats), stats.committed_bytes, whole]
    cells = [round(MEMORY_WIDTH * end / whole) for end in ends]
    widths = [end - start for start, end in zip([0, *cells], cells, strict=False)]
    styles = [("█", "red"), ("█", "cyan"), ("▒", "cyan"), ("░", "dim")]
    share = f" {stats.committed_bytes / max(stats.memory_limit, 1):.0%} committed"
    return Text.assemble(*((sign * n, style) for n, (sign, style) in zip(widths, styles, strict=True)), share)


def _rate(name: str, rates: deque[float], total: int) -> Text:
    now = rates[-1] if rates else 0.0
    return Text.assemble(
        (name, "bold"),
        f"{format_bytes(round(now)) + '/s':<12}",
        (_sparkline(rates), "cyan"),
        f"  {format_bytes(total)} since creation",
    )


def _sparkline(rates: deque[float]) -> str:
    if len(rates) < 2:
        return ""
    top = max(rates)
    levels = len(BARS) - 1
    signs = [BARS[0] if rate <= 0 else BARS[max(1, round(levels * rate / top))] for rate in rates]
    return "".join(signs).rjust(HISTORY)


def _members(now: Look) -> Table:
    pins: dict[int, int] = {}
    sizes = {info.id: info.size for info in now.objects}
    for key, holdings in now.pinned_by.items():
        for holding in holdings:
            pins[holding.pid] = pins.get(holding.pid, 0) + sizes[key]
    table = plain_table("member", "pid", "pinned", "in objects", left=("member",))
    counts = {
        m.pid: sum(m.pid == one.pid for who in now.pinned_by.values() for one in who) for m in now.members
    }
    for member in sorted(now.members, key=lambda member: -pins.get(member.pid, 0)):
        pinned = pins.get(member.pid, 0)
        table.add_row(
            Text(member.command),
            str(member.pid),
            format_bytes(pinned) if pinned else "",
            str(counts[member.pid]) if counts[member.pid] else "",
        )
    if not now.members:
        table.add_row(Text("nobody but this command", "dim"))
    return table


def _objects(title: str, now: Look, objects: list[ObjectInfo]) -> Table:
    table = plain_table(
        title,
        "size",
        "state",
        "age",
        "idle",
        "refs",
        "pinned by",
        "name",
        left=("state", "pinned by", "name"),
    )
    table.columns[0].min_width = ID_WIDTH
    for info in objects:
        holdings = now.pinned_by.get(info.id, ())
        table.add_row(
            info.id.partition("-")[2],
            format_bytes(info.size),
            Text(info.state, style={"spilled": "dim", "lost": "red", "draft": "yellow"}.get(info.state, "")),
            format_seconds(info.age_s),
            format_seconds(info.idle_s),
            str(info.holders),
            _who(holdings),
            Text(info.name or info.site or ""),
        )
    return table


def _who(holdings: tuple[Holding, ...]) -> Text:
    shown = ", ".join(str(holding.pid) for holding in holdings[:3])
    return Text(shown + (f" and {len(holdings) - 3} more" if len(holdings) > 3 else ""), "red")
