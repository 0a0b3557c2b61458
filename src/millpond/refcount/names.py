"""The names that hold objects, listed.

Invariant: a name that was there all the time is listed once. The mutex is held for one piece of the table at
a time, so names that come or go meanwhile may be listed or not.
Not here: giving, finding and removing a name (the kernel, through hot), waiting for one (`Store.lookup`).
"""

from __future__ import annotations

from millpond.hot import Core

__all__ = ["names"]


def names(store: Core, prefix: str) -> list[str]:
    """See `Store.names`."""
    found: dict[str, None] = {}  # a name that was removed and given again meanwhile may be met twice
    cursor = 1
    while cursor:
        texts, cursor = store._names(cursor)
        found.update(dict.fromkeys(text for text in texts if text.startswith(prefix)))
    return list(found)
