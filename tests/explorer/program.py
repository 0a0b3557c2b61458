"""A program of the explorer: a list of steps over shared locations and private registers.

Values and locations are constants or functions of the registers, so that an address may be computed.
Invariants: a step is visible to other threads (a load, a store, a lock) or local (a jump, an assignment);
local ones take no time of their own, since nobody can tell when they ran.
Not here: what a step does to memory (`machine`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from types import CodeType, FunctionType
from typing import Any, Final

Registers = dict[str, int]
Value = int | Callable[[Registers], int]
Location = str | Callable[[Registers], str]
Condition = Callable[[Registers], bool]


class Order(Enum):
    """The orders of C11 that the kernel uses. Plain bytes count as RELAXED."""

    RELAXED = 0
    ACQUIRE = 1
    RELEASE = 2
    SEQ_CST = 3
    ACQ_REL = 4


@dataclass(frozen=True)
class Load:
    register: str
    location: Location
    order: Order


@dataclass(frozen=True)
class Store:
    location: Location
    value: Value
    order: Order


@dataclass(frozen=True)
class Update:
    """A read-modify-write. `change` gives the new value, or None to leave the old one (a failed CAS)."""

    location: Location
    change: Callable[[int, Registers], int | None]
    register: str | None
    """Gets the old value."""
    order: Order


MUTEX: Final = "mutex"
PINS_MUTEX: Final = "pins_mutex"
REFS_MUTEX: Final = "refs_mutex"


@dataclass(frozen=True)
class Lock:
    """Takes a mutex, which is robust; register `inherited` is 1 if its last owner died with it."""

    mutex: str = MUTEX


@dataclass(frozen=True)
class Unlock:
    mutex: str = MUTEX


@dataclass(frozen=True)
class Sleep:
    """A futex wait: as long as `location` holds what `register` holds. It also ends by itself after a slice;
    here only where somebody has died, and what `watched` holds is no reason to wait any longer."""

    location: str
    register: str
    watched: str
    waits: Callable[[int], bool]


@dataclass(frozen=True)
class AwaitDeath:
    """Goes on when thread number `victim` is dead: its byte lock is free."""

    victim: int


@dataclass(frozen=True)
class AwaitOthers:
    """Goes on when all others are dead, or have come to their ends."""


@dataclass(frozen=True)
class IsDead:
    """What the system says of thread number `victim`, and with it of the locks that it had."""

    register: str
    victim: int


@dataclass(frozen=True)
class Let:
    register: str
    value: Value


@dataclass(frozen=True)
class Jump:
    condition: Condition
    label: str


@dataclass(frozen=True)
class Require:
    """What must hold here."""

    condition: Condition
    text: str


Await = AwaitDeath | AwaitOthers
Step = Load | Store | Update | Lock | Unlock | Sleep | Await | IsDead | Let | Jump | Require
LOCAL = (Let, Jump, Require)


@dataclass
class Program:
    """Steps, put together one call each. A mortal thread may be killed before any visible step."""

    name: str
    mortal: bool = False
    steps: list[Step] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def load(self, register: str, location: Location, order: Order = Order.SEQ_CST) -> None:
        self.steps.append(Load(register, location, order))

    def store(self, location: Location, value: Value, order: Order = Order.SEQ_CST) -> None:
        self.steps.append(Store(location, value, order))

    def update(
        self,
        location: Location,
        change: Callable[[int, Registers], int | None],
        register: str | None = None,
        order: Order = Order.SEQ_CST,
    ) -> None:
        self.steps.append(Update(location, change, register, order))

    def swap(self, location: Location, expected: Value, new: Value, register: str) -> None:
        """Compare and swap; `register` gets the old value, which is `expected` if it was done."""
        self.update(
            location,
            lambda old, r: value_of(new, r) if old == value_of(expected, r) else None,
            register,
        )

    def lock(self, mutex: str = MUTEX) -> None:
        self.steps.append(Lock(mutex))

    def unlock(self, mutex: str = MUTEX) -> None:
        self.steps.append(Unlock(mutex))

    def sleep(self, location: str, register: str, watched: str, waits: Callable[[int], bool]) -> None:
        self.steps.append(Sleep(location, register, watched, waits))

    def await_death(self, victim: int) -> None:
        self.steps.append(AwaitDeath(victim))

    def await_others(self) -> None:
        self.steps.append(AwaitOthers())

    def is_dead(self, register: str, victim: int) -> None:
        self.steps.append(IsDead(register, victim))

    def let(self, register: str, value: Value) -> None:
        self.steps.append(Let(register, value))

    def jump(self, label: str, condition: Condition = lambda r: True) -> None:
        self.steps.append(Jump(condition, label))

    def label(self, name: str) -> None:
        self.labels[name] = len(self.steps)

    def require(self, condition: Condition, text: str) -> None:
        self.steps.append(Require(condition, f"{self.name}: {text}"))


def _named(thing: object) -> set[str]:
    """The strings that a condition, a value or a location has in it: all registers that it may look at."""
    if isinstance(thing, str):
        return {thing}
    if isinstance(thing, CodeType):
        return set().union(*map(_named, thing.co_consts))
    if isinstance(thing, tuple | frozenset):
        return set().union(*map(_named, thing))
    if isinstance(thing, FunctionType):
        cells = [cell.cell_contents for cell in thing.__closure__ or ()]
        return set().union(_named(thing.__code__), *map(_named, cells))
    return set()


def _looks_at(step: Step) -> set[str]:
    match step:
        case Load(_, location, _):
            return _named(location)
        case Store(location, value, _):
            return _named(location) | _named(value)
        case Update(location, change, _, _):
            return _named(location) | _named(change)
        case Sleep(_, register, _, _):
            return {register}
        case Let(_, value):
            return _named(value)
        case Jump(condition, _) | Require(condition, _):
            return _named(condition)
    return set()


def _from_each_step(
    program: Program, own: list[set[Any]], end: set[Any], loses: Callable[[Step], object]
) -> list[Any]:
    """What is in `own` of any step that may come, for each step and the end; a step takes `loses` away."""
    found = [*map(set, own), end]
    grows = True
    while grows:
        grows = False
        for at, step in reversed([*enumerate(program.steps)]):
            more = own[at] | found[at + 1] - {loses(step)}
            if isinstance(step, Jump):
                more |= found[program.labels[step.label]]
            if not more <= found[at]:
                found[at] |= more
                grows = True
    return [frozenset(names) for names in found]


def needed(program: Program, at_end: Callable[..., object]) -> list[frozenset[str]]:
    """For each step of a program, and for its end, the registers that are looked at from there on. A name too
    many does no harm, one too few is a KeyError."""
    own = [_looks_at(step) for step in program.steps]
    return _from_each_step(program, own, _named(at_end), _sets)


def _sets(step: Step) -> str | None:
    return step.register if isinstance(step, Load | Update | IsDead | Let) else None


def loads(program: Program, location: str) -> list[frozenset[bool]]:
    """For each step of a program, and for its end, how that location may be loaded from there on: by a load
    that is seq_cst (True), by another (False)."""
    own: list[set[bool]] = []
    for step in program.steps:
        there = isinstance(step, Load) and any(
            name and location.startswith(name) for name in _named(step.location)
        )
        own.append({step.order is Order.SEQ_CST} if there else set())
    return _from_each_step(program, own, set(), lambda step: None)


def value_of(value: Value, registers: Registers) -> int:
    """What a constant or computed value is, given the registers."""
    return value(registers) if callable(value) else value


def location_of(location: Location, registers: Registers) -> str:
    """The same for a location."""
    return location(registers) if callable(location) else location
