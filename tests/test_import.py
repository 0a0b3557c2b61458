"""`import millpond` brings what put and get need; the slow rest comes with its first use."""

from __future__ import annotations

import subprocess
import sys

import pytest

import millpond

SLOW = (
    "asyncio",
    "dataclasses",
    "logging",
    "socket",
    "subprocess",
    "tempfile",
    "millpond.refcount.holders",
    "millpond.store.info",
    "millpond.store.recorder",
    "millpond.values.anatomy",
    "millpond.values.culprit",
    "millpond.values.explain",
    "millpond.values.serializability",
)


def test_what_is_slow_and_seldom_used_is_not_imported() -> None:
    code = (
        "import sys, numpy\nbefore = set(sys.modules)\n"
        "import millpond\nprint(*set(sys.modules) - before, sep='\\n')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    brought = set(found.stdout.split())
    assert "millpond.store.store" in brought
    assert not brought.intersection(SLOW)


def test_every_public_name_is_there() -> None:
    code = (
        "import millpond\nassert set(millpond.__all__) <= set(dir(millpond))\n"
        "from millpond import *\nprint(Stats.__module__, timeline.__module__)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["millpond.store.info", "millpond.store.recorder"]


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'millpond' has no attribute 'nothing'"):
        millpond.nothing  # noqa: B018
