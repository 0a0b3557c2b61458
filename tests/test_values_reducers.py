"""Rules for types of one's own: where they hold, which one wins, and where they do not."""

from __future__ import annotations

import copyreg
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import jobs
import millpond
from jobs import Tile, rebuild_tile, reduce_tile, register_and_put
from millpond.hot import dumps
from millpond.values import reducers
from millpond.values.serialize import loads
from ponds import Pond
from pools import pool


class Wide(Tile):
    """A subclass without a rule of its own."""


@pytest.fixture(autouse=True)
def no_rule_is_left() -> Iterator[None]:
    yield
    for type in (Tile, Wide):
        millpond.register_reducer(type, None)
    assert reducers._rules == {}
    assert reducers.over(copyreg.dispatch_table) is copyreg.dispatch_table


@pytest.mark.parametrize(
    "wrap", [lambda tile: tile, lambda tile: {"deep": [(tile,)]}, lambda tile: [tile, lambda: 1]]
)
def test_memory_of_a_type_of_ones_own_is_shared(store: millpond.Store, wrap: Any) -> None:
    tile = Tile(np.arange(100_000.0))
    millpond.register_reducer(Tile, reduce_tile)
    value = wrap(tile)
    inband, buffers = dumps(value)
    assert [buffer.nbytes for buffer in buffers] == [800_000]
    assert len(inband) < 2_000
    found = store.get(store.put(value))
    while not isinstance(found, Tile):
        found = found["deep"] if isinstance(found, dict) else found[0]
    assert found.made_by == "rebuild_tile"
    assert not found.data.flags.writeable
    assert np.array_equal(found.data, tile.data)


def test_a_rule_is_removed() -> None:
    millpond.register_reducer(Tile, reduce_tile)
    millpond.register_reducer(Tile, None)
    millpond.register_reducer(Tile, None)
    assert loads(*dumps(Tile(np.arange(3)))).made_by == "itself"


def test_a_rule_is_replaced() -> None:
    millpond.register_reducer(Tile, lambda tile: (str, ("first",)))
    millpond.register_reducer(Tile, lambda tile: (str, ("second",)))
    assert loads(*dumps([Tile(np.arange(3))])) == ["second"]


def test_other_pickles_know_nothing_of_it() -> None:
    millpond.register_reducer(Tile, reduce_tile)
    assert pickle.loads(pickle.dumps(Tile(np.arange(3)))).made_by == "itself"


def test_it_goes_before_copyreg_and_leaves_the_rest_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(copyreg.dispatch_table, Tile, lambda tile: (str, ("copyreg",)))
    monkeypatch.setitem(copyreg.dispatch_table, Wide, lambda tile: (str, ("copyreg",)))
    millpond.register_reducer(Tile, lambda tile: (str, ("own",)))
    tiles = [Tile(np.arange(3)), Wide(np.arange(3))]
    assert loads(*dumps(tiles)) == ["own", "copyreg"]
    assert loads(*dumps([*tiles, lambda: 1]))[:2] == ["own", "copyreg"]


@pytest.mark.parametrize("careful", [False, True])
def test_subclasses_only_when_asked(careful: bool) -> None:
    value = [Wide(np.arange(3)), *([lambda: 1] if careful else [])]
    millpond.register_reducer(Tile, reduce_tile)
    assert type(loads(*dumps(value))[0]) is Wide
    millpond.register_reducer(Tile, reduce_tile, subclasses=True)
    assert type(loads(*dumps(value))[0]) is Tile
    millpond.register_reducer(Wide, lambda wide: (str, ("nearest",)))
    assert loads(*dumps(value))[0] == "nearest"


def test_values_that_the_rule_does_not_want() -> None:
    millpond.register_reducer(
        Tile, lambda tile: reduce_tile(tile) if tile.data.size > 10 else tile.__reduce_ex__(5)
    )
    small, large = loads(*dumps([Tile(np.arange(3)), Tile(np.arange(30))]))
    assert (small.made_by, large.made_by) == ("itself", "rebuild_tile")


def test_what_cannot_be_pickled_is_found_through_a_rule(store: millpond.Store) -> None:
    millpond.register_reducer(Tile, lambda tile: (rebuild_tile, (tile.data, threading.Lock())))
    with pytest.raises(millpond.SerializationError, match=r"value\['t'\].__reduce__\(\)\[1\]\[1\]: .*lock"):
        store.put({"t": Tile(np.arange(3))})


@pytest.mark.parametrize("bad", [lambda tile: 1 / 0, lambda tile: 7, lambda tile: ()])
def test_a_rule_that_fails_names_the_part(store: millpond.Store, bad: Any) -> None:
    millpond.register_reducer(Tile, bad)
    with pytest.raises(millpond.SerializationError, match=r"value\['t'\]"):
        store.put({"t": Tile(np.arange(3))})


@pytest.mark.parametrize(
    "type",
    [int, dict, tuple, type(None), type, type(lambda: 1), np.ndarray, millpond.ObjectRef, "Tile", object],
)
def test_types_that_cannot_have_one(type: Any) -> None:
    with pytest.raises(TypeError, match="no reducer for"):
        millpond.register_reducer(type, reduce_tile)


def test_what_is_no_function() -> None:
    with pytest.raises(TypeError, match="not 'reduce'"):
        millpond.register_reducer(Tile, "reduce")  # type: ignore[arg-type]


def test_a_forked_child_has_the_rules_and_a_program_registers_its_own(
    pond: Pond, store: millpond.Store
) -> None:
    millpond.register_reducer(Tile, reduce_tile)
    child = pond.worker()

    def put_in_child(own: Any, address: str) -> Any:
        return millpond.connect(address).put(Tile(np.arange(9)))

    assert child.run(put_in_child, store.address).get().made_by == "rebuild_tile"


def test_a_program_registers_its_own(pond: Pond, store: millpond.Store) -> None:
    program = pond.member(store)
    assert program.run(register_and_put).get().made_by == "rebuild_tile"


def test_a_reader_needs_no_rule(pond: Pond, store: millpond.Store) -> None:
    millpond.register_reducer(Tile, reduce_tile)
    ref = store.put(Tile(np.arange(900)))

    def read(own: Any, ref: millpond.ObjectRef) -> tuple[str, bool]:
        tile = ref.get()
        return tile.made_by, tile.data.flags.writeable

    assert pond.member(store).run(read, ref) == ("rebuild_tile", False)


def test_the_executor_sends_by_the_same_rules(pond: Pond) -> None:
    millpond.register_reducer(Tile, reduce_tile)
    with pool(pond.store()) as executor:
        small, large = executor.map(jobs.describe_tile, [Tile(np.arange(9)), Tile(np.arange(90_000))])
    assert small == ("rebuild_tile", True)
    assert large == ("rebuild_tile", False)
