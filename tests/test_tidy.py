"""House rules that a machine can check: short files, headers that say the duty, nothing left undone.

The made-up files below show that each breach is seen.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "tests", "benchmarks", "examples", "docs")
SUFFIXES = {".py", ".pyi", ".pyx", ".pxd", ".pxi", ".c", ".h", ".md", ".toml"}
LINES_MAX = 600

# Spelled in halves, or this file would be its own culprit.
UNDONE = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b")


def has_header(path: Path, text: str) -> bool:
    """Whether a source file opens with a docstring or comment."""
    if path.suffix in (".py", ".pyi"):
        return bool(ast.get_docstring(ast.parse(text)))
    if path.suffix in (".pyx", ".pxi", ".pxd"):
        return text.lstrip().startswith(('"""', 'r"""', "#"))
    return text.startswith("/*")


def faults(path: Path, root: Path) -> list[str]:
    """What is wrong with one file."""
    text = path.read_text()
    name = path.relative_to(root)
    found = [
        f"{name}:{number}: {match[0]}"
        for number, line in enumerate(text.splitlines(), start=1)
        if (match := UNDONE.search(line))
    ]
    count = len(text.splitlines())
    if count > LINES_MAX:
        found.append(f"{name}: {count} lines, at most {LINES_MAX}")
    if name.parts[0] == "src" and path.suffix != ".md" and not has_header(path, text):
        found.append(f"{name}: no header that says its duty")
    return found


def files(root: Path) -> list[Path]:
    inside = [path for folder in FOLDERS for path in (root / folder).rglob("*")]
    return sorted(path for path in [*inside, *root.iterdir()] if path.is_file() and path.suffix in SUFFIXES)


def test_the_tree_is_tidy() -> None:
    checked = files(ROOT)
    assert len(checked) > 20, "this test must run in the source tree"
    assert [fault for path in checked for fault in faults(path, ROOT)] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("src/long.py", '"""Long."""\n' * (LINES_MAX + 1)),
        ("src/undone.py", '"""Undone."""\n# TO' + "DO: later\n"),
        ("docs/undone.md", "FIX" + "ME\n"),
        ("src/bare.py", "import os\n"),
        ("src/empty.py", ""),
        ("src/bare.c", "int x;\n"),
        ("src/bare.pyx", "cimport cython\n"),
    ],
)
def test_a_breach_is_seen(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.parent.mkdir()
    path.write_text(text)
    assert files(tmp_path) == [path]
    assert len(faults(path, tmp_path)) == 1


def test_what_is_tidy(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    path = tmp_path / "src" / "good.c"
    path.write_text('/* Duty. */\nchar template[] = "/tmp/nameXXXXXX";\n')
    assert faults(path, tmp_path) == []
