"""docs/internals/security.md names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "internals" / "security.md").read_text()


def test_every_test_is_there() -> None:
    table = PAGE.partition("## What protects what\n")[2].partition("\n## ")[0]
    rows = [row for row in table.splitlines() if row.startswith("| ")][2:]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`((?:kernel/)?test_\w+\.(?:py|c))(?:::(test_\w+))?`", row.split("|")[4])
        assert named, row
        for file, test in named:
            text = (TESTS / file).read_text()
            assert not test or f"def {test}(" in text, (file, test)
