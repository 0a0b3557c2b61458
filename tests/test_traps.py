"""Where refs and views hide and go at odd moments: cycles, tracebacks, destructors, signal handlers, exit."""

from __future__ import annotations

import copy
import gc
import importlib.util
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import millpond
from ponds import Pond
from workers import in_threads

MIB = 1 << 20


class Node:
    """Part of a cycle."""

    def __init__(self, held: Any) -> None:
        self.held = held
        self.me = self


@contextmanager
def gc_is(enabled: bool) -> Iterator[None]:
    gc.collect()
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        yield
    finally:
        (gc.enable if before else gc.disable)()


# --- reference cycles ---


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("what", ["refs", "views", "drafts"])
def test_cycles_are_collected_under_pressure(pond: Pond, enabled: bool, what: str) -> None:
    """A put that finds no room looks for garbage of Python, also where that is switched off otherwise."""
    store = pond.store("8MiB", spill_limit=0)
    with gc_is(enabled):
        for _ in range(7):
            if what == "drafts":
                Node(store.create(MIB, "u1"))
            else:
                ref = store.put(np.ones(MIB, "u1"))
                Node(ref if what == "refs" else ref.get())
                del ref
        assert store.stats().committed_bytes - store.stats().warm_bytes >= 7 * MIB or enabled
        big = store.put(np.ones(6 * MIB, "u1"))
    assert big.get()[-1] == 1
    assert len(store) == 1


def make_cycle(own: Any, data: list[bytes]) -> int:
    gc.disable()
    Node([millpond.load_ref(one) for one in data])
    return len(data)


def test_a_cycle_in_another_process_is_collected_for_us(pond: Pond) -> None:
    store = pond.store("8MiB", spill_limit=0)
    other = pond.member(store)
    refs = [store.put(np.ones(MIB, "u1")) for _ in range(7)]
    assert other.run(make_cycle, [ref.export() for ref in refs]) == 7
    refs.clear()
    assert len(store) == 7
    with pytest.raises(millpond.StoreFullError):
        store.put(np.ones(6 * MIB, "u1"))
    assert store.put(np.ones(6 * MIB, "u1"), timeout=20).get()[-1] == 1


# --- tracebacks ---


def test_a_traceback_keeps_what_its_frames_hold(store: millpond.Store) -> None:
    def fail(ref: millpond.ObjectRef) -> None:
        view = ref.get()
        raise ValueError(f"first: {view[0]}")

    with gc_is(False):
        try:
            fail(store.put(np.arange(10_000)))
        except ValueError as error:
            kept = error
        assert len(store) == 1 and store.stats().pinned_bytes > 80_000
        del kept
        assert len(store) == 0 and len(store._survey()) == 0


def test_errors_of_the_store_keep_nothing(pond: Pond) -> None:
    """Once such an error is handled, neither the value nor a ref is left in a cycle."""
    store = pond.store("4MiB", spill_limit=0)
    deleted = store.put(np.ones(1000))
    store.delete(deleted)
    unserializable = [np.ones(50_000), (number for number in range(3))]
    big, draft = np.ones(8 * MIB, "u1"), store.create(10, "u1")
    traps = [
        (millpond.StoreFullError, lambda: store.put(big)),
        (millpond.StoreFullError, lambda: store.put([big, deleted])),
        (millpond.StoreFullError, lambda: store.create(8 * MIB, "u1")),
        (millpond.SerializationError, lambda: store.put(unserializable)),
        (millpond.ObjectDeletedError, lambda: deleted.get()),
        (millpond.ObjectNotFoundError, lambda: store.lookup("nobody")),
        (millpond.GetTimeoutError, lambda: draft.ref.get(timeout=0.01)),
    ]
    with gc_is(False):
        for expected, trap in traps:
            references = [sys.getrefcount(thing) for thing in (big, unserializable[0], deleted)]
            with pytest.raises(expected) as raised:
                trap()
            del raised
            assert [sys.getrefcount(thing) for thing in (big, unserializable[0], deleted)] == references
            assert len(store) == 1, "the draft"


# --- destructors and signal handlers ---


def test_refs_dropped_in_destructors(store: millpond.Store) -> None:
    """Also by the garbage collector, in the middle of whatever runs."""
    ended = []

    class Owner:
        def __init__(self, number: int) -> None:
            self.ref = store.put(np.full(1000, number))
            self.view = self.ref.get()
            self.cycle = self

        def __del__(self) -> None:
            self.view = None
            ended.append(int(self.ref.get()[0]))
            another = store.put([self.ref])
            del self.ref, another

    threshold = gc.get_threshold()
    gc.set_threshold(50)
    try:
        for number in range(200):
            Owner(number)
            assert store.put({"number": [number] * 30}).get()["number"][0] == number
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert sorted(ended) == list(range(200))
    assert len(store) == 0 and store.check() == []


