"""What members do to one object: the operations of the kernel that race with each other.

Each function below is one operation of the kernel, named as there, as the steps that others can see; the
labels of the pairs (PAIR pin-evict, ...) are those of the C sources. `changes` weaken one step, for mutants.
The object's value is the byte VALUE at address 0, and at 1 once it has moved; memory that is free holds
FREED, as if somebody else had written there.
Not here: who runs against whom, and what must never come of it (`scenarios`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from explorer.program import REFS_MUTEX, Order, Program, Registers

FREE, DRAFT, RESIDENT, EVICTING, SPILLED, RESTORING, DELETED, GARBAGE, ABANDONED = range(9)
STATE: Final = 127
WAIT: Final = 128
DEAD_STATES: Final = (DELETED, GARBAGE, ABANDONED)
VALUE: Final = 7
FREED: Final = 0

Changes = frozenset[str]
NONE: Final[Changes] = frozenset()


def byte(register: str) -> Callable[[Registers], str]:
    """The location of the byte at the address in a register."""
    return lambda r: f"byte{r[register]}"


def state_is(*states: int) -> Callable[[Registers], bool]:
    return lambda r: r["control"] & STATE in states


def state_is_not(*states: int) -> Callable[[Registers], bool]:
    return lambda r: r["control"] & STATE not in states


def strength(changes: Changes, weakened: str) -> Order:
    return Order.RELAXED if weakened in changes else Order.SEQ_CST


# --- pieces ---


def bury(p: Program, end: str) -> None:
    """`mp_bury`, mutex held: a dead object without pins gives its memory back, once."""
    p.load("control", "control")
    p.jump(end, state_is_not(*DEAD_STATES))
    p.load("pins", "pins")
    p.jump(end, lambda r: r["pins"] != 0)
    p.load("offset", "offset", Order.RELAXED)
    p.store(byte("offset"), FREED, Order.RELAXED)
    p.update("freed", lambda old, r: old + 1)
    p.store("control", FREE)


def unpin(p: Program, bit: int, changes: Changes = NONE) -> None:
    """`mp_unpin`. PAIR unpin-delete: clear the pin, then look whether somebody must bury."""
    p.update("pins", lambda old, r: old & ~bit, None, strength(changes, "unpin clears relaxed"))
    if "unpin looks for no death" not in changes:
        bury_if_dead(p, "unpinned", strength(changes, "unpin looks relaxed"))
    p.label("unpinned")


def bury_if_dead(p: Program, end: str, order: Order = Order.SEQ_CST) -> None:
    """What an unpin does when it was the last one of its member; to `end` if the object is alive."""
    p.load("control", "control", order)
    p.jump(end, state_is_not(*DEAD_STATES))
    p.lock()
    bury(p, "buried")
    p.label("buried")
    p.unlock()


def leave(p: Program, state: int, to: int, changes: Changes = NONE, order: Order = Order.SEQ_CST) -> None:
    """`mp_leave`: DRAFT or RESTORING becomes `to`, who waits is woken. Register `left`: the old word."""
    p.update("control", lambda old, r: to if old & STATE == state else None, "left", order)
    if "leave wakes nobody" not in changes:
        p.jump("woken", lambda r: r["left"] & STATE != state or not r["left"] & WAIT)
        p.update("event", lambda old, r: old + 1)
        p.label("woken")


# --- operations ---


def get(number: int, changes: Changes = NONE, mortal: bool = False) -> Program:
    """`mp_view`, two looks at the value, and the end of the view. PAIR pin-evict."""
    p, bit = Program(f"get {number}", mortal), 1 << number
    if "get reads the offset first" in changes:
        p.load("offset", "offset", Order.RELAXED)
    p.update("pins", lambda old, r: old | bit, None, strength(changes, "get pins relaxed"))
    p.load("control", "control", strength(changes, "get looks relaxed"))
    p.jump("undo", state_is_not(RESIDENT))
    if "get reads the offset first" not in changes:
        p.load("offset", "offset", Order.RELAXED)
    for _ in range(2):
        p.load("byte", byte("offset"), Order.RELAXED)
        p.require(lambda r: r["byte"] == VALUE, "sees bytes that are not the object's")
    p.label("undo")
    if "a failed get only clears its bit" in changes:
        p.jump("as ever", lambda r: "byte" in r)
        p.update("pins", lambda old, r: old & ~bit)
        p.jump("unpinned")
        p.label("as ever")
    unpin(p, bit, changes)
    return p


def evict(changes: Changes = NONE) -> Program:
    """`mp_evict` of a clean object; its memory is somebody else's afterwards. PAIR pin-evict."""
    p = Program("evict")
    p.lock()
    p.load("control", "control")
    p.jump("end", state_is_not(RESIDENT))
    if "evict reads the pins first" in changes:
        p.load("pins", "pins")
    p.store("control", EVICTING, strength(changes, "evict stores relaxed"))
    if "evict reads the pins first" not in changes:
        p.load("pins", "pins", strength(changes, "evict looks relaxed"))
    p.jump("back", lambda r: r["pins"] != 0)
    p.store("control", SPILLED)
    p.load("offset", "offset", Order.RELAXED)
    p.store(byte("offset"), FREED, Order.RELAXED)
    p.jump("end")
    p.label("back")
    p.store("control", RESIDENT)
    p.label("end")
    p.unlock()
    return p


