"""Notices of sealed and deleted objects, from any process to the subscribers in any process.

Each subscriber has a queue in the store: values under numbered names, and under the queue's own name the
number below which everything was read. A publisher appends under the first free number; names are given in
one step, so that two never share one. A number that it took for free may have been read and deleted before;
since the reader moves its mark first and deletes then, a publisher that looks at the mark afterwards knows
that this may be so, and appends again; since it numbers its notices, the reader knows what it has.
Invariants: nothing is lost and a queue has one order for all; a subscriber that has died is found by the
ref to its mark, which it alone keeps, and its queue is removed by whoever publishes or subscribes next.
Not here: who publishes what (client.py).
"""

from __future__ import annotations

import fcntl
import itertools
import os
import secrets
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeAlias

from millpond import (
    MillpondError,
    ObjectNotFoundError,
    ObjectRef,
    Store,
    StoreBusyError,
    StoreFullError,
    log,
)
from millpond.integrations.plasma.ids import ObjectID
from millpond.threads import start

Put: TypeAlias = Callable[..., ObjectRef]
"""As `Store.put`, which makes room if need be."""

RECORD = struct.Struct("=20sqq")
"""One notice: the object's id, its data size and its metadata size; both are -1 when it was deleted."""

DELETED = -1

_ORIGIN = struct.Struct("=QQ")  # the publisher, and its number for this notice

_LIST = "plasma.subscribers"
_QUEUE = "plasma.queue:"
_READ_AT_ONCE = 64  # notices that are read before the mark is moved
_LOOK_AFTER = 1024  # notices between two looks for dead subscribers
_END = b""

_own: set[str] = set()  # queues of this process


class Publisher:
    """One client's part in telling all subscribers."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._id = secrets.randbits(64)
        self._count = 0
        self._ends: dict[str, int] = {}  # the first number of each queue that may be free
        self._waiting: deque[bytes] = deque()
        self._sending = False
        self._lock = threading.RLock()  # making room for a notice removes objects, which is published

    def publish(self, put: Put, object_id: ObjectID, data_size: int, metadata_size: int) -> None:
        """Appends a notice to every queue; while this thread appends another one, right after that."""
        if _LIST not in self._store:
            return
        with self._lock:
            self._waiting.append(RECORD.pack(object_id.binary(), data_size, metadata_size))
            if self._sending:
                return
            self._sending = True
            try:
                while self._waiting:
                    self._send(put, self._waiting.popleft())
            finally:
                self._sending = False

    def _send(self, put: Put, notice: bytes) -> None:
        self._count += 1
        if self._count % _LOOK_AFTER == 0:
            _remove_dead(self._store, put)
        for queue in _queues(self._store):
            self._append(put, queue, notice + _ORIGIN.pack(self._id, self._count))

    def end(self, put: Put, queue: str) -> None:
        """Appends the notice after which nothing is read."""
        self._append(put, queue, _END)

    def _append(self, put: Put, queue: str, notice: bytes) -> None:
        store = self._store
        with suppress(ObjectNotFoundError):  # the subscriber has ended
            at = max(self._ends.get(queue, 0), store.lookup(queue).get())
            while True:
                while f"{queue}:{at}" in store:
                    at += 1
                with suppress(ValueError):  # somebody else has taken it
                    put(notice, name=f"{queue}:{at}")
                    self._ends[queue] = at + 1
                    read = store.lookup(queue).get()
                    if read <= at:
                        return
                    with suppress(ObjectNotFoundError):
                        store.delete(f"{queue}:{at}")
                    at = read


def unpack(notices: bytes) -> Iterator[tuple[ObjectID, int, int]]:
    """(id, data size, metadata size) of each notice in a message. Raises struct.error for others."""
    return ((ObjectID(binary), data, metadata) for binary, data, metadata in RECORD.iter_unpack(notices))


class Subscription:
    """One subscriber's queue. What is published from now on arrives, in order."""

    def __init__(self, store: Store, put: Put) -> None:
        self._store, self._put = store, put
        self._queue = _QUEUE + secrets.token_hex(8)
        _own.add(self._queue)
        self._at = self._marked = 0
        self._mark = put(0, name=self._queue)
        self._first: deque[bytes] = deque()
        self._known: set[bytes] = set()
        self._seen: dict[int, int] = {}  # the last number of each publisher
        self._pump: tuple[threading.Thread, socket.socket, socket.socket] | None = None
        _remove_dead(store, put)
        _change_list(store, put, lambda queues: (*queues, self._queue))

    def begin_with(self, notices: Iterable[bytes]) -> None:
        """Puts notices of what was there before to the front; what is told twice because it was sealed
        while they were gathered arrives once."""
        self._first.extend(notices)
        self._known = {notice[:20] for notice in self._first}

    def next(self, timeout: float | None = None) -> bytes:
        """The next notice. Raises GetTimeoutError after `timeout` seconds, EOFError after `end`."""
        while True:
            if self._first:
                return self._first.popleft()
            if self._at - self._marked >= _READ_AT_ONCE:
                with suppress(StoreFullError):  # later
                    self._move_mark()
            notice: bytes = self._store.lookup(f"{self._queue}:{self._at}", timeout).get()
            self._at += 1
            if notice == _END:
                raise EOFError("the subscription has ended")
            publisher, number = _ORIGIN.unpack_from(notice, RECORD.size)
            if number > self._seen.get(publisher, 0):
                self._seen[publisher] = number
                notice = notice[: RECORD.size]
                if not self._told(notice):
                    return notice

    def _told(self, notice: bytes) -> bool:
        object_id, data_size, _ = RECORD.unpack(notice)
        if object_id not in self._known:
            return False
        self._known.remove(object_id)
        return bool(data_size != DELETED)

    def _move_mark(self) -> None:
        self._mark = self._put(self._at, name=self._queue, replace=True)
        for number in range(self._marked, self._at):
            with suppress(ObjectNotFoundError):  # a publisher that saw the mark first took it back
                self._store.delete(f"{self._queue}:{number}")
        self._marked = self._at

    def stream(self) -> socket.socket:
        """A stream of messages: the length in 8 bytes, then notices. From now on `next` is not for others."""
        if self._pump is None:
            ours, theirs = socket.socketpair()
            thread = threading.Thread(target=self._feed, args=(ours,), name="plasma-notices", daemon=True)
            try:
                if not start(thread):
                    raise RuntimeError("no thread can be started that feeds a stream of notices")
            except BaseException:
                ours.close()
                theirs.close()
                raise
            self._pump = thread, ours, theirs
        return self._pump[2].dup()

    def receive(self) -> bytes:
        """The next notice, by whichever way they come."""
        if self._pump is None:
            return self.next()
        length = int.from_bytes(_exactly(self._pump[2], 8), "little")
        return _exactly(self._pump[2], length)

    def _feed(self, ours: socket.socket) -> None:
        with suppress(EOFError, OSError), ours:
            while not self._store.closed:
                try:
                    notice = self.next()
                except StoreBusyError:
                    continue  # whoever is stopped in there may go on
                except MillpondError:
                    if not self._store.closed:
                        log.exception("a stream of notices ends here: subscribe again")
                    return
                ours.sendall(len(notice).to_bytes(8, "little") + notice)

    def end(self) -> None:
        """Removes the queue. What is waiting for it gets EOFError."""
        with suppress(MillpondError):
            _change_list(self._store, self._put, lambda queues: (q for q in queues if q != self._queue))
        if self._pump is not None:
            thread, ours, theirs = self._pump
            with suppress(MillpondError):
                Publisher(self._store).end(self._put, self._queue)
            with suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            thread.join()
            theirs.close()
        with suppress(MillpondError):
            _remove(self._store, self._queue)
        _own.discard(self._queue)