@pytest.mark.parametrize("memory_limit", ["64MiB", "2MiB"])
def test_refs_dropped_in_signal_handlers(pond: Pond, memory_limit: str) -> None:
    """A handler that interrupts put, get, spilling and restoring drops refs and views of the same store."""
    store = pond.store(memory_limit)
    dice = random.Random(3)
    held: list[Any] = []
    handled = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal handled
        handled += 1
        del held[::2]

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
    try:
        stop = time.monotonic() + 1
        while time.monotonic() < stop:
            number = dice.randrange(100)
            ref = store.put(np.full(dice.choice([10, 1000, 40_000]), number))
            held += [ref, store.put([ref]), ref.get(), pickle.loads(pickle.dumps(ref))]
            some = dice.choice([one for one in held if type(one) is millpond.ObjectRef] + [ref])
            assert some.get() is not None
            if dice.random() < 0.05:
                store.spill()
            assert ref.get()[-1] == number
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert handled > 50
    held.clear()
    del ref, some
    assert len(store) == 0 and store.check() == []


# --- threads, weak references, copies ---


def test_many_threads_on_one_ref(store: millpond.Store) -> None:
    ref = store.put(np.arange(1000))
    outer = store.put([ref])
    ways: list[Callable[[], Any]] = [
        ref.get,
        ref.__copy__,
        lambda ref=ref: copy.deepcopy([ref])[0],
        lambda ref=ref: pickle.loads(pickle.dumps(ref)),
        lambda ref=ref: millpond.load_ref(ref.export()),
        lambda ref=ref: store.put((ref, [ref])).get()[1][0],
        weakref.ref(ref),
        lambda outer=outer: outer.get()[0],
    ]

    def work(seed: int) -> None:
        dice = random.Random(seed)
        mine: list[Any] = []
        for _ in range(400):
            mine.append(dice.choice(ways)())
            one = dice.choice(mine)
            assert (one if type(one) is np.ndarray else one.get())[-1] == 999
            if len(mine) > 20:
                del mine[: dice.randrange(20)]

    with in_threads(work, 8):
        pass
    ways.clear()
    assert len(store) == 2 and store._totals()["tokens"] == 0
    assert store.refs(ref).containers == (outer.id,)
    del outer
    data = ref.export()
    del ref
    assert len(store) == 1
    millpond.load_ref(data)
    assert len(store) == 0 and store.check() == []


def test_weak_references(store: millpond.Store) -> None:
    """To refs and to views: they hold nothing, and tell when the last strong one goes."""
    told: list[str] = []
    ref = store.put(np.arange(1000))
    view = ref.get()
    weak = weakref.ref(ref, lambda _: told.append("ref"))
    weakref.finalize(view, told.append, "view")
    known = weakref.WeakValueDictionary({"known": ref})
    notes = weakref.WeakKeyDictionary({ref: "a note"})
    twin = copy.copy(ref)
    assert weak() is ref is known["known"] and notes[twin] == "a note"
    del ref
    assert weak() is None and told == ["ref"] and not known and not notes
    assert len(store) == 1, "the twin is a ref of its own"
    del twin
    assert len(store) == 0 and view[-1] == 999
    del view
    assert told == ["ref", "view"] and len(store._survey()) == 0


def test_copies_take_no_hand_off(store: millpond.Store) -> None:
    ref = store.put(np.arange(1000))
    view = ref.get()
    value = {"ref": ref, "more": [ref, {"view": view}]}
    copies = [copy.copy(ref), copy.deepcopy(ref), copy.copy(value), copy.deepcopy(value)]
    assert store._totals()["tokens"] == 0 and store.refs(ref).handoffs == ()
    assert copies[:2] == [ref, ref] and copies[2]["ref"] is ref and copies[3]["ref"] is not ref
    assert copies[3]["more"][0] is copies[3]["ref"], "a deep copy keeps identity"
    private = copies[3]["more"][1]["view"]
    private[0] = 77
    assert view[0] == 0, "and views become private arrays"
    del ref, value, view
    del copies[0], copies[1:]
    assert copies[0].get()[-1] == 999
    copies.clear()
    assert len(store) == 0


# --- the end of the interpreter ---

PROGRAM = """
import atexit, gc, os, signal, sys, threading, time
import numpy as np
{early}
import millpond
store = millpond.Store("8MiB", spill_dir=sys.argv[1])
ref = store.put(np.arange(100_000))
view = ref.get()
part = store.put([ref, store.put(np.ones(50_000))]).get()
many = [store.put(np.full(100_000, number)) for number in range(20)]
assert [name for _, _, names in os.walk(sys.argv[1]) for name in names], "something is on disk"
draft = store.create(1000, "u1")
array = draft.array
pickled = ref.export()
{late}
"""

IN_A_CALL = """
class Slow:
 name, number = "slow", 222
 def compress(self, frame):
  if not inside.is_set(): inside.set(); time.sleep(0.2)
 def decompress_into(self, stored, frame): pass
inside = threading.Event()
def work():
 try: store.spill(many[-1])
 except millpond.MillpondError: pass
store.configure(compression=Slow())
threading.Thread(target=work, daemon=True).start(); inside.wait(20)
"""

