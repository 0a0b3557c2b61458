"""Codecs: what makes a frame of a value shorter for the disk, and back; those of users among them.

Numbers stand in records and in the store's table. 0 is none, 1 lz4, 2 lz4 over shuffled bytes, from
USER_MIN on those that programs register; AUTO is none of a record: it chooses one.
Invariants: a number means the same codec in every member, or is unknown there; what a codec of a user
raises, returns, keeps or leaves undone harms no object: it works on copies, and what it makes of a frame is
compared with the checksum of what it was given. The built-in ones fill a frame, or raise CodecError.
Not here: how a value is cut into frames (`frames`), when compressing pays (`auto`).
"""

from __future__ import annotations

from typing import Final, Protocol, runtime_checkable

import lz4.block
import numpy as np
from xxhash import xxh3_64_digest

from millpond import log
from millpond.spill.disk import copy_bytes
from millpond.spill.record import CODEC_NONE

USER_MIN: Final = 128
USER_MAX: Final = 255
AUTO: Final = 256
"""In the store's table: each value is stored by the codec that `auto` chooses for it."""

_CHECKSUM_BYTES: Final = 8
"""Before each frame that a user's codec has stored: xxh3_64 of the frame's value, big-endian."""


class CodecError(ValueError):
    """Stored bytes that no value can be decoded from. Never leaves `millpond.spill`."""


class CodecFailure(Exception):
    """A user's codec that cannot do its work, or does it wrong, on bytes that may be right. Never leaves
    `millpond.spill`."""


@runtime_checkable
class Codec(Protocol):
    """A way to compress one frame, which is at most 1 MiB of a value. Both methods are called from
    several threads at once, with memory of their own. What they give back is verified: a codec that is
    wrong is a SpillError at `get`, and the object stays on disk until the codec is right.

    Pass an instance as `compression`; every other member that reads or writes such objects calls
    `millpond.register_codec` with one of its own first.
    """

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def number(self) -> int:
        """Stands in every record that the codec wrote: 128 to 255, and for ever the same."""

    def compress(self, frame: memoryview) -> bytes | None:
        """The frame compressed; None when that would not make it shorter."""

    def decompress_into(self, stored: memoryview, frame: memoryview) -> None:
        """Fills all of `frame`, which is as long as the one that was compressed, from what `compress` gave.
        May raise anything when the bytes are not right."""


class Chooser:
    """A codec that stands for others: one is chosen for each value."""

    def for_value(self, value: memoryview) -> Codec | None:
        """What compresses `value`; None: nothing should. Has the chooser's number."""
        raise NotImplementedError


class NoCodec:
    """Stores values as they are, so that they can be read without a copy, or mapped."""

    name: Final = "none"
    number: Final = CODEC_NONE

    def compress(self, frame: memoryview) -> bytes | None:
        """None: nothing is ever compressed."""
        return None

    def decompress_into(self, stored: memoryview, frame: memoryview) -> None:
        """Raises CodecError: no frame was ever written by this codec."""
        raise CodecError("a frame claims to be compressed by the codec that does not compress")


class Lz4:
    """LZ4 blocks: 0.5 to 1 GB/s in, several GB/s out, on one processor. Both let other threads run."""

    name: Final = "lz4"
    number: Final = 1

    def compress(self, frame: memoryview) -> bytes | None:
        """The frame as one LZ4 block; None when that would not make it shorter."""
        stored: bytes = lz4.block.compress(frame, store_size=False)
        return stored if len(stored) < len(frame) else None

    def decompress_into(self, stored: memoryview, frame: memoryview) -> None:
        """Fills `frame` from one LZ4 block. Raises CodecError unless it fits exactly."""
        copy_bytes(frame, memoryview(_block(stored, len(frame))))


class ShuffledLz4:
    """LZ4 over the first bytes of all items, then the second bytes, and so on: numbers that are near each
    other share their high bytes. (The byte shuffle of HDF5 and Blosc.)

    A stored frame is a u8, the bytes of an item, and an LZ4 block; what is left behind the last whole
    item follows the planes as it is.
    """

    name: Final = "lz4+shuffle"
    number: Final = 2

    def __init__(self, item_bytes: int = 1) -> None:
        """For values that consist of items of so many bytes, 1 to 255. Decoding takes any."""
        self._item_bytes = item_bytes

    def compress(self, frame: memoryview) -> bytes | None:
        """The frame, shuffled and compressed; None when that would not make it shorter."""
        shuffled = frame if self._item_bytes == 1 else _shuffled(frame, self._item_bytes)
        stored: bytes = lz4.block.compress(shuffled, store_size=False)
        return bytes([self._item_bytes]) + stored if len(stored) + 1 < len(frame) else None

    def decompress_into(self, stored: memoryview, frame: memoryview) -> None:
        """Fills `frame` from what `compress` gave. Raises CodecError unless it fits exactly."""
        if len(stored) == 0 or stored[0] == 0:
            raise CodecError("a shuffled frame lacks the length of its items")
        raw, item_bytes = _block(stored[1:], len(frame)), stored[0]
        if item_bytes == 1:
            copy_bytes(frame, memoryview(raw))
        else:
            _unshuffle(raw, item_bytes, frame)


def _block(stored: memoryview, nbytes: int) -> bytes:
    try:
        raw: bytes = lz4.block.decompress(stored, uncompressed_size=nbytes)
    except (lz4.block.LZ4BlockError, ValueError) as error:
        raise CodecError(f"a frame is not an LZ4 block: {error}") from None
    if len(raw) != nbytes:
        raise CodecError(f"a frame holds {len(raw)} bytes instead of {nbytes}")
    return raw


