"""The process that keeps a store between clients, and the terms under which the store was made.

A Millpond store lives as long as it has a member. Where a program used to start `plasma_store`, one process
that does nothing joins it and waits for a signal: `start_plasma_store`, or `python -m
millpond.integrations.plasma` with the options of `plasma_store`. Nothing depends on it: when it dies, the
clients keep the store.
Not here: clients (client.py).
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import IO, NamedTuple

import millpond
from millpond import ObjectNotFoundError, Store

READY = "ready"
PRIVATE = "hashtable://"
"""The one kind of external store that Plasma shipped: here, a private directory of the store."""

_TERMS = "plasma.terms"
_ROUNDING = 1 << 20  # memory beyond the capacity: whole pages, and what is not data or metadata
_STOP_S = 10.0


class Terms(NamedTuple):
    """What clients of a store agree on."""

    capacity: int
    """Bytes of data and metadata at most."""
    keeps_evicted: bool
    """Whether evicted objects go to disk; else they are gone."""


def terms_of(store: Store) -> Terms:
    """The terms of a store; one that was not made for Plasma spills, as all do."""
    try:
        return Terms(*store.lookup(_TERMS).get())
    except ObjectNotFoundError:
        return Terms(store.memory_limit, True)


def store_name(socket_name: str) -> str:
    """What Millpond calls the store that Plasma's clients know by a socket's path, a name or an address."""
    if socket_name.startswith("/") and not os.path.isdir(socket_name):
        return "plasma at " + socket_name
    return socket_name


def create_store(name: str, capacity: int, external_store: str | None) -> Store:
    """A store for Plasma's clients. Raises what `Store` raises, ValueError."""
    if capacity <= 0:
        raise ValueError(f"a store has no {capacity} bytes")
    if external_store is None:
        store = Store(capacity + _ROUNDING, spill_limit=0, name=name)
    else:
        directory = None if external_store.startswith(PRIVATE) else external_store.removeprefix("file://")
        store = Store(capacity + _ROUNDING, spill_dir=directory, name=name)
    store.put(tuple(Terms(capacity, external_store is not None)), name=_TERMS)
    return store


@contextmanager
def start_plasma_store(
    plasma_store_memory: int,
    use_valgrind: bool = False,
    use_profiler: bool = False,
    plasma_directory: str | None = None,
    use_hugepages: bool = False,
    external_store: str | None = None,
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A context in which a store is kept: (name for `connect`, process that keeps it).

    plasma_store_memory: bytes of data and metadata. external_store: where evicted objects go: a directory, as
        a path or file:// URL, or "hashtable://..." for a private one; None: they are gone. The others are
        accepted and have no meaning: the memory is no file, and there is no server to examine.
    At the end the process is stopped; clients that are still connected keep the store.
    Raises RuntimeError when the process does not start, with what it said.
    """
    name = f"plasma-{secrets.token_hex(8)}"
    command = [sys.executable, "-m", __package__, "-s", name, "-m", str(plasma_store_memory), "--until-eof"]
    if external_store is not None:
        command += ["-e", external_store]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout and process.stderr
            if process.stdout.readline().strip() != READY:
                raise RuntimeError(f"the process that keeps the store did not start: {process.stderr.read()}")
            yield name, process
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes a store and keeps it until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {__package__}", description=main.__doc__, conflict_handler="resolve"
    )
    parser.add_argument("-s", metavar="NAME", required=True, help="name of the store, or path of its socket")
    parser.add_argument("-m", metavar="BYTES", required=True, type=int, help="bytes of data and metadata")
    parser.add_argument("-e", metavar="URL", help="directory for evicted objects; default: they are gone")
    parser.add_argument("-d", metavar="DIR", help="accepted, without meaning: the memory is no file")
    parser.add_argument("-h", action="store_true", help="accepted, without meaning: no huge pages")
    parser.add_argument("--until-eof", action="store_true", help="end with whoever has the standard input")
    given = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    try:
        with create_store(store_name(given.s), given.m, given.e):
            print(READY, flush=True)
            _wait(sys.stdin if given.until_eof else None)
    except (millpond.MillpondError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _end(number: int, frame: object) -> None:
    raise SystemExit(0)


def _wait(until_eof: IO[str] | None) -> None:
    if until_eof is None:
        while True:
            signal.pause()
    with suppress(OSError):
        until_eof.read()
