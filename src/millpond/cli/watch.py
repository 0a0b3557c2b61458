"""Whether a limit holds: a thread that watches a store's committed memory while others work."""

from __future__ import annotations

import threading
from types import TracebackType

import millpond
from millpond.threads import start
from millpond.units import format_bytes

INTERVAL_S = 0.02


class Watch:
    """`with Watch(store) as watch: ...`, then `watch.peak_bytes` and `watch.fault`.

    The limit must not change meanwhile. Raises in the `with` block's thread, at its end, what a
    call of `stats()` raised in between.
    """

    def __init__(self, store: millpond.Store) -> None:
        self._store = store
        self._over = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._sample, name="watch", daemon=True)
        self.peak_bytes = 0
        self.limit_bytes = store.memory_limit

    @property
    def fault(self) -> str:
        """Empty while the peak stayed within the limit."""
        if self.peak_bytes <= self.limit_bytes:
            return ""
        return (
            f"committed memory reached {format_bytes(self.peak_bytes)}, "
            f"above the limit of {format_bytes(self.limit_bytes)}"
        )

    def __enter__(self) -> Watch:
        if not start(self._thread):
            raise RuntimeError("no thread can be started that watches the store")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _sample(self) -> None:
        try:
            while not self._over.wait(INTERVAL_S):
                self.peak_bytes = max(self.peak_bytes, self._store.stats().committed_bytes)
        except BaseException as error:
            self._error = error
