"""Values of other packages: the table in docs/values.md, and what the registered rules give back."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import millpond
from millpond import hot
from millpond.values import reducers
from ponds import Pond
from typed_values import ROWS

ROOT = Path(__file__).parents[1]
NUMBER = re.compile(r"([\d.]+) ([kM]B)")


@pytest.fixture(autouse=True)
def rules() -> Iterator[None]:
    """What a test registers holds for that test."""
    yield
    for kind in list(reducers._rules):
        millpond.register_reducer(kind, None)


# --- the table ---


def rows(text: str) -> dict[str, list[str]]:
    """(stored, copied, why) by type."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {label: rest for label, *rest in cells[2:]}


def differs(shown: str, measured: str) -> bool:
    """Whether two sizes are not about the same: versions of packages differ in their structure."""
    one, two = (float(match[1]) if (match := NUMBER.fullmatch(text)) else 0.0 for text in (shown, measured))
    return shown[-2:] != measured[-2:] or abs(one - two) > 0.2 * max(one, two)


def test_the_table_is_what_is_measured() -> None:
    page = rows((ROOT / "docs" / "values.md").read_text())
    assert list(page) == [row.label for row in ROWS] and len(page) == len(ROWS)
    script = str(ROOT / "tests" / "typed_values.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    measured = rows(done.stdout)
    assert len(measured) >= 9, "numpy's rows at least"
    wrong = {
        label: (page[label], found)
        for label, found in measured.items()
        if page[label][2:] != found[2:] or any(map(differs, page[label][:2], found[:2]))
    }
    assert wrong == {}


def test_a_wrong_row_is_seen() -> None:
    assert differs("8.0 MB", "-") and differs("8.0 MB", "8.0 kB") and differs("8.0 MB", "5.0 MB")
    assert not differs("8.0 MB", "8.3 MB") and not differs("-", "-")


# --- pyarrow ---


def test_arrow_slices(store: millpond.Store) -> None:
    pa = pytest.importorskip("pyarrow")
    from millpond.integrations import arrow

    table = pa.table({"x": np.arange(100_000), "s": [f"text {n}" for n in range(100_000)]})
    texts = table.column("s").chunk(0)
    values = [
        table.slice(70, 10),
        table.slice(70, 10).to_batches()[0],
        table.column("s").slice(5, 10),
        texts.slice(5, 10),
        texts.dictionary_encode(),
        pa.array([n % 3 == 0 for n in range(100_000)]).slice(13, 1000),
        pa.array([[n, None] for n in range(50_000)]).slice(3, 7),
        pa.array([None, {"a": 1}, {"a": 2}] * 10_000).slice(3, 7),
        table,
        table.slice(0, 99_000),
        pa.array([], pa.int32()),
    ]
    whole = [store.put(value).size for value in values[:4]]
    arrow.register()
    for value in values:
        ref = store.put(value)
        found = ref.get()
        assert found.equals(value) and type(found) is type(value)
        found.validate(full=True)
    assert all(size > 100 * store.put(value).size for size, value in zip(whole[:2], values[:2], strict=True))
    assert store.put(values[2]).size < 1500 and store.put(values[3]).size < 1500
    assert store.explain(table).copied_bytes < 1000, "a whole table is not repacked"
    nested = store.put({"part": table.slice(3, 4), "all": [table.slice(3, 4)]})
    assert nested.size < 4000 and nested.get()["all"][0].equals(table.slice(3, 4))


# --- polars ---


@pytest.fixture
def pl() -> Any:
    """polars, with the descriptors open that its threads keep."""
    pytest.importorskip("pyarrow")
    found: Any = pytest.importorskip("polars")
    found.DataFrame({"x": [1]}).lazy().collect()
    return found


def test_polars(pl: Any, store: millpond.Store) -> None:
    from millpond.integrations import polars

    polars.register()
    count = 10_000
    frame = pl.DataFrame(
        {
            "i": [1, None, 3, 4] * count,
            "s": ["", "short", "much longer than twelve bytes", None] * count,
            "c": pl.Series(["u", "v", "w", None] * count, dtype=pl.Categorical),
            "e": pl.Series(["u", "v", "u", None] * count, dtype=pl.Enum(["u", "v"])),
            "t": pl.Series(range(4 * count)).cast(pl.Datetime("us", "UTC")),
            "l": [[1, 2], [3], [], None] * count,
            "b": [True, False, None, True] * count,
            "r": [{"q": 1.5}, {"q": None}, None, {"q": 2.5}] * count,
        }
    )
    ref = store.put(frame)
    explained = store.explain(ref)
    assert explained.copied_bytes < 4000 and explained.shared_bytes > 1_000_000
    found = ref.get()
    assert found.equals(frame) and found.schema == frame.schema
    found.extend(frame[:4])  # in place: of its own
    found[0, "i"] = 77
    assert ref.get().equals(frame)
    part = store.put(frame[5:9])
    assert part.size < 8000 and part.get().equals(frame[5:9])
    series = pl.Series("name", np.arange(1000))
    again = store.put([series, series]).get()
    assert again[0] is again[1] and again[0].equals(series, check_names=True)
    for other in (pl.Series("f", [object()], dtype=pl.Object), pl.DataFrame({"f": [object()]})):
        with pytest.raises(millpond.SerializationError, match="Object"):
            store.put(other)
    assert store.put(frame.lazy()).get().collect().equals(frame)


# --- torch ---


def test_torch(store: millpond.Store) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is large: install millpond[torch] to test it")
    from millpond.integrations import torch as integration

    integration.register()
    tensors = [
        torch.arange(1200.0).reshape(30, 40),
        torch.arange(1200.0).reshape(30, 40).T,
        torch.rand(2, 3, 8, 8).to(memory_format=torch.channels_last),
        torch.tensor(3.5),
        torch.ones(1000, dtype=torch.bfloat16),
        torch.rand(1000) > 0.5,
        torch.rand(500, dtype=torch.complex64),
        torch.rand(500, dtype=torch.complex64).conj(),
        torch.zeros(0, 3),
        torch.ones(1000, requires_grad=True),
        torch.arange(10_000)[::7],
        torch.ones(5).expand(1000, 5),
        torch.nn.Parameter(torch.ones(1000)),
    ]
    for tensor in tensors:
        ref = store.put(tensor)
        with integration.shared_tensors():
            shared = ref.get()
        for found in (ref.get(), shared, ref.get(copy=True)):
            assert found.dtype == tensor.dtype and found.shape == tensor.shape
            assert torch.equal(found.detach().to_dense(), tensor.detach().to_dense())
            assert found.requires_grad == tensor.requires_grad and type(found) is type(tensor)
    sparse = torch.eye(100).to_sparse()
    assert torch.equal(store.put(sparse).get().to_dense(), sparse.to_dense())
    transposed, last = store.put(tensors[1]).get(), store.put(tensors[2]).get()
    assert transposed.stride() == (1, 40) and last.is_contiguous(memory_format=torch.channels_last)
    assert store.put(torch.zeros(1_000_000)[5:15]).size < 400
    layer = torch.nn.Linear(100, 100)
    assert torch.equal(store.put(layer).get().weight, layer.weight)


def test_shared_tensors_are_private_on_write(pond: Pond, store: millpond.Store) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is large: install millpond[torch] to test it")
    from millpond.integrations import torch as integration

    integration.register()
    ref = store.put(torch.zeros(1_000_000))

    def work(own: Any, data: bytes) -> float:
        from millpond.integrations.torch import shared_tensors

        own.ref = millpond.load_ref(data)
        with shared_tensors():
            own.tensor = own.ref.get()
        own.tensor[10] = 5.0
        return float(own.tensor.sum())

    worker = pond.member(store)
    assert worker.run(work, ref.export()) == 5.0
    with integration.shared_tensors():
        mine = ref.get()
    mine[10] = 7.0
    assert float(mine.sum()) == 7.0 and float(ref.get().sum()) == 0.0
    assert worker.run(lambda own: float(own.tensor.sum())) == 5.0
    assert len(store.refs(ref).pins) == 2, "a shared tensor stays where it is"
    own = ref.get()
    own += 1
    assert float(ref.get().sum()) == 0.0
    del mine


# --- private maps ---


def test_private_maps(store: millpond.Store) -> None:
    ref = store.put(np.arange(100_000))
    private = hot.map_private(memoryview(ref.get().base)[64:])  # type: ignore[arg-type]
    assert private is not None
    array: Any = np.frombuffer(private, np.int64)
    assert array[-1] == 99_999 and len(store.refs(ref).pins) == 1
    array[:] = 3
    assert ref.get()[-1] == 99_999
    del ref
    gc.collect()
    assert len(store) == 0 and (array == 3).all()
    store.close()
    assert (array == 3).all(), "as any view, it outlives the membership"
    del array, private


def test_what_has_no_private_map(store: millpond.Store) -> None:
    ref = store.put(np.zeros(0))
    view = memoryview(store.put(np.arange(100)).get().base)  # type: ignore[arg-type]
    for other in (b"bytes", bytearray(5), np.zeros(5), ref.get(), view[:0]):
        assert hot.map_private(other) is None
    store.close()
    assert hot.map_private(view) is None
    for wrong in (5, None):
        with pytest.raises(TypeError):
            hot.map_private(wrong)
    with pytest.raises(TypeError):
        hot.PrivateMap()
    del view
