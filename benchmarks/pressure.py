"""Pressure from outside: a store in a memory cgroup, beside a program that eats memory; a limit that moves.

Each row is a run of `millpond stress` (every byte verified):

- default limits in a memory cgroup of 512 MiB,
- the same in a cgroup of 4 GiB, beside a program that eats until 1 GiB is left, then until less is left than
  the floor that stores keep free, lets go, and begins again,
- with `--only machine`, the same in a cgroup of all memory that this machine has left, but for 1 GiB,
- the limit halved and doubled every second.

And eight processes that put and get objects which fit into memory, then 10 % more than fit, then ten times
as many: all must finish; the slowest single call is printed. Cgroups (version 1 or 2) are made below that of
this process, which needs root; without, those rows say so. Prints Markdown; exit status 0 if all is sound.

Run: python benchmarks/pressure.py [--seconds 30] [--only cgroup|beside|machine|vary|eight]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from harness import machine, markdown, save

import millpond
from millpond.units import format_bytes

MIB, GIB = 1 << 20, 1 << 30
LEFT = GIB
LET_GO = 700 * MIB
"""When the machine has no more than this, the program that eats memory lets go at once: others live here."""
HOLD_S = 3.0


class Group:
    """A memory cgroup of our own."""

    def __init__(self, limit: int) -> None:
        """Raises OSError where it may not be made."""
        self.version, parent = _own_group()
        self.path = parent / f"millpond-pressure-{os.getpid()}"
        self.path.mkdir()
        self.limit = limit
        try:
            self._file("limit_in_bytes", "max").write_text(str(limit))
        except OSError:
            self.remove()
            raise

    def _file(self, one: str, two: str) -> Path:
        return self.path / f"memory.{one if self.version == 1 else two}"

    @property
    def used(self) -> int:
        """Bytes in use, without the file pages that are as good as free."""
        stat = self._file("stat", "stat").read_text()
        found = re.search(r"^(?:total_)?inactive_file (\d+)", stat, re.M)
        return int(self._file("usage_in_bytes", "current").read_text()) - int(found[1] if found else 0)

    @property
    def oom_kills(self) -> int:
        """Processes that the system killed in it for want of memory."""
        found = re.search(r"oom_kill (\d+)", self._file("oom_control", "events").read_text())
        return int(found[1]) if found else 0

    def enter(self) -> None:
        """This process goes in, and what it starts."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self) -> None:
        """When all of its processes have ended."""
        for _ in range(100):
            with suppress(OSError):
                self.path.rmdir()
                return
            time.sleep(0.05)


def _own_group() -> tuple[int, Path]:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return 1, Path("/sys/fs/cgroup/memory" + path)
    line = Path("/proc/self/cgroup").read_text().splitlines()[-1]
    return 2, Path("/sys/fs/cgroup" + line.split(":", 2)[2])


@contextmanager
def group(limit: int) -> Iterator[Group]:
    """A cgroup for a while."""
    made = Group(limit)
    try:
        yield made
    finally:
        made.remove()


class Sampler(threading.Thread):
    """Notes what the system counts for the arena of a process, without becoming a member of its store; and
    the least that was left."""

    def __init__(self, pid: int, inside: Group | None) -> None:
        super().__init__(daemon=True)
        self._fds, self._inside, self._over = Path(f"/proc/{pid}/fd"), inside, threading.Event()
        self.committed: list[int] = []
        self.left = available()
        self.left_inside = inside.limit if inside else 0

    def run(self) -> None:
        while not self._over.wait(0.05):
            self.left = min(self.left, available())
            if self._inside is not None:
                self.left_inside = min(self.left_inside, self._inside.limit - self._inside.used)
            with suppress(OSError):
                for fd in self._fds.iterdir():
                    if "millpond-arena-" in os.readlink(fd):
                        self.committed.append(fd.stat().st_blocks * 512)

    def end(self) -> None:
        self._over.set()
        self.join()

    @property
    def turns(self) -> int:
        """How often it shrank by more than a tenth of its peak and grew by as much again."""
        step, low, high, falling, turns = max(self.committed, default=0) // 10, 0, 0, False, 0
        for now in self.committed:
            low, high = min(low, now), max(high, now)
            if falling and now > low + step:
                falling, high, turns = False, now, turns + 1
            elif not falling and now < high - step:
                falling, low = True, now
        return turns


