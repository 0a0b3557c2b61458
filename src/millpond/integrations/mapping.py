"""A dict that processes share, and a cache of function results: both keep their values under names.

Invariants: a value is set, replaced or removed in one step, so that a reader in another process gets the old
one or the new one whole; values read from here are read-only views; nothing here outlives its store.
Not here: how names hold objects (the kernel), how values are stored (millpond.store).
"""

from __future__ import annotations

import functools
import io
from collections import ChainMap
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import suppress
from types import CodeType, MethodType
from typing import Any, ClassVar, Generic, ParamSpec, TypeVar

import cloudpickle
import xxhash

from millpond import ObjectNotFoundError, ObjectRef, Store, connect

__all__ = ["Memoized", "StoreMapping", "memoize"]

P = ParamSpec("P")
T = TypeVar("T")


class StoreMapping(MutableMapping[str, Any]):
    """The names of a store that begin with `prefix`, as a dict of their values.

    All mappings of one store and prefix, in all processes, are the same dict. Keys are str, with the prefix
    1 to 240 bytes of UTF-8; setting another is a TypeError or ValueError. Iteration goes over the keys of
    one moment. A value whose bytes are gone (deleted through a ref, or lost) raises that error, which is a
    KeyError. A pickled mapping connects to the store where it is loaded.
    """

    def __init__(self, store: Store, prefix: str = "") -> None:
        self.store = store
        self.prefix = prefix

    def _name(self, key: object) -> str:
        if not isinstance(key, str):
            raise TypeError(f"keys of a StoreMapping are str, not {type(key).__name__}: {key!r}")
        return self.prefix + key

    def __getitem__(self, key: str) -> Any:
        if not isinstance(key, str):
            raise KeyError(key)
        try:
            ref = self.store.lookup(self._name(key))
        except ObjectNotFoundError:
            raise KeyError(key) from None
        return self.store.get(ref)

    def __setitem__(self, key: str, value: Any) -> None:
        self.store.put(value, name=self._name(key), replace=True)

    def __delitem__(self, key: str) -> None:
        if not isinstance(key, str):
            raise KeyError(key)
        try:
            self.store.delete(self._name(key))
        except ObjectNotFoundError:
            raise KeyError(key) from None

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._name(key) in self.store

    def __iter__(self) -> Iterator[str]:
        return (name[len(self.prefix) :] for name in self.store.names(self.prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self.store.names(self.prefix))

    def setdefault(self, key: str, default: Any = None) -> Any:
        """The value of `key`, which is `default` if there was none: one of several processes wins."""
        name = self._name(key)
        while name not in self.store:
            try:
                self.store.put(default, name=name)
            except ValueError:
                if name not in self.store:
                    raise
        return self[key]

    def clear(self) -> None:
        """Removes the keys of one moment."""
        for key in self:
            with suppress(KeyError):
                del self[key]

    def __repr__(self) -> str:
        return f"StoreMapping({self.store!r}, {self.prefix!r})"

    def __reduce__(self) -> Any:
        return _rebuild_mapping, (self.store.address, self.prefix)


def _rebuild_mapping(address: str, prefix: str) -> StoreMapping:
    return StoreMapping(connect(address), prefix)


def memoize(store: Store, *, name: str | None = None) -> Callable[[Callable[P, T]], Memoized[P, T]]:
    """A decorator that keeps a function's results in `store`, for all processes.

        @memoize(store)
        def table(path, year): ...

    Results are told apart by the function and the pickled arguments: `f(1)` and `f(x=1)` are two calls. The
    function is known by its module, qualified name, code and defaults, so that a changed one starts anew;
    what it calls or reads elsewhere is not looked at. One that uses variables of an enclosing function needs
    a `name`, which then stands for all of that. Two processes that make a call at the same time may both
    compute it. Every call gives what `store.get` gives: arrays are read-only views.
    Raises what pickling the arguments, the function and `store.put` raise; an error is not kept.
    """

    def decorate(function: Callable[P, T]) -> Memoized[P, T]:
        return Memoized(store, function, name)

    return decorate


class Memoized(Generic[P, T]):
    """A function whose results are in a store. `__wrapped__` is the function itself."""

    __wrapped__: Callable[P, T]
    __qualname__: str

    def __init__(self, store: Store, function: Callable[P, T], name: str | None) -> None:
        functools.update_wrapper(self, function)
        self._store = store
        readable, identity = _identity(function) if name is None else (name, name.encode())
        short = readable.encode("ascii", "replace")[-100:].decode()
        self._prefix = f"memoize {short} {xxhash.xxh3_64_hexdigest(identity)} "

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        name = self._prefix + xxhash.xxh3_128_hexdigest(_pickled((args, sorted(kwargs.items()))))
        with suppress(ObjectNotFoundError):
            return self._store.lookup(name).get()  # type: ignore[no-any-return]
        value = self.__wrapped__(*args, **kwargs)
        return self._store.put(value, name=name, replace=True).get()  # type: ignore[no-any-return]

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __reduce__(self) -> str:
        return self.__qualname__

    def cache_clear(self) -> None:
        """Removes the results of this function. One that is being computed now comes after."""
        for name in self._store.names(self._prefix):
            with suppress(ObjectNotFoundError):
                self._store.delete(name)


def _identity(function: Callable[..., Any]) -> tuple[str, bytes]:
    """(readable name, bytes that another function would not have)."""
    code = getattr(function, "__code__", None)
    if code is None:
        raise TypeError(f"{function!r} is no plain function: give memoize a name that stands for it")
    if code.co_freevars:
        used = ", ".join(code.co_freevars)
        raise TypeError(f"{function!r} uses {used} from outside: give memoize a name that stands for it")
    qualified = f"{function.__module__}.{function.__qualname__}"
    defaults = _pickled((function.__defaults__, getattr(function, "__kwdefaults__", None)))
    return qualified, repr((qualified, _described(code), defaults)).encode()


def _described(constant: Any) -> Any:
    """A constant, or what a function does: its repr is the same in every process that runs this Python."""
    if isinstance(constant, frozenset):  # of strings: its order differs
        return sorted(map(repr, constant))
    if not isinstance(constant, CodeType):
        return constant
    arguments = (
        constant.co_argcount,
        constant.co_posonlyargcount,
        constant.co_kwonlyargcount,
        constant.co_flags,
    )
    names = (constant.co_names, constant.co_varnames, constant.co_cellvars, constant.co_freevars)
    code = (constant.co_code, constant.co_exceptiontable, [_described(inner) for inner in constant.co_consts])
    return arguments, names, code


class _KeyPickler(cloudpickle.Pickler):  # type: ignore[misc]
    """A ref is its id: pickled in the ordinary way, it would be another one each time."""

    dispatch_table: ClassVar[Any] = ChainMap(
        {ObjectRef: lambda ref: (str, (ref.id,))}, cloudpickle.Pickler.dispatch_table
    )


def _pickled(value: Any) -> bytes:
    file = io.BytesIO()
    _KeyPickler(file, 5).dump(value)
    return file.getvalue()
