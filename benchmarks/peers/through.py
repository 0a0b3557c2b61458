"""Throughput through a memory that holds a quarter: 2 GiB of noise in arrays of 16 MiB, put into a store of
512 MiB, then read back in the same order. A line for each store, a point for each 128 MiB.

The stores are those that go to disk by themselves: Millpond, Ray, Dask's SpillBuffer, and LMDB, whose memory
is the system's page cache. They do not promise the same: Millpond writes past the page cache, the others into
it. So what the system still has to write is waited for at the end (sync, counted beside), and the page cache
is dropped before reading where that is allowed. Of each value that is read one number a page is looked at.
Prints Markdown.

Run: python benchmarks/peers/through.py NAME=PYTHON ... [--rounds 3] [--directory /var/tmp]
     [--plot docs/pictures/through-memory.svg]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from disk import Disk
from harness import machine, markdown, save
from run import Contestant

MEMORY = 512 << 20
DATA = 4 * MEMORY
ARRAY_BYTES = 16 << 20
PER_STEP = 8
STEP_BYTES = PER_STEP * ARRAY_BYTES

Passes = dict[str, Any]
"""{"put": seconds per step, "sync": seconds, "get": seconds per step}"""


def rates(passes: list[Passes], what: str) -> list[float]:
    """GB/s of each step, medians of the rounds."""
    return [STEP_BYTES / median(step) / 1e9 for step in zip(*(each[what] for each in passes), strict=True)]


def whole(passes: list[Passes], *parts: str) -> str:
    """GB/s of the whole pass with the parts in it: median, slowest and fastest round."""

    def seconds(each: Passes) -> float:
        return sum(sum(each[part]) if isinstance(each[part], list) else each[part] for part in parts)

    found = sorted(DATA / seconds(each) / 1e9 for each in passes)
    return f"{median(found):.2f} ({found[0]:.2f}-{found[-1]:.2f})"


def plot(results: dict[str, list[Passes]], disk: dict[str, list[float]], path: Path) -> None:
    """Two panels: putting, reading back."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
    for panel, what, title in zip(panels, ("put", "get"), ("put", "then read back"), strict=True):
        for name, passes in results.items():
            steps = rates(passes, what)
            ends = [(i + 1) * STEP_BYTES / 2**30 for i in range(len(steps))]
            panel.semilogy(ends, steps, marker=".", label=name)
        plain = median(disk["write" if what == "put" else "read"]) / 1e9
        panel.axhline(plain, color="gray", linestyle="--", label="the disk, direct")
        panel.axvline(MEMORY / 2**30, color="gray", alpha=0.4)
        panel.set_xlabel(f"GiB {title}; memory is {MEMORY >> 20} MiB")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("GB/s of each 128 MiB")
    panels[1].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def measure(
    peers: list[str], rounds: int, directory: Path
) -> tuple[dict[str, list[Passes]], dict[str, list[float]], dict[str, str]]:
    """Passes of each store, new in each round; rates of the disk; versions, or why one is missing."""
    results: dict[str, list[Passes]] = {}
    notes: dict[str, str] = {}
    plain = Disk(directory, DATA, ARRAY_BYTES)
    disk: dict[str, list[float]] = {"write": [], "read": []}
    for number in range(rounds):
        disk["write"].append(plain.write())
        disk["read"].append(plain.read())
        plain.clear()
        for name, python in (pair.split("=", 1) for pair in peers):
            with tempfile.TemporaryDirectory(dir=directory, prefix=f"{name}-{number}-") as own:
                try:
                    contestant = Contestant(name, python, Path(own) / "store", MEMORY)
                    try:
                        found = contestant.measure(("through", DATA, ARRAY_BYTES, PER_STEP))
                    finally:
                        contestant.close()
                except (OSError, RuntimeError) as error:
                    notes[name] = str(error)
                    continue
                if found is None:
                    notes[name] = "; ".join(contestant.failures.values())
                else:
                    results.setdefault(name, []).append(found)
                    notes[name] = contestant.version
    return results, disk, notes


def main() -> None:
    """Rounds, one table, one picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peers", nargs="+", metavar="NAME=PYTHON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk (%(default)s)")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.directory, prefix="peers-") as name:
        results, disk, notes = measure(args.peers, args.rounds, Path(name))
    rows = [
        [f"{name} {notes[name]}", whole(passes, "put"), whole(passes, "put", "sync"), whole(passes, "get")]
        for name, passes in results.items()
    ]
    plain = [f"{median(disk[way]) / 1e9:.2f}" for way in ("write", "read")]
    rows.append(["the disk, direct", "", *plain])
    print(markdown(["GB/s: median (slowest-fastest round)", "put", "put and synced", "read back"], rows))
    for name, text in notes.items():
        if name not in results:
            print(f"\nleft out: {name}: {text}")
    print("\n" + ", ".join(f"{key} {text}" for key, text in machine().items()))
    print(f"saved to {save('through', {'versions': notes, 'passes': results, 'disk': disk})}")
    if args.plot:
        plot(results, disk, args.plot)


if __name__ == "__main__":
    main()
