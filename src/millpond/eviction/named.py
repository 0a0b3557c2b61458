"""Policies by name, by number and from a user's function: what `Store(eviction=...)` accepts.

Invariants: a name's number never changes (members exchange it through the table); each `Policy` has a history
of its own; what a user's function returns is checked before it is used.
Not here: the orders themselves (policies.py), what is remembered between rankings (history.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from millpond.eviction import policies
from millpond.eviction.history import Floor, Hand

__all__ = ["NAMES", "Policy", "name_of", "numbered", "resolve"]

Order = NDArray[np.intp]


class Policy:
    """Ranks candidates. Calling it changes nothing; `took` tells it what went in consequence."""

    def __init__(self, rank: Callable[[NDArray[Any]], Order]) -> None:
        self._rank = rank

    def __call__(self, candidates: NDArray[Any]) -> Order:
        """Distinct indices into an array of CANDIDATE, the first to go first."""
        return self._rank(candidates)

    def took(self, candidates: NDArray[Any], order: Order, count: int) -> None:
        """The first `count` of the `order` that it gave for `candidates` go now."""


class Sieve(Policy):
    """`policies.sieve` with a hand."""

    def __init__(self) -> None:
        self._hand = Hand()

    def __call__(self, candidates: NDArray[Any]) -> Order:
        return policies.sieve(candidates, self._hand.at, self._hand.visited(candidates))

    def took(self, candidates: NDArray[Any], order: Order, count: int) -> None:
        self._hand.took(candidates, order, count)


class Gdsf(Policy):
    """`policies.gdsf` with a floor."""

    def __init__(self) -> None:
        self._floor = Floor()

    def __call__(self, candidates: NDArray[Any]) -> Order:
        floor = self._floor.now(candidates)
        return policies.gdsf(candidates, self._floor.at_access(candidates, floor), floor)

    def took(self, candidates: NDArray[Any], order: Order, count: int) -> None:
        self._floor.took(candidates, order, count)


_MAKERS: Final[dict[str, Callable[[], Policy]]] = {
    "lru": lambda: Policy(policies.lru),
    "sieve": Sieve,
    "gdsf": Gdsf,
    "mru": lambda: Policy(policies.mru),
}
NAMES: Final = tuple(_MAKERS)
"""The policies by number: the place in this tuple."""


def name_of(number: int) -> str:
    """The name of the policy whose number the table holds; of one that is unknown here, the default."""
    return NAMES[number] if number < len(NAMES) else NAMES[0]


def numbered(number: int) -> Policy:
    """A fresh policy of that number."""
    return _MAKERS[name_of(number)]()


def resolve(policy: str | Callable[[NDArray[Any]], Any]) -> Policy:
    """A fresh policy for what a user passed as `eviction`: a name, or a function of their own.

    Such a function gets a read-only array of CANDIDATE and returns a sequence of distinct indices.
    Raises ValueError for an unknown name and TypeError for anything else that cannot be called; the
    returned policy raises TypeError or ValueError when the user's function returns something else.
    """
    if isinstance(policy, str):
        if policy not in _MAKERS:
            known = ", ".join(map(repr, NAMES))
            raise ValueError(f"no eviction policy is called {policy!r}: use {known} or a function")
        return _MAKERS[policy]()
    if not callable(policy):
        raise TypeError(f"eviction is a name or a function, not {type(policy).__name__}")
    return Policy(_checked(policy))


def _checked(policy: Callable[[NDArray[Any]], Any]) -> Callable[[NDArray[Any]], Order]:
    name = f"eviction policy {getattr(policy, '__qualname__', repr(policy))}"

    def rank(candidates: NDArray[Any]) -> Order:
        shown = candidates.view()
        shown.flags.writeable = False
        try:
            order = np.asarray(policy(shown))
        except Exception as error:
            error.add_note(f"raised by the {name}; nothing was evicted")
            raise
        if order.size == 0:
            return np.empty(0, np.intp)
        if order.ndim != 1 or order.dtype.kind not in "iu":
            raise TypeError(
                f"{name} must return a sequence of indices, not {order.ndim} dimensions of {order.dtype}"
            )
        _check_indices(order, len(candidates), name)
        return order.astype(np.intp, copy=False)

    return rank


def _check_indices(order: NDArray[Any], count: int, name: str) -> None:
    if order.min() < 0 or order.max() >= count:
        wrong = order[(order < 0) | (order >= count)][0]
        raise ValueError(f"{name} returned the index {wrong}, and there are {count} candidates (from 0)")
    used = np.zeros(count, np.bool_)
    used[order] = True
    if np.count_nonzero(used) < len(order):
        values, counts = np.unique(order, return_counts=True)
        raise ValueError(f"{name} returned the index {values[counts > 1][0]} more than once")
