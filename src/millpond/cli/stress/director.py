"""Who does what next, and who is killed: the parent process of a stress run.

Invariants: each worker has at most one command under way; a reply is entered into the books before
anything else is decided; member 0 is this process, which holds and reads objects like the others.
Not here: what a command does (hand.py), the state of the store afterwards (command.py).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, SpawnContext
from multiprocessing.process import BaseProcess

import millpond
from millpond.cli.stress.books import Books
from millpond.cli.stress.hand import Command, Hand, Reply, inherited, work
from millpond.cli.stress.values import Values

ANSWER_S = 60.0
"""A worker that takes longer over one command counts as hung."""
KILL_INTERVAL_S = 1.0
VARY_INTERVAL_S = 1.0
VIEWS_MAX = 2
VIEWS_SHARE = 4
CHECKED_AFTER_KILL = 8
SELF = 0

VIOLATIONS_MAX = 10

VERBS = ("put", "get", "copy", "view", "look", "share", "drop")
WEIGHTS_ROOM = (40, 25, 5, 5, 5, 15, 5)
WEIGHTS_FULL = (3, 30, 5, 5, 5, 7, 45)


@dataclass(frozen=True)
class Plan:
    """What the run is asked to do. Sizes in bytes."""

    memory: int
    data: int
    largest: int
    processes: int
    seconds: float
    kill: bool
    vary_limit: bool
    seed: int
    start_method: str


class TooManyViolations(Exception):
    """The run is given up: more of them would say nothing new."""


@dataclass
class Worker:
    """One worker process, as its director sees it."""

    number: int
    process: BaseProcess
    pipe: Connection
    command: Command | None = None
    ready: bool = False
    since: float = field(default_factory=time.monotonic)
    queue: deque[Command] = field(default_factory=deque)

    @property
    def idle(self) -> bool:
        """Whether it waits for a command."""
        return self.ready and self.command is None


class Director:
    """Runs the workers, keeps the books, collects the violations."""

    def __init__(self, store: millpond.Store, plan: Plan) -> None:
        self._store = store
        self._plan = plan
        self._rng = random.Random(plan.seed)
        self._values = Values(plan.seed, plan.largest)
        self._hand = Hand(store, self._values)
        self._workers: list[Worker] = []
        self._next_key = 0
        self._next_number = SELF + 1
        self.books = Books()
        self.counts: Counter[str] = Counter()
        self.bytes_verified = 0
        self.violations: list[str] = []

    def run(self, progress: Callable[[float], None]) -> None:
        """Works for as long as planned, then verifies what is left and lets everything go.

        `progress` is told the seconds that have passed.
        """
        inherited.append(self._hand)
        self.books.join(SELF)
        try:
            for _ in range(self._plan.processes):
                self._hire()
            self._play(progress)
            self._settle()
            self._verify_all()
            self._dismiss()
        except TooManyViolations:
            pass
        finally:
            inherited.remove(self._hand)
            for worker in self._workers:
                worker.process.kill()
                worker.process.join()
            self._hand.drop_all(0, b"")

    # --- the stages of a run ---

    def _play(self, progress: Callable[[float], None]) -> None:
        start = time.monotonic()
        kill_at = start + 2 * KILL_INTERVAL_S if self._plan.kill else float("inf")
        vary_at = start + VARY_INTERVAL_S if self._plan.vary_limit else float("inf")
        while (now := time.monotonic()) < start + self._plan.seconds:
            progress(now - start)
            for worker in list(self._workers):
                if worker.idle:
                    self._send(
                        worker, worker.queue.popleft() if worker.queue else self._choose(worker.number)
                    )
            self._receive(0.02)
            if self._rng.random() < 1 / (2 * self._plan.processes):
                self._act(self._choose(SELF))
            if now > vary_at:
                vary_at = now + VARY_INTERVAL_S
                self._vary_limit()
            if now > kill_at:
                kill_at = now + KILL_INTERVAL_S * self._rng.uniform(0.5, 1.5)
                self._kill(self._rng.choice(self._workers))

    def _vary_limit(self) -> None:
        """Halves the memory limit, and the next time doubles it again."""
        full = self._store.memory_limit == self._plan.memory
        self._store.configure(memory_limit=self._plan.memory // 2 if full else self._plan.memory)
        self.counts["limit"] += 1

    def _settle(self) -> None:
        """Serves what is queued, starts nothing new."""
        while any(worker.queue or not worker.idle for worker in self._workers):
            for worker in list(self._workers):
                if worker.idle and worker.queue:
                    self._send(worker, worker.queue.popleft())
            self._receive(0.1)

    def _verify_all(self) -> None:
        by_number = {worker.number: worker for worker in self._workers}
        for key in self.books.live:
            owner = self._rng.choice(self.books.owners(key))
            if owner == SELF:
                self._act(Command("get", key))
            else:
                by_number[owner].queue.append(Command("get", key))
        self._settle()

    def _dismiss(self) -> None:
        for worker in self._workers:
            worker.queue.append(Command("drop_all"))
        self._settle()
        for worker in self._workers:
            worker.pipe.send(None)
        for worker in self._workers:
            worker.process.join(ANSWER_S)
            if worker.process.exitcode != 0:
                self._violation(f"process {worker.number} ended with {worker.process.exitcode}")
            worker.pipe.close()

    # --- workers ---

    def _hire(self, queue: deque[Command] | None = None) -> None:
        method = self._plan.start_method
        context: ForkContext | SpawnContext = (
            multiprocessing.get_context("fork") if method == "fork" else multiprocessing.get_context("spawn")
        )
        mine, theirs = multiprocessing.Pipe()
        process = context.Process(
            target=work, args=(theirs, self._store.address, self._values, os.getpid()), daemon=True
        )
        process.start()
        theirs.close()
        self._workers.append(Worker(self._next_number, process, mine, queue=queue or deque()))
        self.books.join(self._next_number)
        self._next_number += 1

    def _kill(self, worker: Worker) -> None:
        """kill -9, whatever it is doing; a new worker takes its place and its mail."""
        worker.process.kill()
        self._bury(worker)
        self.counts["kill"] += 1

    def _bury(self, worker: Worker) -> None:
        worker.process.join()
        try:
            while worker.pipe.poll():
                self._enter(worker, worker.pipe.recv())
        except (EOFError, OSError):
            pass  # killed in the middle of an answer
        worker.pipe.close()
        self._workers.remove(worker)
        mail = deque(command for command in worker.queue if command.verb == "take")
        if worker.command is not None and worker.command.verb == "take":
            mail.appendleft(worker.command._replace(doubtful=True))
        survivors = self.books.die(worker.number)
        self._hire(mail)
        self._check_survivors(survivors)

    def _check_survivors(self, keys: set[int]) -> None:
        """Others hold these objects too: they must read them, now."""
        for key in self._rng.sample(sorted(keys), min(len(keys), CHECKED_AFTER_KILL)):
            owners = self.books.owners(key)
            if SELF in owners:
                self._act(Command("get", key))
            for worker in self._workers:
                if worker.number in owners:
                    worker.queue.append(Command("get", key))

    # --- commands and replies ---

    def _choose(self, member: int) -> Command:
        """A random command that the member can carry out."""
        held = self.books.held[member]
        full = self.books.live_bytes > self._plan.data
        (verb,) = self._rng.choices(VERBS, WEIGHTS_FULL if full else WEIGHTS_ROOM)
        views = self.books.views[member]
        if verb == "look" and views:
            return Command("look", views[0])
        if verb == "put" or not held:
            self._next_key += 1
            return Command("put", self._next_key)
        key = self._rng.choice(sorted(held))
        if verb == "look" or (verb == "view" and not self._may_view(member, key)):
            verb = "get"
        return Command(verb, key)

    def _may_view(self, member: int, key: int) -> bool:
        """Kept views pin memory: no more than one part in VIEWS_SHARE of the limit in all."""
        share = self._plan.memory // (VIEWS_SHARE * VIEWS_MAX * (self._plan.processes + 1))
        views = self.books.views[member]
        return len(views) < VIEWS_MAX and key not in views and self.books.size(key) <= share

    def _act(self, command: Command) -> None:
        """This process carries out a command itself."""
        self._before(SELF, command)
        self._after(SELF, self._hand.perform(command))

    def _send(self, worker: Worker, command: Command) -> None:
        if command.verb == "get" and command.key not in self.books.held[worker.number]:
            return  # queued before the worker dropped it
        self._before(worker.number, command)
        worker.command, worker.since = command, time.monotonic()
        try:
            worker.pipe.send(command)
        except OSError:
            self._lose(worker)

    def _receive(self, timeout: float) -> None:
        """Takes in the replies that are there, waiting for the first one."""
        by_pipe = {worker.pipe: worker for worker in self._workers}
        for pipe in wait(list(by_pipe), timeout):
            worker = by_pipe[pipe]  # type: ignore[index]
            try:
                self._enter(worker, worker.pipe.recv())
            except (EOFError, OSError):
                self._lose(worker)
        for worker in list(self._workers):
            if not worker.idle and time.monotonic() - worker.since > ANSWER_S:
                self._violation(
                    f"process {worker.number} did not answer within {ANSWER_S:.0f} s: {worker.command}"
                )
                worker.process.kill()
                self._bury(worker)

    def _lose(self, worker: Worker) -> None:
        worker.process.join(ANSWER_S)
        self._violation(
            f"process {worker.number} died by itself with {worker.process.exitcode} during {worker.command}"
        )
        self._bury(worker)

    def _enter(self, worker: Worker, reply: Reply | None) -> None:
        worker.command = None
        if reply is None:
            worker.ready = True
        else:
            self._after(worker.number, reply)

    def _before(self, member: int, command: Command) -> None:
        """Strikes off what will no longer be sure once the command is under way."""
        if command.verb == "drop":
            self.books.drop(member, command.key)
        elif command.verb == "look":
            self.books.views[member].remove(command.key)

    def _after(self, member: int, reply: Reply) -> None:
        """Enters what is sure now."""
        verb, key = reply.command.verb, reply.command.key
        self.counts[verb] += 1
        if verb == "take":
            self._after_take(member, reply)
        elif reply.fault:
            self._violation(f"{verb} of key {key} by process {member}: {reply.fault}")
            self.books.drop(member, key)
        elif verb == "put":
            self.books.put(member, key, self._values.size(key))
        elif verb == "share":
            self._forward(member, reply)
        elif verb == "view":
            self.books.views[member].append(key)
        elif verb in ("get", "copy", "look"):
            self.bytes_verified += self._values.size(key)

    def _after_take(self, member: int, reply: Reply) -> None:
        key = reply.command.key
        if not reply.fault:
            self.books.arrive(member, key, self._values.size(key))
            return
        self.books.stray(key)
        # Whoever was killed may have loaded it first, as the last holder.
        if not (reply.gone and reply.command.doubtful and not self.books.owners(key)):
            self._violation(f"take of key {key} by process {member}: {reply.fault}")

    def _forward(self, sender: int, reply: Reply) -> None:
        """Sends a pickled ref on to somebody else, unopened."""
        key = reply.command.key
        self.books.send(key)
        command = Command("take", key, reply.ref)
        others = [worker for worker in self._workers if worker.number != sender]
        target = self._rng.choice([None, *others]) if sender != SELF else self._rng.choice(others or [None])
        if target is None:
            self._act(command)
        else:
            target.queue.append(command)

    def _violation(self, text: str) -> None:
        self.violations.append(text)
        if len(self.violations) >= VIOLATIONS_MAX:
            raise TooManyViolations
