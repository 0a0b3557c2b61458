"""The format of a compressed payload, and the work of making and reading one on several processors.

Format: frames, one for each MiB of the value (the last one may be shorter), each a u32 (stored length; top
bit: stored as it is, because compressing it did not pay) and then the stored bytes (of a user's codec, a
checksum first: `codec`). A codec only ever sees single frames, so values of any size stream through a few
MiB, and frames need not wait for each other.
Invariants: a frame never grows; lengths read from disk are checked before they are used; whatever
the stored bytes are, decoding ends in the exact number of bytes or in an error.
Not here: what compresses a frame (`codec`, `auto`), records and checksums (`record`, `reader`).
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from typing import Any, Final, NamedTuple

from millpond.spill.codec import Codec, CodecError, compress, decompress_into, for_value
from millpond.spill.disk import copy_bytes
from millpond.spill.overlap import Overlap
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

LANES: Final = min(4, len(os.sched_getaffinity(0)))
"""Frames that are worked on at once: one on each processor, as far as that pays beside one disk."""


def encode(codec: Codec, value: memoryview) -> Iterator[bytes | memoryview] | None:
    """The pieces of the compressed payload, in order; None when compressing `value` does not pay.

    That is judged on the first frames. Pieces are made as they are asked for and may be parts of
    `value`, which must stay as it is until then.
    """
    if codec.number == CODEC_NONE or len(value) < WORTH_MIN:
        return None
    chosen = for_value(codec, value)
    if chosen is None:
        return None
    pieces = _pieces(chosen, value)
    first = list(islice(pieces, 2 * JUDGED_FRAMES))
    if sum(map(len, first)) > WORTH * min(len(value), JUDGED_FRAMES * FRAME):
        return None
    return chain(first, pieces)


def _pieces(codec: Codec, value: memoryview) -> Iterator[bytes | memoryview]:
    """Head and body of each frame. The first ones, which may be all that is wanted, by themselves."""
    frames = [value[at : at + FRAME] for at in range(0, len(value), FRAME)]
    at = 0
    while at < len(frames):
        some = frames[at : at + (4 * LANES if at else JUDGED_FRAMES)]
        for frame, stored in zip(some, spread(lambda frame: compress(codec, frame), some), strict=True):
            if stored is None:
                yield _LENGTH.pack(len(frame) | _RAW)
                yield frame
            else:
                yield _LENGTH.pack(len(stored))
                yield stored
        at += len(some)


class Frames(NamedTuple):
    """Whole frames that were found in a window."""

    parts: list[tuple[memoryview, memoryview, bool]]
    """Stored bytes, where their value goes, and whether they are stored as they are."""
    used: int
    """Bytes of the window that they take."""
    done: int
    """How far the target is filled when they are decoded."""


def find_frames(window: memoryview, target: memoryview, done: int) -> Frames:
    """The whole frames at the start of `window`, whose values fill `target` from `done` on.

    A frame that `window` holds only in part is left for the next call. Raises CodecError when the
    frames cannot be those of a value as long as `target`.
    """
    parts, at = [], 0
    while done < len(target) and len(window) - at >= FRAME_HEAD:
        (word,) = _LENGTH.unpack_from(window, at)
        stored, raw = word & ~_RAW, min(FRAME, len(target) - done)
        if stored > raw or (word & _RAW and stored != raw):
            raise CodecError(f"a frame of {raw} bytes claims {stored} stored bytes")
        if len(window) - at - FRAME_HEAD < stored:
            break
        body = window[at + FRAME_HEAD : at + FRAME_HEAD + stored]
        parts.append((body, target[done : done + raw], bool(word & _RAW)))
        at += FRAME_HEAD + stored
        done += raw
    return Frames(parts, at, done)


def decode_frames(codec: Codec, frames: Frames) -> None:
    """Fills the targets of `frames`. Raises CodecError and CodecFailure."""

    def one(part: tuple[memoryview, memoryview, bool]) -> None:
        stored, target, as_is = part
        if as_is:
            copy_bytes(target, stored)
        else:
            decompress_into(codec, stored, target)

    spread(one, frames.parts)


def decode(codec: Codec, window: memoryview, target: memoryview, done: int) -> tuple[int, int]:
    """Decodes the whole frames at the start of `window` to where `target` is filled up to, `done`.

    Returns how many bytes of `window` were used, and how far `target` is filled now. Raises CodecError,
    CodecFailure.
    """
    frames = find_frames(window, target, done)
    decode_frames(codec, frames)
    return frames.used, frames.done


def spread(call: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """[call(item) for item in items], by LANES threads if there is enough to do; the first error is raised.

    Like the calls of `overlap`, the threads live for this one call, and are over when it returns.
    """
    if len(items) <= 2 or LANES == 1:
        return [call(item) for item in items]
    results: list[Any] = [None] * len(items)
    order = deque(range(len(items)))

    def work() -> None:
        while True:
            try:
                i = order.popleft()
            except IndexError:
                return
            results[i] = call(items[i])

    with ExitStack() as stack:
        lanes = [stack.enter_context(Overlap[None]()) for _ in range(LANES - 1)]
        for lane in lanes:
            lane.start(work)
        try:
            work()
        finally:
            order.clear()  # after an error or an interrupt the others need not go on
        for lane in lanes:
            lane.finish()
    return results
