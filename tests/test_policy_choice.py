"""Which policy a store's members use, what it sees of the objects, and that each one works under pressure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import millpond
from millpond.eviction.named import NAMES, numbered
from ponds import Pond
from workers import wait_until

MIB = 1 << 20


def kind_of(policy: object) -> str:
    [name] = [name for name in ("sieve", "gdsf") if type(policy) is type(numbered(NAMES.index(name)))] or [
        "other"
    ]
    return name


def policy_there(own: Any) -> str:
    return kind_of(own.store._room.policy)


def configure_there(own: Any, eviction: Any) -> None:
    own.store.configure(eviction=eviction)


def smallest_first(candidates: NDArray[Any]) -> Any:
    return np.argsort(candidates["size"])


def test_a_named_policy_is_for_all_members(pond: Pond) -> None:
    """For those that were there before, and for those that come."""
    store = pond.store(eviction="gdsf")
    early = pond.member(store)
    assert (kind_of(store._room.policy), early.run(policy_there)) == ("gdsf", "gdsf")
    early.run(configure_there, "sieve")
    late = pond.member(store)
    assert [kind_of(store._room.policy), *(each.run(policy_there) for each in (early, late))] == ["sieve"] * 3


def test_a_function_is_for_its_own_process(pond: Pond) -> None:
    """Until that process names a policy again; what others do meanwhile does not change it."""
    store = pond.store(eviction="sieve")
    other = pond.member(store)
    store.configure(eviction=smallest_first)
    assert (kind_of(store._room.policy), other.run(policy_there)) == ("other", "sieve")
    other.run(configure_there, "gdsf")
    assert (kind_of(store._room.policy), other.run(policy_there)) == ("other", "gdsf")
    store.configure(eviction="sieve")
    assert (kind_of(store._room.policy), other.run(policy_there)) == ("sieve", "sieve")


def test_a_store_made_with_a_function_is_lru_for_others(pond: Pond) -> None:
    store = pond.store(eviction=smallest_first)
    refs = [store.put(np.ones(n * 10_000)) for n in (3, 1, 2)]
    rows = store._candidates()
    assert list(rows["size"][store._room.policy(rows)]) == sorted(rows["size"])
    assert list(numbered(store._policy())(rows)) == [0, 1, 2]
    del refs


def test_other_options_leave_the_policy_alone(pond: Pond) -> None:
    store = pond.store(eviction="sieve")
    store.configure(memory_limit="32MiB", compression="lz4")
    assert kind_of(store._room.policy) == "sieve"


def test_what_a_policy_sees_of_an_object(pond: Pond) -> None:
    """Reads since it came to memory: neither the put nor the read that has it restored is one of them."""
    store = pond.store()
    ref = store.put(np.ones(100_000))

    def row() -> Any:
        [found] = store._candidates()
        return found.copy()

    born = row()
    assert (int(born["hits"]), int(born["clean"])) == (0, 0)
    assert born["arrived"] <= born["stamp"]
    for _ in range(2):
        store.get(ref)
    read = row()
    assert int(read["hits"]) == 2
    assert born["arrived"] == read["arrived"] and born["stamp"] < read["stamp"]
    store.spill()
    store.get(ref)
    back = row()
    assert (int(back["hits"]), int(back["clean"])) == (0, 1)
    assert read["stamp"] < back["arrived"] <= back["stamp"]
    for reads in range(1, 300):
        store.get(ref)
        assert int(row()["hits"]) == min(reads, 254)


@pytest.mark.parametrize("eviction", [*NAMES, smallest_first], ids=[*NAMES, "function"])
def test_every_policy_makes_room(pond: Pond, eviction: Any) -> None:
    """Four times the memory, read in an order that repeats and skips: every byte survives."""
    store = pond.store("16MiB", eviction=eviction)
    rng = np.random.default_rng(3)
    sizes = np.clip(rng.lognormal(11, 1.5, 400), 100, 2 * MIB).astype(int)
    refs = {i: store.put(np.full(size, i % 251, "u1")) for i, size in enumerate(sizes)}
    for i in rng.zipf(1.2, 1500) % len(refs):
        value = store.get(refs[int(i)])
        assert len(value) == sizes[i] and value[0] == value[-1] == i % 251
        del value
    assert store.stats().restored_objects_total > 0
    assert store.stats().committed_bytes <= 16 * MIB
    refs.clear()


def test_clean_ones_go_first_when_it_makes_no_difference(pond: Pond) -> None:
    """Objects of the same idle time: half of them have a disk copy, and that half goes without a write."""
    store = pond.store("64MiB")
    refs = [store.put(np.full(MIB, i, "u1")) for i in range(20)]
    store.spill(refs[::2])
    for ref in [*refs, *refs]:  # in memory again, then all read within a moment, and then nothing for long
        store.get(ref)
    newest = store.put(b"")

    def alike() -> bool:
        store.get(newest)
        stamps = store._candidates()["stamp"]
        return len(set(np.log1p(stamps.max() - np.sort(stamps)[:-1]) // np.log(1.1))) == 1

    wait_until(alike)
    rows = store._candidates()
    before = store.stats().spilled_bytes_total
    assert store._room.evict(int(rows["size"][rows["clean"] != 0].sum())) >= 10 * MIB
    assert store.stats().spilled_bytes_total == before
    store.delete(newest)


def test_the_error_for_an_unknown_policy_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="'lru', 'sieve', 'gdsf', 'mru' or a function"):
        millpond.Store("16MiB", eviction="fifo")
