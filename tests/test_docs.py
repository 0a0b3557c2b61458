"""The Python examples of README and docs run as they stand and print what the text block after them says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXAMPLE = re.compile(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)


def examples() -> dict[str, tuple[str, str]]:
    """(code, expected output) by page and number; the output is empty where none is shown."""
    return {
        f"{page.relative_to(ROOT)}-{number}": found
        for page in PAGES
        for number, found in enumerate(EXAMPLE.findall(page.read_text()), start=1)
    }


def run(code: str, directory: Path) -> str:
    script = directory / "example.py"
    script.write_text(code)
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_examples() -> None:
    assert len([name for name in examples() if name.startswith("README")]) >= 2
    assert any(output for _, output in examples().values())


@pytest.mark.parametrize("name", examples())
def test_example(name: str, tmp_path: Path) -> None:
    code, output = examples()[name]
    assert run(code, tmp_path) == output


def test_a_wrong_example_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run("1 / 0", tmp_path)
