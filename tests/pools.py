"""Process pools for tests, and the helper processes of multiprocessing that they need."""

from __future__ import annotations

import gc
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import millpond
from millpond.integrations.executor import ProcessPoolExecutor

METHODS = ["fork", "spawn", "forkserver"]
LARGE = 20_000  # float64: 160 kB


@contextmanager
def helpers_of_multiprocessing() -> Iterator[None]:
    """Its helper processes keep descriptors: they start before a test counts its own."""
    multiprocessing.resource_tracker.ensure_running()
    multiprocessing.forkserver.ensure_running()
    yield
    gc.collect()  # semaphores go before the tracker would remove them
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]
    multiprocessing.resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]


def pool(
    store: millpond.Store | None, method: str = "fork", workers: int = 1, **options: Any
) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context(method), store=store, **options)
