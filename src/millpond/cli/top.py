"""`millpond top`: a store, live. Ctrl-C ends it."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import time
from pathlib import Path

from rich.console import Console
from rich.live import Live

from millpond.cli.arguments import Commands, add_store, seconds
from millpond.cli.stores import open_store
from millpond.errors import StoreClosedError
from millpond.observe.tables import console
from millpond.observe.top import Rates, frame, look
from millpond.store.store import Store

PLAIN_HEIGHT = 50


def register(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser("top", help="a store, live: memory, rates, members, objects, who pins them")
    add_store(parser)
    parser.add_argument("--interval", type=seconds, default=1.0, help="between two looks (%(default)s s)")
    parser.add_argument("--once", action="store_true", help="one picture, after one interval")
    parser.add_argument("--svg", metavar="FILE", help="write the last picture as SVG")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draws until Ctrl-C; where there is no terminal, or a dumb one, one picture below the other."""
    with open_store(args.store) as store:
        out = console()
        if args.svg:
            out = Console(record=True, width=min(out.width, 120), force_terminal=True, highlight=False)
        with contextlib.suppress(KeyboardInterrupt, StoreClosedError):
            _draw(store, out, args)
    if args.svg:
        save_svg(out, args.svg, f"millpond top {args.store or ''}".strip())
    return 0


def save_svg(out: Console, path: str | os.PathLike[str], title: str) -> None:
    """What a recording console has printed, as a picture that fetches no fonts from elsewhere."""
    picture = re.sub(r"@font-face \{.*?\}\s*", "", out.export_svg(title=title), flags=re.DOTALL)
    Path(path).write_text(picture)


def _draw(store: Store, out: Console, args: argparse.Namespace) -> None:
    title = f"{store.name or store.address}"
    before, rates = look(store), Rates()
    live = None
    dumb = not out.is_terminal or os.environ.get("TERM", "dumb") in ("dumb", "unknown")
    if not (args.once or dumb or args.svg):
        live = Live(console=out, screen=True, auto_refresh=False)
        live.start()
    try:
        while True:
            time.sleep(args.interval)
            now = look(store)
            rates.add(before, now)
            before = now
            picture = frame(title, now, rates, PLAIN_HEIGHT if live is None else out.height)
            if live is not None:
                live.update(picture, refresh=True)
            else:
                out.print(picture)
            if args.once:
                return
    finally:
        if live is not None:
            live.stop()
