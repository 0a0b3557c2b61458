"""The `millpond stress` command: sets the store up, lets the director run, checks what is left.

Invariants: exit status 0 means that every byte that was read was right, memory never exceeded the
limit, and nothing was left in memory, on disk or in the registry.
"""

from __future__ import annotations

import argparse
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import millpond
from millpond.cli.arguments import Commands, count, memory, seconds, size
from millpond.cli.stress.director import VIEWS_SHARE, Director, Plan
from millpond.cli.stress.values import SIZE_MAX
from millpond.cli.watch import Watch
from millpond.observe.tables import console, plain_table
from millpond.spill.directory import default_base, store_directory
from millpond.store.info import Stats
from millpond.units import format_bytes, format_seconds

HANDOFF_S = 20.0
"""A ref that was pickled by a process that is killed before it could send it lapses after this."""
MARGIN_S = 10.0
OWN_FILE_BYTES = 8 << 20
HEAD_BYTES = 4096
"""What a stored value may need beyond its payload."""


def register(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser("stress", help="put a store under memory pressure and verify every byte")
    parser.add_argument(
        "--memory", type=memory, default="256MiB", help='limit: bytes, a share, or "default" (%(default)s)'
    )
    parser.add_argument("--data", type=size, default="2GiB", help="live data to keep (%(default)s)")
    parser.add_argument("--largest", type=size, default=SIZE_MAX, help="largest value (64 MiB)")
    parser.add_argument("--processes", type=count, default=4, help="worker processes (%(default)s)")
    parser.add_argument("--seconds", type=seconds, default=20.0, help="how long to work (%(default)s)")
    parser.add_argument("--kill", action="store_true", help="kill -9 and replace a worker every second")
    parser.add_argument(
        "--compression", default="none", choices=("none", "lz4", "auto"), help="codec (%(default)s)"
    )
    parser.add_argument("--vary-limit", action="store_true", help="halve and double the limit each second")
    parser.add_argument("--seed", type=int, help="seed of sizes, contents and choices (random)")
    parser.add_argument("--start-method", default="spawn", choices=("spawn", "fork"), help="(%(default)s)")
    parser.add_argument("--spill-dir", type=Path, help="where to spill (a directory on a disk)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the test; 0 without a violation."""
    plan = Plan(
        memory=args.memory,
        data=args.data,
        largest=args.largest,
        processes=args.processes,
        seconds=args.seconds,
        kill=args.kill,
        vary_limit=args.vary_limit,
        seed=secrets.randbelow(1 << 32) if args.seed is None else args.seed,
        start_method=args.start_method,
    )
    out = console()
    out.print(
        f"{format_bytes(plan.data)} through {format_bytes(plan.memory)}, {plan.processes} processes, "
        f"compression {args.compression}, seed {plan.seed}"
    )
    violations = _run_in(args.spill_dir or default_base(), args.compression, plan, out)
    for text in violations:
        out.print("[red]violation:[/red]", escape(text))
    out.print("[green]sound[/green]" if not violations else f"[red]{len(violations)} violations[/red]")
    return 1 if violations else 0


def _run_in(spill_dir: Path, compression: str, plan: Plan, out: Console) -> list[str]:
    with millpond.Store(
        memory_limit=plan.memory,
        spill_dir=spill_dir,
        compression=compression,
        name=f"stress-{os.getpid()}",
        handoff_timeout=HANDOFF_S,
        overflow_limit=_overflow_limit(compression, plan),
    ) as store:
        director = Director(store, plan)
        started = time.monotonic()
        spilled = store_directory(spill_dir, store.uuid)
        with Watch(store) as watch:
            _with_progress(director, plan, out)
            wall = time.monotonic() - started
            left = list(_left_in_store(store, spilled))
        _print_summary(director, store.stats(), watch, wall, out)
        violations = [*director.violations, *([watch.fault] if watch.fault else []), *left]
    violations += [f"{path} is left by close()" for path in (Path(store.address), spilled) if path.exists()]
    return violations


def _overflow_limit(compression: str, plan: Plan) -> int:
    """Room for the views that are kept, and for each process to read one object when all memory is pinned.

    From a file of its own an object is mapped instead, unless it is compressed.
    """
    largest = min(OWN_FILE_BYTES, plan.largest) if compression == "none" else plan.largest
    return plan.memory // VIEWS_SHARE + (plan.processes + 1) * (largest + HEAD_BYTES)


def _with_progress(director: Director, plan: Plan, out: Console) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task("working", total=plan.seconds, detail="")

        def show(elapsed: float) -> None:
            detail = (
                f"{format_bytes(director.books.live_bytes)} live, {sum(director.counts.values())} operations"
            )
            bar.update(task, completed=elapsed, detail=detail)

        director.run(show)


def _left_in_store(store: millpond.Store, spilled: Path) -> Iterator[str]:
    """Every ref and view is gone: what is still there should not be."""
    _wait_until(lambda: store.stats().objects == 0, HANDOFF_S + MARGIN_S)
    _wait_until(lambda: store.stats().disk_bytes == 0, MARGIN_S)
    for info in list(store.objects())[:5]:
        yield f"an object that nobody has a ref to is still there: {info}"
    stats = store.stats()
    for field in ("objects", "memory_bytes", "pinned_bytes", "disk_bytes", "overflow_bytes"):
        if value := getattr(stats, field):
            yield f"{field} is {value} after everything was dropped"
    # memory that is on its way back to the system is committed, and not free
    if not _wait_until(lambda: store.stats().live_bytes == 0, MARGIN_S):
        yield f"{stats.live_bytes} committed bytes are in use by no object"
    if stats.members != 1:
        yield f"{stats.members} members are left, of which only one lives"
    for path in spilled.glob("*"):
        yield f"{path} is still there after everything was dropped"
    yield from store.check()


def _wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return met


def _print_summary(director: Director, stats: Stats, watch: Watch, wall: float, out: Console) -> None:
    counts = director.counts
    table = plain_table("", "")
    for label, text in (
        ("operations", f"{sum(counts.values())} in {format_seconds(wall)}"),
        ("  put, read, handed over, dropped", "{put}, {read}, {take}, {drop}"),
        ("  kill -9", str(counts["kill"])),
        ("  changes of the limit", str(counts["limit"])),
        ("verified", format_bytes(director.bytes_verified)),
        (
            "memory committed, at most",
            f"{format_bytes(watch.peak_bytes)} of {format_bytes(watch.limit_bytes)}",
        ),
        ("spilled", format_bytes(stats.spilled_bytes_total)),
        ("restored", format_bytes(stats.restored_bytes_total)),
    ):
        read = counts["get"] + counts["copy"] + counts["look"]
        table.add_row(
            label, text.format(put=counts["put"], read=read, take=counts["take"], drop=counts["drop"])
        )
    out.print(table)
