"""How long each call holds the store's mutex, and how long it waited for it: medians and tails.

Compiles the kernel without failpoints together with holds.c; the linker leads mp_lock and mp_unlock through a
clock, so that nothing of it is in the production path. A call that makes several holds counts as several. The
last row is what two processes do to each other that put and drop all the time. The longest of all are
not shown: they are the pauses of the machine. Prints Markdown. Needs gcc.

Run: python benchmarks/holds.py
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import shown
from harness import machine, save

ROOT = Path(__file__).parents[1]
KERNEL = ROOT / "src" / "millpond" / "kernel"
TESTS = ROOT / "tests" / "kernel"
OPTIONS = ("-O2", "-std=gnu11", "-pthread", "-Wl,--wrap=mp_lock,--wrap=mp_unlock")

Rows = dict[str, dict[str, list[float]]]


def measure() -> Rows:
    """By call: how many holds, and the nanoseconds of the holds and of the waits before them."""
    sources = [*KERNEL.glob("*.c"), TESTS / "fixture.c", TESTS / "check.c", Path(__file__).with_suffix(".c")]
    with tempfile.TemporaryDirectory() as name:
        program = Path(name) / "holds"
        compiler = os.environ.get("CC", "gcc").split()
        command = [*compiler, *OPTIONS, f"-I{KERNEL}", f"-I{TESTS}", *sources, "-o", program]
        subprocess.run(command, check=True)
        lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    rows = {}
    for call, count, *times in (line.split("\t") for line in lines):
        numbers = [float(time) for time in times]
        rows[call] = {"holds": [float(count)], "held": numbers[:3], "waited": numbers[3:]}
    return rows


def main() -> None:
    """Prints one table."""
    rows = measure()
    print(shown.holds(rows))
    print("\n" + ", ".join(f"{name} {text}" for name, text in machine().items()))
    print(f"saved to {save('holds', rows)}")


if __name__ == "__main__":
    main()
