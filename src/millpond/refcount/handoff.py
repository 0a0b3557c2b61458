"""What a pickled ref consists of: which object, and the token that keeps it alive on the way.

Layout: 76 bytes, little endian:
    magic 4 | version u32 | entry u32 | token u32 | birth u64 | nonce u64 | expiry u64
    | store uuid 16 | boot id 16 | CRC-32 of all that u32
Invariants: what `unpack` returns was packed by the same version and is whole: damaged bytes are an
error and not another ref. A hand-off with nonce 0 has no token (weak pickling).
Not here: issuing and consuming tokens (the kernel, through hot), finding the store (store/).
"""

from __future__ import annotations

import struct
import time
import zlib
from typing import Final, NamedTuple

from millpond.errors import ObjectNotFoundError

__all__ = ["HANDOFF_BYTES", "HandOff", "boottime_ns", "has_lapsed", "lapsed", "pack", "unpack"]

_MAGIC: Final = b"mpnd"
_VERSION: Final = 1
_LAYOUT: Final = struct.Struct("<4sIIIQQQ16s16s")
_CHECK: Final = struct.Struct("<I")

HANDOFF_BYTES: Final = _LAYOUT.size + _CHECK.size
"""The length of a packed hand-off."""


class HandOff(NamedTuple):
    """A ref in transit."""

    store: bytes
    """The store's uuid, 16 bytes."""
    entry: int
    birth: int
    """With entry: the object's id in its store."""
    token: int
    nonce: int
    """Which token, and its proof. Nonce 0: there is none."""
    expiry: int
    """CLOCK_BOOTTIME in nanoseconds at which the token lapses; 0: never."""
    boot_id: bytes
    """The start of the machine that `expiry` counts from, 16 bytes."""


def pack(handoff: HandOff) -> bytes:
    """`HANDOFF_BYTES` bytes. Raises struct.error for numbers that do not fit."""
    store, entry, birth, token, nonce, expiry, boot_id = handoff
    body = _LAYOUT.pack(_MAGIC, _VERSION, entry, token, birth, nonce, expiry, store, boot_id)
    return body + _CHECK.pack(zlib.crc32(body))


def unpack(data: bytes) -> HandOff:
    """The hand-off again.

    Raises ObjectNotFoundError when `data` is not one, was damaged, or is of another version.
    """
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"a ref comes out of the bytes that export gave, not out of {type(data).__name__}")
    if len(data) != HANDOFF_BYTES or data[:4] != _MAGIC:
        raise ObjectNotFoundError(
            f"{len(data)} bytes that are not a pickled ref: it has {HANDOFF_BYTES} and begins with {_MAGIC!r}"
        )
    _, version, entry, token, birth, nonce, expiry, store, boot_id = _LAYOUT.unpack_from(data)
    if version != _VERSION:
        raise ObjectNotFoundError(
            f"the ref was pickled by another version of millpond (format {version}, this one reads "
            f"{_VERSION}): use the same version in all processes"
        )
    (check,) = _CHECK.unpack_from(data, _LAYOUT.size)
    if check != zlib.crc32(data[: _LAYOUT.size]):
        raise ObjectNotFoundError(
            "the pickled ref was damaged on its way (its checksum is wrong): send it again"
        )
    return HandOff(store, entry, birth, token, nonce, expiry, boot_id)


def boottime_ns() -> int:
    """The clock that `expiry` is measured by: it runs on while the machine sleeps."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def has_lapsed(handoff: HandOff, boot_id: bytes, now_ns: int) -> bool:
    """Whether the token no longer holds the object, because of its age or a restart of the machine.

    The object may be alive all the same, if somebody else holds it.
    """
    return handoff.boot_id != boot_id or 0 < handoff.expiry <= now_ns


def lapsed(handoff: HandOff, boot_id: bytes, now_ns: int) -> ObjectNotFoundError:
    """The error for a hand-off that has lapsed and whose object is gone; it says when and what to do."""
    if handoff.boot_id != boot_id:
        return ObjectNotFoundError(
            "the ref was pickled before the machine was restarted, and the store ended then: a ref cannot "
            "be kept for later. Store the value again"
        )
    return ObjectNotFoundError(
        f"the hand-off of object {handoff.entry} lapsed {_ago(now_ns - handoff.expiry)} ago: the ref was not "
        "loaded in time, and nobody else held the object. Give the store a larger handoff_timeout, keep the "
        "ref in the sender until the receiver has it, or use ref.export(timeout=...)"
    )


def _ago(nanoseconds: int) -> str:
    seconds = max(0, nanoseconds) / 1e9
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
