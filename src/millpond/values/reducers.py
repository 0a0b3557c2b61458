"""Types of one's own: how their values are taken apart for a store, other than pickle would.

Invariants: a set of rules is never changed, only replaced, so that a pickle under way sees one set from
beginning to end; while nothing is registered, plain pickle runs without a detour; pickles that are not
for a store know nothing of these rules.
Not here: pickling itself (serialize.py), what plain pickle cannot do (its careful way asks here too).
"""

from __future__ import annotations

import builtins
import copyreg
import io
import pickle
import threading
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from millpond import hot
from millpond.hot import ObjectRef

__all__ = ["over", "register_reducer"]

Reduce: TypeAlias = Callable[[Any], str | tuple[Any, ...]]
"""Takes a value, returns what its `__reduce_ex__(5)` may return."""

# pickle takes these apart without asking anybody, and the store itself counts refs and stores arrays.
_FIXED = frozenset(
    {type(None), bool, int, float, str, bytes, bytearray, tuple, list, dict, set, frozenset}
    | {types.FunctionType, object, np.ndarray, ObjectRef}
)


class _Rule(NamedTuple):
    reduce: Reduce
    subclasses: bool


_rules: Mapping[type, _Rule] = {}
_registering = threading.Lock()


def register_reducer(type: builtins.type, reduce: Reduce | None, *, subclasses: bool = False) -> None:
    """Says how values of a type are taken apart when this process puts them, at any depth of a value.

    reduce: a function of the value that returns what `__reduce_ex__` may: (callable, arguments) and, if need
        be, state. Memory that it wraps in a `pickle.PickleBuffer` is shared, not copied, on `get`. For values
        that it does not want it may return `value.__reduce_ex__(5)`. None takes the rule away.
    subclasses: False: for this very type alone, as in `copyreg`: what a subclass adds would be lost. True:
        also for subclasses without a rule of their own; the nearest base decides.

    Rules go before `copyreg` and the type's own methods, and hold for stores and their executor, not for
    other pickles. They belong to the process that puts: a forked child has them, other programs call this
    where they import the type. Who reads needs no rule, only the callable, importable by its name.
    Raises TypeError for what is no type or is fixed (the builtin containers and scalars, ndarray, refs,
    functions, classes).
    """
    global _rules
    if not isinstance(type, builtins.type) or issubclass(type, builtins.type) or type in _FIXED:
        raise TypeError(
            f"no reducer for {type!r}: it is no type, or one that pickle or the store takes apart itself"
        )
    if reduce is not None and not callable(reduce):
        raise TypeError(f"a reducer is a function of the value, or None, not {reduce!r}")
    with _registering:
        rules = {other: rule for other, rule in _rules.items() if other is not type}
        if reduce is not None:
            rules[type] = _Rule(reduce, subclasses)
        _rules = rules
        hot.set_pickle(_dumps if rules else pickle.dumps)


def over(fallback: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """A pickler's dispatch table: the rules of this process, then those of `fallback`."""
    return _Table(_rules, fallback) if _rules else fallback


class _Table(dict[type, Reduce]):
    """Rules by type; what is not among them is looked for along the bases, then in the fallback."""

    def __init__(self, rules: Mapping[type, _Rule], fallback: Mapping[Any, Any]) -> None:
        super().__init__((kind, rule.reduce) for kind, rule in rules.items())
        self._families = {kind: rule.reduce for kind, rule in rules.items() if rule.subclasses}
        self._fallback = fallback

    def __missing__(self, kind: type) -> Reduce:
        if self._families:
            for base in kind.__mro__:
                if base in self._families:
                    return self._families[base]
        found: Reduce = self._fallback[kind]
        return found


def _dumps(value: Any, protocol: int, *, buffer_callback: Any) -> bytes:
    """`pickle.dumps` with the rules: what the compiled code calls while there are any."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol, buffer_callback=buffer_callback)
    pickler.dispatch_table = over(copyreg.dispatch_table)
    pickler.dump(value)
    return file.getvalue()
