"""Sandboxes that forbid a system call, before a store is made or while it is used.

A member does a little of everything. What it may do without goes without being missed; of the rest it gets a
typed error. Either way the others find a sound store, and nothing of it when it has ended.
"""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import millpond
import workers
from forbid import forbid, is_possible
from ponds import Pond

pytestmark = pytest.mark.skipif(not is_possible(), reason="the numbers of this machine's calls are not known")

WORKS = "works"
OPTIONAL = [
    "bind", "clone3", "close_range", "copy_file_range", "faccessat2", "fadvise64", "fdatasync", "fsync",
    "getdents64", "getrandom", "io_uring_setup", "kcmp", "kill", "membarrier", "mlock", "openat2",
    "pidfd_getfd", "pidfd_open", "prctl", "process_vm_readv", "ptrace", "rmdir", "sched_getaffinity",
    "sched_setaffinity", "socket", "statx", "sysinfo", "unlink", "userfaultfd",
]  # fmt: skip
"""Nothing fails without these: what newer or tidier systems have, and what cleans up."""
CREATING = ["fcntl", "flock", "ftruncate", "madvise", "memfd_create", "mkdir", "uname"]
"""A store cannot be made without these, but once it is there they are not missed."""
NEEDED = ["newfstatat", "openat", "preadv2", "pwritev2", "statfs"]
"""The disk needs these. Where the C library has an older call instead (ENOSYS), it may work."""
ERRORS = (errno.EPERM, errno.ENOSYS)


def use(store: millpond.Store) -> None:
    """A little of everything. What it has put it can read, or it raises."""
    arrays = [store.put(np.full(125_000, number)) for number in range(16)]
    small = [store.put({"number": number}) for number in range(20)]
    store.spill(arrays[:4])
    assert [int(ref.get(copy=True)[-1]) for ref in arrays] == list(range(16))
    assert [ref.get()["number"] for ref in small] == list(range(20))
    assert int(pickle.loads(pickle.dumps(arrays[0])).get(copy=True)[0]) == 0
    store.delete(arrays[1])
    with pytest.raises(millpond.MillpondError):
        arrays[1].get()
    with store.create(1000, "u1") as draft:
        draft.array[:] = 1
        assert int(draft.seal().get().sum()) == 1000
    pid = os.fork()
    if pid == 0:
        os._exit(small[3].get() != {"number": 3})
    assert os.waitpid(pid, 0)[1] == 0
    assert store.check() == [] and store.stats().members >= 1


def outcome(call: Any, *arguments: Any) -> str:
    """What came of it: an untyped error is raised."""
    try:
        call(*arguments)
    except millpond.MillpondError as error:
        return f"{type(error).__name__}: {error}"
    return WORKS


def use_without(own: Any, calls: list[str], error: int) -> str:
    """In a forked child that has been a member for a while."""
    store = workers.inherited[0]
    use(store)
    forbid(calls, error)
    return outcome(use, store)


def create_without(own: Any, calls: list[str], error: int, spill_dir: str | None) -> str:
    forbid(calls, error)
    return outcome(create_and_use, spill_dir)


def create_and_use(spill_dir: str | None) -> None:
    with millpond.Store("8MiB", spill_dir=spill_dir, spill_limit=None if spill_dir else 0) as store:
        use(store)


def tried(pond: Pond, calls: list[str], error: int, tally: Counter[str]) -> tuple[str, str]:
    """What comes of it in use, and from the start; what others see of it is asserted."""
    store = pond.store("8MiB")
    kept = [store.put(np.full(125_000, number)) for number in range(10)]
    workers.inherited[:] = [store]
    used = pond.worker().run(use_without, calls, error)
    assert store.check() == []
    assert [int(ref.get(copy=True)[0]) for ref in kept] == list(range(10))
    pond.end_workers()
    workers.inherited.clear()
    store._reap()
    use(store)
    created = pond.worker().run(create_without, calls, error, str(pond.spill))
    pond.end_workers()
    tally["calls forbidden"] += 2 * len(calls)
    return used, created


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
def test_calls_that_are_not_missed(pond: Pond, error: int, tally: Counter[str]) -> None:
    assert tried(pond, OPTIONAL, error, tally) == (WORKS, WORKS)


@pytest.mark.parametrize(
    ("call", "error"), [(call, ERRORS[i % 2]) for i, call in enumerate(CREATING)], ids=str
)
def test_calls_that_make_a_store(pond: Pond, call: str, error: int, tally: Counter[str]) -> None:
    used, created = tried(pond, [call], error, tally)
    assert used == WORKS
    assert created.startswith(("AttachError: ", "SpillError: ")) and os.strerror(error) in created
    if call == "memfd_create":
        assert "seccomp" in created


@pytest.mark.parametrize("error", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", NEEDED)
def test_calls_that_the_disk_needs(pond: Pond, call: str, error: int, tally: Counter[str]) -> None:
    for said in tried(pond, [call], error, tally):
        if error == errno.EPERM or said != WORKS:
            assert said.startswith(("StoreFullError: ", "SpillError: ", "AttachError: ")), said
            assert os.strerror(error) in said


@pytest.mark.parametrize("error", [*ERRORS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_memory_that_cannot_be_reserved(pond: Pond, error: int, tally: Counter[str]) -> None:
    """Without fallocate there is no more memory to be had: values go to disk, or the error says why."""
    used, created = tried(pond, ["fallocate"], error, tally)
    assert used == WORKS
    assert "the system refuses to commit more" in created and "A draft must be in memory" in created
    said = pond.worker().run(create_without, ["fallocate"], error, None)
    assert said.startswith("StoreFullError: no room for") and "the system refuses to commit more" in said


@pytest.mark.parametrize("make", ["millpond.connect({!r})", "millpond.Store('8MiB')"])
def test_a_death_that_would_go_unnoticed(pond: Pond, make: str) -> None:
    """Without the list of robust mutexes, one that is killed with the lock in hand would keep it for ever."""
    store = pond.store("8MiB")
    forbidding = [sys.executable, Path(__file__).with_name("forbid.py"), "ENOSYS:set_robust_list"]
    program = f"import millpond; {make.format(store.address)}"
    done = subprocess.run(
        [*forbidding, sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1 and "AttachError: the system would not notice" in done.stderr
    assert store.stats().members == 1
