"""All that keeps a value from being stored, down to the leaves."""

from __future__ import annotations

import functools
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import millpond
from millpond import inspect_serializability
from millpond.values import culprit


def paths(value: Any) -> list[str]:
    return [each.path for each in inspect_serializability(value).culprits]


def test_what_can_be_stored() -> None:
    found = inspect_serializability({"a": [np.ones(3), lambda: 1]})
    assert found.ok and found.tree is None and found.culprits == ()
    assert str(found) == "The value can be stored."


def test_all_leaves_are_found_across_containers_attributes_and_closures() -> None:
    lock, stream = threading.Lock(), threading.RLock()
    value = {
        "model": SimpleNamespace(guard=lock, good=1),
        "call": lambda: stream,
        "partial": functools.partial(print, threading.Condition()),
        "good": [1, 2],
    }
    found = inspect_serializability(value)
    assert not found.ok
    assert paths(value)[:2] == ["value['model'].guard", "value['call'].__closure__['stream']"]
    assert all(path.startswith("value['partial'].args[0].") for path in paths(value)[2:])
    assert {each.kind for each in found.culprits} >= {"_thread.lock", "_thread.RLock"}
    assert found.culprits[0].reason == "cannot pickle '_thread.lock' object"


def test_an_object_that_is_there_twice_and_cycles() -> None:
    node = SimpleNamespace(lock=threading.Lock())
    node.child = SimpleNamespace(parent=node)
    value = [node, node.lock]
    assert paths(value) == ["value[0].lock"]
    text = str(inspect_serializability(value))
    assert ".child.parent" in text and "the same object as value[0]\n" in text
    assert text.endswith("the same object as value[0].lock")


def test_the_tree_as_it_is_printed() -> None:
    lock = threading.Lock()
    value = {"a": {"b": [lock, {"c": threading.Lock()}]}, "d": 1}
    assert str(inspect_serializability(value)).splitlines() == [
        "value  dict",
        "└─ ['a']['b']  list: 2 parts cannot be pickled",
        "   ├─ [0]  _thread.lock: cannot pickle '_thread.lock' object",
        "   └─ [1]['c']  _thread.lock: cannot pickle '_thread.lock' object",
    ]


def test_a_culprit_by_itself() -> None:
    text = str(inspect_serializability(threading.Lock()))
    assert text == "value  _thread.lock: cannot pickle '_thread.lock' object"


def test_it_fits_one_screen() -> None:
    lines = str(inspect_serializability([threading.Lock() for _ in range(500)])).splitlines()
    assert len(lines) <= 32 and lines[-1] == "... 471 more lines: see .tree"


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    deep: Any = threading.Lock()
    for _ in range(culprit.DEPTH_MAX + 20):
        deep = [deep]
    (cut,) = inspect_serializability(deep).culprits
    assert not cut.exact and "the search ends here" in str(inspect_serializability(deep))
    monkeypatch.setattr(culprit, "TRIALS_MAX", 10)
    found = inspect_serializability([[i] for i in range(20)] + [threading.Lock()])
    assert found.tree is not None and not found.tree.exact


def test_what_is_nested_too_deeply() -> None:
    value: Any = 1
    for _ in range(100_000):
        value = [value]
    (found,) = inspect_serializability(value).culprits
    assert found.reason == "nested too deeply for pickle"


def test_refs_in_the_value_take_no_hand_off(store: millpond.Store) -> None:
    ref = store.put(1)
    assert not inspect_serializability([ref, threading.Lock()]).ok
    assert inspect_serializability([ref]).ok
    assert store.refs(ref).handoffs == ()


def test_other_errors_pass_through() -> None:
    class Interrupted:
        def __reduce__(self) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inspect_serializability([Interrupted()])
