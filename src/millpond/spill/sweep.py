"""Unlinking files that no object needs any more: of this store, and of stores that are gone altogether.

Invariants: a file is unlinked before the table forgets its segment, so a file that nobody knows of
cannot come about; any member may do it, and several at once do no harm. A reader of such a file holds
no pin, hence keeps no place: it has a private map, which outlives the name. A directory goes only if nobody
can be using it.
Not here: when to sweep (the janitor, `reclaim`, the registry), whose a directory is (`owner`).
"""

from __future__ import annotations

from collections.abc import Container
from contextlib import suppress
from pathlib import Path

from millpond.errors import SpillError
from millpond.spill import directory as directories_of
from millpond.spill import owner
from millpond.spill.directory import Directories
from millpond.spill.segments import SegmentTable


def sweep_dead(table: SegmentTable, directories: Directories) -> int:
    """Unlinks the files of all DEAD segments; returns how many segments are free again.

    A file that the system will not remove stays counted as disk use, and the next call tries again.
    """
    swept = 0
    for segment, segment_id, directory in table.segment_dead():
        try:
            with suppress(FileNotFoundError):
                directories.system.unlink(directories.file(directory, segment_id))
        except OSError as error:
            directories.note_failure(directory, error)
            continue
        table.segment_forget(segment, segment_id)
        swept += 1
    return swept


def sweep_abandoned(base: Path, known: Container[bytes], dry_run: bool) -> list[tuple[Path, int]]:
    """Removes what stores of this user have left under `base` and no registry knows any more: after a reboot,
    or when somebody has removed the registry. With `dry_run` it only says what it would remove.

    Returns the directories and the bytes that their files had on disk. The stores `known` are left alone.
    """
    removed = []
    for uuid in directories_of.stores(base):
        directory = directories_of.store_directory(base, uuid)
        if uuid in known:
            continue
        with suppress(SpillError, OSError), owner.abandoned(directory) as left:
            if left:
                nbytes = directories_of.used_bytes(directory)
                if not dry_run:
                    directories_of.sweep(base, uuid)
                removed.append((directory, nbytes))
    return removed
