"""System calls that a process forbids itself, as sandboxes do (seccomp, of containers and of systemd).

Run as a program, it starts another one under the filter: python forbid.py EPERM:fallocate,flock program ...
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from collections.abc import Iterable
from typing import Final

NUMBERS: Final = {
    "x86_64": {
        "bind": 49, "clone3": 435, "close_range": 436, "copy_file_range": 326, "fadvise64": 221,
        "faccessat2": 439, "fallocate": 285, "fcntl": 72, "fdatasync": 75, "flock": 73, "fsync": 74,
        "ftruncate": 77, "getdents64": 217, "getrandom": 318, "io_uring_setup": 425, "kcmp": 312,
        "kill": 62, "madvise": 28, "membarrier": 324, "memfd_create": 319, "mkdir": 83, "mlock": 149,
        "newfstatat": 262, "openat": 257, "openat2": 437, "pidfd_getfd": 438, "pidfd_open": 434,
        "prctl": 157, "preadv2": 327, "process_vm_readv": 310, "ptrace": 101, "pwritev2": 328,
        "readlink": 89, "rmdir": 84, "sched_getaffinity": 204, "sched_setaffinity": 203,
        "set_robust_list": 273, "socket": 41, "statfs": 137, "statx": 332, "sysinfo": 99, "uname": 63,
        "unlink": 87, "userfaultfd": 323,
    },
}  # fmt: skip

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER = 22, 38, 2
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000


class _Step(ctypes.Structure):
    """struct sock_filter."""

    _fields_ = (
        ("code", ctypes.c_uint16),
        ("yes", ctypes.c_uint8),
        ("no", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_uint16), ("steps", ctypes.POINTER(_Step)))


def is_possible() -> bool:
    """Whether this machine's calls are known here."""
    return platform.machine() in NUMBERS


def forbid(calls: Iterable[str], error: int) -> None:
    """From now on these calls fail with `error`, in this thread, in all that it starts, and for ever.

    See seccomp(2): a program of BPF that compares the number of the call, the first word of its input.
    """
    numbers = [NUMBERS[platform.machine()][call] for call in calls]
    program = [_Step(_LOAD, 0, 0, 0)]
    for number in numbers:
        program += [_Step(_JUMP_EQUAL, 0, 1, number), _Step(_RETURN, 0, 0, _ERRNO | error)]
    program.append(_Step(_RETURN, 0, 0, _ALLOW))
    steps = (_Step * len(program))(*program)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        _PR_SET_SECCOMP, _FILTER, ctypes.byref(_Program(len(steps), steps))
    ):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    name, _, listed = sys.argv[1].partition(":")
    forbid(listed.split(","), getattr(errno, name))
    os.execv(sys.argv[2], sys.argv[2:])
