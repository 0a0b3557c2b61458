"""Finding stores: private directories, locks, names, and what a sweep may remove."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from forked import byte_lock, child
from millpond.errors import AttachError, StoreBusyError
from millpond.spill import directory as spill_directory
from millpond.store import files as store_files
from millpond.store import peers, registry
from millpond.store.files import StoreFiles

EUID = os.geteuid()
as_root = pytest.mark.skipif(EUID != 0, reason="changes owners, which only root may")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MILLPOND_DIR", str(tmp_path / "registry"))
    return registry.root_of()


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    """No test leaves descriptors behind, above all none of a lock file."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert not store_files._open
    assert set(os.listdir("/proc/self/fd")) == before


def make_store(root: str, slot: int = 0, **options: Any) -> StoreFiles:
    """A store in which this process is the only member."""
    with registry.locked(root):
        files = registry.create(root, uuid.uuid4().bytes, **options)
        byte_lock(files.lock_fd, slot)
    return files


def member(root: str, slot: int, **options: Any) -> Callable[[], StoreFiles]:
    return lambda: make_store(root, slot, **options)


# --- the root ---


def test_root_is_private_and_made_when_missing(root: str) -> None:
    status = os.lstat(root)
    assert stat.S_IMODE(status.st_mode) == 0o700 and status.st_uid == EUID
    assert registry.root_of() == root


def test_root_without_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MILLPOND_DIR", raising=False)
    made: list[tuple[str, int]] = []
    monkeypatch.setattr(os, "mkdir", lambda path, mode: made.append((path, mode)))
    with suppress(AttachError):
        registry.root_of("name")
    assert made == [(f"/tmp/millpond-{EUID}", 0o700)]


def test_the_root_of_an_address_is_its_directory_and_is_not_made(root: str, tmp_path: Path) -> None:
    assert registry.root_of(f"{root}/{'0' * 32}/") == root
    with pytest.raises(AttachError, match="No such file"):
        registry.root_of(str(tmp_path / "elsewhere" / ("0" * 32)))
    assert not (tmp_path / "elsewhere").exists()


def make_symlink(path: Path) -> None:
    (path.parent / "target").mkdir(0o700)
    path.symlink_to(path.parent / "target")


def make_foreign(path: Path) -> None:
    path.mkdir(0o700)
    os.chown(path, 4711, -1)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (make_symlink, "symbolic link"),
        (lambda path: path.touch(0o600), "not a directory"),
        (lambda path: path.mkdir(0o755), r"mode 0755\); chmod 0700 it"),
        pytest.param(make_foreign, "belongs to user 4711", marks=as_root),
    ],
)
def test_an_unsafe_root_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, says: str
) -> None:
    path = tmp_path / "unsafe"
    make(path)
    os.umask(os.umask(0o22))
    monkeypatch.setenv("MILLPOND_DIR", str(path))
    with pytest.raises(AttachError, match=says) as caught:
        registry.root_of()
    assert str(path) in str(caught.value) and "MILLPOND_DIR" in str(caught.value)


def test_a_root_without_a_parent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_DIR", str(tmp_path / "no" / "such"))
    with pytest.raises(AttachError, match="No such file"):
        registry.root_of()


# --- the lock of the root ---


def test_locked_excludes_processes_and_names_the_one_inside(root: str) -> None:
    def hold() -> Any:
        context = registry.locked(root)
        context.__enter__()
        return context

    with (
        child(hold) as pid,
        pytest.raises(StoreBusyError, match=f"process {pid} "),
        registry.locked(root, timeout=0.05),
    ):
        pass
    with registry.locked(root, timeout=5):
        pass


