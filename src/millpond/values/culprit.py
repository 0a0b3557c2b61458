"""Where in a value the parts are that cannot be pickled, and why.

A value that fails is taken apart the way pickle would take it apart, and every part is pickled on
trial; a culprit is a part that fails while all of its own parts succeed. An error names the first one that
is found; the tree of failures has them all.
Invariants: each object is tried once, so cycles end; at most `TRIALS_MAX` trials and `DEPTH_MAX`
steps down, after which the answer says "inside"; nothing is raised for what user code does, except
what is not an `Exception`.
Not here: how values are pickled (serialize.py passes the trial in), and the final error.
"""

from __future__ import annotations

import copyreg
import functools
import itertools
import pickle
import reprlib
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from millpond.values import reducers

__all__ = ["Culprit", "Failure", "find_culprit", "find_failures", "told"]

TRIALS_MAX = 20_000
DEPTH_MAX = 100

Trial = Callable[[Any], Exception | None]
Part = tuple[str, Any]

# Never at fault, and the bulk of most containers: not worth a trial.
_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, bytearray})


@dataclass(frozen=True)
class Culprit:
    """The part that cannot be pickled. Without `exact` the search was cut short: it lies inside."""

    path: str
    cause: Exception
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Failure:
    """A part that cannot be pickled, and those of its parts that cannot: none if it is a culprit itself."""

    path: str
    """How to come to it: `value['model'].lock`."""
    kind: str
    """The name of its type."""
    reason: str
    """What pickle said."""
    parts: tuple[Failure, ...] = ()
    same_as: str | None = None
    """The path where the same object was met first; its parts are there."""
    exact: bool = True
    """False: the search was cut short below it."""


def find_culprit(value: Any, cause: Exception, trial: Trial) -> Culprit:
    """The culprit in `value`, which fails with `cause`. `trial` pickles an object and returns what it
    raised, or None. Paths start with "value"."""
    search = _Search(trial)
    search.seen[id(value)] = True
    found = search.descend(value, "value", cause, 0)
    # Parts that fail only because of each other (a cycle) have no culprit among them.
    return found or search.deepest or Culprit("value", cause)


def find_failures(value: Any, cause: Exception, trial: Trial) -> Failure:
    """All that cannot be pickled in `value`, which fails with `cause`; else as `find_culprit`."""
    search = _Search(trial)
    search.seen[id(value)] = True
    return search.collect(value, "value", cause, 0)


class _Search:
    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.seen: dict[int, bool] = {}  # id -> fails
        self.paths: dict[int, str] = {}  # of what fails
        self.kept: list[Any] = []  # parts that were made up on the way: their ids must stay theirs
        self.deepest: Culprit | None = None
        self.depth_reached = 0

    def descend(self, value: Any, path: str, cause: Exception, depth: int) -> Culprit | None:
        """The culprit at or below `value`; None if `value` fails because of objects seen before."""
        if depth > self.depth_reached:
            self.deepest, self.depth_reached = Culprit(path, cause, exact=False), depth
        if depth == DEPTH_MAX:
            return self.deepest
        innocent = True
        for step, part in _parts_or_none(value):
            if type(part) in _ATOMS:
                continue
            known = self.seen.get(id(part))
            if known is None:
                if len(self.kept) == TRIALS_MAX:
                    return self.deepest
                error = self.attempt(part)
                if error and (found := self.descend(part, path + step, error, depth + 1)):
                    return found
                known = error is not None
            innocent = innocent and not known
        return Culprit(path, cause) if innocent else None

    def collect(self, value: Any, path: str, cause: Exception, depth: int) -> Failure:
        """`value`, which fails, with all that fails in it."""
        self.paths[id(value)] = path
        failures: list[Failure] = []
        exact = depth < DEPTH_MAX
        for step, part in _parts_or_none(value) if exact else ():
            if type(part) in _ATOMS:
                continue
            known = self.seen.get(id(part))
            if known:
                first = self.paths[id(part)]
                failures.append(Failure(path + step, _kind(part), f"the same object as {first}", (), first))
            elif known is None:
                if len(self.kept) == TRIALS_MAX:
                    exact = False
                    break
                if error := self.attempt(part):
                    failures.append(self.collect(part, path + step, error, depth + 1))
        return Failure(path, _kind(value), told(cause), tuple(failures), None, exact)

    def attempt(self, part: Any) -> Exception | None:
        error = self.trial(part)
        self.kept.append(part)
        self.seen[id(part)] = error is not None
        return error


