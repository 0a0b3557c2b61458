"""The Python examples of README and docs run as they stand and print what the text block after them says;
tables that repeat what the code says agree with it."""

from __future__ import annotations

import itertools
import os
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
EXAMPLE = re.compile(r"```python\n(.*?)```(?:\s*(<!-- numbers vary -->)?\s*```text\n(.*?)```)?", re.DOTALL)
NUMBER = re.compile(r" *\d[\d.]*(?: (?:B|[KMG]iB|us|ms|s)\b)?")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]*)(#[^)\s]*)?\)")


def examples() -> dict[str, tuple[str, str, str]]:
    """(code, whether numbers vary, output) by page and number; the output is empty where none is shown."""
    return {
        f"{page.relative_to(ROOT)}-{number}": found
        for page in PAGES
        for number, found in enumerate(EXAMPLE.findall(page.read_text()), start=1)
    }


def run(code: str, directory: Path) -> str:
    script = directory / "example.py"
    script.write_text(code)
    command = [sys.executable, "-W", "error", str(script)]
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, "TMPDIR": str(directory)},  # what examples leave there goes
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_examples() -> None:
    assert len([name for name in examples() if name.startswith("README")]) >= 2
    assert any(output for *_, output in examples().values())


@pytest.mark.parametrize("name", examples())
def test_example(name: str, tmp_path: Path) -> None:
    code, numbers_vary, output = examples()[name]
    printed = run(code, tmp_path)
    if numbers_vary:
        printed, output = NUMBER.sub(" #", printed), NUMBER.sub(" #", output)
    assert printed == output


def test_a_wrong_example_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run("1 / 0", tmp_path)


# --- links, for whoever reads the pages as they are; `make docs` checks those of the site ---


def targets(page: Path) -> list[tuple[Path, str]]:
    """(file, heading) of the links of a page that lead to files of this tree."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    found = [(path, anchor) for path, anchor in LINK.findall(text) if ":" not in path]
    return [((page.parent / path if path else page), anchor) for path, anchor in found]


def anchors(page: Path) -> set[str]:
    """The headings of a page, spelled as links do."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {"#" + re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    broken = [
        f"{path}{anchor}"
        for path, anchor in targets(page)
        if not path.exists() or (anchor and anchor not in anchors(path))
    ]
    assert broken == []


def test_there_are_links() -> None:
    assert (ROOT / "docs/faq.md", "") in targets(ROOT / "README.md")
    assert any(anchor for page in PAGES for _, anchor in targets(page))


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# Some `code`, and more\n[here](#some-code-and-more) [there](missing.md) [out](https://a.b)\n"
    )
    assert targets(page) == [(page, "#some-code-and-more"), (tmp_path / "missing.md", "")]
    assert anchors(page) == {"#some-code-and-more"}


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
