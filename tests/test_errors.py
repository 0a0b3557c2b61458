"""The errors: their builtin kinds, plain messages, and the way to another process and back."""

from __future__ import annotations

import errno
import inspect
import pickle
import sys
from typing import Any

import pytest

from millpond import errors

CLASSES = [getattr(errors, name) for name in errors.__all__]

KINDS = [
    (errors.StoreFullError, MemoryError),
    (errors.SpillError, OSError),
    (errors.ObjectNotFoundError, KeyError),
    (errors.ObjectDeletedError, errors.ObjectNotFoundError),
    (errors.ObjectLostError, errors.ObjectNotFoundError),
    (errors.GetTimeoutError, TimeoutError),
    (errors.SerializationError, TypeError),
    (errors.StoreBusyError, TimeoutError),
]

MESSAGE = "object 'a\\b' is gone:\n  2 of 3 bytes"


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_is_a_millpond_error_and_documented(cls: type[Exception]) -> None:
    assert issubclass(cls, errors.MillpondError)
    assert "__doc__" in vars(cls) and inspect.getdoc(cls)


def test_all_names_every_class_of_the_module() -> None:
    found = {name for name, item in vars(errors).items() if inspect.isclass(item)}
    assert found == set(errors.__all__)


def test_an_error_that_nobody_can_catch_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: seen.append((args.exc_type, args.exc_value)))
    error = ValueError("no")
    errors.report_unraisable(error, "closing a store")
    assert seen == [(ValueError, error)]
    assert error.__notes__ == ["ignored while closing a store"]


@pytest.mark.parametrize(("cls", "kind"), KINDS)
def test_builtin_kinds(cls: type[Exception], kind: type[Exception]) -> None:
    assert issubclass(cls, kind)


@pytest.mark.parametrize("cls", CLASSES)
def test_message_prints_plainly(cls: type[Exception]) -> None:
    assert str(cls(MESSAGE)) == MESSAGE


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_survives_pickling_with_message_cause_notes_and_type(cls: type[Exception], protocol: int) -> None:
    error = cls(MESSAGE)
    error.add_note("seen by the spiller")
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is cls
    assert str(copy) == MESSAGE
    assert copy.args == error.args
    assert copy.__notes__ == ["seen by the spiller"]


@pytest.mark.parametrize("cls", CLASSES)
def test_is_made_as_libraries_make_it(cls: type[Exception]) -> None:
    """Without its __init__: so does tblib, which Dask installs for all exceptions."""
    error = cls.__new__(cls, MESSAGE)
    assert error.args == (MESSAGE,)


def test_spill_error_keeps_errno_and_file_name() -> None:
    error = errors.SpillError(errno.ENOSPC, "the disk is full", "/spill/1.seg")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is errors.SpillError
    assert (copy.errno, copy.strerror, copy.filename) == (errno.ENOSPC, "the disk is full", "/spill/1.seg")
    assert str(copy) == str(error) == "[Errno 28] the disk is full: '/spill/1.seg'"
