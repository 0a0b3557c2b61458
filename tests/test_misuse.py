"""Misuse: each public call given what it cannot take names the fault, and leaves everything as it was."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import numpy as np
import pytest

import millpond
from millpond import hot


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda store, ref: store.get(store.create(3, "f8").ref, timeout=math.nan), ValueError, "is nan"),
        (lambda store, ref: store.lookup("nobody", timeout="1"), TypeError, "timeout is '1'"),
        (lambda store, ref: store.lookup(None), TypeError, "name"),
        (lambda store, ref: store.create(1e6, "f8"), TypeError, "shape is 1000000.0"),
        (lambda store, ref: store.create((1 << 61, 8), "f8"), ValueError, "float64: up to 32 dimensions"),
        (lambda store, ref: store.create_buffer(-1), ValueError, "-1 bytes"),
        (lambda store, ref: store.create_buffer("5"), TypeError, "'str'"),
        (lambda store, ref: store.refs([ref]), TypeError, "expected a ref, not list"),
        (lambda store, ref: store.get("model"), TypeError, r"not str: lookup\(name\) gives the ref"),
        (lambda store, ref: store.spill(5), TypeError, "expected a ref or several, not int"),
        (lambda store, ref: store.delete([ref, 5]), TypeError, "expected a ref, not int"),
        (lambda store, ref: ref.export(deliveries=1.5), TypeError, "'float'"),
        (lambda store, ref: ref.export(deliveries=1 << 32), ValueError, "below 2"),
        (lambda store, ref: ref.export(timeout=math.inf), ValueError, "timeout is inf"),
        (lambda store, ref: store.configure(spill_limit=math.nan), ValueError, "spill_limit: nan"),
        (lambda store, ref: millpond.load_ref(None), TypeError, "NoneType"),
        (lambda store, ref: millpond.connect(None), TypeError, "name or address"),
        (
            lambda store, ref: millpond.connect("/etc/passwd"),
            millpond.AttachError,
            "is no address of a store",
        ),
        (lambda store, ref: millpond.Store(spill_dir=""), ValueError, "spill_dir is ''"),
        (lambda store, ref: millpond.Store(spill_dir=5), TypeError, "spill_dir is 5"),
        (lambda store, ref: millpond.Store(handoff_timeout="5"), TypeError, "handoff_timeout is '5'"),
    ],
)
def test_misuse_is_named_and_changes_nothing(
    store: millpond.Store, call: Any, error: type[Exception], says: str
) -> None:
    ref = store.put(np.ones(1000))
    with pytest.raises(error, match=says):
        call(store, ref)
    assert ref.get().sum() == 1000 and len(store) == 1 and store.check() == []


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_owns_memory_of_the_store_is_not_copied(store: millpond.Store, protocol: int) -> None:
    """Neither by pickle nor by `copy`: a second owner would give back what it never took."""
    draft, view = store.create(3, "f8"), store.put(np.ones(1000)).get()
    owner = view.base
    while not isinstance(owner, hot.View):
        owner = owner.obj if isinstance(owner, memoryview) else owner.base
    for one in (draft, owner, hot.Using(store)):
        with pytest.raises(TypeError, match=r"draft\.ref|cannot pickle"):
            pickle.dumps(one, protocol)
        with pytest.raises(TypeError, match=r"draft\.ref|cannot pickle"):
            copy.copy(one)
    assert draft.seal().get().shape == (3,)
