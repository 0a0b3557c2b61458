"""Millpond beside the stores that people use instead: the same work, in alternating rounds, in one run.

Every peer runs in an environment of its own, which `make bench-peers` makes; one that cannot be had is left
out, and the table says so. Prints Markdown; keeps JSON and a plot of get latency against size.

Run: python benchmarks/peers/run.py NAME=PYTHON ... [--rounds 7] [--plot docs/pictures/get-latency.svg]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from harness import Timing, machine, markdown, microseconds, save

CLIENTS = Path(__file__).with_name("clients.py")
SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
WORK: tuple[tuple[Any, ...], ...] = (
    ("put_dict",),
    ("get_dict",),
    *(("get_array", nbytes) for nbytes in SIZES),
    ("put_array", 100 << 20),
)


class Contestant:
    """A client in another process."""

    def __init__(self, name: str, python: str, directory: Path, memory: int | None = None) -> None:
        """`memory`: bytes that the store may take; None: enough for everything."""
        self.name = name
        self.failures: dict[str, str] = {}
        directory.mkdir()
        self._process = subprocess.Popen(
            [python, CLIENTS, name, directory, *([] if memory is None else [str(memory)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.version: str = self._answer()["version"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} has ended: exit status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def measure(self, work: tuple[Any, ...]) -> Any:
        """Seconds per call, or what else the work gives; None if it cannot do that."""
        assert self._process.stdin is not None
        if label(work) in self.failures:
            return None
        print(json.dumps(work), file=self._process.stdin, flush=True)
        answer = self._answer()
        if "error" in answer:
            self.failures[label(work)] = answer["error"]
            return None
        return answer["seconds"]

    def close(self) -> None:
        """Ends it and what it has started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def label(work: tuple[Any, ...]) -> str:
    """ "get array, 1,000 B"."""
    return ", ".join([work[0].replace("_", " "), *(f"{size:,} B" for size in work[1:])])


def plot(results: dict[str, dict[str, Timing]], path: Path) -> None:
    """Get latency against size, a line for each contestant."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name in next(iter(results.values())):
        points = [
            (size, results[label(("get_array", size))][name].median * 1e6)
            for size in SIZES
            if name in results[label(("get_array", size))]
        ]
        if points:
            axes.loglog(*zip(*points, strict=True), marker="o", label=name)
    axes.set_xlabel("bytes of the array")
    axes.set_ylabel("microseconds for one get")
    axes.grid(alpha=0.3)
    axes.legend(ncols=2, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main() -> None:
    """Runs every contestant in every round."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peers", nargs="+", metavar="NAME=PYTHON")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    left_out: dict[str, str] = {}
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="peers-") as name,
        contextlib.ExitStack() as stack,
    ):
        contestants = []
        for peer, python in (pair.split("=", 1) for pair in args.peers):
            try:
                contestants.append(Contestant(peer, python, Path(name) / peer))
                stack.callback(contestants[-1].close)
            except (OSError, RuntimeError) as error:
                left_out[peer] = str(error)
        results = race(contestants, args.rounds)
        failures = {contestant.name: contestant.failures for contestant in contestants}
        versions = {contestant.name: contestant.version for contestant in contestants}
    names = list(versions)
    rows = [
        [what, *(microseconds(timings[name]) if name in timings else "-" for name in names)]
        for what, timings in results.items()
    ]
    heads = [f"{name} {versions[name]}" for name in names]
    print(markdown(["microseconds: median (fastest-slowest round)", *heads], rows))
    for peer, reason in left_out.items():
        print(f"\nleft out: {peer}: {reason}")
    for peer, reasons in failures.items():
        for what, reason in reasons.items():
            print(f"\n{peer}, {what}: {reason}")
    print("\n" + ", ".join(f"{key} {text}" for key, text in machine().items()))
    print(f"saved to {save('peers', {'versions': versions, 'left_out': left_out, 'times': results})}")
    if args.plot:
        plot(results, args.plot)


def race(contestants: list[Contestant], rounds: int) -> dict[str, dict[str, Timing]]:
    """By work and contestant. One kind of work after the other, since 1 GB for each would not fit twice."""
    results: dict[str, dict[str, Timing]] = {}
    for work in WORK:
        samples: dict[str, list[float]] = {}
        for _ in range(rounds):
            for contestant in contestants:
                seconds = contestant.measure(work)
                if seconds is not None:
                    samples.setdefault(contestant.name, []).append(seconds)
        results[label(work)] = {name: Timing.of(times) for name, times in samples.items()}
    return results


if __name__ == "__main__":
    main()
