"""Values to bytes and back, who is named when that fails, and that no hand-off is taken meanwhile."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import gc
import pickle
import subprocess
import sys
import threading
import types
import weakref
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.errors import SerializationError
from millpond.values import culprit, serialize
from millpond.values.serialize import INBAND_MAX, copy_private, dumps, loads


def stored(value: Any) -> tuple[bytes, list[memoryview]]:
    """What a store hands back: the in-band part, and read-only copies of the buffers."""
    inband, buffers = dumps(value)
    return inband, [memoryview(bytes(buffer)) for buffer in buffers]


def round_trip(value: Any) -> Any:
    return loads(*stored(value))


def make_lock() -> Any:
    return threading.Lock()


@dataclasses.dataclass
class Model:
    name: str = "m"
    lock: Any = None
    parent: Any = None


class Slotted:
    __slots__ = ("lock", "name")

    def __init__(self, lock: Any) -> None:
        self.name = "s"
        self.lock = lock


# --- round trips ---


class Colour(collections.UserDict[str, int]):
    pass


Point = collections.namedtuple("Point", "x y")

VALUES = [
    None,
    {"a": 1, "b": [1, 2, 3], "c": "text", "d": (b"x", {1, 2}, frozenset("ab"))},
    Point(1, 2),
    collections.OrderedDict(b=1, a=2),
    collections.deque([1, 2], maxlen=2),
    Colour(red=1),
    Model("plain"),
    2**100,
    "\ud800 lone surrogate",
    b"x" * 200_000,
    ["y" * 200_000, bytearray(200_000), 5],
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_plain_values_come_back_equal(value: Any) -> None:
    again = round_trip(value)
    assert again == value
    assert type(again) is type(value)


def test_recursive_values_come_back_recursive() -> None:
    value: dict[str, Any] = {"name": "loop"}
    value["self"] = [value]
    again = round_trip(value)
    assert again["self"][0] is again


def test_identity_inside_a_value_is_kept() -> None:
    array = np.arange(1000)
    again = round_trip([array, array])
    assert again[0] is again[1]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f8", "u1", "c16", "M8[s]", "m8[ns]", [("a", "i4"), ("b", "M8[D]")], "U3"])
def test_arrays_go_out_of_band_and_come_back_as_views(order: Any, dtype: Any) -> None:
    array = np.zeros((300, 200), dtype, order)
    inband, buffers = stored({"array": array})
    assert [buffer.nbytes for buffer in buffers] == [array.nbytes]
    assert len(inband) < 1000
    again = loads(inband, buffers)["array"]
    assert again.dtype == array.dtype and again.flags.f_contiguous == (order == "F")
    assert not again.flags.writeable
    assert np.shares_memory(again, np.frombuffer(buffers[0], np.uint8))


def test_buffers_are_views_of_the_value_in_flat_bytes() -> None:
    array = np.arange(12_000, dtype="f4").reshape(3, 4, 1000)
    _, buffers = dumps([array, bytearray(b"small")])
    (view,) = buffers
    assert (view.ndim, view.format, view.nbytes, view.contiguous) == (1, "B", array.nbytes, True)
    array[0, 0, 0] = 5
    assert bytes(view[:4]) == array[0, 0, :1].tobytes()


def test_small_buffers_stay_in_band() -> None:
    small = np.zeros(INBAND_MAX // 8 - 1)
    large = np.zeros(INBAND_MAX // 8)
    _, buffers = dumps([small, large, np.zeros(0)])
    assert [buffer.nbytes for buffer in buffers] == [large.nbytes]


def test_frames_of_pandas() -> None:
    frame = pd.DataFrame({"i": np.arange(5000), "f": np.linspace(0, 1, 5000), "s": ["abc"] * 5000})
    inband, buffers = stored(frame)
    assert sum(buffer.nbytes for buffer in buffers) >= 2 * 5000 * 8
    pd.testing.assert_frame_equal(loads(inband, buffers), frame)


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["f8", "M8[s]"])
def test_large_arrays_that_are_not_contiguous_are_stored_contiguous(position: int, dtype: str) -> None:
    array = np.arange(400_000).astype(dtype).reshape(400, 1000)[:, ::2]
    value = [b"z" * 100_000, b"z" * 100_000]
    inband, buffers = stored([*value[:position], array, *value[position:]])
    assert [buffer.nbytes for buffer in buffers] == [array.nbytes]
    assert np.array_equal(loads(inband, buffers)[position], array)


def test_a_slice_stores_the_slice() -> None:
    inband, buffers = dumps({"part": np.zeros(1_000_000)[5000:6000]})
    assert len(inband) + sum(buffer.nbytes for buffer in buffers) < 10_000


def test_small_and_object_arrays_that_are_not_contiguous() -> None:
    small = np.arange(100)[::2]
    objects = np.array(["x" * 100, None] * 5000, dtype=object)[::2]
    again = round_trip([small, objects])
    assert np.array_equal(again[0], small) and list(again[1]) == list(objects)


PLAIN = st.none() | st.integers() | st.binary() | st.text()


@given(st.recursive(PLAIN, lambda parts: st.lists(parts) | st.tuples(parts, parts)))
@settings(max_examples=60, deadline=None)
def test_anything_built_from_plain_parts(value: Any) -> None:
    assert round_trip(value) == value


# --- private copies ---


def frozen(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("size", [10, 5000, 100_000])
@pytest.mark.parametrize("prepare", [lambda a: a, frozen, lambda a: a[::2]], ids=["plain", "frozen", "gaps"])
def test_private_copies_are_writable_and_private(size: int, prepare: Any) -> None:
    array = prepare(np.arange(float(size)))
    inband, buffers = stored({"a": array, "deep": [Model(lock=array)]})
    again = copy_private(inband, buffers)
    assert again["a"] is again["deep"][0].lock
    assert np.array_equal(again["a"], array)
    again["a"][0] = -1  # raises if it is read-only
    assert loads(inband, buffers)["a"][0] == array[0] == 0


@pytest.mark.parametrize("load", [loads, copy_private])
def test_empty_arrays(load: Any) -> None:
    again = load(*stored([np.zeros((0, 3)), frozen(np.zeros((2, 0), "f4")), np.zeros(0)[::2]]))
    assert [array.shape for array in again] == [(0, 3), (2, 0), (0,)]
    assert [array.dtype.str for array in again] == ["<f8", "<f4", "<f8"]


def test_arrays_without_bytes_beside_a_lambda() -> None:
    again = round_trip([lambda: 1, np.empty(2, "V0"), np.zeros((0, 3))])
    assert [(array.shape, array.itemsize) for array in again[1:]] == [((2,), 0), ((0, 3), 8)]


def test_a_private_copy_of_the_in_band_part_alone() -> None:
    assert copy_private(memoryview(dumps({"a": 1})[0]), []) == {"a": 1}


# --- cloudpickle ---


def test_lambdas_local_functions_and_classes() -> None:
    offset = 5

    class Local:
        def method(self) -> int:
            return offset

    functions = round_trip({"lambda": lambda x: x + offset, "local": Local})
    assert functions["lambda"](1) == 6
    assert functions["local"]().method() == 5


def test_arrays_beside_a_lambda_go_out_of_band() -> None:
    inband, buffers = stored([lambda: 1, np.zeros(1000)])
    assert [buffer.nbytes for buffer in buffers] == [8000]
    assert loads(inband, buffers)[0]() == 1


PROGRAM = """
import sys, pickle
from millpond.values import serialize
class Task:
    def __init__(self, n): self.n = n
    def double(self): return self.n * 2
