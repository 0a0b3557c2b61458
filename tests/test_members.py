"""Processes that come, fork, hand refs to each other and die: what others hold is untouched."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import pickle
import random
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

import millpond
import workers
from millpond.hot import Code
from ponds import Pond
from pools import helpers_of_multiprocessing
from workers import in_threads, inherited, total, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
MIB = 1 << 20


# --- becoming a member ---


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@helpers_of_multiprocessing()
def test_processes_of_multiprocessing(store: millpond.Store, method: str) -> None:
    context = multiprocessing.get_context(method)
    ref = store.put(np.arange(1000))
    answers = context.SimpleQueue()
    processes = [context.Process(target=total, args=(ref, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
        process.close()
    answers.close()
    assert len({pid for pid, _, _ in found}) == 2
    assert [number for _, number, _ in found] == [499_500] * 2
    assert [int(new.get()[-1]) for _, _, new in found] == [1000] * 2, "an object outlives its creator"


def test_programs_connect_by_name_and_by_address(pond: Pond) -> None:
    store = pond.store(name="shared")
    ref = store.put(np.arange(1000))
    for key in ("shared", store.address):
        program = pond.worker(program=True)

        def connect(own: Any, key: str) -> tuple[str, str | None, int]:
            own.store = millpond.connect(key)
            return own.store.address, own.store.name, own.store.memory_limit

        assert program.run(connect, key) == (store.address, "shared", store.memory_limit)
        assert program.run(lambda own, ref: int(ref.get()[-1]), ref) == 999
    assert store.stats().members == 3


def test_a_pickled_ref_attaches_by_itself(pond: Pond, store: millpond.Store) -> None:
    ref = store.put(np.arange(1000))
    data = pickle.dumps(ref)
    assert len(data) < 200
    program = pond.worker(program=True)
    assert program.run(lambda own, data: int(pickle.loads(data).get()[-1]), data) == 999
    assert len(store) == 1


def test_values_are_not_copied_on_the_way(pond: Pond) -> None:
    store = pond.store("256MiB")
    ref = store.put(np.ones(96 * MIB, "u1"))
    member = pond.member(store)

    def private_growth(own: Any, ref: millpond.ObjectRef) -> tuple[int, int]:
        def private() -> int:
            with open("/proc/self/smaps_rollup") as rollup:
                return sum(int(line.split()[1]) for line in rollup if line.startswith("Private_"))

        before = private()
        return int(ref.get().sum()), (private() - before) * 1024

    found, growth = member.run(private_growth, ref)
    assert found == 96 * MIB and growth < 8 * MIB


def test_twenty_members(pond: Pond, store: millpond.Store) -> None:
    members = [pond.worker() for _ in range(20)]

    def put(own: Any, me: int, address: str) -> millpond.ObjectRef:
        own.store = millpond.connect(address)
        return own.store.put(np.full(1000, me))

    for me, member in enumerate(members):
        member.start(put, me, store.address)
    refs = [member.result() for member in members]
    assert store.stats().members == 21
    assert [int(ref.get()[0]) for ref in refs] == list(range(20))
    for me, member in enumerate(members):
        member.start(lambda own, ref: int(ref.get()[-1]), refs[(me + 7) % 20])
    assert [member.result() for member in members] == [(me + 7) % 20 for me in range(20)]


# --- hand-offs ---


def test_a_pickle_keeps_the_object_until_it_is_loaded(store: millpond.Store) -> None:
    data = pickle.dumps(store.put([1, 2]))
    assert len(store) == 1
    first = pickle.loads(data)
    second = pickle.loads(data)
    assert first == second and first.get() == [1, 2]
    del first, second
    assert len(store) == 0
    with pytest.raises(millpond.ObjectNotFoundError, match="pickled ref"):
        pickle.loads(data)


def test_the_sender_may_drop_and_die(pond: Pond, store: millpond.Store) -> None:
    sender, receiver = pond.member(store), pond.member(store)

    def send(own: Any) -> bytes:
        return pickle.dumps(own.store.put(np.arange(5000)))

    data = sender.run(send)
    sender.kill()
    assert receiver.run(lambda own, data: int(pickle.loads(data).get()[-1]), data) == 4999


def test_a_hand_off_lapses(pond: Pond) -> None:
    store = pond.store(handoff_timeout=0.1)
    kept = store.put(1)
    data, late = pickle.dumps(store.put(2)), pickle.dumps(kept)
    wait_until(lambda: len(store) == 1)
    with pytest.raises(millpond.ObjectNotFoundError, match=r"hand-off of object .* lapsed [0-9.]+ s ago"):
        pickle.loads(data)
    wait_until(lambda: store._totals()["tokens"] == 0)
    assert pickle.loads(late) == kept, "what somebody holds is found however late"


def test_a_hand_off_without_a_timeout(pond: Pond) -> None:
    store = pond.store(handoff_timeout=None)
    data = pickle.dumps(store.put(3))
    store._tidy()
    assert pickle.loads(data).get() == 3


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-1], lambda d: d[:40] + bytes([d[40] ^ 1]) + d[41:], lambda d: b""]
)
def test_a_damaged_hand_off(store: millpond.Store, damage: Any) -> None:
    ref = store.put(1)
    load, (data,) = ref.__reduce__()
    with pytest.raises(millpond.ObjectNotFoundError):
        load(damage(data))
    assert load(data) == ref


def test_a_ref_of_a_store_that_is_gone(pond: Pond) -> None:
    with pond.store() as store:
        data = pickle.dumps(store.put(1))
    with pytest.raises(millpond.AttachError, match="no live store"):
        pickle.loads(data)


# --- fork ---


def test_a_fork_has_refs_and_views_of_its_own(pond: Pond, store: millpond.Store) -> None:
    inherited.append(store.put(np.arange(100_000)))
    inherited.append(inherited[0].get())
    child = pond.worker()
    inherited.clear()
    assert store.stats().members == 2
    assert len(store) == 1, "the child holds it"
    assert child.run(lambda own: int(workers.inherited[0].get()[-1])) == 99_999
    child.run(lambda own: workers.inherited.pop(0) and None)
    refs = [store.put(np.zeros(100_000)) for _ in range(5)]
    assert child.run(lambda own: int(workers.inherited[0].sum())) == 4_999_950_000, (
        "its view outlives all refs"
    )
    child.run(lambda own: workers.inherited.clear())
    assert len(store) == len(refs)


def test_what_a_fork_drops_stays_with_the_parent(pond: Pond, store: millpond.Store) -> None:
    inherited[:] = [store.put(np.arange(1000)) for _ in range(10)]
    inherited.append(inherited[0].get())
    children = [pond.worker() for _ in range(3)]
    for child in children:
        child.run(lambda own: workers.inherited.clear())
        assert child.end() == 0
    assert [int(ref.get()[-1]) for ref in inherited[:10]] == [999] * 10
    assert inherited[10][-1] == 999


def test_a_fork_of_a_fork(pond: Pond, store: millpond.Store) -> None:
    inherited.append(store.put(np.arange(1000)))
    child = pond.worker()

    def fork(own: Any) -> tuple[int, int]:
        grandchild = workers.Worker()
        try:
            ref = grandchild.run(lambda own: workers.inherited[0]._store.put(workers.inherited[0].get() * 2))
            return int(ref.get()[-1]), grandchild.end()
        finally:
            grandchild.end()

    assert child.run(fork) == (1998, 0)
    wait_until(lambda: store._reap() or store.stats().members == 2)
    assert inherited[0].get()[-1] == 999


def test_many_forks(pond: Pond, store: millpond.Store) -> None:
    refs = [store.put(np.full(1000, number)) for number in range(50)]
    for _ in range(40):
        pid = os.fork()
        if pid == 0:
            good = (
                all(int(ref.get()[0]) == number for number, ref in enumerate(refs))
                and store.put(1).get() == 1
            )
            os._exit(0 if good else 1)
        assert os.waitpid(pid, 0)[1] == 0
    assert len(store) == 50
    wait_until(lambda: store._reap() or store.stats().members == 1)
    assert store.check() == []


def test_fork_while_threads_work(pond: Pond, store: millpond.Store) -> None:
    ref = store.put(np.arange(1000))
    stop = threading.Event()

    def work(seed: int) -> None:
        while not stop.is_set():
            mine = [store.put(np.full(100 + seed, step)) for step in range(50)]
            assert all((store.get(one) == step).all() for step, one in enumerate(mine))
            data = pickle.dumps(mine[0])
            mine.clear()
            assert pickle.loads(data).get()[0] == 0

    with in_threads(work, 3, stop):
        for _ in range(25):
            pid = os.fork()
            if pid == 0:
                with suppress(BaseException):
                    good = ref.get()[-1] == 999 and store.put([5]).get() == [5] and store.check() == []
                    os._exit(0 if good else 1)
                os._exit(2)
            assert os.waitpid(pid, 0)[1] == 0
    assert store.check() == []


# --- death ---


def hold_much(own: Any, address: str, ref: millpond.ObjectRef) -> None:
    """Refs, views, an open draft with its array, an undelivered pickle, spilled objects."""
    own.store = millpond.connect(address)
    own.refs = [own.store.put(np.ones(MIB, "u1")) for _ in range(10)]
    own.views = [one.get() for one in own.refs[5:]]
    own.theirs = [ref, ref.get()]
    own.draft = own.store.create(4 * MIB, "u1")
    own.array = own.draft.array
    own.array[:] = 1
    own.store.spill(own.refs[:3])


def test_what_a_killed_process_held_comes_back(pond: Pond, store: millpond.Store) -> None:
    ref = store.put(np.arange(100_000))
    view = ref.get()
    before = store.stats()
    for program in (False, True):
        victim = pond.worker(program)
        victim.run(hold_much, store.address, ref)
        during = store.stats()
        assert during.memory_bytes >= before.memory_bytes + 7 * MIB
        assert during.draft_objects == 1 and during.disk_bytes > 3 * MIB
        victim.kill()
        wait_until(lambda: store._tidy() or store.stats().members == 1, 5)
        store._tidy()
        after = store.stats()
        assert (after.memory_bytes, after.objects, after.disk_bytes) == (before.memory_bytes, 1, 0)
        assert store.check() == []
    assert (view == np.arange(100_000)).all() and ref.get()[-1] == 99_999


def test_the_dead_are_noticed_while_nobody_calls(pond: Pond, store: millpond.Store) -> None:
    ref = store.put(1)
    victim = pond.worker(program=True)
    victim.run(hold_much, store.address, store.put(np.ones(3)))
    victim.kill()
    wait_until(lambda: len(store._survey()) == 1)
    assert ref.get() == 1


def test_the_creator_dies_and_the_holder_reads_on(pond: Pond, store: millpond.Store) -> None:
    creator = pond.member(store)
    ref = creator.run(lambda own: own.store.put(np.arange(100_000)))
    view = ref.get()
    creator.kill()
    wait_until(lambda: store._reap() or store.stats().members == 1)
    assert (ref.get() == np.arange(100_000)).all()
    del ref
    others = [store.put(np.zeros(100_000)) for _ in range(20)]
    assert (view == np.arange(100_000)).all() and len(others) == len(store)


def test_a_view_outlives_ref_store_and_creator(pond: Pond) -> None:
    creator = pond.worker(program=True)
    spill = str(pond.spill)

    def create(own: Any) -> millpond.ObjectRef:
        own.store = millpond.Store("64MiB", spill_dir=spill)
        return own.store.put(np.arange(300_000))

    ref = creator.run(create)
    store = ref._store
    view = ref.get()
    del ref
    creator.kill()
    store.close()
    assert (view == np.arange(300_000)).all()
    address = store.address
    del view, store
    with pytest.raises(millpond.AttachError, match="no live store"):
        millpond.connect(address)


def test_a_view_keeps_its_pin_when_the_process_joins_again(pond: Pond) -> None:
    store = pond.store("2MiB")
    other = pond.member(store)
    view = store.put(np.arange(100_000)).get()
    store.close()
    with millpond.connect(store.address) as again:
        assert again is not store and again.put(1).get() == 1

    def fill(own: Any) -> tuple[int, list[str]]:
        own.store._reap()
        own.refs = [own.store.put(np.zeros(100_000)) for _ in range(10)]
        return own.store.stats().members, own.store.check()

    assert other.run(fill) == (2, [])
    assert (view == np.arange(100_000)).all()


def test_all_members_die_and_the_next_store_sweeps(pond: Pond) -> None:
    creator = pond.worker(program=True)
    spill = str(pond.spill)

    def create(own: Any) -> str:
        own.store = millpond.Store("1MiB", spill_dir=spill)
        own.refs = [own.store.put(np.arange(40_000)) for _ in range(10)]
        address: str = own.store.address
        return address

    address = creator.run(create)
    assert pond.spilled_files()
    creator.kill()
    with pytest.raises(millpond.AttachError, match="no live store"):
        millpond.connect(address)
    pond.store()
    assert not pond.spilled_files() and not os.path.exists(address)


def turmoil(own: Any, address: str, seed: int) -> None:
    """Never ends: everything a member does, again and again."""
    store = millpond.connect(address)
    dice, kept = random.Random(seed), []
    while True:
        kept.append(store.put(np.full(dice.choice([3, 300, 30_000]), len(kept))))
        with suppress(millpond.ObjectNotFoundError, ValueError):
            kept.append(pickle.loads(pickle.dumps(dice.choice(kept))))
            store.put(dice.choice(kept).get(), name=dice.choice("abc"), replace=dice.random() < 0.5)
            store.delete(dice.choice("abc"))
        if dice.random() < 0.1:
            with store.create(10_000, "u1") as draft:
                draft.array[:] = 1
                kept.append(draft.seal())
        if len(kept) > 30:
            del kept[: dice.randrange(30)]


def test_members_are_killed_at_any_moment(pond: Pond) -> None:
    store = pond.store("3MiB")
    refs = [store.put(np.full(20_000, number)) for number in range(10)]
    dice = random.Random(5)
    for number in range(12):
        victims = [pond.worker(), pond.worker()]
        for victim in victims:
            victim.start(turmoil, store.address, number)
        assert not victims[0].answered(dice.uniform(0.02, 0.1))
        victims[0].kill()
        assert store.put(number).get() == number
        assert not victims[1].answered(dice.uniform(0, 0.03))
        victims[1].kill()
        assert store.check() == []
        assert [int(ref.get()[-1]) for ref in refs] == list(range(10))
    wait_until(lambda: store._tidy() or store.stats().members == 1)
    for name in "abc":
        with suppress(millpond.ObjectNotFoundError):
            store.delete(name)
    # A kill between pickling and loading leaves a hand-off, which lapses later.
    assert len(store) - len(refs) <= store._totals()["tokens"] <= 24
    store.close()


def test_a_member_that_becomes_another_program(pond: Pond, store: millpond.Store) -> None:
    ref = store.put(np.arange(1000))
    member = pond.member(store)
    member.run(lambda own, ref: setattr(own, "kept", [ref, own.store.put(1)]), ref)
    ends = os.pipe()
    code = "import os, sys; os.write(1, b'x'); sys.stdin.read()"
    pid = os.fork()
    if pid == 0:
        inside, _ = os.pipe()
        os.dup2(ends[1], 1)
        os.dup2(inside, 0)
        os.execv(sys.executable, [sys.executable, "-c", code])
    os.close(ends[1])
    assert os.read(ends[0], 1) == b"x"
    links = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    assert not [link for link in links if "millpond" in link or str(pond.registry) in link]
    wait_until(lambda: store._reap() or store.stats().members == 2)  # though the process lives on
    assert store.put(np.ones(100)).get().sum() == 100 and ref.get()[-1] == 999
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(ends[0])
    assert store.check() == []


def test_a_stopped_member_stops_nobody(pond: Pond, store: millpond.Store) -> None:
    member = pond.member(store)
    ref = member.run(lambda own: own.store.put(np.arange(1000)))
    os.kill(member.pid, signal.SIGSTOP)
    try:
        start = time.monotonic()
        assert ref.get()[-1] == 999 and store.put(2).get() == 2
        with pond.store() as other:
            other.put(1)
        assert time.monotonic() - start < 2
        assert store.stats().members == 2, "it is not dead"
    finally:
        os.kill(member.pid, signal.SIGCONT)
    assert member.run(lambda own: own.store.put(5).get()) == 5


# --- who may not join ---


def refusal(own: Any, address: str, uid: int | None = None) -> str:
    """The message with which connecting fails."""
    if uid is not None:
        os.setgid(uid)
        os.setuid(uid)
    try:
        millpond.connect(address)
    except millpond.AttachError as error:
        return str(error)
    return "joined"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which only root may")
def test_another_user_is_refused(pond: Pond, store: millpond.Store) -> None:
    stranger = pond.worker(program=True)
    assert "Permission denied" in stranger.run(refusal, store.address, 65534)
    # Even where the directories can be entered, the memory is not theirs.
    for path in (pond.registry, *pond.registry.parents):
        if path.stat().st_uid == 0 and path.stat().st_mode & 0o077 == 0:
            path.chmod(0o711)
    second = pond.worker(program=True)
    assert "belongs to user 0" in second.run(refusal, store.address, 65534)
    pond.registry.chmod(0o700)


def test_directories_that_are_not_private_are_refused(pond: Pond, store: millpond.Store) -> None:
    program = pond.worker(program=True)
    pond.registry.chmod(0o755)
    assert "0700" in program.run(refusal, store.address)
    pond.registry.chmod(0o700)
    alias = pond.registry.with_name("alias")
    alias.symlink_to(pond.registry)
    assert "symbolic link" in program.run(refusal, str(alias / os.path.basename(store.address)))
    alias.unlink()
    assert program.run(refusal, store.address) == "joined"


def test_an_unknown_holder_of_the_lock_has_no_number(store: millpond.Store) -> None:
    """Who is still joining holds the lock before its number is in the table."""
    assert str(store._fail(Code.BUSY, "a put")).startswith(
        "another process has held the store's lock for 5 s"
    )