def _shuffled(frame: memoryview, item_bytes: int) -> memoryview:
    source, whole = np.frombuffer(frame, np.uint8), len(frame) // item_bytes * item_bytes
    target = np.empty(len(frame), np.uint8)
    planes = target[:whole].reshape(item_bytes, -1)
    np.copyto(planes, source[:whole].reshape(-1, item_bytes).T)
    target[whole:] = source[whole:]
    return target.data


def _unshuffle(raw: bytes, item_bytes: int, frame: memoryview) -> None:
    source, whole = np.frombuffer(raw, np.uint8), len(frame) // item_bytes * item_bytes
    target = np.frombuffer(frame, np.uint8)
    items = target[:whole].reshape(-1, item_bytes)
    for plane in range(item_bytes):  # three times as fast as one copy of the transposed array
        items[:, plane] = source[plane * len(items) : (plane + 1) * len(items)]
    target[whole:] = source[whole:]


NONE: Final[Codec] = NoCodec()
CODECS: Final[dict[str, Codec]] = {codec.name: codec for codec in (NONE, Lz4(), ShuffledLz4())}
_by_number: dict[int, Codec] = {codec.number: codec for codec in CODECS.values()}
_complained: set[int] = set()


def register_codec(codec: Codec) -> None:
    """Makes a codec of your own known to this process, so that it can read what the codec has written and
    write with it. `Store(compression=codec)` does so by itself; other members need the call.

    Its number is 128 to 255 and its name is not that of another codec. Registering again replaces an
    instance by another of the same name. Raises TypeError, ValueError.
    """
    if not isinstance(codec, Codec):
        raise TypeError(f"{codec!r} is no codec: it lacks name, number, compress or decompress_into")
    name, number = codec.name, codec.number
    if not isinstance(name, str) or not isinstance(number, int) or not USER_MIN <= number <= USER_MAX:
        raise ValueError(f"codec {name!r} has number {number!r}: a string and {USER_MIN} to {USER_MAX}")
    known = _by_number.get(number)
    if known is not None and known.name != name:
        raise ValueError(f"number {number} of codec {name!r} is taken by {known.name!r}")
    if name == "auto" or any(other.name == name and other.number != number for other in _by_number.values()):
        raise ValueError(f"the name {name!r} belongs to another codec")
    _by_number[number] = codec


def known_codec(number: int) -> Codec | None:
    """The codec that a record's number means in this process; None: it is not known here."""
    return _by_number.get(number)


def number_of(compression: str | Codec) -> int:
    """What stands for `compression`, as `Store` takes it, in the store's table. Registers a codec.

    Raises TypeError, ValueError.
    """
    if not isinstance(compression, str):
        register_codec(compression)
        return compression.number
    if compression == "auto":
        return AUTO
    names = {codec.name: codec.number for codec in _by_number.values() if codec.number != ShuffledLz4.number}
    if compression not in names:
        raise ValueError(
            f"compression is {compression!r}; choose one of {', '.join(names)}, auto, or a Codec"
        )
    return names[compression]


def compression_of(number: int) -> str:
    """What `number_of` gave this number for, as a name; for people."""
    codec = known_codec(number)
    return "auto" if number == AUTO else f"codec {number}, unknown here" if codec is None else codec.name


def for_value(codec: Codec, value: memoryview) -> Codec | None:
    """The codec itself, or what it has chosen for `value`; None: the value is stored as it is."""
    return codec.for_value(value) if isinstance(codec, Chooser) else codec


def compress(codec: Codec, frame: memoryview) -> bytes | None:
    """`codec.compress`; of a user's codec behind the checksum of `frame`, and None as well when it fails,
    which is said once, or makes it longer."""
    if codec.number < USER_MIN:
        return codec.compress(frame)
    own = bytes(frame)
    stored = _compressed(codec, own)
    if stored is None:
        return None
    checked = b"".join((xxh3_64_digest(own), stored))
    return checked if len(checked) < len(own) else None


def _compressed(codec: Codec, frame: bytes) -> bytes | None:
    try:
        stored = codec.compress(memoryview(frame))
        if isinstance(stored, bytes | None):
            return stored
        raise TypeError(f"compress returned {type(stored).__name__}, not bytes or None")
    except Exception:
        if codec.number not in _complained:
            _complained.add(codec.number)
            log.exception("codec %r cannot compress: what it fails on is stored as it is", codec.name)
        return None


def decompress_into(codec: Codec, stored: memoryview, frame: memoryview) -> None:
    """`codec.decompress_into`. Raises CodecError, or CodecFailure when a user's codec raises or gives other
    bytes than were compressed."""
    if codec.number < USER_MIN:
        codec.decompress_into(stored, frame)
        return
    if len(stored) < _CHECKSUM_BYTES:
        raise CodecError(f"a frame of {len(stored)} stored bytes lacks its checksum")
    own = bytearray(len(frame))
    work = f"a frame of {len(frame)} bytes, stored in {len(stored) - _CHECKSUM_BYTES}"
    returned: object = None
    try:
        returned = codec.decompress_into(memoryview(bytes(stored[_CHECKSUM_BYTES:])), memoryview(own))  # type: ignore[func-returns-value]
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise CodecFailure(f"codec {codec.name!r} ({codec.number}) failed on {work}: {what}") from error
    copy_bytes(frame, memoryview(own))
    if xxh3_64_digest(frame) != stored[:_CHECKSUM_BYTES]:
        hint = "" if returned is None else f" (it returned {type(returned).__name__}: it must fill the frame)"
        raise CodecFailure(
            f"codec {codec.name!r} ({codec.number}) made other bytes than it was given of {work}{hint}"
        )
