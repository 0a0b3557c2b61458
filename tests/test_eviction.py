"""The batches of a ranking, and the limits of machines made of files."""

from __future__ import annotations

import errno
import os
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from millpond.eviction import limits
from millpond.eviction.limits import Machine
from millpond.eviction.named import resolve
from millpond.eviction.policies import CANDIDATE
from millpond.eviction.ranking import Ranking


def candidates(stamps: list[int], sizes: list[int] | None = None) -> NDArray[Any]:
    found = np.zeros(len(stamps), CANDIDATE)
    found["entry"] = np.arange(len(stamps)) + 100
    found["stamp"] = stamps
    found["size"] = sizes or [10] * len(stamps)
    return found


# --- rankings ---


def taken(ranking: Ranking, nbytes: int) -> list[int]:
    return [int(entry) - 100 for entry in ranking.take(nbytes)["entry"]]


def test_batches_follow_the_order_and_are_as_small_as_they_can_be() -> None:
    ranking = Ranking(candidates([5, 1, 4, 2, 3], [10, 20, 30, 40, 50]), resolve("lru"))
    assert taken(ranking, 20) == [1]
    assert taken(ranking, 0) == taken(ranking, -1) == []
    assert taken(ranking, 41) == [3, 4]
    exhausted_early = ranking.exhausted
    assert taken(ranking, 1000) == [2, 0]
    assert ranking.exhausted and not exhausted_early
    assert taken(ranking, 1000) == []


def test_a_ranking_covers_no_more_than_it_is_asked_to() -> None:
    ranking = Ranking(candidates([3, 1, 2, 4], [10, 20, 30, 40]), resolve("lru"), cover_bytes=45)
    assert taken(ranking, 10**9) == [1, 2]
    assert ranking.exhausted


@pytest.mark.parametrize("cover", [None, 0, 100])
def test_a_ranking_of_nothing(cover: int | None) -> None:
    ranking = Ranking(candidates([]), resolve("lru"), cover)
    assert ranking.exhausted and len(ranking.take(1)) == 0


def test_what_a_policy_leaves_out_is_never_taken() -> None:
    ranking = Ranking(candidates([1, 2, 3]), resolve(lambda _: [2]))
    assert taken(ranking, 10**9) == [2] and ranking.exhausted


@given(st.lists(st.integers(0, 2**62), max_size=30), st.lists(st.integers(1, 2**63), max_size=30))
def test_all_are_taken_once_in_minimal_batches(sizes: list[int], wishes: list[int]) -> None:
    count = len(sizes)
    sizes = [size % 2**57 for size in sizes]  # the running total stays below 2**64
    ranking = Ranking(candidates(list(range(count)), sizes), resolve("lru"))
    seen: list[int] = []
    for wish in [*wishes, 2**63]:
        batch = taken(ranking, wish)
        got = [sizes[index] for index in batch]
        assert sum(got) >= wish or ranking.exhausted
        assert sum(got[:-1]) < wish
        seen += batch
    assert seen == list(range(count))


# --- limits ---

MIB = 1 << 20
NO_LIMIT_V1 = 9223372036854771712
PREFIX = "11 10 0:1 "


class Fake:
    """A machine made of files: procfs, and cgroups of both versions."""

    def __init__(self, path: Path, total: int = 16000 * MIB, available: int = 8000 * MIB) -> None:
        self.path = path
        self.proc = path / "proc"
        self.mounts: list[str] = []
        self.groups: list[str] = []
        self.write("proc/self/mountinfo", "")
        self.write("proc/self/cgroup", "")
        self.meminfo(total, available)

    def write(self, name: str, text: object) -> None:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"{text}\n")

    def meminfo(self, total: int, available: int) -> None:
        self.write(
            "proc/meminfo",
            f"MemTotal:  {total >> 10} kB\nMemFree: 1 kB\nMemAvailable:  {available >> 10} kB\nBuffers: 2 kB",
        )

    def mount(self, line: str) -> None:
        self.mounts.append(line)
        self.write("proc/self/mountinfo", "\n".join(self.mounts))

    def member_of(self, line: str) -> None:
        self.groups.append(line)
        self.write("proc/self/cgroup", "\n".join(self.groups))

    def v1(
        self, name: str, limit: int, usage: int, inactive: int = 0, hierarchical: int = NO_LIMIT_V1
    ) -> None:
        self.write(f"v1/{name}/memory.limit_in_bytes", limit)
        self.write(f"v1/{name}/memory.usage_in_bytes", usage)
        self.write(
            f"v1/{name}/memory.stat",
            f"cache 5\ninactive_file 999999999999\nhierarchical_memory_limit {hierarchical}\n"
            f"total_inactive_file {inactive}\ntotal_active_file 7",
        )

    def v2(self, name: str, limit: object, usage: int, inactive: int = 0, high: object = "max") -> None:
        self.write(f"v2/{name}/memory.max", limit)
        self.write(f"v2/{name}/memory.high", high)
        self.write(f"v2/{name}/memory.current", usage)
        self.write(f"v2/{name}/memory.stat", f"inactive_file {inactive}\nactive_file 7")

    def mount_v1(self, root: str = "/") -> None:
        self.mount(f"{PREFIX}{root} {self.path}/v1 rw,relatime shared:3 - cgroup cgroup rw,memory")

    def mount_v2(self, root: str = "/") -> None:
        self.mount(f"{PREFIX}{root} {self.path}/v2 rw - cgroup2 cgroup2 rw,nsdelegate")


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


