"""Draws the pictures of docs/observing.md from a real run: `make pictures`.

Four processes read and write twice what a store of 256 MiB holds. After some seconds the last frame of
`millpond top` goes to top.svg, and 400 ms of the timeline that all of them record to timeline.svg.
Needs matplotlib. The figures are those of the machine at hand.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from rich.console import Console

import millpond
from millpond.cli.top import save_svg
from millpond.observe.timeline import read
from millpond.observe.top import Rates, frame, look

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "millpond", "font.size": 11, "font.family": "DejaVu Sans"})
from matplotlib import pyplot  # noqa: E402  (the backend comes first)

HERE = Path(__file__).parent
MEMORY = 256 << 20
WORKERS = 4
LOOKS, INTERVAL_S = 12, 0.5
SHOWN_S = 0.4
COLOURS = {
    "get": "#79a6c3",
    "put": "#6a9f58",
    "deserialize": "#e7c35a",
    "make room": "#c9b8da",
    "clean": "#a05195",
    "restore": "#f28e2b",
    "write to disk": "#d45087",
    "sleep": "#999999",
}


def work(number: int, refs: list[millpond.ObjectRef], stop: Any) -> None:
    """Reads some of the arrays, keeps one for a moment, replaces one of its own now and then."""
    chance = random.Random(number)
    store = refs[0]._store
    mine: list[millpond.ObjectRef] = []
    while not stop.is_set():
        model = store.get(chance.choice(refs))
        time.sleep(chance.uniform(0.002, 0.02))  # the computation
        if chance.random() < 0.4:
            mine = [*mine[-3:], store.put(model["weights"][: 1 << 20] * 2)]
    del model


def run(path: str) -> Console:
    """The last frame of top of a run whose timeline goes to `path`."""
    out = Console(record=True, width=110, force_terminal=True, highlight=False, file=io.StringIO())
    spawn = multiprocessing.get_context("spawn")
    with millpond.Store(MEMORY, name="training") as store, millpond.timeline(path):
        refs = [
            store.put({"weights": np.full(size, 0.5), "layer": number}, name=f"layer {number}")
            for number, size in enumerate([6_000_000, 3_000_000, *[1_500_000] * 34])
        ]
        stop = spawn.Event()
        workers = [spawn.Process(target=work, args=(n, refs, stop)) for n in range(WORKERS)]
        for worker in workers:
            worker.start()
        before, rates = look(store), Rates()
        for _ in range(LOOKS):
            time.sleep(INTERVAL_S)
            now = look(store)
            rates.add(before, now)
            before = now
        out.print(frame("training", now, rates, 34))
        stop.set()
        for worker in workers:
            worker.join()
    return out


def draw_timeline(path: str, file: Path) -> None:
    """The spans of all workers in the busiest `SHOWN_S` seconds of the second half of the run."""
    spans = [event for event in read(path) if event["ph"] == "X" and event["pid"] != os.getpid()]
    start = _busiest([event for event in spans if event["name"] == "clean"] or spans)
    stop = start + SHOWN_S * 1e6
    lanes: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in sorted(spans, key=lambda event: (event["ts"], -event["dur"])):
        if event["ts"] < stop and event["ts"] + event["dur"] > start and event["tid"] == event["pid"]:
            lanes[event["pid"]].append(event)

    figure, axes = pyplot.subplots(figsize=(11, 4.2), layout="constrained")
    for number, pid in enumerate(sorted(lanes)):
        ends: list[float] = []  # of the spans that enclose the one at hand
        for event in lanes[pid]:
            while ends and ends[-1] <= event["ts"]:
                ends.pop()
            left, right = max(event["ts"], start), min(event["ts"] + event["dur"], stop)
            axes.barh(
                4 * number + len(ends),
                (right - left) / 1000,
                0.92,
                (left - start) / 1000,
                color=COLOURS.get(event["name"], "#cccccc"),
                edgecolor="white",
                linewidth=0.4,
            )
            ends.append(event["ts"] + event["dur"])
    axes.set_yticks(
        [4 * number + 1 for number in range(len(lanes))], [f"worker {n}" for n in range(len(lanes))]
    )
    axes.set(xlim=(0, SHOWN_S * 1000), ylim=(4 * len(lanes) - 0.4, -0.6), xlabel="milliseconds")
    axes.spines[["top", "right", "left"]].set_visible(False)
    seen = {event["name"] for lane in lanes.values() for event in lane}
    patches = [pyplot.Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in COLOURS if name in seen]
    names = [name for name in COLOURS if name in seen]
    figure.legend(patches, names, ncols=len(names), loc="outside upper center", frameon=False)
    figure.savefig(file, metadata={"Date": None})


def _busiest(spans: list[dict[str, Any]]) -> float:
    """The start of the window, in the second half, in which most of these spans begin; microseconds."""
    begins = np.sort([event["ts"] for event in spans])
    begins = begins[begins > (begins[0] + begins[-1]) / 2]
    counts = np.searchsorted(begins, begins + SHOWN_S * 1e6) - np.arange(len(begins))
    return float(begins[counts.argmax()] - 20_000)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.environ["MILLPOND_DIR"] = os.path.join(directory, "millpond")
        path = os.path.join(directory, "trace.json")
        save_svg(run(path), HERE / "top.svg", "millpond top training")
        draw_timeline(path, HERE / "timeline.svg")


if __name__ == "__main__":
    main()
