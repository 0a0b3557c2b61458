"""What a pickle consists of: the tree of its values, with the bytes of each, read without loading it.

A pickle is a program for a stack machine (pickletools documents the opcodes). Here the program runs over
spans instead of values: each opcode says how much of the pickle the value on top of the stack takes, and what
became part of what.
Invariants: nothing of the pickle is imported or called; the parts of a node lie inside its span and do not
overlap; an opcode that protocol 5 does not write ends the reading with a ValueError.
Not here: what the tree means for a reader of the value (explain.py), the opcodes (opcodes.py).
"""

from __future__ import annotations

import copy
import pickle
import reprlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from millpond.values.node import PARTS_MAX, Known, Node
from millpond.values.opcodes import CODES, GIVEN_THE_TYPE, KINDS, built_kind, end_of
from millpond.values.skim import skim

__all__ = ["dissect"]

VALUES_MAX = 50_000
"""Values of one pickle that become nodes; what comes after them is counted by type (skim.py)."""
SHORT_MAX = 64
"""Runs of so few values are taken apart up to twice that."""

_OF_TYPES = ("cloudpickle.cloudpickle._builtin_type", "cloudpickle.cloudpickle._make_skeleton_class")
_NAMES = {code: name for name, code in CODES.items()}


def dissect(data: bytes, buffers: Sequence[int]) -> Node:
    """The value that a pickle of protocol 4 or 5 builds. buffers: the sizes of those out of band, in order.

    Raises ValueError for what is no such pickle. Takes some microseconds per value for the
    first `VALUES_MAX`, and a fraction of one for each that follows.
    """
    try:
        return _Machine(data, iter(buffers)).run()
    except (IndexError, StopIteration, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"this pickle cannot be read: {type(error).__name__}: {error}") from error


def _fields(name: str) -> tuple[str, ...]:
    """The fields of a named tuple that this process has imported already."""
    module, _, attribute = name.rpartition(".")
    type_ = getattr(sys.modules.get(module), attribute, None)
    return getattr(type_, "_fields", ()) if isinstance(type_, type) and issubclass(type_, tuple) else ()


