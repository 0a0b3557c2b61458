"""Processes that use one store at random while some are killed and some are stopped; then the reckoning.

Every operation is recorded, and the history checked (`history`). At the end the store must be sound, and
nothing may be left in it: no object, no byte of memory in use, no file, no member.

This process works as well, and nobody kills it. A soak is many rounds in one store: what this process has
(memory, descriptors, threads), what the store has beyond its books (memory, files) and what the table has
taken must be the same after every round as after the first.

With the build that has failpoints, processes can be made to sleep for a moment between any two steps that
others may see, so that races which want a long moment come about in seconds.

Run: python tests/storm.py [--seconds 60] [--rounds 1] [--processes 8] [--memory 64MiB] [--segment 128MiB]
    [--pause 0.4] [--no-kill] [--seed N] [--counts FILE]
    PYTHONPATH=build/failpoints MILLPOND_FAILPOINT_JITTER=20:3000 python tests/storm.py --memory 24MiB
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

import millpond
import millpond.spill.segments
from history import Recorder, Verdict, check, read
from millpond.units import parse_bytes
from ponds import descriptor_of, settled
from proof import write_counts

NAMES = 48
KEEP = 12
SLACK = {"private memory": 32 << 20, "table": 1 << 20, "descriptors": 1, "threads": 1}
"""What may come and go without being a leak: bytes, or pieces."""
SIZES = (8, 100, 1000, 3000, 20_000, 100_000, 1_200_000)
"""Items of 8 bytes: a value of each way that there is to disk."""
SPAWN = multiprocessing.get_context("spawn")


class Hand:
    """One process at work."""

    def __init__(self, address: str, history: Path, seed: int) -> None:
        self._store = millpond.connect(address)
        self._record = Recorder(history)
        self._dice = random.Random(seed)
        self._held: list[Any] = []
        self._ways = (self._put, self._get, self._get, self._get, self._take, self._delete, self._spill)

    def work(self, seconds: float) -> None:
        """For so long, and one operation at least."""
        end = time.monotonic() + seconds
        while True:
            try:
                self._dice.choice(self._ways)()
            except millpond.ObjectNotFoundError:
                pass  # a name that nobody has given yet
            except (millpond.StoreFullError, millpond.StoreBusyError, millpond.SpillError):
                self._held.clear()
            while len(self._held) > KEEP:
                self._held.pop(self._dice.randrange(len(self._held)))
            if time.monotonic() > end:
                return

    def end(self) -> None:
        """It holds nothing any more."""
        self._held.clear()
        self._record.close()

    def _name(self) -> str:
        return f"name {self._dice.randrange(NAMES)}"

    def _put(self) -> None:
        seed = self._dice.getrandbits(60) | 1
        value = np.full(self._dice.choice(SIZES), seed, np.uint64)
        number = self._record.begin("put")
        ref = self._store.put({"seed": seed, "value": value} if seed & 2 else value)
        self._record.end(number, "ok", ref.id, seed)
        self._store._name_set(self._name(), ref, True)
        self._held.append(ref)

    def _take(self) -> None:
        self._held.append(self._store.lookup(self._name()))

    def _get(self) -> None:
        if not self._held:
            return
        ref = self._dice.choice(self._held)
        number = self._record.begin("get", ref.id)
        seed = 0
        try:
            seed = _seed_of(ref.get(timeout=20))
            outcome = "ok" if seed else "wrong"
        except millpond.ObjectDeletedError:
            outcome = "deleted"
        except millpond.ObjectLostError as error:
            outcome = "lost"
            print(error, file=sys.stderr, flush=True)  # the history knows no reasons
        except millpond.ObjectNotFoundError:
            outcome = "missing"
        except (millpond.MillpondError, OSError) as error:
            outcome = type(error).__name__
        self._record.end(number, outcome, seed=seed)

    def _delete(self) -> None:
        if self._held and self._dice.random() < 0.3:
            ref = self._held.pop(self._dice.randrange(len(self._held)))
            number = self._record.begin("delete", ref.id)
            self._store.delete(ref)
            self._record.end(number, "ok")

    def _spill(self) -> None:
        if self._held:
            self._store.spill(self._held[: self._dice.randrange(4)])


def _seed_of(value: Any) -> int:
    """What every item of the value says; 0: they differ."""
    array = value["value"] if isinstance(value, dict) else value
    first = int(array[0])
    whole = bool((array == first).all()) and (not isinstance(value, dict) or value["seed"] == first)
    return first if whole else 0


def _run(address: str, history: Path, seed: int, segment_bytes: int) -> None:
    millpond.spill.segments.SEGMENT_BYTES = segment_bytes  # type: ignore[misc]
    Hand(address, history, seed).work(float("inf"))


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


class Storm:
    """The processes, and what comes over them."""

    def __init__(
        self, store: millpond.Store, directory: Path, processes: int, weather: Weather, seed: int
    ) -> None:
        self._store, self._directory, self._weather = store, directory, weather
        self._dice = random.Random(seed)
        self._started = self.kills = self.stops = 0
        self._hand = Hand(*self._assignment())
        self._processes = [self._start() for _ in range(processes)]

    def _assignment(self) -> tuple[str, Path, int]:
        self._started += 1
        history = self._directory / f"{self._started}.log"
        return self._store.address, history, self._dice.getrandbits(60)

    def _start(self) -> Any:
        arguments = (*self._assignment(), self._weather.segment_bytes)
        process = SPAWN.Process(target=_run, args=arguments, daemon=True)
        process.start()
        return process

    def rage(self, seconds: float) -> None:
        """For so long somebody is stopped or killed again and again."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._hand.work(self._dice.uniform(0.1, 1) * self._weather.pause)
            at = self._dice.randrange(len(self._processes))
            if not self._processes[at].is_alive():
                raise AssertionError(f"a process ended by itself with {self._processes[at].exitcode}")
            if self._dice.random() < 0.3:
                self._stop(self._processes[at])
            elif self._weather.kill:
                self._kill(at)

    def _stop(self, process: Any) -> None:
        self.stops += 1
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(self._dice.uniform(0.01, 0.6))
        os.kill(process.pid, signal.SIGCONT)

    def _kill(self, at: int) -> None:
        self.kills += 1
        self._processes[at].kill()
        self._processes[at].join()
        self._processes[at] = self._start()

    def end(self) -> Outcome:
        """Kills them all, and reckons."""
        for process in self._processes:
            process.kill()
            process.join()
        self._hand.end()
        for number in range(NAMES):
            with suppress(millpond.ObjectNotFoundError):
                self._store.delete(f"name {number}")
        left = settled(self._store, timeout=20)
        events = [event for path in sorted(self._directory.glob("*.log")) for event in read(path)]
        return Outcome(self.kills, self.stops, check(events), left)


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
                storm.rage(seconds)
                outcomes.append(storm.end())
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
    outcomes = run(args.seconds, args.processes, args.memory, weather, args.seed, args.rounds)
    for outcome in outcomes:
        for fault in [*outcome.verdict.faults[:20], *map(str, outcome.left.items())]:
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
