"""pyarrow: a slice is stored as a slice.

Arrow's arrays and tables hand their buffers to pickle by themselves, so that `get` copies nothing. They hand
over whole buffers, though: ten rows of a large table would store the table. `register()` makes this process
store what a slice shows, if its buffers are much larger than that.
Not here: polars (polars.py), which uses this.
"""

from __future__ import annotations

import pickle
from typing import Any

import pyarrow as pa

import millpond

__all__ = ["register"]

SPARE_BYTES = 4096
SPARE_PART = 8  # a slice may drag along an eighth of its own size: repacking costs a copy


def register() -> None:
    """From now on, slices of Arrow data that this process puts store themselves and not their parents.

    Idempotent. Raises ImportError without pyarrow, when this module is imported.
    """
    millpond.register_reducer(pa.Array, reduce_array, subclasses=True)
    for kind in (pa.ChunkedArray, pa.RecordBatch, pa.Table):
        millpond.register_reducer(kind, reduce_table)


def drags(value: Any) -> bool:
    """Whether an Arrow value refers to much more memory than it shows."""
    try:
        shown = value.nbytes
    except pa.ArrowException:  # there are types of which Arrow cannot tell
        return False
    return bool(value.get_total_buffer_size() - shown > shown // SPARE_PART + SPARE_BYTES)


def reduce_array(array: Any) -> Any:
    """How an array is taken apart."""
    if not drags(array):
        return array.__reduce_ex__(5)
    return rebuild_array, (_packed(pa.record_batch([array], names=[""])),)


def reduce_table(value: Any) -> Any:
    """How a table, a record batch or a chunked array is taken apart."""
    if not drags(value):
        return value.__reduce_ex__(5)
    if isinstance(value, pa.ChunkedArray):
        return rebuild_chunked, (_packed(pa.table([value], names=[""])),)
    return (rebuild_batch if isinstance(value, pa.RecordBatch) else rebuild_table), (_packed(value),)


def _packed(value: Any) -> pickle.PickleBuffer:
    """A stream of Arrow's own format, which holds what is shown."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, value.schema) as stream:
        stream.write(value)
    return pickle.PickleBuffer(sink.getvalue())


# Named by stored pickles, so these keep their names and arguments.


def rebuild_table(memory: Any) -> Any:
    """A table over a stream."""
    return pa.ipc.open_stream(pa.py_buffer(memory)).read_all()


def rebuild_batch(memory: Any) -> Any:
    """A record batch over a stream of one."""
    return pa.ipc.open_stream(pa.py_buffer(memory)).read_next_batch()


def rebuild_chunked(memory: Any) -> Any:
    """A chunked array over a stream of one column."""
    return rebuild_table(memory).column(0)


def rebuild_array(memory: Any) -> Any:
    """An array over a stream of one batch with one column."""
    return rebuild_batch(memory).column(0)
