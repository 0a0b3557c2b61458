"""Timelines: what is recorded, by whom, and that nothing is left when they are off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import millpond
from millpond.observe.timeline import read, summary
from millpond.store import recorder
from millpond.store.ahead import _Work
from millpond.store.restore import Restore
from millpond.store.room import Room
from ponds import Pond


def names(path: Path, pid: int | None = None) -> set[str]:
    return {event["name"] for event in read(path) if pid in (None, event["pid"])} - {"process_name"}


def work(store: millpond.Store) -> None:
    """Puts more than memory holds, and reads all of it."""
    refs = [store.put({"x": np.full(150_000, i, float), "n": i}) for i in range(12)]
    assert [store.get(ref)["n"] for ref in refs] == list(range(12))
    assert len(store.get(refs[:3])) == 3
    store.create(10, float).seal()
    store.wait(refs[:1])


def methods() -> list[Any]:
    return [vars(owner).get(name) for owner, name, *_ in recorder._POINTS] + [
        millpond.Store.put,
        millpond.Store.get,
    ]


def test_spans_of_all_kinds_with_their_bytes(pond: Pond, tmp_path: Path) -> None:
    before = methods()
    path = tmp_path / "trace.json"
    store = pond.store("4MiB")
    with millpond.timeline(path):
        assert methods() != before
        work(store)
    assert methods() == before
    work(store)  # is not recorded
    assert names(path) >= {"put", "get", "create", "wait", "deserialize", "make room", "clean", "restore"}
    spans = {spans.name: spans for spans in summary(read(path))}
    assert len(spans["put"].durations) == 12
    assert spans["put"].bytes >= 12 * 1_200_000
    assert spans["clean"].bytes > 4_000_000
    assert 0 < sum(spans["deserialize"].durations) < sum(spans["get"].durations)
    assert path.stat().st_mode & 0o777 == 0o600


def test_spans_lie_inside_the_call_that_made_them(pond: Pond, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    store = pond.store("4MiB")
    ref = store.put({"x": np.ones(1000)})
    with millpond.timeline(path):
        ref.get()
    inner, outer = [event for event in read(path) if event["ph"] == "X"]
    assert (inner["name"], outer["name"]) == ("deserialize", "get")
    assert outer["args"] == {"object": ref.id.partition("-")[2], "bytes": ref.size}
    assert outer["ts"] <= inner["ts"]
    assert inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + 0.01
    assert inner["tid"] == outer["tid"]


def test_an_error_is_a_span_too(pond: Pond, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    store = pond.store("4MiB")
    ref = store.put(1)
    store.delete(ref)
    with millpond.timeline(path), pytest.raises(millpond.ObjectDeletedError):
        ref.get()
    assert names(path) == {"get"}


def test_forked_and_started_processes_write_into_the_same_file(pond: Pond, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    store = pond.store("4MiB")

    def read_it(own: Any, ref: millpond.ObjectRef) -> int:
        ref.get()
        return os.getpid()

    with millpond.timeline(path):
        ref = store.put(np.ones(100))
        child, program = pond.worker(), pond.member(store)
        pids = [child.run(read_it, ref), program.run(read_it, ref)]
        pond.end_workers()
    assert recorder.VARIABLE not in os.environ
    for pid in pids:
        assert "get" in names(path, pid)
    assert "put" in names(path, os.getpid())
    assert {event["pid"] for event in read(path) if event["ph"] == "M"} == {os.getpid(), *pids}


def test_a_killed_process_leaves_what_it_did(pond: Pond, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    store = pond.store("4MiB")

    def die(own: Any, address: str) -> None:
        millpond.connect(address).put(5)
        os.kill(os.getpid(), 9)

    with millpond.timeline(path):
        worker = pond.worker()
        worker.start(die, store.address)
        with pytest.raises((EOFError, ConnectionResetError)):
            worker.result()
        worker.end()
    assert names(path, worker.pid) == {"make room", "put"}


def test_the_environment_variable_appends(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    script = "import millpond\nwith millpond.Store('1MiB') as s: s.put(1)"
    for _ in range(2):
        environment = {**os.environ, recorder.VARIABLE: str(path), "MILLPOND_DIR": str(tmp_path / "r")}
        subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    text = path.read_text()
    assert text.startswith("[\n{") and text.count('"put"') == 2
    assert json.loads(text.rstrip().rstrip(",") + "]") == read(path)


def test_one_at_a_time_and_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text("old")
    other = millpond.timeline(tmp_path / "other.json")
    with millpond.timeline(path), pytest.raises(ValueError, match="recorded already"), other:
        pass
    assert path.read_text().startswith("[\n")
    with pytest.raises(FileNotFoundError), millpond.timeline(tmp_path / "no" / "where.json"):
        pass
    assert recorder._trace is None and recorder.VARIABLE not in os.environ


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_ends_the_timeline_not_the_program(
    pond: Pond, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = methods()
    store = pond.store("4MiB")
    with millpond.timeline(tmp_path / "trace.json"):
        assert recorder._trace is not None
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, recorder._trace.descriptor)
        os.close(full)
        assert store.get(store.put(5)) == 5
        assert methods() == before
    assert "No space left" in caplog.text
    assert {record.name for record in caplog.records} == {"millpond"}


def test_all_points_exist() -> None:
    assert {owner for owner, *_ in recorder._POINTS} >= {millpond.Store, Restore, Room, _Work}
    assert all(callable(getattr(owner, name)) for owner, name, *_ in recorder._POINTS)


def test_the_command_sums_it_up(pond: Pond, tmp_path: Path) -> None:
    path, strict = tmp_path / "trace.json", tmp_path / "strict.json"
    with millpond.timeline(path):
        work(pond.store("4MiB"))
    command = [sys.executable, "-m", "millpond.cli.main", "timeline", str(path), "--json", str(strict)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f" {os.getpid()}" in output and "restore" in output and "MiB" in output
    assert json.loads(strict.read_text()) == read(path)
    (tmp_path / "none.json").write_text("nothing")
    bad = subprocess.run([*command[:-3], str(tmp_path / "none.json")], capture_output=True, text=True)
    assert bad.returncode == 2 and "is no timeline" in bad.stderr
