"""What several processes did to one store, and whether that can have been so.

An object is written once, so a history is right if and only if
    a get that succeeds gives what was put, and did not begin after a delete had returned;
    a get that says "deleted" did not end before a delete had begun;
    nothing that a process holds is ever not found, or lost.
That is linearizability for a register that is written once and deleted, in linear time.
An operation is one line when it begins and one when it ends, so that a process may be killed between them.
Not here: the processes (`storm`).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

NEVER = 1 << 63


class Event(NamedTuple):
    """One operation. An `end` of NEVER: its process died in it."""

    operation: str
    """put, get or delete."""
    object: str
    start: int
    """Of the monotonic clock, in nanoseconds."""
    end: int
    outcome: str
    """ok, deleted, lost, missing; anything else is a refusal, which promises nothing."""
    seed: int
    """What the value was made from; 0: not known."""


class Recorder:
    """Writes the history of one process; every line is in the file before the call goes on."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._number = 0

    def close(self) -> None:
        """Nothing more is recorded."""
        os.close(self._fd)

    def begin(self, operation: str, name: str = "") -> int:
        """The operation starts; its number."""
        self._number += 1
        self._write({"n": self._number, "op": operation, "id": name, "at": time.monotonic_ns()})
        return self._number

    def end(self, number: int, outcome: str, name: str = "", seed: int = 0) -> None:
        """It has ended."""
        line = {"n": number, "out": outcome, "at": time.monotonic_ns(), "seed": seed}
        self._write({**line, "id": name} if name else line)

    def _write(self, line: dict[str, Any]) -> None:
        os.write(self._fd, json.dumps(line).encode() + b"\n")


def read(path: Path) -> Iterator[Event]:
    """The events of one file; a last line that was not written to its end does not count."""
    begun: dict[int, dict[str, Any]] = {}
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if "op" in line:
            begun[line["n"]] = line
        else:
            first = begun.pop(line["n"])
            name = line.get("id", first["id"])
            yield Event(first["op"], name, first["at"], line["at"], line["out"], line["seed"])
    for first in begun.values():
        yield Event(first["op"], first["id"], first["at"], NEVER, "killed", 0)


@dataclass
class _Life:
    """What is known of one object."""

    seed: int = 0
    doomed: int = NEVER
    """When the first delete began."""
    gone: int = NEVER
    """When the first delete had returned."""


@dataclass
class Verdict:
    """What the check of a history has found."""

    gets: int = 0
    refusals: int = 0
    faults: list[str] = field(default_factory=list)


def check(events: Iterable[Event]) -> Verdict:
    """Whether all of it can have been so."""
    events = list(events)
    lives: dict[str, _Life] = {}
    for event in events:
        life = lives.setdefault(event.object, _Life())
        if event.operation == "put" and event.outcome == "ok":
            life.seed = event.seed
        elif event.operation == "delete":
            life.doomed = min(life.doomed, event.start)
            life.gone = min(life.gone, event.end)
    verdict = Verdict()
    for event in events:
        if event.operation == "get" and event.end != NEVER:
            _check_get(event, lives[event.object], verdict)
    return verdict


def _check_get(event: Event, life: _Life, verdict: Verdict) -> None:
    verdict.gets += 1
    reason = None
    if event.outcome == "ok":
        if life.seed and event.seed != life.seed:
            reason = f"holds {event.seed} instead of {life.seed}"
        elif event.start > life.gone:
            reason = f"was read {event.start - life.gone} ns after its delete had returned"
    elif event.outcome == "deleted":
        if event.end < life.doomed:
            reason = "was called deleted before anybody deleted it"
    elif event.outcome in ("lost", "missing", "wrong"):
        reason = f"is {event.outcome}, though it was held"
    else:
        verdict.refusals += 1
    if reason:
        verdict.faults.append(f"object {event.object} {reason}")
