"""Who may not join a store, what others may put in its way, with real other users and pid namespaces."""

from __future__ import annotations

import os
import pickle
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import millpond
from millpond.spill import directory as spill_directory
from millpond.store import registry
from ponds import Pond, connection

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


def become(uid: int) -> None:
    os.setgid(uid)
    os.setuid(uid)


class Bait:
    """Whoever unpickles it is caught."""

    def __init__(self, trap: str) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.trap,)


def create_as(own: Any, uid: int, registry: str, spill: str, trap: str) -> tuple[str, bytes]:
    become(uid)
    os.environ["MILLPOND_DIR"] = registry
    own.store = millpond.Store("8MiB", spill_dir=spill)
    own.ref = own.store.put(Bait(trap), name="bait")
    return own.store.address, pickle.dumps(own.ref)


def let_others_in(directory: Path) -> None:
    """As far as `directory`, which they may list."""
    for path in (directory, *directory.parents):
        if path.stat().st_mode & 0o077 == 0:
            path.chmod(0o711)


@pytest.fixture
def outside() -> Iterator[Path]:
    """A directory that other users can reach: not below that of pytest, which any other run closes."""
    with tempfile.TemporaryDirectory(prefix="millpond-tests-") as name:
        let_others_in(Path(name))
        yield Path(name)


