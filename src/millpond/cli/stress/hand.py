"""One process of the stress run: it carries out commands on the store and verifies what it reads.

Invariants: one command, one reply, in order; a fault is part of the reply and never an exception; a
worker ends when its director is gone, whatever way that went.
Not here: which command comes next (director.py), what its outcome should be (books.py).
"""

from __future__ import annotations

import os
import pickle
import traceback
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

import millpond
from millpond.cli.stress.values import Values

POLL_S = 0.5

# A forked worker starts with copies of the director's own refs; it must not keep those objects alive.
inherited: list[Hand] = []


class Command(NamedTuple):
    """What to do: verb is the name of a method of Hand."""

    verb: str
    key: int = 0
    ref: bytes = b""
    """The pickle of a ref, for `take`."""
    doubtful: bool = False
    """The object may be gone by now: whoever was sent this ref first was killed before it answered."""


class Reply(NamedTuple):
    """What came of it."""

    command: Command
    ref: bytes = b""
    """The pickle of a ref, from `share`."""
    fault: str = ""
    gone: bool = False
    """The fault is that the object no longer exists."""


class Hand:
    """The refs and views of one process, and what can be done with them."""

    def __init__(self, store: millpond.Store, values: Values) -> None:
        self._store = store
        self._values = values
        self._refs: dict[int, millpond.ObjectRef] = {}
        self._views: dict[int, Any] = {}

    def perform(self, command: Command) -> Reply:
        """Carries out one command; whatever goes wrong is in the reply."""
        try:
            outcome: bytes | str = getattr(self, command.verb)(command.key, command.ref)
        except millpond.ObjectNotFoundError as error:
            return Reply(command, fault=f"{type(error).__name__}: {error}", gone=True)
        except Exception:
            return Reply(command, fault=traceback.format_exc(limit=-4).strip())
        if isinstance(outcome, bytes):
            return Reply(command, ref=outcome)
        return Reply(command, fault=outcome)

    def put(self, key: int, _: bytes) -> str:
        """Stores the value of a new key and keeps its ref."""
        self._refs[key] = self._store.put(self._values.make(key))
        return ""

    def get(self, key: int, _: bytes) -> str:
        """Reads and verifies."""
        value = self._store.get(self._refs[key])
        # Other arrays are pickled, and small ones come back as private copies.
        if isinstance(value, np.ndarray) and value.dtype.kind in "uifc" and value.flags.writeable:
            return f"key {key}: the view is writable"
        return self._verify(key, value)

    def copy(self, key: int, _: bytes) -> str:
        """Reads a private, writable copy and verifies it."""
        value = self._store.get(self._refs[key], copy=True)
        if isinstance(value, np.ndarray) and not value.flags.writeable:
            return f"key {key}: the copy is not writable"
        return self._verify(key, value)

    def view(self, key: int, _: bytes) -> str:
        """Keeps a view, which pins the object, until `look`."""
        self._views[key] = self._store.get(self._refs[key])
        return ""

    def look(self, key: int, _: bytes) -> str:
        """Verifies a view that was kept, perhaps after its ref was dropped, and lets it go."""
        return self._verify(key, self._views.pop(key))

    def share(self, key: int, _: bytes) -> bytes:
        """Pickles the ref for another process."""
        return pickle.dumps(self._refs[key])

    def take(self, key: int, ref: bytes) -> str:
        """Loads a ref that another process pickled."""
        self._refs[key] = pickle.loads(ref)
        return ""

    def drop(self, key: int, _: bytes) -> str:
        """Drops the ref."""
        del self._refs[key]
        return ""

    def drop_all(self, _: int, __: bytes) -> str:
        """Drops every ref and view."""
        self._refs.clear()
        self._views.clear()
        return ""

    def _verify(self, key: int, value: Any) -> str:
        fault = self._values.fault(key, value)
        return f"key {key}: the value{fault}" if fault else ""


def work(pipe: Connection, address: str, values: Values, director_pid: int) -> None:
    """The life of a worker process: join the store, serve commands, leave."""
    for copied in inherited:
        copied.drop_all(0, b"")
    with millpond.connect(address) as store:
        hand = Hand(store, values)
        pipe.send(None)
        while (command := _next_command(pipe, director_pid)) is not None:
            pipe.send(hand.perform(command))
        hand.drop_all(0, b"")


def _next_command(pipe: Connection, director_pid: int) -> Command | None:
    """The next command; None at the end, or when the director is gone.

    The end of the pipe does not say so alone: forked siblings hold copies of its other end.
    """
    while not pipe.poll(POLL_S):
        if os.getppid() != director_pid:
            return None
    try:
        command: Command | None = pipe.recv()
    except (EOFError, ConnectionResetError):
        return None
    return command
