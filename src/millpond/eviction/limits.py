"""How much memory this process may use, and how much of that is still to be had.

What counts is the least of: the machine's RAM, and the limit of every memory cgroup that this process
is in, up to the root (version 1, version 2, or both as in hybrid mode; a cgroup whose ancestors are
hidden by a container tells their limit itself in version 1).
Invariants: limits may change while running, so everything is read anew; what cannot be read for a moment is
as it was. Descriptors are read with pread, which moves no offset, so forked children can share them; they are
closed on exec. A file that is missing or vanishes sets no limit.
Not here: the store's own limit, and what is done when memory is short (store/).
"""

from __future__ import annotations

import errno
import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from millpond import descriptors
from millpond.errors import AttachError

__all__ = ["Machine", "default_memory_limit", "headroom", "usable_memory"]

DEFAULT_SHARE: Final = 0.30
FLOOR_SHARE: Final = 0.02
FLOOR_BYTES: Final = 256 << 20
MEMORY_LIMIT_MIN: Final = 1 << 20

_READ_BYTES: Final = 16 << 10
_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENODEV)
_UNLIMITED: Final = 1 << 62  # version 1 says "none" with the largest number of pages


class _File:
    """A small file of the kernel's that is read again and again."""

    def __init__(self, path: str) -> None:
        """Raises OSError if it is there and cannot be opened now."""
        self._text: bytes | None = None
        self._fd: int | None = None
        with _unless_absent():
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> bytes | None:
        """The contents, as they were if they cannot be read now; None if there is no such file (any more)."""
        if self._fd is not None:
            try:
                self._text = os.pread(self._fd, _READ_BYTES, 0)
            except OSError as error:
                if error.errno == errno.ENODEV:  # the cgroup was removed
                    self.close()
        return self._text

    def number(self) -> int | None:
        """The number that it holds; None if there is none, or "max"."""
        text = self.read()
        return int(text) if text and text[:1].isdigit() else None

    def field(self, name: bytes) -> int | None:
        """The number in the line that begins with `name`."""
        return _field(self.read(), name)

    def close(self) -> None:
        fd, self._fd, self._text = self._fd, None, None
        if fd is not None:
            descriptors.close(fd)

    def __del__(self) -> None:
        self.close()


@contextmanager
def _unless_absent() -> Iterator[None]:
    """Errors that come from a file's not being there, for us, are none."""
    try:
        yield
    except OSError as error:
        if error.errno not in _ABSENT:
            raise


def _field(text: bytes | None, name: bytes) -> int | None:
    if text is None:
        return None
    start = text.find(b"\n" + name) + 1
    if start == 0 and not text.startswith(name):
        return None
    return int(text[start + len(name) : text.find(b"\n", start)].split()[0])


class _Group:
    """One memory cgroup."""

    def __init__(self, directory: str, limits: tuple[str, ...], usage: str, inactive: bytes) -> None:
        self.directory = directory
        self._limits = [_File(f"{directory}/{name}") for name in limits]
        self._usage = _File(f"{directory}/{usage}")
        self._stat = _File(f"{directory}/memory.stat")
        self._inactive = inactive

    def limit(self) -> int | None:
        """Most bytes that its processes may use; None: no limit."""
        found = [file.number() for file in self._limits]
        found.append(self._stat.field(b"hierarchical_memory_limit "))
        return min((limit for limit in found if limit is not None and limit < _UNLIMITED), default=None)

    def free(self, limit: int) -> int:
        """What is left of `limit`. File pages that nobody used lately are as good as free."""
        usage = self._usage.number()
        return limit if usage is None else limit - usage + (self._stat.field(self._inactive) or 0)

    def close(self) -> None:
        for file in (*self._limits, self._usage, self._stat):
            file.close()


