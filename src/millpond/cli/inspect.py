"""Commands for one store: `stats`, `objects`, `check`, `configure`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from millpond.cli.arguments import Commands, add_store, count
from millpond.cli.stores import open_store
from millpond.errors import ObjectNotFoundError
from millpond.eviction.named import NAMES
from millpond.hot import load_contained
from millpond.observe.metrics import label, prometheus_text
from millpond.observe.tables import console, objects_table, stats_table
from millpond.observe.text import objects_json, stats_json
from millpond.store.info import ObjectInfo
from millpond.store.store import Store
from millpond.units import format_bytes

SORT_KEYS: dict[str, Callable[[ObjectInfo], float]] = {
    "size": lambda info: -info.size,
    "age": lambda info: -info.age_s,
    "idle": lambda info: -info.idle_s,
    "holders": lambda info: -info.holders,
    "pins": lambda info: -info.pins,
}


UNSET = {"memory_limit": ("default",), "spill_limit": ("none", "default"), "overflow_limit": ("default",)}
"""The words that stand for None, by option."""


def register(commands: Commands) -> None:
    """Adds the commands to the parser."""
    stats = commands.add_parser("stats", help="bytes and counts of a store")
    add_store(stats)
    form = stats.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object; sizes in bytes")
    form.add_argument("--prometheus", action="store_true", help="Prometheus' text format")
    stats.set_defaults(run=run_stats)

    objects = commands.add_parser("objects", help="the objects of a store, largest first")
    add_store(objects)
    objects.add_argument("--sort", choices=SORT_KEYS, default="size", help="largest first by (%(default)s)")
    objects.add_argument("--limit", type=count, default=50, help="how many to show (%(default)s)")
    objects.add_argument("--holders", action="store_true", help="also who keeps each one, and how")
    objects.add_argument("--json", action="store_true", help="a JSON array; sizes in bytes")
    objects.set_defaults(run=run_objects)

    check = commands.add_parser("check", help="verify a store's table; exit status 1 if there are faults")
    add_store(check)
    check.set_defaults(run=run_check)

    configure = commands.add_parser("configure", help="change a store's limits while it runs")
    add_store(configure)
    configure.add_argument(
        "--memory-limit",
        help='bytes of shared memory: "2GiB", "30%%" of what this process may use, or "default"',
    )
    configure.add_argument("--spill-limit", help='bytes on disk, or "none"')
    configure.add_argument(
        "--overflow-limit", help='bytes of private copies for reads that find no room, or "default"'
    )
    configure.add_argument("--compression", help='"none", "lz4" or "auto", for what is spilled from now on')
    configure.add_argument("--eviction", choices=NAMES, help="who goes when memory is short")
    configure.set_defaults(run=run_configure)


def run_stats(args: argparse.Namespace) -> int:
    """Prints the numbers of `Store.stats()`."""
    with open_store(args.store) as store:
        stats, name = store.stats(), label(store)
    if args.json:
        print(stats_json(stats))
    elif args.prometheus:
        print(prometheus_text(stats, name), end="")
    else:
        console().print(stats_table(stats))
    return 0


def run_objects(args: argparse.Namespace) -> int:
    """Prints the first `--limit` objects in the order of `--sort`, and how many there are in all."""
    with open_store(args.store) as store:
        objects = sorted(store.objects(), key=SORT_KEYS[args.sort])
        shown = objects[: args.limit]
        holders = [(info.id, keepers(store, info)) for info in shown] if args.holders else []
    if args.json:
        print(objects_json(shown))
        return 0
    out = console()
    out.print(objects_table(shown))
    total = format_bytes(sum(info.size for info in objects))
    for key, lines in holders:
        out.print(f"{key}: {'; '.join(lines) or 'nobody any more'}", markup=False, soft_wrap=True)
    out.print(f"{len(shown)} of {len(objects)} objects, {total} in all")
    return 0


def run_configure(args: argparse.Namespace) -> int:
    """Changes what is named, and prints how the store stands then."""
    keys = ("memory_limit", "spill_limit", "overflow_limit", "compression", "eviction")
    changes: dict[str, Any] = {
        key: None if given in UNSET.get(key, ()) else given
        for key in keys
        if (given := getattr(args, key)) is not None
    }
    if not changes:
        options = ", ".join("--" + key.replace("_", "-") for key in keys)
        raise ValueError(f"nothing to change: name at least one of {options}")
    with open_store(args.store) as store:
        store.configure(**changes)
        stats = store.stats()
    console().print(stats_table(stats))
    return 0


def keepers(store: Store, info: ObjectInfo) -> list[str]:
    """Who keeps an object, and how, this command aside; empty if it went meanwhile."""
    entry, birth = (int(part, 16) for part in info.id.split("-")[1:])
    try:
        found = store.refs(load_contained(store.uuid, entry, birth))
    except ObjectNotFoundError:
        return []
    lines = [
        f"ref in {member.pid} ({member.command})" for member in found.members if member.pid != os.getpid()
    ]
    lines += [f"view in {member.pid} ({member.command})" for member in found.pins]
    lines += [f"contained in {container}" for container in found.containers]
    for transit in found.handoffs:
        lapse = "never" if transit.lapses_in_s is None else f"in {transit.lapses_in_s:.0f} s"
        lines.append(
            f"hand-off of {transit.pid}, {transit.age_s:.0f} s old, lapses {lapse}, {transit.deliveries} left"
        )
    return lines + ([f"name {found.name!r}"] if found.name else [])


def run_check(args: argparse.Namespace) -> int:
    """Prints the faults that `Store.check()` finds."""
    with open_store(args.store) as store:
        faults = store.check()
    for fault in faults:
        print(fault)
    if not faults:
        print("sound")
    return 1 if faults else 0
