"""Measuring side by side: contestants in alternating rounds, medians with their spread, one table.

Invariants: every round runs every contestant once, so that what else the machine does hits all of
them alike; a figure is never shown without its spread; results carry the machine they were made on.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import millpond

RESULTS = Path(__file__).parent / "results"
ROUND_S = 0.02
"""How long a contestant runs in one round, at least."""


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median of the rounds, the fastest and the slowest round."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """From one figure per round."""
        return cls(statistics.median(samples), min(samples), max(samples))


def race(contestants: dict[str, Callable[[], object]], rounds: int = 9) -> dict[str, Timing]:
    """Times short calls; each contestant is called as often as fills ROUND_S, in every round."""
    calls = {name: _calls_per_round(call) for name, call in contestants.items()}
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, call in contestants.items():
            samples[name].append(_time(call, calls[name]) / calls[name])
    return {name: Timing.of(times) for name, times in samples.items()}


def figures(contestants: dict[str, Callable[[], float]], rounds: int = 5) -> dict[str, list[float]]:
    """One figure per round from contestants that take long and measure themselves."""
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, measure in contestants.items():
            samples[name].append(measure())
    return samples


def timings(contestants: dict[str, Callable[[], float]], rounds: int = 5) -> dict[str, Timing]:
    """The same, summed up."""
    return {name: Timing.of(samples) for name, samples in figures(contestants, rounds).items()}


def ratios(parts: Sequence[float], wholes: Sequence[float]) -> list[float]:
    """The ratio in each round: what disturbs a round disturbs both."""
    return [part / whole for part, whole in zip(parts, wholes, strict=True)]


def _calls_per_round(call: Callable[[], object]) -> int:
    calls = 1
    while (taken := _time(call, calls)) < ROUND_S:
        calls = max(calls * 2, int(calls * ROUND_S / max(taken, 1e-9)))
    return calls


def _time(call: Callable[[], object], calls: int) -> float:
    repeats = range(calls)
    start = time.perf_counter()
    for _ in repeats:
        call()
    return time.perf_counter() - start


def microseconds(timing: Timing) -> str:
    """ "1.23 (1.20-1.40)"."""
    return f"{timing.median * 1e6:.3g} ({timing.low * 1e6:.3g}-{timing.high * 1e6:.3g})"


def gigabytes(rates: Sequence[float]) -> str:
    """Rates in bytes per second, one for each round: median, slowest and fastest in GB/s."""
    rate = Timing.of(rates)
    return f"{rate.median / 1e9:.2f} ({rate.low / 1e9:.2f}-{rate.high / 1e9:.2f})"


def share(parts: Sequence[float], wholes: Sequence[float]) -> str:
    """Median, lowest and highest of the rounds' ratios."""
    ratio = Timing.of(ratios(parts, wholes))
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines)


def machine() -> dict[str, str]:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.machine(),
        "cpus": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "millpond": millpond.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def save(name: str, results: Any) -> Path:
    """Writes results, Timings included, with the machine to benchmarks/results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), "results": results}, default=asdict, indent=2) + "\n")
    return path
