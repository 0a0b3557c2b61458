"""The targets by name, and what each needs around it: a registry, a store that is the same each time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from unittest import mock

from fuzz.engine import Target
from fuzz.hand_off import HandOff
from fuzz.pickle_anatomy import PickleAnatomy
from fuzz.plasma_value import PlasmaValue
from fuzz.registry_files import RegistryFiles
from fuzz.spill_batch import SpillBatch
from fuzz.spill_record import SpillRecord
from fuzz.stored_value import StoredValue
from fuzz.timeline_file import TimelineFile
from millpond import Store

_WITH_STORE: dict[str, Callable[[Store], Target]] = {
    each.name: each for each in (StoredValue, HandOff, SpillBatch, RegistryFiles)
}
_ALONE: dict[str, Callable[[], Target]] = {
    each.name: each for each in (SpillRecord, PickleAnatomy, PlasmaValue, TimelineFile)
}
TARGETS = (*_ALONE, *_WITH_STORE)


@contextmanager
def opened(name: str) -> Iterator[Target]:
    """A target, ready to run; what it leaves behind is looked at in the end."""
    with ExitStack() as stack:
        base = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(mock.patch.dict(os.environ, MILLPOND_DIR=f"{base}/registry"))
        if name in _ALONE:
            target = _ALONE[name]()
        else:
            target = _WITH_STORE[name](stack.enter_context(_store(f"{base}/spill")))
        yield stack.enter_context(closing(target))


@contextmanager
def _store(spill: str) -> Iterator[Store]:
    """With the same uuid each time, since inputs name it."""
    with mock.patch.object(os, "urandom", lambda count: bytes(range(count))):
        store = Store("16MiB", spill_dir=spill, handoff_timeout=None)
    with store:
        yield store
