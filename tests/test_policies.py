"""Eviction policies: what holds for each of them, and what makes each of them itself."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from millpond.eviction.history import KEEP, Hand
from millpond.eviction.named import NAMES, Policy, numbered, resolve
from millpond.eviction.policies import CANDIDATE, NEAR
from millpond.eviction.ranking import Ranking

TOP = 2**64 - 1
ticks = st.integers(0, TOP)
rows_of = st.lists(
    st.tuples(ticks, ticks, st.integers(0, TOP), st.integers(0, 254), st.booleans()), max_size=40
).map(lambda rows: table(*zip(*rows, strict=True)) if rows else candidates([]))


def table(stamps: Any, arrived: Any, sizes: Any, hits: Any, clean: Any) -> NDArray[Any]:
    found = candidates(list(stamps))
    found["arrived"], found["size"], found["hits"], found["clean"] = arrived, sizes, hits, clean
    return found


def candidates(stamps: list[int], clean: list[bool] | None = None) -> NDArray[Any]:
    found = np.zeros(len(stamps), CANDIDATE)
    found["entry"] = np.arange(len(stamps)) + 100
    found["arrived"] = found["stamp"] = stamps
    found["size"] = 10
    if clean is not None:
        found["clean"] = clean
    return found


def test_layout_of_a_candidate() -> None:
    assert CANDIDATE.itemsize == 40
    fields = {name: (field[0].str, field[1]) for name, field in (CANDIDATE.fields or {}).items()}
    assert fields == {
        "entry": ("<u4", 0),
        "clean": ("|u1", 4),
        "hits": ("|u1", 5),
        "pad": ("<u2", 6),
        "birth": ("<u8", 8),
        "size": ("<u8", 16),
        "stamp": ("<u8", 24),
        "arrived": ("<u8", 32),
    }


# --- all of them ---


@pytest.mark.parametrize("name", NAMES)
@given(snapshots=st.lists(rows_of, min_size=1, max_size=4), share=st.floats(0, 1))
def test_contract(name: str, snapshots: list[NDArray[Any]], share: float) -> None:
    """Whatever is in the table, and whatever went before: each candidate once, the same when asked again."""
    policy = resolve(name)
    for rows in snapshots:
        before = rows.copy()
        order = policy(rows)
        assert order.dtype == np.intp
        assert sorted(order.tolist()) == list(range(len(rows)))
        assert np.array_equal(order, policy(rows))
        assert np.array_equal(rows, before)
        policy.took(rows, order, round(share * len(rows)))


@pytest.mark.parametrize("name", NAMES)
def test_degenerate_tables(name: str) -> None:
    assert list(resolve(name)(candidates([]))) == []
    assert list(resolve(name)(candidates([7]))) == [0]
    ties = candidates([5] * 6, clean=[False, True] * 3)
    assert list(resolve(name)(ties))[:3] in (
        [1, 3, 5],
        [5, 3, 1],
    )  # alike in all else: the clean ones go first
    assert len(resolve(name)(candidates([3, 1, 2], clean=[True] * 3))) == 3
    huge = candidates([TOP, 0, TOP])
    huge["size"] = [TOP, 0, 2**63]
    assert sorted(resolve(name)(huge)) == [0, 1, 2]


@pytest.mark.parametrize("name", NAMES)
def test_a_number_stands_for_a_name(name: str) -> None:
    assert type(numbered(NAMES.index(name))) is type(resolve(name))
    rows = candidates([3, 1, 2])
    assert list(numbered(NAMES.index(name))(rows)) == list(resolve(name)(rows))


def test_an_unknown_number_is_the_default() -> None:
    rows = candidates([3, 1, 2])
    assert list(numbered(2**32 - 1)(rows)) == [1, 2, 0]


# --- lru and mru ---


@given(st.lists(ticks, max_size=50))
def test_lru_is_exact(stamps: list[int]) -> None:
    order = resolve("lru")(candidates(stamps))
    assert [stamps[index] for index in order] == sorted(stamps)


@pytest.mark.parametrize(("name", "sign"), [("lru", 1), ("mru", -1)])
@given(rows=st.lists(st.tuples(st.integers(0, 2000), st.booleans()), max_size=50))
def test_clean_first_among_near_equals(name: str, sign: int, rows: list[tuple[int, bool]]) -> None:
    """Nothing goes before what was idle for more than 10 % longer (mru: shorter), and only for the sake of a
    write that it saves before what was idle longer at all."""
    stamps, clean = [stamp for stamp, _ in rows], [flag for _, flag in rows]
    order = [int(index) for index in resolve(name)(candidates(stamps, clean))]
    idle = [max(stamps) - stamp for stamp in stamps]
    for at, first in enumerate(order):
        for second in order[at + 1 :]:
            if sign * idle[first] < sign * idle[second]:
                assert clean[first] and not clean[second]
                longer, shorter = sorted((idle[first], idle[second]), reverse=True)
                assert longer <= NEAR * shorter


def test_clean_first_saves_writes() -> None:
    """Restored objects and new ones in turn, alike in idle time: those go that need no writing."""
    rows = candidates(list(range(10_000, 10_100)), clean=[True, False] * 50)
    rows["stamp"][-1] = 20_000  # the newest: all others have been idle for nearly the same time
    plain = resolve(lambda shown: np.argsort(shown["stamp"], kind="stable"))
    dirty = {
        name: np.count_nonzero(Ranking(rows, policy).take(300)["clean"] == 0)
        for name, policy in (("lru", resolve("lru")), ("plain", plain))
    }
    assert dirty == {"lru": 0, "plain": 15}


def test_mru_takes_the_newest() -> None:
    assert list(resolve("mru")(candidates([3, 1, 4, 2]))) == [2, 0, 3, 1]


# --- sieve ---


class Sieve:
    """SIEVE as in the paper: a queue from the oldest to the newest, marks, a hand."""

    def __init__(self) -> None:
        self.queue: list[int] = []
        self.marked: set[int] = set()
        self.hand = 0

    def evict(self) -> int:
        while True:
            if self.hand >= len(self.queue):
                self.hand = 0
            key = self.queue[self.hand]
            if key not in self.marked:
                del self.queue[self.hand]
                return key
            self.marked.discard(key)
            self.hand += 1


@given(st.lists(st.one_of(st.integers(0, 30), st.none()), max_size=300))
def test_sieve_is_that_of_the_paper(steps: list[int | None]) -> None:
    """None: a new object, which evicts one when there are ten; a number: a read of some object in memory."""
    model, policy = Sieve(), resolve("sieve")
    rows = {}
    for tick, step in enumerate(steps, start=1):
        if step is None:
            if len(model.queue) == 10:
                now = np.concatenate(list(rows.values()))
                ranking = Ranking(now, policy, cover_bytes=1, evict=True)
                [victim] = ranking.take(1)
                assert int(victim["entry"]) == model.evict()
                del rows[int(victim["entry"])]
            model.queue.append(tick)
            rows[tick] = candidates([tick])
            rows[tick]["entry"] = tick
        elif model.queue:
            key = model.queue[step % len(model.queue)]
            model.marked.add(key)
            rows[key]["hits"] += 1
            rows[key]["stamp"] = tick


def test_the_hand_remembers_a_bounded_number_of_passes() -> None:
    hand, rng = Hand(), np.random.default_rng(1)
    for round_ in range(20 * KEEP):
        rows = candidates((rng.permutation(1000) + 1000 * round_).tolist())
        rows["hits"] = rng.integers(0, 2, len(rows))
        order = np.argsort(rows["arrived"])
        hand.took(rows, order, 5)
        assert len(hand._ends) <= KEEP
        assert (np.diff(hand._ends.astype(np.int64)) > 0).all()


# --- gdsf ---


def gdsf_of_the_paper(requests: list[int], sizes: list[int], capacity: int) -> list[int]:
    """GreedyDual-Size-Frequency with its inflation added at each access; the objects it evicts, in order."""
    floor, used, evicted = 0.0, 0, []
    worth: dict[int, float] = {}
    reads: dict[int, int] = {}
    for key in requests:
        if key not in worth:
            while used + sizes[key] > capacity:
                victim = min(worth, key=lambda each: worth[each])
                floor = worth.pop(victim)
                used -= sizes[victim]
                evicted.append(victim)
            used += sizes[key]
            reads[key] = 0
        reads[key] += 1
        worth[key] = floor + reads[key] * (1 + 200_000 / sizes[key])
    return evicted


def evicted_by(policy: Policy, requests: list[int], sizes: list[int], capacity: int) -> list[int]:
    """The objects that `policy` evicts one by one, in order."""
    rows: dict[int, NDArray[Any]] = {}
    evicted = []
    for tick, key in enumerate(requests, start=1):
        if key in rows:
            rows[key]["hits"] += 1
            rows[key]["stamp"] = tick
            continue
        while sum(sizes[other] for other in rows) + sizes[key] > capacity:
            [victim] = Ranking(np.concatenate(list(rows.values())), policy, 1, evict=True).take(1)
            evicted.append(int(victim["entry"]))
            del rows[evicted[-1]]
        rows[key] = table([tick], [tick], [sizes[key]], [0], [False])
        rows[key]["entry"] = key
    return evicted


def test_gdsf_is_that_of_the_paper() -> None:
    """With the floor looked up by the time of the last access instead of added at that access: nine of ten
    evictions are the same (one that differs moves those that follow, so they are compared as bags)."""
    rng = np.random.default_rng(5)
    sizes = (10 ** rng.uniform(3, 6, 60)).astype(int).tolist()
    requests = (rng.zipf(1.3, 3000) % 60).tolist()
    expected = Counter(gdsf_of_the_paper(requests, sizes, sum(sizes) // 3))
    differ = {}
    for name in ("gdsf", "lru"):
        found = Counter(evicted_by(resolve(name), requests, sizes, sum(sizes) // 3))
        differ[name] = ((expected - found) + (found - expected)).total() / expected.total()
    assert differ["gdsf"] < 0.1 < 0.5 < differ["lru"], differ


def test_gdsf_prefers_to_keep_what_is_small_and_read_often() -> None:
    rows = table([10] * 4, [1] * 4, [10**3, 10**5, 10**7, 10**7], [0, 0, 0, 9], [False] * 4)
    assert list(resolve("gdsf")(rows)) == [2, 1, 3, 0]


# --- functions of users ---


@pytest.mark.parametrize("result", [[2, 0], (1,), np.array([2, 1, 0], np.uint8), [], range(3)])
def test_a_policy_of_ones_own(result: Any) -> None:
    order = resolve(lambda _: result)(candidates([1, 2, 3]))
    assert list(order) == list(result)
    assert order.dtype == np.intp


def test_a_policy_sees_the_candidates_and_cannot_change_them() -> None:
    given_candidates = candidates([3, 1, 2])

    def largest_stamp_first(shown: NDArray[Any]) -> Any:
        assert not shown.flags.writeable and not shown["stamp"].flags.writeable
        return np.argsort(shown["stamp"])[::-1]

    assert list(resolve(largest_stamp_first)(given_candidates)) == [0, 2, 1]
    assert given_candidates.flags.writeable


@pytest.mark.parametrize(
    ("result", "error", "says"),
    [
        ([0, 3], ValueError, "index 3, and there are 3 candidates"),
        ([0, -1], ValueError, "index -1"),
        ([2, 0, 2], ValueError, "index 2 more than once"),
        ([0.0, 1.0], TypeError, "of float64"),
        ([[0, 1]], TypeError, "2 dimensions"),
        (None, TypeError, "sequence of indices"),
        ([True, False, True], TypeError, "of bool"),
        (["a"], TypeError, "sequence of indices"),
    ],
)
def test_what_a_policy_may_not_return(result: Any, error: type[Exception], says: str) -> None:
    def wrong(_: NDArray[Any]) -> Any:
        return result

    with pytest.raises(error, match=says) as caught:
        resolve(wrong)(candidates([1, 2, 3]))
    assert "wrong" in str(caught.value)


def test_an_error_in_a_policy_says_whose_it_is() -> None:
    def broken(_: NDArray[Any]) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as caught:
        resolve(broken)(candidates([1]))
    assert "broken" in caught.value.__notes__[0]


def test_policies_that_there_are_not() -> None:
    with pytest.raises(ValueError, match=r"'fifo': use 'lru', 'sieve', 'gdsf', 'mru' or a function"):
        resolve("fifo")
    with pytest.raises(TypeError, match="not int"):
        resolve(5)  # type: ignore[arg-type]
