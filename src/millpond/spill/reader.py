"""Reading objects back from disk, verified.

Invariants: nobody sees a byte before header and checksum agree with the table; what does not is read a
second time before the object is called lost; only a file that is gone, short or not ours, or bytes
that are wrong twice, make an object lost. Any other error of the system leaves it spilled.
The caller holds a pin: it keeps the place, and with it the file, until the read is over.
Not here: where the bytes go and who waits for them (the store and the kernel).
"""

from __future__ import annotations

import errno
import mmap
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final, NamedTuple, TypeVar

from xxhash import xxh3_64, xxh3_64_intdigest

from millpond.errors import ObjectLostError, SpillError
from millpond.hot import Descriptor
from millpond.spill.codec import Codec, CodecError, CodecFailure, known_codec
from millpond.spill.directory import Directories
from millpond.spill.disk import CALL_BYTES, BufferPool, aligned_buffer, copy_bytes, opened, read_all
from millpond.spill.frames import FRAME, FRAME_HEAD, decode, decode_frames, find_frames
from millpond.spill.overlap import Overlap
from millpond.spill.record import (
    CODEC_NONE,
    HEADER_BYTES,
    OWN_FILE_MIN,
    PAGE,
    Place,
    RecordError,
    RecordHeader,
    is_paged,
    padded,
    payload_start,
    verify,
)
from millpond.spill.segments import SegmentTable

WINDOW: Final = 4 << 20
"""What is not read straight to where it belongs passes through buffers of this size."""
TAIL: Final = 1 << 20
"""What would be left over for a last call is read with the one before it: a page takes as long as 128 KiB."""
assert WINDOW >= 2 * PAGE + FRAME_HEAD + FRAME, "a window must hold any frame whole"

T = TypeVar("T")
Step = Callable[[], object]
PlaceFields = tuple[int, int, int, int, int]
"""The fields of a Place, which is one."""

_GONE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)


_OFFSETS_END: Final = 1 << 63
"""Of files, as the system counts. A table that somebody has scribbled on may say more."""


class _Short(Exception):
    """The file ends before the record does."""


Wanted = tuple[PlaceFields, int, int, int, memoryview]
"""Place, entry, birth and size of an object, and where its value goes, as for `SpillReader.read_into`."""


class _Wanted(NamedTuple):
    """The object that is being read, as the table knows it."""

    uuid: bytes
    place: Place
    entry: int
    birth: int
    size: int

    def check_header(self, header: memoryview) -> RecordHeader:
        """The header in these 64 bytes, if it is the right one. Raises RecordError."""
        return verify(bytes(header), self.uuid, self.entry, self.birth, self.size, self.place)

    def check_payload(self, checksum: int) -> None:
        """Raises RecordError unless `checksum` is that of the payload that was written."""
        if checksum != self.place.checksum:
            raise RecordError("the payload's checksum is wrong")


