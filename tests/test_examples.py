"""The programs in examples/ run and end well; each verifies its own results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str) -> str:
    """The output of an example, run from elsewhere, as a user would."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], cwd="/", capture_output=True, text=True, timeout=55
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_share_array() -> None:
    output = run("share_array.py")
    assert "10 readers, 800 MB read" in output
    private = float(output.split(",")[2].split()[0])
    assert private < 20, "ten readers must not need memory of their own for the array"


def test_executor() -> None:
    assert run("executor.py") == "10 workers added up 80 MB, 0 copies\n"


def test_flights() -> None:
    pytest.importorskip("pandas")
    output = run("flights.py")
    assert "equal to pandas" in output
    *_, roomy, tight = output.splitlines()
    assert roomy.split()[2:4] == ["0.0", "MiB"], "with room for all, nothing goes to disk"
    assert float(tight.split()[2]) > 0, "a quarter of the memory cannot do without the disk"


def test_every_example_is_tested() -> None:
    text = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'run("{path.name}")' not in text] == []
