"""The list of kernel mutants is up to date with the sources. Running them takes minutes: `make proof`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "kernel"))
from mutant_list import MUTANTS, Mutant
from mutants import PROGRAMS, catchers, mutated


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_place_is_there_once(mutant: Mutant) -> None:
    assert mutated(mutant) != ""
    assert mutant.old != mutant.new


def test_the_page_says_what_noticed_each() -> None:
    """If not: python tests/kernel/mutants.py NAME --page."""
    found = catchers()
    assert list(found) == [mutant.name for mutant in MUTANTS]
    assert {test.split()[0] for test in found.values()} <= set(PROGRAMS)


def test_there_are_enough() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 30
