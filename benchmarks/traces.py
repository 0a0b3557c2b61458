"""Made-up traces of a shared store: which object is put or read next, and which is dropped for good.

A trace is an array of object numbers; the first mention puts the object, later ones read it, `~number`
drops it. Sizes are lognormal between 1 KB and 200 MB (median 200 KB, mean 1.4 MB), as arrays and tables of
one job are. Everything is drawn from a fixed seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

OBJECTS = 4000
REQUESTS = 60_000
EPOCHS = 15


@dataclass(frozen=True)
class Trace:
    """Requests in order, and the size of each object in bytes."""

    name: str
    requests: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @property
    def reads_and_puts(self) -> int:
        """Requests without the drops."""
        return int(np.count_nonzero(self.requests >= 0))

    @property
    def footprint(self) -> int:
        """Most bytes that are alive at once."""
        born = np.zeros(len(self.sizes), np.bool_)
        alive = most = 0
        for request in self.requests.tolist():
            if request < 0:
                alive -= int(self.sizes[~request])
            elif not born[request]:
                born[request] = True
                alive += int(self.sizes[request])
                most = max(most, alive)
        return most


def traces(seed: int = 1) -> Iterator[Trace]:
    """The five workloads."""
    rng = np.random.default_rng(seed)
    base = _sizes(rng, OBJECTS)
    yield Trace("zipf", _zipf(rng, OBJECTS, REQUESTS), base)
    yield _with_scans(rng, base)
    yield Trace("epochs", np.tile(np.arange(OBJECTS), EPOCHS), base)
    yield Trace("shuffled epochs", np.concatenate([rng.permutation(OBJECTS) for _ in range(EPOCHS)]), base)
    yield _pipeline(rng)


def _sizes(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    return np.clip(rng.lognormal(12.2, 2.0, count), 1_000, 200_000_000).astype(np.int64)


def _zipf(rng: np.random.Generator, objects: int, requests: int, exponent: float = 0.9) -> NDArray[np.int64]:
    weights = 1.0 / np.arange(1, objects + 1) ** exponent
    return rng.permutation(objects)[rng.choice(objects, requests, p=weights / weights.sum())]


def _with_scans(rng: np.random.Generator, base: NDArray[np.int64]) -> Trace:
    """Zipf, and after each sixth of it a thousand objects that are put once and never read."""
    parts: list[Any] = []
    for number, part in enumerate(np.split(_zipf(rng, OBJECTS, REQUESTS), 6)):
        parts += [part, OBJECTS + 1000 * number + np.arange(1000)]
    return Trace("zipf and scans", np.concatenate(parts), np.concatenate([base, _sizes(rng, 6000)]))


def _pipeline(rng: np.random.Generator, items: int = 20_000, hot: int = 400) -> Trace:
    """Each item is put, read one to three times in the next 40 steps and dropped; a hot set in between."""
    due: dict[int, list[int]] = {}
    requests: list[int] = []
    for step in range(items + 41):
        requests += due.pop(step, [])
        if step < items:
            item = hot + step
            requests.append(item)
            reads = sorted(rng.integers(1, 41, rng.integers(1, 4)).tolist())
            for at in reads:
                due.setdefault(step + at, []).append(item)
            due[step + reads[-1]].append(~item)
        if rng.random() < 0.5:
            requests.append(int(rng.integers(hot)))
    return Trace("produce, consume, hot set", np.array(requests), _sizes(rng, hot + items))
