"""What docs/internals/concurrency.md says of orderings and states is what the kernel has."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "internals" / "concurrency.md").read_text()
SOURCES = "".join(path.read_text() for path in sorted((ROOT / "src/millpond/kernel").glob("*.[ch]")))


def section(title: str) -> str:
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def first_cells(text: str) -> set[str]:
    return {row.split("|")[1].strip() for row in text.splitlines() if row.startswith("| ")}


def test_every_label_is_explained_and_stands_at_both_ends() -> None:
    labels = re.findall(r"PAIR ([\w-]+)", SOURCES)
    assert set(labels) == first_cells(section("Orderings, by label")) - {"label", "---"}
    assert all(labels.count(label) >= 2 or label == "event" for label in labels), (
        "event is one comment for both"
    )


def test_every_lock_of_python_is_listed() -> None:
    package = ROOT / "src/millpond"
    with_locks = {path.name for path in package.rglob("*.py") if re.search(r"\bR?Lock\(\)", path.read_text())}
    private = {"flag.py"}  # a building block of the others: nothing is called under it
    assert with_locks - private == set(re.findall(r"`(\w+\.py)`", section("Locks, in order")))


def test_numbers_of_the_locks_are_the_codes() -> None:
    """Written in words on the page."""
    assert "#define SPIN_NS 2000\n" in SOURCES and "tried for 2 µs" in PAGE
    assert "#define QUICK_NS 50000\n" in SOURCES and "within 50 µs" in PAGE
    assert "#define MP_UNFINISHED_MAX 32u" in SOURCES and "at most 32 such rests" in PAGE
    assert "m->patience_ns = 5000000000ll;" in SOURCES and "awaited for five seconds" in PAGE


def test_every_state_is_in_the_table() -> None:
    states = set(
        re.findall(r"\bMP_([A-Z]+) = \d,", SOURCES.partition("enum mp_state {")[2].partition("}")[0])
    )
    assert len(states) == 10
    named = set(re.findall(r"\b[A-Z]{4,}\b", section("States and events")))
    assert states <= named
