"""Runs of a large pickle are counted by type: the sums are those of the whole tree, whatever they hold."""

from __future__ import annotations

import collections
import datetime
import pickle
import random
from typing import Any

import numpy as np
import pytest

import millpond
from millpond.values import anatomy, serialize
from millpond.values.node import Node


class Point:
    def __init__(self, x: int) -> None:
        self.x = x


_ONE = np.ones(100)
VALUES: dict[str, Any] = {
    "floats": [i / 7 for i in range(3000)],
    "numbers of every length": [(-1) ** i * 3**i for i in range(500)],
    "texts": ["short", "x" * 300, "y" * 70_000, "z" * 70_000] * 3,
    "dict": {f"key {i}": i for i in range(2500)},
    "records": [{"id": i, "name": str(i), "tags": ("a", i), "none": None} for i in range(1500)],
    "nested": [[[[i], {i: [i, {i}]}], frozenset({i, -i})] for i in range(1200)],
    "sets": [set(range(2000)), frozenset(range(2000)), ()],
    "objects": [Point(i) for i in range(1500)],
    "dates": [datetime.date(2020, 1, 1 + i % 28) for i in range(1500)],
    "arrays": [np.full(200, i) for i in range(1500)],
    "one array again and again": [_ONE] * 2000 + [np.zeros(300)],
    "small arrays": [np.arange(3) for _ in range(1200)],
    "object arrays": [np.array(["a", i], object) for i in range(1200)],
    "deques": [collections.deque([i, "x"]) for i in range(1200)],
    "named later": {"few": [Point(0)], "many": list(range(3000)), "grid": np.ones(1000), "end": "text"},
    "all at once": [0.5, [1] * 3000, {"a": np.ones(900), "b": [np.ones(90)] * 3}, Point(3), {}] * 300,
}


def dissected(value: Any, monkeypatch: pytest.MonkeyPatch, nodes: int) -> Node:
    monkeypatch.setattr(anatomy, "VALUES_MAX", nodes)
    inband, buffers = serialize.careful(value)
    return anatomy.dissect(bytes(inband), [memoryview(buffer).nbytes for buffer in buffers])


@pytest.mark.parametrize("nodes", [-1, 7, 1500])
@pytest.mark.parametrize("name", VALUES)
def test_the_sums_are_those_of_the_tree(name: str, nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = dissected(VALUES[name], monkeypatch, 1 << 60)
    skimmed = dissected(VALUES[name], monkeypatch, nodes)
    assert (skimmed.kind, skimmed.copied, skimmed.shared) == (tree.kind, tree.copied, tree.shared)
    assert skimmed.count == tree.count
    kept = dict(tree.parts)
    for step, part in skimmed.parts:
        assert (part.kind, part.copied, part.shared) == (
            kept[step].kind,
            kept[step].copied,
            kept[step].shared,
        )


def test_types_are_counted_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    value: list[Any] = [np.ones(200), *(Point(i) for i in range(3000)), *(i / 7 for i in range(500))]
    value += [np.ones(200) for _ in range(30)]
    tree, skimmed = dissected(value, monkeypatch, 1 << 60), dissected(value, monkeypatch, 1500)
    assert skimmed.kinds == tree.kinds
    assert tree.kinds["Point"] == 3000


def test_a_text_that_a_run_has_named_is_known_later(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"name {i}" for i in range(20)]
    monkeypatch.setattr(anatomy, "VALUES_MAX", -1)
    run = pickle.dumps(names, 5)
    machine = anatomy._Machine(run, iter(()))
    machine.run()
    assert [machine.literal(machine.remembered(index)) for index in (1, 20)] == ["name 0", "name 19"]


@pytest.mark.parametrize("name", ["records", "all at once", "arrays", "dict"])
def test_explain_adds_up(name: str, store: millpond.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anatomy, "VALUES_MAX", 100)
    told = store.explain({"value": VALUES[name], "grid": np.ones(10_000)})
    assert sum(part.shared_bytes for part in told.parts) == told.shared_bytes
    assert sum(part.copied_bytes for part in told.parts) == told.copied_bytes
    assert len(str(told).splitlines()) <= 60


def test_a_million_values(store: millpond.Store) -> None:
    """The limit itself: the value after the many is still shown, and the many are counted to the last."""
    told = store.explain({"many": [i / 7 for i in range(1_000_000)], "grid": np.ones(10_000)})
    parts = {part.path: part for part in told.parts}
    assert parts["value['many']"].reason == "1 000 000 float objects, rebuilt one by one"
    assert parts["value['grid']"].shared_bytes == 80_000
    assert parts["value['grid']"].reason == "a view of the store's memory"
    assert len(told.parts) == 3


def test_a_damaged_pickle_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one byte changed or the end cut off: a tree, or a ValueError; nothing else, no endless loop."""
    monkeypatch.setattr(anatomy, "VALUES_MAX", -1)
    whole = pickle.dumps([{"id": i, "at": (i, str(i), 0.5)} for i in range(40)], 5)
    chance = random.Random(7)
    outcomes = set()
    for _ in range(1500):
        data = bytearray(whole)
        data[chance.randrange(len(data))] = chance.randrange(256)
        del data[chance.randrange(len(data) // 2, len(data) + 1) :]
        try:
            anatomy.dissect(bytes(data), [])
            outcomes.add("read")
        except ValueError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}
