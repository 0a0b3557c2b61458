"""The format of one record in a segment file: a 64-byte header, then the stored payload.

Layout, little endian: magic u16, version u8, codec u8, entry u32, birth u64, store uuid 16 bytes,
raw length u64, stored length u64, xxh3_64 of the stored payload u64, xxh3_64 of the 56 bytes before
it u64. Two shapes, told apart by codec and raw length alone:
    packed   the payload follows the header directly; the record is padded to 64 bytes
    paged    the header has a page of its own; the payload starts on the next page and is padded to
             whole pages, so that it moves between disk and arena without a copy
A record is paged if its value has a file of its own, or is large and not compressed.
Invariant: nothing in a header is believed before its checksum and the reader's own knowledge of the
object agree with it.
Not here: what the payload means (`codec`), files (`disk`), the compiled twin that frames small
records by the thousand (`spill.pxi`; a test holds the two together).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from xxhash import xxh3_64_intdigest

HEADER_BYTES: Final = 64
PAGE: Final = 4096
ALIGN: Final = 64
MAGIC: Final = 0x704D
VERSION: Final = 1
CODEC_NONE: Final = 0

PAGED_MIN: Final = 64 << 10
"""Values from here on are written straight from the arena, unless they are compressed."""
OWN_FILE_MIN: Final = 8 << 20
"""Values from here on get a segment file of their own."""

_FIELDS: Final = struct.Struct("<HBBIQ16sQQQ")
_CHECKSUM: Final = struct.Struct("<Q")


class RecordError(ValueError):
    """A record is not what it must be; the message says which part. Never leaves `millpond.spill`."""


class Place(NamedTuple):
    """Where an object's disk copy is, in bytes: the table's `mp_place`. Any tuple of these will do."""

    offset: int
    """Of the record's header in the segment file."""
    length: int
    """Header, stored payload and padding."""
    checksum: int
    """xxh3_64 of the stored payload."""
    segment: int
    """Index in the table of segments."""
    codec: int


class RecordHeader(NamedTuple):
    """What the 64 bytes in front of a stored payload say."""

    uuid: bytes
    entry: int
    birth: int
    codec: int
    raw: int
    """Bytes of the value."""
    stored: int
    """Bytes of the payload: those of the value, or fewer when it is compressed."""
    checksum: int
    """xxh3_64 of the stored payload."""

    def pack(self) -> bytes:
        """The header as it stands on disk."""
        fields = _FIELDS.pack(
            MAGIC,
            VERSION,
            self.codec,
            self.entry,
            self.birth,
            self.uuid,
            self.raw,
            self.stored,
            self.checksum,
        )
        return fields + _CHECKSUM.pack(xxh3_64_intdigest(fields))

    @classmethod
    def unpack(cls, header: bytes) -> RecordHeader:
        """The header that `header` holds. Raises RecordError when its bytes are not a header's."""
        if len(header) != HEADER_BYTES:
            raise RecordError(f"the header has {len(header)} bytes instead of {HEADER_BYTES}")
        magic, version, codec, entry, birth, uuid, raw, stored, checksum = _FIELDS.unpack_from(header)
        if magic != MAGIC:
            raise RecordError(f"no record starts here (magic {magic:#06x})")
        if version != VERSION:
            raise RecordError(f"the record has version {version}, this program reads {VERSION}")
        if _CHECKSUM.unpack_from(header, _FIELDS.size)[0] != xxh3_64_intdigest(header[: _FIELDS.size]):
            raise RecordError("the header's checksum is wrong")
        return cls(uuid, entry, birth, codec, raw, stored, checksum)


def padded(count: int, unit: int = PAGE) -> int:
    """`count` rounded up to a multiple of `unit`, which is a power of two."""
    return (count + unit - 1) & -unit


def is_paged(codec: int, raw: int) -> bool:
    """Whether the payload of such a value starts on a page of its own."""
    return raw >= OWN_FILE_MIN or (codec == CODEC_NONE and raw >= PAGED_MIN)


def payload_start(codec: int, raw: int) -> int:
    """Bytes from the start of the record to its payload."""
    return PAGE if is_paged(codec, raw) else HEADER_BYTES


def record_length(codec: int, raw: int, stored: int) -> int:
    """Bytes of the whole record: header, stored payload, padding."""
    if is_paged(codec, raw):
        return PAGE + padded(stored)
    return padded(HEADER_BYTES + stored, ALIGN)


def verify(header: bytes, uuid: bytes, entry: int, birth: int, raw: int, place: Place) -> RecordHeader:
    """The header, if it is that of this very object and agrees with the table.

    Raises RecordError with the reason otherwise: damage, another store's or another object's record,
    or lengths that are not those the record was written with. The payload is not looked at.
    """
    found = RecordHeader.unpack(header)
    if found.uuid != uuid:
        raise RecordError(f"the record belongs to store {found.uuid.hex()}")
    if (found.entry, found.birth) != (entry, birth):
        raise RecordError(f"the record is that of object {found.entry}.{found.birth}")
    if found.codec != place.codec:
        raise RecordError(f"the record has codec {found.codec} instead of {place.codec}")
    if found.raw != raw:
        raise RecordError(f"the record is of {found.raw} bytes instead of {raw}")
    if found.checksum != place.checksum:
        raise RecordError("the record is of another payload")
    if found.codec == CODEC_NONE and found.stored != raw:
        raise RecordError(f"{found.stored} stored bytes cannot be {raw} bytes that were not compressed")
    if place.length != record_length(found.codec, raw, found.stored):
        raise RecordError(f"{found.stored} stored bytes do not make a record of {place.length} bytes")
    return found
