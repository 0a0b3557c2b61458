"""Refs inside stored values: what they keep alive, in which process, and how they go."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import millpond


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[millpond.Store]:
    """A store of its own, which must be empty and sound in the end."""
    monkeypatch.setenv("MILLPOND_DIR", str(tmp_path / "registry"))
    with millpond.Store(memory_limit="32MiB", spill_dir=tmp_path / "spill") as store:
        yield store
        gc.collect()
        assert store.check() == []
        assert store.stats().objects == 0
        assert store._totals()["tokens"] == 0


class Holder:
    """A class of the test's own, with a ref in an attribute."""

    def __init__(self, ref: millpond.ObjectRef) -> None:
        self.ref = ref

    def __reduce__(self) -> Any:
        return Holder, (self.ref,)


def test_a_value_keeps_its_refs_alive(store: millpond.Store) -> None:
    """The container is enough: the inner ref may go."""
    outer = store.put([1, store.put("inner")])
    assert store.stats().objects == 2
    assert store.get(outer)[1].get() == "inner"
    del outer
    assert store.stats().objects == 0


@pytest.mark.parametrize(
    "wrap", [lambda r: {"a": (r, [r])}, Holder, lambda r: lambda: r], ids=["nested", "attribute", "closure"]
)
def test_refs_anywhere(store: millpond.Store, wrap: Any) -> None:
    """In containers, attributes and closures, beside large arrays, and spilled."""
    inner = store.put(np.arange(100_000))
    outer = store.put((wrap(inner), np.zeros(100_000)))
    key = inner.id
    del inner
    store.spill()
    found, _ = outer.get()
    ref = found["a"][1][0] if isinstance(found, dict) else found.ref if isinstance(found, Holder) else found()
    assert ref.id == key
    assert ref.get()[-1] == 99_999
    copied, _ = outer.get(copy=True)
    del found, copied, outer
    assert ref.get()[0] == 0


def test_the_loaded_ref_outlives_its_container(store: millpond.Store) -> None:
    """Loading takes a ref of its own."""
    outer = store.put([store.put("kept")])
    [inner] = outer.get()
    del outer
    assert inner.get() == "kept"


def test_deleting_the_container_lets_go(store: millpond.Store) -> None:
    """The value is gone, and with it what only it held."""
    outer = store.put([store.put("inner")])
    store.delete(outer)
    assert store.stats().objects == 0
    with pytest.raises(millpond.ObjectDeletedError):
        outer.get()


def test_a_put_that_fails_takes_nothing(store: millpond.Store) -> None:
    """Neither a hand-off nor an edge is left of it."""
    inner = store.put("inner")
    with pytest.raises(millpond.SerializationError):
        store.put([inner, (i for i in range(3))])
    assert store.refs(inner).containers == ()
    assert store.refs(inner).handoffs == ()
    assert pickle.loads(pickle.dumps(inner)) == inner


def test_a_put_inside_a_put(store: millpond.Store) -> None:
    """Each level collects its own refs."""

    class Puts:
        def __reduce__(self) -> Any:
            return list, ([store.put([store.put("deep")]), store.put("flat")],)

    outer = store.put(Puts())
    deep, flat = outer.get()
    assert [ref.get() for ref in deep.get()] == ["deep"]
    assert flat.get() == "flat"


def test_a_ref_of_another_store(store: millpond.Store, tmp_path: Path) -> None:
    """It could not be kept alive, so it is refused with the reason."""
    with millpond.Store(memory_limit="4MiB", spill_limit=0) as other:
        ref = other.put(1)
        with pytest.raises(TypeError, match="another store"):
            store.put([ref])
        del ref


def test_straight_to_disk(store: millpond.Store) -> None:
    """A value larger than memory keeps its refs as well."""
    outer = store.put((store.put("inner"), np.ones(6 << 20)))
    assert [info.state for info in store.objects()].count("spilled") >= 1
    assert outer.get()[0].get() == "inner"


def test_another_process_reads_on(store: millpond.Store) -> None:
    """A forked reader loads the inner ref after its parent dropped everything."""
    outer = store.put({"inner": store.put(np.full(1000, 7))})
    down, up = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.read(down, 1)
            code = 0 if outer.get()["inner"].get().sum() == 7000 else 2
        finally:
            os._exit(code)
    del outer
    os.write(up, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(down)
    os.close(up)
    store._tidy()


def test_many_refs_and_long_chains(store: millpond.Store) -> None:
    """Ten thousand in one value, ten thousand deep: freed without recursion."""
    wide = store.put([store.put(i) for i in range(10_000)])
    assert store.stats().objects == 10_001
    deep = store.put(None)
    for _ in range(10_000):
        deep = store.put([deep])
    assert wide.get()[9_999].get() == 9_999
    assert store.check() == []


def test_who_holds(store: millpond.Store) -> None:
    """`refs` names members, pins, containers, hand-offs and the name."""
    inner = store.put(np.arange(5), name="five")
    outer = store.put([inner])
    view = inner.get()
    data = inner.export(deliveries=2, timeout=60)
    holders = store.refs(inner)
    assert [member.pid for member in holders.members] == [os.getpid()]
    assert [pin.pid for pin in holders.pins] == [os.getpid()]
    assert holders.containers == (outer.id,)
    assert holders.name == "five"
    [transit] = holders.handoffs
    assert (transit.pid, transit.deliveries) == (os.getpid(), 2)
    assert 50 < (transit.lapses_in_s or 0) <= 60
    store.delete("five")
    del view
    assert [millpond.load_ref(data) == inner for _ in range(3)] == [True] * 3
    assert store.refs(inner).handoffs == ()
    assert store.refs(inner).pins == ()


def test_export_is_good_for_so_many_loads(store: millpond.Store) -> None:
    """Each load takes one delivery; the last one ends the hand-off."""
    data = store.put("broadcast").export(deliveries=3)
    for left in (2, 1, 0):
        ref = millpond.load_ref(data)
        assert ref.get() == "broadcast"
        assert sum(t.deliveries for t in store.refs(ref).handoffs) == left
        del ref
    with pytest.raises(millpond.ObjectNotFoundError):
        millpond.load_ref(data)


def test_weak_pickling_keeps_nothing_alive(store: millpond.Store) -> None:
    """It loads while somebody else holds the object, and not after."""
    ref = store.put("weak")
    with millpond.weak_pickling(), millpond.weak_pickling():
        data = pickle.dumps(ref)
    assert store.refs(ref).handoffs == ()
    assert pickle.loads(data) == ref
    del ref
    with pytest.raises(millpond.ObjectNotFoundError):
        pickle.loads(data)


def test_the_line_that_created_an_object(tmp_path: Path) -> None:
    """Noted when MILLPOND_SITES is set, also of puts that went through a helper of ours."""
    program = (
        "import millpond, numpy as np\n"
        "with millpond.Store('4MiB', spill_limit=0) as store:\n"
        "    a = store.put(1)\n"
        "    b = store.create(10, 'f8')\n"
        "    print([info.site for info in store.objects()])\n"
    )
    path = tmp_path / "program.py"
    path.write_text(program)
    for switch, expected in (("1", [f"{path}:3"[-55:], f"{path}:4"[-55:]]), ("", [None, None])):
        environment = {**os.environ, "MILLPOND_DIR": str(tmp_path / "registry"), "MILLPOND_SITES": switch}
        done = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == str(expected), done.stderr
