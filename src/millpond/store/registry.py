"""Where stores are found: one private directory per user, one directory in it per store (files.py).

The root is `$MILLPOND_DIR`, or `/tmp/millpond-<uid>`; in it lie `dirlock` and the directories of the stores,
each named by its uuid.
Invariants: everything here is verified to be this user's alone before it is used (private.py); what is alive
is never removed; create and find run under `locked(root)`, and a member that joins holds it until its byte
lock is taken, so what is dead then stays dead; nothing is written when members come or go. A sweep looks
under `locked(root)` and removes without it, since a disk may hang: whoever has the flock of a dead store's
directory removes it, alone, and its record last.
Not here: the memory of a store and how it is joined (peers.py), slots (the kernel), what lies in a
spill directory (spill/).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from millpond import descriptors
from millpond.errors import AttachError, MillpondError, SpillError, StoreBusyError
from millpond.spill import directory as spill_directory
from millpond.spill import owner
from millpond.spill.sweep import sweep_abandoned
from millpond.store.files import StoreFiles, check_name, probe, read_name, read_spill, write_json
from millpond.store.peers import describe, lock_holder
from millpond.store.private import open_private, refuse_unless_private

__all__ = [
    "Removed",
    "StoreInfo",
    "create",
    "find",
    "list_stores",
    "locked",
    "retire",
    "root_of",
    "sweep",
    "usable",
]

DIRLOCK_TIMEOUT_S = 10.0

_UUID = re.compile(r"[0-9a-f]{32}")


class StoreInfo(NamedTuple):
    """A store that is alive."""

    address: str
    """The absolute path of its directory, which `connect` takes."""
    name: str | None
    uuid: bytes
    pids: tuple[int, ...]
    """Its members' processes, as far as they are known."""


class Removed(NamedTuple):
    """A directory that a sweep removed, or would."""

    path: str
    bytes: int
    """What its files occupied on disk."""


def root_of(key: str | bytes | None = None) -> str:
    """The verified directory of the registry in which `key` (a name, an address, a uuid) is looked up.

    Created if it is missing, unless an address names it. Raises AttachError when it cannot be had or is
    not safe to use.
    """
    named = isinstance(key, str) and key.startswith("/")
    if named and not _UUID.fullmatch(os.path.basename(os.path.normpath(str(key)))):
        raise AttachError(
            f"{key!r} is no address of a store: pass store.address, which ends in 32 hex digits, or a name"
        )
    if named:
        path = os.path.dirname(os.path.normpath(str(key)))
    else:
        path = os.path.abspath(os.environ.get("MILLPOND_DIR") or f"/tmp/millpond-{os.geteuid()}")
    try:
        with suppress(FileExistsError):
            if not named:
                os.mkdir(path, 0o700)
        refuse_unless_private(path, os.lstat(path), stat.S_IFDIR)
    except OSError as error:
        raise _unusable(path, error) from error
    return path


@contextmanager
def usable(path: str) -> Iterator[None]:
    """A context in which the registry at `path` is used: what the system refuses is an AttachError."""
    try:
        yield
    except MillpondError:
        raise
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: str, error: OSError) -> AttachError:
    cause = "Set MILLPOND_DIR to a directory of your own, the same for all processes"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        cause = "Raise the limit on open files (ulimit -n), or close stores: each takes a dozen"
    return AttachError(f"the registry {path} cannot be used: {error.strerror}. {cause}")


@contextmanager
def locked(root: str, timeout: float = DIRLOCK_TIMEOUT_S) -> Iterator[None]:
    """Excludes every other process and thread from creating, finding and sweeping in `root`.

    Waits `timeout` seconds, then raises StoreBusyError naming the process that is in there. Raises
    AttachError where no file can be made or locked.
    """
    with usable(root):
        fd = _lock_file(f"{root}/dirlock", time.monotonic() + timeout)
    try:
        yield
    finally:
        _let_go(fd)


def _lock_file(path: str, deadline: float) -> int:
    pause = 0.0005
    while True:
        fd = open_private(path, os.O_RDWR | os.O_CREAT)
        try:
            while not _try_flock(fd):
                if time.monotonic() > deadline:
                    raise StoreBusyError(_busy_text(path, fd))
                time.sleep(pause)
                pause = min(2 * pause, 0.02)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.lstat(path)):
                    return fd
        except BaseException:
            descriptors.close(fd)
            raise
        # Somebody removed the file: whoever comes next locks another one.
        descriptors.close(fd)


def _try_flock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _busy_text(path: str, fd: int) -> str:
    holder = lock_holder(fd)
    who = describe(holder) if holder else "another process"
    return f"{who} holds {path} and does not let go. Resume or end it, then try again"


def create(root: str, uuid: bytes, name: str | None = None, spill: tuple[str, ...] = ()) -> StoreFiles:
    """The directory of a new store. Call it under `locked(root)`, and stay there until the member has
    its byte lock: without one the store counts as dead.

    `spill`: the directories under which the store may spill, for the sweep after its death.
    Raises AttachError when a live store has that name, ValueError for a name that cannot be one.
    """
    if name is not None:
        check_name(name)
        for info in list_stores(root):
            if info.name == name:
                raise AttachError(
                    f"the name {name!r} is taken by the store at {info.address} (processes "
                    f"{', '.join(map(str, info.pids)) or 'not known'}). Use millpond.connect({name!r}) to "
                    "join it, or choose another name"
                )
    path = f"{root}/{uuid.hex()}"
    try:
        os.mkdir(path, 0o700)
        write_json(f"{path}/spill", [os.path.abspath(base) for base in spill])
        write_json(f"{path}/name", name)
        for file in ("birth", "lock"):
            descriptors.close(open_private(f"{path}/{file}", os.O_RDWR | os.O_CREAT | os.O_EXCL))
        return StoreFiles(path)
    except OSError as error:
        raise _unusable(path, error) from error


