"""Whose a spill directory is, so that it can be told apart from what a dead store has left.

Layout: `<store uuid>.owner` beside each store's spill directory, JSON: the boot that it belongs to, the name
of the machine, and the store's directory in the registry. Written before the directory is made, removed
after it.
Invariants: each member keeps a shared flock on the spill directory from before its first file there until it
leaves; so does a forked child. Whoever has the exclusive lock is alone with it: there is no member. The
lock also keeps systemd-tmpfiles and its like away.
A directory is abandoned if nobody locks it and it is of an earlier boot of this machine, or of this boot and
its registry entry is gone. While the entry is there, the registry decides. What another machine has made on
a shared filesystem is left alone, since its locks may not be seen here.
Not here: removing files (`directory`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from millpond import descriptors

SUFFIX: Final = ".owner"


def boot_id() -> str:
    """Which boot of this machine it is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def file_of(directory: Path) -> Path:
    """The file that says whose `directory` is."""
    return directory.with_name(directory.name + SUFFIX)


def sign(directory: Path, registry: str | None) -> None:
    """Writes whose `directory` is, unless that is known. `registry`: the store's directory there."""
    if os.path.lexists(file_of(directory)):
        return  # known: nothing is written, which would wait for a disk that hangs
    text = json.dumps({"boot_id": boot_id(), "host": os.uname().nodename, "registry": registry})
    with suppress(FileExistsError):
        fd = os.open(file_of(directory), os.O_WRONLY | os.O_CREAT | os.O_EXCL | descriptors.OPEN_FLAGS, 0o600)
        descriptors.write_whole(fd, text.encode())


def remove(directory: Path) -> None:
    """Nothing is left of `directory`."""
    with suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(file_of(directory))


def use(directory: Path, timeout: float = 2.0) -> int | None:
    """A descriptor that marks `directory` as in use until it is closed. None: it is gone, make it again.

    Raises OSError: EBUSY when somebody who might remove it does not go on within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | descriptors.OPEN_FLAGS)
    except FileNotFoundError:
        return None
    try:
        while not _lock(fd, fcntl.LOCK_SH):
            if time.monotonic() > deadline:
                raise OSError(
                    errno.EBUSY, "another process is removing it and does not go on", str(directory)
                )
            time.sleep(0.001)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.lstat(directory)):
                return fd
    except BaseException:
        descriptors.close(fd)
        raise
    descriptors.close(fd)
    return None


def _lock(fd: int, kind: int) -> bool:
    """Whether nobody is in the way. On a filesystem without locks nobody is, and nothing is abandoned."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return kind == fcntl.LOCK_SH
    return True


@contextmanager
def abandoned(directory: Path) -> Iterator[bool]:
    """Whether no process can be using `directory` any more; if so, none can begin to in the `with` block."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | descriptors.OPEN_FLAGS)
    except FileNotFoundError:  # killed before it made the directory, or after it removed it
        yield _is_left(file_of(directory), _read(directory))
        return
    except OSError:
        yield False
        return
    try:
        yield _is_left(directory, _read(directory)) and _lock(fd, fcntl.LOCK_EX)
    finally:
        descriptors.close(fd)


def _is_left(path: Path, owner: dict[str, Any] | None) -> bool:
    if owner is None:  # damaged, or removed by somebody: only its age tells
        with suppress(OSError):
            return os.lstat(path).st_ctime < time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        return False
    if owner.get("boot_id") != boot_id():
        return owner.get("host") == os.uname().nodename
    registry = owner.get("registry")
    return registry is None or not os.path.lexists(str(registry))


def _read(directory: Path) -> dict[str, Any] | None:
    try:
        fd = os.open(file_of(directory), os.O_RDONLY | descriptors.OPEN_FLAGS)
        found = json.loads(descriptors.read_whole(fd))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
