"""Ten workers of a process pool read one array of 80 MB; it is put once, and no worker has a copy.

Run: python examples/executor.py
"""

from __future__ import annotations

import itertools

import numpy as np

from millpond.integrations.executor import ProcessPoolExecutor

WORKERS = 10


def total(array: np.ndarray, start: int) -> tuple[float, bool]:
    """The sum of every tenth number, and whether the array is this worker's own."""
    return float(array[start::WORKERS].sum()), array.flags.owndata


def main() -> None:
    """Puts the array, and gives each worker its ref."""
    array = np.arange(10_000_000, dtype=np.float64)
    with ProcessPoolExecutor(WORKERS) as executor:
        ref = executor.store.put(array)
        parts = list(executor.map(total, itertools.repeat(ref), range(WORKERS)))
    assert sum(part for part, _ in parts) == array.sum()
    copies = sum(own for _, own in parts)
    print(f"{WORKERS} workers added up {array.nbytes / 1e6:.0f} MB, {copies} copies")


if __name__ == "__main__":
    main()