def _exactly(source: socket.socket, count: int) -> bytes:
    data = source.recv(count, socket.MSG_WAITALL)
    if len(data) < count:
        raise EOFError("the subscription has ended")
    return data


def _queues(store: Store) -> tuple[str, ...]:
    try:
        found: tuple[str, ...] = store.lookup(_LIST).get()
        return found
    except ObjectNotFoundError:
        return ()


@contextmanager
def _locked(store: Store, how: int) -> Iterator[None]:
    """One thread at a time changes the list: by a lock that the system releases with the process."""
    fd = os.open(f"{store.address}/plasma", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)  # a child forked meanwhile has the descriptor as well
        os.close(fd)


def _change_list(
    store: Store, put: Put, change: Callable[[tuple[str, ...]], Iterable[str]], how: int = fcntl.LOCK_EX
) -> None:
    with _locked(store, how):
        before = _queues(store)
        after = tuple(change(before))
        if after:
            put(after, name=_LIST, replace=True)
        elif before:
            store.delete(_LIST)


def _remove_dead(store: Store, put: Put) -> None:
    dead = [queue for queue in _queues(store) if queue not in _own and not _is_alive(store, queue)]
    if not dead:
        return
    with suppress(BlockingIOError):  # another one changes the list, or this thread, further up: next time
        at_once = fcntl.LOCK_EX | fcntl.LOCK_NB
        _change_list(store, put, lambda queues: (q for q in queues if q not in dead), at_once)
        for queue in dead:
            _remove(store, queue)


def _is_alive(store: Store, queue: str) -> bool:
    """Whether somebody else holds the queue's mark. Looked at twice: it may have been moved meanwhile."""
    for _ in range(2):
        with suppress(ObjectNotFoundError):
            if any(member.pid != os.getpid() for member in store.refs(store.lookup(queue)).members):
                return True
    return False


def _remove(store: Store, queue: str) -> None:
    for name in itertools.chain(list(store.names(f"{queue}:")), [queue]):
        with suppress(ObjectNotFoundError):
            store.delete(name)
