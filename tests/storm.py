"""Processes that use one store at random while some are killed and some are stopped; then the reckoning.

Every operation is recorded, and the history checked (`history`). At the end the store must be sound, and
nothing may be left in it: no object, no byte of memory in use, no file, no member. No process may end by
itself; what each one has said on stderr is kept, and its last lines are shown.

This process works as well, and nobody kills it. A soak is many rounds in one store: what this process has
(memory, descriptors, threads), what the store has beyond its books (memory, files) and what the table has
taken must be the same after every round as after the first.

With the build that has failpoints, processes can be made to sleep for a moment between any two steps that
others may see, so that races which want a long moment come about in seconds.
Not here: what each process does (`storm_hand`).

Run: python tests/storm.py [--seconds 60] [--rounds 1] [--processes 8] [--memory 64MiB] [--segment 128MiB]
    [--pause 0.4] [--no-kill] [--seed N] [--counts FILE]
    PYTHONPATH=build/failpoints MILLPOND_FAILPOINT_JITTER=20:3000 python tests/storm.py --memory 24MiB
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import psutil

import millpond
import millpond.spill.segments
import storm_hand
from history import Verdict, check, read
from millpond.units import parse_bytes
from ponds import descriptor_of, settled
from proof import write_counts

SLACK = {"private memory": 32 << 20, "table": 1 << 20, "descriptors": 1, "threads": 1}
"""What may come and go without being a leak: bytes, or pieces."""
SAID_MAX = 1 << 20
"""Bytes of what a process says that are kept, about."""


class Weather(NamedTuple):
    """How rough it is."""

    kill: bool = True
    pause: float = 0.4
    """Seconds from one blow to the next, at most."""
    segment_bytes: int = millpond.spill.segments.SEGMENT_BYTES
    """Where a spill file ends: short ones come and go."""


@dataclass
class Outcome:
    """What a storm was, and what it left."""

    kills: int
    stops: int
    verdict: Verdict
    left: dict[str, Any]
    said: list[str]
    """The ends of what the processes said, of those that said anything."""


class Child:
    """A hand that is a process of its own, and what it says."""

    def __init__(self, address: str, history: Path, seed: int, segment_bytes: int) -> None:
        self._said = history.with_suffix(".said")
        with open(self._said, "ab") as said:  # appending: what is cut off does not leave a hole
            program = [sys.executable, "-X", "faulthandler", storm_hand.__file__]
            self.process = subprocess.Popen(
                [*program, address, history, str(seed), str(segment_bytes)],
                stderr=said,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )

    def said(self, nbytes: int = 4000) -> str:
        """The end of what it has said so far."""
        with open(self._said, "rb") as said:
            said.seek(max(0, os.fstat(said.fileno()).st_size - nbytes))
            return said.read().decode(errors="replace")

    def must_work(self) -> None:
        """Raises AssertionError, with its last words, if it has ended."""
        if self.process.poll() is not None:
            raise AssertionError(
                f"process {self.process.pid} ended by itself with {self.process.returncode}:\n{self.said()}"
            )
        if self._said.stat().st_size > SAID_MAX:
            os.truncate(self._said, 0)

    def stop(self, seconds: float) -> None:
        """Stops it for so long."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Kills it, and waits until it is gone."""
        self.process.kill()
        self.process.wait()


