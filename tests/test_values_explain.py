"""`explain` agrees with what put and get do, byte by byte, and says so on one screen."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import tracemalloc
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import millpond
from jobs import Tile, reduce_tile
from millpond.hot import STORED_BYTES, dumps
from millpond.store.restore import Deadline
from millpond.values import anatomy
from millpond.values.node import Node
from ponds import Pond


@dataclasses.dataclass
class Settings:
    rate: float = 0.1
    weights: Any = None


def ray_users_value() -> dict[str, Any]:
    """What was asked about: a dict with one large array, two lists, a bool and an object."""
    return {
        "grid": np.ones((1000, 500)),
        "losses": [float(i) for i in range(10_000)],
        "names": [f"name-{i}" for i in range(5_000)],
        "trained": True,
        "settings": Settings(),
    }


def shared_array() -> list[Any]:
    array = np.ones(1000)
    return [array, array]


VALUES = {
    "ray": ray_users_value,
    "array": lambda: np.ones((30, 40)),
    "fortran": lambda: np.ones((30, 40), order="F"),
    "gaps": lambda: np.ones((100, 400))[:, ::3],
    "nested gaps": lambda: {"x": np.ones((1000, 400))[:, ::3]},
    "dates": lambda: [np.zeros(5000, "M8[s]")],
    "small array": lambda: {"x": np.ones(5)},
    "objects": lambda: np.array([{"a": 1}, None, "x" * 600], object),
    "same": shared_array,
    "frame": lambda: pd.DataFrame({"i": np.arange(3000), "f": np.ones(3000), "s": ["abc"] * 3000}),
    "attributes": lambda: Settings(weights=[np.ones(300), np.ones(400)]),
    "bytes": lambda: [b"x" * 300_000, bytearray(200_000), "y" * 100_000],
    "ordered": lambda: collections.OrderedDict(a=np.ones(100), b=2),
    "lambda": lambda: [lambda: 1, np.ones(1000)],
    "scalar": lambda: 7,
    "empty": list,
    "many arrays": lambda: [np.ones(100) for _ in range(40)],
    "text keys": lambda: {f"key {i}": i for i in range(3000)},
    "strings": lambda: pd.DataFrame({"s": np.array([f"{i:50}" for i in range(500)], object)}, dtype=object),
    "sets": lambda: ({1, 2}, frozenset("abc"), collections.deque([1, 2])),
}


def arrays_in(value: Any) -> list[np.ndarray[Any, Any]]:
    """Each array in one of the values above, once."""
    found: dict[int, np.ndarray[Any, Any]] = {}

    def visit(part: Any) -> None:
        if isinstance(part, np.ndarray) and part.dtype != object:
            found[id(part)] = part
        elif isinstance(part, pd.DataFrame):
            for block in part._mgr.blocks:
                if isinstance(block.values, np.ndarray):
                    visit(block.values)
                else:  # strings, in the buffers of an Arrow array where pyarrow is there
                    for chunk in getattr(getattr(block.values, "_pa_array", None), "chunks", ()):
                        for buffer in filter(None, chunk.buffers()):
                            visit(np.frombuffer(buffer, np.uint8))
        elif isinstance(part, dict):
            for inner in part.values():
                visit(inner)
        elif isinstance(part, list | tuple):
            for inner in part:
                visit(inner)
        elif isinstance(part, Settings):
            visit(part.weights)

    visit(value)
    return list(found.values())


@pytest.mark.parametrize("name", VALUES)
def test_what_it_says_is_what_get_does(store: millpond.Store, name: str) -> None:
    value = VALUES[name]()
    before = store.explain(value)
    ref = store.put(value)
    told = store.explain(ref)
    assert dataclasses.replace(told, build_s=0, place="") == dataclasses.replace(before, build_s=0, place="")
    assert told.size == ref.size == told.shared_bytes + told.copied_bytes + told.overhead_bytes
    assert sum(part.shared_bytes for part in told.parts) == told.shared_bytes
    assert sum(part.copied_bytes for part in told.parts) == told.copied_bytes
    assert 0 <= told.overhead_bytes <= 128 + 80 * len(arrays_in(value))
    memory = np.frombuffer(store._restore.get(ref, Deadline(None), STORED_BYTES), np.uint8)
    read = store.get(ref)
    views = [array for array in arrays_in(read) if array.size and np.shares_memory(array, memory)]
    assert sum(array.nbytes for array in views) == told.shared_bytes
    copies = [array for array in arrays_in(read) if not np.shares_memory(array, memory)]
    assert sum(array.nbytes for array in copies) <= told.copied_bytes
    del memory, read, views, copies


@pytest.mark.parametrize("name", ["ray", "array", "nested gaps", "attributes", "bytes", "many arrays"])
def test_get_allocates_for_the_copied_bytes_only(store: millpond.Store, name: str) -> None:
    ref = store.put(VALUES[name]())
    told = store.explain(ref)
    store.get(ref)
    tracemalloc.start()
    try:
        value = store.get(ref)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A float or a str takes four times its pickled size, and a view a few hundred bytes.
    assert told.copied_bytes // 2 - 500 <= grown <= 8 * told.copied_bytes + 1000 * (1 + len(arrays_in(value)))
    del value


def by_path(store: millpond.Store, value: Any) -> dict[str, millpond.Part]:
    return {part.path: part for part in store.explain(value).parts}


def test_the_users_value_fits_one_screen(store: millpond.Store) -> None:
    text = str(store.explain(ray_users_value()))
    lines = text.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 120
    assert "3.81 MiB" in lines[0]
    (grid,) = [line for line in lines if line.startswith("value['grid']")]
    assert "ndarray" in grid and "a view of the store's memory" in grid
    (losses, advice) = [line for line in lines if line.startswith("value['losses']")]
    assert "10 000 float objects" in losses
    assert advice == "value['losses']: a NumPy array would be shared"
    for other in ("['names']", "['trained']", "['settings']"):
        assert any(line.startswith(f"value{other}") for line in lines)


def test_reasons_and_advice(store: millpond.Store) -> None:
    value = {
        "numbers": list(range(1000)),
        "rows": [(i, str(i)) for i in range(200)],
        "text": "x" * 1000,
        "raw": b"x" * 1000,
        "small": np.ones(3),
        "objects": np.array([f"{i:40}" for i in range(50)], object),
        "table": {i: i * 0.5 for i in range(500)},
        "ref": store.put(1),
        "call": lambda: 1,
        "masked": np.ma.array(np.ones(1000)),
    }
    parts = by_path(store, value)
    told = {path.removeprefix("value"): (part.kind, part.advice) for path, part in parts.items()}
    assert told["['numbers']"] == ("list", "a NumPy array would be shared")
    assert told["['rows']"][1].startswith("columns")
    assert "frombuffer" in told["['text']"][1] and "frombuffer" in told["['raw']"][1]
    assert told["['small']"] == ("ndarray", "")
    assert "dtype of numbers" in told["['objects']"][1]
    assert "array of keys" in told["['table']"][1]
    assert told["['ref']"] == ("ObjectRef", "")
    assert told["['call']"][0] == "function"
    assert "np.asarray" in told["['masked']"][1]
    assert not any(part.zero_copy for part in parts.values())


def test_an_object_that_is_there_twice_is_told_once(store: millpond.Store) -> None:
    first, again = list(by_path(store, shared_array()).values())[1:]
    assert (first.shared_bytes, again.shared_bytes) == (8000, 0)
    assert "the same object as value[0]" in again.reason


Pair = collections.namedtuple("Pair", "left right")


def test_what_a_user_does_not_know_is_not_shown_apart(store: millpond.Store) -> None:
    parts = by_path(store, {"frame": VALUES["strings"](), "pair": Pair(np.ones(500), 1)})
    assert [path for path in parts if path.startswith("value['frame']")] == [
        "value['frame']", "value['frame']._mgr",
    ]  # fmt: skip
    assert "dtype of numbers" in parts["value['frame']._mgr"].advice
    assert parts["value['pair'].left"].shared_bytes == 4000


def test_types_with_a_rule_of_ones_own(store: millpond.Store) -> None:
    tile = Tile(np.ones(1000))
    assert by_path(store, [tile])["value[0].data"].advice == "a NumPy array would be shared"
    millpond.register_reducer(Tile, reduce_tile)
    try:
        part = by_path(store, [tile])["value[0]"]
    finally:
        millpond.register_reducer(Tile, None)
    assert (part.kind, part.shared_bytes, part.zero_copy) == ("rebuild_tile()", 8000, True)


def test_objects_on_disk_and_larger_than_memory(pond: Pond) -> None:
    store = pond.store("1MiB", overflow_limit="8MiB")
    ref = store.put({"x": np.ones(30_000)})
    store.spill()
    assert store.explain(ref).place == "memory"
    large = store.put({"x": np.ones(300_000)})
    told = store.explain(large)
    assert (told.place, told.shared_bytes) == ("private copy", 2_400_000)
    assert "private copy" in str(told)
    del told


def test_buffers_and_drafts(store: millpond.Store) -> None:
    with store.create_buffer(5000) as draft:
        ref = draft.seal()
    (part,) = store.explain(ref).parts
    assert (part.kind, part.shared_bytes) == ("memoryview", 5000)


def test_many_parts_are_summed_up(store: millpond.Store) -> None:
    value = {f"part {i}": [np.ones(100), "text"] for i in range(200)}
    told = store.explain(value)
    assert sum(part.shared_bytes for part in told.parts) == told.shared_bytes == 160_000
    assert len(str(told).splitlines()) <= 26
    mixed = {f"part {i}": np.ones(100) if i % 2 else [1, np.ones(99)] for i in range(200)}
    text = str(store.explain(mixed))
    assert "smaller parts" in text and len(text.splitlines()) <= 26


def test_what_cannot_be_explained(store: millpond.Store) -> None:
    with pytest.raises(millpond.SerializationError):
        store.explain(open)
        store.explain({"f": (i for i in range(3))})
    other = store.put(3)
    store.delete(other)
    with pytest.raises(millpond.ObjectDeletedError):
        store.explain(other)


# --- the tree of a pickle ---

ATOMS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
KEYS = st.text() | st.integers() | st.booleans()
NESTED = st.recursive(
    ATOMS | st.builds(lambda n: np.ones(n), st.integers(0, 200)),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(KEYS, inner)
        | st.tuples(inner, inner)
        | st.builds(Settings, ATOMS, inner)
        | st.builds(lambda x: [x, x], inner)
    ),
    max_leaves=30,
)


@settings(deadline=None, max_examples=150)
@given(NESTED)
def test_the_tree_has_the_shape_of_the_value(value: Any) -> None:
    inband, buffers = dumps(value)
    root = anatomy.dissect(inband, [buffer.nbytes for buffer in buffers])
    assert root.shared == sum(buffer.nbytes for buffer in buffers)

    def compare(node: Node, part: Any) -> None:
        node = node.same or node
        assert node.kind == type(part).__name__
        inside = [inner for _, inner in node.parts]
        assert sum(inner.copied for inner in inside) <= node.copied
        if isinstance(part, np.ndarray):
            return
        for step, inner in node.parts:
            # long keys are shown shortened: those cannot be followed
            if "..." not in step:
                compare(inner, eval(f"part{step}", {"part": part}))

    compare(root, value)


@pytest.mark.parametrize("data", [b"", b"\x80\x05.", b"garbage", b"cos\nsystem\n.", b"\x80\x05e."])
def test_what_is_no_pickle(data: bytes) -> None:
    with pytest.raises(ValueError, match="pickle"):
        anatomy.dissect(data, [])


@settings(deadline=None, max_examples=100)
@given(NESTED, st.data())
def test_damaged_pickles_end_in_a_value_error(value: Any, data: Any) -> None:
    inband, buffers = dumps(value)
    at = data.draw(st.integers(0, len(inband) - 1))
    damaged = inband[:at] + bytes([data.draw(st.integers(0, 255))]) + inband[at + 1 :]
    with contextlib.suppress(ValueError):
        anatomy.dissect(damaged, [buffer.nbytes for buffer in buffers])
