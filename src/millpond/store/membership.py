"""Becoming a member: creating a store, connecting to one, leaving it; one member per store and process.

Invariants: create and attach run under the registry's lock; a pickled ref attaches by itself; the last member
that leaves removes the store's directories. What others have left is swept by whoever creates a store.
Not here: what a member does (store.py), directories and descriptors (registry.py, files.py, peers.py).
"""

from __future__ import annotations

import atexit
import mmap
import os
import threading
import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from millpond import descriptors, hot, threads
from millpond.errors import AttachError, MillpondError
from millpond.eviction.limits import usable_memory
from millpond.spill import directory as spill_directory
from millpond.store import peers, registry, termination
from millpond.store.files import StoreFiles
from millpond.store.options import MEMORY_MAX, Options

if TYPE_CHECKING:
    from millpond.store.store import Store

ENTRIES = 4 << 20
NAMES = 1 << 20
SEGMENTS = 1 << 20
ARENA_MAX = 4 * MEMORY_MAX
CALLS = tuple(f"millpond.{room}." for room in ("store", "values", "refcount", "spill", "eviction"))
ENDING_S = 2.0  # for the calls of daemon threads, which the end of their stores ends
LEAVING_S = 0.5  # a sweep that is missed when leaving is made by whoever creates the next store
SWEEPING_S = 5.0  # a new store waits so long for what the dead have left; then it goes in the background

_stores: weakref.WeakValueDictionary[bytes, Store] = weakref.WeakValueDictionary()


def sweep(spill_dirs: Iterable[str]) -> None:
    """Removes what dead stores have left, also in these directories; where a disk hangs, it goes on doing so
    in the background. For whoever is going to create a store, not yet in `exclusive()`."""
    root = registry.root_of()
    bases = {*map(Path, spill_dirs)}

    def work() -> None:
        with suppress(Exception):
            registry.sweep(root, bases=bases.union(spill_directory.usual_bases()), timeout=LEAVING_S)

    thread = threading.Thread(target=work, name="millpond-sweep", daemon=True)
    if threads.start(thread):
        threads.await_end(thread, None, SWEEPING_S)
    else:
        work()


def create(store: Store, name: str | None, options: Options) -> StoreFiles:
    """Creates a new store and makes this process its first member. The caller is in `exclusive()`."""
    _refuse_subinterpreter()
    uuid = os.urandom(16)
    root = registry.root_of()
    table_bytes, arena_bytes = _sizes(options.memory_limit)
    files = registry.create(root, uuid, name, options.spill_dirs)
    try:
        table_fd, arena_fd = peers.create_memfds(uuid, table_bytes, arena_bytes)
    except BaseException:
        files.close()
        raise
    try:
        hot.create_table(
            table_fd,
            arena_fd,
            arena_bytes,
            ENTRIES,
            NAMES,
            SEGMENTS,
            uuid=uuid,
            boot_id=peers.boot_id(),
            pid_namespace=peers.pid_namespace(),
            memory_limit=options.memory_limit,
            spill_limit=options.spill_limit,
            overflow_limit=options.overflow_limit,
            handoff_ns=int((options.handoff_timeout or 0) * 1e9),
            config=options.to_config(),
        )
        _enter(store, files, table_fd, arena_fd)
    except BaseException:
        _close(files, table_fd, arena_fd)
        raise
    termination.leave_at_sigterm(_give_up_all)
    return files


def _sizes(memory_limit: int) -> tuple[int, int]:
    """Bytes of address space for table and arena. The arena gets plenty, so that a hole of any size can be
    found without moving large objects, but no more than the process can map (RLIMIT_AS, valgrind)."""
    arena = min(4 * max(usable_memory(), memory_limit), ARENA_MAX)
    while True:
        table_bytes, arena_bytes = hot.table_bytes(arena, ENTRIES, NAMES, SEGMENTS)
        if arena < 4 * memory_limit or _can_map(2 * (table_bytes + arena_bytes)):
            return table_bytes, arena_bytes
        arena //= 2


