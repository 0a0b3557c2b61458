"""A call that meets a stopped holder of the lock in its middle gives up; its member ends it later, by itself.

Each case takes the 5 s that calls wait for the lock, so they run with MILLPOND_NIGHTLY only; the kernel's own
tests (tests/kernel/test_unfinished.c) do the same with little patience.
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import psutil
import pytest

import millpond
from failpoints import Page
from ponds import Pond, residue
from workers import Worker, wait_until

pytestmark = pytest.mark.skipif(
    not os.environ.get("MILLPOND_NIGHTLY"), reason="takes a minute: with MILLPOND_NIGHTLY"
)


def grow(own: Any) -> bool:
    """A put that needs memory; whether it was refused for the holder's sake."""
    try:
        own.store.put(np.ones(40_000))
    except millpond.StoreBusyError:
        return True
    return False


def restore(own: Any) -> bool:
    """A get whose read fails; whether it was refused."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "the disk fails")

    reader = own.store._restore._reader
    reader.read_into = fail
    ref = own.store.lookup("spilled")
    try:
        ref.get()
    except OSError:
        return True
    finally:
        del reader.read_into
    return False


def put(own: Any) -> None:
    own.store.put(1)


def stop(page: Page, worker: Worker, point: str, act: Callable[[Any], Any]) -> None:
    """Lets the worker act until it stands still at a failpoint."""
    page.arm(point, 1, signal.SIGSTOP)
    worker.start(act)
    wait_until(page.struck)
    assert page.struck() == worker.pid
    wait_until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED)


@pytest.mark.parametrize("end", [signal.SIGCONT, signal.SIGKILL], ids=["goes on", "is killed"])
@pytest.mark.parametrize(("act", "point"), [(grow, "grow.planned"), (restore, "restore.begun")])
def test_what_was_begun_is_ended(
    pond: Pond, page: Page, act: Callable[[Any], bool], point: str, end: int, tally: Counter[str]
) -> None:
    store = pond.store("8MiB")
    store.put(np.ones(40_000), name="spilled")
    store.spill()
    store._shrink(1 << 40)
    caller, holder = pond.member(store), pond.member(store)
    stop(page, caller, point, act)
    stop(page, holder, "draft.held", put)
    os.kill(caller.pid, signal.SIGCONT)
    assert caller.result(40), "it was refused"
    if end == signal.SIGKILL:
        holder.kill()
    else:
        os.kill(holder.pid, end)
        holder.result()
    assert store.lookup("spilled").get(timeout=20)[-1] == 1
    with suppress(AssertionError):
        store.delete("spilled")
        wait_until(lambda: "used memory" not in residue(store))
    assert "used memory" not in residue(store)
    assert store.check() == []
    tally["calls ended behind a stopped holder"] += 1
