"""Values that any process can make again from (seed, key) alone, and so verify to the last byte.

Invariants: the same (seed, key) gives an equal value in every process; two keys differ, all but surely, in
every 32 KiB of their bytes, so that a swapped, shifted or half-written block cannot look right.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE_MAX = 64 << 20
# Python objects of many parts are slow to build; their bytes are not what is tested.
PARTS_MAX = 256 << 10
# Where the store changes its ways: slabs, pages, blocks, records of their own, files of their own.
EDGES = (0, 1, 64, 65, 8192, 8193, 65535, 65536, 65537, (8 << 20) - 1, 8 << 20)
POOL_WORDS = 4096
COMPARE_BYTES = 1 << 20
DTYPES = ("u1", "i2", "i4", "f8", "c16", "M8[s]")

Maker = Callable[[int, random.Random, int], Any]


class Values:
    """All values of one run."""

    def __init__(self, seed: int, largest: int = SIZE_MAX) -> None:
        self._seed, self._largest = seed, largest
        self._edges = [edge for edge in EDGES if edge < largest] + [largest]
        self._pool = np.random.default_rng(seed).integers(0, 2**64, POOL_WORDS, dtype=np.uint64)
        self._makers: list[Maker] = [
            self._array,
            self._array,
            self._bytes,
            self._table,
            self._list,
            self._text,
        ]

    def make(self, key: int) -> Any:
        """The value of `key`: an array, bytes, a dict with arrays in it, a list or a str."""
        maker, rng, size = self._choose(key)
        return maker(key, rng, size)

    def size(self, key: int) -> int:
        """Bytes of payload that the value has, a few more or less."""
        return self._choose(key)[2]

    def fault(self, key: int, value: Any) -> str:
        """Where `value` is not the value of `key`; empty if it is."""
        return difference(self.make(key), value)

    def _choose(self, key: int) -> tuple[Maker, random.Random, int]:
        rng = random.Random(f"{self._seed}:{key}")
        maker = rng.choice(self._makers)
        size = int(math.exp(rng.uniform(0.0, math.log(self._largest + 1)))) - 1
        if rng.random() < 0.05:
            size = rng.choice(self._edges)
        return maker, rng, min(size, PARTS_MAX) if maker in (self._list, self._text) else size

    def _noise(self, key: int, size: int) -> NDArray[np.uint8]:
        """`size` bytes; those of every other key compress well."""
        words = -(-size // 8)
        salts = np.random.default_rng([self._seed, key]).integers(
            0, 2**64, -(-words // POOL_WORDS), dtype=np.uint64
        )
        noise = (self._pool[None, : min(words, POOL_WORDS)] ^ salts[:, None]).reshape(-1)
        if key % 2:
            noise &= np.uint64(0xFF000000000000FF)
        return noise.view(np.uint8)[:size]

    def _array(self, key: int, rng: random.Random, size: int) -> NDArray[Any]:
        dtype = np.dtype(rng.choice(DTYPES))
        items = size // dtype.itemsize
        array = self._noise(key, items * dtype.itemsize).view(dtype)
        rows = rng.choice((0, 1, 3, 16))
        if not rows or items % rows:
            return array
        return array.reshape(rows, -1).copy(order="F") if rng.random() < 0.5 else array.reshape(rows, -1)

    def _bytes(self, key: int, rng: random.Random, size: int) -> bytes:
        return self._noise(key, size).tobytes()

    def _text(self, key: int, rng: random.Random, size: int) -> str:
        return self._noise(key, size).tobytes().decode("latin-1")

    def _list(self, key: int, rng: random.Random, size: int) -> list[Any]:
        return [key, *self._noise(key, size // 8 * 8).view(np.int64).tolist()]

    def _table(self, key: int, rng: random.Random, size: int) -> dict[str, Any]:
        small = min(size // 4, PARTS_MAX)
        return {
            "key": key,
            "column": self._array(key, rng, size // 2),
            "blob": self._bytes(key + 1, rng, size // 4),
            "nested": {"text": self._text(key + 2, rng, small), "list": [None, 1.5, ("a", key)]},
        }


def difference(expected: Any, value: Any) -> str:
    """The path to the first difference and what it is; empty when the two are equal in type and bytes."""
    if type(expected) is not type(value):
        return f" is a {type(value).__name__} instead of a {type(expected).__name__}"
    if isinstance(expected, np.ndarray):
        return _array_difference(expected, value)
    if isinstance(expected, dict):
        if expected.keys() != value.keys():
            return f" has the keys {list(value)} instead of {list(expected)}"
        parts = ((f"[{key!r}]", difference(expected[key], value[key])) for key in expected)
        return next((path + text for path, text in parts if text), "")
    return "" if expected == value else f" of length {len(value) if hasattr(value, '__len__') else 1} differs"


def _array_difference(expected: NDArray[Any], value: NDArray[Any]) -> str:
    for name in ("dtype", "shape"):
        if getattr(expected, name) != getattr(value, name):
            return f" has {name} {getattr(value, name)} instead of {getattr(expected, name)}"
    if expected.flags.f_contiguous != value.flags.f_contiguous:
        return " has lost its memory order"
    # Bytes, not numbers: NaN differs from itself. In steps, so that the comparison needs no memory.
    left, right = (array.ravel(order="K").view(np.uint8) for array in (expected, value))
    for start in range(0, left.size, COMPARE_BYTES):
        part = slice(start, start + COMPARE_BYTES)
        if not np.array_equal(left[part], right[part]):
            first = start + int(np.flatnonzero(left[part] != right[part])[0])
            return f" differs at byte {first} of {left.size}"
    return ""
