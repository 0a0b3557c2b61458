"""Argument types that several commands share, and how a command finds its store."""

from __future__ import annotations

import argparse
from typing import Any

from millpond.eviction.limits import default_memory_limit, usable_memory
from millpond.units import parse_bytes, parse_seconds

Commands = Any  # what ArgumentParser.add_subparsers() returns has no public name


def size(text: str) -> int:
    """A number of bytes, as in "256MiB"."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def memory(text: str) -> int:
    """A number of bytes, a share of what this process may use as in "30%", or "default"."""
    try:
        return default_memory_limit() if text == "default" else parse_bytes(text, usable_memory())
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seconds(text: str) -> float:
    """A duration, as in "20" or "2min"."""
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def count(text: str) -> int:
    """A whole number of at least one."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def add_store(parser: argparse.ArgumentParser) -> None:
    """The positional argument that names a store."""
    parser.add_argument(
        "store", nargs="?", help="name or address of a store; may be left out if there is one"
    )