def move(changes: Changes = NONE) -> Program:
    """Moving a small object to address 1; its old memory is somebody else's afterwards. PAIR pin-evict."""
    p = Program("move")
    p.lock()
    p.load("control", "control")
    p.jump("end", state_is_not(RESIDENT))
    p.store("control", EVICTING, strength(changes, "move stores relaxed"))
    p.load("pins", "pins")
    if "move ignores pins" not in changes:
        p.jump("back", lambda r: r["pins"] != 0)
    p.load("byte", "byte0", Order.RELAXED)
    if "move publishes before it copies" in changes:
        p.store("offset", 1, Order.RELAXED)
        p.store("control", RESIDENT)
        p.store("byte1", lambda r: r["byte"], Order.RELAXED)
    else:
        p.store("byte1", lambda r: r["byte"], Order.RELAXED)
        p.store("offset", 1, Order.RELAXED)
        p.store("control", RESIDENT, strength(changes, "move publishes relaxed"))
    p.store("byte0", FREED, Order.RELAXED)
    p.jump("end")
    p.label("back")
    p.store("control", RESIDENT)
    p.label("end")
    p.unlock()
    return p


def delete(changes: Changes = NONE) -> Program:
    """`mp_delete`. PAIR unpin-delete: store the death, then read the pins."""
    p = Program("delete")
    p.lock()
    p.load("control", "control")
    p.jump("end", state_is(FREE, *DEAD_STATES))
    order = strength(changes, "delete stores relaxed")
    p.update(
        "control", lambda old, r: DELETED if old & STATE not in (FREE, *DEAD_STATES) else None, "left", order
    )
    if "a death wakes nobody" not in changes:
        p.jump("nobody waits", lambda r: not r["left"] & WAIT)
        p.update("event", lambda old, r: old + 1)
        p.label("nobody waits")
    if "delete ignores pins" in changes:
        p.store("byte0", FREED, Order.RELAXED)
        p.store("control", FREE)
    bury(p, "end")
    p.label("end")
    p.unlock()
    return p


def seal(changes: Changes = NONE) -> Program:
    """A draft of `create`: pinned from birth, filled, sealed, unpinned. PAIR seal."""
    p = Program("seal")
    fill_last = "seal before the last byte" in changes
    if not fill_last:
        p.store("byte0", VALUE, Order.RELAXED)
    leave(p, DRAFT, RESIDENT, changes, strength(changes, "seal relaxed"))
    if fill_last:
        p.store("byte0", VALUE, Order.RELAXED)
    p.update("freed", lambda old, r: None, "freed")  # no step of the kernel: is the memory still ours?
    p.require(lambda r: r["freed"] == 0, "writes to memory that was given away")
    if "a draft is not pinned" not in changes:
        unpin(p, 1)
    return p


def hold(changes: Changes = NONE) -> Program:
    """`mp_hold` in the process of `drop`: above zero without a mutex, else with both. It lets go again."""
    p = Program("hold")
    p.load("refs", "refs")
    p.label("again")
    p.jump("slow", lambda r: r["refs"] == 0)
    if "hold counts without looking" in changes:
        p.update("refs", lambda old, r: old + 1)
        p.let("holds", 1)
        p.jump("end")
    p.swap("refs", lambda r: r["refs"], lambda r: r["refs"] + 1, "seen")
    p.let("holds", 1)
    p.jump("end", lambda r: r["seen"] == r["refs"])
    p.let("refs", lambda r: r["seen"])
    p.jump("again")
    p.label("slow")
    p.lock(REFS_MUTEX)
    p.lock()
    p.load("control", "control")
    p.let("holds", 0)
    p.jump("gone", state_is_not(RESIDENT))
    p.update("holders", lambda old, r: old | 1)
    p.update("refs", lambda old, r: old + 1)
    p.let("holds", 1)
    p.label("gone")
    p.unlock()
    p.unlock(REFS_MUTEX)
    p.label("end")
    p.jump("dropped", lambda r: r["holds"] == 0)
    p.load("control", "control")
    p.require(state_is(RESIDENT), "freed although it is held")
    p.load("holders", "holders")
    p.require(lambda r: r["holders"] == 1, "held without a holder bit")
    _drop(p, changes)
    return p


