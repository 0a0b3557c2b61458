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
    if set(os.listdir("/proc/self/fd")) != descriptors:
        gc.collect()
    assert set(os.listdir("/proc/self/fd")) == descriptors
    assert [thread for thread in threading.enumerate() if thread not in threads] == []


@pytest.fixture
def store(pond: Pond) -> millpond.Store:
    """A store of 64 MiB."""
    return pond.store()
