"""Code of the user's in the middle of a spill (a signal's handler, a destructor, a policy): what it calls
ends, since no thread waits there for one that waits for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TIMEOUT_S = 60

START = """
import faulthandler, sys, threading, time
import numpy as np, millpond
from millpond.spill.disk import System
faulthandler.dump_traceback_later(20, exit=True)
store = millpond.Store("8MiB", spill_dir=sys.argv[1])
MIB = 1 << 20
refs = [store.put(np.full(MIB // 8, i)) for i in range(7)]
room, segments = store._room, store._writer._segments

def spiller():
    return next((one for one in threading.enumerate() if one.name == "millpond-spiller"), None)

def put_on_and_on():
    for i in range(64):
        refs.append(store.put(np.full(MIB // 8, i)))
"""

CLOSES = """
class Signalled(System):
    def pwritev(self, fd, buffers, offset):
        if threading.current_thread() is threading.main_thread() and spiller():
            time.sleep(0.1)  # the spiller waits for the disk
            store.close()
        return super().pwritev(fd, buffers, offset)

segments._system = Signalled()
try:
    put_on_and_on()
except millpond.StoreClosedError:
    print("closed")
"""

PUTS = """
seen, others = [], []

def order(rows):
    if threading.current_thread() is spiller() and not others:
        others.append(threading.Thread(target=put_on_and_on))
        others[0].start()
        time.sleep(0.1)  # it waits for the ranking
        try:
            store.put(np.zeros(4 * MIB, np.uint8))
        except millpond.StoreFullError:
            pass
        seen.append(True)
    return np.argsort(rows["stamp"])

store.configure(eviction=order)
put_on_and_on()
while not seen:
    time.sleep(0.01)
others[0].join()
assert len(refs) == 7 + 2 * 64 and store.check() == []
store.close()
print("closed")
"""

RECLAIMS = """
import errno

class Full(System):
    full = False

    def pwritev(self, fd, buffers, offset):
        if self.full:
            raise OSError(errno.ENOSPC, "full")
        return super().pwritev(fd, buffers, offset)

def sweep():
    reclaimer._sweep = swept
    disk.full = True
    other.start()
    time.sleep(0.3)  # it waits, in its turn, for this thread to free disk space
    try:
        store.put(np.zeros(4 * MIB, np.uint8))
    except millpond.StoreFullError:
        seen.append(True)
    disk.full = False
    return 0

disk = segments._system = Full()
reclaimer, seen, other = store._reclaimer, [], threading.Thread(target=put_on_and_on)
swept, reclaimer._sweep = reclaimer._sweep, sweep
reclaimer.make_room(1 << 40)
other.join()
assert seen and len(refs) == 7 + 64 and store.check() == []
store.close()
print("closed")
"""


@pytest.mark.parametrize(
    "program",
    [CLOSES, PUTS, RECLAIMS],
    ids=["a handler closes", "a policy puts", "a destructor puts while disk space is freed"],
)
def test_nobody_waits_for_himself(program: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", START + program, str(tmp_path / "spill")],
        env={**os.environ, "MILLPOND_DIR": str(tmp_path / "registry")},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr
    assert list(tmp_path.rglob("*.seg")) == []
