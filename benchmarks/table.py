"""The bars that Millpond is held to, from the results of the other benchmarks: one Markdown table.

Each row: what is measured and its bar in one line, the figure, the floor or limit beside it from the
same run, and whether the bar is met, else the distance. What has no results in benchmarks/results says which
program makes them. With --write, the table replaces what stands between its two markers in a page; so does
every table of shown.py whose benchmark has run, with its date and machine.

Run: python benchmarks/table.py [--write docs/performance.md]   (make bench and make bench-peers end with it)
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from harness import RESULTS, markdown, ratios
from shown import TABLES

COUNT_RECORDS, RECORD_BYTES = 30_000, 20_000
LARGEST_SHARE = 0.01


class Bar(NamedTuple):
    """One row. `value` is compared with `bar`; `least`: it must not be below it, else not above."""

    value: float
    bar: float
    least: bool
    figure: str
    floor: str

    @property
    def verdict(self) -> str:
        """ "met", or by how much it is missed."""
        good = self.value >= self.bar if self.least else self.value <= self.bar
        if good:
            return f"met: {self.value:.3g}"
        if self.bar == 0:
            return f"**missed**: {self.value:.3g} instead of 0"
        return f"**missed** by {abs(self.value / self.bar - 1):.0%}: {self.value:.3g}"


class Results:
    """What the benchmarks have left, by name; KeyError names the program that has not run."""

    def __init__(self, directory: Path = RESULTS) -> None:
        self._directory = directory
        self.machines: list[dict[str, str]] = []

    def __getitem__(self, name: str) -> Any:
        path = self._directory / f"{name}.json"
        if not path.exists():
            raise KeyError(name)
        found = json.loads(path.read_text())
        self.machines.append(found["machine"])
        return found["results"]


def us(timing: dict[str, float]) -> str:
    """Microseconds, with the fastest and the slowest round."""
    return "{:.3g} ({:.3g}-{:.3g}) us".format(*(timing[key] * 1e6 for key in ("median", "low", "high")))


def rate(samples: list[float]) -> str:
    """GB/s, median."""
    return f"{median(samples) / 1e9:.2f} GB/s"


def over(work: str) -> Callable[[Results], Bar]:
    """A small dict, beside LMDB."""

    def row(results: Results) -> Bar:
        found = results["small"][f"{work} dict"]
        ours, lmdb = found["millpond"], found["lmdb"]
        floor = f"LMDB {us(lmdb)}, pickle alone {us(found['pickle'])}"
        return Bar(lmdb["median"] / ours["median"], 1.0, True, us(ours), floor)

    return row


def over_ray(work: str, bar: float) -> Callable[[Results], Bar]:
    """The same work by Ray, in the run of `make bench-peers`."""

    def row(results: Results) -> Bar:
        found = results["peers"]["times"][work]
        ours, ray = found["millpond"], found["ray"]
        return Bar(ray["median"] / ours["median"], bar, True, us(ours), f"Ray {us(ray)}")

    return row


def array_get(results: Results) -> Bar:
    """The worst size counts."""
    sizes = {name: found for name, found in results["small"].items() if name.startswith("get array")}
    shares = {
        name: found["millpond"]["median"] / found["frombuffer"]["median"] for name, found in sizes.items()
    }
    worst = max(shares, key=lambda name: shares[name])
    ours, floor = sizes[worst]["millpond"], sizes[worst]["frombuffer"]
    return Bar(shares[worst], 0.5, False, f"{us(ours)}, {worst[4:]}", f"frombuffer and reshape {us(floor)}")


def array_get_alike(results: Results) -> Bar:
    """The slowest size over the fastest."""
    medians = {
        name: found["millpond"]["median"]
        for name, found in results["small"].items()
        if name.startswith("get array")
    }
    low, high = min(medians.values()), max(medians.values())
    return Bar(high / low, 1.25, False, f"{low * 1e6:.3g} to {high * 1e6:.3g} us", f"{len(medians)} sizes")


def large_put(results: Results) -> Bar:
    """Ratio of medians of alternating rounds."""
    put = results["large"]["put"]
    ours, copy = put["put"]["median"], put["copyto"]["median"]
    return Bar(copy / ours, 0.9, True, f"{ours * 1e3:.2f} ms", f"np.copyto {copy * 1e3:.2f} ms")


def build(results: Results) -> Bar:
    """1 GB over 1 KB."""
    built = list(results["large"]["build"].values())
    small, large = built[0]["median"], built[-1]["median"]
    return Bar(large / small, 1.5, False, f"{large * 1e6:.1f} us", f"1 KB {small * 1e6:.1f} us")


def disk(ours: str, plain: str) -> Callable[[Results], Bar]:
    """Beside the disk, the median of the ratios of each round."""

    def row(results: Results) -> Bar:
        found = results["spill"]
        share = median(ratios(found[ours], found[plain]))
        return Bar(share, 0.85, True, rate(found[ours]), f"the disk {rate(found[plain])}")

    return row


def records(results: Results) -> Bar:
    """The copy and the disk's own time for what was written, over what the puts took."""
    found = results["spill"]
    limits = [
        seconds + nbytes / speed
        for seconds, nbytes, speed in zip(
            found["20 KB copy"], found["20 KB to disk"], found["disk write, beside records"], strict=True
        )
    ]
    ours = found["20 KB"]
    share = median(ratios(limits, ours))
    return Bar(
        share,
        0.7,
        True,
        f"{COUNT_RECORDS / median(ours):,.0f} /s",
        f"{COUNT_RECORDS / median(limits):,.0f} /s",
    )


