"""put and get: every kind of value comes back as it was, without a copy where that is promised."""

from __future__ import annotations

import collections
import copy
import gc
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import millpond
from millpond.eviction.policies import CANDIDATE
from millpond.hot import CANDIDATE as COMPILED_CANDIDATE
from ponds import Pond
from workers import in_threads

NUMBERS = "?bhilqBHILQefdgFDG"
SHAPES = [(), (0,), (1,), (7,), (3, 4), (2, 0, 3), (2, 3, 4, 5), (1, 100_000)]
Point = collections.namedtuple("Point", "x y")


def address(array: np.ndarray) -> int:
    found: int = array.__array_interface__["data"][0]
    return found


def filled(shape: tuple[int, ...], dtype: Any, order: Any = "C") -> np.ndarray:
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    return (np.arange(count) % 113).astype(dtype).reshape(shape, order=order)


def assert_same(found: Any, expected: np.ndarray) -> None:
    assert type(found) is type(expected)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    if expected.dtype.hasobject:
        assert found.tolist() == expected.tolist()
    else:
        assert found.tobytes() == expected.tobytes()


# --- arrays ---


@pytest.mark.parametrize("code", NUMBERS)
def test_arrays_of_every_number_type(store: millpond.Store, code: str) -> None:
    for shape in SHAPES:
        for order in "CF":
            array = filled(shape, code, order)
            found = store.get(store.put(array))
            assert_same(found, array)
            assert found.dtype is array.dtype
            assert found.flags.c_contiguous == array.flags.c_contiguous
            assert found.flags.f_contiguous == array.flags.f_contiguous
            assert not found.flags.writeable


@pytest.mark.parametrize(
    "dtype",
    [">f8", ">i2", ">c16", "M8[ns]", "m8[s]", "S5", "U3", "V7", "O", [("a", "<i4"), ("b", ">f8", 2)]],
    ids=str,
)
def test_arrays_of_other_types(store: millpond.Store, dtype: Any) -> None:
    for shape in ((), (0,), (5,), (3, 400)):
        array = np.zeros(shape, dtype)
        if array.size and array.dtype.kind not in "VM":
            array.flat[0] = 1
        assert_same(store.get(store.put(array)), array)
        assert_same(store.get(store.put([array]))[0], array)


@pytest.mark.parametrize(
    "take",
    [
        lambda a: a[::2],
        lambda a: a[:, ::-1],
        lambda a: a.T,
        lambda a: a[5:7, 3:4],
        lambda a: np.broadcast_to(a[0], (50, 40)),
        lambda a: a.reshape(4, 5, 10, 8).transpose(2, 0, 3, 1),
        lambda a: np.asfortranarray(a)[1:],
    ],
    ids=range(7),
)
def test_arrays_with_gaps_are_stored_contiguous(store: millpond.Store, take: Callable[..., Any]) -> None:
    whole = np.arange(1600.0).reshape(40, 40)
    part = take(whole)
    found = store.put(part)
    assert found.size < part.nbytes + 200, "a part of an array is stored without the rest"
    value = store.get(found)
    assert_same(value, part)
    assert value.flags.c_contiguous or value.flags.f_contiguous
    assert_same(store.get(store.put({"a": take(whole)}))["a"], part)


@pytest.mark.parametrize("kind", [np.matrix, np.recarray, np.ma.MaskedArray])
def test_array_subclasses_stay_what_they_are(store: millpond.Store, kind: Any) -> None:
    array = np.zeros((3, 5), [("x", "i4")]).view(kind) if kind is np.recarray else np.ones((3, 5)).view(kind)
    if kind is np.ma.MaskedArray:
        array[1, 2] = np.ma.masked
    found = store.get(store.put(array))
    assert type(found) is kind
    assert found.tolist() == array.tolist()


