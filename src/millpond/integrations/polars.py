"""polars: frames and series over the store's memory.

polars pickles into one block of bytes, which every `get` decodes and copies. `register()` makes this process
store them as Arrow data (both packages have the same memory format), so that `get` copies nothing.
Invariants: what does not come back from Arrow with the very same types is left to polars' own pickling.
Not here: slices (arrow.py).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import polars as pl
import pyarrow as pa

import millpond
from millpond.integrations import arrow

__all__ = ["register"]

DRAGGED = 4  # how many times what it shows; Arrow's views of short texts take up to twice polars' estimate

# What has no counterpart in Arrow: columns of Python objects, for example.
_REFUSALS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException)


def register() -> None:
    """From now on, polars data that this process puts is shared by `get`; also what `arrow.register` does.

    Idempotent. Raises ImportError without polars and pyarrow, when this module is imported.
    """
    arrow.register()
    millpond.register_reducer(pl.DataFrame, reduce_frame)
    millpond.register_reducer(pl.Series, reduce_series)


def reduce_frame(frame: Any) -> Any:
    """How a DataFrame is taken apart."""
    with suppress(*_REFUSALS):
        table = _to_arrow(frame)
        if rebuild_frame(table).schema == frame.schema:
            return rebuild_frame, (table,)
    return frame.__reduce_ex__(5)


def reduce_series(series: Any) -> Any:
    """How a Series is taken apart."""
    with suppress(*_REFUSALS):
        array = _to_arrow(series)
        if rebuild_series(array, series.name).dtype == series.dtype:
            return rebuild_series, (array, series.name)
    return series.__reduce_ex__(5)


def _to_arrow(value: Any) -> Any:
    """Without a copy, unless it is a slice that would drag along the texts of its parent."""
    found = value.to_arrow(compat_level=pl.CompatLevel.newest())
    if found.nbytes > DRAGGED * value.estimated_size() + arrow.SPARE_BYTES:
        return value.to_arrow(compat_level=pl.CompatLevel.oldest())
    return found


def rebuild_frame(table: Any) -> Any:
    """A DataFrame over a table. Named by stored pickles, so it keeps its name and arguments."""
    return pl.from_arrow(table, rechunk=False)


def rebuild_series(array: Any, name: str) -> Any:
    """A Series over an array. Named by stored pickles, so it keeps its name and arguments."""
    found: Any = pl.from_arrow(array, rechunk=False)
    return found.alias(name)
