"""The commands, run as users run them: as programs, judged by exit status and output."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import millpond

HOLDER = """
import sys, time, millpond, numpy as np
store = millpond.Store(memory_limit="8MiB", name="doomed", spill_dir=sys.argv[1])
refs = [store.put(np.zeros(1 << 20, "u1")) for _ in range(16)]
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of this test's own, for this process and its children."""
    path = tmp_path / "registry"
    monkeypatch.setenv("MILLPOND_DIR", str(path))
    return path


@pytest.fixture
def store() -> Iterator[millpond.Store]:
    with millpond.Store(memory_limit="16MiB", name="shown") as store:
        yield store


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "millpond.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=55,
    )


def output(*arguments: str) -> str:
    done = command(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_without_a_command() -> None:
    bare = command()
    assert bare.returncode == 2 and bare.stdout == output("--help") and "objects of a store" in bare.stdout
    assert "argument COMMAND: invalid choice: 'shwo'" in command("shwo").stderr


def test_no_store() -> None:
    done = command("stats")
    assert done.returncode == 2
    assert "no store" in done.stderr
    assert output("ls").count("\n") == 1


def test_unknown_store(store: millpond.Store) -> None:
    done = command("stats", "elsewhere")
    assert done.returncode == 2
    assert "elsewhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_several_stores(store: millpond.Store) -> None:
    with millpond.Store(memory_limit="1MiB", name="second"):
        done = command("stats")
        assert done.returncode == 2
        assert "shown" in done.stderr
        assert "second" in done.stderr
        assert json.loads(output("stats", "second", "--json"))["memory_limit"] == 1 << 20
        assert json.loads(output("stats", store.address, "--json"))["memory_limit"] == 16 << 20


def test_stats(store: millpond.Store) -> None:
    ref = store.put(np.zeros(100_000))
    stats = json.loads(output("stats", "--json"))
    assert stats["objects"] == 1
    assert stats["memory_bytes"] == ref.size == store.stats().memory_bytes
    assert stats["members"] == 2
    assert stats["live_bytes"] + stats["warm_bytes"] == stats["committed_bytes"]
    assert stats["over_limit"] is False
    assert "16 MiB" in output("stats")


def test_ls(store: millpond.Store) -> None:
    assert "shown" in output("ls")
    assert store.address in output("ls")


def test_objects(store: millpond.Store) -> None:
    refs = [store.put(np.zeros(size, "u1"), name=f"n{size}") for size in (10_000, 30_000, 20_000)]
    listed = json.loads(output("objects", "--json"))
    assert [each["name"] for each in listed] == ["n30000", "n20000", "n10000"]
    assert {each["id"] for each in listed} == {ref.id for ref in refs}
    assert [each["holders"] for each in listed] == [1, 1, 1]
    assert [each["name"] for each in json.loads(output("objects", "--sort", "age", "--json"))] == [
        "n10000",
        "n30000",
        "n20000",
    ]
    table = output("objects", "shown", "--limit", "2")
    assert "n30000" in table
    assert "n10000" not in table
    assert "2 of 3 objects" in table


def test_check(store: millpond.Store) -> None:
    store.put(b"x")
    assert output("check") == "sound\n"


def test_gc(tmp_path: Path, registry: Path) -> None:
    spill = tmp_path / "spill"
    spill.mkdir()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(spill)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder, holder.stdout:
        assert holder.stdout.readline() == "ready\n"
        assert list(spill.rglob("*.seg")), "the test needs a spill file to be left"
        output("gc")
        assert list(spill.rglob("*.seg")), "a living store was swept"
        holder.send_signal(signal.SIGKILL)
    assert str(spill) in output("gc")
    assert not list(spill.rglob("*.seg"))
    assert "nothing" in output("gc")


def test_output_that_nobody_reads(store: millpond.Store) -> None:
    script = f"{sys.executable} -m millpond.cli.main objects --json | head -c 0"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True, timeout=50
    )
    assert done.stderr == ""


def test_demo() -> None:
    lines = output("demo").splitlines()
    assert sum(line.startswith("reader ") for line in lines) == 10
    assert "Nothing was copied." in lines
    assert "Every byte came back." in lines


@pytest.mark.parametrize("options", [(), ("--kill",), ("--compression", "lz4", "--kill")], ids=" ".join)
def test_stress(options: tuple[str, ...], tmp_path: Path, registry: Path) -> None:
    sizes = ("--memory", "64MiB", "--data", "192MiB", "--processes", "2", "--seconds", "4", "--seed", "7")
    report = output("stress", *sizes, *options, "--spill-dir", str(tmp_path))
    assert report.splitlines()[-1] == "sound"
    assert list(tmp_path.glob("millpond-*/*")) == list(registry.glob("*/*")) == []
    kills = re.search(r"kill -9\s+(\d+)", report)
    assert kills is not None
    assert (int(kills[1]) > 0) == ("--kill" in options)


def test_stress_refuses_nonsense() -> None:
    for wrong in (("--memory", "lots"), ("--processes", "0"), ("--seconds", "-1"), ("--compression", "rar")):
        done = command("stress", *wrong)
        assert done.returncode == 2
        assert wrong[0] in done.stderr


def test_version() -> None:
    assert output("--version").startswith("millpond 0.")


def test_who_keeps_an_object(store: millpond.Store) -> None:
    """Refs, views, containers, hand-offs and names, each with its process."""
    inner = store.put(np.arange(1000), name="kept")
    outer = store.put([inner])
    view, data = inner.get(), inner.export(deliveries=2, timeout=300)
    [line] = [
        line for line in output("objects", "--holders").splitlines() if line.startswith(f"{inner.id}: ")
    ]
    me = f"{os.getpid()} ("
    for part in (
        f"ref in {me}",
        f"view in {me}",
        f"contained in {outer.id}",
        f"hand-off of {os.getpid()}, ",
        "2 left",
        "name 'kept'",
    ):
        assert part in line
    del view
    assert millpond.load_ref(data) == millpond.load_ref(data)


def test_configure(store: millpond.Store) -> None:
    """All that can be changed, for the store that runs; words stand for no limit and for the defaults."""
    changes = ("--memory-limit", "4MiB", "--spill-limit", "1GiB", "--overflow-limit", "2MiB")
    assert "4 MiB" in output("configure", "shown", *changes, "--eviction", "sieve", "--compression", "lz4")
    totals = store._totals()
    assert [totals[key] >> 20 for key in ("memory_limit", "spill_limit", "overflow_limit")] == [4, 1024, 2]
    assert (store.stats().eviction, store.stats().compression) == ("sieve", "lz4")
    output("configure", "--spill-limit", "none", "--memory-limit", "default")
    assert store.stats().spill_limit is None
    assert store.memory_limit > 16 << 20
    assert store.stats().eviction == "sieve", "what is not named stays"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--memory-limit, --spill-limit, --overflow-limit, --compression, --eviction"),
        (("--memory-limit", "much"), "'much' is not a number of bytes"),
        (("--spill-limit", "30%"), "no total"),
        (("--eviction", "fifo"), "invalid choice: 'fifo'"),
    ],
    ids=["nothing", "no number", "share of a disk", "no policy"],
)
def test_configure_refuses(store: millpond.Store, arguments: tuple[str, ...], says: str) -> None:
    done = command("configure", *arguments)
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr
