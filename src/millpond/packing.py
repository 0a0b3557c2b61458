"""Whether this thread is turning a value into bytes for `put`, told to the refs inside that value.

A ref that is pickled to be sent takes a hand-off; one that is pickled as part of a stored value must
not. Both end in `ObjectRef.__reduce__`, which asks `inside_put()`. The answer is kept per thread and
per nesting level: a `__reduce__` that itself puts something leaves the outer level as it was.
Not here: pickling (store/serialize.py), hand-offs (refcount/).
"""

from __future__ import annotations

import threading

__all__ = ["inside_put", "level"]


class _Level(threading.local):
    depth = 0


level = _Level()
"""`level.depth` is how many puts this thread is inside of. A plain attribute, since a context manager
would cost a small put more than pickling does; whoever raises it lowers it in a `finally`."""


def inside_put() -> bool:
    """Whether this thread is inside a put, at any level."""
    return level.depth > 0
