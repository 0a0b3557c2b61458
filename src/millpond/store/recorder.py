"""Records a timeline: what each process did when, as spans in one file, for Perfetto and chrome://tracing.

Traced methods stand in for the store's own while a timeline is on; while it is off nothing is longer by an
instruction. Each span is one write to the end of the file, which all processes share: nothing is merged, and
a killed process loses at most the span that it was in.
Format: the array form of Chrome's trace events, one event a line. Its closing bracket may be missing, says
the format, and it is missing here, since nobody is the last to write.
Not here: reading it again (millpond.observe.timeline).
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from millpond import hot, log
from millpond.hot import ObjectRef
from millpond.spill.writer import SpillWriter
from millpond.store import ahead
from millpond.store.restore import Restore
from millpond.store.room import Room
from millpond.store.store import Store
from millpond.values import serialize

__all__ = ["timeline"]

VARIABLE = "MILLPOND_TIMELINE"

Describe = Callable[[tuple[Any, ...], Any], dict[str, Any]]
"""(arguments of the call, its result or None) to what the span tells beside its name."""


@contextmanager
def timeline(path: str | os.PathLike[str]) -> Iterator[None]:
    """Records what this process does in its stores, and those that it forks or starts meanwhile, into `path`,
    a file that is made anew: spans of put, get, deserialize, create, restore, clean, wait, ...

    The environment variable MILLPOND_TIMELINE=path does the same for whole programs, and appends. A span
    costs some microseconds. Raises OSError; ValueError while another timeline is on.
    """
    file = Path(path).absolute()
    if _trace is not None:
        raise ValueError(f"a timeline is being recorded already, to {_trace.path}")
    file.unlink(missing_ok=True)
    _start(file)
    os.environ[VARIABLE] = str(file)
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        _stop()


class _Trace:
    """The file. Safe for many threads and processes: a line is one write to its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = -1
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        if os.fstat(self.descriptor).st_size == 0:
            os.write(self.descriptor, b"[\n")
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        self.announce()

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)  # only now: no thread is about to write any more

    def announce(self) -> None:
        """Gives this process its name in the picture."""
        processes = sys.modules.get("multiprocessing")
        child = processes.current_process().name if processes else "MainProcess"
        program = os.path.basename(sys.argv[0] if sys.argv else "") or "python"
        name = program if child == "MainProcess" else f"{program} {child}"
        self.write(
            json.dumps({"name": "process_name", "ph": "M", "pid": os.getpid(), "args": {"name": name}})
        )

    def span(self, name: str, start: int, end: int, details: dict[str, Any]) -> None:
        """One call; `start` and `end` in nanoseconds of the monotonic clock, which processes share."""
        self.write(
            f'{{"name":"{name}","cat":"millpond","ph":"X","ts":{start / 1000},"dur":{(end - start) / 1000},'
            f'"pid":{os.getpid()},"tid":{threading.get_native_id()},"args":{json.dumps(details)}}}'
        )

    def write(self, event: str) -> None:
        """Appends an event. A file that cannot grow ends the timeline, not the program."""
        try:
            os.write(self.descriptor, f"{event},\n".encode())
        except OSError as error:
            log.warning("the timeline ends here: cannot write to %s: %s", self.path, error.strerror)
            _stop()


_trace: _Trace | None = None
_replaced: list[tuple[type, str, Any]] = []
_OWN = object()
"""In the place of a method that the class itself had not: it inherits it."""


def _start(path: Path) -> None:
    global _trace
    _trace = _Trace(path)
    for owner, method, name, describe in _POINTS:
        _replaced.append((owner, method, vars(owner).get(method, _OWN)))
        setattr(owner, method, _traced(getattr(owner, method), name, describe))
    loads = _traced(serialize.loads, "deserialize", _of_pickle)
    private = _traced(serialize.copy_private, "deserialize", _of_pickle)
    hot.set_serializer(serialize.wants_care, serialize.careful, loads, private)


def _stop() -> None:
    global _trace
    trace, _trace = _trace, None
    if trace is None:
        return
    while _replaced:
        owner, method, original = _replaced.pop()
        if original is _OWN:
            delattr(owner, method)
        else:
            setattr(owner, method, original)
    hot.set_serializer(serialize.wants_care, serialize.careful, serialize.loads, serialize.copy_private)


def _traced(original: Callable[..., Any], name: str, describe: Describe) -> Callable[..., Any]:
    @functools.wraps(original)
    def traced(*args: Any, **kwargs: Any) -> Any:
        result = None
        start = time.perf_counter_ns()
        try:
            result = original(*args, **kwargs)
            return result
        finally:
            end, trace = time.perf_counter_ns(), _trace
            if trace is not None:
                trace.span(name, start, end, describe(args, result))

    return traced


# --- what is traced ---


def _of_put(args: tuple[Any, ...], result: Any) -> dict[str, Any]:
    return {} if result is None else {"object": _short(result), "bytes": result.size}


def _of_get(args: tuple[Any, ...], result: Any) -> dict[str, Any]:
    ref = args[1]
    if type(ref) is not ObjectRef:
        return {"objects": len(ref)} if isinstance(ref, list | tuple) else {}
    return {"object": _short(ref), "bytes": ref.size}


def _of_ref(args: tuple[Any, ...], result: Any) -> dict[str, Any]:
    return {"object": _short(args[1])}


def _of_pickle(args: tuple[Any, ...], result: Any) -> dict[str, Any]:
    return {"bytes": len(args[0]), "buffers": len(args[1])}


def _of_fill(args: tuple[Any, ...], result: Any) -> dict[str, Any]:
    return {"object": _short(args[2]), "bytes": args[4]}


def _of_run(args: tuple[Any, ...], result: Any) -> dict[str, Any]:
    _work, first, stop = args
    return {"objects": stop - first}


def _of_small(args: tuple[Any, ...], result: Any) -> dict[str, Any]:
    return {"object": _short(args[1]), "bytes": args[1].size}


def _of_clean(args: tuple[Any, ...], result: Any) -> dict[str, Any]:
    return {} if result is None else {"objects": result.objects, "bytes": result.bytes_written}


def _of_encoded(args: tuple[Any, ...], result: Any) -> dict[str, Any]:
    return {"bytes": args[1].size}


def _of_size(args: tuple[Any, ...], result: Any) -> dict[str, Any]:
    return {"bytes": args[1]}


def _of_none(args: tuple[Any, ...], result: Any) -> dict[str, Any]:
    return {}


def _short(ref: ObjectRef) -> str:
    """An object's id without its store's."""
    return ref.id.partition("-")[2]


_POINTS: list[tuple[type, str, str, Describe]] = [
    (Store, "put", "put", _of_put),
    (Store, "get", "get", _of_get),
    (Store, "_new_draft", "create", _of_size),
    (Store, "wait", "wait", _of_none),
    (Store, "_wait", "sleep", _of_ref),
    (Store, "_wait_event", "sleep", _of_none),
    (Store, "_put_on_disk", "write to disk", _of_encoded),
    (Room, "make", "make room", _of_size),
    (SpillWriter, "clean", "clean", _of_clean),
    (Restore, "_fill", "restore", _of_fill),
    (Restore, "_private", "read past full memory", _of_ref),
    (ahead.Ahead, "restore_small", "restore", _of_small),
    (ahead._Work, "_restore", "restore", _of_run),
]


def _after_fork_in_child() -> None:
    if _trace is not None:
        _trace.announce()


os.register_at_fork(after_in_child=_after_fork_in_child)

if path := os.environ.get(VARIABLE):
    _start(Path(path).absolute())
