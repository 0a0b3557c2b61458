"""`millpond timeline`: what a recorded timeline says, in numbers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from millpond.cli.arguments import Commands
from millpond.observe.tables import console
from millpond.observe.timeline import read, summary, summary_table


def register(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser("timeline", help="sum up a recorded timeline (MILLPOND_TIMELINE=file)")
    parser.add_argument("file", type=Path, help="what millpond.timeline or MILLPOND_TIMELINE has written")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write its events as strict JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints how often and how long each process did what."""
    events = read(args.file)
    if args.json is not None:
        args.json.write_text(json.dumps(events))
    console().print(summary_table(summary(events)))
    return 0
