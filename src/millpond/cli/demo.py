"""`millpond demo`: ten processes share one array, then a store holds four times its memory.

Invariants: every figure that is printed was measured in this run; every array is verified; the exit
status is 0 only if all of it held.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from multiprocessing.connection import Connection

import numpy as np
import psutil
import xxhash
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

import millpond
from millpond.cli.arguments import Commands
from millpond.cli.watch import Watch
from millpond.observe.tables import console, plain_table
from millpond.units import format_bytes

READERS = 10
SHARED_ITEMS = 10**7
MEMORY_LIMIT = 256 << 20
ARRAY_BYTES = 16 << 20
ARRAYS = 4 * MEMORY_LIMIT // ARRAY_BYTES
GROWTH_MAX = 0.05
"""Of the shared array's size: what a reader's private memory may grow by, Python's own noise."""


def register(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser("demo", help="show that nothing is copied and that a full memory spills")
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Both parts in one store; 0 if everything held."""
    out = console()
    with millpond.Store(memory_limit=MEMORY_LIMIT) as store:
        shared = _share(store, out)
        out.print()
        overflown = _overflow(store, out)
    return 0 if shared and overflown else 1


# --- one array, ten readers ---


def _share(store: millpond.Store, out: Console) -> bool:
    array = np.random.default_rng(1).standard_normal(SHARED_ITEMS)
    ref = store.put(array)
    total = float(array.sum())
    out.print(
        f"[bold]One array of {format_bytes(array.nbytes)}, {READERS} processes that read all of it[/bold]"
    )
    growths = _read_everywhere(ref, total)
    table = plain_table("process", "private memory grew by", "of the array")
    for number, growth in enumerate(growths, start=1):
        shown = "wrong sum" if growth is None else format_bytes(growth)
        table.add_row(f"reader {number}", shown, "" if growth is None else f"{growth / array.nbytes:.2%}")
    out.print(table)
    good = all(growth is not None and growth < GROWTH_MAX * array.nbytes for growth in growths)
    out.print("Nothing was copied." if good else "[red]Something was copied, or read wrongly.[/red]")
    return good


def _read_everywhere(ref: millpond.ObjectRef, total: float) -> list[int | None]:
    """Each reader's growth of private memory in bytes; None where the sum was wrong or the reader died."""
    context = multiprocessing.get_context("spawn")
    start = context.Event()
    pipes: list[Connection] = []
    processes = []
    for _ in range(READERS):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_read, args=(ref, total, start, theirs), daemon=True)
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    for pipe in pipes:
        _receive(pipe)
    start.set()
    growths = [_receive(pipe) for pipe in pipes]
    for process in processes:
        process.join()
    return growths


def _receive(pipe: Connection) -> int | None:
    try:
        answer: int | None = pipe.recv()
    except EOFError:
        return None
    return answer


def _read(ref: millpond.ObjectRef, total: float, start: object, pipe: Connection) -> None:
    """A reader: waits until all are there, so that they hold the array at the same time."""
    process = psutil.Process()
    np.ones(1000).sum()  # what the first sum in a process loads is not the array's
    pipe.send(0)
    start.wait()  # type: ignore[attr-defined]
    before = process.memory_full_info().uss
    array: NDArray[np.float64] = ref.get()
    good = float(array.sum()) == total
    growth = process.memory_full_info().uss - before
    pipe.send(max(growth, 0) if good else None)


# --- more data than memory ---


def _noise(number: int) -> NDArray[np.uint64]:
    return np.random.default_rng(number).integers(0, 2**64, ARRAY_BYTES // 8, dtype=np.uint64)


def _overflow(store: millpond.Store, out: Console) -> bool:
    out.print(
        f"[bold]{format_bytes(ARRAYS * ARRAY_BYTES)} in {ARRAYS} arrays, "
        f"through a store that may use {format_bytes(store.memory_limit)}[/bold]"
    )
    before = store.stats()
    with Watch(store) as watch:
        started = time.perf_counter()
        refs, sums = [], []
        for number in range(ARRAYS):
            array = _noise(number)
            sums.append(xxhash.xxh3_64_intdigest(array.data))
            refs.append(store.put(array))
        stored = time.perf_counter()
        wrong = sum(xxhash.xxh3_64_intdigest(store.get(ref).data) != sums[i] for i, ref in enumerate(refs))
        read = time.perf_counter()
    after = store.stats()
    faults = [fault for fault in (watch.fault, *store.check()) if fault]
    if wrong:
        faults.append(f"{wrong} of {ARRAYS} arrays came back wrong")
    table = plain_table("", "")
    for label, text in (
        ("stored", format_bytes(ARRAYS * ARRAY_BYTES)),
        ("memory limit", format_bytes(store.memory_limit)),
        ("memory committed, at most", format_bytes(watch.peak_bytes)),
        ("spilled to disk", format_bytes(after.spilled_bytes_total - before.spilled_bytes_total)),
        ("restored from disk", format_bytes(after.restored_bytes_total - before.restored_bytes_total)),
        ("seconds to make and store", f"{stored - started:.1f}"),
        ("seconds to read and verify", f"{read - stored:.1f}"),
    ):
        table.add_row(label, text)
    out.print(table)
    for fault in faults:
        out.print(Text(fault, "red"))
    if not faults:
        out.print("Every byte came back.")
    return not faults
