"""Where segment files lie: private directories, one of a store's own in each place it may spill to.

Layout: `<base>/millpond-<uid>/<store uuid>/<segment id>.seg`, ids as 16 hexadecimal digits; beside each
store's directory a file that says whose it is (owner.py).
Invariants: both directories belong to this user, have mode 0700 and are no symbolic links, which is
verified before the first use by every process; nothing but this store's files is ever removed.
A base in memory (tmpfs, ramfs) is used only if the user named it: spilling there frees nothing.
A directory that vanishes is made again only where its base is still what it was: not on the disk that lies
under a mount point which has lost its disk.
Not here: opening and writing files (`disk`, `segments`), which segments are dead (`sweep`).
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from millpond import descriptors, log
from millpond.errors import SpillError, StoreCorruptedError
from millpond.spill import owner
from millpond.spill.disk import System, free_space, is_memory_filesystem, probe_direct
from millpond.spill.trouble import Troubles
from millpond.units import format_bytes

ENVIRONMENT: Final = "MILLPOND_SPILL_DIR"
RETRY_S: Final = 10.0
"""How long a directory that failed is asked only after all others."""
FLOOR_BYTES: Final = 1 << 30
FLOOR_SHARE: Final = 0.02
FULL: Final = (errno.ENOSPC, errno.EDQUOT)
"""The errors that freeing space may help against."""

_VAR_TMP: Final = Path("/var/tmp")
_FILES: Final = re.compile(r"[0-9a-f]{16}\.seg|probe-\d+-\d+")
_UUID: Final = re.compile(r"[0-9a-f]{32}")


def default_base() -> Path:
    """The directory to spill under when the user named none: an existing, writable one on a disk.

    `$MILLPOND_SPILL_DIR` counts as named by the user. Raises SpillError when there is none.
    """
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named)
    reasons = []
    for base in _candidates():
        reason = _unfit(base)
        if reason is None:
            return base
        reasons.append(f"{base} {reason}")
    raise SpillError(
        errno.ENOENT, f"no directory to spill to: {'; '.join(reasons)}. Pass spill_dir or set {ENVIRONMENT}"
    )


def _candidates() -> Iterator[Path]:
    yield _VAR_TMP
    import tempfile  # seldom needed, and slow to import

    with suppress(FileNotFoundError):  # nothing that it knows is writable
        yield Path(tempfile.gettempdir())
    with suppress(RuntimeError):  # no home directory
        yield Path.home() / ".cache"


def usual_bases() -> list[Path]:
    """Where stores of this user spill unless they are told otherwise: where left-overs are looked for."""
    named = os.environ.get(ENVIRONMENT)
    return list(dict.fromkeys([*([Path(named)] if named else []), *_candidates()]))


def _unfit(base: Path) -> str | None:
    if not base.is_dir():
        return "is not a directory"
    if not os.access(base, os.W_OK | os.X_OK):
        return "is not writable"
    if is_memory_filesystem(base):
        return "lies in memory, where spilling frees nothing"
    return squatted(base)


def squatted(base: Path) -> str | None:
    """What is wrong with this user's directory under `base`, if anything: in a place for all, anybody may
    have made one of that name."""
    path = user_directory(base)
    with suppress(FileNotFoundError):
        if reason := _exposed(os.lstat(path)):
            return f"has a {path.name} that is refused: {reason}"
    return None


def is_path(text: object) -> bool:
    """Whether it can be the absolute path of a directory; what stands in a file may be anything."""
    try:
        return isinstance(text, str) and text.startswith("/") and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def user_directory(base: Path) -> Path:
    """The directory of this user under `base`; it may not exist."""
    return base / f"millpond-{os.geteuid()}"


def store_directory(base: Path, uuid: bytes) -> Path:
    """The directory of the store `uuid` under `base`; it may not exist."""
    return user_directory(base) / uuid.hex()


def prepare(base: Path, uuid: bytes, registry: str | None = None) -> Path:
    """Creates and verifies the directories of a store under `base`, which is created if missing.

    Returns the store's own. `registry`: the store's directory there. Raises SpillError with the reason when
    a directory cannot be had or trusted.
    """
    directory = store_directory(base, uuid)
    try:
        _make_base(base)
        _make_private(directory.parent)
        owner.sign(directory, registry)
        _make_private(directory)
    except SpillError:
        raise
    except OSError as error:
        raise _cannot_spill(base, error) from error
    return directory


def _make_base(base: Path) -> None:
    """As `os.makedirs`, but nobody else may rename what is in a directory that is made on the way."""
    for path in (*reversed(base.absolute().parents), base):
        if not path.is_dir():
            with suppress(FileExistsError):
                os.mkdir(path, 0o700)


def _make_private(path: Path) -> None:
    """One that is there is only looked at: making it would wait for a disk that hangs."""
    if not os.path.lexists(path):
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
    _refuse_unless_private(path, os.lstat(path))


def _cannot_spill(base: Path, error: OSError) -> SpillError:
    text = f"cannot spill to {base}: {error.strerror}. Choose another spill_dir"
    return SpillError(error.errno, text, str(base))


def _refuse_unless_private(path: Path, status: os.stat_result) -> None:
    if reason := _exposed(status):
        text = f"{path} is refused as spill directory: {reason}. Remove it or choose another spill_dir"
        raise SpillError(errno.EPERM, text, str(path))


def _use_private(path: Path) -> int | None:
    """As `owner.use`; refused as `prepare` does it, but what is open cannot be exchanged any more."""
    fd = owner.use(path)
    if fd is not None:
        try:
            _refuse_unless_private(path, os.fstat(fd))
        except BaseException:
            descriptors.close(fd)
            raise
    return fd


def _exposed(status: os.stat_result) -> str | None:
    """Why others may have a hand in a directory, or None."""
    if stat.S_ISLNK(status.st_mode):
        return "it is a symbolic link"
    if not stat.S_ISDIR(status.st_mode):
        return "it is not a directory"
    if status.st_uid != os.geteuid():
        return f"it belongs to user {status.st_uid}, this process runs as {os.geteuid()}"
    if status.st_mode & 0o077:
        return f"its mode is {stat.S_IMODE(status.st_mode):04o}, it must be 0700"
    return None


def sweep(base: Path, uuid: bytes) -> int:
    """Removes what a store left under `base`; nobody may be using it any more.

    Returns the bytes of the files removed. Files that are not a store's stay, and their directory with
    them. Raises SpillError when the directory cannot be trusted or a file cannot be removed.
    """
    directory = store_directory(base, uuid)
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | descriptors.OPEN_FLAGS)
    except FileNotFoundError:
        owner.remove(directory)
        return 0
    except OSError as error:
        raise _cannot_sweep(directory, error) from error
    try:
        _refuse_unless_private(directory, os.fstat(fd))
        nbytes = 0
        for name in filter(_FILES.fullmatch, os.listdir(fd)):
            with suppress(FileNotFoundError):
                nbytes += os.stat(name, dir_fd=fd, follow_symlinks=False).st_blocks * 512
                os.unlink(name, dir_fd=fd)
        with suppress(OSError):  # not empty, or somebody else was faster
            os.rmdir(directory)
            owner.remove(directory)
        return nbytes
    except SpillError:
        raise
    except OSError as error:
        raise _cannot_sweep(directory, error) from error
    finally:
        descriptors.close(fd)


def used_bytes(directory: str | Path) -> int:
    """What the files in a directory occupy on disk; 0 if it is not there."""
    try:
        return sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in os.scandir(directory))
    except FileNotFoundError:
        return 0


def _cannot_sweep(directory: Path, error: OSError) -> SpillError:
    return SpillError(error.errno, f"cannot sweep {directory}: {error.strerror}", str(directory))


def stores(base: Path) -> Iterator[bytes]:
    """The uuids of all stores of this user that have left a trace under `base`, alive or not.

    None where it cannot be looked: a place that is usual (the home directory, say) need not be open to all.
    None either where it is not this user's alone: in a temporary place anybody may make one of that name.
    """
    try:
        path = user_directory(base)
        names = [] if _exposed(os.lstat(path)) else os.listdir(path)
    except OSError:
        return
    for name in sorted({name.removesuffix(owner.SUFFIX) for name in names}):
        if _UUID.fullmatch(name):
            yield bytes.fromhex(name)


class _Place:
    """One of a store's directories, as this process knows it.

    device: of the base's filesystem. fd: marks it as in use; None where that cannot be.
    """

    def __init__(self, base: Path, path: str, device: int, fd: int | None) -> None:
        self.base, self.path, self.device, self.fd = base, path, device, fd
        self.direct: bool | None = None
        self.can_punch = True

    def exchange(self, fd: int | None) -> int | None:
        """Takes a descriptor for the one that it had, which is the caller's now."""
        old, self.fd = self.fd, fd
        return old


