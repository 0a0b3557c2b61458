"""Values to bytes and back: pickle protocol 5 with the large buffers beside it.

A value becomes an in-band part (the pickle) and out-of-band buffers, which `put` copies into the
arena side by side, and over which `get` builds views.
Invariants: a buffer is contiguous and one-dimensional, in bytes; no hand-off is taken for a ref while
a value is pickled; whatever fails is a SerializationError that names the part at fault, and nothing
is stored.
Not here: arrays and buffers that are the whole value (hot.pyx does them without pickle), the layout of
the stored bytes, and contained refs.
"""

from __future__ import annotations

import functools
import io
import pickle
from collections import ChainMap
from collections.abc import Iterator
from typing import Any, ClassVar, TypeAlias

import numpy as np

from millpond.errors import MillpondError, SerializationError
from millpond.hot import INBAND_MAX, OutOfBand, dumps
from millpond.units import shortened
from millpond.values import reducers

__all__ = ["INBAND_MAX", "Pickled", "careful", "copy_private", "dumps", "failure", "loads", "wants_care"]

Pickled: TypeAlias = tuple[bytes, list[memoryview]]
"""The in-band part and the buffers. A plain tuple: a class with names costs a fifth of a small put."""

PROTOCOL = 5
PATH_WIDTH = 300

# How a pickle spells the name of the running program's module: its length, then its letters.
_MAIN = b"\x8c\x08__main__"
_NUMPY_COPY = b"_reconstruct"

# The pickler puts opcodes into frames, and payloads of 64 KiB and more between them. A frame of less
# than four bytes loses its header, so that a few opcodes without argument may stand bare.
_FRAME, _BYTES, _BYTES8 = pickle.FRAME[0], pickle.BINBYTES[0], pickle.BINBYTES8[0]
_LENGTH_BYTES = {
    _FRAME: 8,
    _BYTES: 4,
    _BYTES8: 8,
    pickle.BYTEARRAY8[0]: 8,
    pickle.BINUNICODE[0]: 4,
    pickle.BINUNICODE8[0]: 8,
}
_BARE = frozenset(b"\x94(aeusbRt\x85\x86\x87]})N\x88\x89")
_READONLY = pickle.NEXT_BUFFER + pickle.READONLY_BUFFER


def loads(inband: bytes | memoryview, buffers: list[Any]) -> Any:
    """The value again. `inband` may be a view of the arena: nothing of it is kept. The buffers, any
    objects with the buffer interface, become part of the value.

    Raises SerializationError when the value cannot be rebuilt, for instance because this program
    cannot import the module of a class.
    """
    try:
        return pickle.loads(inband, buffers=buffers)
    except (MillpondError, MemoryError):
        raise
    except Exception as error:
        raise _load_failure(error) from error


def copy_private(inband: bytes | memoryview, buffers: list[Any]) -> Any:
    """The value again, over private copies of the buffers: all of its arrays can be written to.

    Raises SerializationError as `loads` does.
    """
    # numpy's allocator asks for huge pages: fresh memory of that kind fills several times faster.
    private = [np.frombuffer(buffer, np.uint8).copy().data for buffer in buffers]
    data = bytes(inband)
    if _READONLY not in data:
        return loads(data, private)
    # The arrays were read-only when they were stored, and the pickle says so.
    try:
        return _Thawing(io.BytesIO(data), buffers=private).load()
    except (MillpondError, MemoryError):
        raise
    except Exception as error:
        raise _load_failure(error) from error


class _Thawing(pickle._Unpickler):
    """Leaves writable buffers writable. In Python, since the compiled one cannot be told to."""

    def load_readonly_buffer(self) -> None:
        pass

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.READONLY_BUFFER[0]: load_readonly_buffer,
    }


def _load_failure(error: Exception) -> SerializationError:
    return SerializationError(
        f"the stored value cannot be rebuilt here: {type(error).__name__}: {error}. "
        "If a class or module is missing, make it importable in this process"
    )


def careful(value: Any) -> Pickled:
    """The same for what plain pickle cannot do, or not well: cloudpickle where it cannot (lambdas, local
    functions and classes) and where it would refer to the running program's own module, which no other
    program can load. Large arrays that are not contiguous are made so, unless they are of a subclass.
    Raises SerializationError naming the part that cannot be pickled.
    """
    try:
        return _careful(value)
    except MemoryError:
        raise
    except Exception as error:
        raise _refusal(value, error) from error