def collect(p: Program, end: str, changes: Changes = NONE) -> None:
    """`mp_collect`, mutex held: what nobody holds is garbage."""
    if "collect counts no hand-off" not in changes:
        p.load("tokens", "tokens")
        p.jump(end, lambda r: r["tokens"] != 0)
    p.load("holders", "holders")
    p.jump(end, lambda r: r["holders"] != 0)
    p.load("control", "control")
    p.jump(end, state_is_not(RESIDENT))
    p.store("control", FREE)


def drop(number: int, changes: Changes = NONE) -> Program:
    """`mp_drop`: above one without a mutex, the last one with both, unless it was raised meanwhile."""
    p = Program(f"drop {number}")
    _drop(p, changes)
    return p


def _drop(p: Program, changes: Changes) -> None:
    p.load("refs", "refs")
    _count_down(p, "dropped", "last")
    p.jump("dropped")
    p.label("last")
    p.lock(REFS_MUTEX)
    p.load("refs", "refs")
    _count_down(p, "not the last", "still the last")
    p.jump("not the last")
    p.label("still the last")
    p.lock()
    if "drop clears the bit before the count" in changes:
        p.update("holders", lambda old, r: old & ~1)
        p.update("refs", lambda old, r: old - 1, "refs")
    else:
        p.update("refs", lambda old, r: old - 1, "refs")
        p.jump("kept", lambda r: r["refs"] != 1)
        p.update("holders", lambda old, r: old & ~1)
    collect(p, "kept")
    p.label("kept")
    p.unlock()
    p.label("not the last")
    p.unlock(REFS_MUTEX)
    p.label("dropped")


def _count_down(p: Program, done: str, last: str) -> None:
    """Compare and swap while there is more than one; to `last` if there is one."""
    p.label(f"{done} again")
    p.jump(last, lambda r: r["refs"] <= 1)
    p.swap("refs", lambda r: r["refs"], lambda r: r["refs"] - 1, "seen")
    p.jump(done, lambda r: r["seen"] == r["refs"])
    p.let("refs", lambda r: r["seen"])
    p.jump(f"{done} again")


def drop_later(changes: Changes = NONE) -> Program:
    """`mp_drop_later` in a destructor, then `mp_drain`: the last ref stays on a list until then."""
    p = Program("drop later")
    p.lock(REFS_MUTEX)
    p.load("refs", "refs")
    _count_down(p, "counted", "put off")
    p.jump("counted")
    p.label("put off")
    if "what is put off is counted off" in changes:
        p.update("refs", lambda old, r: old - 1)
    else:
        p.store("deferred", 1)
    p.label("counted")
    p.unlock(REFS_MUTEX)
    p.lock(REFS_MUTEX)
    p.load("deferred", "deferred")
    p.jump("taken", lambda r: r["deferred"] == 0)
    p.store("deferred", 0)
    p.label("taken")
    p.unlock(REFS_MUTEX)
    p.jump("dropped", lambda r: r["deferred"] == 0)
    _drop(p, changes)
    return p


def issue_and_drop(changes: Changes = NONE, mortal: bool = False) -> Program:
    """Member 0 pickles its ref, then drops it."""
    p = Program("issue", mortal)
    halves = [issue, drop_bit]
    for half in reversed(halves) if "drop before the hand-off" in changes else halves:
        half(p, changes)
    return p


def issue(p: Program, changes: Changes) -> None:
    p.lock()
    p.load("control", "control")
    p.jump("not issued", state_is_not(RESIDENT))
    p.store("nonce", 1)
    p.store("tokens", 1)  # token.issued
    p.label("not issued")
    p.unlock()


def drop_bit(p: Program, changes: Changes, bit: int = 1) -> None:
    p.lock()
    p.update("holders", lambda old, r: old & ~bit)
    collect(p, "kept", changes)
    p.label("kept")
    p.unlock()


def _consume(p: Program, end: str) -> None:
    p.load("nonce", "nonce")
    p.jump(end, lambda r: r["nonce"] == 0)
    p.store("nonce", 0)
    p.load("tokens", "tokens")
    p.store("tokens", lambda r: r["tokens"] - 1 if r["tokens"] else 0)
    collect(p, end)


