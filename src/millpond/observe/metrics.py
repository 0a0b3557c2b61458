"""A store's numbers for monitoring: Prometheus' text, a `prometheus_client` collector, OpenTelemetry.

Invariants: every number of `Stats` is a metric and none is made up, so that a new field appears by itself;
names ending in `_total` are counters, the others gauges; a scrape of a closed store is empty, not an error.
Not here: gathering the numbers (the store).
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import math
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from millpond import MillpondError, Stats, Store

__all__ = ["Collector", "Metric", "metrics", "open_telemetry", "prometheus_text"]

PREFIX = "millpond_"
FRESH_S = 0.1
"""For so long one look at the store serves all instruments of a collection."""


class Metric(NamedTuple):
    """One number. No limit is infinity."""

    name: str
    value: float
    help: str

    @property
    def is_counter(self) -> bool:
        """Whether it only grows."""
        return self.name.endswith("_total")


def metrics(stats: Stats) -> list[Metric]:
    """The numbers of `stats`, under the names of its fields."""
    helps = _helps(type(stats))  # type: ignore[arg-type] # a dataclass with slots is one
    found = []
    for field in dataclasses.fields(stats):
        value = getattr(stats, field.name)
        if value is None or isinstance(value, int | float):
            words = helps.get(field.name) or field.name.replace("_", " ").capitalize() + "."
            found.append(Metric(PREFIX + field.name, math.inf if value is None else value, words))
    return found


@functools.cache
def _helps(record: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass, as far as its source is there."""
    try:
        body = ast.parse(textwrap.dedent(inspect.getsource(record))).body[0].body  # type: ignore[attr-defined]
    except (OSError, TypeError, SyntaxError):
        return {}
    found = {}
    for node, after in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
            found[ast.unparse(node.target)] = " ".join(str(ast.literal_eval(after.value)).split())
    return found


def label(store: Store) -> str:
    """What tells this store's metrics from others': its name, or its uuid."""
    return store.name or store.uuid.hex()


def prometheus_text(stats: Stats, store: str) -> str:
    """The text exposition format, with the label `store`; counters as `..._total`."""
    escaped = store.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    lines = []
    for metric in metrics(stats):
        words = metric.help.replace("\\", "\\\\")
        lines.append(f"# HELP {metric.name} {words}")
        lines.append(f"# TYPE {metric.name} {'counter' if metric.is_counter else 'gauge'}")
        value = "+Inf" if math.isinf(metric.value) else f"{metric.value}"
        lines.append(f'{metric.name}{{store="{escaped}"}} {value}')
    return "\n".join(lines) + "\n"


class Collector:
    """A collector for `prometheus_client`: `prometheus_client.REGISTRY.register(Collector(store))`.

    Needs the extra `metrics`. A scrape looks at the store once.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def describe(self) -> Iterable[Any]:
        """Nothing: registering must not look at the store."""
        return ()

    def collect(self) -> Iterator[Any]:
        """The metric families of now; none once the store is closed."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for metric in _now(self._store):
            family = CounterMetricFamily if metric.is_counter else GaugeMetricFamily
            one = family(metric.name, metric.help, labels=["store"])
            one.add_metric([label(self._store)], metric.value)
            yield one


def open_telemetry(store: Store, meter: Any = None) -> list[Any]:
    """Observable instruments for the store's numbers, made by `meter` (None: OpenTelemetry's global one).

    Needs the extra `metrics`. The instruments are the result; they tell nothing once the store is closed.
    """
    from opentelemetry.metrics import Observation, get_meter

    meter = meter or get_meter("millpond")
    look = _shared_look(store)
    attributes = {"store": label(store)}

    def observe(name: str) -> Callable[[Any], Iterator[Any]]:
        def callback(_: Any) -> Iterator[Any]:
            # no limit has no number there
            yield from (
                Observation(metric.value, attributes)
                for metric in look()
                if metric.name == name and not math.isinf(metric.value)
            )

        return callback

    instruments = []
    for metric in look():
        create = meter.create_observable_counter if metric.is_counter else meter.create_observable_gauge
        unit = "By" if "_bytes" in metric.name or metric.name.endswith("_limit") else "1"
        instruments.append(
            create(metric.name, callbacks=[observe(metric.name)], unit=unit, description=metric.help)
        )
    return instruments


def _shared_look(store: Store) -> Callable[[], list[Metric]]:
    """Metrics of at most `FRESH_S` ago."""
    last: list[Metric] = []
    until = 0.0

    def look() -> list[Metric]:
        nonlocal last, until
        if time.monotonic() > until:
            last, until = _now(store), time.monotonic() + FRESH_S
        return last

    return look


def _now(store: Store) -> list[Metric]:
    try:
        return metrics(store.stats())
    except MillpondError:
        if store.closed:
            return []
        raise
