"""Every system call of every operation fails, all the way from Python down to the system.

A victim, into which a library that fails calls is preloaded, does one operation again and again while the Nth
call fails, for every N until it makes fewer, with each error, once and from then on. Each time: the operation
succeeds or raises a typed error; the check finds no fault; every ref that it made is readable; the operation
works once the calls do; nothing is left, no descriptor, mapping, thread, object, file or byte on disk.

With MILLPOND_NIGHTLY each N meets each error, both ways; without, some N meet one of them.
"""

from __future__ import annotations

import gc
import os
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import millpond
from faults import ERRORS, SHORT, Fault, Faults, build
from millpond.store import registry
from ponds import Pond, residue
from workers import Worker, wait_until

NIGHTLY = bool(os.environ.get("MILLPOND_NIGHTLY"))
MOST_CALLS = 3000
STEP = 11
"""Without MILLPOND_NIGHTLY every so many-th call fails."""


# --- operations: `own.store` is the victim's, `own.kept` an object of it that must stay as it is ---


def put(own: Any, *values: Any) -> None:
    for value in values:
        own.refs.append((own.store.put(value), value))


def put_all_sizes(own: Any) -> None:
    """One of each way to disk."""
    put(own, *(np.full(count, 7) for count in (10, 1000, 30_000, 200_000)))


def spill_all(own: Any) -> None:
    own.store.spill([ref for ref, _ in own.refs])


def create(own: Any) -> None:
    store = millpond.connect("second", create=True, memory_limit="8MiB", spill_dir=own.spill)
    assert store.put(3).get() == 3
    store.close()


def attach(own: Any) -> None:
    millpond.connect(own.other).close()


def put_small(own: Any) -> None:
    put(own, 1, b"x" * 3000, [1, 2])


def put_large(own: Any) -> None:
    own.store._shrink(1 << 40)
    put(own, np.full(200_000, 7))


def build_in_place(own: Any) -> None:
    own.store._shrink(1 << 40)
    with own.store.create((300, 300), "float64") as draft:
        draft.array[:] = 7
        own.refs.append((draft.seal(), np.full((300, 300), 7)))


def get(own: Any) -> None:
    assert own.kept.get()[-1] == 7


def delete(own: Any) -> None:
    own.store.delete(own.store.put(np.full(200_000, 7), name="gone"))


def contain(own: Any) -> None:
    put(own, [own.store.put(1), own.store.put(np.full(40_000, 7))])
    assert own.refs[0][0].get()[0].get() == 1


def spill(own: Any) -> None:
    put_all_sizes(own)
    spill_all(own)


def spill_buffered(own: Any) -> None:
    """Through the page cache, as on filesystems without direct I/O."""
    place = own.store._directories._places[0]
    place.direct, direct = False, place.direct
    own.store._writer._segments.roll()
    try:
        spill(own)
    finally:
        own.store._writer._segments.roll()
        place.direct = direct


def spill_compressed(own: Any) -> None:
    own.store.configure(compression="lz4")
    try:
        spill(own)
        own.store.get([ref for ref, _ in own.refs])
    finally:
        own.store.configure(compression="none")


def restore(own: Any) -> None:
    spill(own)
    for ref, value in own.refs:
        assert (ref.get() == value).all()


def restore_many(own: Any) -> None:
    put_all_sizes(own)
    put_all_sizes(own)
    spill_all(own)
    for value in own.store.get([ref for ref, _ in own.refs]):
        assert (value == 7).all()


def restore_ahead(own: Any) -> None:
    spill(own)
    own.store.prefetch([ref for ref, _ in own.refs])
    wait_until(lambda: own.store._prefetch._thread is None)


def read_past_pinned(own: Any) -> None:
    """What is on disk, while all memory is in use: a private copy, and a map."""
    put(own, np.full(30_000, 7), np.full(200_000, 7), np.full(1_100_000, 7))
    spill_all(own)
    views = []
    while len(views) < 40 and own.store._totals()["free_bytes"] > 0:
        ref = own.store.put(np.full(20_000, 7))
        views.append(ref.get())
    for ref, value in own.refs:
        assert (ref.get() == value).all()


def put_under_pressure(own: Any) -> None:
    put(own, *(np.full(200_000, 7) for _ in range(8)))


def put_on_disk(own: Any) -> None:
    """Larger than memory, and what finds it pinned."""
    put(own, np.full(1_500_000, 7))


def free_disk_space(own: Any) -> None:
    put(own, *(np.full(2500, number) for number in range(60)))
    spill_all(own)
    del own.refs[:54]
    own.store._writer._segments.roll()
    own.store._reclaimer.make_room(1 << 40)
    own.store._reclaimer._barren_until = 0.0


def configure(own: Any) -> None:
    own.store.configure(memory_limit="4MiB")
    own.store.configure(memory_limit="8MiB")


def hand_over(own: Any) -> None:
    own.refs.append((pickle.loads(pickle.dumps(own.kept)), np.full(5000, 7)))
    own.refs.append((millpond.load_ref(own.kept.export()), np.full(5000, 7)))


def name(own: Any) -> None:
    own.store.put(1, name="a")
    own.refs.append((own.store.lookup("a"), 1))
    own.store.delete("a")


def inspect(own: Any) -> None:
    assert own.store.stats().members == 1
    assert own.store.refs(own.kept).members and len(list(own.store.objects())) == len(own.store)
    assert own.store.check() == []


