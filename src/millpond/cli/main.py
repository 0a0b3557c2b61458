"""The `millpond` command: reads the arguments, runs one command, turns its outcome into an exit status.

0: done, and all is well; 1: done, and the verdict is bad; 2: could not be done, the reason is on
standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import millpond
from millpond.cli import demo, doctor, inspect, stores, timeline, top
from millpond.cli.stress import command as stress
from millpond.errors import MillpondError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line `arguments` (without the program's name; None: those of this process)."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if "run" not in args:
        parser.print_help()
        return 2
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except (MillpondError, OSError, ValueError) as error:
        if isinstance(error, BrokenPipeError):
            # The reader of our output has seen enough. Keep the interpreter from flushing once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        print(f"millpond: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="millpond", description="The memory your processes share. When it is full, it spills."
    )
    parser.add_argument("--version", action="version", version=f"millpond {millpond.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for group in (demo, stress, stores, inspect, top, timeline, doctor):
        group.register(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
