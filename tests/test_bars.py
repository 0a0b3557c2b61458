"""The table of bars finds what the benchmarks leave: their names for what they have measured agree."""

from pathlib import Path
from typing import Any

import pytest

import millpond


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmarks/scale.py, with loops that end at once."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import scale

    monkeypatch.setattr(scale, "CALLS", 20)
    monkeypatch.setattr(scale, "ROUNDS", 1)
    monkeypatch.setattr(scale, "LOOP_S", 0.01)
    monkeypatch.setattr(scale, "PROCESSES", (2,))
    return scale


def as_saved(timings: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The timings as they come back from JSON."""
    return {name: {"median": t.median, "low": t.low, "high": t.high} for name, t in timings.items()}


def test_random_gets_have_their_floors(scale: Any) -> None:
    import table

    with millpond.Store("64MiB", spill_limit=0) as store:
        found, overhead = scale.objects(store, [10, 20, 40])
    results: Any = {"scale": {"access": {what: as_saved(timings) for what, timings in found.items()}}}
    for what in ("dict", "array of 100 B"):
        bar = table.among(what, 1.5)(results)
        times = found[what]
        assert bar.value == pytest.approx(times["get, 40"].median / times["get, 10"].median)
        ratio = times["from a dict, 40"].median / times["from a dict, 10"].median
        assert f"from a dict {ratio:.2f}" in bar.floor
    assert overhead > 0


def test_processes_have_theirs(scale: Any) -> None:
    import table

    with millpond.Store("64MiB", spill_limit=0) as store:
        found = scale.processes(store)
    bar = table.two_processes({"scale": {"processes": as_saved(found)}})
    assert bar.value == pytest.approx(found["store, 2"].median / found["private, 2"].median)
    assert f"gets only {found['gets only, 2'].median:.2f}" in bar.floor
