"""`ObjectID`, the 20 bytes that name an object, and the placeholder for objects that are not there."""

from __future__ import annotations

import os

ID_BYTES = 20


class ObjectID:
    """The id of an object: 20 bytes that the user chooses. Hashable, comparable, picklable.

    Raises ValueError for anything but 20 bytes.
    """

    __slots__ = ("__weakref__", "_binary")

    def __init__(self, object_id: bytes) -> None:
        if not isinstance(object_id, bytes) or len(object_id) != ID_BYTES:
            raise ValueError(f"an object id is {ID_BYTES} bytes, not {object_id!r}")
        self._binary = object_id

    @staticmethod
    def from_random() -> ObjectID:
        """An id that nobody else has."""
        return ObjectID(os.urandom(ID_BYTES))

    def binary(self) -> bytes:
        """The 20 bytes."""
        return self._binary

    def __eq__(self, other: object) -> bool:
        return self._binary == other._binary if isinstance(other, ObjectID) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._binary)

    def __repr__(self) -> str:
        return f"ObjectID({self._binary.hex()})"

    def __reduce__(self) -> tuple[type[ObjectID], tuple[bytes]]:
        return ObjectID, (self._binary,)


class ObjectNotAvailable:
    """What `PlasmaClient.get` gives, the class itself, for an object that did not come in time."""