class Machine:
    """The memory of the machine and of this process's cgroups, as /proc tells."""

    def __init__(self, proc: str = "/proc") -> None:
        """Finds the cgroups that this process is in now; `proc` is the root of procfs."""
        self._meminfo = _File(f"{proc}/meminfo")
        self._groups = [_Group(*where) for where in _find_groups(proc)]

    def usable_memory(self) -> int:
        """Bytes that this process may use at most: RAM, or the tightest cgroup limit above it."""
        return min(limit for _, limit in self.bounds())

    def bounds(self) -> list[tuple[str, int]]:
        """(who, bytes) of everything that bounds this process's memory: RAM, then cgroups by directory."""
        limits = ((group.directory, group.limit()) for group in self._groups)
        groups = [(f"the cgroup {where}", limit) for where, limit in limits if limit is not None]
        return [("RAM", self._bytes(b"MemTotal:")), *groups]

    def headroom(self) -> int:
        """Bytes that may still be committed before the machine or a cgroup is short.

        Negative: it is short by so much, and the store should give memory back. A floor stays free:
        2 % of what may be used, and at least the lesser of 256 MiB and an eighth of it.
        """
        usable = self._bytes(b"MemTotal:")
        free = self._bytes(b"MemAvailable:")
        for group in self._groups:
            limit = group.limit()
            if limit is not None:
                usable = min(usable, limit)
                free = min(free, group.free(limit))
        return free - max(int(usable * FLOOR_SHARE), min(FLOOR_BYTES, usable // 8))

    def _bytes(self, name: bytes) -> int:
        kibibytes = self._meminfo.field(name)
        return _UNLIMITED if kibibytes is None else kibibytes << 10

    def close(self) -> None:
        """Closes the descriptors."""
        self._meminfo.close()
        for group in self._groups:
            group.close()


def _find_groups(proc: str) -> Iterator[tuple[str, tuple[str, ...], str, bytes]]:
    """The arguments of _Group for every memory cgroup that this process is in, innermost first."""
    paths = dict(_cgroup_paths(proc))
    for version, mount_point, mount_root in _cgroup_mounts(proc):
        if version not in paths:
            continue
        for directory in _upwards(mount_point, mount_root, paths[version]):
            if version == 1:
                yield directory, ("memory.limit_in_bytes",), "memory.usage_in_bytes", b"total_inactive_file "
            else:
                # Above `high` the system stalls whoever takes memory that it cannot reclaim, as ours.
                yield directory, ("memory.max", "memory.high"), "memory.current", b"inactive_file "


def _cgroup_paths(proc: str) -> Iterator[tuple[int, str]]:
    """(version, path) of this process in the hierarchies that can limit memory."""
    for line in _lines(f"{proc}/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield 2, path
        elif "memory" in controllers.split(","):
            yield 1, path


def _cgroup_mounts(proc: str) -> Iterator[tuple[int, str, str]]:
    """(version, where it is mounted, which directory of it) of the same hierarchies."""
    for line in _lines(f"{proc}/self/mountinfo"):
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, mount_point = map(_unescaped, before.split(" ")[3:5])
        if kind == "cgroup2":
            yield 2, mount_point, root
        elif kind == "cgroup" and "memory" in options.split(","):
            yield 1, mount_point, root


def _lines(path: str) -> list[str]:
    text = ""
    with _unless_absent(), open(path, encoding="utf-8", errors="surrogateescape") as file:
        text = file.read()
    return [line for line in text.splitlines() if line]


def _unescaped(field: str) -> str:
    """mountinfo writes blanks and backslashes as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _upwards(mount_point: str, mount_root: str, path: str) -> Iterator[str]:
    """The directories from the cgroup `path` up to the mount point, as far as they can be seen."""
    inside = os.path.relpath(path, mount_root)
    # In a container the path may lie outside of what is mounted there: then that is all we see.
    steps = [] if inside == "." or inside.startswith("..") else inside.split("/")
    for depth in range(len(steps), -1, -1):
        yield "/".join([mount_point, *steps[:depth]])


@functools.cache
def _machine() -> Machine:
    try:
        return Machine()
    except OSError as error:
        raise AttachError(
            f"{error.filename}, which limits the memory of this process, cannot be read: {error.strerror}. "
            "If too many files are open, raise that limit (ulimit -n)"
        ) from error


def usable_memory() -> int:
    """`Machine.usable_memory` of this machine. Raises AttachError if that cannot be read now."""
    return _machine().usable_memory()


def default_memory_limit() -> int:
    """The `memory_limit` of a store that was given none: 30 % of what this process may use."""
    return max(MEMORY_LIMIT_MIN, int(usable_memory() * DEFAULT_SHARE))


def headroom() -> int:
    """`Machine.headroom` of this machine."""
    return _machine().headroom()