def _can_map(nbytes: int) -> bool:
    try:
        mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0).close()
    except (OSError, ValueError):
        return False
    return True


def join(store: Store, key: str | bytes) -> StoreFiles:
    """Makes this process a member of a live store. The caller holds `exclusive(key)`."""
    _refuse_subinterpreter()
    files = registry.find(registry.root_of(key), key)
    try:
        table_fd, arena_fd = peers.open_memfds(files.live_pids(), files.uuid)
    except BaseException:
        files.close()
        raise
    try:
        _check_header(table_fd, files.uuid)
        _enter(store, files, table_fd, arena_fd)
    except BaseException:
        _close(files, table_fd, arena_fd)
        raise
    return files


def _refuse_subinterpreter() -> None:
    if not hot.is_main_interpreter():
        raise AttachError(
            "this is a subinterpreter, and a process that ends with a store in one can hang: use the main "
            "interpreter (mod_wsgi: WSGIApplicationGroup %{GLOBAL}), or another process"
        )


def _close(files: StoreFiles, table_fd: int, arena_fd: int) -> None:
    descriptors.close(table_fd, arena_fd)
    files.close()


def _check_header(table_fd: int, uuid: bytes) -> None:
    found, boot, namespace, uid, gid = hot.table_identity(table_fd)
    if found != uuid:
        raise AttachError(f"the table belongs to the store {found.hex()}, not to {uuid.hex()}")
    if boot != peers.boot_id():
        raise AttachError("the store was created before the last boot of this machine")
    if namespace != peers.pid_namespace():
        raise AttachError(
            "the store belongs to another pid namespace, where process ids and locks mean something else: "
            "share it (docker run --pid=container:NAME), or create a store here"
        )
    if (uid, gid) != (os.geteuid(), os.getegid()):
        raise AttachError(
            f"the store belongs to user {uid}, group {gid}; this process is {os.geteuid()}, {os.getegid()}"
        )


def _enter(store: Store, files: StoreFiles, table_fd: int, arena_fd: int) -> None:
    root, uuid = os.path.dirname(files.path), files.uuid

    def left() -> None:
        _close(files, table_fd, arena_fd)
        with suppress(MillpondError, OSError):
            registry.sweep(root, only=uuid, timeout=LEAVING_S)

    store._attach(table_fd, arena_fd, files.lock_fd, files.birth_fd, left)


def announce(store: Store) -> None:
    """From here on `known` finds this store: it must be able to do everything."""
    _stores[store.uuid] = store


def known(key: str | bytes) -> Store | None:
    """The open member of that store in this process: by uuid, by address, or by its name in the registry
    that is in use now."""
    for store in list(_stores.values()):
        if store.closed:
            continue
        if key in (store.uuid, store.address) or (key == store.name and _is_listed_here(store)):
            return store
    return None


def _is_listed_here(store: Store) -> bool:
    return os.path.dirname(store.address) == registry.root_of()


def exists(key: str) -> bool:
    """Whether a live store has that name or address. The caller is in `exclusive(key)`."""
    return any(key in (info.name, info.address) for info in registry.list_stores(registry.root_of(key)))


def exclusive(key: str | bytes | None = None) -> AbstractContextManager[None]:
    """A context in which nobody else creates or attaches to stores in that registry."""
    return registry.locked(registry.root_of(key))


def _give_up_all() -> None:
    """The process dies of a signal, perhaps in the middle of an operation: what it holds is let go."""
    for store in list(_stores.values()):
        with suppress(Exception):
            registry.retire(store._files)


@atexit.register
def _leave_all() -> None:
    """The process ends: refs are dropped; what only views still hold back goes as well."""
    stores = list(_stores.values())
    for store in stores:
        with suppress(Exception):
            store.close()
            if os.path.isdir(store.address):
                registry.retire(store._files)
    if stores:
        threads.await_calls(CALLS, ENDING_S)
