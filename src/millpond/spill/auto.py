"""compression="auto": whether compressing a value would bring it to the disk sooner, and how.

The rule: compressing pays if 1/C + 1/(r W) < 1/W, where C is the speed of the codec and r the ratio it
reaches, both measured on a sample of the value, and W the speed of the disk, measured on the writes of
this process. Until a few MiB were written nothing is compressed.
Values of numbers are tried with their bytes shuffled as well. Small values are not sampled each: one
of SAMPLED_EACH, and those of the same kind that follow are stored alike.
Invariant: the choice changes how a value is stored, never whether.
Not here: the codecs (`codec`), the measured writes (`segments`).
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from millpond.hot import item_bytes
from millpond.spill.codec import Chooser, Codec, ShuffledLz4
from millpond.spill.frames import FRAME, LANES
from millpond.spill.record import PAGED_MIN

SAMPLE: Final = 64 << 10
SAMPLED_EACH: Final = 16
RATIO_MIN: Final = 1.2
"""Less is within the error of a sample."""
NOTED_MIN: Final = 256 << 10
MEASURED_MIN: Final = 4 << 20
MEMORY: Final = 256 << 20
"""Bytes of writes after which an older one counts half in the disk's speed."""


def pays(compress_rate: float, ratio: float, disk_rate: float) -> bool:
    """Whether compressing shortens a write. Rates in bytes per second; ratio: raw over stored bytes."""
    if ratio < RATIO_MIN:
        return False
    return 1 / compress_rate + 1 / (ratio * disk_rate) < 1 / disk_rate


def gain(compress_rate: float, ratio: float, disk_rate: float) -> float:
    """How many times sooner a compressed value is written."""
    return (1 / disk_rate) / (1 / compress_rate + 1 / (ratio * disk_rate))


class DiskSpeed:
    """How fast this process writes to the disk, by its last few hundred MiB. One thread notes at a time."""

    def __init__(self) -> None:
        self._bytes = self._seconds = 0.0

    def note(self, nbytes: int, seconds: float) -> None:
        """A write of so many bytes has taken so long; 0 bytes: a wait for earlier ones. Short ones do not
        count: they take the same time when they are compressed."""
        if 0 < nbytes < NOTED_MIN:
            return
        fade = 0.5 ** (nbytes / MEMORY)
        self._bytes = self._bytes * fade + nbytes
        self._seconds = self._seconds * fade + seconds

    @property
    def rate(self) -> float | None:
        """Bytes per second; None before enough was written."""
        if self._bytes < MEASURED_MIN or self._seconds <= 0:
            return None
        return self._bytes / self._seconds


class Trial(NamedTuple):
    """What a sample has shown."""

    item_bytes: int
    """Of the items that the bytes were shuffled by; 1: they were not."""
    rate: float
    """Bytes of the value per second of compressing."""
    ratio: float
    """Raw over stored bytes."""


class Auto(Chooser):
    """The codec that chooses for each value. Writes nothing but shuffled frames, of items of one byte where
    shuffling is no use, so that one number stands for all it does."""

    name: Final = "auto"
    number: Final = ShuffledLz4.number

    def __init__(self, speed: DiskSpeed) -> None:
        self._speed = speed
        self._codecs: dict[int, ShuffledLz4] = {}
        self._verdicts: dict[int, tuple[int, Codec | None]] = {}  # of small values, with their turn

    def for_value(self, value: memoryview) -> Codec | None:
        """What compresses `value`; None: it should be written as it is."""
        disk = self._speed.rate
        if disk is None:
            return None
        item = item_bytes(value)
        if len(value) >= PAGED_MIN:
            return self._choose(value, item, disk)
        turn, verdict = self._verdicts.get(item, (0, None))
        if turn % SAMPLED_EACH == 0:
            verdict = self._choose(value, item, disk)
        self._verdicts[item] = turn + 1, verdict
        return verdict

    def _choose(self, value: memoryview, item: int, disk: float) -> Codec | None:
        lanes = LANES if len(value) > 2 * FRAME else 1
        trials = [try_on(value, count) for count in sorted({1, item})]
        best = max(trials, key=lambda trial: gain(trial.rate * lanes, trial.ratio, disk))
        if not pays(best.rate * lanes, best.ratio, disk):
            return None
        return self._codecs.setdefault(best.item_bytes, ShuffledLz4(best.item_bytes))

    def compress(self, frame: memoryview) -> bytes | None:
        """As its plainest choice does."""
        return ShuffledLz4().compress(frame)

    def decompress_into(self, stored: memoryview, frame: memoryview) -> None:
        """As any of its choices does."""
        ShuffledLz4().decompress_into(stored, frame)


def try_on(value: memoryview, item: int) -> Trial:
    """Compresses a sample from the middle of `value`: speed in this thread's own time, and ratio."""
    start = max(0, (len(value) - SAMPLE) // 2) & -64  # items lie at multiples of their length
    sample = value[start : start + SAMPLE]
    began = time.thread_time_ns()
    stored = ShuffledLz4(item).compress(sample)
    taken = max(time.thread_time_ns() - began, 1)
    return Trial(item, len(sample) / taken * 1e9, len(sample) / len(stored) if stored else 1.0)
