"""What a store leaves on disk when its processes end, and who removes it: nothing that lives is touched."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import millpond
from millpond.spill import owner
from millpond.store import registry
from ponds import Pond
from workers import wait_until

PROGRAM = """
import sys, threading, time
import millpond, numpy as np
{before}
store = millpond.Store("4MiB", spill_dir=sys.argv[1])
refs = [store.put(np.ones(100_000)) for _ in range(20)]
print(store.address, flush=True)
{then}
"""
SLEEP = "time.sleep(60)"
BUSY = "while True: refs = [store.put(np.ones(50_000)) for _ in range(30)]"
HANDLER = "import signal; signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))"


class Program:
    """A process with a store of its own, which has spilled."""

    def __init__(self, base: Path, then: str = SLEEP, before: str = "") -> None:
        command = [sys.executable, "-c", PROGRAM.format(before=before, then=then), str(base)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address, self.process.communicate()[1]

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=30)
        return self.process.returncode


def left(base: Path) -> list[Path]:
    """All that lies in the private directory under `base`."""
    return [path for path in base.rglob("*") if path.parent != base]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MILLPOND_DIR", str(tmp_path / "registry"))
    yield tmp_path / "spill"
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("then", [SLEEP, BUSY], ids=["idle", "busy"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_that_end_a_program_leave_nothing(base: Path, number: int, then: str) -> None:
    program = Program(base, then)
    assert left(base)
    assert program.end(number) == -number
    assert left(base) == []
    assert not os.path.exists(program.address)


def test_a_handler_of_the_program_is_left_alone(base: Path) -> None:
    program = Program(base, before=HANDLER)
    assert program.end(signal.SIGTERM) == 7
    assert left(base) == []


def test_other_members_keep_the_store_of_a_terminated_creator(base: Path) -> None:
    program = Program(base, "store.delete(refs[1:]); store.put(7, name='kept'); time.sleep(60)")
    with millpond.connect(program.address) as store:
        kept = store.lookup("kept", timeout=10)
        assert program.end(signal.SIGTERM) == -signal.SIGTERM
        assert kept.get() == 7
        wait_until(lambda: store._reap() or store.stats().members == 1)
        assert store.check() == []
    assert left(base) == []


def test_a_forked_child_dies_as_it_did_without_a_store(pond: Pond) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # other tests may have had a store
    try:
        pond.store()
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        pid = os.fork()
        if pid == 0:
            os._exit(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_killed_program_is_swept_by_the_next(base: Path) -> None:
    program = Program(base)
    program.end(signal.SIGKILL)
    assert left(base)
    with millpond.Store("4MiB", spill_dir=base / "other"):
        uuid = Path(program.address).name  # its registry entry says where it has spilled
        assert not [path for path in left(base) if path.name.startswith(uuid)]


@pytest.mark.parametrize("how", ["next", "gc"])
def test_without_a_registry_the_dead_are_swept_as_well(base: Path, how: str) -> None:
    program = Program(base)
    program.end(signal.SIGKILL)
    shutil.rmtree(program.address)
    assert left(base)
    if how == "next":
        with millpond.Store("4MiB", spill_dir=base) as store:
            assert Path(program.address).name not in {path.name for path in left(base)}
            assert store.check() == []
    else:
        code = "import sys; from millpond.cli.main import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "gc", "--spill-dir", str(base)]
        dry = subprocess.run([*command, "--dry-run"], capture_output=True, text=True, check=True).stdout
        assert Path(program.address).name in dry and left(base)
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == dry
        assert Path(program.address).name not in {path.name for path in left(base)}


def sweep(base: Path) -> list[registry.Removed]:
    root = registry.root_of()
    return registry.sweep(root, bases=[base])


def test_a_living_neighbour_without_a_registry_is_left_alone(base: Path) -> None:
    """Somebody cleans /tmp: the spill files belong to a store that lives."""
    with millpond.Store("4MiB", spill_dir=base) as store:
        refs = [store.put(np.full(100_000, i)) for i in range(20)]
        shutil.rmtree(store.address)
        assert sweep(base) == []
        with millpond.Store("4MiB", spill_dir=base):
            assert all((ref.get(copy=True) == i).all() for i, ref in enumerate(refs))
        del refs
    assert len(sweep(base)) == 1, "now nobody has it any more"
    assert left(base) == []


def test_a_forked_child_keeps_it_too(base: Path) -> None:
    store = millpond.Store("4MiB", spill_dir=base)
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(theirs)
        os.read(ours, 1)  # ends with the parent's end of the pipe
        os._exit(0)
    os.close(ours)
    shutil.rmtree(store.address)
    store.close()
    assert sweep(base) == []
    os.close(theirs)
    os.waitpid(pid, 0)
    assert len(sweep(base)) == 1


def change_owner(base: Path, **fields: str | None) -> None:
    (file,) = base.rglob("*.owner")
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_after_a_reboot(base: Path) -> None:
    """The registry may be there or not: another boot has no processes of this one."""
    program = Program(base)
    program.end(signal.SIGKILL)
    address = program.address
    os.rename(address, address[:-32] + "elsewhere")
    change_owner(base, boot_id="another", host="another machine", registry=address + "-")
    assert sweep(base) == [], "a machine that shares the disk: its locks may not be seen"
    change_owner(base, host=os.uname().nodename)
    assert [removed.path for removed in sweep(base)] == [
        str(base / f"millpond-{os.geteuid()}" / Path(address).name)
    ]
    assert left(base) == []


def test_the_registry_decides_while_it_is_there(base: Path, tmp_path: Path) -> None:
    """Another MILLPOND_DIR has a store that is dead: its own sweep removes it."""
    program = Program(base)
    program.end(signal.SIGKILL)
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    assert registry.sweep(str(other), bases=[base]) == []
    assert len(sweep(base)) == 2


@pytest.mark.parametrize("damage", ["", "[1]", "{", None])
def test_an_owner_file_that_says_nothing(
    base: Path, damage: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then only age tells: what was changed since the last boot may be in use."""
    program = Program(base)
    program.end(signal.SIGKILL)
    shutil.rmtree(program.address)
    (file,) = base.rglob("*.owner")
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage)
    assert sweep(base) == []
    monkeypatch.setattr(owner.time, "clock_gettime", lambda _: -60.0)  # booted in a minute
    assert len(sweep(base)) == 1
    assert left(base) == []
