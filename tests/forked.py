"""Forked processes that wait, and byte locks, for tests of what the system says about processes."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


def byte_lock(fd: int, slot: int, command: int = fcntl.F_SETLK, kind: int = fcntl.F_WRLCK) -> None:
    fcntl.fcntl(fd, command, struct.pack("hhqqi4x", kind, os.SEEK_SET, slot, 1, 0))


@contextmanager
def child(prepare: Callable[[], Any]) -> Iterator[int]:
    """A forked process that has run `prepare` and waits; its pid. It ends with the block."""
    ready_read, ready_write = os.pipe()
    stop_read, stop_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(stop_write)
            kept = prepare()
            os.write(ready_write, b"1")
            os.read(stop_read, 1)
            del kept
        finally:
            os._exit(0)
    os.close(ready_write)
    os.close(stop_read)
    try:
        assert os.read(ready_read, 1) == b"1", "the child failed"
        yield pid
    finally:
        os.close(ready_read)
        os.close(stop_write)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)