def _careful(value: Any) -> Pickled:
    out = OutOfBand()
    file = io.BytesIO()
    _careful_pickler()(file, PROTOCOL, out).dump(value)
    return file.getvalue(), out.collected


@functools.cache
def _careful_pickler() -> Any:
    """cloudpickle's pickler, with arrays made contiguous. Imported when first needed: most programs
    do not, and it would double the time that importing this package takes."""
    import cloudpickle

    table = ChainMap({np.ndarray: _reduce_array}, cloudpickle.Pickler.dispatch_table)

    class CarefulPickler(cloudpickle.Pickler):  # type: ignore[misc]
        @property
        def dispatch_table(self) -> Any:  # read once, when a pickler is made
            return reducers.over(table)

    return CarefulPickler


def _reduce_array(array: np.ndarray[Any, Any]) -> Any:
    """As numpy reduces it, with a buffer also where numpy copies: gaps, and dates of any kind."""
    if array.dtype.hasobject or not array.nbytes:
        return array.__reduce_ex__(PROTOCOL)
    order = "F" if array.flags.fnc else "C"
    flat: Any = np.ascontiguousarray(array.T if order == "F" else array).reshape(-1).view(np.uint8)
    return rebuild_array, (pickle.PickleBuffer(flat), array.dtype, array.shape, order)


def rebuild_array(buffer: Any, dtype: Any, shape: tuple[int, ...], order: Any) -> np.ndarray[Any, Any]:
    """An array over `buffer`. Named by stored pickles, so it keeps its name and arguments."""
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def wants_care(inband: bytes) -> bool:
    """Whether a long plain pickle refers to the running program's module, or holds a large array in-band
    because it was not contiguous or of dates. An innocent value that looks like it only costs time."""
    numpy_seen = False
    for start, end in _frames(inband):
        if inband.find(_MAIN, start, end) >= 0:
            return True
        numpy_seen = numpy_seen or inband.find(_NUMPY_COPY, start, end) >= 0
        # numpy's own copy of an array ends: is it in Fortran order (True or False), then its bytes.
        large = end < len(inband) and inband[end] in (_BYTES, _BYTES8)
        if large and numpy_seen and inband[end - 1] in b"\x88\x89":
            return True
    return False


def _frames(inband: bytes) -> Iterator[tuple[int, int]]:
    """(start, end) of the parts of a pickle that hold its structure; large payloads are passed over."""
    at = start = 2  # after PROTO
    while at < len(inband):
        opcode = inband[at]
        if opcode in _BARE:
            at += 1
            continue
        if opcode not in _LENGTH_BYTES:
            break  # an unframed opcode with an argument: not worth decoding, the rest is one part
        body = at + 1 + _LENGTH_BYTES[opcode]
        end = body + int.from_bytes(inband[at + 1 : body], "little")
        if opcode == _FRAME:
            yield body, end
        at = start = end
    if start < len(inband):
        yield start, len(inband)


def failure(value: Any) -> Exception | None:
    """What pickling a value raises, or None. Without its traceback: the frames in it would hold the
    value, and each other, until the garbage collector comes."""
    try:
        _careful(value)
    except Exception as raised:
        return raised.with_traceback(None)
    return None


def _refusal(value: Any, error: Exception) -> SerializationError:
    """The error that tells the caller which part of the value is at fault."""
    if isinstance(error.__cause__, RecursionError):
        return SerializationError(
            "value: it is nested too deeply for pickle. Flatten it, or raise sys.setrecursionlimit()"
        )
    from millpond.values.culprit import find_culprit  # slow to import

    culprit = find_culprit(value, error, failure)
    where = culprit.path if culprit.exact else f"inside {culprit.path}"
    return SerializationError(f"{shortened(where, PATH_WIDTH)}: {_reason(culprit.cause)}")


def _reason(cause: Exception) -> str:
    if isinstance(cause, SerializationError):
        return str(cause)
    from millpond.values.culprit import told

    return (
        f"{told(cause)}. Leave it out of the value, or teach its type to pickle (__reduce__, __getstate__, "
        "copyreg.pickle or millpond.register_reducer)"
    )
