"""The failpoints of the second build, as tests in Python use them: who came by, and who is to die where.

A page in a file is shared with the processes that run that build (kernel/failpoint_page.h has its layout).
"""

from __future__ import annotations

import mmap
import os
import re
import signal
import struct
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "failpoints"

_HEAD = struct.Struct("<QiIII")  # armed, pid, signal, countdown, struck
_ROW = struct.Struct("<QQ")  # name, hits
_ROWS = 160
_NAME = re.compile(r'MP_FAILPOINT\("([^"]+)"\)')


def names() -> list[str]:
    """Every failpoint of the kernel."""
    sources = (ROOT / "src" / "millpond" / "kernel").glob("*.c")
    return sorted({name for source in sources for name in _NAME.findall(source.read_text())})


def hash_of(name: str) -> int:
    """FNV-1a of 64 bits: how the page calls a name."""
    value = 14695981039346656037
    for byte in name.encode():
        value = (value ^ byte) * 1099511628211 % 2**64
    return value


class Page:
    """Counts and orders; `path` is what a process finds in MILLPOND_FAILPOINT_PAGE."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0
        """The signal that was ordered last."""
        path.write_bytes(bytes(_HEAD.size + _ROWS * _ROW.size))
        fd = os.open(path, os.O_RDWR)
        self._memory = mmap.mmap(fd, 0)
        os.close(fd)
        self._names = {hash_of(name): name for name in names()}

    def close(self) -> None:
        self._memory.close()

    def arm(self, name: str, hit: int, number: int = signal.SIGKILL) -> None:
        """Whoever comes by for the `hit`th time from now on sends itself that signal."""
        self.number = number
        _HEAD.pack_into(self._memory, 0, 0, 0, number, hit, 0)
        struct.pack_into("<Q", self._memory, 0, hash_of(name))

    def disarm(self) -> bool:
        """Takes the order back; whether it was carried out."""
        done: bool = _HEAD.unpack_from(self._memory)[0] == 0
        struct.pack_into("<Q", self._memory, 0, 0)
        return done

    def struck(self) -> int:
        """The process that carried the order out; 0 as long as none has."""
        pid: int = _HEAD.unpack_from(self._memory)[4]
        return pid

    def hits(self) -> dict[str, int]:
        """How often each failpoint was reached since `forget`; only those that were."""
        rows = _ROW.iter_unpack(self._memory[_HEAD.size :])
        return {self._names[name]: hits for name, hits in rows if hits}

    def forget(self) -> None:
        for row in range(_ROWS):
            struct.pack_into("<Q", self._memory, _HEAD.size + row * _ROW.size + 8, 0)
