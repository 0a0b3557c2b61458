"""A disk that neither works nor fails: whoever needs it waits for it, and nobody else does.

Where the filesystem can be frozen (as root, with loop devices) it is; the rest holds up the calls themselves.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import millpond
from disks import Disk, mounted_ext4
from millpond.hot import Code
from millpond.spill.disk import System
from ponds import Pond, connection, join
from workers import wait_until

COUNT = 125_000


def full(number: int) -> np.ndarray:
    return np.full(COUNT, number)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted_ext4(tmp_path, "64M") as disk:
        yield disk


def put_many(own: Any, first: int, count: int) -> int:
    own.refs = getattr(own, "refs", {})
    for number in range(first, first + count):
        own.refs[number] = own.store.put(full(number))
    return len(own.refs)


def make_and_fill(own: Any, base: Path) -> str:
    own.store = millpond.Store("4MiB", spill_dir=base)
    put_many(own, 0, 8)
    return own.store.address


def leave(own: Any) -> None:
    own.refs.clear()
    own.store.close()


def forget(own: Any) -> None:
    own.refs.clear()


def look(own: Any, refs: bytes) -> list[int]:
    """What can be done without a disk: reading what is in memory, small puts, deletes, counts, the check."""
    found = [int(ref.get(copy=True)[-1]) for ref in pickle.loads(refs)]
    small = own.store.put("small")
    assert small.get() == "small" and own.store.stats().members > 1 and own.store.check() == []
    own.store.delete(small)
    return found


def is_waiting(pid: int) -> bool:
    """Whether a thread of the process waits for a device, uninterruptibly."""
    states = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return any(text.rpartition(")")[2].split()[0] == "D" for text in states)


def test_a_frozen_disk(pond: Pond, disk: Disk) -> None:
    """Others go on, new members come, one that waits is killed: all of it before the disk thaws."""
    store = pond.store("8MiB", spill_dir=disk.path / "spill")
    kept = {number: store.put(full(number)) for number in range(12)}
    store._room.spiller.stop()
    resident = [ref for ref in kept.values() if store._state(ref) == Code.OK][-3:]
    views = [ref.get() for ref in resident]  # so that they stay there
    wanted = [int(view[-1]) for view in views]
    victim, other = pond.member(store), pond.member(store)
    with disk.frozen():
        victim.start(put_many, 100, 8)
        wait_until(lambda: is_waiting(victim.pid))
        assert not victim.answered(0.2), "it needs room, so it needs the disk"
        assert other.run(look, pickle.dumps(resident)) == wanted
        assert [int(ref.get()[-1]) for ref in resident] == wanted
        newcomer = pond.worker(program=True)
        newcomer.run(join, store.address)
        assert newcomer.run(look, pickle.dumps(resident)) == wanted
        elsewhere = pond.store("4MiB", spill_dir=pond.spill)
        assert elsewhere.put(1).get() == 1, "another store, in the same registry"
        os.kill(victim.pid, signal.SIGKILL)
        assert other.run(look, pickle.dumps(resident)) == wanted, "it cannot die yet; nobody waits for it"
    victim.kill()
    assert other.run(put_many, 200, 20) == 20, "what the dead one had taken is to be had again"
    assert [int(ref.get(copy=True)[-1]) for ref in kept.values()] == list(range(12))
    other.run(forget)
    del views, resident
    kept.clear()
    assert store.check() == []


def test_a_dead_store_on_a_frozen_disk(pond: Pond, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sweeps it goes on in the background, and nobody else sweeps it meanwhile."""
    monkeypatch.setattr("millpond.store.membership.SWEEPING_S", 0.2)
    base = disk.path / "spill"
    victim, other = pond.worker(program=True), pond.worker(program=True)
    address = victim.run(make_and_fill, base)
    spilled = base / f"millpond-{os.geteuid()}" / os.path.basename(address)
    with disk.frozen():
        victim.kill()
        assert pond.store("4MiB", spill_dir=pond.spill).put(1).get() == 1
        assert [thread.name for thread in threading.enumerate()].count("millpond-sweep") == 1
        assert pond.store("4MiB", spill_dir=pond.spill).put(2).get() == 2
        other.run(make_and_fill, pond.spill)
        wait_until(lambda: not is_waiting(other.pid))  # for its own disk, for a moment, it may
        assert os.path.exists(address)
        other.run(leave)
        assert os.path.exists(address) and spilled.exists(), "it is for whoever sweeps it"
    wait_until(lambda: not os.path.exists(address))
    assert not spilled.exists()


class Stalling(System):
    """Every write waits until `go` is set."""

    def __init__(self) -> None:
        self.go, self.waiting = threading.Event(), threading.Event()

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        self.waiting.set()
        assert self.go.wait(60)
        return super().pwritev(fd, buffers, offset)


@pytest.fixture
def stalled(pond: Pond) -> Iterator[millpond.Store]:
    """A store that is full and whose spiller waits for the disk, as does a put; they go on in the end."""
    store = pond.store("8MiB")
    kept = [store.put(full(number)) for number in range(8)]
    store._directories.direct(0)
    segments = store._writer._segments
    segments._system = system = Stalling()
    more: list[Any] = []
    putting = threading.Thread(target=lambda: more.append(store.put(full(8))))
    putting.start()
    assert system.waiting.wait(30)
    yield store
    system.go.set()
    putting.join()
    assert [int(ref.get(copy=True)[-1]) for ref in kept + more] == list(range(9))
    assert store.check() == []


def test_fork_while_the_disk_stalls(stalled: millpond.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child has refs and pins of its own, and a store that works, although threads of the parent wait."""
    for module in ("janitor", "spiller", "prefetch"):
        monkeypatch.setattr(f"millpond.store.{module}.FORK_PATIENCE_S", 0.1)
    small = stalled.put("here")
    rescue = threading.Timer(20, stalled._writer._segments._system.go.set)
    rescue.start()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(20)
            stalled._writer._segments._system.go.set()  # the child's own
            assert small.get() == "here" and stalled.put("child").get() == "child"
            refs = [stalled.put(full(number)) for number in range(10)]
            assert [int(ref.get(copy=True)[0]) for ref in refs] == list(range(10))
            assert stalled.check() == []
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert small.get() == "here" and stalled._writer._segments._system.waiting.is_set()
    assert not stalled._writer._segments._system.go.is_set(), "it stalled all the time"
    rescue.cancel()
    rescue.join()


def test_reads_and_small_puts_while_the_disk_stalls(pond: Pond, stalled: millpond.Store) -> None:
    other = pond.member(stalled)
    resident = stalled.put(np.arange(100))
    assert other.run(look, pickle.dumps([resident])) == [99]
    assert pond.worker(program=True).run(connection, stalled.address) == "joined"
    draft = stalled.create(10, "u1")
    with pytest.raises(millpond.GetTimeoutError):
        draft.ref.get(timeout=0.05)
    assert draft.seal().get().nbytes == 10
