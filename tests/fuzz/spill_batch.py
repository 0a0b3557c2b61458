"""The compiled twin of restoring: small records, many at once, out of a window of a spill file.

An input is the window. Right: each object that becomes resident has its own value, and all others stay
on disk.
"""

from __future__ import annotations

from pathlib import Path

from xxhash import xxh3_64_intdigest

from fuzz.guard import Fence
from millpond import Store
from millpond.hot import NO_LIMIT, Code, RestoreBatch
from millpond.spill.record import HEADER_BYTES

_ROOM = 64 << 10
_VALUES = [b"", b"x" * 40, "short", list(range(20)), bytes(range(256)), {"a": "b" * 1000}]


class SpillBatch:
    """See above."""

    name = "spill-batch"
    most = 16 << 10

    def __init__(self, store: Store) -> None:
        self._store = store
        self._fence = Fence(self.most)
        self._refs = [store.put(value) for value in _VALUES]
        assert store.spill(self._refs) > 0
        batch = RestoreBatch(store, self._refs, range(len(self._refs)), NO_LIMIT)
        self._count = batch.count
        assert self._count == len(_VALUES)
        self._places = [batch.place(item)[0] for item in range(batch.count)]
        batch.release(0, batch.count)
        info = store.segment_info(self._places[0][3])
        assert info is not None and store._directories is not None
        self._file = Path(store._directories.file(info[1], info[0])).read_bytes()

    def close(self) -> None:
        self._refs.clear()
        assert self._store.check() == []

    def seeds(self) -> dict[str, bytes]:
        last = self._places[-1]
        return {"six-records": self._file[: last[0] + last[1]]}

    def mend(self, data: bytes) -> bytes:
        """Headers where the records begin get their checksum."""
        changed = bytearray(data)
        for offset, *_ in self._places:
            end = offset + HEADER_BYTES
            if len(changed) >= end:
                checksum = xxh3_64_intdigest(bytes(changed[offset : end - 8]))
                changed[end - 8 : end] = checksum.to_bytes(8, "little")
        return bytes(changed)

    def run(self, data: bytes) -> str:
        store, refs = self._store, self._refs
        batch = RestoreBatch(store, refs, range(len(refs)), NO_LIMIT)
        assert batch.count == self._count
        window = self._fence.hold(data)
        first, code = batch.copy_packed(0, batch.count, window, 0)
        while code in (Code.NO_ROOM, Code.NO_COMMIT):  # idle memory has just gone back to the system
            assert store._make_room(_ROOM)
            first, code = batch.copy_packed(first, batch.count, window, 0)
        assert first == batch.count
        resident = [item for item in range(batch.count) if store._state(batch.ref(item)) == 0]
        back = [batch.ref(item) for item in resident]
        batch.release(0, batch.count)
        for ref in back:
            assert ref.get() == _VALUES[refs.index(ref)]
        if back:
            store.spill(back)
        return f"{'all' if len(back) == len(refs) else 'some' if back else 'none'} restored"
