"""The tables that the commands print.

Invariants: a table is built from frozen records alone, so it shows one moment; a missing value is
an empty cell, never a zero.
Not here: where the records come from (the store), when a table is printed (millpond.cli).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from millpond.observe.text import format_limit
from millpond.store.info import ObjectInfo, Stats
from millpond.store.registry import StoreInfo
from millpond.units import format_bytes, format_seconds

# Wide enough that nothing is folded when the output goes to a file or a pipe.
PLAIN_WIDTH = 200


def console() -> Console:
    """Standard output as rich sees it; of a fixed width where no terminal has one."""
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)


def plain_table(*columns: str, left: Sequence[str] = ()) -> Table:
    """An empty table; columns are right-aligned but the first and those named in `left`.

    Without a single name there is no header.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(columns))
    for index, column in enumerate(columns):
        justify = "left" if index == 0 or column in left else "right"
        table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    return table


def stats_table(stats: Stats) -> Table:
    """Everything that `Stats` holds, in words."""
    table = plain_table("", "objects", "bytes")
    rows: list[tuple[str, int | None, int | None]] = [
        ("all objects", stats.objects, None),
        ("  drafts", stats.draft_objects, None),
        ("  in memory", stats.resident_objects + stats.clean_objects, stats.memory_bytes),
        ("    of these also on disk", stats.clean_objects, None),
        ("    of these pinned", None, stats.pinned_bytes),
        ("  on disk only", stats.spilled_objects, None),
        ("  lost", stats.lost_objects, None),
        ("memory committed", None, stats.committed_bytes),
        ("  of these live", None, stats.live_bytes),
        ("  of these free and warm", None, stats.warm_bytes),
        ("  limit", None, stats.memory_limit),
        ("table", None, stats.table_bytes),
        ("private copies", None, stats.overflow_bytes),
        ("disk in use", None, stats.disk_bytes),
        ("returned to the system since creation", None, stats.returned_bytes_total),
        ("spilled since creation", stats.spilled_objects_total, stats.spilled_bytes_total),
        ("restored since creation", stats.restored_objects_total, stats.restored_bytes_total),
    ]
    for label, count, size in rows:
        table.add_row(label, "" if count is None else str(count), "" if size is None else format_bytes(size))
    table.add_row("disk limit", "", format_limit(stats.spill_limit))
    table.add_row("members", str(stats.members), "")
    table.add_row("eviction", "", stats.eviction)
    table.add_row("compression", "", stats.compression)
    return table


def objects_table(objects: Iterable[ObjectInfo]) -> Table:
    """One row per object, in the given order."""
    table = plain_table(
        "id",
        "size",
        "state",
        "age",
        "idle",
        "holders",
        "pins",
        "name",
        "site",
        left=("state", "name", "site"),
    )
    for each in objects:
        table.add_row(
            each.id,
            format_bytes(each.size),
            each.state,
            format_seconds(each.age_s),
            format_seconds(each.idle_s),
            str(each.holders),
            str(each.pins),
            Text(each.name or ""),  # Text: a name is not markup
            Text(each.site or ""),
        )
    return table


def stores_table(stores: Iterable[tuple[StoreInfo, Stats]]) -> Table:
    """One row per store; its members without whoever gathered the numbers."""
    table = plain_table(
        "name", "address", "members", "objects", "memory", "limit", "on disk", left=("address",)
    )
    for info, stats in stores:
        table.add_row(
            Text(info.name or ""),
            info.address,
            str(len(info.pids)),
            str(stats.objects),
            format_bytes(stats.committed_bytes),
            format_bytes(stats.memory_limit),
            format_bytes(stats.disk_bytes),
        )
    return table
