"""Every error that Millpond raises on purpose, split by whose fault it is.

Invariants: each class is a `MillpondError` and, where Python has a word for the situation, also
that builtin, so that `except MemoryError` or `except KeyError` keep their meaning; an error can be
pickled and carries its message to another process unchanged.
Not here: the texts. Whoever raises knows the numbers and the next step, and says both.
"""

from __future__ import annotations

__all__ = [
    "AttachError",
    "GetTimeoutError",
    "MillpondError",
    "ObjectDeletedError",
    "ObjectLostError",
    "ObjectNotFoundError",
    "SerializationError",
    "SpillError",
    "StoreBusyError",
    "StoreClosedError",
    "StoreCorruptedError",
    "StoreFullError",
]


class MillpondError(Exception):
    """Base of all errors of this package. Catch it to catch them all."""


class StoreFullError(MemoryError, MillpondError):  # in this order: __new__ must be that of the first base
    """No room for a new object, in memory or on disk, or a fixed pool of the store is used up.

    The machine's or the configuration's limit, nobody's mistake. Nothing was stored and nothing
    was lost. Drop refs or views, raise `memory_limit` or `spill_limit`, or allow spilling; the
    message says how much is used, by whom, and which of the three helps.
    """


class SpillError(MillpondError, OSError):
    """The disk refused: full, failing, unreadable, or no directory fit for spilling.

    The outside's fault. The object is where it was before the call. `errno` and `filename` are
    set when a system call is behind it; retry once the disk works again, no restart is needed.
    """


class ObjectNotFoundError(MillpondError, KeyError):
    """The store has no such object or no such name, and no trace of one.

    The caller's ref is stale: it belongs to another store, its hand-off lapsed before it was
    loaded, or the name was never given.
    """

    def __str__(self) -> str:
        # KeyError prints the repr of its argument, which would quote and escape the message.
        return Exception.__str__(self)


class ObjectDeletedError(ObjectNotFoundError):
    """Somebody called `delete` on the object while this ref existed.

    The program's own doing: only `delete` takes a value away from its holders.
    """


class ObjectLostError(ObjectNotFoundError):
    """The object's bytes are gone: its disk copy is missing or damaged, or its writer died early.

    The outside's fault; every other object is fine. Make the object again and drop this ref.
    """


class GetTimeoutError(MillpondError, TimeoutError):
    """The object was not ready within the caller's `timeout`. It may still become ready."""


class SerializationError(MillpondError, TypeError):
    """The value cannot be turned into bytes. The message names the part that cannot, by its path.

    Or stored bytes cannot be turned into the value again in this process, mostly because it cannot
    import a class. The caller's fault. Nothing was stored, nothing is lost. Take that part out, or
    make it picklable (`__getstate__`, `__reduce__`, `copyreg.pickle`).
    """


class StoreClosedError(MillpondError):
    """The store, or this process's membership, has ended: closed, given up for dead, or not
    taken over after `fork`.

    The caller's fault after `close()`. Otherwise connect again; views that exist stay readable.
    """


class AttachError(MillpondError):
    """A store cannot be joined or created: not found, name taken, not ours, other layout or
    namespace, or a registry directory that is not safe to use.

    The message gives the reason for each candidate and the command or setting that repairs it.
    """


class StoreBusyError(MillpondError, TimeoutError):
    """Another process holds what this call needs and does not move, for instance because it is
    stopped.

    That process's fault: the message names it. Resume or end it, then try again.
    """


class StoreCorruptedError(MillpondError):
    """The shared table failed its own check: a fault in Millpond, or a stray write by native code.

    Resident objects stay readable, nothing can be stored or freed any more. Save what is needed
    and create a new store.
    """


def report_unraisable(error: BaseException, doing: str) -> None:
    """Reports an error that happened where nothing can be raised, such as a destructor, as Python does:
    through `sys.unraisablehook`."""
    error.add_note(f"ignored while {doing}")

    class Destructor:  # raising in one is the only way to that hook
        def __del__(self) -> None:
            raise error

    Destructor()
