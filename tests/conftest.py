"""A pond for each test that wants one: a registry and a spill directory of its own, stores and workers.

After the test nothing may be left: no object, hand-off, member, disk byte, file, descriptor or thread.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

import millpond
from millpond.eviction import limits
from ponds import Pond

_failed = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_failed] = True  # its traceback holds refs
    return report


@pytest.fixture
def pond(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Pond]:
    monkeypatch.setenv("MILLPOND_DIR", str(tmp_path / "registry"))
    limits.headroom()  # opens what it keeps
    descriptors, threads = set(os.listdir("/proc/self/fd")), set(threading.enumerate())
    pond = Pond(tmp_path)
    yield pond
    if request.node.stash.get(_failed, False):
        pond.close()
        return
    pond.close_empty()
    if _new_descriptors(descriptors):
        gc.collect()
    assert _new_descriptors(descriptors) == set()
    assert [thread for thread in threading.enumerate() if thread not in threads] == []


def _new_descriptors(before: set[str]) -> set[str]:
    """Not those that are gone: what other tests have used may close at any time."""
    names = set(os.listdir("/proc/self/fd")) - before  # one of them is that of this very look
    return {name for name in names if os.path.lexists(f"/proc/self/fd/{name}")}


@pytest.fixture
def store(pond: Pond) -> millpond.Store:
    """A store of 64 MiB."""
    return pond.store()
