"""Codecs: how a value's bytes are made shorter for the disk, in frames of 1 MiB.

Format of a compressed payload: frames, one for each MiB of the value (the last one may be shorter),
each a u32 (stored length; top bit: stored as it is, because compressing it did not pay) and then the
stored bytes. A codec only ever sees single frames, so values of any size stream through a few MiB.
Invariants: a frame never grows; lengths read from disk are checked before they are used; whatever
the stored bytes are, decoding ends in the exact number of bytes or in a CodecError.
Not here: records and checksums (`record`, `reader`), whether to compress (the store's options).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import chain, islice
from typing import Final, Protocol

import lz4.block

from millpond.spill.record import CODEC_NONE

FRAME: Final = 1 << 20
FRAME_HEAD: Final = 4
_RAW: Final = 1 << 31
_LENGTH: Final = struct.Struct("<I")

JUDGED_FRAMES: Final = 2
"""How many frames are compressed before it is decided whether a value is worth compressing."""
WORTH: Final = 0.9
"""A value whose first frames do not shrink to this share of themselves is stored as it is."""
WORTH_MIN: Final = 512
"""Shorter values save nothing: records are a multiple of 64 bytes."""


class CodecError(ValueError):
    """Stored bytes that no value can be decoded from. Never leaves `millpond.spill`."""


class Codec(Protocol):
    """A way to compress one frame, which is at most 1 MiB long."""

    name: str
    number: int
    """Stands in every record that the codec wrote: 1 to 255, and for ever the same."""

    def compress(self, frame: memoryview) -> bytes | None:
        """The frame compressed; None when that would not make it shorter."""

    def decompress_into(self, stored: memoryview, frame: memoryview) -> None:
        """Fills `frame` from what `compress` gave. Raises CodecError unless it fits exactly."""


class NoCodec:
    """Stores values as they are, so that they can be read without a copy, or mapped."""

    name = "none"
    number = CODEC_NONE

    def compress(self, frame: memoryview) -> bytes | None:
        """None: nothing is ever compressed."""
        return None

    def decompress_into(self, stored: memoryview, frame: memoryview) -> None:
        """Raises CodecError: no frame was ever written by this codec."""
        raise CodecError("a frame claims to be compressed by the codec that does not compress")


class Lz4:
    """LZ4 blocks: 0.5 to 1 GB/s in, several GB/s out. Both let other threads run."""

    name = "lz4"
    number = 1

    def compress(self, frame: memoryview) -> bytes | None:
        """The frame as one LZ4 block; None when that would not make it shorter."""
        stored: bytes = lz4.block.compress(frame, store_size=False)
        return stored if len(stored) < len(frame) else None

    def decompress_into(self, stored: memoryview, frame: memoryview) -> None:
        """Fills `frame` from one LZ4 block. Raises CodecError unless it fits exactly."""
        try:
            raw = lz4.block.decompress(stored, uncompressed_size=len(frame))
        except (lz4.block.LZ4BlockError, ValueError) as error:
            raise CodecError(f"a frame is not an LZ4 block: {error}") from None
        if len(raw) != len(frame):
            raise CodecError(f"a frame holds {len(raw)} bytes instead of {len(frame)}")
        frame[:] = raw


NONE: Final[Codec] = NoCodec()
CODECS: Final[dict[str, Codec]] = {codec.name: codec for codec in (NONE, Lz4())}


def encode(codec: Codec, value: memoryview) -> Iterator[bytes | memoryview] | None:
    """The pieces of the compressed payload, in order; None when compressing `value` does not pay.

    That is judged on the first frames. Pieces are made as they are asked for and may be parts of
    `value`, which must stay as it is until then.
    """
    if codec.number == CODEC_NONE or len(value) < WORTH_MIN:
        return None
    frames = (_encode_frame(codec, value[at : at + FRAME]) for at in range(0, len(value), FRAME))
    first = list(islice(frames, JUDGED_FRAMES))
    stored = sum(FRAME_HEAD + len(body) for _, body in first)
    if stored > WORTH * min(len(value), JUDGED_FRAMES * FRAME):
        return None
    return chain.from_iterable(chain(first, frames))


def _encode_frame(codec: Codec, frame: memoryview) -> tuple[bytes, bytes | memoryview]:
    stored = codec.compress(frame)
    if stored is None:
        return _LENGTH.pack(len(frame) | _RAW), frame
    return _LENGTH.pack(len(stored)), stored


def decode(codec: Codec, window: memoryview, target: memoryview, done: int) -> tuple[int, int]:
    """Decodes the whole frames at the start of `window` to where `target` is filled up to, `done`.

    Returns how many bytes of `window` were used, and how far `target` is filled now. A frame that
    `window` holds only in part is left for the next call. Raises CodecError when the frames cannot be
    those of a value as long as `target`.
    """
    at = 0
    while done < len(target) and len(window) - at >= FRAME_HEAD:
        (word,) = _LENGTH.unpack_from(window, at)
        stored, raw = word & ~_RAW, min(FRAME, len(target) - done)
        if stored > raw or (word & _RAW and stored != raw):
            raise CodecError(f"a frame of {raw} bytes claims {stored} stored bytes")
        if len(window) - at - FRAME_HEAD < stored:
            break
        body = window[at + FRAME_HEAD : at + FRAME_HEAD + stored]
        if word & _RAW:
            target[done : done + raw] = body
        else:
            codec.decompress_into(body, target[done : done + raw])
        at += FRAME_HEAD + stored
        done += raw
    return at, done
