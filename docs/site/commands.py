"""Writes docs/reference/commands.md from the parser of the `millpond` command; a test compares.

Run: python docs/site/commands.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from millpond.cli.main import _parser

PAGE = Path(__file__).parents[1] / "reference" / "commands.md"
HEAD = """# Commands

`millpond COMMAND --help` says the same. A store is given by its name or address, and may be left out where
there is only one. The exit status is 0 if all is well, and 1 if the verdict is bad. If it could not be done,
it is 2, and the reason is on standard error.
"""


def page() -> str:
    """The page, from the arguments that the commands take now."""
    return HEAD + "".join(f"{line}\n" for line in _lines())


def _lines() -> Iterator[str]:
    (commands,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    helps = {choice.dest: choice.help for choice in commands._choices_actions}
    for name, parser in commands.choices.items():
        yield from ["", f"## millpond {name}", "", f"{_sentence(helps[name])}."]
        actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
        if actions:
            yield from ["", "| argument | |", "| --- | --- |"]
        for action in actions:
            value = parser._get_formatter()._expand_help(action) if action.help else ""
            yield f"| `{_spelled(action)}` | {value} |"


def _sentence(text: str | None) -> str:
    assert text, "a command without a help"
    return text[0].upper() + text[1:]


def _spelled(action: argparse.Action) -> str:
    """As one types it. A table's cell has no bars of its own, so choices stand apart by commas."""
    value = ",".join(map(str, action.choices)) if action.choices else action.metavar or action.dest.upper()
    if not action.option_strings:
        return str(action.metavar or action.dest)
    return action.option_strings[0] + ("" if action.nargs == 0 else f" {value}")


if __name__ == "__main__":
    PAGE.write_text(page())
