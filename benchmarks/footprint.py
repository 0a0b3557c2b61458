"""What a group of processes takes in memory over time: their own pages, and what they share, once.

Invariants: anonymous memory is counted by proportional share (PSS), so pages that forked processes share
count once; shared memory is asked of whoever owns it, since pages that nobody maps belong to no process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

INTERVAL_S = 0.05


def anonymous_bytes(pids: list[int]) -> int:
    """Summed over processes; those that have ended count nothing."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss_Anon:"):
                    total += int(line.split()[1]) << 10
    return total


def family() -> list[int]:
    """This process and its descendants."""
    return [psutil.Process().pid, *(child.pid for child in psutil.Process().children(recursive=True))]


class Footprint:
    """A context in which memory is sampled; `peak` and `start` are bytes."""

    def __init__(self, shared_bytes: Callable[[], int], pids: Callable[[], list[int]] = family) -> None:
        self._shared_bytes = shared_bytes
        self._pids = pids
        self._done = threading.Event()
        self.start = self.peak = 0

    def now(self) -> int:
        """Bytes at this moment."""
        return anonymous_bytes(self._pids()) + self._shared_bytes()

    def __enter__(self) -> Footprint:
        self.start = self.peak = self.now()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(INTERVAL_S):
            self.peak = max(self.peak, self.now())

    def __exit__(self, *exc_info: object) -> None:
        self.peak = max(self.peak, self.now())
        self._done.set()
        self._thread.join()


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Returns when `condition` holds. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.01)
