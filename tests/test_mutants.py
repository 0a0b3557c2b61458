"""The list of kernel mutants is up to date with the sources. Running them takes minutes: `make proof`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "kernel"))
from mutants import MUTANTS, Mutant, mutated


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_place_is_there_once(mutant: Mutant) -> None:
    assert mutated(mutant) != ""
    assert mutant.old != mutant.new


def test_there_are_enough() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 30