def respilled(results: Results) -> Bar:
    """The worst round."""
    most = max(results["spill"]["written again"])
    return Bar(most, 0.0, False, f"{most:.0f} B", "")


def among(value: str, bar: float) -> Callable[[Results], Bar]:
    """Random gets among many over the same among few; beside them what the caches alone make of it."""

    def row(results: Results) -> Bar:
        found = results["scale"]["access"][value]
        few, *_, many = (name.split(", ", 1)[1] for name in found if name.startswith("get"))

        def grows(what: str) -> float:
            return float(found[f"{what}, {many}"]["median"] / found[f"{what}, {few}"]["median"])

        floors = ", ".join(f"{where} {grows(where):.2f}" for where in ("from a dict", "from a list"))
        beside = f"the same without a store, times: {floors}"
        return Bar(grows("get"), bar, False, us(found[f"get, {many}"]), beside)

    return row


def two_processes(results: Results) -> Bar:
    """How much more two do than one, with a store and without."""
    found = {name: timing["median"] for name, timing in results["scale"]["processes"].items()}
    store, private = found["store, 2"], found["private, 2"]
    alone = ", ".join(f"{name} {found[f'{name}, 2']:.2f}" for name in ("gets only", "puts only"))
    beside = f"without a store {private:.2f} times one; {alone}"
    return Bar(store / private, 0.9, True, f"{store:.2f} times one", beside)


def overhead(results: Results) -> Bar:
    """Table and rounding, per object."""
    nbytes = results["scale"]["overhead"]
    return Bar(nbytes, 256, False, f"{nbytes:.0f} B", "")


def readers(results: Results) -> Bar:
    """Growth of PSS, of page tables beside it."""
    found = results["memory"]
    pss = sum(each["pss"] for each in found["growth"].values())
    tables = sum(each["page_tables"] for each in found["growth"].values())
    share = pss / found["bytes"]
    return Bar(
        share, LARGEST_SHARE, False, f"{pss / 1e6:.2f} MB, {share:.3%}", f"page tables {tables / 1e6:.1f} MB"
    )


