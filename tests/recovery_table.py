"""The table of recovery steps, from the kernel's header into the documentation.

Run: python tests/recovery_table.py   (writes docs/internals/recovery.md)
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
KERNEL: Final = ROOT / "src" / "millpond" / "kernel"
PAGE: Final = ROOT / "docs" / "internals" / "recovery.md"
_ROW: Final = re.compile(r'STEP\("(\w+)", "([\w.]+)", (held|free|either), "([^"]*)", "([^"]*)"\)')
_TABLE: Final = re.compile(r"(?<=<!-- steps -->\n).*?(?=<!-- end of steps -->)", re.DOTALL)


class Step(NamedTuple):
    """One row of steps.h."""

    letter: str
    failpoint: str
    mutex: str
    left: str
    mended: str


def steps() -> list[Step]:
    """The rows of steps.h, in their order."""
    return [Step(*row) for row in _ROW.findall((KERNEL / "steps.h").read_text())]


def failpoints() -> list[str]:
    """The names of all failpoints of the kernel."""
    text = "".join(path.read_text() for path in sorted(KERNEL.glob("*.c")))
    return re.findall(r'MP_FAILPOINT\("([^"]*)"\)', text)


def table() -> str:
    """The rows as Markdown."""
    rows = [
        f"| {step.letter} | `{step.failpoint}` | {step.mutex} | {step.left} | {step.mended} |\n"
        for step in steps()
    ]
    return (
        "| step | behind | mutex | what is left | what makes it good |\n| --- | --- | --- | --- | --- |\n"
        + "".join(rows)
    )


def written() -> str:
    """The page with the table as it must be."""
    return _TABLE.sub(lambda _: table(), PAGE.read_text())


if __name__ == "__main__":
    PAGE.write_text(written())
