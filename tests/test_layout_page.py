"""docs/internals/layout.md says what the code does: offsets as in the snapshot, bytes as in a real store."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import numpy as np

from ponds import Pond, descriptor_of

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "internals" / "layout.md").read_text()
SNAPSHOT = (ROOT / "tests" / "kernel" / "layout.txt").read_text()
Row = tuple[int, int, str]


def snapshot(name: str) -> list[Row]:
    body = re.search(rf"^{name} \d+\n((?: .*\n)+)", SNAPSHOT, re.MULTILINE)
    assert body, name
    fields = [line.split() for line in body[1].splitlines()]
    return [(int(offset), int(size), field) for offset, size, field in fields]


def documented() -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for name, table in re.findall(r"^`(mp_\w+)`[^\n]*\n\n((?:\|.*\n)+)", PAGE, re.MULTILINE):
        cells = [[cell.strip() for cell in row.split("|")] for row in table.splitlines()[2:]]
        found[name] = [(int(row[1]), int(row[2]), row[3]) for row in cells]
    return found


def test_offsets_are_those_of_the_snapshot() -> None:
    tables = documented()
    assert {"mp_entry", "mp_place", "mp_slot", "mp_token", "mp_edge", "mp_name", "mp_segment"} <= set(tables)
    assert tables == {name: snapshot(name) for name in tables}


def test_regions_are_in_the_order_of_the_code() -> None:
    header = (ROOT / "src/millpond/kernel/layout.h").read_text()
    names = re.findall(r"^    MP_REGION_(\w+),", header, re.MULTILINE)
    table = PAGE.partition("## The regions of the table\n")[2].partition("\n## ")[0]
    rows = [row.split("|")[1].strip() for row in table.splitlines() if row.startswith("| ")][2:]
    assert rows == [name.lower().replace("_", " ").replace("commit", "commit map") for name in names]


def matches(dump: str, data: bytes) -> bool:
    """Whether a dump of the page is one of these bytes; dots stand for any."""
    shown = [byte for line in dump.splitlines() for byte in line[7:56].split()]
    return len(shown) == len(data) and all(
        text in ("..", f"{byte:02x}") for text, byte in zip(shown, data, strict=True)
    )


def test_the_worked_example(pond: Pond) -> None:
    store = pond.store("8MiB")
    ref = store.put(np.arange(4.0))
    store.put({"x": 1}, name="config")
    view = ref.get()
    entry_dump, value_dump = re.findall(r"```\n((?: +\d+  [0-9a-f.]{2} .*\n)+)```", PAGE)
    geometry = next(offset for offset, _, field in snapshot("mp_header") if field == "geometry")
    regions = next(offset for offset, _, field in snapshot("mp_geometry") if field == "region_offset")
    table, arena = descriptor_of(store, "table"), descriptor_of(store, "arena")
    (entries,) = struct.unpack("<Q", os.pread(table, 8, geometry + regions + 3 * 8))
    entry = os.pread(table, 192, entries + 192 * ref._key[0])
    assert matches(entry_dump, entry)
    offset, size = struct.unpack_from("<QQ", entry, 40)
    value = os.pread(arena, size, offset)
    assert matches(value_dump, value)
    assert value.endswith(view.tobytes())
    store.delete("config")
