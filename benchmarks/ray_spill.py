"""The same noise through Ray's object store. Runs in a Python that has Ray, not in Millpond's own.

Prints one line of JSON per round: {"version", "seconds", "spilled"}; `spilled` are the bytes that Ray
says it has written. A round starts when a line comes in on standard input, and the process ends with it.

Run by spill.py: python benchmarks/spill.py --ray /path/to/python
"""

from __future__ import annotations

import json
import re
import sys
import time

import numpy as np
import ray
from ray._private.internal_api import memory_summary


def spilled_bytes(address: str) -> int:
    """Since Ray was started, as `ray memory --stats-only` shows it."""
    text = memory_summary(address, stats_only=True)
    found = re.search(r"Spilled (\d+) MiB", text)
    return int(found[1]) << 20 if found else 0


def main(data: int, memory: int, array_bytes: int, directory: str) -> None:
    """One round per line of standard input."""
    context = ray.init(
        object_store_memory=memory,
        object_spilling_directory=directory,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    address = context.address_info["gcs_address"]
    arrays = [
        np.random.default_rng(i).integers(0, 2**64, array_bytes // 8, dtype=np.uint64) for i in range(4)
    ]
    refs = [ray.put(arrays[i % 4]) for i in range(data // array_bytes)]  # warms the store
    for _ in sys.stdin:
        refs.clear()
        time.sleep(2)  # Ray removes files in the background
        before = spilled_bytes(address)
        start = time.perf_counter()
        for i in range(data // array_bytes):
            refs.append(ray.put(arrays[i % 4]))
        seconds = time.perf_counter() - start
        figures = {
            "version": ray.__version__,
            "seconds": seconds,
            "spilled": spilled_bytes(address) - before,
        }
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4])
