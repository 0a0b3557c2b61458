"""The files of the registry and beside spill directories, and the options in the table: JSON that any process
of the user may have written, cut short, or left there years ago.

An input is the name of the file, a line end, and what is in it. Right: those who look at all stores, create
one, or sweep, can go on; a dead store is removed, or left to the next sweep.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from millpond import Store
from millpond.spill import directory as spill_directory
from millpond.spill import owner
from millpond.spill.sweep import sweep_abandoned
from millpond.store import registry
from millpond.store.options import parse_config

_DEAD = bytes(range(100, 116))
_BOOT = "the boot of then"


class RegistryFiles:
    """See above."""

    name = "registry-files"
    most = 8 << 10

    def __init__(self, store: Store) -> None:
        self._alive = Path(store.address)
        self._root = str(self._alive.parent)
        self._base = tempfile.TemporaryDirectory()
        self._kept = {part: (self._alive / part).read_bytes() for part in ("name", "spill")}

    def close(self) -> None:
        for part, data in self._kept.items():
            (self._alive / part).write_bytes(data)
        self._base.cleanup()

    def seeds(self) -> dict[str, bytes]:
        mine = {"boot_id": _BOOT, "host": "here", "registry": "/tmp/millpond-0"}
        values = {
            "name": "a store",
            "spill": ["/nowhere/spill", "/nowhere/else"],
            "owner": mine,
            "config": {"spill_dirs": ["/nowhere/spill"]},
        }
        found = {part: part.encode() + b"\n" + json.dumps(value).encode() for part, value in values.items()}
        found |= {f"{part}-too-deep": part.encode() + b"\n" + b"[" * 5000 for part in values}
        for part in ("spill", "config"):
            found[f"{part}-no-path"] = found[part].replace(b"nowhere", rb"no\u0000where")
        found["name-that-moves-the-cursor"] = b"name\n" + json.dumps("\x1b[2J").encode()
        return found

    def mend(self, data: bytes) -> bytes:
        """What comes out is JSON again: strings and lists are closed."""
        part, _, text = data.partition(b"\n")
        text = text.replace(b'"', b"").replace(b"\n", b"")
        body = json.dumps(text.decode("latin1")).encode()
        return part + b"\n" + {b"spill": b"[%s]", b"config": b'{"spill_dirs": [%s]}'}.get(part, b"%s") % body

    def run(self, data: bytes) -> str:
        part, _, text = data.partition(b"\n")
        if part == b"config":
            return f"{min(len(parse_config(text.partition(bytes(1))[0])), 2)} directories"
        if part == b"name":
            (self._alive / "name").write_bytes(text)
            [found] = registry.list_stores(self._root)
            return "no name" if found.name is None else "a name"
        if part == b"owner":
            return self._abandoned(text)
        return self._dead(text)

    def _dead(self, text: bytes) -> str:
        """What a sweep makes of a dead store with these spill directories."""
        path = Path(self._root, _DEAD.hex())
        path.mkdir(0o700)
        for part in ("birth", "lock", "spill"):
            os.close(os.open(path / part, os.O_WRONLY | os.O_CREAT, 0o600))
        (path / "spill").write_bytes(text)
        removed = registry.sweep(self._root)
        assert len(removed) <= 1
        assert path.exists() == (not removed)
        if removed:
            return "buried"
        shutil.rmtree(path)
        return "left"

    def _abandoned(self, text: bytes) -> str:
        """What becomes of a spill directory with such an owner."""
        base = Path(self._base.name)
        directory = spill_directory.store_directory(base, _DEAD)
        directory.mkdir(0o700, parents=True, exist_ok=True)
        directory.parent.chmod(0o700)
        file = owner.file_of(directory)
        file.write_bytes(text)
        removed = sweep_abandoned(base, (), dry_run=False)
        assert directory.exists() == (not removed)
        return "left" if directory.exists() else "removed"
