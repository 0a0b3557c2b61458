"""`explain`: which parts of a value `get` shares, which it copies, why, and what would change that.

The answer is read off the stored bytes themselves, or off those that `put` would store: what lies out of
band becomes a view, what lies in-band is rebuilt by each reader, on each get.
Invariants: the parts do not overlap and add up to the whole, to the byte; the value is built once or a few
times, as `get` builds it, and dropped.
Not here: how a pickle is taken apart (anatomy.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from millpond import hot
from millpond.hot import INBAND_MAX, Encoded
from millpond.units import format_bytes, format_seconds, shortened
from millpond.values import serialize

if TYPE_CHECKING:
    from millpond.values.node import Node

__all__ = ["Explanation", "Part", "of_encoded", "of_stored"]

PARTS_MAX = 500
ALIKE_MAX = 16
"""Parts of one kind that are shown apart; more of them are one row."""
LARGE = INBAND_MAX
"""Bytes from which a copied part has a row of its own, and an advice."""
SHOWN_MAX = 20
PATH_WIDTH = 44
TIMED_S = 0.1


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a value, without the parts that have an entry of their own."""

    path: str
    """How to come to it: `value['model'].weights`."""
    kind: str
    """The name of its type, or of the function that builds it, with "()"."""
    shared_bytes: int
    """Stored out of band: every reader sees this very memory."""
    copied_bytes: int
    """Stored in-band: every get makes its own objects of it."""
    reason: str
    """Why it is shared or copied."""
    advice: str
    """What would make it shared; empty where nothing would, or where it is not worth it."""

    @property
    def zero_copy(self) -> bool:
        """Whether its memory is shared."""
        return self.shared_bytes > 0


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `get` does with one value. `print` it; it fits one screen."""

    size: int
    """Bytes of the stored value, as `ref.size`: shared, copied and overhead."""
    shared_bytes: int
    copied_bytes: int
    overhead_bytes: int
    """Header and alignment."""
    memory_bytes: int
    """What it takes of the store's memory."""
    build_s: float
    """Seconds that `get` takes here to build the value; 0 for an array that is not stored yet."""
    place: str
    """"not stored", "memory", or "private copy": memory is full or too small for it, so nobody shares it."""
    parts: tuple[Part, ...]
    """In the order of the value, at most a few hundred. Their bytes add up to those of the whole."""

    def __str__(self) -> str:
        return "\n".join(_screen(self))


def of_stored(stored: memoryview, build: Callable[[], Any]) -> Explanation:
    """That of a stored value. stored: all of its bytes; build: does what `get` does once it has them."""
    place = "memory" if isinstance(stored.obj, hot.View) else "private copy"
    kind, inband, sizes = hot.layout(stored, stored.nbytes)
    return _explanation(kind, inband, sizes, stored.nbytes, _timed(build), place)


def of_encoded(encoded: Encoded) -> Explanation:
    """That of a value which is ready to be stored, and is not."""
    kind, inband, sizes = hot.layout(encoded.prefix, encoded.size)
    buffers = [memoryview(buffer).toreadonly() for buffer in encoded.buffers]
    seconds = _timed(lambda: serialize.loads(inband, buffers)) if kind == "pickle" else 0.0
    return _explanation(kind, inband, sizes, encoded.size, seconds, "not stored")


def _timed(build: Callable[[], Any]) -> float:
    """Seconds of one call: the least of a few, if it is quick."""
    best, end = float("inf"), time.perf_counter() + TIMED_S
    for _ in range(5):
        start = time.perf_counter()
        build()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            break
    return best


def _explanation(
    kind: str, inband: bytes, sizes: list[int], size: int, seconds: float, place: str
) -> Explanation:
    return Explanation(
        size=size,
        shared_bytes=sum(sizes),
        copied_bytes=len(inband),
        overhead_bytes=size - sum(sizes) - len(inband),
        memory_bytes=hot.extent_bytes(size),
        build_s=seconds,
        place=place,
        parts=tuple(_parts(kind, inband, sizes)),
    )


