"""Ten processes read one array of 80 MB; only one copy of it exists.

Run: python examples/share_array.py
"""

from __future__ import annotations

import multiprocessing

import numpy as np
import psutil

import millpond

READERS = 10


def read(ref: millpond.ObjectRef, answers: multiprocessing.Queue) -> None:
    """Reads all of the array; answers with its sum and with how much private memory that took."""
    process = psutil.Process()
    before = process.memory_full_info().uss
    array = ref.get()
    total = array.sum()
    answers.put((float(total), process.memory_full_info().uss - before))


def main() -> None:
    """Stores the array once and starts the readers."""
    array = np.arange(10_000_000, dtype=np.float64)
    context = multiprocessing.get_context("spawn")
    with millpond.Store(memory_limit="256MiB") as store:
        ref = store.put(array)
        answers = context.Queue()
        readers = [context.Process(target=read, args=(ref, answers)) for _ in range(READERS)]
        for reader in readers:
            reader.start()
        results = [answers.get() for _ in readers]
        for reader in readers:
            reader.join()
    assert all(total == array.sum() for total, _ in results)
    grown = sum(growth for _, growth in results)
    print(f"{READERS} readers, {READERS * array.nbytes / 1e6:.0f} MB read, {grown / 1e6:.1f} MB private")


if __name__ == "__main__":
    main()