def test_a_view_is_the_memory_of_the_store(store: millpond.Store) -> None:
    array = np.arange(300_000)
    ref = store.put(array)
    first, second = store.get(ref), ref.get()
    assert address(first) == address(second) != address(array)
    assert address(first) % 64 == 0
    array[:] = 0
    assert first[-1] == 299_999, "the store must not see later changes of the value"


def test_a_view_cannot_be_written(store: millpond.Store) -> None:
    for value in (np.arange(2000), np.asfortranarray(np.ones((50, 60)))):
        view = store.get(store.put(value))
        nested = store.get(store.put([value]))[0]
        for array in (view, nested):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True


def test_nested_arrays_are_views_of_one_pinned_object(store: millpond.Store) -> None:
    value = {"a": np.arange(5000), "b": [np.ones((70, 80)), "text"]}
    ref = store.put(value)
    first, second = store.get(ref), store.get(ref)
    assert address(first["a"]) == address(second["a"])
    assert address(first["b"][0]) == address(second["b"][0])
    assert address(first["a"]) % 64 == 0
    assert store.stats().pinned_bytes == ref.size
    survivor = first["a"][10:20]
    del first, second
    assert store.stats().pinned_bytes == ref.size
    del survivor
    assert store.stats().pinned_bytes == 0


def test_copy_is_private_and_writable(store: millpond.Store) -> None:
    values = [
        np.arange(5000),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(7),
        np.zeros((0, 3)),
        np.arange(4, dtype=">i4"),
    ]
    readonly = np.arange(3000)
    readonly.flags.writeable = False
    for value in [*values, readonly]:
        ref, nested = store.put(value), store.put({"deep": [value]})
        for found in (store.get(ref, copy=True), store.get(nested, copy=True)["deep"][0]):
            assert_same(found, value)
            assert found.flags.writeable and found.flags.f_contiguous == value.flags.f_contiguous
            found[...] = 1
        assert_same(store.get(ref), value)
        assert_same(store.get(nested)["deep"][0], value)
    assert store.stats().pinned_bytes == 0


# --- other values ---


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -(10**40),
        1.5,
        "\u00fc" * 1000,
        b"",
        b"abc",
        bytes(100_000),
        bytearray(b"xyz" * 5000),
        (),
        {"a": [1, {2, 3}], ("b", 1): frozenset("xy")},
        Point(1, [2]),
        range(7),
        slice(1, None),
        [bytearray(5000), bytes(5000)] * 3,
        np.float32(1.25),
        collections.OrderedDict(a=1),
        ValueError,
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_values(store: millpond.Store, value: Any) -> None:
    ref = store.put(value)
    for found in (store.get(ref), store.get(ref, copy=True), store.get([ref, ref])[1]):
        assert type(found) is type(value)
        assert found == value


def test_identity_inside_a_value_is_kept(store: millpond.Store) -> None:
    array = np.ones(1000)
    cycle: list[Any] = [array, array]
    cycle.append(cycle)
    found = store.get(store.put(cycle))
    assert found[0] is found[1] and found[2] is found


def test_functions_and_local_classes(store: millpond.Store) -> None:
    factor = 3

    class Local:
        def __init__(self, x: int) -> None:
            self.x = x

    assert store.get(store.put(lambda x: x * factor))(5) == 15
    assert store.get(store.put(Local(4))).x == 4


def test_frames(store: millpond.Store) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": np.arange(10_000), "b": np.ones(10_000), "c": ["x", "y"] * 5000})
    ref = store.put(frame)
    found = store.get(ref)
    pandas.testing.assert_frame_equal(found, frame)
    assert address(found["b"].to_numpy()) == address(store.get(ref)["b"].to_numpy()), "columns are not copied"
    changed = store.get(ref, copy=True)
    changed.loc[0, "b"] = 7.0
    assert store.get(ref)["b"][0] == 1.0


MAIN_PROGRAM = """
import pickle, sys, millpond, numpy as np
class Model:
    def __init__(self): self.weights = np.arange(5000.)
    def total(self): return helper(self.weights.sum())
def helper(x): return x + offset
offset = 1
store = millpond.connect(sys.argv[1])
sys.stdout.write(pickle.dumps(store.put(Model())).hex())
"""


