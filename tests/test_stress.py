"""The parts of `millpond stress`: a test of pressure is worth what its judges are worth."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from millpond.cli.main import main
from millpond.cli.stress import command
from millpond.cli.stress.books import Books
from millpond.cli.stress.director import Director
from millpond.cli.stress.hand import Command, Hand
from millpond.cli.stress.values import SIZE_MAX, Values, difference
from millpond.cli.watch import Watch
from workers import wait_until


def small_keys(count: int) -> list[int]:
    values = Values(3)
    return [key for key in range(10 * count) if values.size(key) < 1 << 20][:count]


def test_values_are_the_same_everywhere() -> None:
    code = "import pickle, sys; from millpond.cli.stress.values import Values; v = Values(3)\n"
    code += f"sys.stdout.buffer.write(pickle.dumps([v.make(k) for k in {small_keys(20)}]))"
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, timeout=50
    ).stdout
    values = Values(3)
    for key, value in zip(small_keys(20), pickle.loads(elsewhere), strict=True):
        assert values.fault(key, value) == ""


def test_values_have_all_sizes_and_kinds() -> None:
    values = Values(1)
    sizes = [values.size(key) for key in range(3000)]
    assert 0 in sizes
    assert SIZE_MAX in sizes
    assert sum(size < 1000 for size in sizes) > 500
    assert sum(size > 1 << 20 for size in sizes) > 300
    assert {type(values.make(key)) for key in range(200) if sizes[key] < 1 << 20} == {
        np.ndarray,
        bytes,
        dict,
        list,
        str,
    }


def test_another_key_or_seed_is_a_fault() -> None:
    values = Values(3)
    for key in small_keys(40):
        if values.size(key) > 8:
            assert values.fault(key, values.make(key + 1))
            assert Values(4).fault(key, values.make(key))


@pytest.mark.parametrize(
    ("expected", "value"),
    [
        (b"abc", b"abd"),
        (b"abc", bytearray(b"abc")),
        (np.zeros(4), np.zeros(4, np.float32)),
        (np.zeros(4), np.zeros((2, 2))),
        (np.zeros((2, 3)), np.zeros((2, 3), order="F")),
        (np.array([0.0]), np.array([-0.0])),
        ({"a": 1}, {"b": 1}),
        ({"a": {"b": np.ones(3)}}, {"a": {"b": np.zeros(3)}}),
        ([1, 2], [1, 3]),
    ],
    ids=range(9),
)
def test_difference(expected: Any, value: Any) -> None:
    assert difference(expected, expected) == ""
    assert difference(expected, value) != ""


def test_difference_names_the_byte() -> None:
    array = np.zeros(3 << 20, np.uint8)
    changed = array.copy()
    changed[-2] = 1
    assert (
        difference({"x": array}, {"x": changed}) == f"['x'] differs at byte {array.size - 2} of {array.size}"
    )
    nan = np.array([np.nan])
    assert difference(nan, nan.copy()) == ""


class FalseStore:
    """Gives back one value whatever is asked for."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def put(self, value: Any) -> object:
        return object()

    def get(self, ref: object, copy: bool = False) -> Any:
        return self.value


def test_hand_reports_a_wrong_value() -> None:
    hand = Hand(FalseStore(b"wrong"), Values(3))  # type: ignore[arg-type]
    assert hand.perform(Command("put", 1)).fault == ""
    for verb in ("get", "copy"):
        assert "key 1" in hand.perform(Command(verb, 1)).fault
    assert hand.perform(Command("view", 1)).fault == ""
    assert "key 1" in hand.perform(Command("look", 1)).fault


def test_hand_reports_an_exception() -> None:
    hand = Hand(FalseStore(b""), Values(3))  # type: ignore[arg-type]
    reply = hand.perform(Command("get", 99))
    assert "KeyError" in reply.fault
    assert not reply.gone


def test_hand_reports_a_writable_view() -> None:
    values = Values(3)
    key = next(k for k in small_keys(100) if isinstance(v := values.make(k), np.ndarray) and v.dtype == "f8")
    hand = Hand(FalseStore(values.make(key)), values)  # type: ignore[arg-type]
    hand.perform(Command("put", key))
    assert "writable" in hand.perform(Command("get", key)).fault


def test_books_know_what_survives() -> None:
    books = Books()
    for member in (0, 1, 2):
        books.join(member)
    books.put(1, 10, 100)
    books.put(1, 11, 100)
    books.put(1, 12, 100)
    books.put(1, 13, 100)
    books.send(11)
    books.arrive(2, 11, 100)
    books.send(12)
    books.send(13)
    books.drop(1, 13)
    assert books.live_bytes == 400
    assert books.die(1) == {11, 12}  # 10 had no other holder; 13 was no longer held
    assert sorted(books.live) == [11, 12, 13]
    assert books.owners(11) == [2]
    books.stray(12)
    books.arrive(0, 13, 100)
    assert sorted(books.live) == [11, 13]
    books.drop(0, 13)
    books.drop(2, 11)
    assert books.live == []


@pytest.mark.parametrize(("peak", "fault"), [(100, False), (101, True)])
def test_watch(peak: int, fault: bool) -> None:
    figures = [10, peak, 50]
    store = SimpleNamespace(
        memory_limit=100,
        stats=lambda: SimpleNamespace(committed_bytes=figures.pop() if figures else 10),
    )
    with Watch(store) as watch:  # type: ignore[arg-type]
        wait_until(lambda: not figures)
    assert watch.peak_bytes == peak
    assert bool(watch.fault) is fault


def test_watch_raises_what_stats_raised() -> None:
    store = SimpleNamespace(memory_limit=100, stats=lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), Watch(store) as watch:  # type: ignore[arg-type]
        watch._thread.join(10)


SMALL_RUN = ("stress", "--memory", "1MiB", "--data", "1MiB", "--spill-dir")


def test_a_violation_is_the_verdict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Director, "run", lambda self, _: self.violations.append("of [this] kind"))
    assert main([*SMALL_RUN, str(tmp_path)]) == 1
    assert "violation: of [this] kind" in capsys.readouterr().out


def test_what_is_left_is_a_violation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(Director, "run", lambda self, _: kept.append(self._store.put(np.zeros(4 << 20))))
    monkeypatch.setattr(command, "HANDOFF_S", 0.1)
    monkeypatch.setattr(command, "MARGIN_S", 0.1)
    assert main([*SMALL_RUN, str(tmp_path)]) == 1
    report = capsys.readouterr().out
    assert "objects is 1 after everything was dropped" in report
    assert ".seg is still there" in report
    assert "left by close()" not in report


def test_a_sound_run_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Director, "run", lambda self, _: None)
    assert main([*SMALL_RUN, str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "sound"
