"""Member slots: all 254 taken, forks beyond them, zombies, and members that were given up for dead."""

from __future__ import annotations

import gc
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe
from typing import Any

import numpy as np
import pytest

import millpond
from ponds import Pond
from workers import wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
SLOTS = 254


class Family:
    """Forked children that wait until they are told to end, or do what they are asked for."""

    def __init__(self) -> None:
        self.gate_read, self.gate_write = os.pipe()
        self.pids: list[int] = []
        self.pipes: list[Connection] = []

    def waiting(self) -> None:
        """A child that only waits."""
        pid = os.fork()
        if pid == 0:
            os.close(self.gate_write)
            os.read(self.gate_read, 1)
            os._exit(0)
        self.pids.append(pid)

    def child(self, function: Callable[[Connection], Any]) -> Connection:
        """A child that calls `function`; what that returns, or the error, comes through the pipe."""
        ours, theirs = Pipe()
        pid = os.fork()
        if pid == 0:
            try:
                ours.close()
                os.close(self.gate_write)
                try:
                    theirs.send(function(theirs))
                except BaseException as error:
                    theirs.send(repr(error))
            finally:
                os._exit(0)
        theirs.close()
        self.pids.append(pid)
        self.pipes.append(ours)
        return ours

    def kill(self, pid: int) -> None:
        self.pids.remove(pid)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def end(self) -> None:
        os.close(self.gate_write)
        os.close(self.gate_read)
        for pipe in self.pipes:
            pipe.close()
        for pid in self.pids:
            os.waitpid(pid, 0)


@pytest.fixture
def family(pond: Pond) -> Iterator[Family]:
    family = Family()
    yield family
    family.end()


def ask(pipe: Connection, question: Any = None) -> Any:
    """The child's next answer."""
    if question is not None:
        pipe.send(question)
    assert pipe.poll(30), "the child has not answered for 30 s"
    return pipe.recv()


def members(store: millpond.Store) -> int:
    store._reap()
    return store.stats().members


def every_call(store: millpond.Store, ref: millpond.ObjectRef) -> list[Callable[[], Any]]:
    return [
        lambda: store.put(1),
        lambda: store.put(np.ones(3)),
        lambda: store.get(ref),
        lambda: store.get([ref], copy=True),
        lambda: ref.get(),
        lambda: ref.size,
        lambda: ref.export(),
        lambda: pickle.dumps(ref),
        lambda: store.create(3, "u1"),
        lambda: store.create_buffer(3),
        lambda: store.wait([ref]),
        lambda: store.lookup("named"),
        lambda: store.delete(ref),
        lambda: store.delete("named"),
        lambda: ref in store,
        lambda: len(store),
        lambda: store.refs(ref),
        lambda: store.spill(),
        lambda: store.stats(),
        lambda: list(store.objects()),
        lambda: store.check(),
    ]


def answers(calls: list[Callable[[], Any]]) -> list[str]:
    """What each call gives: the name of the error, or the value."""
    found = []
    for call in calls:
        try:
            found.append(repr(call()))
        except Exception as error:
            found.append(type(error).__name__)
    return found