def test_classes_of_a_main_program_reach_another_program(store: millpond.Store) -> None:
    program = [sys.executable, "-c", MAIN_PROGRAM, store.address]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(program, env=environment, capture_output=True, timeout=30, text=True)
    assert done.returncode == 0, done.stderr
    model = store.get(pickle.loads(bytes.fromhex(done.stdout)))
    assert model.total() == np.arange(5000.0).sum() + 1
    assert not model.weights.flags.writeable


# --- refs ---


def test_an_object_lives_as_long_as_its_last_ref(store: millpond.Store) -> None:
    ref = store.put(1)
    others = [copy.copy(ref), copy.deepcopy([ref])[0], store.put(2)]
    assert ref == others[0] == others[1] != others[2]
    assert {ref, *others} == {ref, others[2]}
    del ref, others[0]
    assert len(store) == 2
    assert store.get(others[0]) == 1
    others.clear()
    assert len(store) == 0


def test_many_small_objects(store: millpond.Store) -> None:
    refs = [store.put(number) for number in range(20_000)]
    assert store.get(refs) == list(range(20_000))
    assert len({ref.id for ref in refs}) == len(store) == 20_000
    del refs[::2]
    assert store.get(refs) == list(range(1, 20_000, 2))
    again = [store.put(number) for number in range(10_000)]
    assert store.get(refs[-1]) == 19_999 and store.get(again[-1]) == 9_999
    assert store.check() == []


def test_memory_of_dropped_objects_is_used_again(store: millpond.Store) -> None:
    sizes = [0, 1, 63, 500, 5000, 8192, 8193, 100_000, 1_000_000]
    for _ in range(30):
        refs = [store.put(bytes([7]) * size) for size in sizes]
        assert [len(store.get(ref)) for ref in refs] == sizes
    stats = store.stats()
    assert stats.committed_bytes < 8 << 20
    assert stats.spilled_objects_total == 0


def test_describing(store: millpond.Store) -> None:
    ref = store.put(np.zeros(1000))
    assert re.fullmatch(rf"{store.uuid.hex()}-[0-9a-f]+-[0-9a-f]+", ref.id)
    assert repr(ref) == f"<ObjectRef {ref.id}>"
    assert 8000 <= ref.size <= 8100
    (info,) = store.objects()
    assert (info.id, info.size, info.state, info.holders, info.pins, info.name) == (
        ref.id,
        ref.size,
        "resident",
        1,
        0,
        None,
    )
    assert 0 <= info.idle_s <= info.age_s < 60
    view = ref.get()
    stats = store.stats()
    assert (stats.objects, stats.members, stats.resident_objects) == (1, 1, 1)
    assert stats.memory_bytes == stats.pinned_bytes == ref.size
    assert stats.memory_limit == store.memory_limit == 64 << 20
    assert store.address in repr(store) and len(store) == 1 and bool(store)
    del view


def test_membership_of_refs(pond: Pond, store: millpond.Store) -> None:
    other = pond.store()
    ref = store.put(1)
    assert ref in store and ref not in other and "name" not in store and 7 not in store
    store.delete(ref)
    assert ref not in store


# --- errors ---


def test_put_of_a_ref_is_refused(store: millpond.Store) -> None:
    ref = store.put(1)
    with pytest.raises(TypeError, match="wrap it in a list"):
        store.put(ref)
    assert len(store) == 1
    assert store.get(store.put([ref]))[0] == ref


def test_what_cannot_be_serialized_is_named(store: millpond.Store) -> None:
    with pytest.raises(millpond.SerializationError, match=r"value\['model'\]\[1\]: .*lock"):
        store.put({"model": [np.ones(10_000), threading.Lock()]})
    assert len(store) == 0 and store.stats().memory_bytes == 0


