"""A dict over the names of a store, and results that processes share."""

from __future__ import annotations

import functools
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import millpond
from millpond.integrations.mapping import Memoized, StoreMapping, memoize
from ponds import Pond


@pytest.fixture
def shared(store: millpond.Store) -> StoreMapping:
    return StoreMapping(store, "test/")


# --- the mapping ---


KEYS = st.sampled_from(["a", "b", "\u00e9", "long " * 40])
STEPS = st.lists(
    st.tuples(st.sampled_from(["set", "del", "pop", "setdefault", "clear"]), KEYS, st.integers())
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_it_does_what_a_dict_does(shared: StoreMapping, steps: list[tuple[str, str, int]]) -> None:
    shared.clear()
    model: dict[str, Any] = {}
    for step, key, value in steps:
        if step == "set":
            shared[key] = model[key] = value
        elif step == "del" and key not in model:
            with pytest.raises(KeyError):
                del shared[key]
        elif step == "del":
            del shared[key], model[key]
        elif step == "pop":
            assert shared.pop(key, None) == model.pop(key, None)
        elif step == "setdefault":
            assert shared.setdefault(key, value) == model.setdefault(key, value)
        else:
            shared.clear()
            model.clear()
        assert dict(shared) == model and len(shared) == len(model) == len(shared.store)
        assert sorted(shared) == sorted(model) and (key in shared) is (key in model)
        assert shared.get(key, "none") == model.get(key, "none")


def test_values(shared: StoreMapping) -> None:
    shared["array"] = np.arange(1000)
    shared.update(table={"x": np.ones(500)}, text="t")
    assert not shared["array"].flags.writeable and shared["array"][-1] == 999
    assert shared["table"]["x"].sum() == 500 and shared["text"] == "t"
    old = shared["array"]
    shared["array"] = np.zeros(3)
    assert old[-1] == 999 and len(shared["array"]) == 3
    ref = shared.store.lookup("test/text")
    shared["refs"] = [ref]
    del shared["text"], ref
    assert shared["refs"][0].get() == "t"


def test_prefixes_keep_mappings_apart(store: millpond.Store) -> None:
    one, two, all_names = StoreMapping(store, "one/"), StoreMapping(store, "two/"), StoreMapping(store)
    one["x"], two["x"] = 1, 2
    store.put(3, name="x")
    assert (one["x"], two["x"], all_names["x"]) == (1, 2, 3)
    assert sorted(all_names) == ["one/x", "two/x", "x"] and list(one) == ["x"]
    one.clear()
    assert len(one) == 0 and len(all_names) == 2
    one["x"] = 4
    assert all_names.pop("one/x") == 4 and "x" not in one


def test_wrong_keys(shared: StoreMapping) -> None:
    wrong: Any
    for wrong in (5, b"bytes", None, ("a", 1)):
        for use in (
            lambda key: shared.__setitem__(key, 1),
            lambda key: shared.setdefault(key),
        ):
            with pytest.raises(
                TypeError, match=f"keys of a StoreMapping are str, not {type(wrong).__name__}"
            ):
                use(wrong)
        assert wrong not in shared and shared.get(wrong) is None
        for use in (lambda key: shared[key], lambda key: shared.__delitem__(key)):
            with pytest.raises(KeyError):
                use(wrong)
    for wrong in ("x" * 240, "\u00e9" * 120):
        for name in ("__setitem__", "setdefault"):
            with pytest.raises(ValueError, match="240 bytes"):
                getattr(shared, name)(wrong, 1)
        assert wrong not in shared and shared.get(wrong) is None
    with pytest.raises(KeyError, match=r"^'missing'$"):
        shared["missing"]
    with pytest.raises(KeyError, match=r"^'missing'$"):
        del shared["missing"]
    assert len(shared.store) == 0


def test_a_value_that_is_gone(shared: StoreMapping) -> None:
    shared["x"] = 1
    shared.store.delete(shared.store.lookup("test/x"))
    with pytest.raises(millpond.ObjectDeletedError):
        shared["x"]
    assert shared.get("x") is None
    shared["x"] = 2
    assert shared["x"] == 2


def test_processes_share_it(pond: Pond, shared: StoreMapping) -> None:
    shared["from here"] = np.arange(10)
    other = pond.member(shared.store)

    def work(own: Any, data: bytes) -> int:
        own.shared = pickle.loads(data)
        own.shared["from there"] = np.arange(20)
        total = int(own.shared.pop("from here").sum())
        assert list(own.shared) == ["from there"]
        return total

    assert other.run(work, pickle.dumps(shared)) == 45
    assert list(shared) == ["from there"] and shared["from there"].sum() == 190
    assert repr(shared).startswith("StoreMapping(<Store ")


def test_setdefault_has_one_winner(pond: Pond, shared: StoreMapping) -> None:
    workers = [pond.member(shared.store) for _ in range(2)]

    def race(own: Any, data: bytes, me: int) -> list[int]:
        mapping = pickle.loads(data)
        return [mapping.setdefault(str(key), me) for key in range(300)]

    data = pickle.dumps(shared)
    for number, worker in enumerate(workers):
        worker.start(race, data, number)
    first, second = (worker.result() for worker in workers)
    assert first == second == [shared[str(key)] for key in range(300)]


def test_many_keys_while_others_come_and_go(shared: StoreMapping) -> None:
    for number in range(1000):
        shared[f"kept {number}"] = number
    stop = threading.Event()

    def churn() -> None:
        while not stop.is_set():
            for number in range(20):
                shared["\u00e9" * number + "passing"] = number
            for number in range(20):
                del shared["\u00e9" * number + "passing"]

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(50):
            found = list(shared)
            assert len(found) == len(set(found))
            assert {key for key in found if key.startswith("kept")} == {f"kept {n}" for n in range(1000)}
            assert all(key.startswith("kept") or key.lstrip("\u00e9") == "passing" for key in found)
    finally:
        stop.set()
        thread.join()


def test_names(store: millpond.Store) -> None:
    assert list(store.names()) == []
    for number in range(600):
        store.put(number, name=f"{number % 3}/{number}")
    assert sorted(store.names("1/")) == sorted(f"1/{number}" for number in range(1, 600, 3))
    for number in range(1, 600, 3):
        store.delete(f"1/{number}")
    assert list(store.names("1")) == [] and len(list(store.names())) == 400
    names = store.names()
    store.close()
    assert len(list(names)) == 400, "as they were"
    with pytest.raises(millpond.StoreClosedError):
        store.names()


def test_the_contract_of_zicts_mappings(shared: StoreMapping) -> None:
    contract = pytest.importorskip("zict.tests.utils_test")
    contract.check_mapping(shared)
    shared.clear()
    contract.check_different_keys_threadsafe(shared)
    shared.clear()
    contract.check_same_key_threadsafe(shared)
    shared.clear()
    contract.check_bad_key_types(shared)


def test_zict(pond: Pond) -> None:
    zict = pytest.importorskip("zict")
    store = pond.store("2MiB")
    buffer = zict.Buffer({}, StoreMapping(store, "zict/"), n=3)
    for number in range(12):
        buffer[f"x-{number}"] = np.full(40_000, number)
    assert len(buffer) == 12 and len(buffer.slow) == 9
    assert store.stats().spilled_objects > 0
    assert [int(buffer[f"x-{number}"][7]) for number in range(12)] == list(range(12))
    del buffer["x-0"]
    with pytest.raises(KeyError):
        buffer["x-0"]
    assert sorted(buffer) == sorted(f"x-{number}" for number in range(1, 12))
    buffer.clear()
    assert len(store) == 0


# --- memoize ---


def counted(store: millpond.Store, **options: Any) -> tuple[Any, list[Any]]:
    """A memoized function, and the arguments with which it was computed."""
    calls: list[Any] = []

    def work(*args: Any, **kwargs: Any) -> Any:
        """Work."""
        calls.append((args, kwargs))
        if "fail" in kwargs:
            raise LookupError("why")
        return {"args": list(args), "data": np.arange(100)}

    return memoize(store, name="work", **options)(work), calls


def test_a_result_is_computed_once(store: millpond.Store) -> None:
    work, calls = counted(store)
    first, second = work(1, b="x", a=2), work(1, a=2, b="x")
    assert len(calls) == 1 and first["args"] == second["args"] == [1]
    assert not first["data"].flags.writeable, "the first call gives what all others give"
    others = [(1.0,), (True,), ("1",), (b"1",), ([1],), ((1,),), (np.arange(3),), (np.arange(3.0),), ()]
    for args in others:
        assert repr(work(*args)["args"]) == repr(list(args)) == repr(work(*args)["args"])
    assert len(calls) == 1 + len(others)
    assert work.__name__ == "work" and work.__doc__ == "Work." and isinstance(work, Memoized)
    work.cache_clear()
    assert len(store) == 0 and list(store.names()) == []
    work(1, a=2, b="x")
    assert len(calls) == 2 + len(others)


def test_none_is_a_result_and_an_error_is_not(store: millpond.Store) -> None:
    calls = []

    @memoize(store, name="nothing")
    def nothing() -> None:
        calls.append(1)

    assert [nothing(), nothing()] == [None, None] and calls == [1]  # type: ignore[func-returns-value]
    work, failures = counted(store)
    for _ in range(2):
        with pytest.raises(LookupError, match="why"):
            work(fail=True)
    assert len(failures) == 2


def test_cache_clear_leaves_other_functions(store: millpond.Store) -> None:
    @memoize(store)
    def one(x: int) -> int:
        return x + 1

    @memoize(store)
    def two(x: int) -> int:
        return x + 2

    assert (one(1), two(1), one(1), two(1)) == (2, 3, 2, 3)
    one.cache_clear()
    assert len(store) == 1 and two(1) == 3


def define(body: str) -> Any:
    """The function `f` of a program with that text."""
    namespace: dict[str, Any] = {"__name__": "program"}
    exec(body, namespace)
    return namespace["f"]


def test_functions_are_told_apart(store: millpond.Store) -> None:
    bodies = [
        "def f(x): return x + 1",
        "def f(x): return x + 2",
        "def f(x, y=3): return x + y",
        "def f(x, y=4): return x + y",
        "def f(x, *, y=5): return x + y",
        "def f(x): return abs(x) + 6",
        "def f(x): return max(x, 0) + 7",
        "def f(x): return (lambda y: y + 8)(x)",
        "def f(x): return (lambda y: y + 9)(x)",
        "def f(*x): return x",
        "def f(x): return x",
        "def f(x, y=0): return x - y",
        "def f(y, x=0): return y - x",
    ]
    for _ in range(2):
        found = [memoize(store)(define(body))(100) for body in bodies]
        assert found == [101, 102, 103, 104, 105, 106, 107, 108, 109, (100,), 100, 100, 100]
    assert len(store) == len(bodies)


def test_the_same_function_in_another_process(store: millpond.Store, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import millpond
from millpond.integrations.mapping import memoize

store = millpond.connect({store.address!r})

@memoize(store)
def table(name, *, unit="m"):
    print("computed")
    return name in {{"north", "south", "east"}}, unit

for _ in range(2):
    print(table("south"), table("west", unit="s"))
"""
    )
    outputs = []
    for seed in "12":
        done = subprocess.run(
            [sys.executable, str(program)],
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    line = "(True, 'm') (False, 's')\n"
    assert outputs == ["computed\ncomputed\n" + line * 2, line * 2]


def test_what_memoize_cannot_know(store: millpond.Store) -> None:
    offset = 3

    def closure(x: int) -> int:
        return x + offset

    for wrong, reason in ((closure, "uses offset"), (functools.partial(abs), "no plain"), (abs, "no plain")):
        with pytest.raises(TypeError, match=reason + ".* give memoize a name"):
            memoize(store)(wrong)  # type: ignore[arg-type]
    assert memoize(store, name="closure of 3")(closure)(4) == 7
    with pytest.raises(TypeError):
        memoize(store, name="pairs")(lambda x: x)(threading.Lock())


def test_refs_among_the_arguments(store: millpond.Store) -> None:
    calls = []

    @memoize(store, name="total")
    def total(refs: list[millpond.ObjectRef]) -> int:
        calls.append(refs)
        return int(sum(ref.get().sum() for ref in refs))

    one, two = store.put(np.arange(10)), store.put(np.arange(10))
    assert [total([one]), total([one]), total([two]), total([one, two])] == [45, 45, 45, 90]
    assert len(calls) == 3, "a ref is its object, not its value"
    assert store._totals()["tokens"] == 0
    calls.clear()


def test_a_result_that_is_gone_is_computed_again(store: millpond.Store) -> None:
    work, calls = counted(store)
    work(1)
    (name,) = store.names()
    store.delete(store.lookup(name))
    assert work(1)["args"] == [1] and work(1)["args"] == [1]
    assert len(calls) == 2


def test_methods(store: millpond.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    program: Any = type(sys)("program")
    monkeypatch.setitem(sys.modules, "program", program)
    program.memoize, program.store = memoize, store
    exec(
        """
class Scale:
    def __init__(self, factor):
        self.factor = factor

    @memoize(store)
    def times(self, x):
        return self.factor * x
""",
        program.__dict__,
    )
    two = program.Scale(2)
    assert [two.times(4), program.Scale(3).times(4), two.times(4)] == [8, 12, 8]
    assert len(store) == 2
    assert pickle.loads(pickle.dumps(program.Scale.times)) is program.Scale.times
    two.times.cache_clear()
    assert len(store) == 0


def test_results_are_spilled_and_come_back(pond: Pond) -> None:
    store = pond.store("2MiB")

    @memoize(store)
    def filled(n: int) -> Any:
        return np.full(50_000, n)

    for _ in range(2):
        assert all((filled(n) == n).all() for n in range(12))
    assert store.stats().spilled_objects > 0


def test_many_threads_and_clearing(store: millpond.Store) -> None:
    @memoize(store)
    def square(n: int) -> int:
        return n * n

    wrong: list[Any] = []

    def work() -> None:
        for number in range(200):
            if square(number % 10) != (number % 10) ** 2:
                wrong.append(number)
            if number % 50 == 0:
                square.cache_clear()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
