"""The documentation as a site: every page is in its navigation, every public name in its reference."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import millpond
from millpond.observe import metrics

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REFERENCE = "\n".join(page.read_text() for page in sorted((DOCS / "reference").glob("*.md")))
SHOWN = set(re.findall(r"^::: (\S+)$", REFERENCE, re.MULTILINE))


def load(name: str) -> ModuleType:
    """A script of docs/site."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", DOCS / "site" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def leaves(navigation: Any) -> list[str]:
    if isinstance(navigation, str):
        return [navigation]
    return [leaf for item in navigation for leaf in leaves(item.values() if isinstance(item, dict) else item)]


def test_every_page_is_in_the_navigation() -> None:
    listed = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_every_public_name_is_in_the_reference() -> None:
    names = {f"millpond.{name}" for name in millpond.__all__} - {"millpond.__version__"}
    names |= {f"millpond.observe.metrics.{name}" for name in metrics.__all__}
    assert names - SHOWN == set()


def test_every_integration_is_in_the_reference() -> None:
    """Of each module at least one name, but of those that only others of them use."""
    folder = ROOT / "src/millpond/integrations"
    inner = {"calls", "own_memory", "visit"}
    modules = {path.stem for path in folder.iterdir() if not path.name.startswith("__")} - inner
    assert {name.split(".")[2] for name in SHOWN if name.startswith("millpond.integrations.")} == modules


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_what_the_reference_shows_is_public(name: str) -> None:
    """In `__all__` of its module, read off the source: what it integrates need not be installed."""
    module, _, attribute = name.rpartition(".")
    if name == "millpond.integrations.plasma":
        return
    path = ROOT / "src" / module.replace(".", "/")
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    (listed,) = (
        ast.literal_eval(node.value)
        for node in ast.parse(source.read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    assert attribute in listed


@pytest.mark.parametrize("name", [name for name in millpond.__all__ if name != "__version__"])
def test_every_public_name_has_docstrings(name: str) -> None:
    """The name itself, and the methods and properties of its own. Fields may explain themselves."""
    thing = getattr(millpond, name)
    assert thing.__doc__
    if isinstance(thing, type):
        mine = {key: value for key, value in vars(thing).items() if not key.startswith("_")}
        methods = {key for key, value in mine.items() if callable(value) or isinstance(value, property)}
        assert [key for key in methods if not mine[key].__doc__] == []


def test_the_page_of_commands() -> None:
    commands = load("commands")
    assert commands.PAGE.read_text() == commands.page(), "run docs/site/commands.py"


def test_lines_about_parameters_become_a_list() -> None:
    as_list = load("docstrings").as_list
    text = """Does it.

size: in bytes,
    at most. timeout: seconds until
it ends. Raises ValueError.

other: not a parameter."""
    assert as_list(text, {"size", "timeout"}).splitlines() == [
        "Does it.",
        "",
        "- `size`: in bytes,",
        "    at most.",
        "- `timeout`: seconds until",
        "    it ends.",
        "",
        "Raises ValueError.",
        "",
        "other: not a parameter.",
    ]
