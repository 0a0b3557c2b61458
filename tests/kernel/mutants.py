"""The kernel with one step left out, moved or weakened: the C tests must notice each.

Each mutant is one change of the sources; the tests are built and run against it, the quick ones first, until
one of them fails. A mutant that all of them pass has survived, and that is a gap in the tests.
Not here: what each mutant changes (`mutant_list`).

Run: python tests/kernel/mutants.py [name ...] [--counts FILE] [--page]
    --page   writes into docs/internals/mutants.md what noticed those that were run
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
from mutant_list import MUTANTS, Mutant  # noqa: E402  (not a package: run by its path)

from proof import write_counts  # noqa: E402

PAGE: Final = HERE.parents[1] / "docs" / "internals" / "mutants.md"
_TABLE: Final = re.compile(r"(?<=\| --- \| --- \| --- \|\n).*", re.DOTALL)
KERNEL: Final = HERE.parents[1] / "src" / "millpond" / "kernel"
PROGRAMS: Final = (
    "protocol", "regressions", "reaping", "edges", "fork", "queue", "moving", "places", "unfinished",
    "given_up", "arena", "arena_repair", "lock", "faults", "step", "members", "kill",
)  # fmt: skip
SECONDS: Final = 120
"""A test that goes on for so long has noticed as well."""


def mutated(mutant: Mutant, kernel: Path = KERNEL) -> str:
    """The source of the file with the change. Raises ValueError when the place is not there, or not once."""
    text = (kernel / mutant.file).read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: {mutant.file} has its place {text.count(mutant.old)} times")
    return text.replace(mutant.old, mutant.new)


def catcher(mutant: Mutant, built: Path, work: Path) -> str | None:
    """The first C test that fails with the mutant; None: none does. `built`: objects of the original."""
    with tempfile.TemporaryDirectory(dir=work) as own:
        return _catcher(mutant, built, Path(own))


def _catcher(mutant: Mutant, built: Path, work: Path) -> str | None:
    kernel, out = work / "kernel", work / "out"
    shutil.copytree(KERNEL, kernel)
    shutil.copytree(built, out)  # with its times: only what the change touches is compiled again
    (kernel / mutant.file).write_text(mutated(mutant))
    for program in PROGRAMS:
        target = out / f"test_{program}"
        make(kernel, out, target)
        try:
            done = subprocess.run([target], capture_output=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return f"{program} (does not end)"
        if done.returncode != 0:
            return program
    return None


def make(kernel: Path, out: Path, *targets: Path) -> None:
    """Builds C tests over the sources in `kernel`."""
    command = [
        "make",
        "-s",
        "-f",
        str(HERE / "Makefile"),
        f"KERNEL={kernel}",
        f"OUT={out}",
        *map(str, targets),
    ]
    subprocess.run([*command, "CFLAGS=-O1 -g -Wno-error -Wno-unused"], check=True, capture_output=True)


def catchers() -> dict[str, str]:
    """What the page says of each mutant, by name."""
    table = _TABLE.search(PAGE.read_text())
    assert table is not None
    rows = (line.strip("| ").split(" | ") for line in table[0].splitlines())
    return {name: found for name, _, found in rows}


def write_page(found: dict[str, str]) -> None:
    """Puts what was found into the page, and drops the mutants that are no more."""
    known = catchers() | found
    rows = [f"| {m.name} | {m.file} | {known[m.name]} |\n" for m in MUTANTS if m.name in known]
    PAGE.write_text(_TABLE.sub(lambda _: "".join(rows), PAGE.read_text()))


def main() -> int:
    """0: every mutant was caught."""
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--counts", type=Path)
    parser.add_argument("--page", action="store_true")
    args = parser.parse_args()
    names = args.names
    caught: dict[str, str] = {}
    survived, started = 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        built = Path(name) / "built"
        built.mkdir()
        make(KERNEL, built, *(built / f"test_{program}" for program in PROGRAMS))
        chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
            founds = threads.map(lambda mutant: catcher(mutant, built, Path(name)), chosen)
            for mutant, found in zip(chosen, founds, strict=True):
                survived += found is None
                caught[mutant.name] = found or "nothing"
                print(f"{mutant.name:48} {mutant.file:12} {found or 'SURVIVED'}", flush=True)
    if args.page:
        write_page(caught)
    print(f"{len(names or MUTANTS)} mutants, {time.perf_counter() - started:.0f} s: {survived} survived")
    write_counts(args.counts, {"mutants of the kernel": len(names or MUTANTS)}, survived)
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
