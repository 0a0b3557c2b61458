"""The files of one store in its registry: what lies in them, and who of its members is alive.

Layout: `<root>/<store uuid>/` with
    lock    byte locks (POSIX) of the members, at the offset of their slot
    birth   byte locks (OFD) of forked children that have none in `lock` yet, at the same offsets
    name    the store's name as JSON, null if it has none
    spill   the directories that it spills to, a JSON list
Invariants: a store is alive as long as one byte of `lock` or `birth` is locked. Each member also keeps a
shared flock on the store's directory: while anybody has it, cleaners of old files and sweeps leave the store
alone even if somebody has removed `lock`. A process opens a `lock` file at most once: closing *any*
descriptor of a file drops all POSIX locks that the process has on it.
Not here: making, finding and removing such directories (registry.py), taking a byte lock (the kernel).
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import threading
from contextlib import suppress
from typing import Any

from millpond import descriptors
from millpond.spill.directory import is_path
from millpond.store.peers import live_slots
from millpond.store.private import open_private

__all__ = ["StoreFiles", "check_name", "probe", "read_name", "read_spill", "write_json"]

NAME_BYTES_MAX = 240


class _Descriptors:
    """The open files of one store in this process, shared by all that use them."""

    def __init__(self, path: str) -> None:
        self.users = 0
        opened: list[int] = []
        try:
            opened.append(open_private(path, os.O_RDONLY | os.O_DIRECTORY, stat.S_IFDIR))
            opened.append(open_private(f"{path}/lock", os.O_RDWR))
            opened.append(open_private(f"{path}/birth", os.O_RDWR))
            with suppress(BlockingIOError):  # a cleaner is just looking at it
                fcntl.flock(opened[0], fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BaseException:
            descriptors.close(*opened)
            raise
        self.directory, self.lock, self.birth = opened

    def close(self) -> None:
        descriptors.close(self.lock, self.birth, self.directory)


# Which `lock` files are open here, by (device, inode). The mutex is also held while a foreign one is
# opened and closed again, and over fork, so that no child inherits a descriptor it does not know of.
# Reentrant, since the garbage collector may close a store in the middle of any section.
_open: dict[tuple[int, int], _Descriptors] = {}
_mutex = threading.RLock()
os.register_at_fork(before=_mutex.acquire, after_in_parent=_mutex.release, after_in_child=_mutex.release)


class StoreFiles:
    """A store's directory, opened. Close it after the member's slot is released: closing the last one
    of a store in a process drops the byte locks that this process has there."""

    def __init__(self, path: str) -> None:
        """Opens the files of the store at `path`. Raises AttachError or OSError."""
        self.path = path
        self.uuid = bytes.fromhex(os.path.basename(path))
        self.name = read_name(path)
        self.spill = read_spill(path)
        self._closed = False
        with _mutex:
            self._key = _key(path)
            fds = _open.get(self._key)
            if fds is None:
                fds = _open[self._key] = _Descriptors(path)
            fds.users += 1
            self._fds = fds

    @property
    def lock_fd(self) -> int:
        """The descriptor for POSIX byte locks of members."""
        return self._fds.lock

    @property
    def birth_fd(self) -> int:
        """The descriptor for seeing the byte locks of forked children."""
        return self._fds.birth

    def live_pids(self) -> dict[int, int]:
        """slot -> process of every live member; see `peers.live_slots`."""
        return live_slots(self.lock_fd, self.birth_fd)

    def close(self) -> None:
        """Gives the descriptors back. Idempotent."""
        with _mutex:
            if self._closed:
                return
            self._closed = True
            self._fds.users -= 1
            if self._fds.users == 0:
                del _open[self._key]
                self._fds.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed


def _key(path: str) -> tuple[int, int]:
    status = os.lstat(f"{path}/lock")
    return status.st_dev, status.st_ino


def probe(path: str) -> dict[int, int]:
    """`live_slots` of a store that may or may not be open in this process."""
    with _mutex:
        mine = _open.get(_key(path))
        if mine:
            return live_slots(mine.lock, mine.birth)
        foreign = _Descriptors(path)
        try:
            return live_slots(foreign.lock, foreign.birth)
        finally:
            foreign.close()


def check_name(name: str) -> None:
    if not isinstance(name, str):
        raise TypeError(f"the name of a store is text, not {type(name).__name__}")
    length = len(name.encode("utf-8", "replace"))
    if not name or name.startswith("/") or not name.isprintable() or length > NAME_BYTES_MAX:
        raise ValueError(
            f"{name!r} cannot name a store: use printable text of 1 to {NAME_BYTES_MAX} bytes that does "
            "not begin with '/' (that is an address)"
        )


def write_json(path: str, value: Any) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | descriptors.OPEN_FLAGS, 0o600)
    descriptors.write_whole(fd, json.dumps(value).encode())


def _read_json(path: str) -> Any:
    """What `_write_json` wrote; None if it is missing, was cut short by a kill, or is anything else."""
    try:
        return json.loads(descriptors.read_whole(open_private(path, os.O_RDONLY)))
    except (FileNotFoundError, ValueError, RecursionError):
        return None


def read_name(path: str) -> str | None:
    name = _read_json(f"{path}/name")
    with suppress(TypeError, ValueError):
        check_name(name)
        return str(name)
    return None


def read_spill(path: str) -> tuple[str, ...]:
    bases = _read_json(f"{path}/spill")
    return tuple(filter(is_path, bases)) if isinstance(bases, list) else ()
