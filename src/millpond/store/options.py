"""The options of a store: checked once, at creation, and kept in the table for those who connect.

Invariants: what `Options` holds is valid; members that connect later use the same directories in the same
order, since the table refers to them by number.
Not here: limits that change while the store runs (they live in the table).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from millpond.errors import StoreCorruptedError
from millpond.eviction.limits import default_memory_limit, usable_memory
from millpond.eviction.named import resolve
from millpond.hot import NO_LIMIT
from millpond.spill.codec import Codec, number_of
from millpond.spill.directory import default_base, is_path
from millpond.units import check_seconds, parse_bytes

MEMORY_MIN = 1 << 20
MEMORY_MAX = 1 << 42
SECONDS_END = 1e10  # in nanoseconds, 64 bits count further
OVERFLOW_SHARE = 4
OVERFLOW_MIN = 8 << 20  # what is smaller has no file of its own that could be mapped: one of them must fit

PathLike = str | os.PathLike[str]


class Options(NamedTuple):
    """Everything that a store is created with, in bytes and seconds."""

    memory_limit: int
    spill_dirs: tuple[str, ...]
    spill_limit: int
    codec: int
    """What stands for the compression in the table."""
    eviction: str | Callable[..., Any]
    handoff_timeout: float | None
    overflow_limit: int

    @classmethod
    def check(
        cls,
        memory_limit: int | str | None = None,
        spill_dir: PathLike | Sequence[PathLike] | None = None,
        spill_limit: int | str | None = None,
        compression: str | Codec = "none",
        eviction: str | Callable[..., Any] = "lru",
        handoff_timeout: float | None = 600.0,
        overflow_limit: int | str | None = None,
    ) -> Options:
        """The options as `Store` takes them, checked. Raises ValueError or TypeError saying what to pass."""
        total = usable_memory()
        memory = (
            default_memory_limit() if memory_limit is None else _bytes("memory_limit", memory_limit, total)
        )
        if not MEMORY_MIN <= memory <= MEMORY_MAX:
            raise ValueError(f"memory_limit is {memory} bytes; possible are {MEMORY_MIN} (1 MiB) to 4 TiB")
        codec = number_of(compression)
        resolve(eviction)
        check_lapse("handoff_timeout", handoff_timeout)
        disk = NO_LIMIT if spill_limit is None else _bytes("spill_limit", spill_limit, None)
        overflow = max(memory // OVERFLOW_SHARE, OVERFLOW_MIN)
        if overflow_limit is not None:
            overflow = _bytes("overflow_limit", overflow_limit, total)
        return cls(memory, _directories(spill_dir, disk), disk, codec, eviction, handoff_timeout, overflow)

    def to_config(self) -> bytes:
        """What the table keeps for members that connect."""
        return json.dumps({"spill_dirs": self.spill_dirs}).encode()


def check_lapse(option: str, seconds: float | None) -> None:
    """Whether a hand-off can lapse after so many seconds, None among them. Raises ValueError, TypeError."""
    check_seconds(option, seconds)
    if seconds is not None and not 0 < seconds < SECONDS_END:
        raise ValueError(f"{option} is {seconds}: pass positive seconds, below {SECONDS_END:.0e}, or None")


def _bytes(option: str, value: int | str, total: int | None) -> int:
    try:
        count = parse_bytes(value, total)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{option}: {error}") from None
    if count > NO_LIMIT:
        raise ValueError(f"{option} is {count} bytes, beyond 64 bits")
    return count


def _directories(spill_dir: PathLike | Sequence[PathLike] | None, disk: int) -> tuple[str, ...]:
    if disk == 0:
        return ()
    if spill_dir is None:
        return (os.path.abspath(default_base()),)
    if not isinstance(spill_dir, str | os.PathLike | Sequence) or isinstance(spill_dir, bytes):
        raise TypeError(f"spill_dir is {spill_dir!r}: name a directory, or several in a list")
    several = [spill_dir] if isinstance(spill_dir, str | os.PathLike) else list(spill_dir)
    if not all(map(os.fspath, several)) or not several:
        raise ValueError(
            f"spill_dir is {spill_dir!r}: name a directory, or pass spill_limit=0 never to spill"
        )
    return tuple(os.path.abspath(os.fspath(path)) for path in several)


def parse_config(config: bytes) -> tuple[str, ...]:
    """The spill directories from `to_config`. Raises StoreCorruptedError."""
    try:
        found = json.loads(config)["spill_dirs"]
    except (ValueError, KeyError, TypeError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(map(is_path, found)):
        raise StoreCorruptedError(
            f"the store's options, {len(config)} bytes in its table, are not those of a store: native code "
            "wrote into them. Make the store again"
        )
    return tuple(found)