WAYS = {
    "plainly": ("", ""),
    "with a named object": ("", "store.put(1, name='kept')"),
    "in cycles": ("", "cycle = [store, ref, view, draft]; cycle.append(cycle); del store, ref, view, draft"),
    "without gc": ("gc.disable()", "cycle = [ref, view]; cycle.append(cycle)"),
    "in attributes of a class": ("", "class Holder: held = [ref, view, draft, store]\nHolder.me = Holder()"),
    "closed": ("", "store.close()"),
    "closed by atexit": ("atexit.register(lambda: store.close())", ""),
    "used by atexit": ("", "atexit.register(lambda: print(ref.get()[5], store.put(1).get()))"),
    "used too late": (
        "def late():\n"
        " try: ref.get()\n"
        " except millpond.StoreClosedError: print(view[-1])\n"
        "atexit.register(late)",
        "",
    ),
    "used by destructors": (
        "",
        "class Last:\n"
        " def __init__(self): self.held = [ref, view, draft, millpond.StoreClosedError]\n"
        " def __del__(self):\n"
        "  try: self.held[0].get()\n"
        "  except self.held[3]: self.held.clear()\n"
        "last = Last(); sys.modules['last'] = Last()",
    ),
    "in a thread": (
        "",
        "def work():\n"
        " try:\n"
        "  while True: [store.put(np.ones(9000)).get(), ref.get(), many[3].get(copy=True)]\n"
        " except millpond.StoreClosedError: pass\n"
        "threading.Thread(target=work, daemon=True).start(); time.sleep(0.05)",
    ),
    "in a thread that waits": (
        "",
        "def work():\n"
        " try: draft.ref.get()\n"
        " except (millpond.StoreClosedError, millpond.ObjectDeletedError): pass\n"
        "threading.Thread(target=work, daemon=True).start(); time.sleep(0.05)",
    ),
    "in threads that spill": (
        "",
        "def work():\n"
        " try:\n"
        "  while True: store.spill(), ref.get(), store.get(many)\n"
        " except millpond.StoreClosedError: pass\n"
        "for _ in range(3): threading.Thread(target=work, daemon=True).start()\n"
        "time.sleep(0.05)",
    ),
    "in a thread's call": (
        "def calls():\n"
        " for frame in sys._current_frames().values():\n"
        "  while frame: yield frame.f_globals['__name__']; frame = frame.f_back\n"
        "atexit.register(lambda: print([name for name in calls() if name.startswith('millpond')]))",
        IN_A_CALL,
    ),
    "by sys.exit in a frame": ("", "def frame(ref, view): sys.exit(0)\nframe(many[0], many[1].get())"),
}
SAYS = {"used by atexit": "5 1\n", "used too late": "99999\n", "in a thread's call": "[]\n"}


@pytest.mark.parametrize("way", WAYS)
def test_a_program_ends(tmp_path: Path, way: str) -> None:
    """With everything alive at module level: no complaint, and nothing is left on disk."""
    early, late = WAYS[way]
    spill = tmp_path / "spill"
    environment = {
        **os.environ,
        "MILLPOND_DIR": str(tmp_path / "registry"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    program = PROGRAM.format(early=early, late=late)
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", program, str(spill)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (0, SAYS.get(way, ""), "")
    assert os.listdir(tmp_path / "registry") == ["dirlock"]
    assert [name for _, _, names in os.walk(spill) for name in names] == []


SUBINTERPRETER = """
import sys
try:
    import _interpreters
    one = _interpreters.create("legacy")
except ImportError:
    import _xxsubinterpreters as _interpreters
    one = _interpreters.create()
_interpreters.run_string(one, '''
import millpond
try:
    millpond.Store("8MiB")
except millpond.AttachError as error:
    print(error, flush=True)
''')
"""


def test_a_subinterpreter_is_refused(tmp_path: Path) -> None:
    """CPython hangs if it ends while one is left that holds an open file, say; with a store, always."""
    if not any(importlib.util.find_spec(name) for name in ("_interpreters", "_xxsubinterpreters")):
        pytest.skip("this Python makes no subinterpreters")
    environment = {
        **os.environ,
        "MILLPOND_DIR": str(tmp_path / "registry"),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "PYTHONWARNINGS": "ignore",  # NumPy's, of subinterpreters
    }
    command = [sys.executable, "-c", SUBINTERPRETER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0 and "use the main interpreter" in done.stdout, done.stderr
    assert not (tmp_path / "registry").exists() or os.listdir(tmp_path / "registry") == ["dirlock"]


def test_little_address_space() -> None:
    """A process that may map a few GiB only (ulimit -v, a debugger's limits) gets a smaller arena."""
    program = (
        "import resource, millpond, numpy as np\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
        "with millpond.Store(memory_limit='64MiB') as store:\n"
        "    refs = [store.put(np.full(1 << 20, i)) for i in range(20)]\n"
        "    print([int(store.get(ref)[-1]) for ref in refs] == list(range(20)), store.check())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True []\n", "")
