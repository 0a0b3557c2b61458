"""Every interleaving of a few programs, under the memory of x86 and under that of C11.

    StoreBuffers  x86-64: stores wait in a first-in-first-out buffer until they reach memory; a
                  read-modify-write, a seq_cst store and the mutex wait until it is empty (Owens, Sarkar,
                  Sewell: "A better x86 memory model: x86-TSO", TPHOLs 2009)
    Views         C11, hence also arm64: memory keeps every value that a location ever had, and a thread
                  may read any that is not older than what it is known to have seen. Release stores hand a
                  thread's knowledge on, acquire loads take it over; a seq_cst load sees the last seq_cst
                  store to its location, but orders no other access (Kang and others: "A promising semantics
                  for relaxed-memory concurrency", POPL 2017, section 3, without promises; stores take effect
                  in the order in which they run)
Both also kill mortal threads before any of their visible steps; what a thread has stored by then
stays stored, as the processor retires instructions in order.
Two states that nobody can tell apart are one: registers that a thread will not look at again are
forgotten, as are values that nobody can load any more. What a scenario names as guarded is touched with
the mutex held only, which is checked: nobody can tell when its owner does so, hence such a step of the
owner is explored by itself, and those of others behind it (an ample set: Clarke, Grumberg, Peled: "Model
Checking", MIT Press 1999, section 10.3).
Invariants: states are immutable tuples, each is expanded once; the search ends only when nothing is left.
Not here: what the programs are (`protocols`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from explorer.program import (
    LOCAL,
    MUTEX,
    PINS_MUTEX,
    REFS_MUTEX,
    Await,
    AwaitDeath,
    AwaitOthers,
    IsDead,
    Jump,
    Let,
    Load,
    Lock,
    Order,
    Program,
    Registers,
    Require,
    Sleep,
    Step,
    Store,
    Unlock,
    Update,
    loads,
    location_of,
    needed,
    value_of,
)

DEAD = -1
STATES_MAX = 3_000_000


class Thread(NamedTuple):
    """One thread: where it is, what it knows."""

    at: int
    """The next step; DEAD when it was killed, the number of steps when it is done."""
    registers: tuple[tuple[str, int], ...]
    private: Any
    """Of the memory model: a store buffer or a view."""


class State(NamedTuple):
    memory: Any
    threads: tuple[Thread, ...]


@dataclass(frozen=True)
class Scenario:
    """Programs, where memory starts, and what must hold when nobody can go on."""

    name: str
    programs: Sequence[Program]
    memory: dict[str, int]
    at_end: Callable[[dict[str, int], list[Registers]], str | None]
    """Final memory and registers: what is wrong with them, or None."""
    guarded: frozenset[str] = frozenset()
    """Locations that are touched with the mutex held only."""
    outside: frozenset[str] = frozenset()
    """Locations that the system keeps, as files: everybody sees what is there now."""


@dataclass
class Outcome:
    """What an exploration has found."""

    states: int = 0
    faults: set[str] = field(default_factory=set)


class Machine:
    """What both memory models share."""

    name = ""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._programs = scenario.programs
        self._locations = sorted({*scenario.memory, MUTEX, PINS_MUTEX, REFS_MUTEX})
        self._index = {location: i for i, location in enumerate(self._locations)}
        self._guarded = {self._index[location] for location in scenario.guarded}
        self._plain = self._guarded | {self._index[location] for location in scenario.outside}
        self._needed = [needed(program, scenario.at_end) for program in scenario.programs]
        self._faults: set[str] = set()

    # --- of the memory model ---

    def start(self, values: list[int]) -> tuple[Any, Any]:
        """Memory with these values, and what a thread knows at first."""
        raise NotImplementedError

    def load(self, memory: Any, private: Any, at: int, order: Order) -> Iterator[tuple[int, Any, Any]]:
        """(value, memory, private) for every value that may be read."""
        raise NotImplementedError

    def store(
        self, memory: Any, private: Any, at: int, value: int, order: Order
    ) -> Iterator[tuple[Any, Any]]:
        raise NotImplementedError

    def update(
        self, memory: Any, private: Any, at: int, change: Callable[[int], int | None], order: Order
    ) -> Iterator[tuple[int, Any, Any]]:
        raise NotImplementedError

    def settle(self, state: State) -> Iterator[State]:
        """Steps that memory takes by itself."""
        yield from ()

    def normal(self, state: State) -> State:
        """The same state without what nobody can ever see again."""
        return state

    def latest(self, memory: Any, at: int) -> int:
        """What is in memory in the end."""
        raise NotImplementedError

    def quiet(self, private: Any) -> bool:
        """Whether everything that a thread has stored is in memory."""
        return True

    def learn(self, private: Any, other: Any) -> Any:
        """What a thread knows once the operating system has told it that another is gone."""
        return private

    # --- the search ---

    def explore(self, until_fault: bool = False) -> Outcome:
        """Visits every state that can be reached; with `until_fault`, only until something is wrong."""
        memory, private = self.start([self._scenario.memory.get(name, 0) for name in self._locations])
        first = State(memory, tuple(Thread(0, (), private) for _ in self._programs))
        first = State(memory, tuple(self._local(i, thread) for i, thread in enumerate(first.threads)))
        seen, left = {first}, [first]
        while left:
            state = left.pop()
            successors = list(self._successors(state))
            if not successors:
                self._check_end(state)
            for successor in map(self.normal, successors):
                if successor not in seen:
                    seen.add(successor)
                    left.append(successor)
            if until_fault and self._faults:
                break
            if len(seen) > STATES_MAX:
                raise RuntimeError(f"{self._scenario.name}: more than {STATES_MAX} states")
        return Outcome(len(seen), self._faults)

    def _successors(self, state: State) -> Iterator[State]:
        owner = self.latest(state.memory, self._index[MUTEX]) - 1
        if owner >= 0 and self._is_guarded(state, owner):
            yield from self._moves(state, owner)
            return
        yield from self.settle(state)
        for number in range(len(state.threads)):
            yield from self._moves(state, number)

    def _moves(self, state: State, number: int) -> Iterator[State]:
        """What a thread may do, and its death."""
        thread, program = state.threads[number], self._programs[number]
        if thread.at == DEAD or thread.at >= len(program.steps):
            return
        for memory, moved in self._step(state, number, thread, program.steps[thread.at]):
            yield self._replaced(State(memory, state.threads), number, self._local(number, moved))
        if program.mortal:
            registers = self._kept(number, len(program.steps), dict(thread.registers))
            yield self._replaced(state, number, Thread(DEAD, registers, thread.private))

    def _is_guarded(self, state: State, number: int) -> bool:
        """Whether the next step of a thread is at a guarded location."""
        thread, steps = state.threads[number], self._programs[number].steps
        if thread.at == DEAD or thread.at >= len(steps):
            return False
        step = steps[thread.at]
        if not isinstance(step, Load | Store | Update):
            return False
        return self._index[location_of(step.location, dict(thread.registers))] in self._guarded

    def _touched(self, state: State, number: int, location: str) -> int:
        """The index of a location, which this thread may touch now."""
        at = self._index[location]
        if at in self._guarded and self.latest(state.memory, self._index[MUTEX]) != number + 1:
            raise RuntimeError(f"{self._scenario.name}: {location} is touched without the mutex")
        return at

    @staticmethod
    def _replaced(state: State, number: int, thread: Thread) -> State:
        threads = state.threads
        return State(state.memory, (*threads[:number], thread, *threads[number + 1 :]))

    def _local(self, number: int, thread: Thread) -> Thread:
        """The thread after the local steps that it is at."""
        program = self._programs[number]
        at, registers = thread.at, dict(thread.registers)
        while 0 <= at < len(program.steps) and isinstance(step := program.steps[at], LOCAL):
            at += 1
            match step:
                case Let(register, value):
                    registers[register] = value_of(value, registers)
                case Jump(condition, label):
                    if condition(registers):
                        at = program.labels[label]
                case Require(condition, text):
                    if not condition(registers):
                        self._faults.add(text)
        return Thread(at, self._kept(number, at, registers), thread.private)

    def _kept(self, number: int, at: int, registers: Registers) -> tuple[tuple[str, int], ...]:
        """Those registers that matter to a thread from a step on."""
        names = self._needed[number][at]
        return tuple(sorted(item for item in registers.items() if item[0] in names))

    def _step(self, state: State, number: int, thread: Thread, step: Step) -> Iterator[tuple[Any, Thread]]:
        memory, private, registers = state.memory, thread.private, dict(thread.registers)

        def moved(private: Any, **changed: int) -> Thread:
            return Thread(thread.at + 1, (*registers.items(), *changed.items()), private)

        match step:
            case Load(register, location, order):
                at = self._touched(state, number, location_of(location, registers))
                for value, then, after in self.load(memory, private, at, order):
                    yield then, moved(after, **{register: value})
            case Store(location, value, order):
                at = self._touched(state, number, location_of(location, registers))
                for then, after in self.store(memory, private, at, value_of(value, registers), order):
                    yield then, moved(after)
            case Update(location, change, register, order):
                at = self._touched(state, number, location_of(location, registers))
                for old, then, after in self.update(
                    memory, private, at, lambda old: change(old, registers), order
                ):
                    yield then, moved(after, **({register: old} if register else {}))
            case Lock(mutex):
                yield from self._lock(state, number, private, self._index[mutex], moved)
            case Unlock(mutex):
                for _, then, after in self.update(
                    memory, private, self._index[mutex], lambda _: 0, Order.RELEASE
                ):
                    yield then, moved(after)
            case Sleep(location, register, watched, waits):
                woken = self.latest(memory, self._index[location]) != registers[register]
                over = not waits(self.latest(memory, self._index[watched]))
                if woken or (over and any(other.at == DEAD for other in state.threads)):
                    yield memory, moved(private)
            case IsDead(register, victim):
                yield memory, moved(private, **{register: int(state.threads[victim].at == DEAD)})
            case AwaitDeath(victim):
                other = state.threads[victim]
                if other.at == DEAD and self.quiet(other.private):
                    yield memory, moved(self.learn(private, other.private))
            case AwaitOthers():
                if all(i == number or self._is_over(i, other) for i, other in enumerate(state.threads)):
                    for other in state.threads:
                        private = self.learn(private, other.private)
                    yield memory, moved(private)

    def _is_over(self, number: int, thread: Thread) -> bool:
        ended = thread.at == DEAD or thread.at >= len(self._programs[number].steps)
        return ended and self.quiet(thread.private)

    def _lock(
        self, state: State, number: int, private: Any, at: int, moved: Callable[..., Thread]
    ) -> Iterator[tuple[Any, Thread]]:
        owner = self.latest(state.memory, at)
        if owner and (
            state.threads[owner - 1].at != DEAD or not self.quiet(state.threads[owner - 1].private)
        ):
            return
        if owner:
            private = self.learn(private, state.threads[owner - 1].private)
        for _, memory, after in self.update(state.memory, private, at, lambda _: number + 1, Order.ACQUIRE):
            yield memory, moved(after, inherited=int(owner != 0))

    def _check_end(self, state: State) -> None:
        values = {name: self.latest(state.memory, i) for name, i in self._index.items()}
        for program, thread in zip(self._programs, state.threads, strict=True):
            unfinished = thread.at != DEAD and thread.at < len(program.steps)
            if unfinished and not isinstance(program.steps[thread.at], Await):
                self._faults.add(
                    f"{program.name}: waits for ever at {type(program.steps[thread.at]).__name__.lower()}"
                )
        fault = self._scenario.at_end(values, [dict(thread.registers) for thread in state.threads])
        if fault is not None:
            self._faults.add(fault)


class StoreBuffers(Machine):
    """x86-64. Memory is a tuple of values, a thread's private part the stores that have not arrived."""

    name = "store buffers"

    def start(self, values: list[int]) -> tuple[Any, Any]:
        return tuple(values), ()

    def load(self, memory: Any, private: Any, at: int, order: Order) -> Iterator[tuple[int, Any, Any]]:
        own = [value for where, value in private if where == at]
        yield own[-1] if own else memory[at], memory, private

    def store(
        self, memory: Any, private: Any, at: int, value: int, order: Order
    ) -> Iterator[tuple[Any, Any]]:
        if at in self._guarded:
            yield (*memory[:at], value, *memory[at + 1 :]), private
        elif order is not Order.SEQ_CST:
            yield memory, (*private, (at, value))
        elif not private:
            yield (*memory[:at], value, *memory[at + 1 :]), private

    def update(
        self, memory: Any, private: Any, at: int, change: Callable[[int], int | None], order: Order
    ) -> Iterator[tuple[int, Any, Any]]:
        if private and at not in self._guarded:
            return
        new = change(memory[at])
        yield memory[at], memory if new is None else (*memory[:at], new, *memory[at + 1 :]), private

    def settle(self, state: State) -> Iterator[State]:
        for number, thread in enumerate(state.threads):
            if thread.private:
                (at, value), rest = thread.private[0], thread.private[1:]
                memory = (*state.memory[:at], value, *state.memory[at + 1 :])
                yield self._replaced(State(memory, state.threads), number, thread._replace(private=rest))

    def latest(self, memory: Any, at: int) -> int:
        value: int = memory[at]
        return value

    def quiet(self, private: Any) -> bool:
        return not private


