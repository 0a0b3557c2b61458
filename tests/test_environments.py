"""Programs under limits and in places where something usual is missing: they work, or get a typed error."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys, resource
import numpy as np
import millpond
{before}
try:
    with millpond.Store("8MiB", spill_dir={spill_dir!r}) as store:
        refs = [store.put(np.full(125_000, i)) for i in range(20)]
        assert [int(ref.get()[7]) for ref in refs] == list(range(20))
        print("done", store.stats().spilled_objects_total > 0, store.check())
except millpond.MillpondError as error:
    print(f"{{type(error).__name__}}: {{error}}")
"""


def run(
    tmp_path: Path, *around: str, before: str = "", spill_dir: str | None = None, **environment: str
) -> str:
    """What the program says that works with a store, started by the command `around`."""
    registry = tmp_path / "registry"
    registry.mkdir(0o700, exist_ok=True)
    registry.chmod(0o700)
    done = subprocess.run(
        [*around, sys.executable, "-c", PROGRAM.format(before=before, spill_dir=spill_dir)],
        env={**os.environ, "MILLPOND_DIR": str(registry), "OPENBLAS_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def mounted(command: str) -> list[str]:
    """Starts a program in a mount namespace of its own, after `command`; skips where that is not allowed."""
    unshare = ["unshare", "-m", "sh", "-ec"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], check=False).returncode != 0:
        pytest.skip("this user makes no mount namespaces")
    return [*unshare, f'{command}; exec "$0" "$@"']


WORKS = "done True []"


def test_a_shm_of_one_page(tmp_path: Path) -> None:
    """The arena is no file of a mount: Docker's 64 MB, or nothing at all, do not matter."""
    assert run(tmp_path, *mounted("mount -t tmpfs -o size=4k none /dev/shm")) == WORKS


def test_without_proc(tmp_path: Path) -> None:
    said = run(tmp_path, *mounted("mount -t tmpfs none /proc"))
    assert said.startswith("AttachError: /proc/") and "mount it" in said


def test_a_registry_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir(0o700)
    path = f"'{tmp_path}/registry'"
    said = run(tmp_path, *mounted(f"mount --bind {path} {path}; mount -o remount,ro,bind {path}"))
    assert said.startswith("AttachError: the registry") and "Read-only" in said and "MILLPOND_DIR" in said


def test_no_temporary_directory(tmp_path: Path) -> None:
    """Where a spill directory is named, nothing else must be writable."""
    spill = tmp_path / "spill"
    hidden = "; ".join(
        f"mount -t tmpfs -o ro none {path}" for path in ("/var/tmp", "/usr/tmp") if os.path.isdir(path)
    )
    before = "import tempfile; tempfile._candidate_tempdir_list = lambda: ['/proc']"
    assert run(tmp_path, *mounted(hidden), before=before, spill_dir=str(spill)) == WORKS


def test_a_full_spill_directory(tmp_path: Path) -> None:
    spill = tmp_path / "spill"
    spill.mkdir()
    said = run(tmp_path, *mounted(f"mount -t tmpfs -o size=8m none '{spill}'"), spill_dir=str(spill))
    assert said.startswith("StoreFullError: no room for") and "MiB" in said and "Free disk space" in said


def test_where_nothing_is_as_usual(tmp_path: Path) -> None:
    """A working directory that is gone, no home, an ASCII locale, bytes in paths that are no text."""
    gone = tmp_path / "gone"
    gone.mkdir()
    registry = os.fsdecode(os.fsencode(tmp_path) + b"/r\xff\xe9g")
    said = run(
        tmp_path,
        *("env", "-u", "HOME", "sh", "-ec", 'cd "$1"; rmdir "$1"; shift; exec "$@"', "sh", str(gone)),
        spill_dir=os.fsdecode(os.fsencode(tmp_path) + b"/s\xff\xe9p"),
        MILLPOND_DIR=registry,
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
        TMPDIR=f"{tmp_path}/{'long' * 50}",
    )
    assert said == WORKS


EVERY_LIMIT = """
import os, pickle, resource, sys
import numpy as np
import millpond
with millpond.Store("4MiB") as store:  # what is opened once
    store.put(1).get()
first = len(os.listdir("/proc/self/fd"))
outcomes = []
for limit in range(first - 1, first + 30):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, 4096))
    try:
        with millpond.Store("4MiB") as store:
            refs = [store.put(np.full(125_000, i)) for i in range(8)]
            assert [int(ref.get()[7]) for ref in refs] == list(range(8))
        outcomes.append("done")
    except millpond.MillpondError as error:
        outcomes.append(type(error).__name__)
print(*dict.fromkeys(outcomes))
"""


def test_every_limit_on_open_files(tmp_path: Path) -> None:
    """Wherever the descriptors end, in the middle of creating a store too, the error is typed."""
    said = subprocess.run(
        [sys.executable, "-c", EVERY_LIMIT],
        env={**os.environ, "MILLPOND_DIR": str(tmp_path / "registry")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith("AttachError") and said.stdout.endswith("done\n"), said.stdout


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("NOFILE, (32, 32)", WORKS),
        ("NOFILE, (10, 10)", "AttachError: .*Too many open files.*ulimit -n"),
        ("FSIZE, (1 << 20,) * 2", "AttachError: .*File too large.*ulimit -f"),
        ("AS, (1 << 30,) * 2", "AttachError: .*Cannot allocate memory.*ulimit -v"),
        ("MEMLOCK, (0, 0)", WORKS),
        ("CORE, (0, 0)", WORKS),
    ],
)
def test_limits(tmp_path: Path, limit: str, expected: str) -> None:
    said = run(tmp_path, before=f"resource.setrlimit(resource.RLIMIT_{limit})")
    assert said == expected if expected == WORKS else re.match(expected, said), said


IN_USE = """
import resource
import numpy as np
import millpond
with millpond.Store("8MiB", spill_dir={spill_dir!r}) as store:
    refs = [store.put(np.full(125_000, i)) for i in range(6)]
    before = resource.getrlimit(resource.RLIMIT_{limit})
    used = 4096 * int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_{limit}, ({to}, before[1]))
    said = set()
    for i in range(6, 30):
        try:
            refs.append(store.put(np.full(125_000, i)))
        except millpond.MillpondError as error:
            said.add(str(error))
            refs.append(None)
    resource.setrlimit(resource.RLIMIT_{limit}, before)
    refs.append(store.put(np.full(125_000, 30)))
    assert all(ref is None or ref.get(copy=True)[0] == i for i, ref in enumerate(refs))
    print(store.check(), bool(said), *said)
"""


@pytest.mark.parametrize(
    ("limit", "to", "expected"),
    [("AS", "used + (2 << 20)", "private memory .*ulimit -v"), ("FSIZE", "1 << 20", "File too large")],
)
def test_limits_in_use(tmp_path: Path, limit: str, to: str, expected: str) -> None:
    """What is refused under a limit is an error that names it; nothing is lost, and it works again later."""
    program = IN_USE.format(limit=limit, to=to, spill_dir=str(tmp_path / "spill"))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "MILLPOND_DIR": str(tmp_path / "registry"), "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[] ") and re.search(expected, done.stdout + done.stderr), done.stdout
