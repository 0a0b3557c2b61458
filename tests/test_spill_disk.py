"""Whole reads and writes, aligned buffers, probing direct I/O."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import SupportsIndex

import numpy as np
import pytest

from millpond.hot import Descriptor
from millpond.spill.disk import (
    BufferPool,
    System,
    aligned_buffer,
    copy_bytes,
    free_space,
    is_memory_filesystem,
    open_new,
    opened,
    probe_direct,
    read_all,
    write_all,
)
from millpond.spill.overlap import Overlap
from millpond.spill.record import PAGE
from spill_fakes import Failing, NoDirect, open_descriptors


class Piecemeal(System):
    """Moves at most `step` bytes a call."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.calls = 0

    def _cut(self, buffers: Sequence[memoryview]) -> list[memoryview]:
        self.calls += 1
        joined, left = [], self.step
        for buffer in buffers:
            joined.append(buffer[:left])
            left -= len(joined[-1])
        return [buffer for buffer in joined if len(buffer)]

    def pwritev(self, fd: SupportsIndex, buffers: Sequence[memoryview], offset: int) -> int:
        return super().pwritev(fd, self._cut(buffers), offset)

    def preadv(self, fd: SupportsIndex, buffers: Sequence[memoryview], offset: int) -> int:
        return super().preadv(fd, self._cut(buffers), offset)


def pages(count: int, seed: int = 0) -> memoryview:
    buffer = aligned_buffer(count * PAGE)
    buffer[:] = np.random.default_rng(seed).bytes(count * PAGE)
    return buffer


@pytest.fixture
def fd(tmp_path: Path) -> int:
    return os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)


@pytest.mark.parametrize("step", [PAGE, PAGE + 1, 2 * PAGE - 1, 5 * PAGE, 100 * PAGE])
def test_calls_that_move_less_are_repeated(fd: int, step: int) -> None:
    buffers = [pages(1, 1), pages(3, 2), pages(4, 3)]
    system = Piecemeal(step)
    assert write_all(system, fd, buffers, 2 * PAGE) == 8 * PAGE
    assert system.calls == -(-8 * PAGE // max(PAGE, step & -PAGE)) or step >= 8 * PAGE
    assert os.pread(fd, 100 * PAGE, 0) == bytes(2 * PAGE) + b"".join(buffers)
    back = [pages(2), pages(6)]
    assert read_all(Piecemeal(step), fd, back, 2 * PAGE) == 8 * PAGE
    assert b"".join(back) == b"".join(buffers)
    os.close(fd)


def test_more_buffers_than_one_call_takes(fd: int) -> None:
    buffers = [pages(1, i) for i in range(1500)]
    assert write_all(System(), fd, buffers, 0) == 1500 * PAGE
    back = [pages(1) for _ in range(1500)]
    assert read_all(System(), fd, back, 0) == 1500 * PAGE
    assert back == buffers
    os.close(fd)


@pytest.mark.parametrize("step", [0, 1, PAGE - 1])
def test_a_write_that_gets_nowhere_is_an_error(fd: int, step: int) -> None:
    with pytest.raises(OSError, match=rf"only {step} of {2 * PAGE} bytes") as error:
        write_all(Piecemeal(step), fd, [pages(2)], 0)
    assert error.value.errno == errno.EIO
    os.close(fd)


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (1, 0), (PAGE, 1), (PAGE + 1, 1), (3 * PAGE - 1, 2)])
def test_reading_stops_where_the_file_ends(fd: int, size: int, expected: int) -> None:
    os.write(fd, b"x" * size)
    assert read_all(System(), fd, [pages(2), pages(2)], 0) == expected * PAGE
    os.close(fd)


def test_the_real_limit_of_a_file_is_an_error(tmp_path: Path) -> None:
    """A process that may write one page only: a short write, then the system's own error."""
    script = """
import os, resource, sys
from millpond.spill.disk import System, aligned_buffer, open_new, write_all
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
fd = open_new(System(), sys.argv[1], direct=False)
try:
    write_all(System(), fd, [aligned_buffer(4 * 4096)], 0)
except OSError as error:
    print(error.errno)
"""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "file")], capture_output=True, text=True, timeout=30
    )
    assert done.stdout.strip() == str(errno.EFBIG), done.stderr


def test_new_files_are_private_and_new(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    fd = open_new(System(), path, direct=False)
    assert os.fstat(fd.fileno()).st_mode & 0o777 == 0o600
    assert not os.get_inheritable(fd.fileno())
    fd.close()
    with pytest.raises(FileExistsError):
        open_new(System(), path, direct=False)


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OSError) as error, opened(System(), str(tmp_path / "link"), False):
        pass
    assert error.value.errno == errno.ELOOP


@pytest.mark.parametrize("kind", ["fifo", "directory"])
def test_only_regular_files_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "thing"
    os.mkfifo(path) if kind == "fifo" else path.mkdir()
    before = open_descriptors()
    with pytest.raises(OSError) as error, opened(System(), str(path), False):
        pass
    assert error.value.errno == errno.ESTALE
    assert open_descriptors() == before


def test_files_of_other_users_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(path).st_uid + 1)
    with pytest.raises(OSError) as error, opened(System(), str(path), False):
        pass
    assert error.value.errno == errno.ESTALE


