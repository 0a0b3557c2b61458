"""Fuzzes each target in a process of its own, and says what was found.

Run in tests/: python -m fuzz [TARGET ...] [--executions N] [--seconds S] [--seed N] [--keep] [--counts FILE]
    --keep   writes into the corpus: the targets' own good inputs, one for each new outcome, and each fault
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from pathlib import Path

from fuzz import engine, guard
from fuzz.targets import TARGETS, opened
from proof import write_counts

FOUND = Path(__file__).parents[2] / "build" / "fuzz"


def run(name: str, args: argparse.Namespace) -> int:
    """One target in this process; 1 if it has a fault."""
    started = time.monotonic()
    running = FOUND / f"{name}.running"
    with opened(name) as target, guard.limits(), guard.watched(running, target.most) as note:
        if args.keep:
            for what, data in target.seeds().items():
                engine.keep(target, what, data)
        try:
            found = engine.fuzz(target, random.Random(args.seed), args.executions, args.seconds, note)
        except engine.Fault as fault:
            path = FOUND / f"{name}-{args.seed}"
            path.write_bytes(fault.data)
            print(f"{name}: {fault}\n    the input is {path}")
            raise
    for what, data in found.new.items():
        print(f"{name}: new: {what} ({len(data)} bytes)")
        if args.keep:
            engine.keep(target, what, data)
    seconds = time.monotonic() - started
    print(f"{name}: {found.executions} inputs, {len(found.new)} new outcomes, {seconds:.0f} s")
    write_counts(args.counts, {f"inputs of {name}": found.executions}, 0)
    return 0


def run_each(names: list[str], args: argparse.Namespace) -> int:
    """Each in a child, since a fault may end it; how many have one."""
    faults = 0
    for name in names:
        counts = [f"--counts={args.counts.with_suffix('')}-{name}.json"] if args.counts else []
        options = [f"--executions={args.executions}", f"--seconds={args.seconds}", f"--seed={args.seed}"]
        command = [sys.executable, "-m", "fuzz", name, "--here", *options, *counts]
        done = subprocess.run(command + ["--keep"] * args.keep)
        died = guard.noted(FOUND / f"{name}.running")
        if done.returncode and died is not None:
            (FOUND / f"{name}-{args.seed}").write_bytes(died)
            print(f"{name}: the process ended by {done.returncode}; the input is {FOUND}/{name}-{args.seed}")
        faults += done.returncode != 0
    return faults


def main() -> int:
    """0: no fault was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--executions", type=int, default=1 << 62)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--counts", type=Path)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.targets) - set(TARGETS):
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(TARGETS)}")
    print(f"seed {args.seed}", flush=True)
    if args.here:
        return run(args.targets[0], args)
    return run_each(args.targets or list(TARGETS), args)


if __name__ == "__main__":
    sys.exit(main())
