"""Files and buffers for direct I/O: opening, whole reads and writes, and what a filesystem allows.

Invariants: every system call of the disk side goes through a `System`, so that a test can make the
Nth one fail; a write returns when every byte is written, else it raises; descriptors are close-on-exec,
never follow a symbolic link, and are closed with their last reference, whatever interrupts the opening;
buffers for direct I/O start on a page and are private to the process.
Descriptors for reading are not kept open: opening and closing costs 1 us beside the 65 us of a direct
read of one page, and a descriptor that an idle process keeps would hold the blocks of a file that
somebody else has unlinked.
Not here: where files lie (`directory`), what is in them (`record`).
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from operator import index
from pathlib import Path
from typing import Final, SupportsIndex

import numpy as np

from millpond.descriptors import OPEN_FLAGS
from millpond.errors import SpillError
from millpond.hot import Descriptor, punch_hole
from millpond.spill.record import PAGE
from millpond.units import format_bytes

CALL_BYTES: Final = 8 << 20
"""Most bytes of payload in one call: more is not faster, less is."""
NOT_OURS: Final = "not a regular file of this user"
_IOV_MAX: Final = 1024
_GIL_COPY_MAX: Final = 64 << 10
_Call = Callable[[SupportsIndex, Sequence[memoryview], int], int]
_probes = count()


class System:
    """The system calls of the disk side, one method each. Subclass it to make them fail."""

    def open(self, path: str, flags: int, mode: int = 0o600) -> Descriptor:
        return Descriptor(path, flags | OPEN_FLAGS, mode)

    def close(self, fd: Descriptor) -> None:
        fd.close()

    def fstat(self, fd: SupportsIndex) -> os.stat_result:
        return os.fstat(index(fd))

    def pwritev(self, fd: SupportsIndex, buffers: Sequence[memoryview], offset: int) -> int:
        return os.pwritev(index(fd), buffers, offset)

    def preadv(self, fd: SupportsIndex, buffers: Sequence[memoryview], offset: int) -> int:
        return os.preadv(index(fd), buffers, offset)

    def fdatasync(self, fd: SupportsIndex) -> None:
        os.fdatasync(index(fd))

    def punch(self, fd: SupportsIndex, offset: int, length: int) -> None:
        punch_hole(index(fd), offset, length)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def statvfs(self, path: str) -> os.statvfs_result:
        return os.statvfs(path)


def aligned_buffer(nbytes: int) -> memoryview:
    """`nbytes` of private memory that starts on a page; freed with its last view.

    Not shared with forked children, unlike the default of an anonymous mmap. Raises SpillError (ENOMEM).
    """
    try:
        return memoryview(mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    except OSError as error:
        raise SpillError(
            error.errno,
            f"no {format_bytes(nbytes)} of private memory for what goes to the disk or comes from there: "
            f"{error.strerror}. Nothing is lost; is the address space limited (ulimit -v)?",
        ) from error


class BufferPool:
    """Aligned buffers of one size that threads borrow: warm pages are many times faster than fresh ones."""

    def __init__(self, nbytes: int, keep: int) -> None:
        """Buffers of `nbytes`; at most `keep` of them stay when nobody uses them."""
        self.nbytes = nbytes
        self._keep = keep
        self._idle: list[memoryview] = []

    @contextmanager
    def borrow(self) -> Iterator[memoryview]:
        """A buffer for the length of a `with` block. Its bytes are anything."""
        try:
            buffer = self._idle.pop()
        except IndexError:
            buffer = aligned_buffer(self.nbytes)
        try:
            yield buffer
        finally:
            if len(self._idle) < self._keep:
                self._idle.append(buffer)


def copy_bytes(target: memoryview, source: memoryview) -> None:
    """target[:] = source, letting other threads run while a large one is copied."""
    if len(source) > _GIL_COPY_MAX:
        np.copyto(np.frombuffer(target, np.uint8), np.frombuffer(source, np.uint8))
    else:
        target[:] = source


def write_all(system: System, fd: SupportsIndex, buffers: Sequence[memoryview], offset: int) -> int:
    """Writes `buffers`, each a whole number of pages, one after another from `offset` on.

    Returns the bytes written, which is always all of them. A call that writes less than it was given
    is repeated for the rest; raises OSError when the system refuses or gets nowhere.
    """
    return _move_all(system.pwritev, fd, buffers, offset, errno.EIO)


def read_all(system: System, fd: SupportsIndex, buffers: Sequence[memoryview], offset: int) -> int:
    """Fills `buffers`, each a whole number of pages, from `offset` on.

    Returns the bytes read: fewer than asked for only where the file ends, and then whole pages.
    """
    return _move_all(system.preadv, fd, buffers, offset, 0)


def _move_all(call: _Call, fd: SupportsIndex, buffers: Sequence[memoryview], offset: int, stuck: int) -> int:
    """Repeats `call` until everything has moved, each time from a page on, as direct I/O wants it."""
    total = sum(len(buffer) for buffer in buffers)
    done = 0
    while done < total:
        moved = call(fd, _rest(buffers, done)[:_IOV_MAX], offset + done)
        if done + moved == total:
            return total
        step = moved & -PAGE
        if step == 0:
            if stuck:
                raise OSError(stuck, f"only {done + moved} of {total} bytes could be written")
            return done
        done += step
    return total


def _rest(buffers: Sequence[memoryview], done: int) -> list[memoryview]:
    """What is left of `buffers` after their first `done` bytes."""
    rest = []
    for buffer in buffers:
        if done < len(buffer):
            rest.append(buffer[done:] if done else buffer)
        done = max(0, done - len(buffer))
    return rest


def open_new(system: System, path: str, direct: bool) -> Descriptor:
    """A descriptor for writing a file that must not exist yet, mode 0600."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    return system.open(path, flags | (os.O_DIRECT if direct else 0))


