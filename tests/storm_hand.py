"""One process of a storm: it does random operations on a store and records them, until it is killed.

Run by `storm`, whose own process works as well.
Not here: what comes over these processes (`storm`), whether what they saw can have been (`history`).

Run: python tests/storm_hand.py ADDRESS HISTORY SEED SEGMENT_BYTES
"""

from __future__ import annotations

import os
import random
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import millpond
import millpond.spill.segments
from history import Recorder

NAMES = 48
KEEP = 12
SIZES = (8, 100, 1000, 3000, 20_000, 100_000, 1_200_000)
"""Items of 8 bytes: a value of each way that there is to disk."""


class Hand:
    """One process at work."""

    def __init__(self, address: str, history: Path, seed: int) -> None:
        self._store = millpond.connect(address)
        self._record = Recorder(history)
        self._dice = random.Random(seed)
        self._held: list[Any] = []
        self._ways = (self._put, self._get, self._get, self._get, self._take, self._delete, self._spill)

    def work(self, seconds: float) -> None:
        """For so long, and one operation at least."""
        end = time.monotonic() + seconds
        while True:
            try:
                self._dice.choice(self._ways)()
            except millpond.ObjectNotFoundError:
                pass  # a name that nobody has given yet
            except (millpond.StoreFullError, millpond.StoreBusyError, millpond.SpillError):
                self._held.clear()
            while len(self._held) > KEEP:
                self._held.pop(self._dice.randrange(len(self._held)))
            if time.monotonic() > end:
                return

    def end(self) -> None:
        """It holds nothing any more."""
        self._held.clear()
        self._record.close()

    def _name(self) -> str:
        return f"name {self._dice.randrange(NAMES)}"

    def _put(self) -> None:
        seed = self._dice.getrandbits(60) | 1
        value = np.full(self._dice.choice(SIZES), seed, np.uint64)
        number = self._record.begin("put")
        ref = self._store.put({"seed": seed, "value": value} if seed & 2 else value)
        self._record.end(number, "ok", ref.id, seed)
        self._store._name_set(self._name(), ref, True)
        self._held.append(ref)

    def _take(self) -> None:
        self._held.append(self._store.lookup(self._name()))

    def _get(self) -> None:
        if not self._held:
            return
        ref = self._dice.choice(self._held)
        number = self._record.begin("get", ref.id)
        seed = 0
        try:
            seed = _seed_of(ref.get(timeout=20))
            outcome = "ok" if seed else "wrong"
        except millpond.ObjectDeletedError:
            outcome = "deleted"
        except millpond.ObjectLostError as error:
            outcome = "lost"
            print(error, file=sys.stderr, flush=True)  # the history knows no reasons
        except millpond.ObjectNotFoundError:
            outcome = "missing"
        except (millpond.MillpondError, OSError) as error:
            outcome = type(error).__name__
        self._record.end(number, outcome, seed=seed)

    def _delete(self) -> None:
        if self._held and self._dice.random() < 0.3:
            ref = self._held.pop(self._dice.randrange(len(self._held)))
            number = self._record.begin("delete", ref.id)
            self._store.delete(ref)
            self._record.end(number, "ok")

    def _spill(self) -> None:
        if self._held:
            self._store.spill(self._held[: self._dice.randrange(4)])


def _seed_of(value: Any) -> int:
    """What every item of the value says; 0: they differ."""
    array = value["value"] if isinstance(value, dict) else value
    first = int(array[0])
    whole = bool((array == first).all()) and (not isinstance(value, dict) or value["seed"] == first)
    return first if whole else 0


def main(address: str, history: str, seed: str, segment_bytes: str) -> None:
    """Works until this process is killed, or nobody is left to do that."""
    parent = os.getppid()
    millpond.spill.segments.SEGMENT_BYTES = int(segment_bytes)  # type: ignore[misc]
    hand = None
    while hand is None:
        with suppress(millpond.StoreBusyError):  # who holds the lock, or the registry's, may be stopped
            hand = Hand(address, Path(history), int(seed))
    while os.getppid() == parent:
        hand.work(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
