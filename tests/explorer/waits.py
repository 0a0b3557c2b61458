"""The event word: who waits counts itself, then looks; who wakes bumps the word, then looks who waits.

`mp_event_wait` and `mp_event_bump`, with the two system calls as holds of the lock that the system
has for a word: FUTEX_WAIT compares and falls asleep in one of them, FUTEX_WAKE wakes whoever sleeps.
No slice ends here, as it would after 50 ms: who sleeps then for nothing is a fault.
Not here: what is waited for (`protocols`, `holds`, which take a bump for a wake).
"""

from __future__ import annotations

from typing import Final

from explorer.machine import Scenario
from explorer.program import PINS_MUTEX, Order, Program, Registers
from explorer.protocols import NONE, Changes, strength

FUTEX: Final = PINS_MUTEX
"""The system's lock."""


def _wait(number: int, changes: Changes) -> Program:
    """Until `done`. PAIR event."""
    p = Program(f"wait {number}")
    p.label("again")
    p.load("seen", "event")
    p.load("done", "done")
    p.jump("end", lambda r: r["done"] == 1)
    late = "who waits looks before it counts itself" in changes
    if late:
        p.load("event", "event")
        p.jump("again", lambda r: r["event"] != r["seen"])
    p.update("waiters", lambda old, r: old + 1, None, strength(changes, "who waits counts itself relaxed"))
    if not late:
        p.load("event", "event")
        p.jump("awake", lambda r: r["event"] != r["seen"])
    p.lock(FUTEX)
    p.load("event", "event", Order.RELAXED)
    p.let("sleeps", lambda r: int(r["event"] == r["seen"]))
    p.jump("stay", lambda r: r["sleeps"] == 0)
    p.store(f"asleep{number}", 1, Order.RELAXED)
    p.label("stay")
    p.unlock(FUTEX)
    p.jump("awake", lambda r: r["sleeps"] == 0)
    p.sleep(f"asleep{number}", "sleeps", "done", lambda done: True)
    p.label("awake")
    p.update("waiters", lambda old, r: old - 1)
    p.jump("again")
    p.label("end")
    return p


def _bump(changes: Changes) -> Program:
    """What is waited for happens, then `mp_event_bump`. PAIR event."""
    p = Program("bump")
    p.store("done", 1)
    if "who wakes looks before it bumps" in changes:
        p.load("waiters", "waiters")
    p.update("event", lambda old, r: old + 1, None, strength(changes, "who wakes bumps relaxed"))
    if "who wakes looks before it bumps" not in changes:
        p.load("waiters", "waiters", strength(changes, "who wakes looks relaxed"))
    p.jump("end", lambda r: r["waiters"] == 0)
    p.lock(FUTEX)
    for number in range(2):
        p.store(f"asleep{number}", 0, Order.RELAXED)
    p.unlock(FUTEX)
    p.label("end")
    return p


def _all_gone(memory: dict[str, int], registers: list[Registers]) -> str | None:
    return "somebody is counted who does not wait" if memory["waiters"] else None


def waits_for_an_event(changes: Changes = NONE) -> Scenario:
    """Two wait for what happens once."""
    memory = dict.fromkeys(["event", "waiters", "done", "asleep0", "asleep1"], 0)
    return Scenario(
        "two waits for an event", [_wait(0, changes), _wait(1, changes), _bump(changes)], memory, _all_gone
    )