def _kind(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def told(cause: Exception) -> str:
    """An error's words; with its kind where they would be strange without."""
    plain = isinstance(cause, (TypeError, AttributeError, pickle.PicklingError)) and str(cause)
    return plain or f"{type(cause).__name__}: {cause}"


def _parts_or_none(value: Any) -> list[Part]:
    """The parts of a value; none if user code, asked for them, raises: then the value is the culprit."""
    try:
        return list(_parts(value))
    except Exception:
        return []


def _parts(value: Any) -> Iterator[Part]:
    """(step of the path, part) for everything that pickle stores of a value."""
    kind = type(value)
    if kind is dict:
        yield from _items(value.items())
    elif kind is list:
        yield from _elements(value)
    elif isinstance(value, tuple):
        fields = getattr(kind, "_fields", None)
        yield from zip((f".{f}" for f in fields), value, strict=True) if fields else _elements(value)
    elif kind is set or kind is frozenset:
        yield from ((f"{{{reprlib.repr(part)}}}", part) for part in value)
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
    elif isinstance(value, functools.partial):
        yield ".func", value.func
        yield from (("." + step, part) for step, part in _named(value.__dict__))
        yield from ((f".args{step}", part) for step, part in _elements(value.args))
        yield from ((f".keywords{step}", part) for step, part in _items(value.keywords.items()))
    elif isinstance(value, type):
        skipped = ("__dict__", "__weakref__")
        yield from ((f".{name}", part) for name, part in vars(value).items() if name not in skipped)
    elif isinstance(value, np.ndarray) and value.dtype == object:
        yield from ((str(list(index)), part) for index, part in np.ndenumerate(value))
    else:
        yield from _of_reduced(value)


def _elements(values: Iterable[Any]) -> Iterator[Part]:
    return ((f"[{index}]", part) for index, part in enumerate(values))


def _items(items: Iterable[tuple[Any, Any]]) -> Iterator[Part]:
    for index, (key, part) in enumerate(items):
        yield f"[{reprlib.repr(key)}]", part
        yield f".keys()[{index}]", key


def _named(attributes: dict[str, Any]) -> Iterator[Part]:
    return ((str(name), part) for name, part in attributes.items())


def _of_function(function: types.FunctionType) -> Iterator[Part]:
    """What a function takes along when it cannot be found by its name."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield f".__closure__[{name!r}]", cell.cell_contents
    yield from ((f".__defaults__{step}", part) for step, part in _elements(function.__defaults__ or ()))
    for name, part in (function.__kwdefaults__ or {}).items():
        yield f".__kwdefaults__[{name!r}]", part
    for name in _global_names(function.__code__):
        if name in function.__globals__:
            yield f".__globals__[{name!r}]", function.__globals__[name]
    yield from (("." + step, part) for step, part in _named(function.__dict__))


def _global_names(code: types.CodeType) -> Iterator[str]:
    """Names that a function or one inside it may look up in its module; a few are attributes."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _of_reduced(value: Any) -> Iterator[Part]:
    """The parts of any other object, as its reduction lists them."""
    try:
        reduced: Any = reducers.over(copyreg.dispatch_table)[type(value)](value)
    except KeyError:
        reduced = value.__reduce_ex__(5)
    if isinstance(reduced, str):
        return
    call, arguments, state, elements, items = itertools.islice(itertools.chain(reduced, [None] * 3), 5)
    if call in (copyreg.__newobj__, copyreg.__newobj_ex__):  # type: ignore[attr-defined]
        yield from ((f".__getnewargs__(){step}", part) for step, part in _elements(arguments[1:]))
    else:
        yield ".__reduce__()[0]", call
        yield from ((f".__reduce__()[1]{step}", part) for step, part in _elements(arguments))
    yield from _of_state(state)
    yield from _elements(elements or ())
    yield from _items(items or ())


def _of_state(state: Any) -> Iterator[Part]:
    # Slots come as (what __dict__ holds or None, {slot: value}).
    halves = state if isinstance(state, tuple) and len(state) == 2 else (state,)
    if all(half is None or type(half) is dict for half in halves):
        for half in halves:
            yield from (("." + step, part) for step, part in _named(half or {}))
    else:
        yield ".__getstate__()", state