def imports(results: Results) -> Bar:
    """New processes, alternating."""
    found = results["large"]["import"]
    ours, numpy = found["millpond"]["median"], found["numpy"]["median"]
    return Bar(ours / numpy, 1.5, False, f"{ours * 1e3:.0f} ms", f"import numpy {numpy * 1e3:.0f} ms")


ROWS: tuple[tuple[str, Callable[[Results], Bar]], ...] = (
    ("put of a small dict, pickling included: LMDB's time over ours, at least 1", over("put")),
    ("the same, Ray's time over ours, at least 100", over_ray("put dict", 100)),
    ("get of a small dict, loading included: LMDB's time over ours, at least 1", over("get")),
    ("the same, Ray's time over ours, at least 30", over_ray("get dict", 30)),
    (
        "get of an array, of `np.frombuffer().reshape()` on plain memory, the worst size: at most 0.5",
        array_get,
    ),
    ("the same for 1 KB and 1 GB: slowest size over fastest, at most 1.25", array_get_alike),
    (
        "get of an array of 1 GB: Ray's time over ours, at least 300",
        over_ray("get array, 1,000,000,000 B", 300),
    ),
    ("put of 100 MiB, that size was put before: `np.copyto`'s time over ours, at least 0.9", large_put),
    ("`create` and `seal` of 1 GB over 1 KB, warm: at most 1.5", build),
    (
        "2 GiB of noise put through 512 MiB, of the disk's direct write: at least 0.85",
        disk("store put", "disk write"),
    ),
    ("restored by get, of the disk's direct read: at least 0.85", disk("store get", "disk read")),
    ("30 000 puts of 20 KB through 512 MiB, of 1 / (copy + bytes / disk rate): at least 0.7", records),
    ("bytes written by evicting again what was restored: 0", respilled),
    ("random get of a small dict among a million over among a thousand: at most 1.5", among("dict", 1.5)),
    (
        "random get of a small array among a million over among a thousand: at most 2",
        among("array of 100 B", 2.0),
    ),
    (
        "two processes, objects of their own: gain over one, of the gain without a store: at least 0.9",
        two_processes,
    ),
    ("memory for each object beyond its bytes: at most 256 B", overhead),
    ("ten readers of an array of 1 GB: growth of PSS, summed, at most 1 %", readers),
    ("`import millpond` over `import numpy`: at most 1.5", imports),
)


def table(results: Results) -> str:
    """All rows, and what they were measured on."""
    rows = []
    for what, measure in ROWS:
        try:
            bar = measure(results)
            rows.append([what, bar.figure, bar.floor, bar.verdict])
        except KeyError as missing:
            rows.append([what, "", "", f"not measured: no {missing.args[0]}"])
    return markdown(["what, and its bar", "measured", "beside it", "bar"], rows) + f"\n\n{about(results)}"


def about(results: Results) -> str:
    """The machine, the versions and the dates of what was read."""
    seen = {key: sorted({each[key] for each in results.machines}) for key in (results.machines or [{}])[0]}
    return ", ".join(f"{key} {' to '.join(texts)}" for key, texts in seen.items())


def main() -> None:
    """Prints it, and writes it where asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, metavar="PAGE")
    args = parser.parse_args()
    text = table(Results())
    print(text)
    if args.write:
        write(args.write, "bars", text)
        for name, show in TABLES.items():
            if (RESULTS / f"{name}.json").exists():  # else what stands there stays
                results = Results()
                write(args.write, name, f"{show(results[name])}\n\n{about(results)}")


def write(page: Path, name: str, text: str) -> None:
    """Puts `text` between the page's markers of that name. Raises LookupError if it has none."""
    markers = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- end of {name} -->)", re.DOTALL)
    before = page.read_text()
    if not markers.search(before):
        raise LookupError(f"{page} has no <!-- {name} --> with its end")
    page.write_text(markers.sub(lambda found: found[1] + text + found[2], before))


if __name__ == "__main__":
    main()
