"""The pytest fixture `millpond_store`: a store of the test's own. A test that leaves something in it fails.

Invariants: what a test leaves is waited for a moment and looked for after a garbage collection, since other
processes may be about to drop it; each leak is named with its numbers, the line that made it and who keeps
it; a test that has failed already is not judged, because its traceback keeps values alive.
Not here: what keeps an object alive (docs/references.md).
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from millpond import ObjectInfo, ObjectNotFoundError, ObjectRef, Store
from millpond.hot import load_contained, note_sites
from millpond.units import format_bytes

__all__ = ["leaks", "millpond_store"]

PATIENCE_S, ALONE_S = 2.0, 0.1
"""How long others (processes, the store's own threads) have to drop things, and how long this process has."""
LOOKS_MIN = 3
"""On a machine that is busy, a moment is over before the garbage was collected."""

SHOWN_MAX = 20

_failed = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Makes the marker known."""
    config.addinivalue_line(
        "markers", "millpond_store(**options): options of the store that the fixture millpond_store makes"
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Notes which tests have failed."""
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


@pytest.fixture
def millpond_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Store]:
    """A private store; the test fails if it leaves anything there.

    It has 64 MiB and spills below `tmp_path`; `@pytest.mark.millpond_store(memory_limit="1GiB", ...)` sets
    other options of `Store`. Processes that the test starts find it by its address, and nobody else's.
    """
    marker = request.node.get_closest_marker("millpond_store")
    given = {} if marker is None else marker.kwargs
    spill = tmp_path / "millpond-spill"
    monkeypatch.setenv("MILLPOND_DIR", str(tmp_path / "millpond"))
    monkeypatch.setenv("MILLPOND_SITES", "1")  # for the processes that the test starts
    before = note_sites(True)
    try:
        with Store(**{"memory_limit": "64MiB", "spill_dir": spill, **given}) as store:
            uuid = store.uuid.hex()
            yield store
            found = [] if request.node.stash.get(_failed, False) else _leaks_at_last(store)
    finally:
        note_sites(before)
    if not found and not request.node.stash.get(_failed, False):
        found = _left_behind(uuid, spill)
    if found:
        pytest.fail("the test leaks:\n" + "\n".join(f"- {leak}" for leak in found), pytrace=False)


def _leaks_at_last(store: Store) -> list[str]:
    found: list[str] = []
    end = time.monotonic() + PATIENCE_S
    soon = time.monotonic() + ALONE_S
    looks = 0
    while not store.closed and (found := leaks(store)):
        now, looks = time.monotonic(), looks + 1
        stats = store.stats()
        own = stats.members == 1 and (stats.objects or stats.pinned_bytes)  # nobody else is to drop it
        if looks >= LOOKS_MIN and (now > end or (own and now > soon)):
            break
        gc.collect()
        time.sleep(0.02)
    return found


def leaks(store: Store) -> list[str]:
    """What is left in a store in which nothing should be, one line each. Empty: nothing."""
    store._tidy()
    left = list(store.objects())
    found = [_described(store, info) for info in left[:SHOWN_MAX]]
    if len(left) > SHOWN_MAX:
        found.append(f"{len(left) - SHOWN_MAX} more objects")
    stats = store.stats()
    if not found:
        if stats.pinned_bytes:
            found.append(f"{format_bytes(stats.pinned_bytes)} of dropped objects are kept by views of them")
        elif used := stats.committed_bytes - stats.warm_bytes:
            found.append(f"{format_bytes(used)} of memory are in use by no object")
        if stats.disk_bytes:
            found.append(f"{format_bytes(stats.disk_bytes)} on disk are in use by no object")
    if stats.overflow_bytes:
        found.append(f"{format_bytes(stats.overflow_bytes)} of private copies: views of spilled objects")
    found += [
        f"process {pid} ({command}) is still attached"
        for _, pid, command in store._members()
        if pid != os.getpid()
    ]
    return found + [f"the store is damaged: {fault}" for fault in store.check()]


def _described(store: Store, info: ObjectInfo) -> str:
    text = f"object of {format_bytes(info.size)} ({info.state}), made at {info.site or 'an unknown line'}"
    entry, birth = (int(number, 16) for number in info.id.split("-")[1:])
    with suppress(ObjectNotFoundError):  # it went meanwhile
        here = load_contained(store.uuid, entry, birth)
        if keepers := _keepers(store, here, info.holders):
            text += f"; kept by {', '.join(keepers)}"
    return text


def _keepers(store: Store, ref: ObjectRef, holders: int) -> list[str]:
    """Who keeps an object; `holders` is their number before `ref` was made here to ask."""
    found = store.refs(ref)
    others = [member for member in found.members if member.pid != os.getpid()]
    lines = ["a ref of this process"] if holders > len(others) else []
    lines += [f"a ref of process {member.pid} ({member.command})" for member in others]
    for member in found.pins:
        mine = member.pid == os.getpid()
        lines.append("a view" + ("" if mine else f" of process {member.pid} ({member.command})"))
    lines += [f"object {container}" for container in found.containers]
    lines += [f"a hand-off of process {transit.pid} that nobody has loaded" for transit in found.handoffs]
    return lines + ([f"the name {found.name!r}"] if found.name else [])


def _left_behind(uuid: str, spill: Path) -> list[str]:
    """What is left of a store that nobody uses any more: files and descriptors."""
    found = [f"spill file {path}" for path in spill.rglob("*") if path.is_file()]
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            target = os.readlink(f"/proc/self/fd/{number}")
            if uuid in target:
                found.append(f"descriptor {number} of {target}")
    return found
