"""The check of histories sees what cannot have been; a short storm with deaths has none of it."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

import storm
from failpoints import BUILD
from history import NEVER, Event, Recorder, check, read
from millpond.hot import punch_hole
from millpond.spill.disk import aligned_buffer
from millpond.spill.record import PAGE
from ponds import Pond, descriptor_of

PUT = Event("put", "a", 0, 10, "ok", 7)
DELETE = Event("delete", "a", 100, 200, "ok", 0)


@pytest.mark.parametrize(
    ("get", "fault"),
    [
        (Event("get", "a", 20, 30, "ok", 7), False),
        (Event("get", "a", 150, 300, "ok", 7), False),
        (Event("get", "a", 150, 160, "deleted", 0), False),
        (Event("get", "a", 300, 310, "deleted", 0), False),
        (Event("get", "a", 20, 30, "ok", 8), True),
        (Event("get", "a", 20, 30, "wrong", 0), True),
        (Event("get", "a", 201, 300, "ok", 7), True),
        (Event("get", "a", 20, 99, "deleted", 0), True),
        (Event("get", "a", 20, 30, "missing", 0), True),
        (Event("get", "a", 20, 30, "lost", 0), True),
        (Event("get", "a", 20, 30, "StoreFullError", 0), False),
        (Event("get", "a", 300, NEVER, "killed", 0), False),
    ],
)
def test_what_can_have_been(get: Event, fault: bool) -> None:
    assert bool(check([PUT, DELETE, get]).faults) == fault


def test_a_delete_that_was_killed_may_have_happened() -> None:
    killed = DELETE._replace(end=NEVER, outcome="killed")
    for outcome in ("ok", "deleted"):
        assert check([PUT, killed, Event("get", "a", 300, 310, outcome, 7)]).faults == []


def test_recorded_is_read(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "log")
    first = recorder.begin("put")
    recorder.end(first, "ok", "a", 7)
    recorder.begin("get", "a")
    with open(tmp_path / "log", "a") as file:
        file.write('{"n": 2, "out"')  # killed while it wrote
    put, get = read(tmp_path / "log")
    assert (put.operation, put.object, put.outcome, put.seed) == ("put", "a", "ok", 7)
    assert put.start <= put.end < get.start
    assert (get.object, get.end, get.outcome) == ("a", NEVER, "killed")


@pytest.mark.parametrize("kill", [False, True])
def test_a_storm(kill: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_DIR", "")  # put back afterwards
    weather = storm.Weather(kill)
    outcomes = storm.run(seconds=3, processes=4, memory="24MiB", weather=weather, seed=1, rounds=2)
    assert [outcome.verdict.faults for outcome in outcomes] == [[], []]
    assert [outcome.left for outcome in outcomes] == [{}, {}]
    assert all(outcome.verdict.gets > 50 for outcome in outcomes)
    assert bool(sum(outcome.kills for outcome in outcomes)) == kill


def test_a_storm_of_processes_that_dawdle(monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs a long moment between two steps: here each step may be followed by one."""
    monkeypatch.setenv("MILLPOND_DIR", "")
    monkeypatch.setenv("MILLPOND_FAILPOINT_JITTER", "20:3000")
    monkeypatch.setattr(sys, "path", [str(BUILD), *sys.path])  # of the processes that it starts
    weather = storm.Weather(pause=0.2, segment_bytes=256 << 10)
    (outcome,) = storm.run(seconds=8, processes=6, memory="24MiB", weather=weather, seed=1)
    assert (outcome.verdict.faults, outcome.left) == ([], {})
    assert outcome.verdict.gets > 50 and outcome.kills > 5


def test_each_account_is_kept(pond: Pond, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a soak would miss if an account did not move."""
    monkeypatch.setattr(storm, "SLACK", {"private memory": 1 << 20})
    store = pond.store()
    kept = [store.put(1)]
    before = storm.account(store, tmp_path)
    assert storm.grown(before, before) == {}
    descriptor = os.open("/dev/null", os.O_RDONLY)
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    ballast = aligned_buffer(8 << 20)
    ballast[:] = b"x" * len(ballast)
    kept += [store.put(number) for number in range(2000)]
    leak = pond.spill / "leak"
    leak.write_bytes(bytes(5000))
    arena = descriptor_of(store, "arena")
    os.pwrite(arena, b"x", far := os.fstat(arena).st_size - PAGE)
    try:
        assert set(storm.grown(before, storm.account(store, tmp_path))) == set(before)
    finally:
        stop.set()
        thread.join()
        os.close(descriptor)
        punch_hole(arena, far, PAGE)
        leak.unlink()
