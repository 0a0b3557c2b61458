"""Spill directories: choosing, privacy, several of them, sweeping."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from millpond.errors import SpillError
from millpond.spill import directory
from millpond.spill.directory import (
    ENVIRONMENT,
    Directories,
    default_base,
    prepare,
    store_directory,
    stores,
    sweep,
    user_directory,
)
from millpond.spill.disk import System
from spill_fakes import Failing, NoDirect

UUID = bytes(range(16))


def test_a_store_has_a_private_directory_of_its_own(tmp_path: Path) -> None:
    path = prepare(tmp_path / "new" / "base", UUID)
    assert path == tmp_path / "new" / "base" / f"millpond-{os.geteuid()}" / UUID.hex()
    assert path == store_directory(tmp_path / "new" / "base", UUID)
    for each in (path, path.parent):
        assert each.stat().st_mode & 0o777 == 0o700
    assert prepare(tmp_path / "new" / "base", UUID) == path, "the second member finds it"


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def file_instead(path: Path) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"")


@pytest.mark.parametrize("which", [user_directory, lambda base: store_directory(base, UUID)])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (link, "symbolic link"),
        (file_instead, "not a directory"),
        (lambda path: path.chmod(0o750), "mode is 0750"),
        (lambda path: path.chmod(0o702), "mode is 0702"),
    ],
)
def test_a_directory_that_others_could_reach_is_refused(
    tmp_path: Path, which: Callable[[Path], Path], spoil: Callable[[Path], None], reason: str
) -> None:
    prepare(tmp_path, UUID)
    spoil(which(tmp_path))
    with pytest.raises(SpillError, match=reason) as error:
        prepare(tmp_path, UUID)
    assert error.value.filename == str(which(tmp_path))
    assert error.value.errno == errno.EPERM


def test_a_foreign_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: uid + 1)
    (tmp_path / f"millpond-{uid + 1}").mkdir(mode=0o700)
    with pytest.raises(SpillError, match=f"belongs to user {uid}, this process runs as {uid + 1}"):
        prepare(tmp_path, UUID)


def test_a_base_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SpillError, match="Choose another spill_dir") as error:
        prepare(tmp_path / "file" / "base", UUID)
    assert error.value.errno == errno.ENOTDIR


@pytest.fixture
def bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The candidates of default_base, in its order, all fit."""
    found = {name: tmp_path / name for name in ("var", "temp", "home")}
    for path in (found["var"], found["temp"], found["home"] / ".cache"):
        path.mkdir(parents=True)
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(directory, "_VAR_TMP", found["var"])
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(found["temp"]))
    monkeypatch.setattr(Path, "home", lambda: found["home"])
    monkeypatch.setattr(directory, "is_memory_filesystem", lambda path: (path / "in-memory").exists())
    return found


def test_the_default_is_the_first_that_lies_on_a_disk(bases: dict[str, Path]) -> None:
    assert default_base() == bases["var"]
    (bases["var"] / "in-memory").touch()
    assert default_base() == bases["temp"]
    (bases["temp"] / "in-memory").touch()
    assert default_base() == bases["home"] / ".cache"
    (bases["home"] / ".cache").rmdir()
    with pytest.raises(SpillError, match=r"lies in memory.*\.cache is not a directory.*Pass spill_dir"):
        default_base()


def test_the_environment_names_the_directory(bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (bases["temp"] / "in-memory").touch()
    monkeypatch.setenv(ENVIRONMENT, str(bases["temp"]))
    assert default_base() == bases["temp"], "named explicitly, so memory is allowed"


def test_unwritable_candidates_are_passed_over(
    bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != bases["var"] and access(path, mode))
    assert default_base() == bases["temp"]


def test_sweep_removes_what_a_store_left(tmp_path: Path) -> None:
    path = prepare(tmp_path, UUID)
    (path / f"{1:016x}.seg").write_bytes(bytes(8192))
    (path / f"{2**60:016x}.seg").write_bytes(bytes(100))
    (path / "probe-17-0").touch()
    other = prepare(tmp_path, bytes(16))
    assert list(stores(tmp_path)) == [bytes(16), UUID]
    assert sweep(tmp_path, UUID) >= 8192
    assert not path.exists()
    assert other.exists()
    assert list(stores(tmp_path)) == [bytes(16)]
    assert sweep(tmp_path, UUID) == 0


def test_sweep_leaves_what_is_not_the_stores(tmp_path: Path) -> None:
    path = prepare(tmp_path, UUID)
    (path / "1.seg").touch()
    (path / f"{1:016x}.seg").touch()
    sweep(tmp_path, UUID)
    assert [name.name for name in path.iterdir()] == ["1.seg"]


def test_sweep_follows_no_links(tmp_path: Path) -> None:
    path = prepare(tmp_path, UUID)
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o700)
    (victim / f"{1:016x}.seg").touch()
    path.rmdir()
    path.symlink_to(victim)
    with pytest.raises(SpillError, match="cannot sweep"):
        sweep(tmp_path, UUID)
    path.unlink()
    path.mkdir(mode=0o755)
    (path / f"{1:016x}.seg").touch()
    with pytest.raises(SpillError, match="mode is 0755"):
        sweep(tmp_path, UUID)
    path.chmod(0o700)
    (path / f"{2:016x}.seg").symlink_to(victim / f"{1:016x}.seg")
    sweep(tmp_path, UUID)
    assert (victim / f"{1:016x}.seg").exists()


