"""Names: they hold objects, are found by other processes, and can be waited for."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

import millpond
from ponds import Pond


def test_the_name_of_a_deleted_object_is_free(store: millpond.Store) -> None:
    """Nobody has to take it off first; until then it tells how the object ended."""
    ref = store.put(1, name="reused")
    store.delete(ref)
    with pytest.raises(millpond.ObjectDeletedError):
        store.lookup("reused").get()
    store.put(2, name="reused")
    assert store.lookup("reused").get() == 2
    store.delete("reused")


def test_a_name_holds_its_object(store: millpond.Store) -> None:
    ref = store.put(np.arange(1000), name="model")
    assert store.lookup("model") == ref and "model" in store
    assert [info.name for info in store.objects()] == ["model"]
    del ref
    assert store.get(store.lookup("model"))[-1] == 999
    store.delete("model")
    assert len(store) == 0 and "model" not in store
    with pytest.raises(millpond.ObjectNotFoundError, match="'model'"):
        store.lookup("model")
    with pytest.raises(millpond.ObjectNotFoundError, match="'model'"):
        store.delete("model")


def test_delete_of_a_name_leaves_the_refs(store: millpond.Store) -> None:
    ref = store.put(5, name="model")
    store.delete("model")
    assert ref.get() == 5


def test_a_taken_name(store: millpond.Store) -> None:
    store.put(1, name="model")
    with pytest.raises(ValueError, match=r"'model' is taken: use replace=True"):
        store.put(2, name="model")
    assert len(store) == 1 and store.lookup("model").get() == 1
    old = store.lookup("model")
    new = store.put(3, name="model", replace=True)
    assert store.lookup("model") == new != old
    assert old.get() == 1
    assert {info.id: info.name for info in store.objects()} == {old.id: None, new.id: "model"}
    del old
    assert len(store) == 1
    store.put(4, name="fresh", replace=True)
    assert store.lookup("fresh").get() == 4


def test_names_are_unicode_of_240_bytes(store: millpond.Store) -> None:
    names = ["x" * 240, "\u00e9" * 120, "a b/c\n\0", "\U0001f986", " ", "x" * 239]
    for number, name in enumerate(names):
        store.put(number, name=name)
    assert [store.lookup(name).get() for name in names] == list(range(6))
    assert {info.name for info in store.objects()} == set(names)
    for name in ("", "x" * 241, "\u00e9" * 121):
        with pytest.raises(ValueError, match="1 to 240 bytes"):
            store.put(7, name=name)
        with pytest.raises(ValueError, match="1 to 240 bytes"):
            store.create(3, "f8", name=name)
    assert len(store) == 6


def test_an_object_may_have_only_the_names_it_was_given(store: millpond.Store) -> None:
    for wrong in ("", "x" * 241, "never"):
        assert wrong not in store
        with pytest.raises(millpond.ObjectNotFoundError):
            store.lookup(wrong)


def test_many_names(store: millpond.Store) -> None:
    for number in range(3000):
        store.put(number, name=f"object {number}")
    for number in range(0, 3000, 3):
        store.delete(f"object {number}")
    for number in range(0, 3000, 6):
        store.put(-number, name=f"object {number}")
    for number in range(3000):
        if number % 3:
            assert store.lookup(f"object {number}").get() == number
        elif number % 6 == 0:
            assert store.lookup(f"object {number}").get() == -number
        else:
            assert f"object {number}" not in store
    assert store.check() == []


def test_a_deleted_object_gives_its_name_free(store: millpond.Store) -> None:
    ref = store.put(1, name="model")
    store.delete(ref)
    with pytest.raises(millpond.ObjectNotFoundError):
        store.lookup("model").get()
    assert store.put(2, name="model", replace=True).get() == 2


def test_a_name_outlives_the_process_that_gave_it(pond: Pond, store: millpond.Store) -> None:
    creator = pond.member(store)

    def create(own: Any) -> None:
        own.store.put(np.arange(5000), name="model")

    creator.run(create)
    creator.kill()
    assert store.lookup("model").get()[-1] == 4999
    assert store.check() == []


def test_a_named_object_spills(pond: Pond) -> None:
    store = pond.store("2MiB")
    for number in range(8):
        store.put(np.full(100_000, number), name=str(number))
    assert store.stats().spilled_objects >= 5
    for number in range(8):
        assert (store.lookup(str(number)).get() == number).all()


def test_lookup_waits_for_another_process(pond: Pond, store: millpond.Store) -> None:
    other = pond.member(store)
    other.start(lambda own: own.store.lookup("later", timeout=20).get())
    assert not other.answered(0.1)
    store.put([1, 2], name="later")
    assert other.result(5) == [1, 2]


def test_lookup_waits_no_longer_than_told(store: millpond.Store) -> None:
    start = time.monotonic()
    with pytest.raises(millpond.GetTimeoutError, match=r"'never' did not appear within 0\.1 s"):
        store.lookup("never", timeout=0.1)
    assert 0.1 <= time.monotonic() - start < 5


def test_one_process_of_several_gets_a_name(pond: Pond, store: millpond.Store) -> None:
    members = [pond.member(store) for _ in range(3)]

    def compete(own: Any, me: int) -> list[int]:
        won = []
        for number in range(100):
            try:
                own.store.put(me, name=f"place {number}")
                won.append(number)
            except ValueError:
                pass
        return won

    for me, member in enumerate(members):
        member.start(compete, me)
    winners = [member.result() for member in members]
    assert sorted(number for won in winners for number in won) == list(range(100))
    for me, won in enumerate(winners):
        assert all(store.lookup(f"place {number}").get() == me for number in won)
    assert len(store) == 100
