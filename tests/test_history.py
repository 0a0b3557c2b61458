"""The check of histories sees what cannot have been; a short storm with deaths has none of it."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import psutil
import pytest

import storm
from history import NEVER, Event, Recorder, check, read
from millpond.hot import punch_hole
from millpond.spill.disk import aligned_buffer
from millpond.spill.record import PAGE
from ponds import Pond, descriptor_of
from workers import wait_until

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


def test_a_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A glance: `make check-storm` takes its time, also with processes that dawdle between any two steps."""
    monkeypatch.setenv("MILLPOND_DIR", "")  # put back afterwards
    outcomes = storm.run(seconds=2, processes=4, memory="24MiB", weather=storm.Weather(), seed=1, rounds=2)
    assert [outcome.verdict.faults for outcome in outcomes] == [[], []]
    assert [outcome.left for outcome in outcomes] == [{}, {}]
    assert all(outcome.verdict.gets > 50 and outcome.kills for outcome in outcomes)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("raise ValueError('by its own fault')", "ended by itself with 1:.*ValueError: by its own fault"),
        ("import os; os.abort()", "ended by itself with -6:.*Fatal Python error: Aborted"),
        (f"import sys; sys.stderr.write('line\\n' * {storm.SAID_MAX}); sys.exit('last')", "with 1:.*last"),
    ],
)
def test_a_process_that_ends_by_itself_is_a_fault(
    program: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its last words, and not too many of them."""
    (hand := tmp_path / "hand.py").write_text(program)
    monkeypatch.setattr(storm.storm_hand, "__file__", str(hand))
    child = storm.Child("/nowhere", tmp_path / "1.log", 1, 1)
    child.process.wait()
    with pytest.raises(AssertionError, match=f"(?s){words}") as raised:
        child.must_work()
    assert len(str(raised.value)) < 5000


def test_what_a_process_says_does_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (hand := tmp_path / "hand.py").write_text("import sys\nwhile True: sys.stderr.write('line\\n' * 1000)")
    monkeypatch.setattr(storm.storm_hand, "__file__", str(hand))
    child = storm.Child("/nowhere", tmp_path / "1.log", 1, 1)
    said = tmp_path / "1.said"
    try:
        wait_until(lambda: said.stat().st_size > storm.SAID_MAX)
        child.stop(0.1)
        child.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(child.process.pid).status() == psutil.STATUS_STOPPED)
        child.must_work()
        assert said.stat().st_size == 0
    finally:
        child.kill()


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