_ACQUIRES: Final = (Order.ACQUIRE, Order.ACQ_REL, Order.SEQ_CST)
_RELEASES: Final = (Order.RELEASE, Order.ACQ_REL, Order.SEQ_CST)


class Views(Machine):
    """C11. Memory is (histories, the view of seq_cst); a history is a tuple of (value, view handed on)."""

    name = "views"

    def __init__(self, scenario: Scenario) -> None:
        super().__init__(scenario)
        self._loads = [self._loads_of(program) for program in scenario.programs]

    def _loads_of(self, program: Program) -> list[list[tuple[int, bool]]]:
        """For each step, the locations that may be loaded from there on, and whether by a load that is not
        seq_cst; the last two are for a thread that is done, and one that is dead."""
        kinds = [loads(program, location) for location in self._locations]
        at_steps = [
            [(i, False in kind[at]) for i, kind in enumerate(kinds) if kind[at]]
            for at in range(len(program.steps) + 1)
        ]
        return [*at_steps, []]

    def start(self, values: list[int]) -> tuple[Any, Any]:
        zero = (0,) * len(values)
        return (tuple(((value, zero),) for value in values), zero), zero

    def load(self, memory: Any, private: Any, at: int, order: Order) -> Iterator[tuple[int, Any, Any]]:
        histories, shared = memory
        if at in self._plain:
            yield histories[at][-1][0], memory, private
            return
        first = max(private[at], shared[at]) if order is Order.SEQ_CST else private[at]
        for when in range(first, len(histories[at])):
            value, handed = histories[at][when]
            after = _seen(private, at, when)
            if order in _ACQUIRES:
                after = _join(after, handed)
            yield value, memory, after

    def store(
        self, memory: Any, private: Any, at: int, value: int, order: Order
    ) -> Iterator[tuple[Any, Any]]:
        yield self._written(memory, private, at, value, order, (0,) * len(private))

    def _written(
        self, memory: Any, private: Any, at: int, value: int, order: Order, inherited: Any
    ) -> tuple[Any, Any]:
        histories, shared = memory
        if at in self._plain:
            return ((*histories[:at], ((value, (0,) * len(private)),), *histories[at + 1 :]), shared), private
        view = _seen(private, at, len(histories[at]))
        handed = _join(view if order in _RELEASES else _seen((0,) * len(view), at, view[at]), inherited)
        history = (*histories[at], (value, handed))
        if order is Order.SEQ_CST:
            shared = _seen(shared, at, view[at])
        return ((*histories[:at], history, *histories[at + 1 :]), shared), view

    def update(
        self, memory: Any, private: Any, at: int, change: Callable[[int], int | None], order: Order
    ) -> Iterator[tuple[int, Any, Any]]:
        histories, _ = memory
        old, handed = histories[at][-1]  # an update always follows the last value, and hands on what that did
        view = _seen(private, at, len(histories[at]) - 1)
        if order in _ACQUIRES:
            view = _join(view, handed)
        new = change(old)
        if new is None:
            yield old, memory, view
        else:
            memory, view = self._written(memory, view, at, new, order, handed)
            yield old, memory, view

    def latest(self, memory: Any, at: int) -> int:
        value: int = memory[0][at][-1][0]
        return value

    def learn(self, private: Any, other: Any) -> Any:
        return _join(private, other)

    def normal(self, state: State) -> State:
        """Without values that nobody can load any more; times count from there."""
        histories, shared = state.memory
        floor = [len(history) - 1 for history in histories]
        if not any(floor):
            return state
        for number, thread in enumerate(state.threads):
            for at, weak in self._loads[number][thread.at]:
                seen = thread.private[at]
                floor[at] = min(floor[at], seen if weak else max(seen, shared[at]))
        if not any(floor):
            return state
        rebased = tuple(
            tuple((value, _since(handed, floor)) for value, handed in history[first:])
            for history, first in zip(histories, floor, strict=True)
        )
        threads = tuple(thread._replace(private=_since(thread.private, floor)) for thread in state.threads)
        return State((rebased, _since(shared, floor)), threads)


def _join(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(max, one, other))


def _since(view: tuple[int, ...], floor: Sequence[int]) -> tuple[int, ...]:
    return tuple(max(0, when - first) for when, first in zip(view, floor, strict=True))


def _seen(view: tuple[int, ...], at: int, when: int) -> tuple[int, ...]:
    return (*view[:at], max(view[at], when), *view[at + 1 :])


MACHINES: tuple[type[Machine], ...] = (StoreBuffers, Views)
