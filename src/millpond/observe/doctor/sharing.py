"""What the doctor says about sharing: whether processes of this user find and reach each other's stores."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np

import millpond
from millpond.errors import MillpondError
from millpond.observe.doctor.finding import Finding, read_text, run
from millpond.store import peers, registry

TOPIC = "sharing"

PR_GET_DUMPABLE = 3  # linux/prctl.h
INIT_USER_NAMESPACE = 0xEFFFFFFD  # linux/proc_ns.h
INIT_PID_NAMESPACE = 0xEFFFFFFC


def findings() -> Iterator[Finding]:
    """About this user's processes on this machine."""
    checks = (_user, _namespace, _registry, _descriptors, _dumpable, _ptrace_scope, _store)
    yield from run(TOPIC, checks)


def _user() -> Iterator[Finding]:
    inside = os.stat("/proc/self/ns/user").st_ino != INIT_USER_NAMESPACE
    ids = f"{os.geteuid()}, group {os.getegid()}{' of a user namespace' if inside else ''}"
    meaning = "only processes of the same user and group share a store, and they trust each other"
    yield Finding(TOPIC, "user", ids, meaning)


def _namespace() -> Iterator[Finding]:
    own = peers.pid_namespace() != INIT_PID_NAMESPACE
    yield Finding(
        TOPIC,
        "pid namespace",
        "a container's" if own else "the machine's",
        "processes share a store only within one pid namespace; containers have one each",
        "note" if own else "ok",
        "to share with another container, start it in this namespace (docker run --pid=container:NAME)"
        if own
        else "",
    )


def _registry() -> Iterator[Finding]:
    try:
        root = registry.root_of()
        stores = len(registry.list_stores(root))
    except MillpondError as error:
        yield Finding(TOPIC, "registry", "refused", "no store can be made or found", "bad", str(error))
        return
    yield Finding(
        TOPIC,
        "registry",
        f"{root}, {stores} store{'s' * (stores != 1)}",
        "where stores are listed by name, for this user alone",
    )


_CHILD = "import os, sys; os.memfd_create('doctor'); print(end='ready', flush=True); sys.stdin.read()"


def _descriptors() -> Iterator[Finding]:
    """A new member takes the store's memory from a live one through /proc: tried with a child."""
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with child:
        assert child.stdin and child.stdout
        child.stdout.read(5)
        refused = _why_unreachable(child.pid)
        child.stdin.close()
    yield Finding(
        TOPIC,
        "reaching other processes",
        f"refused: {refused}" if refused else "works",
        "a process that connects opens the store's memory through /proc/PID/fd of a member",
        "bad" if refused else "ok",
        "allow it (hidepid of /proc, seccomp, LSM), or share by fork alone" if refused else "",
    )


def _why_unreachable(pid: int) -> str:
    try:
        directory = f"/proc/{pid}/fd"
        for name in os.listdir(directory):
            if "memfd:doctor" in os.readlink(f"{directory}/{name}"):
                os.close(os.open(f"{directory}/{name}", os.O_RDWR | os.O_CLOEXEC))
                return ""
    except OSError as error:
        return error.strerror or str(error)
    return "its memory file does not show"


def _dumpable() -> Iterator[Finding]:
    dumpable = ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)
    yield Finding(
        TOPIC,
        "dumpable",
        "yes" if dumpable == 1 else "no",
        "others may open this process's descriptors"
        if dumpable == 1
        else "nobody can attach through this process: it changed its user or carries capabilities",
        "ok" if dumpable == 1 else "bad",
        "" if dumpable == 1 else "let a process that did neither create the store and stay in it",
    )


def _ptrace_scope() -> Iterator[Finding]:
    scope = read_text("/proc/sys/kernel/yama/ptrace_scope")
    meaning = "does not matter: it restricts debuggers, and opening descriptors is no debugging"
    yield Finding(TOPIC, "ptrace scope", "no Yama" if scope is None else scope, meaning)


def _store() -> Iterator[Finding]:
    """The proof of it all: a store, one object, one view of it."""
    try:
        with millpond.Store("16MiB", spill_limit=0) as store:
            value = store.get(store.put(np.arange(1000)))
            sound = bool(value[-1] == 999) and store.check() == []
    except (MillpondError, OSError, MemoryError) as error:
        yield Finding(
            TOPIC, "a store", "failed", str(error), "bad", "mend what is bad above; it is likely the cause"
        )
        return
    yield Finding(
        TOPIC,
        "a store",
        "works" if sound else "is unsound",
        "made, one array put, read without a copy, checked and closed",
        "ok" if sound else "bad",
    )
