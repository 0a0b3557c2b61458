"""Filesystems of a test's own: ext4 in a file, mounted through a loop device. Only root makes them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def order(*command: str | Path) -> None:
    """Runs a command, which must succeed."""
    subprocess.run(command, check=True, capture_output=True)


class Disk:
    """A filesystem that is mounted at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """While this lasts, whoever changes anything there waits, and not even SIGKILL ends the wait."""
        order("fsfreeze", "--freeze", self.path)
        try:
            yield
        finally:
            order("fsfreeze", "--unfreeze", self.path)

    def break_down(self) -> None:
        """From now on it can only be read, as after an error of the device."""
        order("mount", "-o", "remount,abort", self.path)


@contextmanager
def mounted_ext4(directory: Path, size: str) -> Iterator[Disk]:
    """A disk of `size` bytes (as truncate reads it); the test is skipped where none can be had."""
    if not all(map(shutil.which, ("mkfs.ext4", "fsfreeze"))):
        pytest.skip("no mkfs.ext4 or fsfreeze here")
    image, path = directory / "image", directory / "mounted"
    path.mkdir()
    order("truncate", "--size", size, image)
    order("mkfs.ext4", "-q", image)
    made = subprocess.run(["mount", "-o", "loop", image, path], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"nothing can be mounted here: {made.stderr.strip()}")
    try:
        yield Disk(path)
    finally:
        order("umount", "--lazy", path)
