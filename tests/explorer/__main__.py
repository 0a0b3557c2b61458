"""Explores every protocol whole, and every mutant until it is found out, and prints what was found.

Run in tests/: python -m explorer [--counts FILE]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from explorer.machine import MACHINES
from explorer.mutants import MUTANTS
from explorer.protocols import NONE
from explorer.scenarios import SCENARIOS
from proof import write_counts


def main() -> int:
    """0: every protocol is sound, and every mutant was caught where it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=Path)
    args = parser.parse_args()
    wrong, states, started = 0, 0, time.perf_counter()
    for build in SCENARIOS:
        scenario = build(NONE)
        for machine in MACHINES:
            found = machine(scenario).explore()
            states += found.states
            wrong += bool(found.faults)
            verdict = "; ".join(sorted(found.faults)) or "sound"
            print(f"{scenario.name:32} {machine.name:14} {found.states:8} states  {verdict}")
    for mutant in MUTANTS:
        for machine in MACHINES:
            found = machine(mutant.scenario(frozenset([mutant.change]))).explore(until_fault=True)
            states += found.states
            wrong += bool(found.faults) != (machine in mutant.machines)
            verdict = min(found.faults, default="not seen under this memory")
            print(f"mutant: {mutant.change:56} {machine.name:14} {verdict}")
    seconds = time.perf_counter() - started
    print(
        f"{len(SCENARIOS)} protocols, {len(MUTANTS)} mutants, {states} states, {seconds:.0f} s: {wrong} wrong"
    )
    counts = {"lock-free protocols": len(SCENARIOS), "their mutants": len(MUTANTS), "states explored": states}
    write_counts(args.counts, counts, wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
