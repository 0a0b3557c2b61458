"""One value of a pickle, as the two readers of it know it: which bytes are its own, and what its parts are.

Invariant: a node only tells of the pickle; the value itself is never there.
Not here: how the tree comes about (anatomy.py), values that are only counted (skim.py).
"""

from __future__ import annotations

from collections import Counter
from typing import Any, TypeAlias

__all__ = ["PARTS_MAX", "Known", "Node"]

PARTS_MAX = 1024
"""Parts of one value that are kept apart; what comes after them is only counted."""

_NO_PARTS: list[Any] = []
_NO_KINDS: Counter[str] = Counter()


class Node:
    """One value in a pickle: `start` to `end` are its bytes in-band, `shared` its bytes out of band.

    kind: the name of its type, or of what builds it, with "()"; "" for memory out of band, "same" for what
    was met before (`same`). parts: (step of the path, node), at most `PARTS_MAX`; `count`, `kinds` and
    `shared` are those of all.
    """

    __slots__ = ("at", "count", "end", "kind", "kinds", "name", "parts", "same", "shared", "start")

    def __init__(self, kind: str, start: int, end: int, shared: int = 0) -> None:
        self.kind, self.start, self.end, self.shared = kind, start, end, shared
        self.at = start  # also where a dict's key moves the start
        self.count = 0
        self.parts: list[tuple[str, Node]] = _NO_PARTS  # most values are atoms
        self.kinds: Counter[str] = _NO_KINDS
        self.same: Node | None = None
        self.name = ""  # of a global

    @property
    def copied(self) -> int:
        """Bytes in-band, those of the parts included."""
        return self.end - self.start

    def add(self, step: str, part: Node) -> None:
        """Makes `part` a part of this value."""
        if not self.count:
            self.parts, self.kinds = [], Counter()
        self.count += 1
        self.kinds[part.kind] += 1
        self.shared += part.shared
        if len(self.parts) < PARTS_MAX:
            self.parts.append((step, part))

    def count_in(self, kinds: list[str], shared: int) -> None:
        """So many parts more, of which only the types are known."""
        if not self.count:
            self.parts, self.kinds = [], Counter()
        self.count += len(kinds)
        self.kinds.update(kinds)
        self.shared += shared


Known: TypeAlias = Node | str | int
"""What the memo has: a node, or from a run the name of a type, or where a text or bytes begin."""
