"""What `get` copies of values of many types, measured: prints the table of docs/values.md.

A row is measured with the package that is installed here and left out without it.
"""

from __future__ import annotations

import importlib
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np

import millpond

COUNT = 1_000_000
FEW_BYTES = 7000
"""Below this, it is structure: names, types, shapes."""


class Row(NamedTuple):
    label: str
    why: str
    make: Callable[[Any], Any]
    package: str = "numpy"
    rule: str = ""
    """The integration that is registered for this row."""
    context: str = ""
    """Of that integration, the context in which it is read."""


def numbers() -> Any:
    return np.arange(COUNT, dtype=np.float64)


def texts() -> list[str]:
    return [f"text {number}" for number in range(200_000)]


VIEW = "its memory is the store's"
BUFFERS = "its buffers are the store's"
INBAND = "a Python object cannot be in shared memory"
OBJECTS = "every element is a Python object"
SMALL = "only what the slice shows is stored"

ROWS = [
    Row("`ndarray` of numbers", VIEW, lambda np: numbers()),
    Row("`ndarray`, not contiguous", "stored contiguous; " + VIEW, lambda np: numbers()[::2]),
    Row("`ndarray` of `datetime64`, of a structured dtype", VIEW, lambda np: numbers().view("M8[s]")),
    Row("slice of an `ndarray`, 1000 numbers", "so much is stored; " + VIEW, lambda np: numbers()[5:1005]),
    Row("`ndarray` of Python objects", OBJECTS, lambda np: np.array(texts(), dtype=object)),
    Row(
        "masked array, `memmap`, other subclasses of `ndarray`",
        "numpy pickles them in-band: put `np.asarray(x)`",
        lambda np: np.ma.array(numbers()),
    ),
    Row("`bytes`", INBAND + ": `create_buffer` can", lambda np: bytes(8 * COUNT)),
    Row("`bytearray`", INBAND, lambda np: bytearray(8 * COUNT)),
    Row("`str`", INBAND, lambda np: "x" * (8 * COUNT)),
    Row("pandas `DataFrame` of numbers", VIEW, lambda pd: pd.DataFrame({"x": numbers()}), "pandas"),
    Row(
        "pandas `DataFrame`, ten of a million rows",
        SMALL,
        lambda pd: pd.DataFrame({"x": numbers()})[5:15],
        "pandas",
    ),
    Row(
        "pandas `Series` of Arrow type",
        BUFFERS,
        lambda pd: pd.Series(texts(), dtype="string[pyarrow]"),
        "pandas",
    ),
    Row(
        "pandas `Series` of `object` strings", OBJECTS, lambda pd: pd.Series(texts(), dtype=object), "pandas"
    ),
    Row("pandas nullable `Int64`", VIEW, lambda pd: pd.Series(range(COUNT), dtype="Int64"), "pandas"),
    Row("pandas categorical", VIEW, lambda pd: pd.Series(texts()[:1000] * 1000, dtype="category"), "pandas"),
    Row("pyarrow `Array`, `Table`", BUFFERS, lambda pa: pa.table({"x": numbers()}), "pyarrow"),
    Row(
        "pyarrow `Table`, ten of a million rows",
        "pyarrow hands over whole buffers",
        lambda pa: pa.table({"x": numbers()}).slice(5, 10),
        "pyarrow",
    ),
    Row(
        "the same, after `integrations.arrow.register()`",
        SMALL,
        lambda pa: pa.table({"x": numbers()}).slice(5, 10),
        "pyarrow",
        "arrow",
    ),
    Row(
        "polars `DataFrame`, `Series`",
        "polars pickles in-band",
        lambda pl: pl.DataFrame({"x": numbers()}),
        "polars",
    ),
    Row(
        "the same, after `integrations.polars.register()`",
        BUFFERS + ", as Arrow data",
        lambda pl: pl.DataFrame({"x": numbers()}),
        "polars",
        "polars",
    ),
    Row(
        "scipy sparse array, matrix",
        VIEW,
        lambda sparse: sparse.eye_array(COUNT, format="csr"),
        "scipy.sparse",
    ),
    Row("xarray `DataArray`, `Dataset`", VIEW, lambda xr: xr.DataArray(numbers()), "xarray"),
    Row(
        "xarray over dask chunks",
        "the graph is stored, and its arrays are the store's; [workers](guides/dask.md) share each chunk",
        lambda da: importlib.import_module("xarray").DataArray(numbers()).chunk(dim_0=COUNT // 4),
        "dask.array",
    ),
    Row("torch `Tensor`", "torch pickles in-band", lambda torch: torch.zeros(2 * COUNT), "torch"),
    Row(
        "torch `Tensor`, ten of two million numbers",
        "torch pickles the whole storage",
        lambda torch: torch.zeros(2 * COUNT)[5:15],
        "torch",
    ),
    Row(
        "torch `Tensor`, after `integrations.torch.register()`",
        "torch has no read-only tensors: a private copy",
        lambda torch: torch.zeros(2 * COUNT),
        "torch",
        "torch",
    ),
    Row(
        "the same, read in `integrations.torch.shared_tensors()`",
        VIEW + "; a page that is written to becomes private",
        lambda torch: torch.zeros(2 * COUNT),
        "torch",
        "torch",
        "shared_tensors",
    ),
    Row("ten of its 2 million numbers", SMALL, lambda torch: torch.zeros(2 * COUNT)[5:15], "torch", "torch"),
]


def measure(store: millpond.Store, row: Row) -> tuple[int, int] | None:
    """(bytes stored, bytes copied by a get), or None without the package."""
    try:
        package = importlib.import_module(row.package)
    except ImportError:
        return None
    context: AbstractContextManager[Any] = nullcontext()
    if row.rule:
        integration = importlib.import_module(f"millpond.integrations.{row.rule}")
        integration.register()
        context = getattr(integration, row.context)() if row.context else context
    ref = store.put(row.make(package))
    copied = store.explain(ref).copied_bytes
    with context:
        ref.get()  # imports what it needs
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        value = ref.get()
        traced = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.stop()
    del value
    return ref.size, max(copied, traced)


def shown(count: int) -> str:
    if count < FEW_BYTES:
        return "-"
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.0f} kB"


def lines() -> Iterator[str]:
    """The table, line by line."""
    yield "| type | stored | copied by `get` | why |"
    yield "| --- | --- | --- | --- |"
    with millpond.Store("256MiB", spill_limit=0) as store:
        for row in ROWS:
            measured = measure(store, row)
            if measured is not None:
                stored, copied = map(shown, measured)
                yield f"| {row.label} | {stored} | {copied} | {row.why} |"


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in lines())