def fork(own: Any) -> None:
    view = own.kept.get()
    pid = os.fork()
    if pid == 0:
        own.faults.spare()
        status = 1
        try:
            assert view[-1] == 7
            own.store.put(1)
            status = 0
        except millpond.StoreClosedError:
            status = 0  # it could not become a member, and says so
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


def sweep(own: Any) -> None:
    root = registry.root_of()
    registry.sweep(root, bases=[Path(own.spill)])


def background(own: Any) -> None:
    """What the janitor does."""
    own.store._tidy()
    own.store._relieve()


OPERATIONS = [
    create, attach, put_small, put_large, build_in_place, get, delete, contain, spill,
    spill_buffered, spill_compressed, restore, restore_many, restore_ahead, read_past_pinned,
    put_under_pressure, put_on_disk, free_disk_space, configure, hand_over, name, inspect, fork, sweep,
    background,
]  # fmt: skip


# --- the victim ---


def prepare(own: Any, other: str, spill_dir: str) -> None:
    own.faults = Faults()
    own.other, own.spill = other, spill_dir
    own.store = millpond.Store("8MiB", spill_dir=spill_dir)
    own.kept = own.store.put(np.full(5000, 7))
    own.view = own.kept.get()  # so that it stays in memory
    own.store._janitor.stop()
    own.refs = []


def clear(own: Any) -> None:
    own.refs = own.kept = own.view = None
    own.store.close()


def loop(own: Any, act: Callable[[Any], None], faults: list[Fault]) -> tuple[int, list[str]]:
    """How many of the faults came to pass, until one did not; and what went wrong."""
    for _ in range(3):  # whatever is made once is there
        act(own)
        own.refs.clear()
    before = _has(own)
    injected = 0
    wrong: list[str] = []
    for fault in faults:
        error, fired = _attempt(own, act, fault)
        injected += fired > 0
        if not _is_typed(error, fault):
            wrong.append(f"{fault}: {error!r}")
        error = None
        try:
            wrong += [f"{fault}: {text}" for text in own.store.check()]
            _read(own)
            act(own)
            _read(own)
            wait_until(lambda: not _grown(own, before), 5)
        except Exception as error:
            wrong.append(f"{fault}, afterwards: {error!r} {_grown(own, before)}")
            break
        if not fired:
            break
    return injected, wrong


def _attempt(own: Any, act: Callable[[Any], None], fault: Fault) -> tuple[BaseException | None, int]:
    """What it raised, and how many calls failed."""
    own.faults.arm(fault)
    try:
        act(own)
    except BaseException as error:
        return error.with_traceback(None), own.faults.disarm()
    return None, own.faults.disarm()


def _is_typed(error: BaseException | None, fault: Fault) -> bool:
    if error is None or isinstance(error, millpond.MillpondError | MemoryError):
        return True
    return isinstance(error, OSError) and error.errno == fault.error


def _read(own: Any) -> None:
    """What the operation has stored is as it was put, as far as it got."""
    while own.refs:
        ref, value = own.refs.pop()
        found = ref.get(copy=True)
        assert isinstance(value, list) or np.array_equal(found, value)
    assert own.kept.get(copy=True).sum() == 35_000


def _has(own: Any) -> dict[str, int]:
    own.store._tidy()
    stats = own.store.stats()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "mappings": Path("/proc/self/maps").read_text().count("memfd:millpond-arena"),
        "threads": threading.active_count(),
        "files": sum(path.suffix != ".seg" for path in Path(own.spill).rglob("*")),
        "stores": len(os.listdir(registry.root_of())),
        "objects": len(list(own.store.objects())),
        "in use": stats.committed_bytes - stats.warm_bytes,
        "private": stats.overflow_bytes,
        "on disk": stats.disk_bytes,
        "hand-offs": own.store._totals()["tokens"],
        "members": stats.members,
    }


def _grown(own: Any, before: dict[str, int]) -> dict[str, int]:
    found = {key: count for key, count in _has(own).items() if count > before[key]}
    if found:
        gc.collect()
    return found


# --- the test ---


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    directory = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILLPOND_DIR", str(directory / "registry"))
        patch.setenv("LD_PRELOAD", str(build(directory)))
        victim = Worker(program=True)
    yield victim
    victim.end()


def rounds() -> dict[str, list[Fault]]:
    """Each is to be gone through until the first fault that does not come to pass."""
    ways = [(error, for_ever) for error in ERRORS for for_ever in (False, True)]
    short = [(SHORT, False), (SHORT, True)]
    if NIGHTLY:
        rounds = [[Fault(*way, n) for n in range(1, MOST_CALLS)] for way in ways + short]
        return {str(faults[0]).partition(": ")[2]: faults for faults in rounds}
    calls = range(1, MOST_CALLS, STEP)
    return {
        "errors": [Fault(*way, n) for n, way in zip(calls, cycle(ways), strict=False)],
        "short": [Fault(*way, n) for n, way in zip(calls, cycle(short), strict=False)],
    }


ROUNDS = rounds()


@pytest.mark.parametrize("faults", ROUNDS.values(), ids=ROUNDS)
@pytest.mark.parametrize("act", OPERATIONS, ids=lambda act: act.__name__)
def test_every_call_fails(
    pond: Pond, victim: Worker, act: Callable[[Any], None], faults: list[Fault], tally: Counter[str]
) -> None:
    other = pond.store()
    victim.run(prepare, other.address, str(pond.spill))
    victim.start(loop, act, faults)
    injected, wrong = victim.result(timeout=180)
    tally["faults injected, from Python"] += injected
    assert wrong == []
    assert injected < len(faults), "it never made fewer calls"
    victim.run(clear)
    assert residue(other) == {}