@pytest.fixture
def machine(fake: Fake) -> Iterator[Callable[[], Machine]]:
    """Looks at the fake machine as it is when called; closes what it opened."""
    made: list[Machine] = []

    def look() -> Machine:
        made.append(Machine(str(fake.proc)))
        return made[-1]

    yield look
    for item in made:
        item.close()


def floor(usable: int) -> int:
    return max(usable * 2 // 100, min(256 * MIB, usable // 8))


def test_a_machine_without_cgroups(machine: Callable[[], Machine]) -> None:
    assert machine().usable_memory() == 16000 * MIB
    assert machine().headroom() == 8000 * MIB - 320 * MIB


@pytest.mark.parametrize(
    ("total", "kept"), [(16000, 320), (4096, 256), (1024, 128)], ids=["2 %", "256 MiB", "an eighth"]
)
def test_the_floor(fake: Fake, machine: Callable[[], Machine], total: int, kept: int) -> None:
    fake.meminfo(total * MIB, total * MIB)
    assert machine().headroom() == (total - kept) * MIB


def test_version_1_with_ancestors(fake: Fake, machine: Callable[[], Machine]) -> None:
    fake.mount_v1()
    fake.member_of("5:cpu,cpuacct:/elsewhere")
    fake.member_of("4:memory:/outer/inner")
    fake.v1("outer/inner", NO_LIMIT_V1, 0)
    fake.v1("outer", 1000 * MIB, 900 * MIB, inactive=300 * MIB)
    fake.v1(".", NO_LIMIT_V1, 0)
    assert machine().usable_memory() == 1000 * MIB
    assert machine().headroom() == 400 * MIB - floor(1000 * MIB)
    assert machine().bounds() == [("RAM", 16000 * MIB), (f"the cgroup {fake.path}/v1/outer", 1000 * MIB)]


def test_version_1_with_a_hidden_ancestor(fake: Fake, machine: Callable[[], Machine]) -> None:
    fake.mount_v1(root="/docker/abc")
    fake.member_of("4:memory:/docker/abc")
    fake.v1(".", NO_LIMIT_V1, 100 * MIB, hierarchical=800 * MIB)
    assert machine().usable_memory() == 800 * MIB
    assert machine().headroom() == 700 * MIB - floor(800 * MIB)


def test_version_2_takes_the_tightest_of_all_levels(fake: Fake, machine: Callable[[], Machine]) -> None:
    fake.mount_v2()
    fake.member_of("0::/a/b/c")
    fake.v2("a/b/c", "max", 0)
    fake.v2("a/b", 4000 * MIB, 3000 * MIB, inactive=500 * MIB)
    fake.v2("a", 5000 * MIB, 4900 * MIB, inactive=100 * MIB)
    assert machine().usable_memory() == 4000 * MIB
    assert machine().headroom() == 200 * MIB - floor(4000 * MIB) < 0


def test_version_2_stalls_above_high(fake: Fake, machine: Callable[[], Machine]) -> None:
    fake.mount_v2()
    fake.member_of("0::/a")
    fake.v2("a", 4000 * MIB, 100 * MIB, high=2000 * MIB)
    assert machine().usable_memory() == 2000 * MIB
    assert machine().headroom() == 1900 * MIB - floor(2000 * MIB)


def test_a_cgroup_outside_of_what_a_container_sees(fake: Fake, machine: Callable[[], Machine]) -> None:
    fake.mount_v1(root="/docker/abc")
    fake.member_of("4:memory:/docker/other")
    fake.v1(".", 700 * MIB, 0)
    fake.v1("../other", 1 * MIB, 0)
    assert machine().usable_memory() == 700 * MIB


@pytest.mark.parametrize("path", ["/", "/../.."])
def test_version_2_in_a_cgroup_namespace(fake: Fake, machine: Callable[[], Machine], path: str) -> None:
    fake.mount_v2()
    fake.member_of(f"0::{path}")
    fake.v2(".", 2000 * MIB, 500 * MIB)
    assert machine().usable_memory() == 2000 * MIB


def test_hybrid_mode_finds_the_memory_controller(fake: Fake, machine: Callable[[], Machine]) -> None:
    fake.mount(f"{PREFIX}/ {fake.path}/tmpfs rw - tmpfs tmpfs rw,mode=755")
    fake.mount(f"{PREFIX}/ {fake.path}/cpu rw - cgroup cgroup rw,cpu")
    fake.mount_v1()
    fake.mount_v2()
    fake.member_of("4:memory:/job")
    fake.member_of("1:name=systemd:/")
    fake.member_of("0::/")
    fake.v1("job", 3000 * MIB, 0)
    (fake.path / "v2").mkdir()
    assert machine().usable_memory() == 3000 * MIB


def test_a_mount_point_with_a_blank(tmp_path: Path) -> None:
    fake = Fake(tmp_path / "with blank")
    fake.mount(f"{PREFIX}/ {fake.path}/v2 rw - cgroup2 cgroup2 rw".replace("with blank", r"with\040blank"))
    fake.member_of("0::/a")
    fake.v2("a", 77 * MIB, 0)
    machine = Machine(str(fake.proc))
    assert machine.usable_memory() == 77 * MIB
    machine.close()


def test_limits_are_read_anew_each_time(fake: Fake, machine: Callable[[], Machine]) -> None:
    fake.mount_v2()
    fake.member_of("0::/a")
    fake.v2("a", 4000 * MIB, 0)
    found = machine()
    assert found.usable_memory() == 4000 * MIB
    fake.v2("a", 3000 * MIB, 1000 * MIB)
    fake.meminfo(16000 * MIB, 1500 * MIB)
    assert found.usable_memory() == 3000 * MIB
    assert found.headroom() == 1500 * MIB - floor(3000 * MIB)


def fail(*_: object, **__: object) -> None:
    raise OSError(errno.ENOMEM, "no memory")


def test_what_cannot_be_read_for_a_moment_is_as_it_was(
    fake: Fake, machine: Callable[[], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.mount_v2()
    fake.member_of("0::/a")
    fake.v2("a", 4000 * MIB, 1000 * MIB)
    found = machine()
    before = found.headroom()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", fail)
        assert found.headroom() == before
    fake.v2("a", 3000 * MIB, 1000 * MIB)
    assert found.headroom() == 2000 * MIB - floor(3000 * MIB)


@pytest.mark.parametrize("call", ["os.open", "builtins.open"])
def test_limits_that_cannot_be_found_now_are_not_taken_for_none(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(call, fail)
        with pytest.raises(OSError, match="no memory"):
            Machine(str(fake.proc))
    assert not [fd for fd in os.listdir("/proc/self/fd") if lies_under(fd, fake.path)]


def lies_under(fd: str, directory: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(str(directory))
    except OSError:  # the descriptor that lists the others
        return False


def test_files_that_fail_set_no_limit(
    fake: Fake, machine: Callable[[], Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.mount_v2()
    fake.member_of("0::/a")
    fake.v2("a", 4000 * MIB, 0)
    found = machine()
    gone = {int(fd) for fd in os.listdir("/proc/self/fd") if lies_under(fd, fake.path / "v2")}
    assert len(gone) == 4
    real = os.pread

    def pread(fd: int, length: int, offset: int) -> bytes:
        if fd in gone:
            raise OSError(19, "No such device")
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", pread)
    assert found.usable_memory() == 16000 * MIB
    assert found.headroom() == 8000 * MIB - 320 * MIB


def test_a_forked_child_reads_the_same_files(fake: Fake, machine: Callable[[], Machine]) -> None:
    found = machine()
    before = found.headroom()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if found.headroom() == before else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert found.headroom() == before


def test_this_machine() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    usable = limits.usable_memory()
    assert 0 < usable <= total
    assert limits.default_memory_limit() == int(usable * 0.3)
    assert limits.headroom() < usable


def test_a_tiny_machine_still_gets_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "usable_memory", lambda: 1000)
    assert limits.default_memory_limit() == 1 << 20


def test_headroom_is_cheap_enough_to_ask_before_every_growth() -> None:
    limits.headroom()
    assert min(timeit.repeat(limits.headroom, number=50, repeat=5)) / 50 < 100e-6