def find(root: str, key: str | bytes) -> StoreFiles:
    """The files of the live store with that name, address or uuid. Call it under `locked(root)`.

    `root`: `root_of(key)`. Raises AttachError when there is no such store or its files are refused.
    """
    path = _path_of(root, key)
    if path is None:
        raise _not_found(root, key)
    try:
        files = StoreFiles(path)
    except FileNotFoundError:
        raise _not_found(root, key) from None
    except OSError as error:
        raise AttachError(f"the store at {path} cannot be opened: {error.strerror}") from error
    try:
        if files.live_pids():
            return files
    except BaseException:
        files.close()
        raise
    files.close()
    raise _not_found(root, key)


def _path_of(root: str, key: str | bytes) -> str | None:
    if isinstance(key, bytes):
        return f"{root}/{key.hex()}"
    if key.startswith("/"):
        uuid = os.path.basename(os.path.normpath(key))
        return f"{root}/{uuid}" if _UUID.fullmatch(uuid) else None
    return next((info.address for info in list_stores(root) if info.name == key), None)


def _not_found(root: str, key: str | bytes) -> AttachError:
    what = f"with the id {key.hex()}" if isinstance(key, bytes) else f"at {key}"
    if isinstance(key, str) and not key.startswith("/"):
        what = f"named {key!r}"
    names = sorted(repr(info.name) if info.name else info.address for info in list_stores(root))
    there = f"Alive there: {', '.join(names)}" if names else "No store is alive there"
    return AttachError(
        f"no live store {what} in {root}: it never was, or all of its members have ended. {there}. "
        "Processes with another MILLPOND_DIR or user do not see each other's stores"
    )


def _directories(root: str) -> Iterator[tuple[str, bytes]]:
    """(path, uuid) of every directory in `root` that belongs to a store of this user."""
    for name in sorted(os.listdir(root)):
        path = f"{root}/{name}"
        if _UUID.fullmatch(name):
            with suppress(OSError, AttachError):
                refuse_unless_private(path, os.lstat(path), stat.S_IFDIR)
                yield path, bytes.fromhex(name)


def list_stores(root: str) -> list[StoreInfo]:
    """All stores in `root` that are alive, in the order of their uuids."""
    found = []
    for path, uuid in _directories(root):
        with suppress(OSError, AttachError):
            if slots := probe(path):
                pids = tuple(sorted({pid for pid in slots.values() if pid > 0}))
                found.append(StoreInfo(path, read_name(path), uuid, pids))
    return found


def sweep(
    root: str,
    dry_run: bool = False,
    bases: Iterable[Path] = (),
    only: bytes | None = None,
    timeout: float = DIRLOCK_TIMEOUT_S,
) -> list[Removed]:
    """Removes what dead stores have left in `root` and in their spill directories, and returns it;
    with `dry_run` it only returns it. What another sweep is removing is left to it.

    A spill directory that cannot be removed now keeps its store's record, for the next sweep. `bases` are
    looked through for spill directories of stores that have no record in any registry any more. `only`: the
    store with that uuid, and no other. Takes `locked(root, timeout)` for the look: raises what that raises.
    """
    removed: list[Removed] = []
    with ExitStack() as claims:
        with locked(root, timeout):
            known = dict(_directories(root))
            dead = [path for path, uuid in known.items() if only in (None, uuid) and _claim(path, claims)]
        for base in bases:
            found = sweep_abandoned(base, known.values(), dry_run)
            removed += [Removed(str(path), nbytes) for path, nbytes in found]
        for path in dead:
            with suppress(OSError, AttachError, SpillError):
                removed += _bury(path, known[path], dry_run)
    return removed


def _claim(path: str, claims: ExitStack) -> bool:
    """Whether the store is dead and left to us: nobody else removes it as long as `claims` are open."""
    with suppress(OSError, AttachError):
        # Without `lock` its creator died before the store was complete, or somebody removed the file.
        with suppress(FileNotFoundError):
            if probe(path):
                return False
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | descriptors.OPEN_FLAGS)
        claims.callback(_let_go, fd)
        return _try_flock(fd)
    return False


def _let_go(fd: int) -> None:
    # A child forked meanwhile shares the lock: it ends here, not with the child's descriptor.
    with suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
    descriptors.close(fd)


def _bury(path: str, uuid: bytes, dry_run: bool) -> Iterator[Removed]:
    """Removes a dead store, its spill directories first: a sweep that was killed can be repeated."""
    for base in map(Path, read_spill(path)):
        spilled = spill_directory.store_directory(base, uuid)
        if spilled.is_dir():
            found = Removed(str(spilled), spill_directory.used_bytes(spilled))
            if not dry_run:
                spill_directory.sweep(base, uuid)
            yield found
        elif not dry_run:
            owner.remove(spilled)
    found = Removed(path, spill_directory.used_bytes(path))
    if not dry_run:
        for name in os.listdir(path):
            os.unlink(f"{path}/{name}")
        os.rmdir(path)
    yield found


def retire(files: StoreFiles, timeout: float = 0.5) -> None:
    """Ends this process's part in a store ahead of its exit, and removes the store if that was the last.

    For the end of the process only: its locks are dropped although views of the store may be left. They
    stay valid, since nobody takes a live process's pins. Does nothing if `files` are closed; a sweep that
    cannot have the lock within `timeout` seconds is left to the next.
    """
    if files.closed:
        return
    root = os.path.dirname(files.path)
    with suppress(MillpondError, OSError):
        with locked(root, timeout):
            files.close()
        sweep(root, only=files.uuid, timeout=timeout)
