"""Whether readers gain from a value being in the store: how much of it are arrays and buffers.

Invariants: weighing copies no array and keeps nothing; it gives up early on what is mostly Python objects.
"""

from __future__ import annotations

import copyreg
import pickle
from typing import Any

import numpy as np

from millpond.values import reducers

__all__ = ["buffer_bytes"]

INBAND_MAX = 1 << 20
"""More bytes than that around the buffers are Python objects, which every reader would have to build anew."""


def buffer_bytes(value: object) -> int:
    """Bytes of a value that its readers would share; 0 if it is mostly something else, or not picklable."""
    scale = _Scale()
    pickler: Any = pickle.Pickler(scale, 5, buffer_callback=scale.add)
    pickler.dispatch_table = reducers.over({**copyreg.dispatch_table, np.ndarray: scale.add_array})
    try:
        pickler.dump(value)
    except Exception:  # also whatever the classes of a value raise
        return 0
    return scale.buffer_bytes


class _Scale:
    """A file to pickle into, which counts and keeps nothing."""

    def __init__(self) -> None:
        self.buffer_bytes = 0
        self._inband = 0

    def write(self, data: Any) -> int:
        self._inband += len(data)
        if self._inband > INBAND_MAX:
            raise OverflowError
        return len(data)

    def add(self, buffer: pickle.PickleBuffer) -> None:
        self.buffer_bytes += buffer.raw().nbytes

    def add_array(self, array: np.ndarray[Any, Any]) -> Any:
        """Also one with gaps, which pickle would copy. It is pickled as a number."""
        if array.dtype.hasobject:
            return array.__reduce_ex__(5)
        self.buffer_bytes += array.nbytes
        return int, ()
