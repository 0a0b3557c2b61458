"""The spiller: room is made ahead of the puts, only under pressure; forks, errors and ends in the middle."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import millpond
from millpond import hot
from millpond.errors import SpillError, StoreFullError
from millpond.spill.directory import Directories
from millpond.spill.disk import System, aligned_buffer
from millpond.spill.segments import Segments
from millpond.store import room, spiller
from ponds import Pond, residue
from spill_fakes import Failing, FakeTable
from workers import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
MIB = 1 << 20
TIMEOUT_S = 60


def spillers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "millpond-spiller"]


def exchange_system(store: millpond.Store, system: System) -> None:
    """From now on the files of this process's writes are `system`'s."""
    assert store._writer is not None
    store._writer._segments._system = system


class Gate(System):
    """Writes wait until the gate is opened."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        self.reached.set()
        assert self.opened.wait(TIMEOUT_S)
        return super().pwritev(fd, buffers, offset)


# --- when it works ---


def test_room_is_made_ahead_and_the_thread_ends(pond: Pond) -> None:
    store = pond.store("32MiB")
    refs = [store.put(np.full(MIB // 8, i)) for i in range(64)]
    wait_until(lambda: store._room.spiller.freed > 0 and not spillers())
    totals = store._totals()
    room = totals["free_bytes"] + totals["memory_limit"] - totals["committed_bytes"]
    assert room >= totals["memory_limit"] // 8
    assert [int(ref.get()[-1]) for ref in refs] == list(range(64))


def test_it_comes_back_after_a_stop_and_after_an_end(pond: Pond) -> None:
    store = pond.store("8MiB")
    for again in range(4):
        before = store._room.spiller.freed
        refs = [store.put(np.full(MIB // 8, i)) for i in range(24)]
        wait_until(lambda before=before: store._room.spiller.freed > before)
        if again % 2:
            store._room.spiller.stop()
        wait_until(lambda: not spillers())
        del refs


def test_what_fits_is_never_written(pond: Pond) -> None:
    """A producer and a consumer, twenty times the limit in all, three quarters of it at a time."""
    store = pond.store("16MiB")
    alive: list[millpond.ObjectRef] = []
    for i in range(320):
        alive = [*alive[-11:], store.put(np.full(MIB // 8, i))]
        assert int(alive[0].get()[0]) == max(0, i - 11)
    assert store.stats().spilled_bytes_total == 0
    assert spillers() == []


def test_no_spiller_where_nothing_may_spill(pond: Pond) -> None:
    store = pond.store("4MiB", spill_limit=0)
    with pytest.raises(StoreFullError):
        _ = [store.put(np.zeros(MIB, np.uint8)) for _ in range(8)]
    assert spillers() == []


def test_a_put_waits_for_what_the_spiller_has_taken(pond: Pond) -> None:
    """All there is to evict is on its way to disk: the value does not go to disk past the memory."""
    store = pond.store("4MiB")
    refs = [store.put(np.full(3 * MIB, 1, np.uint8))]
    gate = Gate()
    exchange_system(store, gate)
    store._room.evict_ahead = lambda: store._room._evict_ranked(MIB, True)  # type: ignore[method-assign]
    store._room.spiller.wake()
    assert gate.reached.wait(TIMEOUT_S)
    del store._room.evict_ahead
    putter = threading.Thread(target=lambda: refs.append(store.put(np.full(3 * MIB, 2, np.uint8))))
    putter.start()
    putter.join(0.2)
    assert putter.is_alive() and len(refs) == 1
    gate.opened.set()
    putter.join(TIMEOUT_S)
    states = {info.id: info.state for info in store.objects()}
    assert [states[ref.id] for ref in refs] == ["spilled", "resident"]


def test_memory_that_somebody_freed_meanwhile_is_not_punched(pond: Pond) -> None:
    store = pond.store("4MiB")
    first, *_ = refs = [store.put(np.zeros(MIB - 8192, np.uint8)) for _ in range(3)]
    while store._grow(MIB // 2) == 0:
        pass
    committed = store.stats().committed_bytes
    assert not store._fits(2 * MIB)
    store.delete(first)
    assert store._fits(MIB - 8192) and store._fits(100)
    assert store._room.make(MIB - 8192)
    assert store.stats().committed_bytes == committed and len(refs) == 3


# --- segments of two turns ---


def test_a_segment_ends_when_both_turns_have_recorded(tmp_path: Path) -> None:
    """Otherwise it would be unlinked as one without records."""
    table = FakeTable()
    segments = Segments(table, Directories([tmp_path], table.uuid, floor=0))
    page = [aligned_buffer(4096)]
    first, _ = segments.append(page, 4096, 0)
    assert segments.append(page, 4096, 1) == (first, 4096)
    segments.roll()
    segments.recorded(0)
    assert table.open_segments == 1
    segments.recorded(1)
    assert table.open_segments == 0
    second, _ = segments.append(page, 4096, 0)
    segments.roll()
    assert second != first and table.open_segments == 1
    third, _ = segments.append(page, 4096, 0)  # what the turn appended before is recorded by now
    assert table.open_segments == 1 and third != second
    segments.roll()
    segments.recorded(0)
    assert table.open_segments == 0


# --- errors ---


def test_errors_reach_the_put_and_are_logged_once(pond: Pond, caplog: pytest.LogCaptureFixture) -> None:
    store = pond.store("8MiB")
    refs = [store.put(np.full(MIB // 8, i)) for i in range(16)]
    wait_until(lambda: not spillers())
    assert store._writer is not None
    good, bad = store._writer._segments._system, Failing(errno.EIO, 1, ["pwritev"], for_ever=True)
    exchange_system(store, bad)
    with caplog.at_level(logging.WARNING, "millpond"):
        for _ in range(20):
            with pytest.raises(StoreFullError, match="Input/output error"):
                _ = [store.put(np.full(MIB // 8, 99)) for _ in range(16)]
        wait_until(lambda: not spillers())
    assert len([one for one in caplog.records if "spilling ahead" in one.message]) == 1
    exchange_system(store, good)
    refs += [store.put(np.full(MIB // 8, i)) for i in range(16, 48)]
    assert [int(ref.get()[-1]) for ref in refs] == list(range(48))


# --- Store.spill, which does the same in both turns ---


def test_a_batch_is_prepared_while_another_is_written(pond: Pond, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    writers: set[str] = set()

    def make(core: hot.Core, rows: Any, limit: int) -> hot.Batch:
        made.append(len(rows))
        return hot.Batch(core, rows, limit)

    class Waits(System):
        def pwritev(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
            writers.add(threading.current_thread().name)
            wait_until(lambda: len(made) >= 2)
            return super().pwritev(fd, buffers, offset)

    monkeypatch.setattr(room, "BATCH_BYTES", 3 * MIB)
    monkeypatch.setattr(room, "Batch", make)
    store = pond.store("64MiB")
    refs = [store.put(np.full(MIB // 8, i)) for i in range(12)]
    exchange_system(store, Waits())
    assert store.spill() >= 12 * MIB and {info.state for info in store.objects()} == {"spilled"}
    assert made == [3] * 4 and "millpond-disk" in writers and len(writers) == 2
    assert [thread for thread in threading.enumerate() if thread.name == "millpond-disk"] == []
    assert [int(ref.get()[-1]) for ref in refs] == list(range(12)) and store.check() == []


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_spill_that_the_disk_refuses(pond: Pond, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """Both threads end; what was written before counts, and the rest is where it was."""
    monkeypatch.setattr(room, "BATCH_BYTES", MIB)
    store = pond.store("64MiB")
    refs = [store.put(np.full(MIB // 8, i)) for i in range(32)]
    assert store._writer is not None
    good, bad = store._writer._segments._system, Failing(errno.EIO, nth, ["pwritev"], for_ever=True)
    exchange_system(store, bad)
    if nth == 1:
        with pytest.raises(SpillError) as refused:
            store.spill()
        assert refused.value.errno == errno.EIO
    else:
        assert store.spill() >= (nth - 1) * MIB
    assert sum(info.state == "spilled" for info in store.objects()) == nth - 1
    assert bad.failed <= 6, "no storm"
    exchange_system(store, good)
    store.spill()
    assert {info.state for info in store.objects()} == {"spilled"}
    assert [int(ref.get()[-1]) for ref in refs] == list(range(32)) and store.check() == []


def test_batches_have_all_rows_in_order() -> None:
    for sizes in ([], [1], [8], [9], [3, 3, 3, 3], [20, 1, 1, 30], [7, 1, 8, 1, 15, 16]):
        rows = np.zeros(len(sizes), hot.CANDIDATE)
        rows["size"], rows["entry"] = sizes, range(len(sizes))
        found = room._batches(rows, 8)
        assert [one for part in found for one in part["entry"]] == list(range(len(sizes)))
        assert all(len(part) == 1 or part["size"][:-1].sum() < 8 + 8 for part in found)
        assert all(len(part) for part in found)


# --- forks and ends ---


def test_a_fork_stops_it_and_both_go_on(pond: Pond) -> None:
    store = pond.store("8MiB")
    refs = [store.put(np.full(MIB // 8, i)) for i in range(8)]

    def press() -> tuple[int, list[int]]:
        before = len(spillers())
        mine = [store.put(np.full(MIB // 8, 100 + i)) for i in range(24)]
        return before, [int(ref.get()[-1]) for ref in [*refs, *mine]]

    wanted = [*range(8), *range(100, 124)]
    for _ in range(5):
        _ = [store.put(np.full(MIB // 8, 50 + i)) for i in range(16)]
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                status = 0 if press() == (0, wanted) else 2
            finally:
                os._exit(status)
        assert press()[1] == wanted
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert store.check() == []


def test_close_in_the_middle(pond: Pond) -> None:
    for _ in range(5):
        store = pond.store("8MiB")
        refs = [store.put(np.full(MIB // 8, i)) for i in range(12)]
        store.close()
        assert spillers() == []
        del refs


def test_what_is_left_is_nothing(pond: Pond) -> None:
    store = pond.store("8MiB")
    refs = [store.put(np.full(MIB // 8, i)) for i in range(40)]
    del refs
    wait_until(lambda: not spillers())
    store._writer._segments.roll()  # type: ignore[union-attr]
    assert residue(store) == {}


ENDS = """
import numpy as np, millpond, threading
store = millpond.Store("16MiB", spill_dir={directory!r})
refs = [store.put(np.full(1 << 17, i)) for i in range({count})]
assert any(thread.name == "millpond-spiller" for thread in threading.enumerate())
"""


@pytest.mark.parametrize("count", [17, 31, 50])
def test_the_program_ends_in_the_middle(tmp_path: Path, count: int) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MILLPOND_DIR": str(tmp_path / "r")}
    code = ENDS.format(directory=str(tmp_path / "spill"), count=count)
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=5)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.rglob("*.seg")) == []


def test_it_rests_after_an_error() -> None:
    assert spiller.RETRY_S > spiller.LINGER_S, "a thread that failed ends, and none is started meanwhile"