def test_locked_excludes_threads(root: str) -> None:
    inside, leave, order = threading.Event(), threading.Event(), []

    def first() -> None:
        with registry.locked(root):
            inside.set()
            leave.wait(10)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    with pytest.raises(StoreBusyError), registry.locked(root, timeout=0.02):
        pass
    leave.set()
    with registry.locked(root):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_locked_notices_that_its_file_was_replaced(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, path = registry._try_flock, Path(root, "dirlock")

    def locks_but_the_file_is_gone(fd: int) -> bool:
        monkeypatch.setattr(registry, "_try_flock", real)
        path.unlink()
        path.touch(0o600)
        return real(fd)

    monkeypatch.setattr(registry, "_try_flock", locks_but_the_file_is_gone)
    with registry.locked(root):
        fd = os.open(path, os.O_RDWR)
        assert not real(fd), "the lock must be on the file that others will open"
        os.close(fd)


def test_a_child_forked_inside_does_not_keep_the_lock(root: str) -> None:
    with registry.locked(root):
        other = child(lambda: None)
        other.__enter__()
    with registry.locked(root, timeout=0.5):
        pass
    other.__exit__(None, None, None)


def test_an_unlock_that_fails_does_not_keep_the_lock(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock

    def fail_to_unlock(fd: int, kind: int) -> None:
        if kind == fcntl.LOCK_UN:
            raise OSError(errno.ENOMEM, "no memory")
        flock(fd, kind)

    monkeypatch.setattr(fcntl, "flock", fail_to_unlock)
    for _ in range(2):
        with registry.locked(root, 0):
            pass


def test_the_lock_file_must_be_ours(root: str) -> None:
    Path(root, "dirlock").touch(0o600)
    Path(root, "dirlock").chmod(0o666)
    with pytest.raises(AttachError, match="chmod 0600"), registry.locked(root):
        pass


# --- create, find, list ---


def test_create_makes_private_files(root: str) -> None:
    files = make_store(root, name="model")
    paths = sorted(Path(files.path).iterdir())
    assert [path.name for path in paths] == ["birth", "lock", "name", "spill"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}
    assert stat.S_IMODE(os.stat(files.path).st_mode) == 0o700
    assert os.path.basename(files.path) == files.uuid.hex()
    assert not os.get_inheritable(files.lock_fd) and not os.get_inheritable(files.birth_fd)
    files.close()


def test_find_by_name_address_and_uuid(root: str, tmp_path: Path) -> None:
    files = make_store(root, name="model", spill=(str(tmp_path),))
    other = make_store(root, slot=1)
    for key in ("model", files.path, files.path + "/", files.uuid):
        found = registry.find(registry.root_of(key), key)
        assert (found.path, found.uuid, found.name) == (files.path, files.uuid, "model")
        assert found.spill == (str(tmp_path),)
        found.close()
    assert other.name is None and other.spill == ()
    files.close()
    other.close()


@pytest.mark.parametrize(
    "key", ["other", "../registry", "", "/", "/tmp/x", "0" * 32, uuid.uuid4().bytes, f"/{'0' * 32}"]
)
def test_find_names_what_is_there(root: str, key: str | bytes) -> None:
    files = make_store(root, name="model")
    with pytest.raises(AttachError, match=r"no live store .*Alive there: 'model'"):
        registry.find(root, key)
    files.close()


def test_members_that_cannot_be_asked_for_leave_nothing_open(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(root).close()
    address = registry._directories(root).__next__()[0]

    def fail(*_: int) -> dict[int, int]:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(store_files, "live_slots", fail)
    with registry.locked(root), pytest.raises(OSError, match="no memory"):
        registry.find(root, address)


def test_a_store_without_members_is_not_found(root: str) -> None:
    files = make_store(root, name="model")
    address = files.path
    files.close()
    for key in ("model", address):
        with pytest.raises(AttachError, match="No store is alive there"):
            registry.find(root, key)


def test_names_are_taken_only_by_the_living(root: str) -> None:
    with child(member(root, 3, name="model")) as pid:
        with pytest.raises(AttachError, match=rf"'model' is taken .*\(processes {pid}\)"):
            make_store(root, name="model")
        make_store(root, name="other").close()
    make_store(root, name="model").close()


@pytest.mark.parametrize("name", ["", "/abs", "a\nb", "x" * 241, "\u00e9" * 121])
def test_names_that_cannot_be(root: str, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a store"):
        registry.create(root, uuid.uuid4().bytes, name)
    with pytest.raises(TypeError):
        registry.create(root, uuid.uuid4().bytes, 5)  # type: ignore[arg-type]
    assert os.listdir(root) == []


def test_list_stores(root: str) -> None:
    mine = make_store(root, slot=7, name="mine")
    with child(member(root, 2)) as pid:
        stores = registry.list_stores(root)
        assert [info.uuid for info in stores] == sorted(info.uuid for info in stores)
        seen = {info.name: (info.address, info.pids) for info in stores}
        assert seen["mine"] == (mine.path, (os.getpid(),))
        assert seen[None][1] == (pid,)
    assert [info.name for info in registry.list_stores(root)] == ["mine"]
    mine.close()
    assert registry.list_stores(root) == []


def test_looking_at_a_store_does_not_drop_its_locks(root: str) -> None:
    """Closing any descriptor of the lock file would: F_GETLK by another process tells."""
    files = make_store(root, slot=5)
    with registry.locked(root):
        registry.list_stores(root)
        registry.find(root, files.uuid).close()
    registry.sweep(root)
    with registry.locked(root), pytest.raises(AttachError):
        registry.find(root, "no such name")
    assert seen_by_another(files.path) == {5: os.getpid()}
    files.close()
    assert seen_by_another(files.path) == {}


def seen_by_another(path: str) -> dict[int, int]:
    read, write = os.pipe()

    def look() -> None:
        lock, birth = (os.open(f"{path}/{name}", os.O_RDWR) for name in ("lock", "birth"))
        os.write(write, repr(peers.live_slots(lock, birth)).encode())

    with child(look):
        result = eval(os.read(read, 10_000))
    os.close(read)
    os.close(write)
    assert isinstance(result, dict)
    return result


@pytest.mark.parametrize("file", ["lock", "birth", "name", "spill"])
def test_files_that_others_may_touch_are_refused(root: str, file: str) -> None:
    with child(member(root, 0)):
        (info,) = registry.list_stores(root)
        os.chmod(f"{info.address}/{file}", 0o660)
        with pytest.raises(AttachError, match=rf"{file} is refused: .*mode 0660\); chmod 0600"):
            registry.find(root, info.uuid)


def test_a_symlinked_lock_is_not_followed(root: str) -> None:
    with child(member(root, 0)):
        (info,) = registry.list_stores(root)
        os.rename(f"{info.address}/lock", f"{info.address}/real")
        os.symlink("real", f"{info.address}/lock")
        with pytest.raises(AttachError, match="Too many levels of symbolic links"):
            registry.find(root, info.address)


def test_descriptors_are_shared_within_a_process_and_outlive_all_but_the_last(root: str) -> None:
    first = make_store(root, slot=3)
    second = registry.find(root, first.uuid)
    assert (second.lock_fd, second.birth_fd) == (first.lock_fd, first.birth_fd)
    first.close()
    first.close()
    assert second.live_pids() == {3: os.getpid()}
    second.close()


# --- sweep ---


def spill_something(base: Path, store_uuid: bytes) -> Path:
    directory = spill_directory.prepare(base, store_uuid)
    (directory / f"{1:016x}.seg").write_bytes(b"x" * 10_000)
    return directory


def abandoned(root: str, base: Path, **options: Any) -> tuple[str, Path]:
    """What a killed process leaves: its address and its spill directory."""
    files = make_store(root, spill=(str(base),), **options)
    spilled = spill_something(base, files.uuid)
    files.close()
    return files.path, spilled


@pytest.mark.parametrize("file", ["name", "spill"])
def test_a_fifo_in_a_files_place_keeps_nobody(root: str, file: str) -> None:
    files = make_store(root, name="one")
    os.unlink(f"{files.path}/{file}")
    os.mkfifo(f"{files.path}/{file}", 0o600)
    assert [info.name for info in registry.list_stores(root)] == ["one"] * (file != "name")
    files.close()
    registry.sweep(root)


def test_sweep_removes_the_dead_and_not_the_living(root: str, tmp_path: Path) -> None:
    base = tmp_path / "spill"
    alive = make_store(root, spill=(str(base),))
    alive_spilled = spill_something(base, alive.uuid)
    with child(member(root, 1, spill=(str(base),))):
        (neighbour,) = {info.uuid for info in registry.list_stores(root)} - {alive.uuid}
        neighbour_spilled = spill_something(base, neighbour)
        path, spilled = abandoned(root, base)
        planned = registry.sweep(root, dry_run=True)
        assert Path(path).exists() and spilled.exists()
        removed = registry.sweep(root)
        assert registry.sweep(root) == []
        assert [item.path for item in removed] == [str(spilled), path]
        assert removed == planned and removed[0].bytes >= 10_000
        assert not Path(path).exists() and not spilled.exists()
        assert alive_spilled.exists() and neighbour_spilled.exists()
        assert len(registry.list_stores(root)) == 2
    alive.close()
    assert len(registry.sweep(root)) == 4
    assert os.listdir(root) == ["dirlock"]


def test_a_killed_member_is_swept(root: str, tmp_path: Path) -> None:
    with child(member(root, 0, spill=(str(tmp_path),))) as pid:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert len(registry.sweep(root)) == 1


def test_a_forked_child_without_a_lock_of_its_own_keeps_the_store(root: str) -> None:
    files = make_store(root)
    fresh = os.open(f"{files.path}/birth", os.O_RDWR)
    byte_lock(fresh, 8, fcntl.F_OFD_SETLK)
    with child(lambda: None):
        os.close(fresh)
        files.close()
        assert registry.sweep(root) == []
        (info,) = registry.list_stores(root)
        assert (info.address, info.pids) == (files.path, ())
    assert len(registry.sweep(root)) == 1


def test_retiring_ends_a_member_for_all_users_of_its_files(root: str, tmp_path: Path) -> None:
    with child(member(root, 0)):
        files = make_store(root, spill=(str(tmp_path),))
        spilled = spill_something(tmp_path, files.uuid)
        registry.retire(files)
        registry.retire(files)
        assert not Path(files.path).exists() and not spilled.exists()
        assert len(registry.list_stores(root)) == 1


def test_retiring_leaves_a_store_to_its_other_members(root: str) -> None:
    files = make_store(root, slot=0)

    def join() -> Any:
        found = registry.find(root, files.uuid)
        byte_lock(found.lock_fd, 1)
        return found

    with child(join) as pid:
        registry.retire(files)
        assert [info.pids for info in registry.list_stores(root)] == [(pid,)]


@pytest.mark.parametrize("file", ["lock", "birth"])
def test_a_living_store_whose_files_were_removed_is_left_alone(root: str, file: str) -> None:
    with child(member(root, 0)):
        (info,) = registry.list_stores(root)
        os.unlink(f"{info.address}/{file}")
        assert registry.sweep(root) == []
    assert len(registry.sweep(root)) == 1


@pytest.mark.parametrize("content", [None, "", "[", "5", '{"a": 1}', "[1, 2]"])
def test_a_store_that_was_never_complete_is_swept(root: str, content: str | None) -> None:
    path = Path(root, "ab" * 16)
    path.mkdir(0o700)
    if content is not None:
        (path / "spill").write_text(content)
        (path / "spill").chmod(0o600)
    assert registry.list_stores(root) == []
    assert [item.path for item in registry.sweep(root)] == [str(path)]
    assert not path.exists()


def test_sweep_touches_nothing_else(root: str, tmp_path: Path) -> None:
    path, spilled = abandoned(root, tmp_path / "spill")
    for name in ("notes", "AB" * 16, "ab" * 15):
        Path(root, name).mkdir(0o700)
    Path(root, "cd" * 16).touch()
    Path(root, "ef" * 16).symlink_to(tmp_path)
    (spilled / "keep.txt").write_text("not a segment")
    registry.sweep(root)
    assert not Path(path).exists()
    assert (spilled / "keep.txt").exists() and len(list(spilled.iterdir())) == 1
    assert len(os.listdir(root)) == 6  # with dirlock


def test_a_spill_directory_that_cannot_be_trusted_stays_with_its_record(root: str, tmp_path: Path) -> None:
    path, spilled = abandoned(root, tmp_path / "spill")
    spilled.chmod(0o755)
    assert registry.sweep(root) == []
    assert Path(path, "spill").exists() and len(list(spilled.iterdir())) == 1
    spilled.chmod(0o700)
    assert len(registry.sweep(root)) == 2


def test_nobody_waits_for_a_sweep(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for the registry, nor by sweeping the same store: its disk may hang."""
    path, spilled = abandoned(root, tmp_path / "spill")
    removing: list[Path] = []

    def remove(base: Path, store_uuid: bytes) -> int:
        removing.append(base)
        assert registry.sweep(root, timeout=0) == []
        with child(member(root, 0, name="another")):
            assert [info.name for info in registry.list_stores(root)] == ["another"]
        return sweep_spilled(base, store_uuid)

    sweep_spilled = spill_directory.sweep
    monkeypatch.setattr(spill_directory, "sweep", remove)
    assert [item.path for item in registry.sweep(root)] == [str(spilled), path]
    assert removing == [tmp_path / "spill"]


@pytest.mark.parametrize("after", ["sweep", "store_directory"])
def test_a_sweep_that_is_killed_is_repeated(root: str, tmp_path: Path, after: str) -> None:
    path, spilled = abandoned(root, tmp_path / "spill")
    real = getattr(spill_directory, after)

    def die(*arguments: Any) -> Any:
        real(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        setattr(spill_directory, after, die)
        registry.sweep(root)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    assert Path(path, "spill").exists() and spilled.exists() == (after != "sweep")
    assert str(path) in [item.path for item in registry.sweep(root)]
    assert not spilled.exists() and os.listdir(root) == ["dirlock"]


def test_a_sweep_of_one_store_leaves_the_others(root: str, tmp_path: Path) -> None:
    one, other = abandoned(root, tmp_path)[0], abandoned(root, tmp_path)[0]
    removed = registry.sweep(root, only=bytes.fromhex(os.path.basename(one)))
    assert removed[-1].path == one and Path(other).exists()
    assert registry.sweep(root)[-1].path == other


# --- together ---


def come_and_go(root: str, base: Path, rounds: int) -> None:
    """A process that creates, looks, sweeps and leaves; fails if anybody removes what it lives in."""
    for number in range(rounds):
        registry.sweep(root)
        with registry.locked(root):
            files = registry.create(root, uuid.uuid4().bytes, spill=(str(base),))
            byte_lock(files.lock_fd, number % 256)
        spilled = spill_something(base, files.uuid)
        assert files.uuid in {info.uuid for info in registry.list_stores(root)}
        with registry.locked(root):
            registry.find(root, files.uuid).close()
        registry.sweep(root)
        assert Path(files.path, "lock").exists() and len(list(spilled.iterdir())) == 1
        files.close()


def test_many_processes_come_and_go(root: str, tmp_path: Path) -> None:
    def work() -> None:
        come_and_go(root, tmp_path / "spill", 40)

    with child(work), child(work):
        come_and_go(root, tmp_path / "spill", 40)
    registry.sweep(root)
    assert os.listdir(root) == ["dirlock"]
    assert os.listdir(spill_directory.user_directory(tmp_path / "spill")) == []


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_fork_waits_until_no_thread_looks_at_stores() -> None:
    looking, done = threading.Event(), threading.Event()

    def look() -> None:
        with store_files._mutex:
            looking.set()
            done.wait(0.05)

    thread = threading.Thread(target=look)
    thread.start()
    looking.wait(10)
    with child(lambda: store_files._mutex.acquire(timeout=5) or os._exit(1)):
        thread.join()
