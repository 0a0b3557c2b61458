"""Metrics: every number of the store's statistics, as Prometheus and OpenTelemetry want them."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import numpy as np
import prometheus_client
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families

import millpond
from millpond.observe import metrics
from millpond.observe.metrics import Collector, open_telemetry, prometheus_text
from ponds import Pond

NUMBERS = [
    field.name for field in dataclasses.fields(millpond.Stats) if field.type in ("int", "float", "int | None")
]


def samples(text: str) -> dict[str, float]:
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_number_is_a_metric(pond: Pond) -> None:
    store = pond.store("1MiB", name="a")
    refs = [store.put(np.ones(20_000)) for _ in range(12)]
    stats = store.stats()
    found = samples(prometheus_text(stats, "a"))
    assert len(NUMBERS) >= 20
    assert sorted(found) == sorted(f"millpond_{name}" for name in NUMBERS)
    for name in NUMBERS:
        value = getattr(stats, name)
        assert found[f"millpond_{name}"] == (math.inf if value is None else value)
    assert found["millpond_spilled_bytes_total"] > 0 and found["millpond_spill_limit"] == math.inf
    del refs


def test_kinds_and_words() -> None:
    by_name = {metric.name: metric for metric in metrics.metrics(_stats())}
    assert by_name["millpond_spilled_bytes_total"].is_counter
    assert not by_name["millpond_committed_bytes"].is_counter
    assert "Arena memory taken from the system" in by_name["millpond_committed_bytes"].help
    assert all(metric.help for metric in by_name.values())


def _stats() -> millpond.Stats:
    return millpond.Stats(**{field.name: 1 for field in dataclasses.fields(millpond.Stats)})  # type: ignore[arg-type]


def test_a_new_field_appears_by_itself() -> None:
    @dataclasses.dataclass(frozen=True)
    class More(millpond.Stats):
        returned_widgets_total: int = 7
        """Widgets."""
        text: str = "no number"

    more = More(**dataclasses.asdict(_stats()))
    text = prometheus_text(more, "x")
    assert "# HELP millpond_returned_widgets_total Widgets.\n" in text
    assert "# TYPE millpond_returned_widgets_total counter\n" in text
    assert samples(text)["millpond_returned_widgets_total"] == 7
    assert "no number" not in text


def test_names_are_escaped() -> None:
    text = prometheus_text(_stats(), 'a "b"\\c\nd')
    labels = {s.labels["store"] for family in text_string_to_metric_families(text) for s in family.samples}
    assert labels == {'a "b"\\c\nd'}


def test_the_collector_agrees_with_the_text(store: millpond.Store) -> None:
    registry = prometheus_client.CollectorRegistry()
    registry.register(Collector(store))
    ref = store.put(np.ones(1000))
    collected = samples(prometheus_client.generate_latest(registry).decode())
    assert collected == samples(prometheus_text(store.stats(), metrics.label(store)))
    assert collected["millpond_objects"] == 1
    del ref
    store.close()
    assert samples(prometheus_client.generate_latest(registry).decode()) == {}


def test_open_telemetry(pond: Pond) -> None:
    store = pond.store("1MiB", name="told")
    reader = InMemoryMetricReader()
    provider = MeterProvider(metric_readers=[reader])
    open_telemetry(store, provider.get_meter("test"))
    ref = store.put(np.ones(1000))
    points = {}
    data = reader.get_metrics_data()
    assert data is not None
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        (point,) = metric.data.data_points
        assert dict(point.attributes or {}) == {"store": "told"}
        points[metric.name] = point.value
    expected = {f"millpond_{name}" for name in NUMBERS if getattr(store.stats(), name) is not None}
    assert points.keys() == expected
    assert points["millpond_memory_limit"] == 1 << 20
    provider.shutdown()
    del ref


def test_the_command(pond: Pond) -> None:
    store = pond.store(name="shown")
    command = [sys.executable, "-m", "millpond.cli.main", "stats", "shown", "--prometheus"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert samples(output)["millpond_memory_limit"] == store.memory_limit
    assert 'store="shown"' in output


@pytest.mark.parametrize("missing", ["prometheus_client.core", "opentelemetry.metrics"])
def test_without_the_extra(store: millpond.Store, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert prometheus_text(store.stats(), "x")
    with pytest.raises(ImportError):
        list(Collector(store).collect()) if "prometheus" in missing else open_telemetry(store)
