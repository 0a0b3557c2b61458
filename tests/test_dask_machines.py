"""Dask workers of several machines: bytes travel between them, and no place in a store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dask_machines

pytest.importorskip("distributed", reason="dask's distributed is not installed")


def networks_can_be_made() -> bool:
    """Whether this process may make network namespaces with a bridge between them."""
    try:
        attempt = ["unshare", "--net", "ip", "link", "add", "bridge", "type", "bridge"]
        return subprocess.run(attempt, stderr=subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        return False


def test_workers_of_two_networks(tmp_path: Path) -> None:
    if not networks_can_be_made():
        pytest.skip("needs unshare and ip (iproute2), and root")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    command = ["unshare", "--net", sys.executable, dask_machines.__file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=55)
    logs = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert done.returncode == 0, done.stderr + logs
    seen = json.loads(done.stdout)
    assert seen["hosts"] == ["10.0.0.2", "10.0.0.3"]
    big = dask_machines.BIG
    assert seen["totals"] == [[big, False], [big + 1, False]]
    (one, held_by_one), (two, held_by_two) = seen["kept"]
    assert one != two, "a store each, of one name"
    assert held_by_one == held_by_two == [1, 1], "each has an object of its own of both arrays"
    assert [list((tmp_path / name).glob("?" * 32)) for name in ("2", "3")] == [[], []]
