"""wait: which of these are ready, and sleeping until enough of them are."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest

import millpond
from ponds import Pond


def test_ready_and_pending_keep_the_order(store: millpond.Store) -> None:
    drafts = [store.create(3, "f8") for _ in range(3)]
    sealed = [store.put(number) for number in range(3)]
    refs = [drafts[0].ref, sealed[0], drafts[1].ref, sealed[1], sealed[2], drafts[2].ref]
    assert store.wait(refs) == (sealed, [draft.ref for draft in drafts])
    drafts[1].seal()
    ready, pending = store.wait(refs, num_returns=4)
    assert ready == [sealed[0], drafts[1].ref, sealed[1], sealed[2]]
    assert pending == [drafts[0].ref, drafts[2].ref]
    for draft in drafts:
        draft.abort()


def test_nothing_to_wait_for(store: millpond.Store) -> None:
    assert store.wait([], num_returns=0) == ([], [])
    draft = store.create(3, "f8")
    assert store.wait([draft.ref], num_returns=0) == ([], [draft.ref])
    draft.abort()


@pytest.mark.parametrize("count", [-1, 2])
def test_num_returns_must_be_possible(store: millpond.Store, count: int) -> None:
    with pytest.raises(ValueError, match="there are 1 refs"):
        store.wait([store.put(1)], num_returns=count)
    with pytest.raises(ValueError, match="there are 0 refs"):
        store.wait([])


def test_wait_wants_refs(store: millpond.Store) -> None:
    with pytest.raises(TypeError, match="expected a ref"):
        store.wait([7])  # type: ignore[list-item]


@pytest.mark.parametrize("timeout", [0, 0.1])
def test_wait_ends_when_told(store: millpond.Store, timeout: float) -> None:
    draft, ref = store.create(3, "f8"), store.put(1)
    start = time.monotonic()
    assert store.wait([draft.ref, ref], num_returns=2, timeout=timeout) == ([ref], [draft.ref])
    assert timeout <= time.monotonic() - start < 5
    draft.abort()


def test_the_same_ref_twice(store: millpond.Store) -> None:
    ref = store.put(1)
    assert store.wait([ref, ref], num_returns=2) == ([ref, ref], [])


@pytest.mark.parametrize("which", [0, 1])
def test_wait_is_woken_by_any_seal(store: millpond.Store, which: int) -> None:
    drafts = [store.create(3, "f8") for _ in range(2)]
    refs = [draft.ref for draft in drafts]
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(store.wait(refs)))
    thread.start()
    drafts[which].seal()
    thread.join(5)
    assert found == [([refs[which]], [refs[1 - which]])]
    drafts[1 - which].abort()


def test_what_is_known_to_be_gone_is_ready(pond: Pond, store: millpond.Store) -> None:
    writer = pond.member(store)

    def make(own: Any) -> millpond.ObjectRef:
        own.draft = own.store.create(1000, "f8")
        ref: millpond.ObjectRef = own.draft.ref
        return ref

    refs = [store.put(1), store.create(3, "f8").ref, writer.run(make)]
    store.delete(refs[0])
    assert store.wait(refs, num_returns=2, timeout=0)[1] == [refs[2]]
    writer.kill()
    assert store.wait(refs, num_returns=3, timeout=10) == (refs, [])


def test_wait_restores_nothing(pond: Pond) -> None:
    store = pond.store("1MiB")
    refs = [store.put(np.zeros(40_000)) for _ in range(8)]
    assert store.stats().spilled_objects >= 4
    assert store.wait(refs, num_returns=8, timeout=0) == (refs, [])
    assert store.stats().restored_objects_total == 0
