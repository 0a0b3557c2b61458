"""A pond for each test that wants one: a registry and a spill directory of its own, stores and workers.

After the test nothing may be left: no object, hand-off, member, disk byte, file, descriptor or thread.
And a tally, for tests that count: pytest --counts FILE writes it there (see proof).
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import millpond
from failpoints import BUILD, Page
from millpond.eviction import limits
from ponds import Pond
from proof import write_counts
from workers import wait_until

_failed = pytest.StashKey[bool]()
_tally: Counter[str] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--counts", type=Path, help="where to write what the tests have counted, as JSON")


def pytest_configure() -> None:
    """Ctrl-C is ignored by what a shell starts in the background, and by all that this starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for what, count in _tally.items():
        terminalreporter.write_line(f"{count} {what}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    write_counts(session.config.getoption("--counts"), _tally, session.testsfailed)


@pytest.fixture
def tally() -> Counter[str]:
    """What the tests of this run have counted so far, by name."""
    return _tally


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
        with suppress(AssertionError):  # a thread that has just ended lets go of its own a moment later
            wait_until(lambda: not _new_descriptors(descriptors))
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


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Page]:
    """Orders for the failpoints of the programs that the test starts, which run the second build."""
    if not (BUILD / "millpond" / "hot.pyi").exists():
        pytest.fail(f"{BUILD} is not there: `make failpoints` builds it")
    page = Page(tmp_path / "page")
    monkeypatch.setenv("MILLPOND_FAILPOINT_PAGE", str(page.path))
    monkeypatch.setattr(sys, "path", [str(BUILD), *sys.path])
    yield page
    page.close()