class Storm:
    """The processes, and what comes over them."""

    def __init__(
        self, store: millpond.Store, directory: Path, processes: int, weather: Weather, seed: int
    ) -> None:
        self._store, self._directory, self._weather = store, directory, weather
        self._dice = random.Random(seed)
        self._started = self.kills = self.stops = 0
        self._children: list[Child] = []
        self._gone: list[str] = []
        self._hand = storm_hand.Hand(*self._assignment())
        for _ in range(processes):
            self._children.append(self._start())

    def _assignment(self) -> tuple[str, Path, int]:
        self._started += 1
        history = self._directory / f"{self._started}.log"
        return self._store.address, history, self._dice.getrandbits(60)

    def _start(self) -> Child:
        return Child(*self._assignment(), self._weather.segment_bytes)

    def rage(self, seconds: float) -> None:
        """For so long somebody is stopped or killed again and again."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._hand.work(self._dice.uniform(0.1, 1) * self._weather.pause)
            at = self._dice.randrange(len(self._children))
            self._children[at].must_work()
            if self._dice.random() < 0.3:
                self.stops += 1
                self._children[at].stop(self._dice.uniform(0.01, 0.6))
            elif self._weather.kill:
                self.kills += 1
                self._end(self._children[at])
                self._children[at] = self._start()

    def _end(self, child: Child) -> None:
        child.kill()
        if said := child.said():
            self._gone.append(said)

    def kill_all(self) -> None:
        """Idempotent."""
        while self._children:
            self._end(self._children.pop())

    def end(self) -> Outcome:
        """Kills them all, and reckons."""
        for child in self._children:
            child.must_work()
        self.kill_all()
        self._hand.end()
        for number in range(storm_hand.NAMES):
            with suppress(millpond.ObjectNotFoundError):
                self._store.delete(f"name {number}")
        left = settled(self._store, timeout=20)
        events = [event for path in sorted(self._directory.glob("*.log")) for event in read(path)]
        return Outcome(self.kills, self.stops, check(events), left, self._gone)


def account(store: millpond.Store, directory: Path) -> dict[str, int]:
    """What this process has, what the store has that its books do not say, and what the table has taken."""
    process = psutil.Process()
    arena = os.fstat(descriptor_of(store, "arena")).st_blocks * 512
    files = [path for place in ("registry", "spill") for path in (directory / place).rglob("*")]
    return {
        "private memory": process.memory_full_info().uss,
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "files": len(files),
        "bytes in files": sum(path.lstat().st_blocks * 512 for path in files if path.is_file()),
        "memory beyond the books": max(0, arena - store.stats().committed_bytes),
        "table": store.stats().table_bytes,
    }


def grown(first: dict[str, int], now: dict[str, int]) -> dict[str, tuple[int, int]]:
    """What has leaked since `first`, before and now."""
    return {key: (first[key], now[key]) for key in now if now[key] > first[key] + SLACK.get(key, 0)}


def run(
    seconds: float, processes: int, memory: str, weather: Weather, seed: int, rounds: int = 1
) -> list[Outcome]:
    """One storm after another over one store, in directories of its own."""
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="storm-") as name:
        directory = Path(name)
        os.environ["MILLPOND_DIR"] = str(directory / "registry")
        with millpond.Store(memory, spill_dir=directory / "spill") as store:
            first: dict[str, int] = {}
            for number in range(rounds):
                (log := directory / str(number)).mkdir()
                storm = Storm(store, log, processes, weather, seed + number)
                try:
                    storm.rage(seconds)
                    outcomes.append(storm.end())
                finally:
                    storm.kill_all()
                now = account(store, directory)
                first = first or now
                outcomes[-1].left.update(grown(first, now))
                if rounds > 1:
                    print(f"round {number + 1}: {now}", flush=True)
                shutil.rmtree(log)
    return outcomes


def main() -> int:
    """0: nothing is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--memory", default="64MiB")
    parser.add_argument("--segment", type=parse_bytes, default=Weather().segment_bytes)
    parser.add_argument("--pause", type=float, default=Weather().pause)
    parser.add_argument("--no-kill", action="store_true")
    parser.add_argument("--seed", type=int, default=time.time_ns())
    parser.add_argument("--counts", type=Path)
    args = parser.parse_args()
    weather = Weather(not args.no_kill, args.pause, args.segment)
    print(f"seed {args.seed}", flush=True)
    outcomes = run(args.seconds, args.processes, args.memory, weather, args.seed, args.rounds)
    for outcome in outcomes:
        for fault in [*outcome.said[:20], *outcome.verdict.faults[:20], *map(str, outcome.left.items())]:
            print(fault)
    gets, refusals, kills, stops, violations = map(sum, zip(*map(_figures, outcomes), strict=True))
    print(
        f"{gets} gets checked, {refusals} refused, {kills} kills, {stops} stops, "
        f"{args.rounds} times {args.seconds:g} s, seed {args.seed}: {violations} violations"
    )
    counts = {"gets checked": gets, "kills at random": kills, "stops at random": stops}
    write_counts(args.counts, counts, violations)
    return 1 if violations else 0


def _figures(outcome: Outcome) -> tuple[int, ...]:
    verdict = outcome.verdict
    wrong = len(verdict.faults) + len(outcome.left)
    return verdict.gets, verdict.refusals, outcome.kills, outcome.stops, wrong


if __name__ == "__main__":
    sys.exit(main())
