"""Removing segment files that no place points to any more.

Invariants: a file is unlinked before the table forgets its segment, so a file that nobody knows of
cannot come about; any member may do it, and several at once do no harm. A reader of such a file holds
no pin, hence keeps no place: it has a private map, which outlives the name.
Not here: what is left when all members are gone (`directory.sweep`).
"""

from __future__ import annotations

from contextlib import suppress

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
        except OSError:
            continue
        table.segment_forget(segment, segment_id)
        swept += 1
    return swept
