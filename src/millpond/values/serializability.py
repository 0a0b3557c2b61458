"""`inspect_serializability`: everything in a value that keeps it from being stored, as a tree.

Not here: the search (culprit.py), the error that `put` raises, which names the first culprit only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from millpond.hot import weak_pickling
from millpond.units import shortened
from millpond.values.culprit import Failure, find_failures
from millpond.values.serialize import failure

__all__ = ["Serializability", "inspect_serializability"]

SHOWN_MAX = 30
"""Lines of the tree that are printed."""
PATH_WIDTH = 60


@dataclass(frozen=True, slots=True)
class Serializability:
    """Whether a value can be stored, and what in it cannot. `print` it; it fits one screen."""

    tree: Failure | None
    """The value with those of its parts, down to the leaves, that cannot be pickled; None: all can."""

    @property
    def ok(self) -> bool:
        """Whether the value can be stored."""
        return self.tree is None

    @property
    def culprits(self) -> tuple[Failure, ...]:
        """The leaves of the tree: what must be left out, or taught to pickle."""
        return tuple(each for each in _walk(self.tree) if not each.parts and each.same_as is None)

    def __str__(self) -> str:
        if self.tree is None:
            return "The value can be stored."
        only = len(self.tree.parts) == 1
        told = f"value  {self.tree.kind}" + ("" if only else f": {_words(self.tree)}")
        lines = [told, *_branches(self.tree, "")]
        if len(lines) > SHOWN_MAX:
            lines[SHOWN_MAX:] = [f"... {len(lines) - SHOWN_MAX} more lines: see .tree"]
        return "\n".join(lines)


def inspect_serializability(value: Any) -> Serializability:
    """Looks for all that `put` could not pickle in a value, at any depth: in containers, attributes, and the
    closures, defaults and globals of functions.

    Nothing is stored. Each part is pickled on trial, so the code that pickles it runs. Errors of other
    kinds than `Exception` pass through.
    """
    with weak_pickling():  # refs in the value take no hand-off
        cause = failure(value)
        if cause is None:
            return Serializability(None)
        if isinstance(cause.__cause__, RecursionError):
            kind = type(value).__qualname__
            return Serializability(Failure("value", kind, "nested too deeply for pickle"))
        return Serializability(find_failures(value, cause, failure))


def _walk(tree: Failure | None) -> Iterator[Failure]:
    if tree is not None:
        yield tree
        for part in tree.parts:
            yield from _walk(part)


def _branches(tree: Failure, indent: str) -> Iterator[str]:
    for index, part in enumerate(tree.parts, start=1):
        last = index == len(tree.parts)
        while len(part.parts) == 1:  # a path without branches is one line
            part = part.parts[0]
        step = shortened(part.path.removeprefix(tree.path), PATH_WIDTH)
        yield f"{indent}{'└─' if last else '├─'} {step}  {part.kind}: {_words(part)}"
        yield from _branches(part, indent + ("   " if last else "│  "))


def _words(failure: Failure) -> str:
    if not failure.exact:
        return "something inside; the search ends here"
    return f"{len(failure.parts)} parts cannot be pickled" if failure.parts else failure.reason
