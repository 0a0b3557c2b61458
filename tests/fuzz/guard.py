"""What turns a quiet fault into a loud one: memory that ends where the input ends, and limits.

`Fence` is followed by a page that nobody may touch: one byte read too far is a SIGSEGV. `limits` refuses
memory that a number in the input asked for; `watched` ends a process that loops, and leaves the input behind.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

SPARE_BYTES = 192 << 20
"""What a target may map more than it has when it begins: its buffers, and the stacks of a few threads."""
SECONDS_MAX = 20
_ALIGN = 64
_PROT_NONE = 0
_libc = ctypes.CDLL(None, use_errno=True)


class Fence:
    """Memory in which an input lies as a value lies in the arena: from a multiple of 64 on, with nothing
    behind it but what fills the last multiple of 64."""

    def __init__(self, most: int) -> None:
        """For inputs of up to `most` bytes."""
        self.size = -(-most // mmap.PAGESIZE) * mmap.PAGESIZE
        self._map = mmap.mmap(-1, self.size + mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        end = ctypes.c_void_p(self.start + self.size)
        if _libc.mprotect(end, ctypes.c_size_t(mmap.PAGESIZE), _PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")

    def hold(self, data: bytes) -> memoryview:
        """A read-only view of `data`, at the end of the memory."""
        at = self.size - -(-len(data) // _ALIGN) * _ALIGN
        self._map[at : self.size] = data + bytes(self.size - at - len(data))
        return memoryview(self._map)[at : at + len(data)].toreadonly()


def address_of(view: memoryview) -> int:
    """Where the bytes of a view are."""
    return int(np.frombuffer(view, np.uint8).ctypes.data) if view.nbytes else 0


@contextmanager
def limits() -> Iterator[None]:
    """In here, memory beyond SPARE_BYTES is a MemoryError (or ENOMEM), which no target lets pass."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + SPARE_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def watched(path: Path, most: int) -> Iterator[Callable[[bytes], None]]:
    """What is called with each input before it is run: should the process die, `path` has the input.

    An input that takes SECONDS_MAX ends the process by SIGALRM.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w+b") as file:
        file.truncate(8 + most)
        memory = mmap.mmap(file.fileno(), 8 + most)
    faulthandler.enable()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def note(data: bytes) -> None:
        memory[:8] = len(data).to_bytes(8, "little")
        memory[8 : 8 + len(data)] = data
        signal.setitimer(signal.ITIMER_REAL, SECONDS_MAX)

    yield note
    signal.setitimer(signal.ITIMER_REAL, 0)
    path.unlink()


def noted(path: Path) -> bytes | None:
    """The input under which a process died that had `watched(path)`; None: it did not die."""
    if not path.exists():
        return None
    data = path.read_bytes()
    return data[8 : 8 + int.from_bytes(data[:8], "little")]
