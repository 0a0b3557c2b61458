"""Changes to bytes, of the kinds that parsers fail on: bits, numbers at edges, pieces moved, cut, joined.

As in AFL (M. Zalewski, "Binary fuzzing strategies: what works, what doesn't", 2014): several at once, small
numbers and powers of two rather than any.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

_MOST_AT_ONCE = 4


def mutate(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """`data` with one to four changes; `others`: inputs to take pieces of."""
    changed = bytearray(data)
    for _ in range(1 + rng.randrange(_MOST_AT_ONCE)):
        if not changed:
            changed += rng.randbytes(8)
        rng.choice(_CHANGES)(rng, changed, others)
    return bytes(changed)


def _flip(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _number(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    """One of 1, 2, 4 or 8 bytes, mostly where such numbers lie, becomes another."""
    width = rng.choice((1, 2, 4, 8))
    if len(data) < width:
        return
    at = rng.randrange(len(data) - width + 1)
    if rng.randrange(4):
        at -= at % width
    old = int.from_bytes(data[at : at + width], "little")
    new = rng.choice(
        (
            0,
            -1,
            old + 1,
            old - 1,
            old * 2,
            len(data),
            len(data) - at,
            1 << rng.randrange(8 * width),
            (1 << rng.randrange(8 * width)) - 1,
            rng.getrandbits(8 * width),
        )
    )
    data[at : at + width] = (new & ((1 << 8 * width) - 1)).to_bytes(width, "little")


def _piece(rng: random.Random, data: bytes | bytearray) -> slice:
    start = rng.randrange(len(data))
    return slice(start, start + 1 + rng.randrange(min(len(data) - start, 1 << rng.randrange(1, 13))))


def _cut_out(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    del data[_piece(rng, data)]


def _cut_off(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    del data[rng.randrange(len(data)) :]


def _move(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    """A piece is written over another place."""
    piece = data[_piece(rng, data)]
    at = rng.randrange(len(data))
    data[at : at + len(piece)] = piece


def _repeat(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    piece = data[_piece(rng, data)]
    at = rng.randrange(len(data))
    data[at:at] = piece * (1 + rng.randrange(4))


def _join(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    """Goes on as another input does, from the same place or any."""
    other = rng.choice(others) if others else b""
    if other:
        at = rng.randrange(len(data))
        data[at:] = other[at if rng.randrange(2) else rng.randrange(len(other)) :]


def _insert(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    other = rng.choice(others) if others else b""
    if other:
        at = rng.randrange(len(data))
        data[at:at] = other[_piece(rng, other)]


_CHANGES: Sequence[Callable[[random.Random, bytearray, Sequence[bytes]], None]] = (
    *(_flip, _number, _number, _number),
    *(_cut_out, _cut_off, _move, _repeat, _join, _insert),
)