def load_token(changes: Changes = NONE, mortal: bool = False) -> Program:
    """`mp_token_load` by member 1: hold first, then consume, in one hold of the mutex."""
    p = Program("load", mortal)
    p.let("holds", 0)
    if "consume before hold" in changes:
        lock_and_repair(p, changes)
        _consume(p, "consumed")
        p.label("consumed")
        p.unlock()
    lock_and_repair(p, changes)
    p.load("control", "control")
    p.jump("end", state_is_not(RESIDENT))
    p.update("holders", lambda old, r: old | 2)
    p.let("holds", 1)
    if "consume before hold" not in changes:
        _consume(p, "end")
    p.label("end")
    p.unlock()
    return p


def lock_and_repair(p: Program, changes: Changes) -> None:
    """`mp_lock`: who gets the mutex from a dead owner rebuilds the caches, then tests what nobody holds."""
    p.lock()
    sound = f"sound {len(p.steps)}"
    if "no rebuild after a dead owner" not in changes:
        p.jump(sound, lambda r: r["inherited"] == 0)
        p.load("nonce", "nonce")
        p.store("tokens", lambda r: r["nonce"])
        collect(p, sound)
        p.label(sound)


def expire(changes: Changes = NONE) -> Program:
    """`mp_token_expire`: the hand-off lapses."""
    p = Program("expire")
    lock_and_repair(p, changes)
    p.load("nonce", "nonce")
    p.jump("end", lambda r: r["nonce"] == 0)
    p.store("nonce", 0)
    p.load("tokens", "tokens")
    p.store("tokens", lambda r: r["tokens"] - 1 if r["tokens"] else 0)
    collect(p, "end")
    p.label("end")
    p.unlock()
    return p


def reap(victim: int, bit: int = 2, changes: Changes = NONE) -> Program:
    """Reaping of the member with that bit, after the rebuild if it died with the mutex."""
    p = Program("reap")
    p.await_death(victim)
    lock_and_repair(p, changes)
    p.update("holders", lambda old, r: old & ~bit)
    collect(p, "end")
    p.label("end")
    p.unlock()
    return p


def reap_reader(victim: int, bit: int, changes: Changes = NONE) -> Program:
    """Reaping of a member that had a pin, or has just cleared it; behind a dead owner all are tested."""
    p = Program("reap")
    p.await_death(victim)
    p.lock()
    p.load("held", "pins")
    p.update("pins", lambda old, r: old & ~bit)
    if "reaping tests only what it held" in changes:
        p.jump("end", lambda r: not r["held"] & bit and not r["inherited"])
    bury(p, "end")
    p.label("end")
    p.unlock()
    return p


def restore(number: int, changes: Changes = NONE, mortal: bool = False) -> Program:
    """A get of a spilled object: become the owner and fill, or wait for who is. PAIR seal."""
    p, bit = Program(f"restore {number}", mortal), 1 << number
    p.update("pins", lambda old, r: old | bit)
    p.label("again")
    p.lock()
    p.load("control", "control")
    p.jump("busy", state_is_not(SPILLED))
    if "the owner is set last" in changes:
        p.store("control", RESTORING)
        p.store("owner", number)
    else:
        p.store("owner", number)
        p.store("control", RESTORING)
    p.unlock()
    if "restored before it is read" in changes:
        leave(p, RESTORING, RESIDENT, changes)
        p.store("byte0", VALUE, Order.RELAXED)
    else:
        p.store("byte0", VALUE, Order.RELAXED)
        leave(p, RESTORING, RESIDENT, changes, strength(changes, "restored relaxed"))
    p.jump("look")
    p.label("busy")
    p.unlock()
    p.jump("look", state_is(RESIDENT))
    if "the event is read late" not in changes:
        p.load("event", "event")
    p.update("control", lambda old, r: old | WAIT if old & STATE == RESTORING else None, "control")
    p.jump("look", state_is_not(RESTORING))
    if "the event is read late" in changes:
        p.load("event", "event")
    p.sleep("event", "event", "control", lambda control: control & STATE == RESTORING)
    p.label("look")
    p.load("control", "control")
    p.jump("again", state_is(SPILLED, RESTORING))
    p.jump("unpin", state_is_not(RESIDENT))
    p.load("byte", "byte0", Order.RELAXED)
    p.require(lambda r: r["byte"] == VALUE, "sees bytes that were not read yet")
    p.label("unpin")
    unpin(p, bit)
    return p


def reap_restorer(victim: int, changes: Changes = NONE) -> Program:
    """What a dead restorer leaves goes back to spilled, and who waits for it is woken."""
    p = Program("reap")
    p.await_death(victim)
    p.lock()
    p.load("control", "control")
    p.load("owner", "owner")
    p.update("pins", lambda old, r: old & ~(1 << victim))
    p.jump("end", lambda r: r["control"] & STATE != RESTORING or r["owner"] != victim)
    leave(p, RESTORING, SPILLED, changes)
    p.label("end")
    p.unlock()
    return p
