"""What the doctor says about this process and its system: limits, kernel, processors, clock."""

from __future__ import annotations

import fcntl
import mmap
import os
import platform
import resource
import struct
import sys
import tempfile
from collections.abc import Iterator

from millpond.eviction.limits import usable_memory
from millpond.observe.doctor.finding import Finding, field, read_text, run
from millpond.units import format_bytes

TOPIC = "process"

FILES_MIN = 256
MADV_POPULATE_WRITE = 23  # linux/mman.h


def findings() -> Iterator[Finding]:
    """About this process, as it is now."""
    checks = (
        _versions,
        _populate,
        _ofd_locks,
        _processors,
        _clock,
        _open_files,
        _file_size,
        _address_space,
        _locked,
    )
    yield from run(TOPIC, checks)


def _versions() -> Iterator[Finding]:
    supported = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")
    yield Finding(
        TOPIC,
        "system",
        f"Linux {platform.release()} {platform.machine()}, Python {platform.python_version()}",
        "supported" if supported else "not supported: Linux on x86-64 or arm64 is",
        "ok" if supported else "bad",
    )


def _populate() -> Iterator[Finding]:
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        try:
            page.madvise(MADV_POPULATE_WRITE)
        except OSError:
            yield Finding(
                TOPIC,
                "MADV_POPULATE_WRITE",
                "missing",
                "pages are mapped one by one as they are first touched: large first puts are slower",
                "note",
                "Linux 5.14 or newer has it",
            )
            return
    yield Finding(TOPIC, "MADV_POPULATE_WRITE", "works", "pages of large objects are mapped ahead in one go")


def _ofd_locks() -> Iterator[Finding]:
    with tempfile.TemporaryFile() as file:
        request = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        try:
            fcntl.fcntl(file, fcntl.F_OFD_GETLK, request)
        except OSError as error:
            yield Finding(
                TOPIC,
                "file locks",
                f"no OFD locks: {error.strerror}",
                "forked children cannot be told from their parents: they cannot become members",
                "bad",
                "use Linux 3.15 or newer, and a local filesystem for MILLPOND_DIR",
            )
            return
    yield Finding(TOPIC, "file locks", "work", "the system itself says which members are alive")


def _processors() -> Iterator[Finding]:
    usable, there = len(os.sched_getaffinity(0)), os.cpu_count() or 0
    quota = (read_text("/sys/fs/cgroup/cpu.max") or "max").split()
    limited = f", a cgroup allows the time of {int(quota[0]) / int(quota[1]):g}" if quota[0].isdigit() else ""
    yield Finding(
        TOPIC,
        "processors",
        f"{usable} of {there}{limited}",
        "checksums and compression use threads; with one processor they cannot overlap with the disk"
        if usable == 1
        else "checksums, compression and copies overlap with the disk",
        number=usable,
    )


def _clock() -> Iterator[Finding]:
    source = read_text("/sys/devices/system/clocksource/clocksource0/current_clocksource") or "unknown"
    flags = (field(read_text("/proc/cpuinfo"), "flags") or "").split()
    steady = platform.machine() != "x86_64" or "constant_tsc" in flags
    yield Finding(
        TOPIC,
        "clock",
        source,
        "access times come from the processor's counter, which runs evenly"
        if steady
        else "the processor's counter does not run evenly: the order of accesses is only roughly known",
        "ok" if steady else "note",
    )


UNLIMITED = 1 << 63


def _limit(which: int) -> int:
    """The soft limit; UNLIMITED if there is none."""
    soft, _ = resource.getrlimit(which)
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


def _bytes_text(limit: int) -> str:
    return "unlimited" if limit == UNLIMITED else f"{format_bytes(limit)} at most"


def _open_files() -> Iterator[Finding]:
    soft = _limit(resource.RLIMIT_NOFILE)
    low = soft < FILES_MIN
    yield Finding(
        TOPIC,
        "open files (ulimit -n)",
        "unlimited" if soft == UNLIMITED else str(soft),
        "a member needs about ten descriptors, however many objects there are",
        "note" if low else "ok",
        f"raise it to {FILES_MIN} or more: the program that uses the store needs some too" if low else "",
        soft,
    )


def _file_size() -> Iterator[Finding]:
    soft = _limit(resource.RLIMIT_FSIZE)
    limited = soft < 4 * usable_memory()
    yield Finding(
        TOPIC,
        "file size (ulimit -f)",
        _bytes_text(soft),
        "the shared memory of a store counts as a file, with all the addresses that it may ever use"
        if limited
        else "limits neither shared memory nor segment files",
        "bad" if limited else "ok",
        "no store can be created: ulimit -f unlimited" if limited else "",
        soft,
    )


def _address_space() -> Iterator[Finding]:
    soft = _limit(resource.RLIMIT_AS)
    needed = 8 * usable_memory()
    small = soft < needed
    yield Finding(
        TOPIC,
        "address space (ulimit -v)",
        _bytes_text(soft),
        "stores made here reserve fewer addresses than they like to; others may be too large to join"
        if small
        else f"a member maps about {format_bytes(needed)} of addresses; only what is in use costs memory",
        "note" if small else "ok",
        "lift it, and bound memory by memory_limit or a cgroup instead: ulimit -v unlimited" if small else "",
        soft,
    )


def _locked() -> Iterator[Finding]:
    text = _bytes_text(_limit(resource.RLIMIT_MEMLOCK))
    yield Finding(TOPIC, "locked memory (ulimit -l)", text, "does not matter: a store locks no memory")