def stress(*options: str, inside: Group | None = None) -> tuple[int, str, Sampler]:
    """Runs it; exit status, output, what was sampled."""
    process = subprocess.Popen(
        [sys.executable, "-m", "millpond.cli.main", "stress", *options],
        preexec_fn=inside.enter if inside else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    sampler = Sampler(process.pid, inside)
    sampler.start()
    output, _ = process.communicate()
    sampler.end()
    return process.returncode, output, sampler


def eat(group: Group) -> None:
    """Takes memory until LEFT of the cgroup is left, then less than stores keep free, lets go; and again."""
    group.enter()
    Path("/proc/self/oom_score_adj").write_text("1000")  # if anything must be killed, then this
    eaten: list[np.ndarray] = []
    while True:
        for left in (LEFT, 128 * MIB):
            hold_until = float("inf")
            while time.monotonic() < hold_until and available() > LET_GO:
                if group.limit - group.used > left:
                    eaten.append(np.ones(2 * MIB, "u8"))
                else:
                    hold_until = min(hold_until, time.monotonic() + HOLD_S)
                    time.sleep(0.02)
        eaten.clear()
        time.sleep(HOLD_S)


def available() -> int:
    """Bytes that this machine has left."""
    found = re.search(r"^MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    assert found is not None
    return int(found[1]) << 10


def row(what: str, status: int, output: str, sampler: Sampler, inside: Group | None) -> list[str]:
    """One line of the table; a failure prints what stress said."""
    kills = inside.oom_kills if inside else 0
    sound = status == 0 and kills == 0
    if not sound:
        print(output)
    seen = sampler.committed or [0]
    return [
        what,
        format_bytes(inside.limit) if inside else "none",
        f"{format_bytes(sampler.left_inside)}, {format_bytes(sampler.left)}" if inside else "",
        f"{format_bytes(min(seen))} to {format_bytes(max(seen))}",
        str(sampler.turns),
        str(kills),
        "sound" if sound else "NOT SOUND",
    ]


def in_cgroup(seconds: int) -> list[str]:
    """Default limits where there is little."""
    options = ["--memory", "default", "--data", "400MiB", "--largest", "8MiB", "--processes", "3"]
    with group(512 * MIB) as inside:
        found = stress(*options, "--seconds", str(seconds), inside=inside)
        return row("default limits in a cgroup", *found, inside)


def beside_an_eater(seconds: int) -> list[str]:
    """Another program's memory comes and goes."""
    return beside(seconds, 4 * GIB, "2GiB")


def on_a_full_machine(seconds: int) -> list[str]:
    """The same until the machine has 1 GiB left. The cgroup bounds the harm: what is killed is ours."""
    return beside(seconds, available() - LEFT, "8GiB")


def beside(seconds: int, limit: int, data: str) -> list[str]:
    """Stress with default limits and a program that eats memory, in one cgroup."""
    options = ["--memory", "default", "--data", data, "--largest", "16MiB", "--processes", "3"]
    with group(limit) as inside:
        eater = multiprocessing.get_context("fork").Process(target=eat, args=(inside,), daemon=True)
        eater.start()
        try:
            found = stress(*options, "--seconds", str(seconds), inside=inside)
        finally:
            eater.kill()
            eater.join()
        return row("beside a program that eats memory", *found, inside)


def varied(seconds: int) -> list[str]:
    """The limit is halved and doubled every second."""
    options = ["--memory", "512MiB", "--data", "1GiB", "--processes", "4", "--vary-limit"]
    return row("limit halved and doubled", *stress(*options, "--seconds", str(seconds)), None)


def put_and_get(address: str, count: int, seconds: float, seed: int, answers: multiprocessing.Queue) -> None:
    """One of eight: keeps `count` arrays, replaces or reads one of them at random; its slowest calls."""
    dice, size = random.Random(seed), 1 << 17
    slowest = {"put": 0.0, "get": 0.0}
    calls, failures = 0, ""
    with millpond.connect(address) as store:
        refs: list[millpond.ObjectRef | None] = [None] * count
        until = time.monotonic() + seconds
        try:
            while time.monotonic() < until:
                at, start = dice.randrange(count), time.perf_counter()
                ref = refs[at]
                if ref is None or dice.random() < 0.3:
                    refs[at] = store.put(np.full(size, at), timeout=30)
                    slowest["put"] = max(slowest["put"], time.perf_counter() - start)
                else:
                    assert store.get(ref, timeout=30)[-1] == at
                    slowest["get"] = max(slowest["get"], time.perf_counter() - start)
                calls += 1
        except Exception as error:
            failures = repr(error)
        answers.put((calls, slowest, failures))
        ref = None
        refs.clear()


def eight(share: float, seconds: float) -> list[str]:
    """Eight members whose arrays of 1 MiB take so much of 512 MiB together."""
    context, limit = multiprocessing.get_context("spawn"), 512 * MIB
    count = int(limit * share / MIB / 8)
    with millpond.Store(memory_limit=limit + 4 * MIB) as store:
        answers = context.Queue()
        processes = [
            context.Process(
                target=put_and_get, args=(store.address, count, seconds, seed, answers), daemon=True
            )
            for seed in range(8)
        ]
        for process in processes:
            process.start()
        found = [answers.get(timeout=seconds + 120) for _ in processes]
        for process in processes:
            process.join(60)
        faults = store.check()
    failures = [text for _, _, text in found if text] + faults
    for text in failures:
        print(text)
    return [
        f"{share:.0%} of memory",
        str(sum(calls for calls, _, _ in found)),
        *(f"{max(slowest[kind] for _, slowest, _ in found):.3f}" for kind in ("put", "get")),
        "NOT SOUND" if failures else "all finished",
    ]


RUNS = {"cgroup": in_cgroup, "beside": beside_an_eater, "vary": varied}


def main() -> int:
    """The runs, two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=30, help="of each run (%(default)s)")
    parser.add_argument("--only", choices=(*RUNS, "machine", "eight"))
    args = parser.parse_args()
    rows, tables = [], {}
    chosen = {"machine": on_a_full_machine} if args.only == "machine" else RUNS
    for name, run in chosen.items():
        if args.only in (None, name):
            try:
                rows.append(run(args.seconds))
            except OSError as error:
                rows.append([name, "", "", "", "", "", f"skipped: {error}"])
    if rows:
        header = ["stress", "cgroup", "least left there, on the machine", "committed"]
        header += ["shrank and grew again", "OOM kills", "verdict"]
        print(markdown(header, rows))
        tables["stress"] = rows
    if args.only in (None, "eight"):
        shares = [eight(share, args.seconds / 3) for share in (0.9, 1.1, 10.0)]
        print(
            "\n"
            + markdown(["eight putters and getters", "calls", "slowest put, s", "slowest get, s", ""], shares)
        )
        tables["eight"] = shares
    print(", ".join(f"{name} {text}" for name, text in machine().items()))
    print(f"saved to {save('pressure', tables)}")
    return int(any("NOT SOUND" in line for table in tables.values() for line in table))


if __name__ == "__main__":
    sys.exit(main())
