"""From a name, an address or a pickled ref to the store that it belongs to.

Invariant: twice in a process gives the same `Store`.
Not here: what joining consists of (membership.py), the bytes of a pickled ref (refcount/handoff.py).
"""

from __future__ import annotations

from typing import Any

from millpond import hot
from millpond.errors import AttachError
from millpond.hot import Code, ObjectRef, Using
from millpond.refcount import handoff
from millpond.store import membership, peers
from millpond.store.options import Options
from millpond.store.store import Store

__all__ = ["connect", "load_ref"]


def connect(key: str | bytes, *, create: bool = False, **options: Any) -> Store:
    """Joins the live store with that name or address; twice in a process gives the same Store.

    create: make a store of that name if there is none; `options` are those of `Store`.
    Raises AttachError saying what was tried and why it failed, StoreBusyError.
    """
    if not isinstance(key, str | bytes):
        raise TypeError(f"a store is found by its name or address, text, not by {key!r}")
    if options and not create:
        raise TypeError("options describe a new store: pass create=True with them")
    checked = Options.check(**options) if create else None
    if checked is not None and membership.known(key) is None:
        membership.sweep(checked.spill_dirs)
    with membership.exclusive(key):
        store = membership.known(key)
        if store is not None:
            return store
        if checked is None or not isinstance(key, str) or membership.exists(key):
            return Store._join(key)
        store = Store.__new__(Store)
        store._start(key, checked)
        return store


def load_ref(data: bytes) -> ObjectRef:
    """The ref that was exported, or pickled: attaches to its store, takes one delivery of the hand-off.

    Raises ObjectNotFoundError when the object is gone (saying so if the hand-off lapsed), AttachError.
    """
    given = handoff.unpack(data)
    boot_id, now = peers.boot_id(), handoff.boottime_ns()
    lapsed = handoff.has_lapsed(given, boot_id, now)
    store = membership.known(given.store)
    try:
        store = store or connect(given.store)
    except AttachError as error:
        raise handoff.lapsed(given, boot_id, now) if given.boot_id != boot_id else error from None
    with Using(store):
        code, ref = store._token_load(given.token, given.nonce, given.entry, given.birth)
    if ref is None:
        if code == Code.NOT_FOUND and lapsed:
            raise handoff.lapsed(given, boot_id, now)
        raise store._fail(code, f"the object {given.entry:x}-{given.birth:x} of a pickled ref")
    return ref


hot.set_ref_loader(load_ref)
