"""Whether a file or directory of the registry is this user's alone, before anything is done with it.

Invariant: what is opened is what was looked at: a symbolic link, or what somebody has put in the place of a
file, is refused and not followed.
Not here: spill directories, which are verified where they are used (spill/directory.py).
"""

from __future__ import annotations

import os
import stat

from millpond import descriptors
from millpond.errors import AttachError

__all__ = ["open_private", "refuse_unless_private"]


def refuse_unless_private(path: str, status: os.stat_result, kind: int) -> None:
    """Raises AttachError unless it is of that kind (S_IFDIR, S_IFREG) and this user's alone; it says why."""
    reason = None
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        reason = "it is a symbolic link; remove it"
    elif stat.S_IFMT(status.st_mode) != kind:
        reason = f"it is not a {'directory' if kind == stat.S_IFDIR else 'regular file'}; remove it"
    elif status.st_uid != os.geteuid():
        reason = f"it belongs to user {status.st_uid}, and this process runs as {os.geteuid()}"
    elif mode & 0o077:
        reason = f"other users may access it (mode {mode:04o}); chmod {mode & 0o700:04o} it"
        reason += " if only stores are in it" if kind == stat.S_IFDIR else ""
    if reason:
        raise AttachError(
            f"{path} is refused: {reason}, or set MILLPOND_DIR to a directory of your own, "
            "the same for all processes"
        )


def open_private(path: str, flags: int, kind: int = stat.S_IFREG) -> int:
    """A descriptor of what lies at `path`. Raises AttachError as above, OSError."""
    fd = os.open(path, flags | descriptors.OPEN_FLAGS, 0o600)
    try:
        refuse_unless_private(path, os.fstat(fd), kind)
    except BaseException:
        descriptors.close(fd)
        raise
    return fd