class _Machine:
    """The stack machine. A mark on the stack is a node of kind "mark"."""

    def __init__(self, data: bytes, buffers: Iterator[int]) -> None:
        self.data = data
        self.buffers = buffers
        self.stack: list[Node] = []
        self.memo: list[Known] = []
        self.at = self.next = 0  # the opcode under way, the one after it
        self.read = 0  # values that were made part of others

    def run(self) -> Node:
        data, stack, stop = self.data, self.stack, CODES["STOP"]
        while (code := data[self.at]) != stop:
            self.next = end_of(data, self.at)
            kind = KINDS.get(code)
            if kind is None:
                _STEPS[code](self)
            else:
                stack.append(Node(kind, self.at, self.next))
            self.at = self.next
        root = stack.pop()
        if stack:
            raise ValueError("values are left on the stack of this pickle")
        root.start, root.end = 0, len(data)
        return root

    # --- what the opcodes do ---

    def mark(self) -> None:
        self.stack.append(Node("mark", self.at, self.next))
        if self.read > VALUES_MAX:
            self.skim()

    def skim(self) -> None:
        """The run that begins here is counted, not taken apart; a short one is: arguments, a state."""
        known, buffers = len(self.memo), copy.copy(self.buffers)
        end, kinds, shared = skim(self.data, self.next, self.memo, self.buffers)
        if len(kinds) <= SHORT_MAX and self.read <= 2 * VALUES_MAX:
            del self.memo[known:]
            self.buffers = buffers
            return
        name = _NAMES[self.data[end]]
        start = self.stack.pop().start
        self.at, self.next = end, end + 1
        if name in ("TUPLE", "FROZENSET"):
            self.push(name.lower(), start)
        if name != "POP_MARK":
            self.grown().count_in(kinds[1::2] if name == "SETITEMS" else kinds, shared)

    def memoize(self) -> None:
        self.memo.append(self.grown())

    def fetch(self) -> None:
        index = int.from_bytes(self.data[self.at + 1 : self.next], "little")
        node = Node("same", self.at, self.next)
        node.same = self.remembered(index)
        self.stack.append(node)

    def remembered(self, index: int) -> Node:
        known = self.memo[index]
        if isinstance(known, int):
            known = Node(KINDS[self.data[known]], known, end_of(self.data, known))
        elif isinstance(known, str):
            known = Node(known, 0, 0)
        self.memo[index] = known
        return known

    def next_buffer(self) -> None:
        self.stack.append(Node("", self.at, self.next, next(self.buffers)))

    def read_only(self) -> None:
        self.grown()

    def pop(self) -> None:
        popped = self.stack.pop()
        if self.stack and popped.parts and self.stack[-1].kind != "mark":
            self.grown().add(".__setstate__()", popped)  # a function has set the state of what lies below

    def pop_mark(self) -> None:
        self.marked()

    def append(self) -> None:
        part = self.stack.pop()
        self.extend([part])

    def appends(self) -> None:
        _, parts = self.marked()
        self.extend(parts)

    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.update([key, value])

    def set_items(self) -> None:
        _, parts = self.marked()
        self.update(parts)

    def extend(self, parts: list[Node]) -> None:
        self.number(self.grown(), parts)

    def update(self, parts: list[Node]) -> None:
        whole = self.grown()
        for index in range(0, len(parts), 2):
            key, value = parts[index : index + 2]
            value.start = key.start  # the key counts with its value
            value.shared += key.shared
            whole.add(f"[{self.shown(key)}]" if whole.count < PARTS_MAX else "", value)
        self.read += len(parts)

    def add_items(self) -> None:
        _, parts = self.marked()
        self.members(self.grown(), parts)

    def frozen_set(self) -> None:
        start, parts = self.marked()
        self.members(self.push("frozenset", start), parts)

    def tuple_of(self, count: int) -> None:
        parts = self.stack[-count:]
        del self.stack[-count:]
        self.make_tuple(parts[0].start, parts)

    def tuple_marked(self) -> None:
        self.make_tuple(*self.marked())

    def make_tuple(self, start: int, parts: list[Node]) -> None:
        self.number(self.push("tuple", start), parts)

    def global_name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        node = self.push("global", module.start)
        node.name = f"{self.literal(module)}.{self.literal(name)}"

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        called = (function.same or function).name
        node = self.push(built_kind(called), function.start)
        index = GIVEN_THE_TYPE.get(called)
        if index is not None and index < len(arguments.parts):
            given = arguments.parts[index][1]
            node.kind = self.type_name(given)
            if called in _OF_TYPES:
                node.kind, node.name = "type", str(self.literal(given))
        self.adopt(node, arguments, ".__reduce__()[1]")

    def new_object(self, with_keywords: bool = False) -> None:
        keywords = self.stack.pop() if with_keywords else None
        arguments, type_ = self.stack.pop(), self.stack.pop()
        node = self.push(self.type_name(type_), type_.start)
        if type_.kind == "type":
            node.add(".__class__", type_)  # by value: the class itself is in the pickle
        fields = _fields((type_.same or type_).name)
        if fields and len(fields) == arguments.count:
            self.inherit(node, arguments, lambda step: f".{fields[int(step[1:-1])]}")
        else:
            self.adopt(node, arguments, ".__getnewargs__()")
        if keywords is not None:
            self.adopt(node, keywords, ".__getnewargs_ex__()[1]")

    def build(self) -> None:
        state = self.stack.pop()
        node = self.grown()
        halves = [part for _, part in state.parts] if state.kind == "tuple" and state.count == 2 else [state]
        if all(half.kind in ("dict", "NoneType") for half in halves):
            for half in halves:
                self.inherit(node, half, lambda step: f".{step[2:-2]}" if step[1:2] == "'" else step)
        else:
            self.adopt(node, state, ".__getstate__()")

    # --- helpers ---

    def members(self, whole: Node, parts: list[Node]) -> None:
        for part in parts:
            whole.add(f"{{{self.shown(part)}}}" if whole.count < PARTS_MAX else "", part)
        self.read += len(parts)

    def number(self, whole: Node, parts: list[Node]) -> None:
        for index, part in enumerate(parts, start=whole.count):
            whole.add(f"[{index}]" if index < PARTS_MAX else "", part)
        self.read += len(parts)

    def adopt(self, node: Node, given: Node, step: str) -> None:
        """What a builder is given becomes part of what it builds."""
        if given.kind in ("tuple", "dict"):
            self.inherit(node, given, lambda inner: step + inner)
        elif given.kind != "same":
            node.add(step, given)

    def inherit(self, node: Node, given: Node, renamed: Callable[[str], str]) -> None:
        """The parts of one value become parts of another."""
        for step, part in given.parts:
            node.add(renamed(step), part)
        node.shared += given.shared - sum(part.shared for _, part in given.parts)

    def grown(self) -> Node:
        """The value on top, which the opcode under way adds to."""
        top = self.stack[-1]
        top.end = self.next
        return top

    def push(self, kind: str, start: int) -> Node:
        node = Node(kind, start, self.next)
        self.stack.append(node)
        return node

    def marked(self) -> tuple[int, list[Node]]:
        """(where the last mark is, what lies above it); both leave the stack."""
        stack = self.stack
        index = len(stack) - 1
        while stack[index].kind != "mark":
            index -= 1
            if index < 0:
                raise ValueError("a mark is missing in this pickle")
        start, parts = stack[index].start, stack[index + 1 :]
        del stack[index:]
        return start, parts

    def type_name(self, node: Node) -> str:
        return (node.same or node).name.rpartition(".")[2] or "object"

    def literal(self, node: Node) -> Any:
        """The atom itself. One opcode is run, and only if it can do nothing but push such a value."""
        at = (node.same or node).at
        if KINDS.get(self.data[at], "global") == "global":
            raise ValueError(f"no text or number is at byte {at} of this pickle, where a name is made of it")
        return pickle.loads(self.data[at : end_of(self.data, at)] + pickle.STOP)

    def shown(self, key: Node) -> str:
        """A key as it stands in a path."""
        atom = key.same or key
        if atom.copied and atom.kind in ("str", "int", "float", "bool", "NoneType", "bytes"):
            return reprlib.repr(self.literal(key))
        return f"<{atom.kind}>"


