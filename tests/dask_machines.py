"""Two machines, as far as one machine can be two: network namespaces with a Dask worker and a registry each.

A scheduler is beside them. Run it in a network namespace of its own, with a directory as argument.
Prints what was seen, as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import daskjobs
from workers import wait_until

BIG = 200_000
PRELOAD = "millpond.integrations.dask"


def ip(arguments: str) -> None:
    """Changes the network of this namespace."""
    subprocess.run(["ip", *arguments.split()], check=True)


def inside(pid: int, *command: str) -> list[str]:
    """A command in the network of another process."""
    return ["nsenter", "--net", "--target", str(pid), *command]


def machine(number: int) -> subprocess.Popen[bytes]:
    """A namespace with the address 10.0.0.`number`, on the bridge of this one, for as long as its process."""
    process = subprocess.Popen(["unshare", "--net", "sleep", "60"])
    here = os.readlink("/proc/self/ns/net")
    wait_until(lambda: os.readlink(f"/proc/{process.pid}/ns/net") != here)
    ip(f"link add cable{number} type veth peer name cable netns {process.pid}")
    ip(f"link set cable{number} master bridge up")
    for change in (f"address add 10.0.0.{number}/24 dev cable", "link set cable up", "link set lo up"):
        subprocess.run(inside(process.pid, "ip", *change.split()), check=True)
    return process


def worker(
    directory: Path, number: int, scheduler: str, where: subprocess.Popen[bytes]
) -> subprocess.Popen[bytes]:
    """A Dask worker on that machine. Both are to name their stores alike."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler, "--no-nanny", "--no-dashboard"]
    command += ["--nthreads", "1", "--name", str(number), "--preload", PRELOAD, "--store-name", "machines"]
    command += ["--store-memory-limit", "32MiB", "--store-spill-limit", "0"]
    environment = {**os.environ, "MILLPOND_DIR": str(directory / str(number))}
    errors = (directory / f"{number}.log").open("w")
    return subprocess.Popen(inside(where.pid, *command), env=environment, stderr=errors)


def observe(client: Any) -> dict[str, Any]:
    """Moves arrays there and back."""
    one, two = (
        address
        for address, _ in sorted(
            client.scheduler_info()["workers"].items(), key=lambda item: str(item[1]["id"])
        )
    )
    array = client.submit(daskjobs.ones, BIG, workers=one)
    there = client.submit(daskjobs.total, array, workers=two).result()
    made = client.submit(daskjobs.ones, BIG + 1, workers=two)
    back = client.submit(daskjobs.total, made, workers=one).result()
    values = client.run(daskjobs.kept)
    return {
        "hosts": [address.split("//")[1].split(":")[0] for address in (one, two)],
        "totals": [there, back],
        "kept": [values[one], values[two]],
    }


def main(directory: Path) -> None:
    """Makes the machines, lets them work, and prints what was seen."""
    from distributed import Client, LocalCluster

    for change in (
        "link set lo up",
        "link add bridge type bridge",
        "address add 10.0.0.1/24 dev bridge",
        "link set bridge up",
    ):
        ip(change)
    machines: list[subprocess.Popen[bytes]] = []
    workers: list[subprocess.Popen[bytes]] = []
    try:
        machines += [machine(2), machine(3)]
        with (
            LocalCluster(n_workers=0, host="10.0.0.1", dashboard_address=":0") as cluster,
            Client(cluster) as client,
        ):
            scheduler = cluster.scheduler_address
            workers += [worker(directory, n, scheduler, where) for n, where in enumerate(machines, start=2)]
            client.wait_for_workers(2, timeout=30)
            print(json.dumps(observe(client)))
            end(workers)
    finally:
        end(workers + machines)


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Asks them to end, and waits for it."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait(20)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
