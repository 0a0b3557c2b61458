"""The process that keeps a store for Plasma's clients: its start, its command, its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from millpond.integrations import plasma
from millpond.integrations.plasma import keeper
from workers import wait_until


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLPOND_DIR", str(tmp_path / "registry"))


def test_start_plasma_store(registry: None, tmp_path: Path) -> None:
    with plasma.start_plasma_store(10_000_000) as (name, process):
        client = plasma.connect(name)
        assert client.store_capacity() == 10_000_000 and client.store_socket_name == name
        key = client.put(np.arange(1000))
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert client.get(key)[-1] == 999, "clients keep the store"
        client.disconnect()
    with pytest.raises(OSError, match=name):
        plasma.connect(name, num_retries=1)
    with plasma.start_plasma_store(3_000_000, external_store=f"file://{tmp_path}/spill") as (name, process):
        client = plasma.connect(name)
        keys = [client.put(np.full(100_000, n)) for n in range(10)]
        assert [int(client.get(key)[5]) for key in keys] == list(range(10))
        assert list((tmp_path / "spill").rglob("*.seg"))
        client.disconnect()
    with pytest.raises(RuntimeError, match="0 bytes"), plasma.start_plasma_store(0):
        pass


def test_the_command(registry: None, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "millpond.integrations.plasma",
        "-s",
        f"{tmp_path}/plasma",
        "-m",
        "5000000",
    ]
    with subprocess.Popen([*command, "-d", "/dev/shm", "-h"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "ready\n"
        client = plasma.connect(f"{tmp_path}/plasma")
        assert client.get(client.put("x")) == "x"
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "taken" in done.stderr
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
        client.disconnect()


def test_the_keeper_ends_with_its_parent(registry: None, tmp_path: Path) -> None:
    program = """
import os
from millpond.integrations import plasma
context = plasma.start_plasma_store(5_000_000)
_, process = context.__enter__()
print(process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    wait_until(lambda: not os.path.exists(f"/proc/{int(done.stdout)}"))


def test_names_of_stores(tmp_path: Path) -> None:
    assert keeper.store_name("name") == "name" and keeper.store_name(str(tmp_path)) == str(tmp_path)
    assert keeper.store_name("/tmp/plasma") == "plasma at /tmp/plasma"
