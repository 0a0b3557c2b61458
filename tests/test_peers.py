"""Processes that share a store: which are alive, and the memory that they hand to each other."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forked import byte_lock, child
from millpond.errors import AttachError
from millpond.store import peers

EUID = os.geteuid()
as_root = pytest.mark.skipif(EUID != 0, reason="changes owners, which only root may")


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    """No test leaves descriptors behind."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) == before


# --- liveness ---


def lock_files(tmp_path: Path) -> tuple[int, int]:
    return tuple(os.open(tmp_path / name, os.O_RDWR | os.O_CREAT, 0o600) for name in ("lock", "birth"))  # type: ignore[return-value]


def test_live_slots_of_many_processes_and_of_this_one(tmp_path: Path) -> None:
    lock, birth = lock_files(tmp_path)

    def hold(*slots: int) -> Callable[[], None]:
        def take() -> None:
            for slot in slots:
                byte_lock(lock, slot)

        return take

    assert peers.live_slots(lock, birth) == {}
    with child(hold(0)) as a, child(hold(255, 256)) as b, child(hold(41, 42, 44)) as c:
        byte_lock(lock, 43)
        me = os.getpid()
        assert peers.live_slots(lock, birth) == {0: a, 41: c, 42: c, 43: me, 44: c, 255: b}
    assert peers.live_slots(lock, birth) == {43: me}
    os.close(lock)
    os.close(birth)


def test_every_slot_at_once(tmp_path: Path) -> None:
    lock, birth = lock_files(tmp_path)
    for slot in range(257):
        byte_lock(lock, slot)
    assert peers.live_slots(lock, birth) == dict.fromkeys(range(256), os.getpid())
    os.close(lock)
    os.close(birth)


def test_a_slot_lives_by_its_birth_lock_alone(tmp_path: Path) -> None:
    lock, birth = lock_files(tmp_path)
    fresh = os.open(tmp_path / "birth", os.O_RDWR)
    byte_lock(fresh, 9, fcntl.F_OFD_SETLK)
    with child(lambda: byte_lock(lock, 4)) as pid:
        os.close(fresh)  # the child inherited it
        assert peers.live_slots(lock, birth) == {4: pid, 9: -1}
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert peers.live_slots(lock, birth) == {}
    os.close(lock)
    os.close(birth)


# --- memory ---


def open_count() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_memfds_are_sealed_sparse_and_closed_on_exec() -> None:
    fds = peers.create_memfds(uuid.uuid4().bytes, 8192, 1 << 40)
    assert [os.fstat(fd).st_size for fd in fds] == [8192, 1 << 40]
    for fd in fds:
        assert os.fstat(fd).st_blocks == 0 and not os.get_inheritable(fd)
        for size in (4096, 1 << 41):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        os.close(fd)


def test_memfds_without_noexec_on_older_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.memfd_create

    def old(name: str, flags: int) -> int:
        if flags & 0x8:
            raise OSError(22, "Invalid argument")
        return real(name, flags)

    monkeypatch.setattr(os, "memfd_create", old)
    for fd in peers.create_memfds(uuid.uuid4().bytes, 4096, 4096):
        os.close(fd)


@pytest.mark.parametrize("sizes", [(-1, 4096), (4096, -1)])
def test_memfds_that_the_system_refuses_leave_nothing(sizes: tuple[int, int]) -> None:
    before = open_count()
    with pytest.raises(AttachError, match="no shared memory of -1 bytes"):
        peers.create_memfds(uuid.uuid4().bytes, *sizes)
    assert open_count() == before


def holding(store_uuid: bytes, change: Callable[[list[int]], Any] = lambda fds: None) -> Callable[[], Any]:
    def prepare() -> Any:
        fds = list(peers.create_memfds(store_uuid, 4096, 1 << 20))
        os.pwrite(fds[0], b"the table", 0)
        change(fds)
        return fds

    return prepare


@pytest.mark.parametrize("known", [True, False], ids=["member", "forked child"])
def test_memory_is_taken_from_a_live_peer(known: bool) -> None:
    store_uuid = uuid.uuid4().bytes
    with child(holding(store_uuid)) as pid, child(holding(uuid.uuid4().bytes)):
        table, arena = peers.open_memfds({3: pid if known else -1}, store_uuid)
    assert os.pread(table, 9, 0) == b"the table", "the memory outlives the member it came from"
    assert os.fstat(arena).st_size == 1 << 20
    assert fcntl.fcntl(table, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    assert not os.get_inheritable(table)
    os.close(table)
    os.close(arena)


def replace_unsealed(fds: list[int]) -> None:
    name = os.readlink(f"/proc/self/fd/{fds[1]}").removeprefix("/memfd:").removesuffix(" (deleted)")
    fd = os.memfd_create(name)
    os.ftruncate(fd, 4096)
    os.dup2(fd, fds[1])


def test_why_each_member_would_not_do() -> None:
    store_uuid = uuid.uuid4().bytes
    gone = subprocess.Popen(["true"])
    gone.wait()
    ended = gone.pid
    before = open_count()
    with (
        child(lambda: None) as bare,
        child(holding(store_uuid, lambda fds: os.close(fds.pop()))) as half,
        child(holding(store_uuid, replace_unsealed)) as unsealed,
        child(holding(store_uuid, lambda fds: os.fchown(fds[0], 4711, -1) if EUID == 0 else None)) as foreign,
    ):
        slots = {0: ended, 1: bare, 2: half, 3: unsealed, 4: 0}
        if EUID == 0:
            slots[5] = foreign
        with pytest.raises(AttachError) as caught:
            peers.open_memfds(slots, store_uuid)
    text = str(caught.value)
    assert f"member 0, process {ended}: it has just ended" in text
    assert f"member 1, process {bare} (" in text and text.count("no memory of this store") == 2
    assert "member 3" in text and "not sealed" in text
    assert "member 4: it runs in another pid namespace" in text
    assert EUID != 0 or "its memory belongs to user 4711" in text
    assert open_count() == before


def test_no_members_and_no_children_that_have_it() -> None:
    with pytest.raises(AttachError, match="It has no members"):
        peers.open_memfds({}, bytes(16))
    with pytest.raises(AttachError, match="none that may be asked"):
        peers.open_memfds({255: -1}, bytes(16))


def become_nobody_and_ask(pid: int, store_uuid: bytes, answer: int) -> Callable[[], None]:
    def ask() -> None:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        try:
            peers.open_memfds({0: pid}, store_uuid)
        except AttachError as error:
            os.write(answer, str(error).encode())

    return ask


@as_root
def test_another_user_is_told_that_permission_is_missing() -> None:
    store_uuid = uuid.uuid4().bytes
    read, write = os.pipe()
    with child(holding(store_uuid)) as pid, child(become_nobody_and_ask(pid, store_uuid, write)):
        text = os.read(read, 10_000).decode()
    os.close(read)
    os.close(write)
    assert f"member 0, process {pid}" in text and "permission denied" in text and "same user" in text


def test_identity_of_the_machine() -> None:
    assert len(peers.boot_id()) == 16 and peers.boot_id() == peers.boot_id() != bytes(16)
    assert peers.pid_namespace() == os.stat("/proc/self/ns/pid").st_ino
    assert peers.describe(os.getpid()).startswith(f"process {os.getpid()} (")
    assert peers.describe(2**22 + 1) == f"process {2**22 + 1}"