class Directories:
    """The spill directories of one store, as one process uses them. Safe for many threads.

    A directory's index is what the table of segments records: all members must pass the same bases in
    the same order.
    """

    def __init__(
        self,
        bases: Sequence[str | os.PathLike[str]],
        uuid: bytes,
        *,
        registry: str | None = None,
        floor: int | None = None,
        system: System | None = None,
    ) -> None:
        """Prepares a directory for the store `uuid` under each of `bases`.

        `registry`: the store's directory there, for whoever finds the spill directory alone. `floor` bytes
        stay free on each filesystem; None: the lesser of 1 GiB and 2 % of it. Raises SpillError when a
        directory cannot be had or trusted.
        """
        self.system = system or System()
        self.troubles = Troubles()
        self._uuid, self._registry, self._floor = uuid, registry, floor
        self._turn = 0
        self._closed = False
        self._places: list[_Place] = []
        try:
            for base in map(Path, bases):
                self._places.append(self._enter(base))
        except BaseException:
            self.close()
            raise
        self.paths = tuple(place.path for place in self._places)

    def _enter(self, base: Path) -> _Place:
        while True:  # a sweep may remove it until it is marked
            path = prepare(base, self._uuid, self._registry)
            try:
                device = os.stat(base).st_dev
                fd = _use_private(path)
            except SpillError:
                raise
            except OSError as error:
                raise _cannot_spill(base, error) from error
            if fd is not None:
                return _Place(base, str(path), device, fd)

    def close(self) -> None:
        """The directories are not in use any more by this process. Idempotent."""
        self._closed = True
        for place in self._places:
            fd, place.fd = place.fd, None
            if fd is not None:
                descriptors.close(fd)

    def __del__(self) -> None:
        self.close()

    def file(self, directory: int, segment_id: int) -> str:
        """The path of a segment's file. Raises StoreCorruptedError when there is no such directory."""
        if directory >= len(self.paths):
            raise StoreCorruptedError(
                f"the store's table is damaged: it has a file in spill directory {directory + 1} of "
                f"{len(self.paths)}. Create a new store"
            )
        return os.path.join(self.paths[directory], f"{segment_id:016x}.seg")

    def direct(self, directory: int) -> bool:
        """Whether files there are written past the page cache, which is probed once.

        Else they are written through it and waited for. Raises OSError.
        """
        place = self._places[directory]
        if place.direct is None:
            place.direct = probe_direct(self.system, place.path)
        return place.direct

    def can_punch(self, directory: int) -> bool:
        """Whether holes can be punched there, as far as known."""
        return self._places[directory].can_punch

    def note_punch_failure(self, directory: int, error: OSError) -> None:
        """A hole could not be punched; if the filesystem has none, it is not asked again."""
        if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            self._places[directory].can_punch = False

    def check_room(self, directory: int, nbytes: int) -> None:
        """Raises OSError (ENOSPC) when `nbytes` more would leave less than the floor free there."""
        path = self.paths[directory]
        try:
            free, size = free_space(self.system, path)
        except FileNotFoundError:
            if not self._make_again(self._places[directory]):
                raise
            free, size = free_space(self.system, path)
        floor = min(FLOOR_BYTES, int(size * FLOOR_SHARE)) if self._floor is None else self._floor
        if free < nbytes + floor:
            raise OSError(
                errno.ENOSPC,
                f"{format_bytes(free)} free, of which {format_bytes(floor)} are kept free for others",
                path,
            )

    def _make_again(self, place: _Place) -> bool:
        """Makes a directory that somebody removed, if it would lie where it lay."""
        if place.fd is None or not place.base.is_dir() or os.stat(place.base).st_dev != place.device:
            return False
        try:
            fd = self._enter(place.base).fd
        except SpillError:
            return False
        old = place.exchange(fd)  # another thread may be here as well, or be closing
        if old is None:
            self.close()
            return False
        descriptors.close(old)
        log.warning("%s had vanished and was made again: what was in it is lost", place.path)
        return True

    def pick(self, nbytes: int, tried: dict[int, OSError]) -> int | None:
        """The next directory in turn that has room for `nbytes`, those that failed lately last.

        `tried` are those that are out of the question and why; ones without room are added. None: no
        directory is left.
        """
        self._turn += 1
        count = len(self.paths)
        turns = [(self._turn + i) % count for i in range(count)]
        for directory in sorted(turns, key=self._failed_lately):
            if directory in tried:
                continue
            try:
                self.check_room(directory, nbytes)
            except OSError as error:
                self.note_failure(directory, error)
                tried[directory] = error.with_traceback(None)  # frames in it would hold each other, and views
            else:
                return directory
        return None

    def _failed_lately(self, directory: int) -> bool:
        return self.troubles.lately(self.paths[directory], RETRY_S)

    def note_failure(self, directory: int, error: OSError) -> None:
        """A call there has failed: others are asked first for a while. After `close` it may be gone."""
        if self._closed:
            return
        self.troubles.met(self.paths[directory], f"cannot spill there ({error.strerror})")

    def note_success(self, directory: int) -> None:
        """Something was written there."""
        self.troubles.works(self.paths[directory])

    def refusal(self, nbytes: int, tried: dict[int, OSError]) -> SpillError:
        """The error that says why no directory took `nbytes`: for want of space, if that is one reason."""
        errors = sorted(tried.values(), key=lambda error: error.errno not in FULL)
        first = next(iter(errors), OSError(errno.ENOENT, "there is no spill directory"))
        reasons = "; ".join(f"{self.paths[i]}: {error.strerror}" for i, error in tried.items())
        return SpillError(
            first.errno,
            f"cannot spill {format_bytes(nbytes)}: {reasons or first.strerror}. Free disk space or add a "
            "spill directory; nothing is lost and the next attempt needs no restart",
            first.filename or next((self.paths[i] for i in tried), None),
        )
