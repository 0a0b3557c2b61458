"""Policies: in which order objects should go, as pure functions of a snapshot.

A policy gets a snapshot of the objects that could go, one record each, and returns their indices,
the first to go first. It may leave some out: those stay.
Two of the built-in ones need to know more than a snapshot tells: where SIEVE's hand stands, how far
GDSF's floor has risen. That is passed in, and kept by whoever evicts (history.py): there are no lists in
shared memory, nothing that a crash could tear.
Invariants: a policy chooses and never frees; what a user's function returns is checked before it is used.
Not here: which objects are candidates (hot), how many are needed (ranking.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["CANDIDATE", "NEAR", "gdsf", "lru", "mru", "sieve"]

CANDIDATE: Final = np.dtype(
    [
        ("entry", "<u4"),  # index in the table; with birth, the object's id
        ("clean", "u1"),  # 1: it has a disk copy, so that evicting it writes nothing
        ("hits", "u1"),  # reads since it came to memory, saturating at 254
        ("pad", "<u2"),
        ("birth", "<u8"),  # counts the objects of the store in the order of their creation
        ("size", "<u8"),  # bytes of memory that come free
        ("stamp", "<u8"),  # last access in ticks: larger is more recent
        ("arrived", "<u8"),  # when it last came to memory, by a put or from disk, in the same ticks
    ]
)
"""One object that could go. Filled by compiled code: the layout is part of the contract."""

NEAR: Final = 1.1
"""Near-equals differ by less than this factor: among them, those that have a disk copy go first."""

BREAK_EVEN_BYTES: Final = 200_000
"""The size that takes as long to read as the disk takes to answer: 100 us times 2 GB/s, measured with direct
I/O on a virtual disk. GDSF depends on this product alone, and little: from 50 KB to 1 MB the I/O of ten
workloads (benchmarks/eviction.py) falls by 5 % in all, and rises by 10 % where things are soon dropped."""

Order = NDArray[np.intp]


def lru(candidates: NDArray[Any]) -> Order:
    """The least recently used first.

    Exact, but for this: of objects whose idle times (counted back from the newest access) differ by less
    than 10 %, those with a disk copy go first. Nothing goes before what was idle more than 10 % longer.
    """
    order = _ascending(candidates["stamp"])
    return _clean_first(candidates, order, lambda: _near(_idle(candidates)))


def mru(candidates: NDArray[Any]) -> Order:
    """The most recently used first: for loops over more than fits, in the same order each time.

    Clean ones first as in `lru`.
    """
    order = _ascending(candidates["stamp"])[::-1]
    return _clean_first(candidates, order, lambda: _near(_idle(candidates)))


def sieve(candidates: NDArray[Any], hand: int, visited: NDArray[np.bool_]) -> Order:
    """SIEVE: a hand goes over the objects from the oldest to the newest arrival and round again; it takes
    what was not read since it came by last, and spares the rest once (Zhang et al., NSDI 2024, section 3).

    hand: where it stands, an `arrived`: those after it are next. visited: which were read since. Clean ones
    first among those that are taken alike and whose times in memory differ by less than 10 %.
    """
    arrived = candidates["arrived"]
    ring = _ascending(arrived - np.uint64(hand) - np.uint64(1))  # wraps: the newest come before the oldest
    spared = visited[ring]
    order = np.concatenate([ring[~spared], ring[spared]])
    youngest = arrived.max(initial=0)
    return _clean_first(candidates, order, lambda: 2 * _near(youngest - arrived) + visited)


def gdsf(candidates: NDArray[Any], floors: NDArray[np.float64], floor: float) -> Order:
    """GreedyDual-Size-Frequency: the least worth first (Cao and Irani, USITS 1997; Cherkasova, HPL-98-69R1).

    floors: the floor at the time of each object's last access; floor: as it is now. Clean ones first among
    those whose worths lie near each other above the floor, by less than 10 %.
    """
    value = worth(candidates, floors)
    return _clean_first(candidates, _ascending(value), lambda: _near(np.maximum(value - floor, 0) * 2**20))


def worth(candidates: NDArray[Any], floors: NDArray[np.float64]) -> NDArray[np.float64]:
    """H = floor at the last access + frequency * cost / size, where cost is the time to read it back: an
    answer of the disk plus the transfer, in units of the time that a byte takes."""
    size = np.maximum(candidates["size"], 1).astype(np.float64)
    value: NDArray[np.float64] = floors + (1.0 + candidates["hits"]) * (1.0 + BREAK_EVEN_BYTES / size)
    return value


def newest(candidates: NDArray[Any]) -> int:
    """The time of the snapshot: that of the last access in it, in ticks; 0 if there is none."""
    return int(candidates["stamp"].max(initial=0))


def _idle(candidates: NDArray[Any]) -> NDArray[np.uint64]:
    idle: NDArray[np.uint64] = np.uint64(newest(candidates)) - candidates["stamp"]
    return idle


def _near(quantity: NDArray[Any]) -> NDArray[np.int64]:
    """A number for each, the same only for quantities that differ by less than the factor NEAR."""
    steps: NDArray[np.int64] = np.floor(np.log1p(quantity.astype(np.float64)) / np.log(NEAR)).astype(np.int64)
    return steps


def _ascending(keys: NDArray[Any]) -> Order:
    """NumPy sorts contiguous keys of 64 bits with vector instructions, several times as fast as stably."""
    return np.argsort(np.ascontiguousarray(keys))


def _clean_first(candidates: NDArray[Any], order: Order, near: Callable[[], NDArray[np.int64]]) -> Order:
    """`order`, but in each run of candidates of the same `near`, those with a disk copy come first."""
    dirty = candidates["clean"] == 0
    if dirty.all() or not dirty.any():
        return order
    dirty, group = dirty[order], near()[order]
    run = np.cumsum(np.concatenate(([False], group[1:] != group[:-1])))
    # Runs are few, since quantities of 64 bits have 465 steps of 10 %; and two bytes are sorted by radix.
    preferred: Order = order[np.argsort((2 * run + dirty).astype(np.uint16), kind="stable")]
    return preferred
