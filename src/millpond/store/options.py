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
from millpond.units import parse_bytes

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
        memory = default_memory_limit() if memory_limit is None else parse_bytes(memory_limit, total)
        if not MEMORY_MIN <= memory <= MEMORY_MAX:
            raise ValueError(f"memory_limit is {memory} bytes; possible are {MEMORY_MIN} (1 MiB) to 4 TiB")
        codec = number_of(compression)
        resolve(eviction)
        if handoff_timeout is not None and not 0 < handoff_timeout < SECONDS_END:
            raise ValueError(f"handoff_timeout is {handoff_timeout}; pass positive seconds, or None for ever")
        disk = NO_LIMIT if spill_limit is None else parse_bytes(spill_limit, None)
        overflow = max(memory // OVERFLOW_SHARE, OVERFLOW_MIN)
        if overflow_limit is not None:
            overflow = parse_bytes(overflow_limit, total)
        if max(disk, overflow) > NO_LIMIT:
            raise ValueError(f"spill_limit or overflow_limit is {max(disk, overflow)} bytes, beyond 64 bits")
        return cls(memory, _directories(spill_dir, disk), disk, codec, eviction, handoff_timeout, overflow)

    def to_config(self) -> bytes:
        """What the table keeps for members that connect."""
        return json.dumps({"spill_dirs": self.spill_dirs}).encode()


def _directories(spill_dir: PathLike | Sequence[PathLike] | None, disk: int) -> tuple[str, ...]:
    if disk == 0:
        return ()
    if spill_dir is None:
        return (os.path.abspath(default_base()),)
    several = [spill_dir] if isinstance(spill_dir, str | os.PathLike) else list(spill_dir)
    if not several:
        raise ValueError("spill_dir is an empty list: name a directory, or pass spill_limit=0 never to spill")
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
