"""Inputs, and what becomes of them: the corpus is replayed, then changed at random, and what is new is kept.

An outcome is what a target says of an input: "value", or the error and its message without numbers. Parsers
here have one message for each way to be wrong, so an outcome that was not seen before stands for code that
was not reached before; its input joins those that are changed further.
"""

from __future__ import annotations

import errno
import random
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, Protocol

from fuzz.mutate import mutate
from millpond.errors import MillpondError

CORPUS = Path(__file__).parents[1] / "corpus"
_SIZE_BIAS = 4096  # inputs are chosen in proportion to 1 / (their size + this): small ones run faster
_MEND_SHARE = 0.5


class Target(Protocol):
    """Something that reads foreign bytes."""

    name: str
    """That of its directory in the corpus."""
    most: int
    """Longer inputs are cut."""

    def seeds(self) -> dict[str, bytes]:
        """Good inputs, by what they are; made by the code that writes such bytes. Always the same."""

    def mend(self, data: bytes) -> bytes:
        """`data` with the checksums that it should have, so that what they protect is reached."""

    def run(self, data: bytes) -> str:
        """What it came to. Errors of millpond's are outcomes as well; any other exception is a fault."""

    def close(self) -> None:
        """Raises AssertionError if the inputs have left something behind."""


class Fault(AssertionError):
    """An input that was not dealt with."""

    def __init__(self, data: bytes, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.data = data


def outcome(target: Target, data: bytes) -> str:
    """What comes of one input. Raises Fault."""
    try:
        return target.run(data)
    except MillpondError as error:
        refused = isinstance(error, MemoryError) or getattr(error, "errno", 0) == errno.ENOMEM
        if refused:  # an input asked for too much
            raise Fault(data, error) from error
        return f"{type(error).__name__}: {shape(str(error))}"
    except Exception as error:
        raise Fault(data, error) from error


_PARTICULAR = re.compile(r"'[^']*'|\S*[/\d]\S*")


def shape(message: str) -> str:
    """The message without what is particular to an input: numbers, paths, quotations."""
    return _PARTICULAR.sub("#", message)[:200]


def corpus(target: Target) -> dict[str, bytes]:
    """What was kept for a target, by name."""
    return {path.name: path.read_bytes() for path in sorted((CORPUS / target.name).iterdir())}


def keep(target: Target, name: str, data: bytes) -> Path:
    """Writes an input into the corpus, by the first words of what it is."""
    words = re.findall(r"[a-z0-9]+", (name.partition("Error: ")[2] or name).lower())
    path = CORPUS / target.name / "-".join(words[:9])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


class Run(NamedTuple):
    """What a run has done."""

    executions: int
    new: dict[str, bytes]
    """An input for each outcome that the corpus does not have."""


def replay(target: Target, inputs: Iterable[bytes]) -> set[str]:
    """The outcomes of inputs, none of which may be a fault."""
    return {outcome(target, data) for data in inputs}


def fuzz(
    target: Target,
    rng: random.Random,
    executions: int,
    seconds: float = float("inf"),
    note: Callable[[bytes], None] = lambda data: None,
) -> Run:
    """Runs changed inputs until so many were run, or the time is over. Raises Fault."""
    pool = list(corpus(target).values())
    known = replay(target, pool)
    new: dict[str, bytes] = {}
    weights = [1 / (len(data) + _SIZE_BIAS) for data in pool]
    end = time.monotonic() + seconds
    done = 0
    while done < executions and time.monotonic() < end:
        for data in rng.choices(pool, weights, k=min(100, executions - done)):
            changed = mutate(rng, data, pool)[: target.most]
            if rng.random() < _MEND_SHARE:
                changed = target.mend(changed)[: target.most]
            note(changed)
            found = outcome(target, changed)
            done += 1
            if found not in known:
                known.add(found)
                new[found] = changed
                pool.append(changed)
                weights.append(1 / (len(changed) + _SIZE_BIAS))
            elif found in new and len(changed) < len(new[found]):
                new[found] = changed
    return Run(done + len(pool), new)
