"""Each policy does what it is for: small traces replayed as in benchmarks/eviction.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from millpond.eviction.named import NAMES

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import eviction

    return eviction


def sizes(count: int) -> NDArray[np.int64]:
    return np.clip(np.random.default_rng(1).lognormal(12.2, 2.0, count), 1_000, 5_000_000).astype(np.int64)


def zipf(objects: int, requests: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(2)
    weights = 1.0 / np.arange(1, objects + 1) ** 0.9
    return rng.permutation(objects)[rng.choice(objects, requests, p=weights / weights.sum())]


def outcomes(bench: Any, requests: NDArray[np.int64], count: int, members: int = 1) -> dict[str, Any]:
    trace = bench.Trace("small", requests, sizes(count))
    return {name: bench.simulate(trace, 0.4, name, members).add_io(1e-4, 2e9) for name in (*NAMES, "future")}


def test_mru_is_for_epochs(bench: Any) -> None:
    found = outcomes(bench, np.tile(np.arange(400), 8), 400)
    assert found["mru"].seconds < 0.8 * found["lru"].seconds
    assert found["lru"].restores == 7 * 400, "each object has gone before it is read again"


@pytest.mark.parametrize("members", [1, 4])
def test_gdsf_and_sieve_are_for_skewed_reads(bench: Any, members: int) -> None:
    """Also when several members take turns, each with a hand and a floor of its own."""
    scans = [
        np.append(part, 400 + 100 * i + np.arange(100)) for i, part in enumerate(np.split(zipf(400, 5000), 5))
    ]
    found = outcomes(bench, np.concatenate(scans), 900, members)
    assert found["gdsf"].restores < 0.6 * found["lru"].restores
    assert found["sieve"].seconds < 0.95 * found["lru"].seconds
    assert found["gdsf"].seconds < 0.95 * found["lru"].seconds


def test_nobody_beats_the_future(bench: Any) -> None:
    found = outcomes(bench, zipf(400, 4000), 400)
    assert min(found, key=lambda name: found[name].seconds) == "future"


def test_dropped_objects_cost_nothing(bench: Any) -> None:
    """What is dropped before memory is full is never written."""
    requests = np.stack([np.arange(1000), ~np.arange(1000)], axis=1).ravel()
    trace = bench.Trace("short lives", requests, sizes(1000))
    for name in NAMES:
        outcome = bench.Pond(trace, 50_000_000, lambda name=name: bench.resolve(name)).replay()
        assert (outcome.restores, outcome.spilled_bytes) == (0, 0)
