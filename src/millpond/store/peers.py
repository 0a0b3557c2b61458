"""The processes that share a store, and the memory that they hand to each other.

A store's memory is two memfds, which have no name in any file system: a new member takes them from a
live one through `/proc/<pid>/fd`. Liveness is a byte lock that the system itself releases.
Invariants: a memfd is used only if it is this user's, sealed against resizing and not empty; nothing
here trusts a pid: it may have been reused, so the descriptor's name carries the store's uuid.
Not here: directories (registry.py), what the memory holds (the kernel checks that).
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress

from millpond import descriptors
from millpond.errors import AttachError
from millpond.spill import owner

__all__ = [
    "boot_id",
    "create_memfds",
    "describe",
    "live_slots",
    "lock_holder",
    "open_memfds",
    "pid_namespace",
]

SLOTS = 256

_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid
_MFD_NOEXEC_SEAL = 0x8
_OPEN_FILES = "raise the limit on open files (ulimit -n)"
_SANDBOX = "a sandbox (seccomp) forbids a call: allow memfd_create, ftruncate, and fcntl with F_ADD_SEALS"
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def live_slots(lock_fd: int, birth_fd: int) -> dict[int, int]:
    """slot -> pid of every slot that is locked in either file, by this process too.

    The pid is 0 for a process of another pid namespace, and -1 for a forked child that has no lock
    of its own yet (or shares the last slot). `birth_fd` must not be the descriptor that holds a lock.
    """
    slots = dict(_locks(birth_fd, 0, SLOTS))
    slots.update(_locks(lock_fd, 0, SLOTS))
    return dict(sorted(slots.items()))


def _locks(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """(offset, pid) of all locked bytes in [start, end). One call finds one lock, so a file without
    any costs one call."""
    if start >= end:
        return
    # Asked as the owner of an OFD lock, the system also reports POSIX locks of this very process.
    query = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, end - start, 0)
    kind, _, first, length, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, query))
    if kind == fcntl.F_UNLCK:
        return
    # Neighbouring bytes that one process locks are one lock; length 0 reaches to the end of the file.
    last = end if length == 0 else min(end, first + length)
    yield from ((offset, pid) for offset in range(max(start, first), last))
    yield from _locks(fd, start, first)
    yield from _locks(fd, last, end)


def lock_holder(fd: int) -> int | None:
    """The process that holds the flock of an open file, as far as the system tells."""
    status = os.fstat(fd)
    file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with suppress(OSError), open("/proc/locks") as locks:
        for line in locks:
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5] == file and int(fields[4]) > 0:
                return int(fields[4])
    return None


def describe(pid: int) -> str:
    """A process for a message: its pid and, while it lives, its command."""
    with suppress(OSError), open(f"/proc/{pid}/comm") as file:
        return f"process {pid} ({file.read().strip()})"
    return f"process {pid}"


@functools.cache
def boot_id() -> bytes:
    """16 bytes that change with every start of the machine. Raises AttachError where there is no /proc."""
    try:
        return bytes.fromhex(owner.boot_id().replace("-", ""))
    except OSError as error:
        cause = "members of a store find each other in /proc: mount it"
        if error.errno == errno.EMFILE:
            cause = _OPEN_FILES
        raise AttachError(f"{error.filename}: {error.strerror}; {cause}") from error


def pid_namespace() -> int:
    """The inode of this process's pid namespace: pids and robust mutexes mean nothing outside it."""
    return os.stat("/proc/self/ns/pid").st_ino


def create_memfds(uuid: bytes, table_bytes: int, arena_bytes: int) -> tuple[int, int]:
    """(table, arena): two empty memfds of fixed size; their pages are taken as they are touched.

    Raises AttachError when the system refuses.
    """
    table = _create_memfd(_memfd_name("table", uuid), table_bytes)
    try:
        return table, _create_memfd(_memfd_name("arena", uuid), arena_bytes)
    except BaseException:
        descriptors.close(table)
        raise


def _memfd_name(kind: str, uuid: bytes) -> str:
    return f"millpond-{kind}-{uuid.hex()}"


def _create_memfd(name: str, size: int) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        try:
            fd = os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
        except OSError as error:
            if error.errno != errno.EINVAL:  # Linux before 6.3
                raise
            fd = os.memfd_create(name, flags)
        try:
            os.ftruncate(fd, size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            descriptors.close(fd)
            raise
    except OSError as error:
        raise AttachError(_memfd_refusal(size, error)) from error
    return fd


def _memfd_refusal(size: int, error: OSError) -> str:
    cause = {
        errno.EFBIG: "raise the limit on file sizes (ulimit -f), which counts memory files too",
        errno.EMFILE: _OPEN_FILES,
        errno.EACCES: "the system forbids memory files (sysctl vm.memfd_noexec)",
        errno.EPERM: _SANDBOX,
        errno.ENOSYS: _SANDBOX,
    }.get(error.errno or 0, "lower memory_limit")
    return f"no shared memory of {size} bytes of address space: {error.strerror}; {cause}"


def open_memfds(slots: dict[int, int], uuid: bytes) -> tuple[int, int]:
    """(table, arena) of a live store, taken from one of its members.

    `slots`: what `live_slots` said. Raises AttachError that says of each member why it did not do.
    """
    refusals = []
    for slot, pid in slots.items():
        if pid > 0:
            try:
                return _take_memfds(pid, uuid)
            except (OSError, AttachError) as error:
                refusals.append(f"member {slot}, {describe(pid)}: {_refusal(error)}")
        elif pid == 0:
            refusals.append(
                f"member {slot}: it runs in another pid namespace, and a store is shared within one only "
                "(for Docker: --pid=container:NAME)"
            )
    if -1 in slots.values():
        for pid in _own_processes():
            with suppress(OSError, AttachError):
                return _take_memfds(pid, uuid)
        refusals.append("forked children: none that may be asked has the memory")
    raise AttachError(f"store {uuid.hex()} cannot be joined. {'; '.join(refusals) or 'It has no members'}")


def _take_memfds(pid: int, uuid: bytes) -> tuple[int, int]:
    found = {}
    wanted = {f"/memfd:{_memfd_name(kind, uuid)} (deleted)": kind for kind in ("table", "arena")}
    for number in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            kind = wanted.get(os.readlink(f"/proc/{pid}/fd/{number}"))
            if kind:
                found[kind] = number
    if len(found) < 2:
        raise AttachError("it has no memory of this store open (any more)")
    table = _open_memfd(f"/proc/{pid}/fd/{found['table']}")
    try:
        return table, _open_memfd(f"/proc/{pid}/fd/{found['arena']}")
    except BaseException:
        descriptors.close(table)
        raise


def _open_memfd(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
            raise AttachError("its descriptor is not the memory of a store")
        if status.st_uid != os.geteuid():
            raise AttachError(f"its memory belongs to user {status.st_uid}, not to {os.geteuid()}")
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise AttachError("its memory is not sealed against resizing")
    except BaseException:
        descriptors.close(fd)
        raise
    return fd


def _refusal(error: OSError | AttachError) -> str:
    if isinstance(error, AttachError):
        return str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        return (
            "permission denied. Its descriptors can be opened only by the same user and group, and only "
            "while it is dumpable (not set-uid, no file capabilities, no prctl PR_SET_DUMPABLE 0)"
        )
    if error.errno in (errno.ENOENT, errno.ESRCH):
        return "it has just ended"
    return error.strerror or repr(error)


def _own_processes() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with suppress(OSError):
                if os.stat(f"/proc/{name}").st_uid == os.geteuid():
                    yield int(name)
