"""What clients hand out: buffers over the store's memory, and values as bytes in such buffers.

Invariants: a buffer pins its object as long as it, or anything made over it, lives.
Not here: how an object's bytes are laid out (objects.py).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from millpond.errors import SerializationError
from millpond.values import serialize

if TYPE_CHECKING:
    pyarrow: Any = None
else:
    try:
        import pyarrow
    except ImportError:
        pyarrow = None


class _Bytes(np.ndarray[Any, Any]):
    """A buffer where pyarrow is not installed: an array of bytes with the methods of `pyarrow.Buffer`.

    An array, since only compiled classes can have the buffer interface before Python 3.12.
    """

    def __new__(cls) -> _Bytes:
        raise TypeError("buffers come from PlasmaClient.create and PlasmaClient.get_buffers")

    @property
    def is_mutable(self) -> bool:
        """Whether it can be written to."""
        return bool(self.flags.writeable)

    @property
    def address(self) -> int:
        """Where the bytes are in this process's memory."""
        return int(self.ctypes.data)

    def to_pybytes(self) -> bytes:
        """A copy, as bytes."""
        return self.tobytes()

    def slice(self, offset: int = 0, length: int | None = None) -> Any:
        """`length` bytes from `offset` on, the same memory."""
        return self[offset : None if length is None else offset + length]

    def equals(self, other: Any) -> bool:
        """Whether the bytes are the same."""
        return bool(np.array_equal(self, np.frombuffer(other, np.uint8)))


PlasmaBuffer: Any = _Bytes if pyarrow is None else pyarrow.Buffer
"""The type of the buffers: `pyarrow.Buffer`, or without pyarrow an array of bytes that can do the same."""


def buffer_over(memory: memoryview) -> Any:
    """A PlasmaBuffer over memory, read-only if that is."""
    if pyarrow is not None:
        return pyarrow.py_buffer(memory)
    return np.frombuffer(memory, np.uint8).view(_Bytes)


# A value that `put` stores: the head, an (offset, length) pair per buffer, the pickle, then the buffers at
# multiples of 64 bytes.
_HEAD = struct.Struct("<8sIIQ")
_MAGIC = b"MPplasma"
_PLACE = struct.Struct("<QQ")
_ALIGN = 64


def value_parts(value: Any) -> tuple[list[tuple[int, bytes | memoryview]], int]:
    """((offset, bytes) of each piece, size of all) of a value. Raises SerializationError."""
    if type(value) is np.ndarray:  # marked as read-only, an array of any size becomes a view
        value = value.view()
        value.flags.writeable = False
    inband, buffers = serialize.dumps(value)
    at = _HEAD.size + _PLACE.size * len(buffers) + len(inband)
    places, pieces = [], []
    for buffer in buffers:
        at = -(-at // _ALIGN) * _ALIGN
        places.append(_PLACE.pack(at, buffer.nbytes))
        pieces.append((at, buffer))
        at += buffer.nbytes
    head = _HEAD.pack(_MAGIC, len(buffers), 0, len(inband)) + b"".join(places) + inband
    return [(0, head), *pieces], at


def value_of(data: memoryview) -> Any:
    """The value that is stored in `data`; its arrays are views of it. Raises SerializationError."""
    if data.nbytes < _HEAD.size or bytes(data[:8]) != _MAGIC:
        raise SerializationError(
            f"these {data.nbytes} bytes were not stored by PlasmaClient.put: read them with get_buffers"
        )
    _, count, _, inband = _HEAD.unpack_from(data)
    start = _HEAD.size + _PLACE.size * count
    end = start + inband
    places = list(_PLACE.iter_unpack(data[_HEAD.size : start])) if end <= data.nbytes else []
    if end > data.nbytes or any(at + size > data.nbytes for at, size in places):
        raise SerializationError(f"these {data.nbytes} bytes are not a whole value of PlasmaClient.put")
    return serialize.loads(data[start:end], [data[at : at + size] for at, size in places])