class SpillReader:
    """Restores objects of one store into memory of this process. Safe for many threads at once."""

    def __init__(self, table: SegmentTable, directories: Directories) -> None:
        """Opens nothing yet."""
        self._table = table
        self._uuid = table.uuid
        self._directories = directories
        self._system = directories.system
        self._buffered: set[int] = set()  # directories that refuse to be read past the page cache
        self._windows = BufferPool(WINDOW, keep=4)
        self._pages = BufferPool(PAGE, keep=128)

    def read_into(
        self,
        place: PlaceFields,
        entry: int,
        birth: int,
        size: int,
        target: memoryview,
        step: Step | None = None,
    ) -> None:
        """Fills `target` with the value of `size` bytes, and what `target` has beyond them with zeros.

        A value of more than 8 KiB needs a `target` that starts on a page and ends where its last page
        does. `step` is called after every few MiB. Raises ObjectLostError and SpillError, both naming
        the file; `target` may hold anything then.
        """
        wanted = _Wanted(self._uuid, Place(*place), entry, birth, size)

        def read(fd: Descriptor) -> None:
            if wanted.place.codec == CODEC_NONE and is_paged(CODEC_NONE, size):
                self._read_pages(fd, wanted, target, step)
            else:
                self._read_windows(fd, wanted, target[:size], step)
            target[size:] = bytes(len(target) - size)

        self._verified(wanted, read)

    def read_private(self, place: PlaceFields, entry: int, birth: int, size: int) -> memoryview:
        """The value in writable memory of its own. Raises like `read_into`."""
        target = aligned_buffer(padded(size))
        self.read_into(place, entry, birth, size, target)
        return target[:size]

    def map_private(self, place: PlaceFields, entry: int, birth: int, size: int) -> memoryview:
        """The value as a read-only map of its file, which must be its own and not compressed.

        The file is read and verified once, through the page cache and the descriptor that is mapped.
        Raises like `read_into`.
        """
        wanted = _Wanted(self._uuid, Place(*place), entry, birth, size)
        if wanted.place.codec != CODEC_NONE or size < OWN_FILE_MIN:
            raise ValueError(f"{size} bytes with codec {wanted.place.codec} have no file to map")

        def read(fd: Descriptor) -> memoryview:
            digest, end = xxh3_64(), PAGE + size
            with self._windows.borrow() as window:
                wanted.check_header(self._window(fd, 0, HEADER_BYTES, window))
                for at in range(PAGE, end, WINDOW):
                    digest.update(self._window(fd, at, min(at + WINDOW, end), window))
            wanted.check_payload(digest.intdigest())
            return _map(fd, end)[PAGE:]

        return self._verified(wanted, read, direct=False)

    @contextmanager
    def window(self, place: PlaceFields, stop: int) -> Iterator[tuple[memoryview, int]]:
        """The bytes of a segment file from the record at `place` on, up to offset `stop`, at most WINDOW of
        them: (bytes, the offset of the first of them). Nothing is checked.

        Raises SpillError and OSError; the bytes are gone after the `with` block.
        """
        path, directory = self._file(Place(*place).segment)
        first = Place(*place).offset & -PAGE
        with self._windows.borrow() as window:
            try:
                view = self._read_once(
                    path, directory, True, lambda fd: self._window(fd, first, stop, window)
                )
            except _Short as error:
                raise SpillError(errno.ENODATA, str(error), path) from error
            yield view, first

    def read_paged(self, objects: Sequence[Wanted]) -> list[bool]:
        """Fills the targets of paged records that follow each other in one file, with one read; which of
        them are right. The targets of the others may hold anything. Raises SpillError and OSError.
        """
        wanted = [_Wanted(self._uuid, Place(*place), *key) for place, *key, _ in objects]
        targets = [target for *_, target in objects]
        path, directory = self._file(wanted[0].place.segment)
        with ExitStack() as stack:
            pages = [stack.enter_context(self._pages.borrow()) for _ in objects]
            buffers = [buffer for pair in zip(pages, targets, strict=True) for buffer in pair]
            try:
                self._read_once(
                    path, directory, True, lambda fd: self._fill(fd, buffers, wanted[0].place.offset)
                )
            except _Short as error:
                raise SpillError(errno.ENODATA, str(error), path) from error
            return [_is_right(*one) for one in zip(wanted, pages, targets, strict=True)]

    def unpack(
        self,
        place: PlaceFields,
        entry: int,
        birth: int,
        size: int,
        window: memoryview,
        base: int,
        target: memoryview,
    ) -> bool:
        """Fills `target` with a value whose whole record lies in `window`, the bytes of its file from `base`
        on, and the rest with zeros. False when the bytes are wrong; `target` may hold anything then.

        Raises SpillError when the codec is not known here.
        """
        wanted = _Wanted(self._uuid, Place(*place), entry, birth, size)
        codec = self._codec(wanted)
        record = window[wanted.place.offset - base :][: wanted.place.length]
        start = payload_start(wanted.place.codec, size)
        try:
            header = wanted.check_header(record[:HEADER_BYTES])
            stored = record[start : start + header.stored]
            wanted.check_payload(xxh3_64_intdigest(stored))
            if decode(codec, stored, target[:size], 0) != (len(stored), size):
                return False
        except (RecordError, CodecError, CodecFailure):
            return False
        target[size:] = bytes(len(target) - size)
        return True

    def _read_pages(self, fd: Descriptor, wanted: _Wanted, target: memoryview, step: Step | None) -> None:
        """The payload goes straight into `target`, the page of the header into a buffer.

        One piece is checked while the next one is read.
        """
        place, size, digest = wanted.place, wanted.size, xxh3_64()
        end = padded(size)
        with Overlap[None]() as check, self._pages.borrow() as page:
            at = 0
            while at < end:
                stop = at + CALL_BYTES if end - at > CALL_BYTES + TAIL else end
                chunk = target[at:stop]
                if at == 0:
                    self._fill(fd, [page, chunk], place.offset)
                    wanted.check_header(page[:HEADER_BYTES])
                else:
                    self._fill(fd, [chunk], place.offset + PAGE + at)
                    check.finish()
                if step is not None:
                    step()
                if stop < end:
                    check.start(partial(digest.update, chunk))
                else:
                    digest.update(target[at:size])
                at = stop
        wanted.check_payload(digest.intdigest())

    def _read_windows(self, fd: Descriptor, wanted: _Wanted, target: memoryview, step: Step | None) -> None:
        """The record passes through a buffer: it is packed among others, compressed, or both."""
        place, start = wanted.place, payload_start(wanted.place.codec, wanted.size)
        with self._windows.borrow() as window:
            view = self._window(fd, place.offset, place.offset + place.length, window)
            header = wanted.check_header(view[:HEADER_BYTES])
            view = view[start : start + header.stored]
            if place.codec == CODEC_NONE:
                wanted.check_payload(xxh3_64_intdigest(view))
                copy_bytes(target, view)
                return
            codec, digest = self._codec(wanted), xxh3_64()
            at = place.offset + start
            try:
                self._decode(fd, codec, view, (at, at + header.stored), digest, target, window, step)
            except CodecFailure:
                self._digest_rest(fd, (at, at + header.stored), digest, window)
                wanted.check_payload(digest.intdigest())
                raise  # the bytes are right: it is the codec's fault
        wanted.check_payload(digest.intdigest())

    def _decode(
        self,
        fd: Descriptor,
        codec: Codec,
        view: memoryview,
        span: tuple[int, int],
        digest: xxh3_64,
        target: memoryview,
        window: memoryview,
        step: Step | None,
    ) -> None:
        """Fills `target` from the frames in bytes `span` of the file, of which `view`, a part of `window`,
        has the first. The next window is read while the frames of this one are decoded."""
        at, end = span
        done = 0
        with self._windows.borrow() as spare, Overlap[memoryview]() as ahead:
            while True:
                frames = find_frames(view, target, done)
                if frames.used == 0:
                    raise CodecError(f"the frames end after {done} of {len(target)} bytes")
                at, done = at + frames.used, frames.done
                if done < len(target):
                    ahead.start(partial(self._window, fd, at, end, spare))
                digest.update(view[: frames.used])
                decode_frames(codec, frames)
                if step is not None:
                    step()
                if done == len(target):
                    return
                view = ahead.finish() or view[:0]
                window, spare = spare, window

    def _digest_rest(
        self, fd: Descriptor, span: tuple[int, int], digest: xxh3_64, window: memoryview
    ) -> None:
        """`digest` over bytes `span` of the file, from the start."""
        digest.reset()
        at, end = span
        while at < end:
            view = self._window(fd, at, end, window)
            digest.update(view)
            at += len(view)

    def _window(self, fd: Descriptor, start: int, stop: int, window: memoryview) -> memoryview:
        """Bytes [start, stop) of the file, or as many of the first of them as `window` can hold."""
        first = start & -PAGE
        count = min(padded(stop) - first, len(window))
        self._fill(fd, [window[:count]], first)
        return window[start - first : min(stop - first, count)]

    def _fill(self, fd: Descriptor, buffers: list[memoryview], offset: int) -> None:
        if offset >= _OFFSETS_END:
            raise _Short(f"no file has an offset of {offset}")
        count = read_all(self._system, fd, buffers, offset)
        if count < sum(map(len, buffers)):
            raise _Short(f"the file ends at {offset + count}")

    def _verified(self, wanted: _Wanted, read: Callable[[Descriptor], T], direct: bool = True) -> T:
        """What `read` returns, given a descriptor; a second time if the bytes were wrong."""
        self._codec(wanted)
        path, directory = self._file(wanted.place.segment)
        try:
            try:
                return self._read_once(path, directory, direct, read)
            except (RecordError, CodecError):  # perhaps damaged only on its way here
                return self._read_once(path, directory, direct, read)
        except CodecFailure as error:
            raise SpillError(
                errno.ENOTSUP,
                f"object {wanted.entry}.{wanted.birth} of {wanted.size} bytes: {error}. It stays on disk",
                path,
            ) from error
        except (RecordError, CodecError, _Short) as error:
            raise _lost(wanted, path, str(error)) from error
        except OSError as error:
            if error.errno in _GONE:
                raise _lost(wanted, path, error.strerror or "gone") from error
            raise SpillError(
                error.errno, f"cannot read a spilled object: {error.strerror}. It stays on disk", path
            ) from error

    def _codec(self, wanted: _Wanted) -> Codec:
        number = wanted.place.codec
        codec = known_codec(number)
        if codec is None:
            raise SpillError(
                errno.ENOTSUP,
                f"object {wanted.entry}.{wanted.birth} of {wanted.size} bytes was compressed by the codec "
                f"with number {number}, which this process does not know: call millpond.register_codec with "
                "it. The object stays on disk",
                self._file(wanted.place.segment)[0],
            )
        return codec

    def _file(self, segment: int) -> tuple[str, int]:
        """Path and directory of a segment's file."""
        info = self._table.segment_info(segment)
        if info is None:
            raise SpillError(errno.EAGAIN, f"segment {segment} cannot be looked up now")
        segment_id, directory, *_ = info
        return self._directories.file(directory, segment_id), directory

    def _read_once(self, path: str, directory: int, direct: bool, read: Callable[[Descriptor], T]) -> T:
        if direct and directory not in self._buffered:
            try:
                with opened(self._system, path, direct=True) as fd:
                    return read(fd)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._buffered.add(directory)
        with opened(self._system, path, direct=False) as fd:
            return read(fd)


def _is_right(wanted: _Wanted, page: memoryview, target: memoryview) -> bool:
    """Whether a header page and a payload are those of the object; what follows the value becomes zeros."""
    try:
        wanted.check_header(page[:HEADER_BYTES])
        wanted.check_payload(xxh3_64_intdigest(target[: wanted.size]))
    except RecordError:
        return False
    target[wanted.size :] = bytes(len(target) - wanted.size)
    return True


def _lost(wanted: _Wanted, path: str, reason: str) -> ObjectLostError:
    return ObjectLostError(
        f"object {wanted.entry}.{wanted.birth} of {wanted.size} bytes is lost: its disk copy at offset "
        f"{wanted.place.offset} of {path} cannot be used: {reason}. Make it again and drop this ref"
    )


def _map(fd: Descriptor, nbytes: int) -> memoryview:
    """A private, read-only map of the first `nbytes` of a file."""
    if sys.version_info >= (3, 13):  # before, each map keeps a descriptor of its own
        return memoryview(mmap.mmap(fd.fileno(), nbytes, mmap.MAP_PRIVATE, mmap.PROT_READ, trackfd=False))
    return memoryview(mmap.mmap(fd.fileno(), nbytes, mmap.MAP_PRIVATE, mmap.PROT_READ))
