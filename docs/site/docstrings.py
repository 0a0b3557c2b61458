"""Docstrings as the reference shows them: a griffe extension, for `make docs` only.

Two things are done to what griffe reads from the sources. Objects of the compiled module have their
signatures in hot.pyi and their docstrings in the module itself: the latter are taken from there. And lines of
the form "timeout: seconds to wait", which begin with a parameter's name, become items of a list.
Not here: which names are shown (docs/reference).
"""

from __future__ import annotations

import importlib
import inspect
import re
from operator import attrgetter
from typing import Any

import griffe

HOT = "millpond.hot"
ITEM = re.compile(r"(\w+(?:, \w+)*): ")


class Docstrings(griffe.Extension):
    """Completes the docstrings of a package once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        hot = importlib.import_module(HOT)
        waiting: list[griffe.Object] = [pkg]
        while waiting:
            item = waiting.pop()
            waiting += [member for member in item.members.values() if isinstance(member, griffe.Object)]
            if item.path.startswith(HOT + ".") and item.docstring is None and not item.name.startswith("_"):
                _take(item, hot)
            if item.docstring is not None:
                item.docstring.value = as_list(item.docstring.value, _names(item))


def _take(item: griffe.Object, hot: Any) -> None:
    """Gives an object of hot.pyi the docstring of the compiled one, if that has any."""
    try:
        found = attrgetter(item.path.removeprefix(HOT + "."))(hot)
    except AttributeError:
        return  # a constant of the stub, or an operator that Python sees otherwise
    text = getattr(found, "__doc__", None)
    if text and not isinstance(found, int | str | dict | tuple):
        item.docstring = griffe.Docstring(inspect.cleandoc(text), parent=item)


def _names(item: griffe.Object) -> set[str]:
    """What a docstring may explain line by line: parameters, and those of `__init__`."""
    functions = [item, item.members.get("__init__")] if item.is_class else [item]
    found = [each.parameters for each in functions if isinstance(each, griffe.Function)]
    return {parameter.name.lstrip("*") for parameters in found for parameter in parameters}


def as_list(text: str, names: set[str]) -> str:
    """`text` with each run of lines about parameters as a Markdown list."""
    lines: list[str] = []
    in_item = False
    for line in re.sub(r"(?<=\.) (?=Raises )", "\n", text).splitlines():
        found = ITEM.match(line)
        if found and set(found[1].split(", ")) <= names:
            if not in_item and lines and lines[-1]:
                lines.append("")
            in_item = True
            lines += _items(line, names)
        elif in_item and line and (line.startswith("    ") or not lines[-1].endswith(".")):
            lines += _items("    " + line.strip(), names)
        else:
            if in_item and line:
                lines.append("")
            in_item = False
            lines.append(line)
    return "\n".join(lines)


def _items(line: str, names: set[str]) -> list[str]:
    """One line, as the items that it begins or goes on with: "shape: of it. timeout: seconds" are two."""
    found = []
    for part in re.split(r"(?<=\. )(?=\w+: )", line):
        match = ITEM.match(part)
        known = match is not None and set(match[1].split(", ")) <= names
        found.append(f"- `{match[1]}`: {part[match.end() :]}".rstrip() if match and known else part.rstrip())
    return found
