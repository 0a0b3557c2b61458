"""Policies: pure functions that say in which order objects should go.

A policy gets a snapshot of the objects that could go, one record each, and returns their indices,
the first to go first. It may leave some out: those stay.
Invariants: a policy chooses and never frees; what it returns is checked before it is used.
Not here: which objects are candidates (hot), how many are needed (ranking.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["CANDIDATE", "Rank", "lru", "resolve"]

CANDIDATE: Final = np.dtype(
    [
        ("entry", "<u4"),  # index in the table; with birth, the object's id
        ("clean", "u1"),  # 1: it has a disk copy, so that evicting it writes nothing
        ("hits", "u1"),  # reads so far, saturating at 255
        ("pad", "<u2"),
        ("birth", "<u8"),
        ("size", "<u8"),  # bytes of memory that come free
        ("stamp", "<u8"),  # last access in ticks: larger is more recent
    ]
)
"""One object that could go. Filled by compiled code: the layout is part of the contract."""

Rank: TypeAlias = Callable[[NDArray[Any]], NDArray[np.intp]]
"""From an array of CANDIDATE to indices into it, the first to go first."""


def lru(candidates: NDArray[Any]) -> NDArray[np.intp]:
    """The least recently used first, exactly."""
    return np.argsort(candidates["stamp"])


POLICIES: Final[dict[str, Rank]] = {"lru": lru}


def resolve(policy: str | Callable[[NDArray[Any]], Any]) -> Rank:
    """The ranking function for what a user passed as `eviction`: a name, or a function of their own.

    Such a function gets a read-only array of CANDIDATE and returns a sequence of distinct indices.
    Raises ValueError for an unknown name and TypeError for anything else that cannot be called; the
    returned function raises TypeError or ValueError when the user's one returns something else.
    """
    if isinstance(policy, str):
        try:
            return POLICIES[policy]
        except KeyError:
            known = ", ".join(map(repr, POLICIES))
            raise ValueError(f"no eviction policy is called {policy!r}: use {known} or a function") from None
    if not callable(policy):
        raise TypeError(f"eviction is a name or a function, not {type(policy).__name__}")
    return _checked(policy)


def _checked(policy: Callable[[NDArray[Any]], Any]) -> Rank:
    name = f"eviction policy {getattr(policy, '__qualname__', repr(policy))}"

    def rank(candidates: NDArray[Any]) -> NDArray[np.intp]:
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
