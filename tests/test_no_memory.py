"""An interpreter without memory: the Nth allocation of an operation fails, for every N.

Only operations whose way is ours: NumPy and CPython do not survive all of theirs. Each time: MemoryError or
success, no fault in the table, and nothing is left of what did not come about.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import millpond
from ponds import Pond, residue
from workers import Worker

pytest.importorskip("_testcapi", reason="this Python has no allocator that fails on order")
MOST = 2000
LONE = 20
"""After so many runs in a row without an error the operation has come to its end."""


def put_array(own: Any) -> None:
    own.store.put(own.array)


def put_small(own: Any) -> None:
    for value in (1, b"x" * 3000, [1, 2]):
        own.store.put(value)


def get_small(own: Any) -> None:
    for ref in own.read:
        own.store.get(ref)


def get_view(own: Any) -> None:
    """More at a time than are kept for the next ones."""
    assert len([own.store.get(ref) for ref in own.viewed]) > 16


def build(own: Any) -> None:
    with own.store.create_buffer(3000) as draft:
        draft.seal()


def contain(own: Any) -> None:
    own.store.put([own.kept])


def copy_ref(own: Any) -> None:
    copy.copy(own.kept)


def name(own: Any) -> None:
    own.store.lookup("named")


def load(own: Any) -> None:
    millpond.load_ref(own.exported)


def prepare(own: Any, address: str) -> None:
    own.store = millpond.connect(address)
    own.store._janitor.stop()
    own.array = np.full(30_000, 7)
    own.kept = own.store.put(1)
    own.read = [own.store.put(value) for value in (1, [1, 2], b"x" * 3000)]
    with own.store.create_buffer(3000) as draft:
        own.viewed = [own.store.put(own.array), *[draft.seal()] * 20]
    del draft
    own.store.put(2, name="named")
    own.exported = own.kept.export(deliveries=2 * MOST)


def starve(own: Any, act: Callable[[Any], None]) -> tuple[int, list[str]]:
    """How many allocations have failed, and what went wrong."""
    from _testcapi import remove_mem_hooks, set_nomemory

    for _ in range(3):
        act(own)
    wrong: list[str] = []
    before, failed, lone = left(own), 0, 0
    for n in range(MOST):
        error = None
        set_nomemory(n, n + 1)
        try:
            act(own)
        except BaseException as caught:
            remove_mem_hooks()
            error = caught.with_traceback(None)
        remove_mem_hooks()
        failed, lone = (failed, lone + 1) if error is None else (failed + 1, 0)
        if not isinstance(error, MemoryError | None):
            wrong.append(f"allocation {n + 1}: {error!r}")
        error = None
        wrong += own.store.check()
        if left(own) != before:
            wrong.append(f"allocation {n + 1} left {left(own)} instead of {before}")
        if wrong or lone == LONE:
            break
    return failed, wrong


def left(own: Any) -> tuple[int, int, int]:
    stats = own.store.stats()
    return stats.objects, stats.pinned_bytes, stats.overflow_bytes


def forget(own: Any) -> None:
    own.kept = own.read = own.viewed = None
    own.store.delete("named")
    while True:
        try:
            millpond.load_ref(own.exported)
        except millpond.ObjectNotFoundError:
            return


@pytest.mark.parametrize(
    "act",
    [put_array, put_small, get_small, get_view, build, contain, copy_ref, name, load],
    ids=lambda act: act.__name__,
)
def test_every_allocation_fails(store: millpond.Store, pond: Pond, act: Any, tally: Counter[str]) -> None:
    victim: Worker = pond.worker(program=True)
    victim.run(prepare, store.address)
    victim.start(starve, act)
    failed, wrong = victim.result()
    assert wrong == []
    assert failed > 0
    tally["allocations failed"] += failed
    victim.run(forget)
    victim.end()
    assert residue(store) == {}