def helper(x): return Task(x).double()
sys.stdout.buffer.write(pickle.dumps([serialize.dumps(v)[0] for v in {values}]))
"""


@pytest.mark.parametrize("filler", ["b''", "b'z' * 300_000", "['some text'] * 30_000"])
def test_other_programs_can_load_what_main_defines(filler: str) -> None:
    values = f"([{filler}, Task(21)], [{filler}, helper], {{'cls': Task, 'x': {filler}}})"
    child = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(values=values)],
        capture_output=True,
        check=True,
        timeout=60,
        env={"PYTHONPATH": ":".join(path for path in sys.path if path)},
    )
    task, helper, mapping = (loads(inband, []) for inband in pickle.loads(child.stdout))
    assert task[1].double() == 42
    assert helper[1](4) == 8
    assert mapping["cls"](1).double() == 2


def test_cloudpickle_is_not_imported_for_plain_values() -> None:
    program = (
        "import sys, numpy as np; from millpond.values import serialize\n"
        "serialize.dumps({'a': [np.zeros(9999), 'x'], 'b': (1, 2.0)})\n"
        "sys.exit('cloudpickle' in sys.modules)"
    )
    env = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=env)


# --- the search for a reason to take care ---


@pytest.mark.parametrize(
    "value",
    [
        {"a": b"z" * 70_000, "b": [b"y" * 70_000] * 3, "c": "tail"},
        [b"z" * 70_000, 0x8E, b"y" * 70_000, 300, ("w" * 70_000,), "tail"],
        [["x" * 100] * 5 for _ in range(3000)],
        [bytearray(b"z" * 70_000), (bytes(70_000),), {"k": bytes(70_000)}],
    ],
)
def test_every_name_is_inside_the_searched_parts(value: Any) -> None:
    marker = "a name to find"
    for at in range(4):
        marked = [value, value]
        marked.insert(at, {"k": marker})
        inband = pickle.dumps(marked, 5)
        assert any(inband.find(marker.encode(), *part) >= 0 for part in serialize._frames(inband))


def test_large_payloads_are_not_searched() -> None:
    inband = pickle.dumps([b"z" * 1_000_000, "x", {"k": b"y" * 1_000_000}, ("u" * 1_000_000,)], 5)
    assert sum(end - start for start, end in serialize._frames(inband)) < 200


# --- errors ---


def refused(value: Any) -> str:
    with pytest.raises(SerializationError) as caught:
        dumps(value)
    assert caught.value.__cause__ is not None
    return str(caught.value)


def closure_over(lock: Any) -> Any:
    return lambda: lock


def with_default(lock: Any) -> Any:
    def function(x: int = 0, *, guard: Any = lock) -> Any:
        return guard, x

    return function


def deep_list(depth: int, leaf: Any) -> Any:
    for _ in range(depth):
        leaf = [leaf]
    return leaf


def cyclic() -> Model:
    """The first failing attribute fails only because it leads back to the second."""
    outer = Model()
    outer.name = Model(parent=outer)  # type: ignore[assignment]
    outer.lock = make_lock()
    return outer


class Stateful:
    def __init__(self, state: Any) -> None:
        self.state = state

    def __getstate__(self) -> Any:
        return self.state


class Reduced:
    def __init__(self, argument: Any) -> None:
        self.argument = argument

    def __reduce__(self) -> Any:
        return (Reduced, (self.argument,))


class ListKind(list[Any]):
    pass


class Local:
    """Made by `make_class` below, so that it is pickled by value."""


def make_class(lock: Any) -> type:
    return type("Made", (), {"shared": lock, "__module__": "__main__"})


CULPRITS = [
    (lambda: make_lock(), "value"),
    (lambda: {"model": Model(lock=make_lock())}, "value['model'].lock"),
    (lambda: [1, (2, {"x": [make_lock()]})], "value[1][1]['x'][0]"),
    (lambda: {(1, make_lock()): 1}, "value.keys()[0][1]"),
    (lambda: {"s": {make_lock()}}, "value['s']{<"),
    (lambda: Point(1, make_lock()), "value.y"),
    (lambda: Slotted(make_lock()), "value.lock"),
    (lambda: collections.OrderedDict(a=make_lock()), "value['a']"),
    (lambda: collections.deque([1, make_lock()]), "value[1]"),
    (lambda: ListKind([1, make_lock()]), "value[1]"),
    (lambda: closure_over([make_lock()]), "value.__closure__['lock'][0]"),
    (lambda: with_default(make_lock()), "value.__kwdefaults__['guard']"),
    (lambda: functools.partial(closure_over, lock=make_lock()), "value.keywords['lock']"),
    (lambda: functools.partial(print, make_lock()), "value.args[0]"),
    (lambda: Model(lock=make_lock()).__eq__, "value.__self__.lock"),
    (lambda: make_class(make_lock()), "value.shared"),
    (lambda: Stateful({"inner": make_lock()}), "value.inner"),
    (lambda: Stateful([1, make_lock()]), "value.__getstate__()[1]"),
    (lambda: Reduced(make_lock()), "value.__reduce__()[1][0]"),
    (lambda: np.array([[None, make_lock()]], dtype=object), "value[0, 1]"),
    (lambda: cyclic(), "value.lock"),
    (lambda: types.SimpleNamespace(a=types.SimpleNamespace(b=make_lock())), "value.a.b"),
]


@pytest.mark.parametrize(("make", "path"), CULPRITS, ids=[path for _, path in CULPRITS])
def test_the_culprit_is_named_by_its_path(make: Any, path: str) -> None:
    message = refused(make())
    assert message.startswith(path), message
    if not path.endswith("<"):
        assert message.startswith(f"{path}: cannot pickle '_thread.lock' object. "), message


def test_a_refusal_leaves_no_cycle_that_keeps_the_value() -> None:
    class Large:
        pass

    value = Large()
    gone = weakref.ref(value)
    gc.disable()
    try:
        with contextlib.suppress(SerializationError):
            dumps({"large": value, "lock": [make_lock()]})
        del value
        assert gone() is None
    finally:
        gc.enable()


def test_globals_of_a_function_that_goes_by_value() -> None:
    code = "def work():\n    return [guard for _ in range(2)]\n"
    scope: dict[str, Any] = {"guard": make_lock(), "__name__": "__main__"}
    exec(code, scope)
    assert refused(scope["work"]).startswith("value.__globals__['guard']: cannot pickle")


def test_an_error_of_user_code_is_told_and_chained() -> None:
    class Broken:
        def __reduce__(self) -> Any:
            raise ValueError("no thanks")

    with pytest.raises(SerializationError, match=r"^value\['x'\]: ValueError: no thanks\. ") as caught:
        dumps({"x": Broken()})
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, MemoryError])
def test_what_is_not_the_values_fault_passes_through(kind: type[BaseException]) -> None:
    class Interrupted:
        def __reduce__(self) -> Any:
            raise kind

    with pytest.raises(kind):
        dumps([Interrupted()])


def test_interrupts_during_the_search_pass_through() -> None:
    class Second:
        tries = 0

        def __reduce__(self) -> Any:
            Second.tries += 1
            if Second.tries > 2:
                raise KeyboardInterrupt
            raise ValueError

    with pytest.raises(KeyboardInterrupt):
        dumps([Second()])


def test_values_nested_too_deeply() -> None:
    assert "nested too deeply" in refused(deep_list(100_000, 1))


def test_the_search_is_bounded_in_depth() -> None:
    message = refused(deep_list(culprit.DEPTH_MAX + 20, make_lock()))
    assert message.startswith("inside value[0][0]") and " ... " in message
    assert len(message) < 600


def test_the_search_is_bounded_in_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(culprit, "TRIALS_MAX", 50)
    value = {"many": [[number] for number in range(1000)] + [make_lock()]}
    assert refused(value).startswith("inside value['many']: ")


def test_atoms_are_not_tried() -> None:
    tried: list[Any] = []

    def trial(part: Any) -> Exception | None:
        tried.append(part)
        return TypeError("no") if part is lock else None

    lock = make_lock()
    found = culprit.find_culprit([*range(1000), "text", lock], TypeError("no"), trial)
    assert (found.path, found.exact, tried) == ("value[1001]", True, [lock])


def test_a_buffer_with_gaps_is_refused() -> None:
    gaps: Any = np.zeros(1000)[::2]
    assert "non-contiguous" in refused({"b": pickle.PickleBuffer(gaps)})


@pytest.mark.parametrize("load", [loads, copy_private])
def test_a_value_that_cannot_be_rebuilt(load: Any) -> None:
    with pytest.raises(SerializationError, match="No module named 'no_such_module'"):
        load(b"cno_such_module\nThing\n.", [])
    with pytest.raises(SerializationError, match="rebuilt here: UnpicklingError"):
        load(dumps([1, 2])[0][:-2], [])


def test_a_frozen_value_that_cannot_be_rebuilt() -> None:
    inband, buffers = stored([frozen(np.zeros(1000))])
    with pytest.raises(SerializationError):
        copy_private(inband[:-2], buffers)


# --- refs ---
