"""The Python examples of README and docs run as they stand and print what the text block after them says;
tables that repeat what the code says agree with it."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest

from millpond.eviction.named import NAMES
from millpond.eviction.policies import CANDIDATE
from millpond.spill import record
from millpond.store.info import Stats

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


# --- tables that must agree with the code ---


def cells(page: str, header: str) -> list[list[str]]:
    """The rows below the table header that begins with `header`, one list of cells each."""
    lines = (ROOT / "docs" / page).read_text().split("\n" + header, 1)[1].splitlines()[2:]
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_bytes_of_a_record() -> None:
    """Every field of docs/spilling.md lies where the table says, and they fill the header."""
    fields = {
        "codec": 7,
        "entry": 0x01020304,
        "birth": 0x1112131415161718,
        "raw": 0x2122232425262728,
        "stored": 0x3132333435363738,
        "checksum": 0x4142434445464748,
    }
    header = record.RecordHeader(uuid=bytes(range(16)), **fields).pack()
    known = {
        "magic": record.MAGIC,
        "version": record.VERSION,
        "uuid": int.from_bytes(bytes(range(16)), "little"),
        "own_checksum": xxh3_64_intdigest(header[:56]),
        **fields,
    }
    end = 0
    for offset, size, name, _ in cells("spilling.md", "| offset |"):
        assert int(offset) == end, name
        end += int(size)
        assert int.from_bytes(header[int(offset) : end], "little") == known.pop(name)
    assert (end, known) == (record.HEADER_BYTES, {})


def test_the_fields_of_a_candidate() -> None:
    listed = {row[0].strip("`") for row in cells("spilling.md", "| field | meaning |")}
    assert listed | {"pad"} == set(CANDIDATE.names or ())


def test_the_policies() -> None:
    listed = [re.findall("`(.*?)`", row[0]) for row in cells("spilling.md", "| policy |")]
    assert {name for [name] in listed} == set(NAMES)


def test_the_numbers_of_stats() -> None:
    """What docs/memory.md explains is there, and every number of bytes in `stats()` is explained."""
    listed = set(re.findall("`(\\w+)`", " ".join(row[0] for row in cells("memory.md", "| `stats()` |"))))
    assert all(hasattr(Stats, name) for name in listed)
    numbers = {name for name in Stats.__slots__ if "bytes" in name}
    assert numbers - listed <= {"table_bytes"}
