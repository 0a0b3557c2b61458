"""Where a pickle has very many values: a run of them is counted by type, not taken apart.

Once the tree of a pickle has enough nodes (anatomy.py), what lies between a mark and the opcode that ends its
run comes here: the same stack machine, over names of types in place of nodes, at a fraction of the cost.
Invariants: nothing is imported or called; position, memo and buffers are afterwards where they would be
otherwise, so memory out of band is counted to the byte.
Not here: what becomes of the run (anatomy.py). A type whose name first comes inside of a run is an "object".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from millpond.values.node import Known, Node
from millpond.values.opcodes import ARGUMENT_BYTES, CODES, GIVEN_THE_TYPE, KINDS, built_kind, end_of

__all__ = ["skim"]

_FIXED = [max(0, ARGUMENT_BYTES.get(code, -1) + 1) for code in range(256)]
"""Bytes of each opcode with its argument; 0: that has a length of its own."""
_PUSHED = [KINDS.get(code) for code in range(256)]
_MARK, _FRAME, _MEMOIZE = CODES["MARK"], CODES["FRAME"], CODES["MEMOIZE"]
_FETCHES = {CODES["BINGET"], CODES["LONG_BINGET"]}
_ENDS = {CODES[name] for name in ("APPENDS", "SETITEMS", "ADDITEMS", "TUPLE", "FROZENSET", "POP_MARK")}
_TO_MARK = {CODES["TUPLE"]: "tuple", CODES["FROZENSET"]: "frozenset"}


class _Run:
    """What the opcodes work on. `stack` has kinds, nodes that were fetched, and None for a mark."""

    __slots__ = ("buffers", "shared", "stack")

    def __init__(self, buffers: Iterator[int]) -> None:
        self.stack: list[Node | str | None] = []
        self.buffers = buffers
        self.shared = 0

    def drop(self, count: int) -> None:
        del self.stack[-count:]

    def tuple_of(self, count: int) -> None:
        self.drop(count)
        self.stack.append("tuple")

    def next_buffer(self) -> None:
        self.shared += next(self.buffers)
        self.stack.append("")

    def global_name(self) -> None:
        self.drop(2)
        self.stack.append("global")

    def reduce(self) -> None:
        function = self.stack[-2]
        called = _name(function)
        self.drop(2)
        self.stack.append("object" if called in GIVEN_THE_TYPE else built_kind(called))

    def new_object(self, arguments: int) -> None:
        type_ = self.stack[-1 - arguments]
        self.drop(1 + arguments)
        self.stack.append(_name(type_).rpartition(".")[2] or "object")

    def end_inner(self, code: int) -> None:
        """An opcode that takes what lies above the last mark, inside of the run."""
        stack = self.stack
        while stack.pop() is not None:
            pass
        if code in _TO_MARK:
            stack.append(_TO_MARK[code])


_STEPS: dict[int, Callable[[_Run], None]] = {
    CODES["READONLY_BUFFER"]: lambda _: None,
    CODES["NEXT_BUFFER"]: _Run.next_buffer,
    CODES["POP"]: lambda run: run.drop(1),
    CODES["APPEND"]: lambda run: run.drop(1),
    CODES["BUILD"]: lambda run: run.drop(1),
    CODES["SETITEM"]: lambda run: run.drop(2),
    CODES["TUPLE1"]: lambda run: run.tuple_of(1),
    CODES["TUPLE2"]: lambda run: run.tuple_of(2),
    CODES["TUPLE3"]: lambda run: run.tuple_of(3),
    CODES["STACK_GLOBAL"]: _Run.global_name,
    CODES["REDUCE"]: _Run.reduce,
    CODES["NEWOBJ"]: lambda run: run.new_object(1),
    CODES["NEWOBJ_EX"]: lambda run: run.new_object(2),
}


def skim(data: bytes, at: int, memo: list[Known], buffers: Iterator[int]) -> tuple[int, list[str], int]:
    """(where the opcode is that ends the run, the kinds of its values, bytes out of band in it).

    at: right behind the run's mark. Raises as `dissect` does inside.
    """
    run = _Run(buffers)
    stack, last, depth = run.stack, at, 0
    while True:
        code = data[at]
        kind = _PUSHED[code]
        if kind is not None:
            stack.append(kind)
        elif code == _MEMOIZE:
            memo.append(last if _PUSHED[data[last]] in ("str", "bytes") else _kind(stack[-1]))
        elif code in _FETCHES:
            known = memo[int.from_bytes(data[at + 1 : at + _FIXED[code]], "little")]
            stack.append("same" if isinstance(known, str | int) else known)
        elif code == _MARK:
            depth += 1
            stack.append(None)
        elif code in _ENDS:
            if not depth:
                return at, [_kind(item) for item in stack], run.shared
            depth -= 1
            run.end_inner(code)
        elif code != _FRAME:
            _STEPS[code](run)
        if code != _FRAME:  # one may lie between a long text and its MEMOIZE
            last = at
        at = at + _FIXED[code] if _FIXED[code] else end_of(data, at)


def _kind(item: Node | str | None) -> str:
    return item if isinstance(item, str) else "same"


def _name(item: Node | str | None) -> str:
    """The dotted name of a callable that was fetched from the memo."""
    return "" if item is None or isinstance(item, str) else (item.same or item).name
