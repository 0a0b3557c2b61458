"""Instructions of the fast paths, counted by callgrind and compared with the figures of instructions.json.

Counts do not depend on what else the machine does, so a change of a few instructions shows. `own` are those
of the compiled part of millpond alone, `all` also those of CPython, NumPy and the C library. They hold for
one combination of Python, NumPy, compiler and architecture; for any other they are printed, not compared.
Needs valgrind. Exit status 1: some operation takes over 5 % more instructions than recorded.

Run: python benchmarks/instructions.py [--record]
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from harness import markdown

import millpond

RECORD = Path(__file__).with_suffix(".json")
CALLS = 2000
TOLERANCE = 0.05
MARK = "getppid"  # each call of it ends one part of callgrind's counts

Counts = dict[str, dict[str, int]]


def operations(store: millpond.Store) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is counted; the first does nothing, and is taken off the others."""
    value = {"step": 1, "name": "text", "list": [1, 2, 3]}
    small, array = store.put(value), store.put(np.zeros(128))
    plain, block = np.zeros(128), np.zeros(2048)
    large = store.put(np.zeros(1 << 21))
    yield "nothing", lambda: None
    yield "get dict", lambda: store.get(small)
    yield "get array", lambda: store.get(array)
    yield "get array of 16 MB", lambda: store.get(large)
    yield "put dict and drop it", lambda: store.put(value)
    yield "put array of 1 KB and drop it", lambda: store.put(plain)
    yield "put array of 16 KB and drop it", lambda: store.put(block)
    yield "copy ref and drop it", lambda: small.__copy__()


def work() -> None:
    """The process that is counted: each operation CALLS times, between two marks."""
    gc.disable()
    with millpond.Store(memory_limit="64MiB", spill_limit=0) as store:
        for _, call in operations(store):
            for _ in range(100):
                call()
            os.getppid()
            for _ in range(CALLS):
                call()
            os.getppid()


def count() -> Counts:
    """Instructions per call of each operation."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "counts"
        command = [
            "valgrind",
            "--tool=callgrind",
            f"--callgrind-out-file={out}",
            f"--dump-before={MARK}",
            sys.executable,
            __file__,
            "--work",
        ]
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"valgrind failed:\n{done.stderr}")
        parts = [read(Path(f"{out}.{number}")) for number in range(2, 2 * len(names()) + 1, 2)]
    empty, *others = parts
    return {
        name: {key: round((part[key] - empty[key]) / CALLS) for key in part}
        for name, part in zip(names()[1:], others, strict=True)
    }


def names() -> list[str]:
    """The operations, in the order in which they are counted."""
    with millpond.Store(memory_limit="64MiB", spill_limit=0) as store:
        return [name for name, _ in operations(store)]


def read(path: Path) -> dict[str, int]:
    """The sums of one part: of all instructions, and of those in millpond's compiled module."""
    own = total = 0
    objects: dict[str, str] = {}
    inside = called = False
    for line in path.read_text().splitlines():
        if match := re.match(r"ob=\((\d+)\)(?: (.*))?", line):
            objects.setdefault(match[1], match[2] or "")
            inside = "/millpond/" in objects[match[1]]
        elif match := re.match(r"cob=\((\d+)\)(?: (.*))?", line):
            objects.setdefault(match[1], match[2] or "")
        elif line.startswith("calls="):
            called = True
        elif line[:1].isdigit() or line[:1] in "+-*":
            if not called:  # the line after `calls=` is what the callee took
                cost = sum(map(int, line.split()[1:2]))  # none written is none taken
                total += cost
                own += cost if inside else 0
            called = False
    return {"own": own, "all": total}


def toolchain() -> dict[str, str]:
    """What the counts depend on."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "compiler": sysconfig.get_config_var("CC").split()[0]
        + " "
        + subprocess.run(["gcc", "-dumpfullversion"], capture_output=True, text=True).stdout.strip(),
        "machine": platform.machine(),
    }


def main() -> int:
    """Counts, and compares or records."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", action="store_true", help="write the figures to instructions.json")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work()
        return 0
    if shutil.which("valgrind") is None:
        print("valgrind is not installed: instructions are not counted")
        return 0
    counts = count()
    known = json.loads(RECORD.read_text()) if RECORD.exists() else {"toolchain": {}, "counts": {}}
    rows = [
        [name, str(found["own"]), str(found["all"]), str(known["counts"].get(name, {}).get("own", "-"))]
        for name, found in counts.items()
    ]
    print(markdown(["instructions", "own", "all", "own, recorded"], rows))
    if args.record:
        RECORD.write_text(json.dumps({"toolchain": toolchain(), "counts": counts}, indent=2) + "\n")
        return 0
    if known["toolchain"] != toolchain():
        print(f"recorded for {known['toolchain']}, this is {toolchain()}: not compared")
        return 0
    slower = [
        name
        for name, found in counts.items()
        if found["own"] > known["counts"].get(name, found)["own"] * (1 + TOLERANCE)
    ]
    if slower:
        print(f"more instructions than recorded: {', '.join(slower)}. Intended? Then run with --record")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
