"""Pickled refs: the bytes that `load_ref` gets from files, queues and other programs.

Right: an error, or a ref of an object of the store that they name, with the object's own value. A token that
is not theirs is not known to whoever made bytes up, but an object that lives is found without one: that is
what weak pickling is for.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import Any
from unittest import mock

import millpond
from millpond import MillpondError, Store
from millpond.hot import load_contained
from millpond.refcount.handoff import HANDOFF_BYTES, unpack
from millpond.store import peers

_BOOT = b"the boot of then"
_BOOT_AT, _CHECK_AT = HANDOFF_BYTES - 20, HANDOFF_BYTES - 4
_DELIVERIES = 2**31


class HandOff:
    """See above."""

    name = "hand-off"
    most = 4 * HANDOFF_BYTES

    def __init__(self, store: Store) -> None:
        self._store = store
        self._boot = peers.boot_id()
        self._refs = [store.put(value) for value in ("one", [2], {"three": 3})]
        self._values: dict[tuple[int, int], Any] = {ref._key: ref.get() for ref in self._refs}
        with mock.patch.object(os, "urandom", lambda count: b"\x5a" * count):
            self._exported = [ref.export(deliveries=_DELIVERIES) for ref in self._refs]
            self._exported.append(self._refs[0].export(deliveries=0))

    def close(self) -> None:
        self._exported.clear()
        self._refs.clear()
        assert self._store.check() == []

    def seeds(self) -> dict[str, bytes]:
        names = ("first", "second", "third", "without-a-token")
        return {name: self._with_boot(data, _BOOT) for name, data in zip(names, self._exported, strict=True)}

    @staticmethod
    def _with_boot(data: bytes, boot: bytes) -> bytes:
        body = data[:_BOOT_AT] + boot + data[_BOOT_AT + 16 : _CHECK_AT]
        return body + struct.pack("<I", zlib.crc32(body))

    def mend(self, data: bytes) -> bytes:
        data = (data + bytes(HANDOFF_BYTES))[:_CHECK_AT]
        return data + struct.pack("<I", zlib.crc32(data))

    def run(self, data: bytes) -> str:
        """Bytes that name the boot of the corpus get that of this machine, if their checksum is right."""
        with_boot = data[_BOOT_AT : _BOOT_AT + 16] == _BOOT and len(data) == HANDOFF_BYTES
        if with_boot and zlib.crc32(data[:_CHECK_AT]) == int.from_bytes(data[_CHECK_AT:], "little"):
            data = self._with_boot(data, self._boot)
        given = unpack(data)
        ref = millpond.load_ref(data)
        assert ref._store is self._store and given.store == self._store.uuid
        assert ref._key == (given.entry, given.birth)
        assert ref.get() == self._values[ref._key]
        return self._contained(given.store, given.entry, given.birth)

    def _contained(self, uuid: bytes, entry: int, birth: int) -> str:
        """The same object, as a ref inside of a value names it, and what is near it."""
        for near in (entry, entry + 1, entry ^ 1 << 31):
            try:
                ref = load_contained(uuid, near, birth)
            except MillpondError:
                continue
            assert ref._key in self._values
        return "a ref"
