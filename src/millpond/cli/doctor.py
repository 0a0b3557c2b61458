"""`millpond doctor`: what this machine allows a store, what that means, and what to do about it."""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from millpond.cli.arguments import Commands
from millpond.observe.doctor import disks, memory, process, sharing
from millpond.observe.doctor.finding import Finding, as_json
from millpond.observe.tables import console

STYLES = {"ok": "green", "note": "yellow", "bad": "bold red"}
NAME_WIDTH = 26
VALUE_WIDTH = 30


def register(commands: Commands) -> None:
    """Adds the command to the parser."""
    doctor = commands.add_parser("doctor", help="what this machine allows, and what to do about it")
    doctor.add_argument(
        "--spill-dir",
        type=Path,
        action="append",
        default=[],
        help="directory to look at instead of the one that a store would choose; may be given several times",
    )
    doctor.add_argument(
        "--quick", action="store_true", help="do not measure the disk (256 MiB, a second or so)"
    )
    doctor.add_argument("--json", action="store_true", help="a JSON array of findings")
    doctor.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    """Prints all findings; 1 if one of them is bad."""
    found: list[Finding] = []
    if args.json:
        found = list(look(args))
        print(json.dumps([as_json(finding) for finding in found], indent=2))
    else:
        out = console()
        for topic, findings in itertools.groupby(look(args), key=lambda finding: finding.topic):
            group = list(findings)
            out.print(block(topic, group, out))
            found += group
        out.print(summary(found))
    return 1 if any(finding.verdict == "bad" for finding in found) else 0


def look(args: argparse.Namespace) -> Iterator[Finding]:
    """The findings, as they are made: the disk takes a moment."""
    yield from memory.findings()
    yield from disks.findings(args.spill_dir, speed=not args.quick)
    yield from sharing.findings()
    yield from process.findings()


def block(topic: str, findings: list[Finding], out: Console) -> Group:
    """One topic: a line per finding, the meaning beside it, and what to do below."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(width=4)
    table.add_column(width=NAME_WIDTH)
    table.add_column(width=VALUE_WIDTH, overflow="fold")
    table.add_column(style="dim")
    for each in findings:
        meaning = Text(each.meaning)
        if each.advice:
            meaning.append(f"\n{each.advice}", style=f"not dim {STYLES[each.verdict]}")
        style = STYLES[each.verdict]
        table.add_row(Text(each.verdict, style), Text(each.name), Text(each.value, "bold"), meaning)
    return Group(Text(topic, "bold underline"), Padding(table, (0, 0, 1, 0)))


def summary(findings: list[Finding]) -> Text:
    """The verdict in one line."""
    bad = [f"{finding.topic}: {finding.name}" for finding in findings if finding.verdict == "bad"]
    notes = sum(finding.verdict == "note" for finding in findings)
    if bad:
        return Text(f"{len(bad)} of {len(findings)} findings are bad: {', '.join(bad)}", STYLES["bad"])
    noted = f", {notes} worth a note" if notes else ""
    return Text(f"{len(findings)} findings, nothing bad{noted}", STYLES["ok"])