@contextmanager
def opened(system: System, path: str, direct: bool) -> Iterator[Descriptor]:
    """A descriptor for reading the regular file of this user at `path`.

    Raises OSError; ESTALE when something else lies there.
    """
    try:
        fd = system.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket, or a device that is not there
            raise OSError(errno.ESTALE, NOT_OURS, path) from error
        raise
    try:
        if not is_own_file(system.fstat(fd)):
            raise OSError(errno.ESTALE, NOT_OURS, path)
        yield fd
    finally:
        system.close(fd)


def is_own_file(status: os.stat_result) -> bool:
    """Whether it is a regular file of this user."""
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def probe_direct(system: System, directory: str) -> bool:
    """Whether files in `directory` can be written past the page cache, page by page.

    Opening alone proves nothing: some filesystems refuse at the first write. Raises OSError when the
    directory cannot be written to at all.
    """
    page = [aligned_buffer(PAGE)]
    try:
        fd = _open_probe(system, directory)
        try:
            return system.pwritev(fd, page, 0) == PAGE
        finally:
            system.close(fd)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            return False
        raise


def _open_probe(system: System, directory: str) -> Descriptor:
    """A new file without a name: whoever is killed now leaves nothing behind. Where the filesystem has no
    such files, one whose name is gone when this returns."""
    try:
        return system.open(directory, os.O_WRONLY | os.O_TMPFILE | os.O_DIRECT)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):  # open(2); the latter before Linux 3.11
            raise
    path = os.path.join(directory, f"probe-{os.getpid()}-{next(_probes)}")
    try:
        return open_new(system, path, direct=True)
    finally:
        with suppress(OSError):
            system.unlink(path)  # open leaves the file behind when it refuses only the flag


def free_space(system: System, directory: str) -> tuple[int, int]:
    """Bytes that this user may still write to the filesystem of `directory`, and its size in bytes."""
    status = system.statvfs(directory)
    return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize


def is_memory_filesystem(directory: str | Path) -> bool:
    """Whether `directory` lies in memory (tmpfs, ramfs), where spilling would free nothing; False where the
    system does not say."""
    device = os.stat(directory).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with (
        suppress(OSError),
        open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts,
    ):
        for line in mounts:
            mount, _, source = line.partition(" - ")
            if mount.split(" ")[2] == wanted:
                return source.split(" ")[0] in ("tmpfs", "ramfs")
    return False
