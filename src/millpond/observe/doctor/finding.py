"""One finding of the doctor, and how checks are run so that none of them can fail.

Not here: what is checked (memory, disks, sharing, process), how findings are shown (millpond.cli.doctor).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["ok", "note", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    name: str
    value: str
    """For people: "23.5 GiB"."""
    meaning: str
    """What follows from it for a store."""
    verdict: Verdict = "ok"
    """note: worth knowing; bad: a store does not work here, or not as it should."""
    advice: str = ""
    """What to do about it; empty where there is nothing to do."""
    number: float | None = None
    """The value for programs, in bytes, bytes per second or seconds, where it is a number."""


Check = Callable[[], Iterable[Finding]]


def run(topic: str, checks: Iterable[Check]) -> Iterator[Finding]:
    """The findings of all checks. One that fails yields a note with the reason, and the others go on."""
    for check in checks:
        try:
            yield from list(check())
        except Exception as error:
            what = check.__name__.replace("_", " ").strip()
            yield Finding(topic, what, "unknown", f"could not be found out: {error}", "note")


def read_text(path: str) -> str | None:
    """A small file of the kernel's, stripped; None if there is none, or it may not be read."""
    with suppress(OSError, UnicodeDecodeError), open(path, encoding="utf-8") as file:
        return file.read().strip()
    return None


def field(text: str | None, name: str) -> str | None:
    """The rest of the line of `text` that begins with `name`."""
    for line in (text or "").splitlines():
        if line.startswith(name):
            return line[len(name) :].strip()
    return None


def as_json(finding: Finding) -> dict[str, Any]:
    """All fields by name."""
    return {name: getattr(finding, name) for name in finding.__slots__}
