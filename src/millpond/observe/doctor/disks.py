"""What the doctor says about the directories that stores spill to: kind, space, direct I/O, speed.

The speed test writes a file that has no name any more, so that nothing is left whatever happens to it.
"""

from __future__ import annotations

import os
import stat
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from millpond.eviction.policies import BREAK_EVEN_BYTES
from millpond.observe.doctor.finding import Finding, read_text, run
from millpond.spill import disk
from millpond.spill.directory import FLOOR_BYTES, FLOOR_SHARE, default_base, squatted
from millpond.spill.record import PAGE
from millpond.units import format_bytes

TEST_BYTES = 256 << 20
TEST_SECONDS = 3.0
SEEKS = 64
SLOW_BYTES_PER_S = 100e6


def findings(directories: Sequence[Path], speed: bool = True) -> Iterator[Finding]:
    """About the given directories, or the one that a store would choose. speed: also measures it."""
    if not directories:
        try:
            directories = [default_base()]
        except OSError as error:
            yield Finding(
                "disk",
                "spill directory",
                "none",
                str(error),
                "bad",
                "pass spill_dir or set MILLPOND_SPILL_DIR",
            )
            return
    for directory in directories:
        yield from run(f"disk {directory}", (_Disk(directory, speed).spill_directory,))


@dataclass(frozen=True)
class _Disk:
    """One directory."""

    directory: Path
    speed: bool

    @property
    def topic(self) -> str:
        return f"disk {self.directory}"

    def spill_directory(self) -> Iterator[Finding]:
        """Everything about it; stops where the next thing makes no sense any more."""
        reason = self._unusable()
        if reason:
            advice = "choose another spill_dir, or set MILLPOND_SPILL_DIR"
            yield Finding(self.topic, "usable", "no", reason, "bad", advice)
            return
        yield self._kind()
        yield self._masters()
        yield self._space()
        try:
            with tempfile.TemporaryDirectory(prefix="millpond-doctor-", dir=self.directory) as scratch:
                direct = disk.probe_direct(disk.System(), scratch)
                yield self._direct(direct)
                if self.speed:
                    yield from self._measure(scratch, direct)
        except OSError as error:
            yield Finding(
                self.topic,
                "writing",
                "failed",
                f"{error.strerror}: nothing can be spilled here now",
                "bad",
                "mend the cause (a quota? ulimit -f? a read-only mount?) or choose another spill_dir",
            )

    def _unusable(self) -> str:
        try:
            if not self.directory.is_dir():
                return "it is not there" if not self.directory.exists() else "it is not a directory"
        except OSError as error:  # a directory above it may not be searched
            return error.strerror or str(error)
        if not os.access(self.directory, os.W_OK | os.X_OK):
            return f"user {os.geteuid()} may not write to it"
        if reason := squatted(self.directory):
            return f"it {reason}"
        return ""

    def _masters(self) -> Finding:
        masters = _others_in(self.directory)
        return Finding(
            self.topic,
            "who may rename in it",
            masters or f"user {os.geteuid()} and root",
            "they can make objects be lost, and read or forge none"
            if masters
            else "nobody else can take away what a store puts there",
            "note" if masters else "ok",
            "spill where only you and root may do that; chmod +t a place for all" if masters else "",
        )

    def _kind(self) -> Finding:
        filesystem, device = _mount_of(self.directory)
        if filesystem in ("tmpfs", "ramfs"):
            return Finding(
                self.topic,
                "filesystem",
                filesystem,
                "lies in memory: spilling there frees nothing, so it is used only where it is named",
                "bad",
                "choose a directory on a disk",
            )
        remote = filesystem.startswith(("nfs", "cifs", "smb", "fuse", "9p", "ceph", "lustre"))
        return Finding(
            self.topic,
            "filesystem",
            f"{filesystem} on {device}",
            "remote or in user space: slower, and errors may come late"
            if remote
            else "a disk of this machine",
            "note" if remote else "ok",
            "a local disk is better: what is spilled need not outlive the machine" if remote else "",
        )

    def _space(self) -> Finding:
        free, size = disk.free_space(disk.System(), str(self.directory))
        floor = min(FLOOR_BYTES, int(size * FLOOR_SHARE))
        short = free <= floor
        return Finding(
            self.topic,
            "free space",
            f"{format_bytes(free)} of {format_bytes(size)}",
            f"a store leaves {format_bytes(floor)} of it alone"
            if not short
            else f"below the {format_bytes(floor)} that a store leaves alone: nothing is spilled here",
            "bad" if short else "ok",
            "free some space, or add a spill directory on another disk" if short else "",
            free,
        )

    def _direct(self, direct: bool) -> Finding:
        return Finding(
            self.topic,
            "direct I/O",
            "works" if direct else "not on this filesystem",
            "bytes go between memory and disk without a copy, and errors come with the call"
            if direct
            else "a store writes through the page cache and waits for the disk: slower, and it takes memory",
            "ok" if direct else "note",
            "" if direct else "ext4, xfs and btrfs have it",
        )

    def _measure(self, scratch: str, direct: bool) -> Iterator[Finding]:
        free, size = disk.free_space(disk.System(), scratch)
        wanted = min(TEST_BYTES, (free - min(FLOOR_BYTES, int(size * FLOOR_SHARE))) // 2)
        if wanted < disk.CALL_BYTES:
            yield Finding(self.topic, "speed", "not measured", "there is too little free space", "note")
            return
        with _Scratch(scratch, direct) as file:
            written, write_s = file.write(wanted)
            yield self._rate("written", written / write_s, "in calls of 8 MiB: spilling can come close to it")
            yield self._rate("read back", written / file.read(written), "restoring can come close to it")
            seek = file.seek(written)
        worth = round(seek * written / write_s)
        yield Finding(
            self.topic,
            "answers a read of 4 KiB",
            f"in {seek * 1e6:.0f} us",
            f"as long as it takes to move {format_bytes(worth)}; the gdsf policy reckons with "
            f"{format_bytes(BREAK_EVEN_BYTES)}",
            number=seek,
        )

    def _rate(self, what: str, rate: float, meaning: str) -> Finding:
        slow = rate < SLOW_BYTES_PER_S
        return Finding(
            self.topic,
            what,
            f"{format_bytes(round(rate))}/s",
            "a slow disk: memory pressure will be felt" if slow else meaning,
            "note" if slow else "ok",
            'compression="auto" moves fewer bytes' if slow else "",
            rate,
        )


class _Scratch:
    """A file without a name, for measuring."""

    def __init__(self, directory: str, direct: bool) -> None:
        self._direct = direct
        path = os.path.join(directory, "speed")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | (os.O_DIRECT if direct else 0)
        self._fd = disk.System().open(path, flags)
        os.unlink(path)
        self._buffer = disk.aligned_buffer(disk.CALL_BYTES)
        self._buffer[:] = os.urandom(disk.CALL_BYTES)

    def __enter__(self) -> _Scratch:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._fd.close()

    def write(self, nbytes: int) -> tuple[int, float]:
        """(bytes, seconds): as much as can be written in TEST_SECONDS, at most `nbytes`."""
        start, done = time.perf_counter(), 0
        while done + disk.CALL_BYTES <= nbytes and time.perf_counter() - start < TEST_SECONDS:
            done += disk.write_all(disk.System(), self._fd, [self._buffer], done)
        os.fdatasync(self._fd)
        seconds = time.perf_counter() - start
        if not self._direct:
            os.posix_fadvise(self._fd.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return done, seconds

    def read(self, nbytes: int) -> float:
        """Seconds of reading it all."""
        start = time.perf_counter()
        for offset in range(0, nbytes, disk.CALL_BYTES):
            disk.read_all(disk.System(), self._fd, [self._buffer], offset)
        return time.perf_counter() - start

    def seek(self, nbytes: int) -> float:
        """Median seconds of reading one page somewhere."""
        times = []
        for number in range(SEEKS):
            offset = (number * 7_919 * PAGE) % nbytes
            start = time.perf_counter()
            disk.read_all(disk.System(), self._fd, [self._buffer[:PAGE]], offset)
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def _others_in(directory: Path) -> str:
    """Who else may rename what is in `directory`, or a directory above it; empty: nobody."""
    directory = directory.resolve()
    for path in (directory, *directory.parents):
        status = path.stat()
        if status.st_uid not in (0, os.geteuid()):
            return f"user {status.st_uid}, whose {path} is"
        if status.st_mode & 0o022 and not status.st_mode & stat.S_ISVTX:
            return f"all who may write to {path}: mode {stat.S_IMODE(status.st_mode):04o}, no sticky bit"
    return ""


def _mount_of(directory: Path) -> tuple[str, str]:
    """(filesystem, device) of the mount that a directory lies in, with the kind of device if it is known."""
    device = os.stat(directory).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in (read_text("/proc/self/mountinfo") or "").splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split(" ")[2] == wanted:
            filesystem, name = source.split(" ")[:2]
            return filesystem, name + _kind_of(wanted)
    return "an unknown filesystem", wanted


def _kind_of(numbers: str) -> str:
    base = os.path.realpath(f"/sys/dev/block/{numbers}")
    if os.path.basename(base).startswith(("vd", "xvd")):
        return ", virtual"  # what it says about spinning means nothing
    for disk_of in (base, os.path.dirname(base)):  # a partition has no queue of its own
        rotational = read_text(f"{disk_of}/queue/rotational")
        if rotational is not None:
            return ", spinning" if rotational == "1" else ", solid state"
    return ""