def _steps() -> dict[int, Callable[[_Machine], None]]:
    machine = _Machine
    named: dict[str, Callable[[_Machine], None]] = {
        "PROTO FRAME": lambda _: None,
        "READONLY_BUFFER": machine.read_only,
        "MARK": machine.mark,
        "MEMOIZE": machine.memoize,
        "BINGET LONG_BINGET": machine.fetch,
        "NEXT_BUFFER": machine.next_buffer,
        "POP": machine.pop,
        "POP_MARK": machine.pop_mark,
        "APPEND": machine.append,
        "APPENDS": machine.appends,
        "SETITEM": machine.set_item,
        "SETITEMS": machine.set_items,
        "ADDITEMS": machine.add_items,
        "FROZENSET": machine.frozen_set,
        "TUPLE1": lambda m: m.tuple_of(1),
        "TUPLE2": lambda m: m.tuple_of(2),
        "TUPLE3": lambda m: m.tuple_of(3),
        "TUPLE": machine.tuple_marked,
        "STACK_GLOBAL": machine.global_name,
        "REDUCE": machine.reduce,
        "NEWOBJ": machine.new_object,
        "NEWOBJ_EX": lambda m: m.new_object(with_keywords=True),
        "BUILD": machine.build,
    }
    return {CODES[name]: step for names, step in named.items() for name in names.split()}


_STEPS = _steps()