def test_root_joins_nobody_elses_store(pond: Pond, outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its values are pickles: to read them is to run what their writer wants."""
    directory = outside / "theirs"
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)
    stranger = pond.worker(program=True)
    trap = directory / "sprung"
    address, ref = stranger.run(
        create_as, NOBODY, str(directory / "registry"), str(directory / "spill"), str(trap)
    )
    with pytest.raises(millpond.AttachError, match=f"belongs to user {NOBODY}"):
        millpond.connect(address)
    with pytest.raises(millpond.AttachError, match="no live store"):
        pickle.loads(ref)
    monkeypatch.setenv("MILLPOND_DIR", str(directory / "registry"))
    for attempt in (lambda: pickle.loads(ref), lambda: millpond.connect("bait"), millpond.Store):
        with pytest.raises(
            millpond.AttachError, match=rf"{directory}.*belongs to user {NOBODY}.*MILLPOND_DIR"
        ):
            attempt()
    assert not trap.exists()


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


# --- what another user puts in the way, where anybody may make files ---


@pytest.fixture
def public(outside: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory like /tmp, in which stores of this process spill by default."""
    path = outside / "public"
    path.mkdir()
    path.chmod(0o1777)
    monkeypatch.delenv("MILLPOND_SPILL_DIR", raising=False)
    monkeypatch.setattr(spill_directory, "_VAR_TMP", path)
    return path


def squat(own: Any, uid: int, path: str, kind: str, target: str) -> None:
    become(uid)
    if kind == "link":
        os.symlink(target, path)
        return
    os.mkdir(path, 0o777 if kind == "open" else 0o700)
    os.chmod(path, 0o777 if kind == "open" else 0o755)
    for suffix in ("lock", "dirlock", "0" * 32 + ".owner", "1" * 32 + ".owner"):
        os.mkfifo(f"{path}/{suffix}")
    os.mkdir(f"{path}/{'1' * 32}", 0o755)


KINDS = ["link", "open", "closed"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_squatted_spill_directory_is_passed_over(pond: Pond, public: Path, kind: str) -> None:
    """Another user was first: a store looks for another place, and does not hang on what lies there."""
    theirs = spill_directory.user_directory(public)
    (elsewhere := public.parent / "ours").mkdir(mode=0o700)
    pond.worker(program=True).run(squat, NOBODY, str(theirs), kind, str(elsewhere))
    before = sorted(os.listdir(elsewhere)), sorted(os.listdir(theirs))
    assert list(spill_directory.stores(public)) == []
    store = pond.store("4MiB", spill_dir=None)
    refs = [store.put(bytes(1 << 20)) for _ in range(8)]
    assert store.stats().spilled_objects_total > 0
    assert all(ref.get() == bytes(1 << 20) for ref in refs)
    assert store._directories is not None and not store._directories.paths[0].startswith(str(public))
    del refs
    assert (sorted(os.listdir(elsewhere)), sorted(os.listdir(theirs))) == before
    with pytest.raises(
        millpond.SpillError, match=rf"{theirs} is refused.*(user {NOBODY}|link).*Remove it or"
    ) as error:
        pond.store(spill_dir=public)
    assert error.value.filename == str(theirs)
    store.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_squatted_registry_is_an_error_that_says_what_to_do(
    pond: Pond, public: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All processes must look in the same place, so there is no other to go to."""
    theirs = public / f"millpond-{os.geteuid()}"
    (elsewhere := public.parent / "ours").mkdir(mode=0o700)
    pond.worker(program=True).run(squat, NOBODY, str(theirs), kind, str(elsewhere))
    monkeypatch.setenv("MILLPOND_DIR", str(theirs))
    for attempt in (millpond.Store, lambda: millpond.connect("x"), lambda: registry.root_of(b"1" * 16)):
        with pytest.raises(
            millpond.AttachError, match=rf"{theirs} is refused.*(user {NOBODY}|link).*MILLPOND_DIR"
        ):
            attempt()


def modes(directory: Path) -> dict[str, str]:
    """What is wrong with what lies below, and with `directory` itself."""
    found = {}
    for path in (directory, *directory.rglob("*")):
        status = path.lstat()
        if status.st_mode & 0o077 or status.st_uid != os.geteuid():
            found[str(path)] = f"{stat.filemode(status.st_mode)} {status.st_uid}"
    return found


def careless(own: Any, registry: str, spill: str) -> None:
    os.umask(0)
    os.environ["MILLPOND_DIR"] = registry
    own.store = millpond.Store("4MiB", spill_dir=spill)
    own.refs = [own.store.put(bytes(size)) for size in (1 << 20, 9 << 20, 100)]
    own.store.spill()
    own.plasma = millpond.integrations.plasma.client.PlasmaClient(own.store, "x")
    own.plasma.subscribe()


def test_without_a_umask_all_is_private(pond: Pond, tmp_path: Path) -> None:
    """Also the directories on the way to a base that was not there: who may rename them is master of it."""
    worker = pond.worker(program=True)
    places = (tmp_path / "r", tmp_path / "new" / "deep" / "base")
    worker.run(lambda own: __import__("millpond.integrations.plasma.client"))
    worker.run(careless, *map(str, places))
    assert len(list(places[1].rglob("*.seg"))) >= 2
    assert (modes(places[0]), modes(tmp_path / "new")) == ({}, {})


def visit(own: Any, uid: int, registry: str, spill: str) -> str:
    """What a store says where root has been before."""
    become(uid)
    os.environ["MILLPOND_DIR"] = registry
    try:
        millpond.Store("4MiB", spill_dir=spill).close()
    except millpond.MillpondError as error:
        return f"{type(error).__name__}: {error}"
    return "made"


def test_after_sudo(pond: Pond, outside: Path) -> None:
    """Root made the directories first. The user is told whose they are, and gets on with others."""
    root, base = outside / "r", outside / "base"
    pond.worker(program=True).run(visit, 0, str(root), str(base))
    (own := outside / "own").mkdir()
    os.chown(own, NOBODY, NOBODY)

    def say(registry: Path, spill: Path) -> str:
        return pond.worker(program=True).run(visit, NOBODY, str(registry), str(spill))

    refused = say(root, own / "base")
    assert refused.startswith(f"AttachError: {root} is refused: it belongs to user 0")
    assert "MILLPOND_DIR" in refused
    refused = say(own / "r", base)
    assert refused.startswith("SpillError")
    assert f"cannot spill to {base}: Permission denied. Choose another spill_dir" in refused
    assert say(own / "r", own / "base") == "made"


# --- what lies in a store's own directories ---

COMPONENTS: dict[str, Callable[[millpond.Store], Path]] = {
    "registry": lambda store: Path(store.address).parent,
    "store": lambda store: Path(store.address),
    "lock": lambda store: Path(store.address, "lock"),
    "birth": lambda store: Path(store.address, "birth"),
}


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("kind", ["link", "fifo", "foreign", "open to all"])
def test_each_component_is_looked_at(pond: Pond, component: str, kind: str) -> None:
    """A newcomer is refused, with the reason; nobody hangs; who is in the store stays there."""
    store = pond.store()
    ref = store.put(1)
    path = COMPONENTS[component](store)
    aside = path.with_name("aside")
    if kind in ("link", "fifo"):
        path.rename(aside)
        path.symlink_to(aside) if kind == "link" else os.mkfifo(path)
    elif kind == "foreign":
        os.chown(path, NOBODY, NOBODY)
    else:
        path.chmod(0o777)
    refused = pond.worker(program=True).run(connection, store.address)
    assert refused.startswith("AttachError"), refused
    assert ref.get() == 1 and store.stats().members == 1
    if aside.exists():
        path.unlink()
        aside.rename(path)
    os.chown(path, 0, 0)
    path.chmod(0o700)
    assert pond.worker(program=True).run(connection, store.address) == "joined"
