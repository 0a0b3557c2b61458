"""Descriptors of files, as the system's own calls use them.

Invariants: a descriptor that is given to one of these functions is closed when it returns or raises, and not
by anybody else; Python's file objects are not used, since `open(fd)` closes the descriptor in some of its
failures and not in others.
Not here: which files may be opened (store/private.py, spill/), writing past the page cache (spill/disk.py).
"""

from __future__ import annotations

import errno
import os
from typing import Final

__all__ = ["OPEN_FLAGS", "close", "read_whole", "write_whole"]

OPEN_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""For what is opened by its name: nothing else is reached by it, and a fifo in its place must not block."""


def close(*fds: int) -> None:
    """Closes them all, whatever the system says to that.

    On Linux a descriptor is gone even when close(2) reports an error, which is about what was written before;
    to stop there would leave the others open, to try again would close somebody else's. Raises OSError
    (EBADF) for one that was closed before: that is a fault of the caller.
    """
    failure = None
    for fd in fds:
        try:
            os.close(fd)
        except OSError as error:
            if error.errno == errno.EBADF:
                failure = error
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # this very frame is in it


def read_whole(fd: int, most: int = 64 << 10) -> bytes:
    """What is left to read of a small file, at most `most` bytes; closes it. Raises OSError."""
    try:
        data = b""
        while len(data) < most and (piece := os.read(fd, most - len(data))):
            data += piece
        return data
    finally:
        close(fd)


def write_whole(fd: int, data: bytes) -> None:
    """Writes all of `data`, and closes the file. Raises OSError."""
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        close(fd)
