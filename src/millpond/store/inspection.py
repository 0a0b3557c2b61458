"""What a store tells about itself: `stats()` and `objects()`, from one survey of the table.

Invariants: reads only; figures of neighbouring fields may be a moment apart while others work. The records
are imported where they are made: no put or get needs them.
Not here: who holds an object, and names (`millpond.refcount`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from millpond import hot
from millpond.eviction.named import name_of
from millpond.hot import Core
from millpond.spill.codec import compression_of

if TYPE_CHECKING:
    from millpond.store.info import ObjectInfo, ObjectState, Stats

_ALIVE = [code for code, text in hot.STATES.items() if text in ("draft", "resident", "spilled")]
_BY_TEXT = {
    text: [code for code, other in hot.STATES.items() if other == text] for text in set(hot.STATES.values())
}


def _in_state(survey: np.ndarray[Any, Any], text: str) -> np.ndarray[Any, Any]:
    mask: np.ndarray[Any, Any] = np.isin(survey["state"], _BY_TEXT[text])
    return mask


def count(store: Core) -> int:
    """Objects that can be asked for."""
    return int(np.isin(store._survey()["state"], _ALIVE).sum())


def stats(store: Core) -> Stats:
    """See `Store.stats`."""
    from millpond.store.info import Stats

    survey = store._survey()
    totals = store._totals()
    size, clean = survey["size"], survey["clean"] != 0
    resident = _in_state(survey, "resident")
    # the value of a dropped or deleted object stays as long as somebody has a view of it
    in_memory = resident | (~np.isin(survey["state"], _ALIVE) & (survey["pins"] > 0))
    return Stats(
        objects=int(np.isin(survey["state"], _ALIVE).sum()),
        members=len(store._members()),
        memory_limit=totals["memory_limit"],
        spill_limit=totals["spill_limit"],
        memory_bytes=int(size[in_memory].sum()),
        pinned_bytes=int(size[in_memory & (survey["pins"] > 0)].sum()),
        committed_bytes=totals["committed_bytes"],
        warm_bytes=totals["free_bytes"] + totals["free_slot_bytes"],
        table_bytes=store._table_bytes(),
        disk_bytes=totals["disk_bytes"],
        overflow_bytes=totals["overflow_bytes"],
        draft_objects=int(_in_state(survey, "draft").sum()),
        resident_objects=int((resident & ~clean).sum()),
        clean_objects=int((resident & clean).sum()),
        spilled_objects=int(_in_state(survey, "spilled").sum()),
        lost_objects=int(_in_state(survey, "lost").sum()),
        spilled_bytes_total=totals["spilled_bytes_total"],
        restored_bytes_total=totals["restored_bytes_total"],
        spilled_objects_total=totals["spilled_objects_total"],
        restored_objects_total=totals["restored_objects_total"],
        returned_bytes_total=totals["returned_bytes_total"],
        eviction=name_of(store._policy()),
        compression=compression_of(store._codec()),
    )


def objects(store: Core) -> list[ObjectInfo]:
    """See `Store.objects`."""
    return [_info(store, row, state) for row in store._survey() if (state := _state_of(row)) is not None]


def _info(store: Core, row: np.void, state: ObjectState) -> ObjectInfo:
    from millpond.refcount.holders import object_id
    from millpond.store.info import ObjectInfo

    return ObjectInfo(
        id=object_id(store, int(row["entry"]), int(row["birth"])),
        size=int(row["size"]),
        state=state,
        age_s=float(row["age_s"]),
        idle_s=float(row["idle_s"]),
        holders=int(row["holders"]),
        pins=int(row["pins"]),
        name=store._name_text(int(row["name"])),
        site=store._site_text(int(row["entry"]), int(row["birth"])),
    )


def _state_of(row: np.void) -> ObjectState | None:
    text = hot.STATES.get(int(row["state"]))
    if text == "resident":
        return "clean" if row["clean"] else "resident"
    if text in ("draft", "spilled", "lost"):
        return text  # type: ignore[return-value]
    return None
