"""A store against a model of it: processes that do anything in any order, among it forking and dying.

After each step the store's own check finds no fault, and it holds exactly the objects that somebody
holds: by a ref, a pickle that was not loaded yet, a name, or a value that contains a ref. Values that contain
refs have negative keys.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import socket
import uuid
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import millpond
from ponds import Pond
from workers import serve, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")

PROCESSES_MAX = 4
SIZES = (0, 100, 5000, 9000, 70_000, 200_000)
PICK = st.integers(0, 1 << 20)
NAMES = st.sampled_from(["a", "b"])
PR_SET_CHILD_SUBREAPER = 36
EXAMPLES = 2000 if os.environ.get("MILLPOND_NIGHTLY") else 100


def value_of(key: int) -> Any:
    """The value of a key, of any kind and size."""
    content = np.full(SIZES[key % len(SIZES)], key % 251, np.uint8)
    return content if key % 7 < 4 else {"key": key, "content": content.tobytes()}


def agrees(key: int, value: Any) -> bool:
    if key < 0:
        return isinstance(value, list) and all(type(ref) is millpond.ObjectRef for ref in value)
    expected = value_of(key)
    if isinstance(expected, np.ndarray):
        return isinstance(value, np.ndarray) and value.dtype == np.uint8 and np.array_equal(value, expected)
    return bool(value == expected)


# --- what the processes do; own.refs and own.views are theirs, by key ---


def put(own: Any, key: int, name: str | None, replace: bool) -> bool:
    try:
        own.refs[key] = own.store.put(value_of(key), name=name, replace=replace)
    except ValueError:
        return False
    return True


def build(own: Any, key: int, keep: bool) -> None:
    with own.store.create(SIZES[key % len(SIZES)], np.uint8) as draft:
        draft.array[:] = key % 251
        if keep:
            own.refs[key] = draft.seal()


def read(own: Any, key: int, copy: bool) -> str:
    try:
        return "good" if agrees(key, own.store.get(own.refs[key], timeout=10, copy=copy)) else "wrong"
    except millpond.ObjectDeletedError:
        return "deleted"


def view(own: Any, key: int) -> bool:
    own.views[key] = own.store.get(own.refs[key], timeout=10)
    return agrees(key, own.views[key])


def look(own: Any, key: int) -> bool:
    return agrees(key, own.views.pop(key))


def drop(own: Any, key: int) -> None:
    del own.refs[key]


def send(own: Any, key: int) -> bytes:
    return pickle.dumps(own.refs[key])


def load(own: Any, key: int, data: bytes) -> None:
    own.refs[key] = pickle.loads(data)


def lookup(own: Any, name: str, key: int) -> None:
    own.refs[key] = own.store.lookup(name)


def delete(own: Any, key: int) -> None:
    own.store.delete(own.refs[key])


def nest(own: Any, key: int, inside: list[int]) -> None:
    own.refs[key] = own.store.put([own.refs[inner] for inner in inside])


def unnest(own: Any, key: int, index: int, inner: int) -> None:
    own.refs[inner] = own.store.get(own.refs[key], timeout=10)[index]


def close(own: Any) -> bool:
    """Leaves the store; the views must have kept their bytes."""
    own.store.close()
    own.refs.clear()
    good = all(agrees(key, value) for key, value in own.views.items())
    own.views.clear()
    return good


def spill(own: Any) -> None:
    own.store.spill()


def fork(own: Any, address: str) -> int:
    """A copy of this process connects to `address` and serves there."""
    pid = os.fork()
    if pid:
        return pid
    try:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(address)
        serve(Connection(connection.detach()), own)
    finally:
        os._exit(0)


# --- the model ---


@dataclass
class Process:
    """One process, and what it has by the books."""

    pid: int
    pipe: Connection
    refs: set[int] = field(default_factory=set)
    views: set[int] = field(default_factory=set)

    def run(self, function: Any, *arguments: Any) -> Any:
        self.pipe.send_bytes(pickle.dumps((function, arguments)))
        assert self.pipe.poll(20), f"process {self.pid} has not answered {function.__name__}{arguments}"
        value, failure = pickle.loads(self.pipe.recv_bytes())
        if failure is not None:
            failure[0].__notes__ = failure[1]
            raise failure[0]
        return value


class Machine(RuleBasedStateMachine):
    """Rules are what processes may do. A rule that cannot apply picks nothing and does nothing."""

    pond: Pond

    def __init__(self) -> None:
        super().__init__()
        self.store = self.pond.store("1MiB", overflow_limit="32MiB")
        self.listener = socket.socket(socket.AF_UNIX)
        self.address = f"\0{uuid.uuid4()}"
        self.listener.bind(self.address)
        self.listener.listen()
        self.listener.settimeout(10)
        self.processes: list[Process] = []
        self.pids: list[int] = []
        self.pickles: list[tuple[int, bytes]] = []
        self.names: dict[str, int] = {}
        self.deleted: set[int] = set()
        self.inside: dict[int, list[int]] = {}
        self.keys = 0
        for _ in range(2):
            self.add(Process(fork(_Namespace(self.store), self.address), self.accept()))

    def accept(self) -> Connection:
        return Connection(self.listener.accept()[0].detach())

    def add(self, process: Process) -> None:
        self.processes.append(process)
        self.pids.append(process.pid)

    def process(self, pick: int) -> Process:
        return self.processes[pick % len(self.processes)]

    def pick(self, pick: int, what: str, deleted: bool = False) -> tuple[Process, int] | None:
        """A process and a key of its refs or views; only if `deleted` perhaps a deleted one."""
        choices = [
            (process, key)
            for process in self.processes
            for key in sorted(getattr(process, what))
            if deleted or key not in self.deleted
        ]
        return choices[pick % len(choices)] if choices else None

    def new_key(self) -> int:
        self.keys += 1
        return self.keys

    # --- rules ---

    @rule(pick=PICK)
    def put(self, pick: int) -> None:
        process, key = self.process(pick), self.new_key()
        assert process.run(put, key, None, False)
        process.refs.add(key)

    @rule(pick=PICK, name=NAMES, replace=st.booleans())
    def put_named(self, pick: int, name: str, replace: bool) -> None:
        process, key = self.process(pick), self.new_key()
        stored = process.run(put, key, name, replace)
        assert stored == (replace or name not in self.names or self.names[name] in self.deleted)
        if stored:
            process.refs.add(key)
            self.names[name] = key

    @rule(pick=PICK, keep=st.booleans())
    def build(self, pick: int, keep: bool) -> None:
        process, key = self.process(pick), self.new_key() * 7  # of the kind that is an array
        self.keys = key
        process.run(build, key, keep)
        if keep:
            process.refs.add(key)

    @rule(pick=PICK, copy=st.booleans())
    def read(self, pick: int, copy: bool) -> None:
        if choice := self.pick(pick, "refs", deleted=True):
            process, key = choice
            assert process.run(read, key, copy) == ("deleted" if key in self.deleted else "good")

    @rule(pick=PICK, count=st.integers(1, 3))
    def nest(self, pick: int, count: int) -> None:
        if choice := self.pick(pick, "refs", deleted=True):
            process, key = choice
            inside = sorted(process.refs, key=lambda other: (other != key, other))[:count]
            container = -self.new_key()
            process.run(nest, container, inside)
            process.refs.add(container)
            self.inside[container] = inside

    @rule(pick=PICK, index=st.integers(0, 2))
    def unnest(self, pick: int, index: int) -> None:
        if (choice := self.pick(pick, "refs")) and choice[1] in self.inside:
            process, container = choice
            inside = self.inside[container]
            inner = inside[index % len(inside)]
            process.run(unnest, container, index % len(inside), inner)
            process.refs.add(inner)

    @rule(pick=PICK)
    def view(self, pick: int) -> None:
        if (choice := self.pick(pick, "refs")) and choice[1] not in self.inside:
            process, key = choice
            assert process.run(view, key)
            process.views.add(key)

    @rule(pick=PICK)
    def look(self, pick: int) -> None:
        if choice := self.pick(pick, "views", deleted=True):
            process, key = choice
            assert process.run(look, key)
            process.views.discard(key)

    @rule(pick=PICK)
    def drop(self, pick: int) -> None:
        if choice := self.pick(pick, "refs", deleted=True):
            process, key = choice
            process.run(drop, key)
            process.refs.discard(key)

    @rule(pick=PICK)
    def send(self, pick: int) -> None:
        if choice := self.pick(pick, "refs", deleted=True):
            process, key = choice
            self.pickles.append((key, process.run(send, key)))

    @precondition(lambda self: self.pickles)
    @rule(pick=PICK)
    def load(self, pick: int) -> None:
        key, data = self.pickles.pop(pick % len(self.pickles))
        process = self.process(pick)
        process.run(load, key, data)
        process.refs.add(key)

    @rule(pick=PICK, name=NAMES)
    def lookup(self, pick: int, name: str) -> None:
        if name in self.names:
            process, key = self.process(pick), self.names[name]
            process.run(lookup, name, key)
            process.refs.add(key)

    @rule(name=NAMES)
    def take_name_off(self, name: str) -> None:
        if self.names.pop(name, None) is not None:
            self.store.delete(name)

    @rule(pick=PICK)
    def delete(self, pick: int) -> None:
        if choice := self.pick(pick, "refs", deleted=True):
            process, key = choice
            process.run(delete, key)
            self.deleted.add(key)

    @rule(pick=PICK)
    def spill(self, pick: int) -> None:
        self.process(pick).run(spill)

    @precondition(lambda self: len(self.processes) < PROCESSES_MAX)
    @rule(pick=PICK)
    def fork(self, pick: int) -> None:
        parent = self.process(pick)
        pid = parent.run(fork, self.address)
        self.add(Process(pid, self.accept(), set(parent.refs), set(parent.views)))

    @precondition(lambda self: len(self.processes) > 1)
    @rule(pick=PICK)
    def kill(self, pick: int) -> None:
        process = self.process(pick)
        self.processes.remove(process)
        process.pipe.close()
        os.kill(process.pid, signal.SIGKILL)

    @precondition(lambda self: len(self.processes) > 1)
    @rule(pick=PICK)
    def close(self, pick: int) -> None:
        process = self.process(pick)
        assert process.run(close)
        self.processes.remove(process)
        process.pipe.close()

    # --- what must hold ---

    def with_inside(self, keys: set[int]) -> set[int]:
        """The keys, and those that their values contain, however deep."""
        found, left = set(keys), [key for key in keys if key not in self.deleted]
        while left:
            for inner in self.inside.get(left.pop(), ()):
                if inner not in found:
                    found.add(inner)
                    if inner not in self.deleted:
                        left.append(inner)
        return found

    @invariant()
    def store_is_sound(self) -> None:
        assert self.store.check() == []
        held = set(self.names.values()) | {key for key, _ in self.pickles}
        held = self.with_inside(held.union(*(process.refs for process in self.processes)))
        # A view keeps what is left of its object, unless it is a copy: of a small value, or for want of room.
        seen = held.union(*(process.views for process in self.processes))

        def found() -> bool:
            self.store._reap()
            return len(self.store) == len(held - self.deleted) and len(held) <= len(
                self.store._survey()
            ) <= len(seen)

        wait_until(found, 5)  # the dead may take a moment
        assert self.store.stats().committed_bytes <= self.store.memory_limit

    def teardown(self) -> None:
        for process in self.processes:
            process.pipe.close()
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in self.pids:
            wait_until(lambda pid=pid: reaped(pid))
        self.listener.close()
        self.processes.clear()
        for _, data in self.pickles:
            pickle.loads(data)
        for name in self.names:  # a deleted object is not listed, but keeps its name
            self.store.delete(name)
        self.pond.close_empty()


def reaped(pid: int) -> bool:
    """Waits for a process that becomes our child when its parent is gone."""
    with suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    return not os.path.exists(f"/proc/{pid}")


class _Namespace:
    """What a process of the model starts with."""

    def __init__(self, store: millpond.Store) -> None:
        self.store = store
        self.refs: dict[int, millpond.ObjectRef] = {}
        self.views: dict[int, Any] = {}


def test_the_store_does_what_its_model_does(pond: Pond, tally: Counter[str]) -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)  # forks of killed processes become our children
    try:
        run_state_machine_as_test(
            type("Machine", (Machine,), {"pond": pond}),
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=40,
                deadline=None,
                database=None,
                phases=[Phase.generate],  # each attempt at a shorter example may wait for seconds
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0)
    tally["examples of the model"] += EXAMPLES
