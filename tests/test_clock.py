"""The clock on the wall is set forward and back while a store is used: nothing depends on it.

Only a process's own view of the clock is changed (kernel/clock.c, preloaded), never the machine's.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import millpond
from millpond.spill import owner
from millpond.spill.sweep import sweep_abandoned
from ponds import Pond, join
from workers import Worker, wait_until

DAY = 86_400
JUMPS = (400 * DAY, -800 * DAY, 400 * DAY)
"""Far forward, far back, and to where it was."""
SOURCE = Path(__file__).parent / "kernel" / "clock.c"


@pytest.fixture
def jumpy(pond: Pond, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """A program whose clock can be set."""
    library = tmp_path / "clock.so"
    flags = ["-std=gnu11", "-O1", "-fPIC", "-shared", "-Wall", "-Werror"]
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    subprocess.run([*compiler, *flags, "-o", library, SOURCE, "-ldl"], check=True)
    with monkeypatch.context() as patch:
        patch.setenv("LD_PRELOAD", str(library))
        worker = pond.worker(program=True)
    yield worker
    assert worker.end() == 0


def jump(own: Any, seconds: int) -> float:
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    library.clock_jump.argtypes = [ctypes.c_int64]
    library.clock_jump(seconds)
    return time.time()


def live(own: Any, spill: str) -> None:
    """A store of its own, with a hand-off on its way to others."""
    own.store = millpond.Store("8MiB", spill_dir=spill, handoff_timeout=30.0, name="jumpy")
    own.refs = [own.store.put(np.full(125_000, number)) for number in range(20)]
    own.sent = own.store.put("sent").export(deliveries=len(JUMPS))
    own.store._janitor.start()


def go_on(own: Any) -> None:
    """All that keeps time."""
    store = own.store
    assert [int(ref.get(copy=True)[0]) for ref in own.refs] == list(range(len(own.refs)))
    own.refs += [store.put(np.full(125_000, len(own.refs) + number)) for number in range(4)]
    draft = store.create(100, "u1")
    assert store.wait([draft.ref], timeout=0.05) == ([], [draft.ref])
    draft.abort()
    store._tidy()
    store._relieve()
    store.spill(own.refs)
    assert store.check() == []
    assert all(info.age_s < 1000 for info in store.objects())


def load(own: Any, sent: bytes) -> str:
    value: str = millpond.load_ref(sent).get()
    return value


def sent(own: Any) -> bytes:
    found: bytes = own.sent
    return found


def sweep(own: Any, base: Path) -> list[str]:
    """As somebody who knows no registry in which the stores there are."""
    return [str(path) for path, _ in sweep_abandoned(base, (), dry_run=False)]


def wait_over(own: Any, seconds: int) -> float:
    """How long a get with a timeout of 0.3 s waits, when the clock jumps meanwhile."""
    draft = own.store.create(10, "u1")
    setting = threading.Timer(0.05, jump, (own, seconds))
    began = time.monotonic()
    setting.start()
    with pytest.raises(millpond.GetTimeoutError):
        draft.ref.get(timeout=0.3)
    waited = time.monotonic() - began
    setting.join()
    draft.abort()
    return waited


def test_a_clock_that_jumps(pond: Pond, jumpy: Worker) -> None:
    """Hand-offs, waits, the helper thread, eviction and other members take no notice."""
    jumpy.run(live, str(pond.spill))
    other = pond.worker(program=True)
    for seconds in JUMPS:
        assert 0.3 <= jumpy.run(wait_over, seconds) < 20
        jumpy.run(go_on)
        other.run(join, "jumpy")
        assert other.run(load, jumpy.run(sent)) == "sent"
    assert jumpy.run(jump, DAY) > time.time() + DAY / 2, "it can be set"


def test_what_lapses_does_so_in_its_own_time(pond: Pond, jumpy: Worker) -> None:
    """A hand-off that nobody takes, neither sooner nor later for the clock."""
    store = pond.store("8MiB", handoff_timeout=0.5)
    jumpy.run(join, store.address)
    for seconds in JUMPS:
        ref = store.put("never received")
        ref.export()
        del ref
        jumpy.run(jump, seconds)
        assert len(store) == 1, "not sooner"
        wait_until(lambda: store._tidy() or len(store) == 0)


def test_nothing_that_lives_is_taken_for_old(pond: Pond, jumpy: Worker) -> None:
    """The one thing whose age is asked for is a spill directory that does not say whose it is."""
    store = pond.store("4MiB")
    refs = [store.put(np.full(125_000, number)) for number in range(12)]
    owner.file_of(Path(store._directories.paths[0])).write_text("{")
    for seconds in JUMPS:
        jumpy.run(jump, seconds)
        assert jumpy.run(sweep, pond.spill) == []
    assert [int(ref.get(copy=True)[0]) for ref in refs] == list(range(12))
