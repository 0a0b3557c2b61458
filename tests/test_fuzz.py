"""What was kept of fuzzing is run again, with a few changes; and the fuzzer sees what it is there to see."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fuzz import engine, guard
from fuzz.targets import TARGETS, opened

EXECUTIONS = {"registry-files": 30, "timeline-file": 30}


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_kept_and_a_few_changes(name: str, tally: Counter[str]) -> None:
    with opened(name) as target, guard.limits():
        found = engine.fuzz(target, random.Random(1), EXECUTIONS.get(name, 300))
    tally[f"inputs of {name}"] += found.executions


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_has_good_inputs(name: str) -> None:
    """Of today's layout: when this fails, `python -m fuzz --keep` in tests/ makes it anew."""
    with opened(name) as target:
        kept = engine.corpus(target)
        for what, data in target.seeds().items():
            assert engine.outcome(target, kept[what]) == engine.outcome(target, data), what
        assert len({engine.outcome(target, data) for data in kept.values()}) > 1


class Parser:
    """A target with a fault: it believes a length."""

    name = "parser"
    most = 64

    def seeds(self) -> dict[str, bytes]:
        return {"good": b"\x04text"}

    def mend(self, data: bytes) -> bytes:
        return data

    def run(self, data: bytes) -> str:
        if data and data[0] > 200:
            raise IndexError("past the end")
        return "text"

    def close(self) -> None:
        pass


def test_a_fault_is_found_with_its_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CORPUS", tmp_path)
    assert engine.keep(Parser(), "good", b"\x04text").read_bytes() == b"\x04text"
    with pytest.raises(engine.Fault, match="IndexError: past the end") as fault:
        engine.fuzz(Parser(), random.Random(1), 100_000)
    assert fault.value.data[0] > 200


def test_a_large_allocation_is_refused() -> None:
    with guard.limits():
        with pytest.raises(MemoryError):
            bytearray(2 * guard.SPARE_BYTES)
        bytearray(1 << 20)
    bytearray(2 * guard.SPARE_BYTES)


BEYOND = """
import ctypes, sys
from pathlib import Path
from fuzz.guard import Fence, watched
fence = Fence(5000)
held = fence.hold(b"x" * 5000)
with watched(Path(sys.argv[1]), 5000) as note:
    note(b"this one")
    assert ctypes.string_at(fence.start + fence.size - 5056, 5000) == held
    ctypes.string_at(fence.start + fence.size - 5056, 5057)
"""


def test_a_byte_too_far_ends_the_process_and_leaves_the_input(tmp_path: Path) -> None:
    program = [sys.executable, "-c", BEYOND, str(tmp_path / "running")]
    done = subprocess.run(program, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=50)
    assert "Segmentation fault" in done.stderr
    assert guard.noted(tmp_path / "running") == b"this one"