def test_an_interrupt_while_serializing_passes_and_stores_nothing(store: millpond.Store) -> None:
    class Rude:
        def __reduce__(self) -> Any:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.put([np.ones(10_000), Rude()])
    assert len(store) == 0


def test_a_value_that_cannot_be_rebuilt(store: millpond.Store) -> None:
    class Fragile:
        def __reduce__(self) -> Any:
            return int, ("no number",)

    ref = store.put([np.ones(10_000), Fragile()])
    with pytest.raises(millpond.SerializationError, match="ValueError"):
        store.get(ref)
    gc.collect()
    assert store.stats().pinned_bytes == 0


def test_refs_of_another_store_are_refused(pond: Pond, store: millpond.Store) -> None:
    other = pond.store()
    ref = other.put(1)
    for call in (store.get, store.delete, store.wait, store.spill):
        with pytest.raises(ValueError, match="belongs to another store"):
            call([ref])
    assert ref.get() == 1


@pytest.mark.parametrize("thing", [7, "name", [3], None])
def test_get_wants_refs(store: millpond.Store, thing: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a ref( or a list of refs)?, not"):
        store.get(thing)
    assert store.get([]) == []


def test_refs_are_not_made_by_hand(store: millpond.Store) -> None:
    with pytest.raises(TypeError, match="refs come from"):
        millpond.ObjectRef()
    with pytest.raises(TypeError, match=r"millpond\.connect"):
        pickle.dumps(store)


def test_delete_takes_the_value_from_all_refs(store: millpond.Store) -> None:
    refs = [store.put(np.arange(20_000) + i) for i in range(3)]
    view, again = refs[0].get(), copy.copy(refs[0])
    store.delete(refs[0])
    store.delete(refs)
    for ref in [*refs, again]:
        with pytest.raises(millpond.ObjectDeletedError, match=f"{ref.id} was deleted"):
            ref.get()
    other = [store.put(np.zeros(20_000, int)) for _ in range(3)]
    assert (view == np.arange(20_000)).all(), "a view outlives the object"
    assert len(store) == len(other)


def test_errors_are_those_of_python_too(store: millpond.Store) -> None:
    ref = store.put(1)
    store.delete(ref)
    with pytest.raises(KeyError):
        ref.get()
    with pytest.raises(TypeError):
        store.put(threading.Lock())
    with pytest.raises(millpond.MillpondError):
        store.lookup("nothing")


# --- closing ---


def test_a_closed_store_refuses(pond: Pond) -> None:
    store = pond.store()
    ref, draft = store.put(np.arange(1000)), store.create(10, "f8")
    view = ref.get()
    store.close()
    store.close()
    calls: list[Callable[[], Any]] = [
        lambda: store.put(1),
        lambda: store.put(np.ones(3)),
        lambda: store.get(ref),
        lambda: store.get([ref]),
        lambda: store.create(3, "f8"),
        lambda: store.create_buffer(3),
        lambda: store.wait([ref]),
        lambda: store.lookup("x"),
        lambda: store.delete(ref),
        lambda: store.delete("x"),
        lambda: store.spill(),
        lambda: store.stats(),
        lambda: list(store.objects()),
        lambda: store.check(),
        lambda: len(store),
        lambda: store.memory_limit,
        lambda: "x" in store,
        lambda: pickle.dumps(ref),
        lambda: copy.copy(ref),
        lambda: ref.get(),
        lambda: ref.size,
        draft.seal,
        lambda: draft.array,
    ]
    for call in calls:
        with pytest.raises(millpond.StoreClosedError, match="closed"):
            call()
    draft.abort()
    assert store.closed and "closed" in repr(store) and ref.id and hash(ref) and ref == ref
    assert view.sum() == 499_500, "views outlive the store"


def test_a_store_is_a_context_and_ends_with_its_last_reference(pond: Pond) -> None:
    with pond.store() as store:
        assert not store.closed
    assert store.closed
    lost = millpond.Store("1MiB", spill_dir=pond.spill)
    path = lost.address
    view = lost.put(np.arange(1000)).get()
    del lost
    gc.collect()
    assert view[-1] == 999, "a view keeps what it needs"
    del view
    gc.collect()
    assert not os.path.exists(path)


def test_stores_come_and_go(pond: Pond) -> None:
    for number in range(50):
        with millpond.Store("1MiB", spill_dir=pond.spill, name="again") as store:
            assert store.put(number).get() == number


# --- options and connecting ---


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"memory_limit": 1000}, "possible are 1048576"),
        ({"memory_limit": "much"}, "much"),
        ({"compression": "zip"}, "'zip'; choose one of none, lz4"),
        ({"eviction": "oldest"}, "'oldest'"),
        ({"handoff_timeout": 0}, "handoff_timeout is 0"),
        ({"handoff_timeout": float("nan")}, "handoff_timeout is nan"),
        ({"spill_dir": []}, "spill_dir is []"),
        ({"spill_dir": ""}, "spill_dir is ''"),
        ({"overflow_limit": -1}, "overflow_limit: -1 bytes is negative"),
        ({"name": ""}, "cannot name a store"),
    ],
)
def test_options_are_checked(pond: Pond, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        pond.store(**options)


def test_a_spill_directory_that_cannot_be(pond: Pond, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(millpond.SpillError, match="file"):
        pond.store(spill_dir=tmp_path / "file")
    with pond.store() as store:
        assert store.put(1).get() == 1


def test_names_and_addresses(pond: Pond) -> None:
    store = pond.store(name="one")
    assert millpond.connect("one") is millpond.connect(store.address) is store
    assert store.name == "one"
    with pytest.raises(millpond.AttachError, match="'one' is taken"):
        pond.store(name="one")
    with pytest.raises(millpond.AttachError, match=r"no live store .*'one'"):
        millpond.connect("two")
    with pytest.raises(TypeError, match="create=True"):
        millpond.connect("two", memory_limit="1MiB")
    two = millpond.connect("two", create=True, memory_limit="1MiB", spill_dir=pond.spill)
    assert millpond.connect("two", create=True) is two and two.memory_limit == 1 << 20
    two.close()
    with pytest.raises(millpond.AttachError, match="no live store"):
        millpond.connect("two")


def test_a_name_is_one_of_its_registry(pond: Pond, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = pond.store(name="one")
    monkeypatch.setenv("MILLPOND_DIR", str(tmp_path / "another"))
    with pytest.raises(millpond.AttachError, match=r"no live store .*'one'"):
        millpond.connect("one")
    with pond.store(name="one") as there:
        assert millpond.connect("one") is there
        assert millpond.connect(here.address) is here


# --- threads ---


def test_threads_share_a_store(store: millpond.Store) -> None:
    def work(seed: int) -> None:
        mine: list[tuple[millpond.ObjectRef, np.ndarray]] = []
        for step in range(400):
            value = np.full(1 + step * 7 % 3000, seed * 1000 + step)
            mine.append((store.put(value), value))
            ref, expected = mine[step * 31 % len(mine)]
            assert (store.get(ref) == expected).all()
            if step % 3 == 0:
                mine.pop(0)

    with in_threads(work, 4):
        pass
    assert store.check() == []


def test_threads_share_one_ref(store: millpond.Store) -> None:
    ref = store.put(np.arange(10_000))

    def work(_: int) -> None:
        for _ in range(2000):
            other = copy.copy(ref)
            view = other.get()
            del other
            assert view[-1] == 9999

    with in_threads(work, 4):
        pass
    assert store.stats().pinned_bytes == 0 and ref.get()[0] == 0


# --- what compiled code and Python agree upon ---


def test_candidates_have_one_layout() -> None:
    assert COMPILED_CANDIDATE == CANDIDATE
    assert COMPILED_CANDIDATE.itemsize == CANDIDATE.itemsize
