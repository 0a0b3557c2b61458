"""Pickles, as `explain` reads them: without running them.

Right: a ValueError, or a tree whose parts lie inside of it; no name is looked up, whatever the opcodes say.
"""

from __future__ import annotations

import collections
import fractions
import pickle
import sys
from typing import Any

import cloudpickle
import numpy as np

from millpond.values.anatomy import dissect
from millpond.values.node import Node

_SIZES = [64, 128, 256]  # of the buffers out of band
_VALUES: dict[str, Any] = {
    "numbers": {"a": 1, "b": [2.5, None, True], "c": (1 << 70, -1)},
    "text-and-bytes": ["text", b"bytes", bytearray(b"more"), "x" * 300],
    "sets": [{1, 2}, frozenset({"a"}), [[]] * 3],
    "objects": [fractions.Fraction(1, 3), collections.Counter("aab"), collections.OrderedDict(a=1)],
    "arrays": [np.arange(8), {"b": np.ones((4, 4))}, np.zeros(32)],
    "by-value": lambda x: x + 1,
    "a-long-run": [{"k": n} for n in range(1500)],
}
_looked_up: list[tuple[Any, ...]] = []


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "pickle.find_class" and PickleAnatomy.at_work:
        _looked_up.append(arguments)


sys.addaudithook(_listen)


class PickleAnatomy:
    """See above."""

    name = "pickle-anatomy"
    most = 16 << 10
    at_work = False

    def close(self) -> None:
        assert not _looked_up

    def seeds(self) -> dict[str, bytes]:
        return {
            name: cloudpickle.dumps(value, 5, buffer_callback=lambda buffer: None)
            for name, value in _VALUES.items()
        } | {"a-name-made-by-a-call": b"\x80\x05\x8c\x02os\x8c\x06getcwd\x93)R\x8c\x01x\x93."}

    def mend(self, data: bytes) -> bytes:
        """Its first and last opcode are those of a pickle."""
        return pickle.PROTO + b"\x05" + data[2:-1] + pickle.STOP

    def run(self, data: bytes) -> str:
        PickleAnatomy.at_work = True
        try:
            root = dissect(data, _SIZES)
        except ValueError as error:
            return f"{type(error).__name__}: {str(error).partition(':')[0]}"[:40]
        finally:
            PickleAnatomy.at_work = False
            assert not _looked_up, f"looked up: {_looked_up.pop()}"
        self._check(root, 0, len(data), 5)
        return f"a {root.kind}" if root.kind in ("list", "dict", "tuple", "str", "") else "a value"

    def _check(self, node: Node, start: int, end: int, depth: int) -> None:
        assert start <= node.start <= node.end <= end, f"{node.kind} lies outside"
        for _, part in node.parts if depth else ():
            self._check(part, 0, end, depth - 1)
