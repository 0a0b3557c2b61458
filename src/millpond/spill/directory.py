"""Where segment files lie: private directories, one of a store's own in each place it may spill to.

Layout: `<base>/millpond-<uid>/<store uuid>/<segment id>.seg`, ids as 16 hexadecimal digits.
Invariants: both directories belong to this user, have mode 0700 and are no symbolic links, which is
verified before the first use by every process; nothing but this store's files is ever removed.
A base in memory (tmpfs, ramfs) is used only if the user named it: spilling there frees nothing.
Not here: opening and writing files (`disk`, `segments`), which segments are dead (`sweep`).
"""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from millpond.errors import SpillError
from millpond.spill.disk import System, free_space, is_memory_filesystem, probe_direct
from millpond.units import format_bytes

ENVIRONMENT: Final = "MILLPOND_SPILL_DIR"
RETRY_S: Final = 10.0
"""How long a directory that failed is asked only after all others."""
FLOOR_BYTES: Final = 1 << 30
FLOOR_SHARE: Final = 0.02

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
    candidates = [_VAR_TMP, Path(tempfile.gettempdir())]
    with suppress(RuntimeError):  # no home directory
        candidates.append(Path.home() / ".cache")
    reasons = []
    for base in candidates:
        reason = _unfit(base)
        if reason is None:
            return base
        reasons.append(f"{base} {reason}")
    raise SpillError(
        errno.ENOENT, f"no directory to spill to: {'; '.join(reasons)}. Pass spill_dir or set {ENVIRONMENT}"
    )


def _unfit(base: Path) -> str | None:
    if not base.is_dir():
        return "is not a directory"
    if not os.access(base, os.W_OK | os.X_OK):
        return "is not writable"
    if is_memory_filesystem(base):
        return "lies in memory, where spilling frees nothing"
    return None


def user_directory(base: Path) -> Path:
    """The directory of this user under `base`; it may not exist."""
    return base / f"millpond-{os.geteuid()}"


def store_directory(base: Path, uuid: bytes) -> Path:
    """The directory of the store `uuid` under `base`; it may not exist."""
    return user_directory(base) / uuid.hex()


def prepare(base: Path, uuid: bytes) -> Path:
    """Creates and verifies the directories of a store under `base`, which is created if missing.

    Returns the store's own. Raises SpillError with the reason when one cannot be had or trusted.
    """
    directory = store_directory(base, uuid)
    try:
        os.makedirs(base, mode=0o700, exist_ok=True)
        for path in (directory.parent, directory):
            with suppress(FileExistsError):
                os.mkdir(path, 0o700)
            _refuse_unless_private(path, os.lstat(path))
    except SpillError:
        raise
    except OSError as error:
        raise SpillError(
            error.errno, f"cannot spill to {base}: {error.strerror}. Choose another spill_dir", str(base)
        ) from error
    return directory


def _refuse_unless_private(path: Path, status: os.stat_result) -> None:
    reason = None
    if stat.S_ISLNK(status.st_mode):
        reason = "it is a symbolic link"
    elif not stat.S_ISDIR(status.st_mode):
        reason = "it is not a directory"
    elif status.st_uid != os.geteuid():
        reason = f"it belongs to user {status.st_uid}, this process runs as {os.geteuid()}"
    elif status.st_mode & 0o077:
        reason = f"its mode is {stat.S_IMODE(status.st_mode):04o}, it must be 0700"
    if reason:
        text = f"{path} is refused as spill directory: {reason}. Remove it or choose another"
        raise SpillError(errno.EPERM, text, str(path))


def sweep(base: Path, uuid: bytes) -> int:
    """Removes what a store left under `base`; nobody may be using it any more.

    Returns the bytes of the files removed. Files that are not a store's stay, and their directory with
    them. Raises SpillError when the directory cannot be trusted or a file cannot be removed.
    """
    directory = store_directory(base, uuid)
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
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
        return nbytes
    except SpillError:
        raise
    except OSError as error:
        raise _cannot_sweep(directory, error) from error
    finally:
        os.close(fd)


def _cannot_sweep(directory: Path, error: OSError) -> SpillError:
    return SpillError(error.errno, f"cannot sweep {directory}: {error.strerror}", str(directory))


def stores(base: Path) -> Iterator[bytes]:
    """The uuids of all stores of this user that have a directory under `base`, alive or not."""
    try:
        names = os.listdir(user_directory(base))
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in sorted(filter(_UUID.fullmatch, names)):
        yield bytes.fromhex(name)


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
        floor: int | None = None,
        system: System | None = None,
    ) -> None:
        """Prepares a directory for the store `uuid` under each of `bases`.

        `floor` bytes stay free on each filesystem; None: the lesser of 1 GiB and 2 % of it. Raises
        SpillError when a directory cannot be had or trusted.
        """
        self.system = system or System()
        self.paths = tuple(str(prepare(Path(base), uuid)) for base in bases)
        self._floor = floor
        self._direct: list[bool | None] = [None] * len(self.paths)
        self._failed: list[float | None] = [None] * len(self.paths)
        self._turn = 0

    def file(self, directory: int, segment_id: int) -> str:
        """The path of a segment's file."""
        return os.path.join(self.paths[directory], f"{segment_id:016x}.seg")

    def direct(self, directory: int) -> bool:
        """Whether files there are written past the page cache, which is probed once.

        Else they are written through it and waited for. Raises OSError.
        """
        known = self._direct[directory]
        if known is None:
            known = self._direct[directory] = probe_direct(self.system, self.paths[directory])
        return known

    def check_room(self, directory: int, nbytes: int) -> None:
        """Raises OSError (ENOSPC) when `nbytes` more would leave less than the floor free there."""
        path = self.paths[directory]
        free, size = free_space(self.system, path)
        floor = min(FLOOR_BYTES, int(size * FLOOR_SHARE)) if self._floor is None else self._floor
        if free < nbytes + floor:
            raise OSError(
                errno.ENOSPC, f"{format_bytes(free)} free, of which {format_bytes(floor)} are kept free", path
            )

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
                tried[directory] = error.with_traceback(None)  # frames in it would hold each other, and views
            else:
                return directory
        return None

    def _failed_lately(self, directory: int) -> bool:
        failed = self._failed[directory]
        return failed is not None and time.monotonic() - failed < RETRY_S

    def note_failure(self, directory: int) -> None:
        """A call there has failed: others are asked first for a while."""
        self._failed[directory] = time.monotonic()

    def refusal(self, nbytes: int, tried: dict[int, OSError]) -> SpillError:
        """The error that says why no directory took `nbytes`."""
        first = next(iter(tried.values()), OSError(errno.ENOENT, "there is no spill directory"))
        reasons = "; ".join(f"{self.paths[i]}: {error.strerror}" for i, error in tried.items())
        return SpillError(
            first.errno,
            f"cannot spill {format_bytes(nbytes)}: {reasons or first.strerror}. Free disk space or add a "
            "spill directory; nothing is lost and the next attempt needs no restart",
            first.filename or next((self.paths[i] for i in tried), None),
        )