def test_the_last_slot_and_beyond(pond: Pond, family: Family) -> None:
    store = pond.store("4MiB")
    held = [store.put(np.arange(40_000)), store.put([1], name="named")]
    held.append(held[0].get())
    data = held[0].export(timeout=60)
    for _ in range(SLOTS - 2):
        family.waiting()

    def last(pipe: Connection) -> Any:
        pipe.send(sorted(slot for slot, _, _ in store._members()))
        pipe.recv()
        return store.put("by the last").export(), int(held[0].get()[-1])

    last_one = family.child(last)
    assert ask(last_one) == list(range(SLOTS))
    with pytest.raises(millpond.AttachError, match="254 members already"):
        pond.worker(program=True).run(lambda own, address: millpond.connect(address) and None, store.address)

    def orphan(pipe: Connection) -> Any:
        ref, _, view = held
        pipe.send((answers(every_call(store, ref)), store.closed, repr(store), int(view.sum())))
        pipe.recv()
        store.close()
        held.clear()
        del ref
        gc.collect()
        if os.fork():
            os._exit(0)
        pipe.recv()
        return int(view.sum()), store.closed

    orphans = [family.child(orphan) for _ in range(2)]
    for pipe in orphans:
        found, closed, text, total = ask(pipe)
        assert found == ["StoreClosedError"] * len(found)
        assert closed and "closed" in text and total == 799_980_000
    assert store.stats().members == SLOTS + 1, "orphans share a slot"
    exported, number = ask(last_one, "go on")
    assert (millpond.load_ref(exported).get(), number) == ("by the last", 39_999)

    # Everybody else drops it and memory is short: the orphans' children, whose parents are gone, read it.
    for pid in family.pids[: SLOTS - 2]:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: members(store) == 2)
    millpond.load_ref(data)
    held.clear()
    filling = [store.put(np.zeros(40_000)) for _ in range(20)]
    assert store.check() == []
    for pipe in orphans:
        pipe.send("let your child go on")
    assert ask(orphans[0], "and the child") == (799_980_000, True)
    assert len(store._survey()) == len(filling) + 2, "the named one, and what an orphan has a view of"
    assert ask(orphans[1], "and the child") == (799_980_000, True)
    wait_until(lambda: members(store) == 1 and len(store._survey()) == len(filling) + 1)
    assert store.check() == []


def test_a_slot_that_becomes_free_is_taken_again(pond: Pond, family: Family) -> None:
    store = pond.store("4MiB", spill_limit=0)
    ref = store.put("still here")
    for _ in range(SLOTS - 1):
        family.waiting()
    assert store.stats().members == SLOTS
    calls = [lambda: ref.get(), lambda: store.put(2).get()]
    assert ask(family.child(lambda pipe: answers(calls))) == ["StoreClosedError"] * 2
    family.kill(family.pids[100])
    wait_until(lambda: members(store) == SLOTS - 1)
    assert ask(family.child(lambda pipe: answers(calls))) == ["'still here'", "2"]
    assert store.check() == []


def test_a_zombie_is_dead(pond: Pond, store: millpond.Store) -> None:
    """Its parent has not asked for its exit status yet; what it had is taken apart all the same."""
    ref = store.put(np.arange(1000))
    view = ref.get()
    pid = os.fork()
    if pid == 0:
        mine = [store.put(b"x" * 5000), store.create(100, "u1"), view]
        os._exit(len(mine))
    wait_until(lambda: members(store) == 1)
    assert os.path.exists(f"/proc/{pid}"), "it is a zombie still"
    assert len(store._survey()) == 1
    assert [len(store.refs(ref).members), len(store.refs(ref).pins)] == [1, 1]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3


def test_who_was_given_up_for_dead_is_told_and_does_no_harm(pond: Pond, family: Family) -> None:
    """A process that closes descriptors it does not know, as daemons do, looks dead to the others. Its slot
    is another's by the time that it goes on."""
    store = pond.store("4MiB")
    held = [store.put(np.arange(40_000)), store.put("small", name="named")]
    data = held[0].export(deliveries=2)

    def close_all(pipe: Connection) -> Any:
        views = [held[0].get(), held[0].get()[5:]]
        slot = store._totals()["slot"]
        own = {0, 1, 2, pipe.fileno()}
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd not in own:
                try:
                    os.close(fd)
                except OSError:
                    continue
        pipe.send(slot)
        pipe.recv()
        found = answers(every_call(store, held[0]))
        held.clear()
        views.clear()
        gc.collect()
        return found

    def heir(pipe: Connection) -> Any:
        views = [held[0].get()]
        pipe.send(store._totals()["slot"])
        pipe.recv()
        return int(held[0].get()[-1]), int(views[0].sum()), store.check()

    lost = family.child(close_all)
    slot = ask(lost)
    wait_until(lambda: members(store) == 1)
    other = family.child(heir)
    assert ask(other) == slot
    holders, pins = store._member_bits(held[0])
    found = ask(lost, "go on")
    assert found == ["StoreClosedError"] * len(found)
    assert store._member_bits(held[0]) == (holders, pins)
    millpond.load_ref(data)
    millpond.load_ref(data)
    held.clear()
    assert len(store) == 2, "the heir holds one, the name the other"
    filling = [store.put(np.zeros(40_000)) for _ in range(20)]
    assert ask(other, "go on") == (39_999, 799_980_000, [])
    assert len(filling) == 20
