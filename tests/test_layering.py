"""Imports go one way: kernel <- hot <- {values, spill, eviction, refcount} <- store <- the rest.

The rule is read off the sources: the syntax tree of Python files, import lines of Cython files,
include lines of C files. The made-up trees below show that each kind of breach is seen.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "millpond"

# A room may import itself and rooms of a lower rank. "public" is millpond/__init__.py.
RANKS = {
    "errors": 0,
    "units": 0,
    "flag": 0,
    "descriptors": 0,
    "log": 0,
    "threads": 0,
    "kernel": 1,
    "hot": 2,
    "values": 3,
    "spill": 3,
    "eviction": 3,
    "refcount": 3,
    "store": 4,
    "public": 5,
    "integrations": 6,
    "observe": 6,
    "cli": 7,
}

CYTHON = {".pyx", ".pxd", ".pxi"}
CYTHON_FROM = re.compile(r"^\s*from\s+(millpond[\w.]*)\s+c?import\s+\(?\s*([\w, ]+)", re.MULTILINE)
CYTHON_IMPORT = re.compile(r"^\s*c?import\s+(millpond[\w.]*)", re.MULTILINE)
C_INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', re.MULTILINE)


def room_of(path: Path, root: Path) -> str:
    """The room that a source file lies in: its folder, or its own name at the top."""
    relative = path.relative_to(root)
    if len(relative.parts) > 1:
        return relative.parts[0]
    if relative.name == "__init__.py":
        return "public"
    return "hot" if relative.suffix in CYTHON or relative.stem == "hot" else relative.stem


def room_of_module(module: str) -> str:
    parts = module.split(".")
    if len(parts) == 1:
        return "public"
    return "hot" if parts[1] == "kernel_api" else parts[1]


def from_import(module: str, names: list[str]) -> Iterator[str]:
    """`from millpond import spill` imports a room, not a public name."""
    if module != "millpond":
        yield module
        return
    for name in names:
        yield f"millpond.{name}" if name in RANKS or name == "kernel_api" else "millpond"


def python_imports(text: str, package: list[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from from_import(module, [alias.name for alias in node.names])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value)


def cython_imports(text: str) -> Iterator[str]:
    yield from CYTHON_IMPORT.findall(text)
    for module, names in CYTHON_FROM.findall(text):
        yield from from_import(module, [name.split()[0] for name in names.split(",") if name.strip()])


def c_faults(path: Path, root: Path) -> Iterator[str]:
    for name in C_INCLUDE.findall(path.read_text()):
        if name in ("Python.h", "structmember.h") or name.startswith("numpy/"):
            yield f"{path.relative_to(root)} includes {name}: the kernel knows no Python"
        elif "/" in name and ".." in name:
            yield f"{path.relative_to(root)} includes {name}, which lies outside kernel/"


def faults(root: Path) -> list[str]:
    """Every import under `root` that goes against the rule."""
    found: list[str] = []
    for path in sorted(root.rglob("*")):
        if path.suffix in (".c", ".h"):
            found += c_faults(path, root)
            continue
        if path.suffix in (".py", ".pyi"):
            package = ["millpond", *path.relative_to(root).parent.parts]
            modules = list(python_imports(path.read_text(), package))
        elif path.suffix in CYTHON:
            modules = list(cython_imports(path.read_text()))
        else:
            continue
        room = room_of(path, root)
        for module in modules:
            if module.split(".")[0] != "millpond":
                continue
            target = room_of_module(module)
            if room not in RANKS or target not in RANKS:
                found.append(f"{path.relative_to(root)} imports {module}: an unknown room")
            elif target != room and RANKS[target] >= RANKS[room]:
                found.append(f"{path.relative_to(root)} imports {module}: {room} lies below {target}")
    return found


def test_imports_go_one_way() -> None:
    assert faults(SOURCE) == []


def test_every_room_is_known() -> None:
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= RANKS.keys()
    assert {"kernel", "values", "spill", "eviction", "refcount", "store"} <= folders


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("spill/files.py", "from millpond.eviction import policy"),
        ("eviction/policy.py", "import millpond.refcount.names"),
        ("values/explain.py", "from millpond.spill import codec"),
        ("values/explain.py", "if TYPE_CHECKING:\n    from millpond.store.store import Store"),
        ("refcount/names.py", "from millpond import spill"),
        ("refcount/names.py", "def late():\n    from ..store.store import Store"),
        ("spill/files.py", "import importlib\nimportlib.import_module('millpond.store')"),
        ("store/store.py", "import millpond"),
        ("store/store.py", "from millpond.observe.table import show"),
        ("observe/table.py", "import millpond.cli.main"),
        ("units.py", "from millpond.errors import MillpondError"),
        ("hot.pyx", "from millpond.store.store import Store"),
        ("get.pxi", "    import millpond.spill"),
        ("hot.pyi", "from millpond.store.info import Stats"),
        ("kernel/lock.c", "#include <Python.h>"),
        ("kernel/lock.c", '#include "../spill/files.h"'),
        ("drafts/draft.py", "import millpond.hot"),
    ],
)
def test_a_breach_is_seen(tmp_path: Path, file: str, text: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text + "\n")
    assert len(faults(tmp_path)) == 1


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            "store/store.py",
            "from millpond.hot import Core\nfrom millpond import units\nfrom .info import Stats",
        ),
        ("spill/files.py", "import os\nfrom millpond.errors import SpillError\nimport millpond.hot"),
        ("hot.pyx", "from millpond cimport kernel_api as k\nfrom millpond.errors import StoreFullError"),
        ("cli/main.py", "import millpond\nfrom millpond.observe import tables"),
        ("__init__.py", "from millpond.store.store import Store"),
        ("kernel/lock.c", '#include "kernel.h"\n#include <sys/mman.h>'),
    ],
)
def test_what_the_rule_allows(tmp_path: Path, file: str, text: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text + "\n")
    assert faults(tmp_path) == []
