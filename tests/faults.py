"""System calls of another process that fail on order (kernel/faults.c, preloaded into it).

A worker starts with what `build` made in LD_PRELOAD; there, `Faults` is the handle. Its forks share the plan.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shlex
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

_SOURCE: Final = Path(__file__).parent / "kernel" / "faults.c"
SHORT: Final = 0
"""Instead of an errno: a transfer moves half of what it should."""
ERRORS: Final = (errno.ENOSPC, errno.EIO, errno.EINTR, errno.ENOMEM, errno.EMFILE)


class Fault(NamedTuple):
    """Call number `nth` fails with `error`: once, or from then on."""

    error: int
    for_ever: bool
    nth: int

    def __str__(self) -> str:
        name = errno.errorcode[self.error] if self.error else "short"
        return f"call {self.nth}: {name}{' for ever' if self.for_ever else ''}"


def build(directory: Path) -> Path:
    """The library, compiled into `directory`."""
    library = directory / "faults.so"
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    flags = ["-std=gnu11", "-O1", "-fPIC", "-shared", "-DFAULTS_PRELOADED"]
    subprocess.run([*compiler, *flags, "-o", library, _SOURCE, "-ldl"], check=True)
    return library


class Faults:
    """In the process into which the library was preloaded."""

    def __init__(self) -> None:
        library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        self._arm, self._disarm = library.faults_arm, library.faults_disarm
        self._arm.argtypes = [ctypes.c_int, ctypes.c_uint64, ctypes.c_bool]
        self._spare = library.faults_spare
        self._disarm.restype = ctypes.c_uint64
        self._calls = ctypes.c_uint64()

    def arm(self, fault: Fault) -> None:
        self._arm(fault.error, fault.nth, fault.for_ever)

    def spare(self) -> None:
        """No call of this process fails any more."""
        self._spare(True)

    def disarm(self) -> int:
        """How many calls have failed."""
        failed: int = self._disarm(ctypes.byref(self._calls))
        return failed