def _parts(kind: str, inband: bytes, sizes: list[int]) -> Iterator[Part]:
    from millpond.values import anatomy  # seldom needed, and slow to import

    if kind == "pickle":
        yield from _Reader().read(anatomy.dissect(inband, sizes))
    else:
        yield Part("value", "ndarray" if kind == "array" else "memoryview", sum(sizes), 0, _VIEW, "")


# --- from the tree of a pickle to parts ---


class _Reader:
    """Decides which values of the tree get a part of their own, and what is said of each."""

    def __init__(self) -> None:
        self.paths: dict[int, str] = {}
        self.count = 0

    def read(self, root: Node) -> Iterator[Part]:
        waiting = [("value", root)]
        while waiting:
            path, node = waiting.pop()
            self.paths[id(node)] = path
            self.count += 1
            apart = self.apart(node, node is root)
            shared = node.shared - sum(part.shared for _, part in apart)
            copied = node.copied - sum(part.copied for _, part in apart)
            kind = (node.same or node).kind or "memoryview"
            yield Part(path, kind, shared, copied, *self.judged(node, shared, copied))
            waiting += [(path + step, part) for step, part in reversed(apart)]

    def apart(self, node: Node, is_root: bool) -> list[tuple[str, Node]]:
        """The parts of a value that are shown by themselves: those that its user can reach and knows."""
        if _is_view(node) or node.kind in _WHOLE or (node.count > ALIKE_MAX and len(_kinds(node)) <= 1):
            return []
        every = is_root and node.count <= ALIKE_MAX
        found = [
            (step, part)
            for step, part in node.parts
            if part.kind and not step.startswith(_INTERNAL) and (every or part.shared or part.copied >= LARGE)
        ]
        return found[: max(0, PARTS_MAX - self.count)]

    def judged(self, node: Node, shared: int, copied: int) -> tuple[str, str]:
        """(reason, advice) for a value of which so many bytes are not shown apart."""
        if node.same is not None:
            return f"the same object as {self.paths.get(id(node.same), 'an earlier part')}, stored once", ""
        if _is_view(node):
            return _VIEW, ""
        if shared:
            reason, advice = _judged_copy(_weightiest(node)) if copied >= LARGE else ("", "")
            return "rebuilt over views of the store's memory" + (f"; {reason}" if advice else ""), advice
        if node.kind == "ObjectRef":
            return "a ref: what it points to is an object of its own", ""
        if copied < LARGE:
            return ("so small that a copy is faster than a view" if node.kind == "ndarray" else "rebuilt"), ""
        return _judged_copy(_weightiest(node))


_INTERNAL = (".__reduce__", ".__getnewargs", ".__getstate__", ".__setstate__")
_VIEW = "a view of the store's memory"
_WHOLE = frozenset({"function", "type", "dtype", "ndarray", "ObjectRef"})
"""Kinds whose parts say nothing to a user."""


def _is_view(node: Node) -> bool:
    """Whether a value is memory out of band with a small wrapping around it."""
    while node.shared and node.copied < LARGE:
        bearers = [part for _, part in node.parts if part.shared]
        if len(bearers) != 1 or not (node.kind in _VIEWS or node.kind.endswith("()")):
            return False
        if not bearers[0].kind:
            return True
        node = bearers[0]
    return False


_VIEWS = frozenset({"ndarray", "PickleBuffer"})


def _kinds(node: Node) -> list[tuple[str, int]]:
    """(kind, count) of a value's parts, the most frequent first; repeated objects aside."""
    return [(kind, count) for kind, count in node.kinds.most_common() if kind != "same"]


def _amount(node: Node) -> str:
    """What a container holds: "10 000 float objects", "3 objects"."""
    kinds = _kinds(node)
    kind = f"{kinds[0][0] or 'memoryview'} " if len(kinds) == 1 else ""
    return f"{node.count:,} {kind}objects".replace(",", " ")


