"""`millpond top`: what a picture shows, how high it is, and that it ends well."""

from __future__ import annotations

import io
import multiprocessing
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import millpond
from millpond.observe.top import Rates, _program, frame, look
from ponds import Pond
from workers import wait_until

COMMAND = [sys.executable, "-m", "millpond.cli.main", "top"]


def drawn(now: Any, rates: Rates | None = None, height: int = 40, width: int = 120) -> str:
    out = Console(file=io.StringIO(), width=width, highlight=False)
    out.print(frame("pond", now, rates or Rates(), height))
    return out.file.getvalue()  # type: ignore[attr-defined]


def hold_view(own: Any, ref: millpond.ObjectRef) -> int:
    own.kept = ref.get()
    return os.getpid()


def test_memory_members_objects_and_who_pins(pond: Pond) -> None:
    store = pond.store("8MiB", name="pond")
    refs = [store.put(np.ones(100_000), name="weights"), *(store.put(np.ones(130_000)) for _ in range(10))]
    worker = pond.member(store)
    pid = worker.run(hold_view, refs[0])
    store.spill(refs[1:3])
    before = look(store)
    store.get(refs[1])
    now = look(store)
    rates = Rates()
    rates.add(before, now)
    text = drawn(now, rates)
    assert "11 objects" in text and "on disk" in text
    assert "limit 8 MiB" in text and "committed" in text
    assert rates.restored[-1] > 0 and rates.spilled[-1] >= 0
    (weights,) = [line for line in text.splitlines() if "weights" in line][:1] or [""]
    assert f" {pid} " in weights
    (member,) = [line for line in text.splitlines() if line.split()[-4:-3] == [str(pid)]]
    assert "workers.py" in member and " 781." in member and member.rstrip().endswith(" 1")
    assert str(os.getpid()) not in text
    del refs


@pytest.mark.parametrize("height", [24, 40, 60])
def test_it_fits_the_terminal(pond: Pond, height: int) -> None:
    store = pond.store()
    refs = [store.put(i) for i in range(200)]
    text = drawn(look(store), height=height)
    assert len(text.splitlines()) <= max(height, 24)
    assert max(map(len, text.splitlines())) <= 120
    del refs


def test_an_empty_store_and_a_lowered_limit(pond: Pond) -> None:
    store = pond.store("4MiB")
    assert "nobody but this command" in drawn(look(store))
    ref = store.put(np.ones(300_000))
    view = ref.get()
    store.configure(memory_limit="1MiB")
    assert "OVER THE LIMIT" in drawn(look(store))
    del view, ref


def test_an_object_that_goes_meanwhile(store: millpond.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = store.put(np.ones(1000))
    view = ref.get()
    real = type(store).stats

    def refuse(*_: Any) -> Any:
        raise millpond.ObjectNotFoundError("gone")

    monkeypatch.setattr("millpond.observe.top.load_contained", refuse)
    assert real(store).pinned_bytes > 0
    assert "largest objects" in drawn(look(store))
    del view, ref


def test_children_of_multiprocessing_are_told_by_their_parent() -> None:
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    child.start()
    try:
        assert child.pid is not None
        pid = child.pid
        wait_until(lambda: _program(pid).endswith(f", child of {os.getpid()}"))  # an exec later
    finally:
        child.kill()
        child.join()
    assert _program(child.pid) == ""


def test_once_where_there_is_no_terminal(pond: Pond, tmp_path: Path) -> None:
    store = pond.store(name="shown")
    ref = store.put(np.ones(1000), name="it")
    svg = tmp_path / "top.svg"
    command = [*COMMAND, "shown", "--once", "--interval", "50ms"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "it" in output and "\x1b" not in output
    subprocess.run([*command, "--svg", str(svg)], capture_output=True, check=True)
    assert svg.read_text().startswith("<svg") and "shown" in svg.read_text()
    assert "url(http" not in svg.read_text().replace('"', "")
    del ref


def read_until(terminal: int, wanted: bytes) -> bytes:
    got, deadline = b"", time.monotonic() + 20
    while wanted not in got:
        assert time.monotonic() < deadline, got
        if select.select([terminal], [], [], 0.1)[0]:
            got += os.read(terminal, 65536)
    return got


def test_live_in_a_terminal_until_interrupted(pond: Pond) -> None:
    store = pond.store(name="live")
    ref = store.put(np.ones(1000), name="weights")
    mine, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    command = [*COMMAND, "live", "--interval", "50ms"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    try:
        assert b"\x1b[?1049h" in read_until(mine, b"weights")  # the other screen
        process.send_signal(signal.SIGINT)
        assert b"\x1b[?1049l" in read_until(mine, b"\x1b[?1049l")
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(mine)
    del ref


def test_it_ends_with_an_error_where_there_is_no_store() -> None:
    done = subprocess.run([*COMMAND, "no such store"], capture_output=True, text=True)
    assert done.returncode == 2 and "no such store" in done.stderr