def test_no_stores_where_nothing_is(tmp_path: Path) -> None:
    assert list(stores(tmp_path)) == []
    user_directory(tmp_path).mkdir()
    (user_directory(tmp_path) / "something").mkdir()
    assert list(stores(tmp_path)) == []


def test_files_are_named_by_segment(tmp_path: Path) -> None:
    directories = Directories([tmp_path / "a", tmp_path / "b"], UUID)
    assert directories.paths == tuple(str(store_directory(tmp_path / name, UUID)) for name in "ab")
    assert directories.file(1, 0xAB) == f"{directories.paths[1]}/00000000000000ab.seg"


def test_turns(tmp_path: Path) -> None:
    directories = Directories([tmp_path / name for name in "abc"], UUID)
    picked = [directories.pick(4096, {}) for _ in range(6)]
    assert sorted(picked[:3]) == sorted(picked[3:]) == [0, 1, 2]  # type: ignore[type-var]


def test_one_that_failed_is_asked_last_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    directories = Directories([tmp_path / name for name in "ab"], UUID)
    directories.note_failure(0, OSError(errno.EIO, "broken"))
    assert {directories.pick(4096, {}) for _ in range(4)} == {1}
    assert directories.pick(4096, {1: OSError()}) == 0
    now += directory.RETRY_S
    assert {directories.pick(4096, {}) for _ in range(4)} == {0, 1}


def test_the_floor_is_kept_free(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    directories = Directories([tmp_path], UUID, floor=free // 2)
    tried: dict[int, OSError] = {}
    assert directories.pick(free // 4, tried) == 0
    assert directories.pick(3 * free // 4, tried) is None
    assert tried[0].errno == errno.ENOSPC
    refusal = directories.refusal(3 * free // 4, tried)
    assert refusal.errno == errno.ENOSPC
    assert refusal.filename == directories.paths[0]
    assert "are kept free" in str(refusal)


def test_the_default_floor_is_a_share_of_the_disk(tmp_path: Path) -> None:
    class Tiny(System):
        free = 0

        def statvfs(self, path: str) -> os.statvfs_result:
            fields = list(os.statvfs(path))
            fields[:5] = [4096, 4096, 1000, self.free, self.free]
            return os.statvfs_result(fields)

    system = Tiny()
    directories = Directories([tmp_path], UUID, system=system)
    system.free = 30
    directories.check_room(0, 10 * 4096)
    system.free = 29
    with pytest.raises(OSError, match="116 KiB free"):
        directories.check_room(0, 10 * 4096)


def test_no_directories_at_all() -> None:
    directories = Directories([], UUID)
    assert directories.pick(1, {}) is None
    assert "no spill directory" in str(directories.refusal(1, {}))


def test_direct_io_is_probed_once(tmp_path: Path) -> None:
    system = Failing(errno.EINVAL, 10**9, ["open"])
    directories = Directories([tmp_path], UUID, system=system)
    assert system.calls == 0
    known = directories.direct(0)
    assert system.calls == 1
    assert directories.direct(0) == known
    assert system.calls == 1
    assert Directories([tmp_path], UUID, system=NoDirect(at_open=True)).direct(0) is False


def test_a_probe_that_failed_is_repeated(tmp_path: Path) -> None:
    directories = Directories([tmp_path], UUID, system=Failing(errno.EIO, 1, ["open"]))
    with pytest.raises(OSError):
        directories.direct(0)
    directories.direct(0)


def test_two_threads_make_a_directory_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each closes what it replaces, and nothing twice: the number may be another file's by then."""
    directories = Directories([tmp_path], UUID, floor=0)
    place = directories._places[0]
    closed: list[int] = []
    close = os.close

    def close_slowly(fd: int) -> None:
        closed.append(fd)
        if len(closed) == 1:
            directories._make_again(place)  # another thread does, while this one is in the system call
        close(fd)

    shutil.rmtree(place.path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close_slowly)
        assert directories._make_again(place)
    assert len(closed) == len(set(closed)) == 2
    assert place.fd is not None and os.path.samestat(os.fstat(place.fd), os.stat(place.path))
    directories.close()
