"""Who may not join a store, with real other users and a real other pid namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import millpond
from ponds import Pond

NOBODY = 65534

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs other users and namespaces, which only root has"
)

CONNECT = """
import sys, millpond
try:
    millpond.connect(sys.argv[1])
except millpond.AttachError as error:
    print(error)
"""


def create_as(own: Any, uid: int, registry: str, spill: str) -> str:
    os.setgid(uid)
    os.setuid(uid)
    os.environ["MILLPOND_DIR"] = registry
    own.store = millpond.Store("8MiB", spill_dir=spill)
    own.ref = own.store.put(1, name="bait")
    return own.store.address


def test_root_joins_nobody_elses_store(pond: Pond, tmp_path: Path) -> None:
    """Its values are pickles: to read them is to run what their writer wants."""
    directory = tmp_path / "theirs"
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_mode & 0o077 == 0:
            path.chmod(0o711)
    stranger = pond.worker(program=True)
    address = stranger.run(create_as, NOBODY, str(directory / "registry"), str(directory / "spill"))
    with pytest.raises(millpond.AttachError, match=f"belongs to user {NOBODY}"):
        millpond.connect(address)


def test_another_pid_namespace_is_refused(pond: Pond) -> None:
    """There, process ids and the owners of locks mean something else."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    store = pond.store()
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", CONNECT, store.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    if "unshare failed" in done.stderr:
        pytest.skip(done.stderr)
    assert "pid namespace" in done.stdout, done
    assert "--pid=container" in done.stdout, "it says what to do"
    assert store.stats().members == 1
    assert store.check() == []


def test_a_shared_pid_namespace_is_joined(pond: Pond) -> None:
    """The same in a mount namespace of its own, as two containers with one pid namespace have."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    store = pond.store()
    command = ["unshare", "--mount", sys.executable, "-c", CONNECT, store.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    if "unshare failed" in done.stderr:
        pytest.skip(done.stderr)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("part", ["lock", "birth"])
def test_a_second_name_of_a_lock_file_changes_nothing(pond: Pond, part: str, tmp_path: Path) -> None:
    """A hard link is made by the same user only: the directory is private. It must not confuse the locks."""
    store = pond.store()
    os.link(f"{store.address}/{part}", tmp_path / "second")
    member = pond.member(store)
    assert store.stats().members == 2
    os.unlink(tmp_path / "second")
    assert member.run(lambda own: own.store.check()) == []
