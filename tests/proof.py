"""Everything that is sampled elsewhere, in full, two parts at a time; then one table of what was counted.

A part is a command that takes `--counts FILE` and writes there what it has done, as JSON:
`{"counts": {"kill -9 at a failpoint": 2000}, "violations": 0}`. A part that fails is a violation, whatever it
wrote; so is one that counted nothing. What it printed is in build/proof, beside its counts.

Run: python tests/proof.py [PART ...] [--page]
    PART    only these; the table also has what the others counted when they last ran
    --page  writes the table into docs/reliability.md
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any, Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
OUT: Final = ROOT / "build" / "proof"
PAGE: Final = ROOT / "docs" / "reliability.md"
JOBS: Final = 2
"""Parts at a time: most of them wait for processes that start, sleep or are stopped."""
BUILD: Final = "make -C tests/kernel build"
PYTEST: Final = f"{sys.executable} -m pytest -q"
_TABLE: Final = re.compile(r"(?<=<!-- counts -->\n).*?(?=<!-- end of counts -->)", re.DOTALL)


class Part(NamedTuple):
    """One command, run in the root of the sources. {counts}: the file for its counts."""

    name: str
    command: str


PARTS: Final = (
    Part("kernel", "MP_STEPS=all MP_CRASHES=1000 MP_SECONDS=90 make -C tests/kernel test COUNTS={counts}"),
    Part("tables", f"{BUILD} && MP_ROUNDS=1000000 build/kernel-tests/plain/test_hostile --counts {{counts}}"),
    Part("mutants", f"{sys.executable} tests/kernel/mutants.py --counts {{counts}}"),
    Part("protocols", f"cd tests && {sys.executable} -m explorer --counts {{counts}}"),
    Part(
        "failpoints",
        f"MILLPOND_NIGHTLY=1 {PYTEST} tests/test_failpoints.py tests/test_stopped.py --counts {{counts}}",
    ),
    Part("faults", f"MILLPOND_NIGHTLY=1 {PYTEST} tests/test_faults.py --counts {{counts}}"),
    Part(
        "damage",
        f"MILLPOND_NIGHTLY=1 {PYTEST} tests/test_spill_reader.py tests/test_damage.py tests/test_hostile.py "
        "--counts {counts}",
    ),
    Part("model", f"MILLPOND_NIGHTLY=1 {PYTEST} tests/test_model.py --counts {{counts}}"),
    Part("fuzz", f"cd tests && {sys.executable} -m fuzz --seconds 40 --counts {{counts}}"),
    Part("storm", f"{sys.executable} tests/storm.py --seconds 300 --counts {{counts}}"),
    Part(
        "jitter",
        "PYTHONPATH=build/failpoints MILLPOND_FAILPOINT_JITTER=20:3000 "
        f"{sys.executable} tests/storm.py --seconds 120 --memory 24MiB --segment 256KiB --pause 0.2 "
        "--counts {counts}",
    ),
)


def write_counts(path: Path | None, counts: dict[str, int], violations: int) -> None:
    """What a part does at its end. Nothing when it was not asked to (`path` None)."""
    if path is not None:
        path.write_text(json.dumps({"counts": counts, "violations": violations}))


def run(part: Part) -> None:
    """Runs it and completes its counts by how long it took and whether it failed."""
    for path in OUT.glob(f"{part.name}*.json"):
        path.unlink()
    log = OUT / f"{part.name}.log"
    started = time.monotonic()
    with log.open("w") as file:
        command = part.command.format(counts=OUT / f"{part.name}.json")
        done = subprocess.run(command, shell=True, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    seconds = round(time.monotonic() - started)
    found = [json.loads(path.read_text()) for path in sorted(OUT.glob(f"{part.name}*.json"))]
    counts: dict[str, int] = {}
    for result in found:
        for what, count in result["counts"].items():
            counts[what] = counts.get(what, 0) + count
    violations = sum(result["violations"] for result in found)
    if violations == 0 and (done.returncode != 0 or not counts):
        violations = 1
    result = {"counts": counts, "violations": violations, "seconds": seconds, "date": str(date.today())}
    (OUT / f"{part.name}.total").write_text(json.dumps(result))
    print(
        f"{part.name}: {seconds} s, {violations} violations" + (f": see {log}" if violations else ""),
        flush=True,
    )


def totals() -> dict[str, dict[str, Any]]:
    """What each part counted when it last ran, in the order of PARTS."""
    paths = {part.name: OUT / f"{part.name}.total" for part in PARTS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def table() -> str:
    """All counts as Markdown."""
    lines = [
        "| part | counted | | seconds | violations | run on |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for name, result in totals().items():
        end = [str(result["seconds"]), str(result["violations"]), result["date"]]
        for what, count in result["counts"].items() or {"nothing": 0}.items():
            lines.append(f"| {name} | {what} | {count:,} | {' | '.join(end)} |")
            name, end = "", ["", "", ""]
    return "\n".join(lines) + "\n"


def main() -> int:
    """0: every part was run, and none has found a violation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--page", action="store_true")
    args = parser.parse_args()
    if unknown := set(args.parts) - {part.name for part in PARTS}:
        parser.error(f"{', '.join(unknown)}: not one of {', '.join(part.name for part in PARTS)}")
    OUT.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONUNBUFFERED"] = "1"
    started = time.monotonic()
    if not args.page or args.parts:
        with ThreadPoolExecutor(JOBS) as threads:
            list(threads.map(run, [part for part in PARTS if not args.parts or part.name in args.parts]))
    if args.page:
        PAGE.write_text(_TABLE.sub(lambda _: table(), PAGE.read_text()))
    results = totals()
    missing = [part.name for part in PARTS if part.name not in results]
    violations = sum(result["violations"] for result in results.values())
    print(f"\n{table()}\n{time.monotonic() - started:.0f} s, {violations} violations", end="")
    print(f"; never run: {', '.join(missing)}" if missing else "")
    return 1 if violations or (missing and not args.parts) else 0


if __name__ == "__main__":
    sys.exit(main())
