"""Kinds of data through every codec: how short they become, how fast they are spilled and restored, and what
compression="auto" chose beside what would have been best.

For each kind 256 MiB in values of 16 MiB (pickled ones: of 16 384 B), in a store with room for all of it, are
spilled by `store.spill()` and restored by `store.prefetch`; rates are bytes of the values per second. zstd is
a codec of the user's kind, made with the package `zstandard` if that is installed. Prints Markdown.

Run: python benchmarks/codecs.py [--data 268435456] [--directory /var/tmp] [--rounds 3] [--kind NAME]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from harness import Timing, figures, machine, markdown, save

import millpond
from millpond.spill.codec import ShuffledLz4
from millpond.spill.frames import LANES
from millpond.spill.writer import SpillWriter

LARGE, SMALL = 16 << 20, 16 << 10


class Zstd:
    """A codec of the user's kind: one that this package does not depend on."""

    name = "zstd"
    number = 128

    def __init__(self) -> None:
        import zstandard

        self._library = zstandard

    def compress(self, frame: memoryview) -> bytes | None:
        """Level 1: the fastest that still finds anything. Compressors are not for several threads."""
        return bytes(self._library.ZstdCompressor(level=1).compress(frame))

    def decompress_into(self, stored: memoryview, frame: memoryview) -> None:
        """Raises ZstdError when it cannot be done."""
        frame[:] = self._library.ZstdDecompressor().decompress(stored, max_output_size=len(frame))


