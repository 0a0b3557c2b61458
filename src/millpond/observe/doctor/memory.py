"""What the doctor says about memory: how much there is, who limits it, and how shared pages behave here."""

from __future__ import annotations

import os
from collections.abc import Iterator

from millpond.eviction.limits import Machine, default_memory_limit
from millpond.observe.doctor.finding import Finding, field, read_text, run
from millpond.units import format_bytes

TOPIC = "memory"


def findings() -> Iterator[Finding]:
    """About this process on this machine, as it is now."""
    yield from run(TOPIC, (_ram, _limit, _default, _headroom, _swap, _overcommit, _memfd, _shm, _huge_pages))


def _meminfo(name: str) -> int | None:
    text = field(read_text("/proc/meminfo"), name + ":")
    return int(text.split()[0]) << 10 if text else None


def _ram() -> Iterator[Finding]:
    total, available = _meminfo("MemTotal"), _meminfo("MemAvailable")
    if total is None or available is None:
        raise OSError("/proc/meminfo cannot be read")
    yield Finding(
        TOPIC,
        "RAM",
        f"{format_bytes(total)}, {format_bytes(available)} available",
        "available is what programs can still take before the system is short",
        number=total,
    )


def _limit() -> Iterator[Finding]:
    machine = Machine()
    try:
        bounds = machine.bounds()
    finally:
        machine.close()
    who, least = min(bounds, key=lambda bound: bound[1])
    groups = len(bounds) - 1
    yield Finding(
        TOPIC,
        "this process may use",
        format_bytes(least),
        f"set by {who}, the tightest of RAM and {groups} cgroup limit{'s' * (groups != 1)}; "
        "shared pages are charged to the cgroup of whoever touches them first"
        if groups
        else "set by the RAM; no cgroup allows less",
        number=least,
    )


def _default() -> Iterator[Finding]:
    limit = default_memory_limit()
    yield Finding(
        TOPIC,
        "memory_limit by default",
        format_bytes(limit),
        "30 % of the line above; counts the bytes of objects, free warm pages included, and not the table",
        number=limit,
    )


def _headroom() -> Iterator[Finding]:
    machine = Machine()
    try:
        left = machine.headroom()
    finally:
        machine.close()
    short = left < 0
    yield Finding(
        TOPIC,
        "still to be had",
        format_bytes(left),
        "short of memory: stores shrink below their limit until this is positive"
        if short
        else "stores may commit so much more, within their limits, before they spill instead",
        "bad" if short else "ok",
        "end or shrink what else uses memory, or raise the cgroup's limit" if short else "",
        left,
    )


def _swap() -> Iterator[Finding]:
    total = _meminfo("SwapTotal") or 0
    yield Finding(
        TOPIC,
        "swap",
        format_bytes(total) if total else "none",
        "the system may swap shared pages out by itself, objects in use included"
        if total
        else "shared pages stay in RAM; when it is short, only the stores make room",
        "note" if total else "ok",
        "keep memory_limit well below RAM, so that stores spill first" if total else "",
        total,
    )


def _overcommit() -> Iterator[Finding]:
    mode = read_text("/proc/sys/vm/overcommit_memory")
    meanings = {
        "0": "heuristic: address space is free, only pages that are used count",
        "1": "always: address space is free, only pages that are used count",
        "2": "strict: every page that a store commits counts against the system's CommitLimit",
    }
    strict = mode == "2"
    yield Finding(
        TOPIC,
        "overcommit",
        f"mode {mode}",
        meanings.get(mode or "", "not known to this program"),
        "note" if strict else "ok",
        f"of CommitLimit {format_bytes(_meminfo('CommitLimit') or 0)}, "
        f"{format_bytes(_meminfo('Committed_AS') or 0)} are taken: keep the sum of all limits below the rest"
        if strict
        else "",
    )


def _memfd() -> Iterator[Finding]:
    mode = read_text("/proc/sys/vm/memfd_noexec")
    try:
        os.close(os.memfd_create("millpond-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    except OSError as error:
        yield Finding(
            TOPIC,
            "memfd",
            f"refused: {error.strerror}",
            "no store can be created: its memory is a memfd",
            "bad",
            "set the sysctl vm.memfd_noexec to 0 or 1" if mode == "2" else "allow memfd_create (seccomp?)",
        )
        return
    noexec = "" if mode is None else f", vm.memfd_noexec={mode}"
    yield Finding(
        TOPIC, "memfd", f"works{noexec}", "the memory of stores has no name and ends with its members"
    )


def _shm() -> Iterator[Finding]:
    try:
        status = os.statvfs("/dev/shm")
    except OSError as error:
        size = f"none ({error.strerror})"
    else:
        size = format_bytes(status.f_blocks * status.f_frsize)
    yield Finding(TOPIC, "/dev/shm", size, "does not matter: nothing of a store lies there")


def _huge_pages() -> Iterator[Finding]:
    text = read_text("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    if text is None:
        yield Finding(TOPIC, "huge shared pages", "not supported", "pages of 4 KiB; fresh ones are slow")
        return
    chosen = text.partition("[")[2].partition("]")[0]
    small = chosen in ("never", "deny", "advise")
    yield Finding(
        TOPIC,
        "huge shared pages",
        chosen,
        "pages of 4 KiB: a store reuses warm ones, fresh ones cost some microseconds each"
        if small
        else "large objects get pages of 2 MiB: fresh memory is fast, and page tables are small",
    )
