"""The Python examples of the README run as they stand and print what the text block after them says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
EXAMPLE = re.compile(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)


def examples() -> list[tuple[str, str]]:
    """(code, expected output) of each example; the output is empty where none is shown."""
    return EXAMPLE.findall(README.read_text())


def run(code: str, directory: Path) -> str:
    script = directory / "example.py"
    script.write_text(code)
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_examples() -> None:
    assert len(examples()) >= 2
    assert any(output for _, output in examples())


@pytest.mark.parametrize("number", range(len(examples())))
def test_example(number: int, tmp_path: Path) -> None:
    code, output = examples()[number]
    assert run(code, tmp_path) == output


def test_a_wrong_example_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run("1 / 0", tmp_path)