def noise(rng: np.random.Generator) -> Any:
    """Random float64."""
    return rng.random(LARGE // 8)


def field(rng: np.random.Generator) -> Any:
    """A smooth float32 field, as models and cameras give it."""
    side = int((LARGE // 4) ** 0.5)
    x, y = np.meshgrid(np.linspace(0, 9, side), np.linspace(0, 7, side))
    return (np.sin(x + rng.random()) * np.cos(y) + rng.normal(0, 1e-4, (side, side))).astype(np.float32)


def ids(rng: np.random.Generator) -> Any:
    """Sorted int64 ids."""
    return np.sort(rng.integers(0, 1 << 40, LARGE // 8))


def dicts(rng: np.random.Generator) -> Any:
    """Pickled records."""
    return [
        {"id": int(i), "name": f"user{i % 977}", "score": float(i) / 7, "tags": ["red", "pond"]}
        for i in rng.integers(0, 1 << 30, SMALL // 60)
    ]


def text(rng: np.random.Generator) -> Any:
    """English-like words."""
    dice = random.Random(int(rng.integers(1 << 30)))
    words = ["".join(dice.choices("etaoinshrdlu", k=dice.randrange(2, 9))) for _ in range(4000)]
    return " ".join(dice.choices(words, k=LARGE // 6))[: LARGE - 100]


KINDS: dict[str, Callable[[np.random.Generator], Any]] = {
    "random f64": noise,
    "smooth f32 field": field,
    "sorted i64 ids": ids,
    "pickled dicts": dicts,
    "text": text,
}


class Kind:
    """The same values through one store, with codecs in turns."""

    def __init__(self, store: millpond.Store, make: Callable[[np.random.Generator], Any], data: int) -> None:
        self._store = store
        self._values = [make(np.random.default_rng(i)) for i in range(8)]
        first = store.put(self._values[0])
        self._count = max(8, data // first.size)
        self.ratio: dict[str, float] = {}

    def measure(self, name: str, codec: Any) -> tuple[Callable[[], float], Callable[[], float]]:
        """Two figures: bytes per second of spilling, and of restoring what that wrote."""
        refs: list[millpond.ObjectRef] = []
        nbytes = 0

        def spill() -> float:
            nonlocal nbytes
            refs[:] = [self._store.put(self._values[i % 8]) for i in range(self._count)]
            nbytes = sum(ref.size for ref in refs)
            _use(self._store, codec)
            start = time.perf_counter()
            self._store.spill(refs)
            seconds = time.perf_counter() - start
            self.ratio[name] = nbytes / self._store.stats().disk_bytes
            return nbytes / seconds

        def restore() -> float:
            before = self._store._totals()["restored_objects_total"]
            start = time.perf_counter()
            self._store.prefetch(refs)  # restores as a get of the list does, but loads nothing
            while self._store._totals()["restored_objects_total"] < before + len(refs):
                time.sleep(0.0002)
            seconds = time.perf_counter() - start
            values = self._store.get(refs[:16])
            good = all(map(_same, values, (self._values[i % 8] for i in range(16))))
            assert good, f"{name} came back wrong"
            del values
            refs.clear()
            self._settle()
            return nbytes / seconds

        return spill, restore

    def _settle(self) -> None:
        deadline = time.monotonic() + 10
        while self._store.stats().disk_bytes and time.monotonic() < deadline:
            time.sleep(0.02)


def _use(store: millpond.Store, codec: Any) -> None:
    if isinstance(codec, ShuffledLz4):  # by itself it has no name for users: `auto` uses it
        assert store._writer is not None
        store._writer.codec = codec
    else:
        store.configure(compression=codec)


def _same(one: Any, other: Any) -> bool:
    return np.array_equal(one, other) if isinstance(other, np.ndarray) else one == other


def codecs_for(value: Any) -> dict[str, Any]:
    """Names and what to configure."""
    item = value.dtype.itemsize if isinstance(value, np.ndarray) else 1
    found: dict[str, Any] = {"none": "none", "lz4": "lz4"}
    if item > 1:
        found["lz4+shuffle"] = ShuffledLz4(item)
    found["auto"] = "auto"
    with suppress(ImportError):
        found["zstd"] = Zstd()
    return found


def measure(name: str, args: argparse.Namespace, directory: str) -> tuple[list[list[str]], dict[str, Any]]:
    """Rows of the table for one kind."""
    with millpond.Store(memory_limit=3 * args.data, spill_dir=directory) as store:
        store._janitor.stop()  # it would set the codec from the table each second
        kind = Kind(store, KINDS[name], args.data)
        contestants: dict[str, Callable[[], float]] = {}
        codecs = codecs_for(kind._values[0])
        for codec_name, codec in codecs.items():
            spill, restore = kind.measure(codec_name, codec)
            contestants |= {f"{codec_name} spill": spill, f"{codec_name} restore": restore}
        kind.measure("warm", "none")[0]()  # the arena, and the disk's speed for `auto`
        rates = figures(contestants, args.rounds)
        assert isinstance(store._writer, SpillWriter)
    median = {what: Timing.of(samples).median / 1e9 for what, samples in rates.items()}
    best = max((c for c in codecs if c not in ("auto", "zstd")), key=lambda c: median[f"{c} spill"])
    rows = []
    for codec_name in codecs:
        spill_rate, restore_rate = median[f"{codec_name} spill"], median[f"{codec_name} restore"]
        remark = ""
        if codec_name == "auto":
            share = spill_rate / median[f"{best} spill"]
            remark = f"{_choice(kind, codecs)}; best was {best}, {share:.2f} of it"
        rows.append(
            [
                name,
                codec_name,
                f"{kind.ratio[codec_name]:.2f}",
                f"{spill_rate:.2f}",
                f"{restore_rate:.2f}",
                remark,
            ]
        )
    return rows, {"rates": rates, "ratio": kind.ratio}


def _choice(kind: Kind, codecs: dict[str, Any]) -> str:
    """What auto did, by how long the records became."""
    return "chose " + min(
        (name for name in codecs if name not in ("auto", "zstd")),
        key=lambda name: abs(kind.ratio[name] - kind.ratio["auto"]),
    )


def main() -> None:
    """Measures one kind after the other, the codecs in alternating rounds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=int, default=256 << 20)
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", choices=KINDS)
    args = parser.parse_args()
    rows: list[list[str]] = []
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=args.directory, prefix="millpond-bench-") as directory:
        for name in [args.kind] if args.kind else KINDS:
            more, results[name] = measure(name, args, directory)
            rows += more
    print(markdown(["data", "codec", "ratio", "spill, GB/s", "restore, GB/s", "auto"], rows))
    print(
        f"\nFrames in {LANES} threads; " + ", ".join(f"{name} {value}" for name, value in machine().items())
    )
    print(f"saved to {save('codecs', results)}")


if __name__ == "__main__":
    main()
