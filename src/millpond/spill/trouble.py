"""What keeps a store from spilling, said once when it begins and once when it is over.

Invariant: at most two lines in the log for one cause, however often it is met; a cause that comes and goes
counts as one until it has been away for a while.
Not here: the errors that calls raise, which come each time (`segments`, `directory`).
"""

from __future__ import annotations

import time
from typing import Final

from millpond import log

QUIET_S: Final = 10.0
"""A cause is over when the thing works and has not failed for so long."""


class Troubles:
    """The causes that are known in one process of one store, each by what it is about: a path, a limit."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[float, float]] = {}  # when it began, when it was met last

    def met(self, subject: str, cause: str) -> None:
        """`subject` does not work because of `cause`, which is logged unless that is known."""
        now = time.monotonic()
        began, _ = self._since.setdefault(subject, (now, now))
        self._since[subject] = began, now
        if began == now:
            log.warning("%s: %s. Objects stay in memory or go elsewhere; nothing is lost", subject, cause)

    def works(self, subject: str) -> None:
        """`subject` has just worked: logged if there was trouble and it is over."""
        known = self._since.get(subject)
        if known is None:
            return
        now, (began, last) = time.monotonic(), known
        if now - last >= QUIET_S:
            self._since.pop(subject, None)
            log.warning("%s: works again, after %.0f s", subject, now - began)

    def lately(self, subject: str, seconds: float) -> bool:
        """Whether `subject` failed within the last `seconds`."""
        known = self._since.get(subject)
        return known is not None and time.monotonic() - known[1] < seconds
