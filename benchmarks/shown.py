"""The tables of docs/performance.md that repeat a benchmark's results, made from its JSON.

Not here: the table of bars (table.py), which also writes these into the page.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from harness import markdown

DATA_GB = (2 << 30) / 1e9
"""What peers/through.py puts."""

COLUMNS = {
    "millpond": "millpond",
    "frombuffer": "`np.frombuffer().reshape()`",
    "lmdb": "LMDB on tmpfs",
    "pickle": "pickle alone",
}


def spread(timing: dict[str, float], scale: float = 1e6) -> str:
    """ "1.23 (1.20-1.40)", microseconds by default."""
    return "{:.3g} ({:.3g}-{:.3g})".format(*(timing[key] * scale for key in ("median", "low", "high")))


def small(results: Any) -> str:
    """Of small.py: microseconds."""
    rows = [
        [what, *(spread(found[name]) if name in found else "" for name in COLUMNS)]
        for what, found in results.items()
    ]
    return markdown(["microseconds", *COLUMNS.values()], rows)


def large(results: Any) -> str:
    """Of large.py."""
    put, built, started = results["put"], results["build"], results["import"]
    rows = [
        ["put 100 MiB, that size was put before", f"{spread(put['put'], 1e3)} ms"],
        ["`np.copyto` of it into warm memory", f"{spread(put['copyto'], 1e3)} ms"],
        ["the first put of it", f"{put['first put']['median'] * 1e3:.3g} ms"],
        *([f"`create` and `seal`, {size} B", f"{spread(timing)} us"] for size, timing in built.items()),
        *([f"`import {name}`, the process included", f"{spread(t, 1e3)} ms"] for name, t in started.items()),
    ]
    return markdown(["", "median (fastest-slowest round)"], rows)


def peers(results: Any) -> str:
    """Of peers/run.py: microseconds, medians."""
    versions = results["versions"]
    heads = [f"{name} {versions[name]}" for name in versions]
    rows = [
        [what, *(plain(found[name]["median"]) if name in found else "" for name in versions)]
        for what, found in results["times"].items()
    ]
    return markdown(["microseconds", *heads], rows)


def references(results: Any) -> str:
    """Of references.py: microseconds."""
    rows = [[what, *(spread(timing) for timing in found.values())] for what, found in results.items()]
    return markdown(["microseconds", *(f"a {name}" for name in next(iter(results.values())))], rows)


def values(results: Any) -> str:
    """Of values.py: milliseconds."""
    tables = []
    for found in results.values():
        rows = [[what, *(spread(timing, 1e3) for timing in by.values())] for what, by in found.items()]
        tables.append(markdown(["milliseconds", *(f"`{name}`" for name in next(iter(found.values())))], rows))
    return "\n\n".join(tables)


def scale(results: Any) -> str:
    """Of scale.py."""
    rows = [
        [f"{what}: {key}", f"{spread(timing)} us"]
        for what, found in results["access"].items()
        for key, timing in found.items()
    ]
    rows += [
        *([f"gain over one process: {what}", spread(t, 1)] for what, t in results["processes"].items()),
        ["memory for each object beyond its bytes", f"{results['overhead']:.0f} B"],
        *([what, f"{seconds * 1e3:.3g} ms"] for what, seconds in results["members"].items()),
    ]
    return markdown(["", "median (fastest-slowest round)"], rows)


def tails(results: Any) -> str:
    """Of tails.py: microseconds."""
    rows = [
        [what, f"{found['calls']:,}".replace(",", " "), *map(plain, found["seconds"])]
        for what, found in results.items()
    ]
    return markdown(["microseconds", "calls", "median", "99 %", "99.9 %", "longest"], rows)


def holds(results: Any) -> str:
    """Of holds.py: nanoseconds."""
    times = [f"{part}, {time}" for part in ("held", "waited") for time in ("median", "99 %", "99.9 %")]
    rows = [
        [call, *(f"{number:,.0f}".replace(",", " ") for part in found.values() for number in part)]
        for call, found in results.items()
    ]
    return markdown(["nanoseconds", "holds", *times], rows)


def plain(seconds: float) -> str:
    """Microseconds with three digits, no exponent."""
    number = seconds * 1e6
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def through(results: Any) -> str:
    """Of peers/through.py: GB/s of whole passes."""
    rows = []
    for name, passes in results["passes"].items():
        per_pass = [{key: _seconds(each[key]) for key in ("put", "sync", "get")} for each in passes]
        parts = (("put",), ("put", "sync"), ("get",))
        rates = [median(DATA_GB / sum(each[key] for key in keys) for each in per_pass) for keys in parts]
        rows.append([f"{name} {results['versions'][name]}", *(f"{rate:.2f}" for rate in rates)])
    alone = [f"{median(results['disk'][way]) / 1e9:.2f}" for way in ("write", "read")]
    rows.append(["the disk, direct", "", *alone])
    return markdown(["GB/s, medians", "put", "put and synced", "read back"], rows)


def _seconds(times: Any) -> float:
    return float(sum(times)) if isinstance(times, list) else float(times)


TABLES = {
    "small": small,
    "large": large,
    "references": references,
    "values": values,
    "scale": scale,
    "tails": tails,
    "holds": holds,
    "peers": peers,
    "through": through,
}
"""By the name of the JSON file, and of the markers in the page."""
