"""Descriptors are closed once, all of them, whatever the system says to it."""

from __future__ import annotations

import errno
import operator
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from millpond import descriptors
from millpond.hot import Descriptor

CLOSE = os.close


def failing(call: Callable[..., Any], number: int, after: bool = False) -> Callable[..., Any]:
    """A system call that fails; `after` it was made, as close does."""

    def fail(*arguments: Any) -> Any:
        if after:
            call(*arguments)
        raise OSError(number, os.strerror(number))

    return fail


def is_open(fd: int) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def some(tmp_path: Path, count: int) -> list[int]:
    return [os.open(tmp_path, os.O_RDONLY) for _ in range(count)]


@pytest.mark.parametrize("number", [errno.EIO, errno.EINTR, errno.ENOSPC])
def test_an_error_of_one_close_leaves_none_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fds = some(tmp_path, 3)
    monkeypatch.setattr(os, "close", failing(CLOSE, number, after=True))
    descriptors.close(*fds)
    assert not any(map(is_open, fds))


def test_closing_twice_is_said(tmp_path: Path) -> None:
    first, second = some(tmp_path, 2)
    os.close(first)
    with pytest.raises(OSError, match="Bad file descriptor"):
        descriptors.close(first, second)
    assert not is_open(second)


def test_whole_files_in_short_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = tmp_path / "file", bytes(range(256)) * 3
    read, write = os.read, os.write
    monkeypatch.setattr(os, "read", lambda fd, count: read(fd, min(100, count)))
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:100]))
    descriptors.write_whole(fd := os.open(path, os.O_WRONLY | os.O_CREAT), data)
    assert path.read_bytes() == data and not is_open(fd)
    assert descriptors.read_whole(fd := os.open(path, os.O_RDONLY)) == data and not is_open(fd)
    assert descriptors.read_whole(os.open(path, os.O_RDONLY), most=300) == data[:300]


def test_a_failed_read_or_write_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = some(tmp_path, 2)
    monkeypatch.setattr(os, "read", failing(os.read, errno.EIO))
    monkeypatch.setattr(os, "write", failing(os.write, errno.ENOSPC))
    with pytest.raises(OSError, match="Input/output"):
        descriptors.read_whole(reading)
    with pytest.raises(OSError, match="No space"):
        descriptors.write_whole(writing, b"x")
    assert not is_open(reading) and not is_open(writing)


def test_a_file_of_its_own_is_closed_with_its_last_reference(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    file = Descriptor(path, os.O_WRONLY | os.O_CREAT, 0o640)
    fd = file.fileno()
    assert operator.index(file) == fd and is_open(fd)
    assert os.stat(path).st_mode & 0o777 == 0o640 & ~umask()
    del file
    assert not is_open(fd)


def umask() -> int:
    os.umask(mask := os.umask(0))
    return mask


def test_a_file_of_its_own_is_closed_once(tmp_path: Path) -> None:
    file = Descriptor(str(tmp_path), os.O_RDONLY)
    fd = file.fileno()
    file.close()
    assert file.fileno() == -1
    [other] = some(tmp_path, 1)
    assert other == fd, "the number is somebody else's now"
    with pytest.raises(OSError, match="Bad file descriptor"):
        file.close()
    del file
    assert is_open(other)
    os.close(other)


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Descriptor(str(tmp_path / "nowhere"), os.O_RDONLY)
    with pytest.raises(ValueError, match="null"):
        Descriptor("a\0b", os.O_RDONLY)
