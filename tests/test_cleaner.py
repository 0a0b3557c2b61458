"""Cleaning in the background: cold objects when memory fills, and nothing that is young or comes and goes."""

from __future__ import annotations

import numpy as np

import millpond
from millpond.store.cleaner import Cleaner
from ponds import Pond

MIB = 1 << 20


def cleaner(store: millpond.Store) -> Cleaner:
    assert store._writer is not None
    return Cleaner(store, store._writer)


def put(store: millpond.Store, count: int) -> list[millpond.ObjectRef]:
    return [store.put(np.full(MIB // 8 - 1000, i)) for i in range(count)]


def clean(store: millpond.Store, refs: list[millpond.ObjectRef]) -> list[bool]:
    states = {info.id: info.state for info in store.objects()}
    return [states[ref.id] == "clean" for ref in refs]


def test_the_coldest_are_cleaned_as_memory_fills(pond: Pond) -> None:
    store = pond.store("32MiB")
    looker, policy = cleaner(store), store._room.policy
    refs, found = put(store, 24), []
    for second in range(6):
        found.append(looker.look(policy, float(second)))
        refs += put(store, 1)
    assert found[:4] == [0, 0, 0, 0], "below the watermark, then too young"
    assert found[4] > 0
    assert clean(store, refs) == [True] * sum(found) + [False] * (len(refs) - sum(found))
    assert sum(found) <= 2 * 4, "two seconds' inflow at a time"
    before = store.stats().spilled_bytes_total
    assert store._room.evict(MIB) > 0
    assert store.stats().spilled_bytes_total == before, "to evict what is clean writes nothing"


def test_what_comes_and_goes_is_never_written(pond: Pond) -> None:
    """Nine tenths of memory in use, all of it new every second."""
    store = pond.store("32MiB")
    looker, policy = cleaner(store), store._room.policy
    refs = put(store, 28)
    for second in range(20):
        assert looker.look(policy, float(second)) == 0
        refs = refs[4:]
        refs += put(store, 4)
    assert store.stats().spilled_bytes_total == 0


def test_what_is_young_is_not_written(pond: Pond) -> None:
    """Memory fills within two looks."""
    store = pond.store("32MiB")
    looker, policy = cleaner(store), store._room.policy
    refs = []
    for second in range(3):
        refs += put(store, 9)
        assert looker.look(policy, float(second)) == 0
    assert store.stats().spilled_bytes_total == 0 and len(refs) == 27


def test_far_from_the_limit_in_time(pond: Pond) -> None:
    store = pond.store("32MiB")
    looker, policy = cleaner(store), store._room.policy
    refs = put(store, 27)
    for second in range(0, 120, 60):
        assert looker.look(policy, float(second)) == 0
        refs += put(store, 1)
    for second in range(120, 480, 60):
        assert looker.look(policy, float(second)) == 0, "a little more each minute"
    assert store.stats().spilled_bytes_total == 0 and len(refs) == 29
