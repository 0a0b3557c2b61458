"""Commands about the stores of this user, `ls` and `gc`, and how the others find the one they are for."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.markup import escape

import millpond
from millpond.cli.arguments import Commands
from millpond.errors import AttachError, MillpondError
from millpond.observe.tables import console, stores_table
from millpond.spill.directory import usual_bases
from millpond.store import registry
from millpond.units import format_bytes


def register(commands: Commands) -> None:
    """Adds the two commands to the parser."""
    ls = commands.add_parser("ls", help="the stores of this user")
    ls.set_defaults(run=run_ls)

    gc = commands.add_parser("gc", help="remove what stores left whose processes are all gone")
    gc.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    gc.add_argument(
        "--spill-dir", action="append", default=[], metavar="PATH", help="look for left-overs there, too"
    )
    gc.set_defaults(run=run_gc)


def open_store(key: str | None) -> millpond.Store:
    """Joins the store with that name or address; None: the only one there is.

    Raises AttachError if there is none, or several to choose from.
    """
    return millpond.connect(_only_address() if key is None else key)


def _only_address() -> str:
    root = registry.root_of()
    stores = registry.list_stores(root)
    if len(stores) == 1:
        return stores[0].address
    if not stores:
        raise AttachError(f"no store is alive in {root} (MILLPOND_DIR chooses another place)")
    names = ", ".join(info.name or info.address for info in stores)
    raise AttachError(f"{len(stores)} stores are alive, name one of them: {names}")


def run_ls(_: argparse.Namespace) -> int:
    """Prints one row per store; a store that cannot be joined is named with the reason."""
    rows, refused = [], []
    for info in registry.list_stores(registry.root_of()):
        try:
            with millpond.connect(info.address) as store:
                rows.append((info, store.stats()))
        except MillpondError as error:
            refused.append(f"{info.name or info.address}: {error}")
    out = console()
    out.print(stores_table(rows))
    for reason in refused:
        out.print(escape(reason))
    return 1 if refused else 0


def run_gc(args: argparse.Namespace) -> int:
    """Sweeps, and prints what went."""
    root = registry.root_of()
    bases = [*usual_bases(), *map(Path, args.spill_dir)]
    removed = registry.sweep(root, dry_run=args.dry_run, bases=bases)
    for each in removed:
        print(f"{each.path}  {format_bytes(each.bytes)}")
    if not removed:
        print("nothing to remove")
    return 0
