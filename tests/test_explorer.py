"""The lock-free protocols are sound in every interleaving, and the explorer would see it if they were not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import explorer
from explorer.machine import MACHINES, Machine, Scenario
from explorer.mutants import MUTANTS, Mutant
from explorer.program import Program
from explorer.protocols import NONE
from explorer.scenarios import SCENARIOS, Build


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
@pytest.mark.parametrize("build", SCENARIOS, ids=lambda build: build.__name__)
def test_protocol_is_sound(build: Build, machine: type[Machine]) -> None:
    found = machine(build(NONE)).explore()
    assert found.faults == set()
    assert found.states > 5


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.change)
def test_mutant_is_caught(mutant: Mutant, machine: type[Machine]) -> None:
    """Under the memory models that can show it, and only there: a claim that x86 hides it is checked too."""
    found = machine(mutant.scenario(frozenset([mutant.change]))).explore(until_fault=True)
    assert bool(found.faults) == (machine in mutant.machines)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_a_guarded_location_is_touched_with_the_mutex_only(machine: type[Machine]) -> None:
    """What is explored by itself is nobody else's business: that is no matter of trust."""
    program = Program("careless")
    program.store("counter", 1)
    scenario = Scenario("careless", [program], {"counter": 0}, lambda memory, registers: None)
    assert machine(scenario).explore().faults == set()
    guarded = Scenario("careless", [program], {"counter": 0}, scenario.at_end, frozenset(["counter"]))
    with pytest.raises(RuntimeError, match="counter is touched without the mutex"):
        machine(guarded).explore()


def test_every_change_is_a_mutant_once() -> None:
    changes = [mutant.change for mutant in MUTANTS]
    assert len(set(changes)) == len(changes) >= 30
    programs = "".join(path.read_text() for path in Path(explorer.__file__).parent.glob("*.py"))
    named = re.findall(r'"([^"]+)" (?:not )?in changes|strength\(changes, "([^"]+)"\)', programs)
    assert {one or other for one, other in named} == set(changes)
