"""What the stress run knows for sure: who holds which object, and which refs are on their way.

Invariants: a holder is entered after it answered and struck off before it is told to drop, so an
object in the books exists whatever happens to the others; an object that leaves the books may or may
not exist.
Not here: what is done with that knowledge (director.py).
"""

from __future__ import annotations

from collections import Counter


class Books:
    """Holders, views and travelling refs, by the numbers of members and the keys of objects."""

    def __init__(self) -> None:
        self.held: dict[int, set[int]] = {}
        self.views: dict[int, list[int]] = {}
        self._travelling: Counter[int] = Counter()
        self._sizes: dict[int, int] = {}

    @property
    def live_bytes(self) -> int:
        """Payload of all objects that surely exist."""
        return sum(self._sizes.values())

    @property
    def live(self) -> list[int]:
        """Keys of all objects that surely exist."""
        return list(self._sizes)

    def size(self, key: int) -> int:
        """Payload of a live object."""
        return self._sizes[key]

    def join(self, member: int) -> None:
        """A member that holds nothing yet."""
        self.held[member] = set()
        self.views[member] = []

    def put(self, member: int, key: int, size: int) -> None:
        """A new object, held by its creator."""
        self._sizes[key] = size
        self.held[member].add(key)

    def drop(self, member: int, key: int) -> None:
        """The member is about to drop its ref."""
        self.held[member].discard(key)
        self._settle(key)

    def send(self, key: int) -> None:
        """A ref was pickled and is on its way: it holds the object by itself."""
        self._travelling[key] += 1

    def arrive(self, member: int, key: int, size: int) -> None:
        """The ref was loaded."""
        self.stray(key)
        self.put(member, key, size)

    def stray(self, key: int) -> None:
        """The ref was not loaded and never will be."""
        self._travelling[key] -= 1
        if not self._travelling[key]:
            del self._travelling[key]
        self._settle(key)

    def die(self, member: int) -> set[int]:
        """The member was killed. Returns the objects it held that must have survived it."""
        held = self.held.pop(member)
        del self.views[member]
        for key in held:
            self._settle(key)
        return held & self._sizes.keys()

    def owners(self, key: int) -> list[int]:
        """Members that surely hold the object."""
        return [member for member, held in self.held.items() if key in held]

    def _settle(self, key: int) -> None:
        if not self._travelling[key] and not self.owners(key):
            self._sizes.pop(key, None)