class Nameless(System):
    """Has files without a name, or not; looks which names there are while one is written to."""

    def __init__(self, directory: Path, refusal: int | None) -> None:
        self.seen: list[Path] = []
        self.opens = 0
        self._directory, self._refusal = directory, refusal

    def open(self, path: str, flags: int, mode: int = 0o600) -> Descriptor:
        self.opens += 1
        if self._refusal is not None and flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(self._refusal, "no files without a name")
        return super().open(path, flags, mode)

    def pwritev(self, fd: SupportsIndex, buffers: Sequence[memoryview], offset: int) -> int:
        self.seen += self._directory.iterdir()
        return super().pwritev(fd, buffers, offset)


@pytest.mark.parametrize("refusal", [None, errno.EOPNOTSUPP, errno.EISDIR])
def test_a_probe_that_is_killed_leaves_nothing_behind(tmp_path: Path, refusal: int | None) -> None:
    """While it is written, the file has no name (any more)."""
    system, before = Nameless(tmp_path, refusal), open_descriptors()
    assert probe_direct(system, str(tmp_path)) == probe_direct(System(), str(tmp_path))
    assert system.opens == (1 if refusal is None else 2)
    assert system.seen == list(tmp_path.iterdir()) == [] and open_descriptors() == before


def test_the_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    before = open_descriptors()
    for system in (System(), NoDirect(at_open=True), NoDirect(at_open=False)):
        direct = probe_direct(system, str(tmp_path))
        assert not direct or type(system) is System
    assert list(tmp_path.iterdir()) == []
    assert open_descriptors() == before


def test_the_probe_finds_direct_io_here(tmp_path: Path) -> None:
    """What it says holds for the files that are then opened."""
    if probe_direct(System(), str(tmp_path)):
        fd = open_new(System(), str(tmp_path / "file"), direct=True)
        assert write_all(System(), fd, [pages(3)], 0) == 3 * PAGE
        fd.close()


@pytest.mark.parametrize("name", ["open", "pwritev"])
def test_other_errors_of_the_probe_surface(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError) as error:
        probe_direct(Failing(errno.ENOSPC, 1, [name]), str(tmp_path))
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_aligned_buffers_start_on_a_page_and_are_private() -> None:
    for nbytes in (1, PAGE, 3 * PAGE + 5):
        buffer = aligned_buffer(nbytes)
        assert np.frombuffer(buffer, np.uint8).ctypes.data % mmap.PAGESIZE == 0
        assert len(buffer) == nbytes
        assert not buffer.readonly
    buffer[0] = 1
    child = os.fork()
    if child == 0:
        buffer[0] = 2
        os._exit(0)
    os.waitpid(child, 0)
    assert buffer[0] == 1


def test_a_pool_lends_each_buffer_to_one_at_a_time() -> None:
    pool = BufferPool(PAGE, keep=1)
    with pool.borrow() as first, pool.borrow() as second:
        first[0], second[0] = 1, 2
        assert first[0] == 1
    with pool.borrow() as again:
        assert again is second
    with pytest.raises(ZeroDivisionError), pool.borrow():
        raise ZeroDivisionError
    with pool.borrow() as again:
        assert again is second


@pytest.mark.parametrize("size", [0, 1, 64 << 10, (64 << 10) + 1, 1 << 20])
def test_copy_bytes(size: int) -> None:
    target = bytearray(size + 2)
    source = np.random.default_rng(1).bytes(size)
    copy_bytes(memoryview(target)[1:-1], memoryview(source))
    assert target == b"\0" + source + b"\0"


def test_free_space(tmp_path: Path) -> None:
    free, size = free_space(System(), str(tmp_path))
    assert 0 < free <= size


def test_filesystems_in_memory_are_known() -> None:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    kinds = {mount[1]: mount[2] for mount in mounts}
    for path, kind in kinds.items():
        if kind in ("tmpfs", "ramfs", "ext4", "xfs", "overlay", "proc") and os.access(path, os.X_OK):
            assert is_memory_filesystem(path) == (kind in ("tmpfs", "ramfs")), (path, kind)
    assert not is_memory_filesystem("/proc")


def test_overlap_runs_one_call_beside_the_caller() -> None:
    started, go_on = threading.Event(), threading.Event()

    def call() -> int:
        started.set()
        assert go_on.wait(10)
        return 7

    with Overlap[int]() as overlap:
        assert overlap.finish() is None
        overlap.start(call)
        assert started.wait(10)
        go_on.set()
        assert overlap.finish() == 7
        assert overlap.finish() is None


def test_overlap_raises_what_the_call_raised() -> None:
    with Overlap[None]() as overlap:
        overlap.start(lambda: [][0])
        with pytest.raises(IndexError):
            overlap.finish()
        overlap.finish()


def test_leaving_an_overlap_waits() -> None:
    go_on, done = threading.Event(), []

    def call() -> None:
        assert go_on.wait(10)
        done.append(1)

    with pytest.raises(ZeroDivisionError), Overlap[None]() as overlap:
        overlap.start(call)
        go_on.set()
        raise ZeroDivisionError
    assert done == [1]


def test_without_threads_the_call_just_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with Overlap[threading.Thread]() as overlap:
        overlap.start(threading.current_thread)
        assert overlap.finish() is threading.current_thread()
