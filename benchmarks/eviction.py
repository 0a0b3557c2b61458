"""Traces replayed against the eviction policies: restores and seconds of I/O for each.

The policies are the real functions, ranked in batches as the store does it; the store around them is a
simulation, in which an answer of the disk takes 100 us and a byte 0.5 ns, both ways (--seek, --bandwidth).
With --real, a part of each trace, scaled down, also runs through a real store. Beside the policies,
`future` takes what will be read last (Belady 1966; no bound where sizes differ). Prints Markdown, and
with --plot draws a picture.

Run: python benchmarks/eviction.py [--members 1] [--real] [--plot docs/pictures/eviction.svg]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine, markdown, save
from numpy.typing import NDArray
from traces import Trace, traces

import millpond
from millpond.eviction.named import NAMES, Policy, resolve
from millpond.eviction.policies import CANDIDATE
from millpond.eviction.ranking import Ranking
from millpond.store.room import BATCH_BYTES

SHARES = (0.1, 0.5)
REAL_SCALE = 1 / 16
REAL_REQUESTS = 20_000


@dataclass
class Outcome:
    """What one replay cost."""

    requests: int
    restores: int = 0
    restored_bytes: int = 0
    spills: int = 0
    spilled_bytes: int = 0
    seconds: float = 0.0

    def add_io(self, seek: float, bandwidth: float) -> Outcome:
        """Counts the seconds that the disk is busy."""
        nbytes = self.restored_bytes + self.spilled_bytes
        self.seconds = nbytes / bandwidth + (self.restores + self.spills) * seek
        return self


class Pond:
    """A store of `capacity` bytes, as far as policies can tell. Each member ranks and evicts by itself."""

    def __init__(self, trace: Trace, capacity: int, make: Callable[[], Policy], members: int = 1) -> None:
        self._trace = trace
        self._capacity = capacity
        self._table = np.zeros(len(trace.sizes), CANDIDATE)
        self._table["entry"] = np.arange(len(trace.sizes))
        self._table["size"] = trace.sizes
        self._resident = np.zeros(len(trace.sizes), np.bool_)
        self._used = 0
        self._policies = [make() for _ in range(members)]
        self._rankings: list[Ranking | None] = [None] * members
        self._rng = np.random.default_rng(0)
        self.outcome = Outcome(trace.reads_and_puts)

    def replay(self, at_request: Callable[[int, int], None] = lambda number, key: None) -> Outcome:
        """Carries out the trace; calls `at_request` first with the number and the object of each request."""
        known = np.zeros(len(self._table), np.bool_)
        stamp, hits = self._table["stamp"], self._table["hits"]
        for number, key in enumerate(self._trace.requests.tolist()):
            if key < 0:
                self._drop(~key)
                continue
            at_request(number, key)
            if self._resident[key]:
                hits[key] = min(int(hits[key]) + 1, 254)
            else:
                if known[key]:
                    self.outcome.restores += 1
                    self.outcome.restored_bytes += int(self._trace.sizes[key])
                known[key] = True
                self._bring(key, number + 1)
            stamp[key] = number + 1
        return self.outcome

    def _drop(self, key: int) -> None:
        if self._resident[key]:
            self._resident[key] = False
            self._used -= int(self._trace.sizes[key])

    def _bring(self, key: int, now: int) -> None:
        size = int(self._trace.sizes[key])
        if size > self._capacity:
            return  # it lives on disk
        if self._used + size > self._capacity:
            self._evict(max(size, min(BATCH_BYTES, self._capacity // 8)), size)
        self._resident[key] = True
        self._used += size
        self._table["arrived"][key], self._table["hits"][key] = now, 0

    def _evict(self, nbytes: int, needed: int) -> None:
        member = int(self._rng.integers(len(self._policies)))
        while nbytes > 0 or self._used + needed > self._capacity:
            ranking = self._rankings[member]
            if ranking is None or ranking.exhausted:
                rows = self._table[self._resident]
                if not len(rows):
                    return
                cover = max(self._used // 8, nbytes, min(BATCH_BYTES, self._capacity // 8))
                ranking = Ranking(rows, self._policies[member], cover, evict=True)
                self._rankings[member] = ranking
            for row in ranking.take(max(nbytes, 1)):
                key = int(row["entry"])
                if self._resident[key] and self._table["stamp"][key] == row["stamp"]:
                    nbytes -= int(row["size"])
                    self._spill(key)

    def _spill(self, key: int) -> None:
        if not self._table["clean"][key]:
            self._table["clean"][key] = 1
            self.outcome.spills += 1
            self.outcome.spilled_bytes += int(self._trace.sizes[key])
        self._drop(key)


def simulate(trace: Trace, share: float, name: str, members: int) -> Outcome:
    """One replay with `share` of the footprint as memory."""
    capacity = int(share * trace.footprint)
    if name != "future":
        return Pond(trace, capacity, lambda: resolve(name), members).replay()
    following = _next_uses(trace.requests)
    upcoming = np.zeros(len(trace.sizes))

    def note(number: int, key: int) -> None:
        upcoming[key] = following[number]

    def farthest_first(candidates: NDArray[Any]) -> Any:
        return np.argsort(-upcoming[candidates["entry"]])

    return Pond(trace, capacity, lambda: resolve(farthest_first), members).replay(note)


def _next_uses(requests: NDArray[np.int64]) -> NDArray[np.float64]:
    """For each request, the number of the next one for the same object; infinity if there is none."""
    following = np.full(len(requests), np.inf)
    seen: dict[int, int] = {}
    for number in range(len(requests) - 1, -1, -1):
        key = int(requests[number])
        following[number] = seen.get(key, np.inf)
        seen[key] = number
    return following


def replay_real(trace: Trace, share: float, name: str, directory: Path) -> Outcome:
    """The first part of a trace through a real store; seconds are those of the whole loop."""
    requests = trace.requests[:REAL_REQUESTS]
    small = Trace(trace.name, requests, np.maximum((trace.sizes * REAL_SCALE).astype(np.int64), 64))
    memory = max(int(share * small.footprint), 8 << 20)
    noise = np.random.default_rng(0).integers(0, 256, int(small.sizes.max()), np.uint8)
    refs: dict[int, millpond.ObjectRef] = {}
    with millpond.Store(memory, spill_dir=directory, eviction=name) as store:
        start = time.perf_counter()
        for key in requests.tolist():
            if key < 0:
                refs.pop(~key, None)
            elif key in refs:
                store.get(refs[key])
            else:
                refs[key] = store.put(noise[: small.sizes[key]])
        seconds, stats = time.perf_counter() - start, store.stats()
        refs.clear()
    return Outcome(
        small.reads_and_puts,
        stats.restored_objects_total,
        stats.restored_bytes_total,
        stats.spilled_objects_total,
        stats.spilled_bytes_total,
        seconds,
    )


Row = tuple[str, dict[str, Outcome]]


def rows_of(run: Callable[[Trace, float, str], Outcome], names: tuple[str, ...]) -> Iterator[Row]:
    """For each trace and share of memory, the outcomes by policy."""
    for trace in traces():
        for share in SHARES:
            yield f"{trace.name}, {share:.0%}", {name: run(trace, share, name) for name in names}


def table(rows: list[Row], measure: Callable[[Outcome], float]) -> str:
    """A measure, and restores per request, for each policy."""
    names = list(rows[0][1])
    cells = [
        [label, *(f"{measure(o):.1f} ({o.restores / o.requests:.3f})" for o in outcomes.values())]
        for label, outcomes in rows
    ]
    sums = [f"{sum(measure(outcomes[name]) for _, outcomes in rows):.1f}" for name in names]
    return markdown(["trace, memory", *names], [*cells, ["sum", *sums]])


def gigabytes(outcome: Outcome) -> float:
    """To and from the disk."""
    return (outcome.restored_bytes + outcome.spilled_bytes) / 1e9


def plot(rows: list[Row], path: Path) -> None:
    """Seconds relative to those of lru, one group of bars for each trace."""
    import matplotlib

    matplotlib.use("svg" if path.suffix == ".svg" else "agg")
    matplotlib.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "eviction", "font.family": "sans-serif"}
    )
    from matplotlib import pyplot

    names = list(rows[0][1])
    colours = dict(zip(names, ("#9aa5b1", "#2f7ed8", "#0d9488", "#d97706", "#d4d4d8"), strict=True))
    figure, axes = pyplot.subplots(figsize=(9, 6.5))
    height = 0.8 / len(names)
    for number, name in enumerate(names):
        ratios = [outcomes[name].seconds / outcomes["lru"].seconds for _, outcomes in rows]
        places = np.arange(len(rows)) + (number - (len(names) - 1) / 2) * height
        axes.barh(places, np.minimum(ratios, 2.0), height, label=name, color=colours[name])
        for place, ratio in zip(places, ratios, strict=True):
            if ratio > 2.0:
                axes.text(2.02, place, f"{ratio:.1f}", va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 2.15)
    axes.axvline(1.0, color="#52606d", linewidth=0.8)
    axes.set_xlabel("seconds of I/O, relative to lru (less is better)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(names), loc="lower center", bbox_to_anchor=(0.4, 1.0))
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--members", type=int, default=1, help="how many rank and evict in turn")
    parser.add_argument("--seek", type=float, default=100e-6, help="seconds until the disk answers")
    parser.add_argument("--bandwidth", type=float, default=2e9, help="bytes per second")
    parser.add_argument("--real", action="store_true", help="also through a real store")
    parser.add_argument(
        "--directory", type=Path, default=Path("/var/tmp"), help="where the real store spills"
    )
    parser.add_argument("--plot", type=Path, help="picture to draw: .svg or .png")
    args = parser.parse_args()

    def run(trace: Trace, share: float, name: str) -> Outcome:
        return simulate(trace, share, name, args.members).add_io(args.seek, args.bandwidth)

    results = {"simulated": list(rows_of(run, (*NAMES, "future")))}
    seconds = table(results["simulated"], lambda outcome: outcome.seconds)
    print("Seconds of I/O (restores per request), simulated:\n\n" + seconds)
    if args.plot:
        plot(results["simulated"], args.plot)
    if args.real:
        with tempfile.TemporaryDirectory(dir=args.directory, prefix="millpond-bench-") as directory:
            real = rows_of(lambda *what: replay_real(*what, Path(directory)), NAMES)
            results["real"] = list(real)
        print("\nGB of I/O (restores per request), real store:\n\n" + table(results["real"], gigabytes))
    print("\n" + ", ".join(f"{name} {text}" for name, text in machine().items()))
    print(f"saved to {save('eviction', results)}")


if __name__ == "__main__":
    main()