_NUMBERS = frozenset({"int", "float", "bool"})
_TEXT = "an Arrow or NumPy array of strings would be shared"
_COPIES = {
    "str": ("a str is always a copy", "np.frombuffer(s.encode(), 'u1') would be shared"),
    "bytes": ("bytes are always a copy", "np.frombuffer(b, 'u1') would be shared"),
    "bytearray": ("a bytearray is always a copy", "np.frombuffer(b, 'u1') would be shared"),
    "function": ("its code travels with it", "import it from a module, and only its name is stored"),
    "type": ("the class itself travels with the value", "define it in a module, and only its name is stored"),
    "ndarray": (
        "an array of Python objects: each is rebuilt",
        "a dtype of numbers, or an Arrow array of strings, would be shared",
    ),
}


def _weightiest(node: Node) -> Node:
    """What most of a value's copied bytes belong to: the value itself, or a part deep inside."""
    while node.kind not in _COPIES and node.parts:
        step, largest = max(node.parts, key=lambda part: part[1].copied)
        if 2 * largest.copied < node.copied or largest.kind == "same":
            break
        if largest.kind == "bytes" and step.startswith(_INTERNAL):
            break  # its type's doing: the user has no bytes
        node = largest
    return node


def _judged_copy(node: Node) -> tuple[str, str]:
    """(reason, advice) for a value of which much is copied."""
    if node.kind in _COPIES:
        return _COPIES[node.kind]
    kinds = _kinds(node)
    main = kinds[0][0] if kinds else ""
    reason = f"{_amount(node)}, rebuilt one by one" if node.count > 1 else "rebuilt"
    if node.kind in ("list", "tuple", "set", "frozenset", "deque"):
        if main in _NUMBERS:
            return reason, "a NumPy array would be shared"
        if main == "str":
            return reason, _TEXT
        return reason, "columns (NumPy arrays, an Arrow table) would be shared" if main in _RECORDS else ""
    if node.kind in ("dict", "defaultdict", "OrderedDict", "Counter"):
        few = main not in _NUMBERS | {"str"} or node.count <= ALIKE_MAX
        return reason, "" if few else "an array of keys and one of values would be shared"
    return (
        "rebuilt by its type",
        "register_reducer can share the memory of such a type; np.asarray(x), that of an array's subclass",
    )


_RECORDS = frozenset({"dict", "tuple", "list"})


# --- the screen ---


def _screen(explanation: Explanation) -> Iterator[str]:
    e = explanation
    took = f" and takes {format_seconds(e.build_s)} here" if e.build_s else ""
    shared, copied = format_bytes(e.shared_bytes), format_bytes(e.copied_bytes)
    yield f"{format_bytes(e.size)} stored: get shares {shared}, copies {copied}{took}"
    if e.place == "private copy":
        yield "It is in a private copy now: memory is full of pinned objects, or smaller than this one"
    yield ""
    largest = sorted(e.parts[1:], key=lambda part: -(part.shared_bytes + part.copied_bytes))
    rest = largest[SHOWN_MAX - 1 :]
    hidden = {part.path for part in rest}
    shown = [part for part in e.parts if part.path not in hidden]
    lines = [("part", "type", "shared", "copied", "on get"), *map(_line, shown)]
    if rest:
        sizes = sum(part.shared_bytes for part in rest), sum(part.copied_bytes for part in rest)
        lines.append((f"{len(rest)} smaller parts", "", *map(_size, sizes), "see .parts"))
    yield from _aligned(lines)
    advices = [f"{shortened(part.path, PATH_WIDTH)}: {part.advice}" for part in shown if part.advice]
    if advices:
        yield from ["", *advices]


def _line(part: Part) -> tuple[str, ...]:
    sizes = _size(part.shared_bytes), _size(part.copied_bytes)
    return shortened(part.path, PATH_WIDTH), part.kind, *sizes, part.reason


def _aligned(lines: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for path, kind, shared, copied, reason in lines:
        left = f"{path.ljust(widths[0])}  {kind.ljust(widths[1])}"
        yield f"{left}  {shared.rjust(widths[2])}  {copied.rjust(widths[3])}  {reason}"


def _size(count: int) -> str:
    return format_bytes(count) if count else "-"
