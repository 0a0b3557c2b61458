"""Putting a large array, beside the copy that it cannot do without; building one in place.

`put` is measured in the steady state (this process has put and dropped that size before), and once in fresh
memory. The floor is np.copyto into warm memory. `create` and `seal` copy nothing: their time must not depend
on the size. The last rows are what starting costs: `import millpond` beside `import numpy`, in new processes.
Prints Markdown.

Run: python benchmarks/large.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import numpy as np
from harness import Timing, machine, markdown, race, save, timings

import millpond

PUT_BYTES = 100 << 20
BUILD_BYTES = (1_000, 1_000_000, 100_000_000, 1_000_000_000)


def time_put(store: millpond.Store, array: np.ndarray) -> float:
    """Seconds of one put; the object is dropped at once."""
    start = time.perf_counter()
    ref = store.put(array)
    taken = time.perf_counter() - start
    del ref
    return taken


def puts(store: millpond.Store, rounds: int) -> dict[str, Timing]:
    """Put and copyto in turns."""
    array = np.random.default_rng(0).random(PUT_BYTES // 8)
    target = np.empty_like(array)

    def copy() -> float:
        start = time.perf_counter()
        np.copyto(target, array)
        return time.perf_counter() - start

    first = time_put(store, array)
    for _ in range(2):
        copy()
        time_put(store, array)
    timed = timings({"put": lambda: time_put(store, array), "copyto": copy}, rounds)
    return {**timed, "first put": Timing.of([first])}


def build(store: millpond.Store, nbytes: int) -> None:
    """A draft that is sealed, and dropped; filling it is the user's time, not ours."""
    with store.create(nbytes // 8, np.float64) as draft:
        draft.seal()


def start(module: str) -> float:
    """Seconds of a process that imports it and ends."""
    before = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - before


def main() -> None:
    """Prints one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    with millpond.Store("3GiB", spill_limit=0) as store:
        put = puts(store, args.rounds)
        for nbytes in BUILD_BYTES:
            build(store, nbytes)  # warm
        built = race({f"{nbytes:,}": lambda nbytes=nbytes: build(store, nbytes) for nbytes in BUILD_BYTES})
    starts = timings({name: lambda name=name: start(name) for name in ("numpy", "millpond")}, args.rounds)
    rows = [
        [
            f"put {PUT_BYTES >> 20} MiB, steady",
            rate(put["put"]),
            f"{put['copyto'].median / put['put'].median:.2f} of copyto",
        ],
        ["np.copyto into warm memory", rate(put["copyto"]), ""],
        ["first put, fresh memory", rate(put["first put"]), ""],
        *(
            [f"create and seal, {size} B", f"{timing.median * 1e6:.1f} us", ""]
            for size, timing in built.items()
        ),
        ["import numpy", f"{starts['numpy'].median * 1e3:.0f} ms", ""],
        [
            "import millpond",
            f"{starts['millpond'].median * 1e3:.0f} ms",
            f"{starts['millpond'].median / starts['numpy'].median:.2f} times numpy",
        ],
    ]
    print(markdown(["", "median", "ratio"], rows))
    print("\n" + ", ".join(f"{name} {text}" for name, text in machine().items()))
    print(f"saved to {save('large', {'put': put, 'build': built, 'import': starts})}")


def rate(timing: Timing) -> str:
    """GB/s of a put: median, slowest and fastest."""
    median, slow, fast = (PUT_BYTES / seconds / 1e9 for seconds in (timing.median, timing.high, timing.low))
    return f"{median:.1f} ({slow:.1f}-{fast:.1f}) GB/s"


if __name__ == "__main__":
    main()
