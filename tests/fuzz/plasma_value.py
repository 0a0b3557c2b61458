"""What Plasma clients store: values with their places, and the tail behind data and metadata.

Right: an error, or parts inside of the input. A name in the store may be anybody's.
"""

from __future__ import annotations

import struct
from unittest import mock

import numpy as np

from fuzz.guard import Fence, address_of
from millpond.integrations.plasma import buffers, objects
from millpond.integrations.plasma.errors import PlasmaObjectNotFound
from millpond.values import serialize


class PlasmaValue:
    """See above."""

    name = "plasma-value"
    most = 8 << 10

    def __init__(self) -> None:
        self._fence = Fence(self.most)
        self._patch = mock.patch.object(serialize, "loads", self._loads)
        self._patch.start()

    def close(self) -> None:
        self._patch.stop()

    def seeds(self) -> dict[str, bytes]:
        found = {}
        for name, value in {"text": "text", "arrays": [np.arange(100), np.ones(200)]}.items():
            pieces, size = buffers.value_parts(value)
            data = bytearray(size)
            for offset, piece in pieces:
                data[offset : offset + memoryview(piece).nbytes] = piece
            found[name] = bytes(data) + b"metadata" + objects._TAIL.pack(8, 1.0, 2.0, objects._MAGIC)
        return found

    def mend(self, data: bytes) -> bytes:
        """Head and tail say again what they are."""
        data = buffers._MAGIC + data[8:]
        return data[:-8] + struct.pack("<Q", objects._MAGIC) if len(data) > 48 else data

    def run(self, data: bytes) -> str:
        held = self._fence.hold(data)
        self._held = held
        try:
            parts = objects.parts(held, "plasma:0")
        except PlasmaObjectNotFound:
            return f"no object, {buffers.value_of(held)}"
        assert parts.data.nbytes + parts.metadata.nbytes + objects._TAIL.size == len(data)
        return f"an object with {buffers.value_of(parts.data)}"

    def _loads(self, inband: memoryview, views: list[memoryview]) -> str:
        """Stands for unpickling."""
        start = address_of(self._held)
        for view in (inband, *views):
            if view.nbytes:
                at = address_of(view)
                assert start <= at and at + view.nbytes <= start + self._held.nbytes
        return f"{'some' if views else 'no'} buffers"
