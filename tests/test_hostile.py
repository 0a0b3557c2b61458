"""A peer that scribbles on the table cannot crash a process that uses the store from Python, nor have it
raise what is no error of a store. The kernel's own calls: tests/kernel/test_hostile.c. And native code that
takes no notice of a flag cannot change what others read."""

from __future__ import annotations

import ctypes
import os
import pickle
import random
import re
import signal
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import millpond
from ponds import Pond, connection, descriptor_of
from workers import Worker

NIGHTLY = bool(os.environ.get("MILLPOND_NIGHTLY"))
SNAPSHOT = (Path(__file__).parent / "kernel" / "layout.txt").read_text()
BATCH = 20
BATCHES = 50 if NIGHTLY else 2
REGIONS = ("header", "slots", "name buckets", "entries", "tokens", "edges", "names", "segments", "spans")
REGIONS += ("commit", "slabs", "sites")
EXTREMES = (0, 1, 2, 255, 256, 65535, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62, 1 << 63, (1 << 64) - 1)


def fields(name: str) -> dict[str, tuple[int, int]]:
    """Offset and size of each field of a struct."""
    body = re.search(rf"^{name} \d+\n((?: .*\n)+)", SNAPSHOT, re.MULTILINE)
    assert body, name
    rows = [line.split() for line in body[1].splitlines()]
    return {field: (int(offset), int(size)) for offset, size, field in rows}


class Table:
    """The shared table of a store, as a peer that means harm sees it."""

    def __init__(self, store: millpond.Store) -> None:
        self.fd = descriptor_of(store, "table")
        self.header = fields("mp_header")
        start = self.header["geometry"][0] + fields("mp_geometry")["region_offset"][0]
        offsets = struct.unpack(f"<{len(REGIONS)}Q", os.pread(self.fd, 8 * len(REGIONS), start))
        self.regions = dict(zip(REGIONS, offsets, strict=True))

    def write(self, offset: int, value: int, size: int) -> None:
        os.pwrite(self.fd, (value & (1 << 8 * size) - 1).to_bytes(size, "little"), offset)

    def spoil(self, number: int, dice: random.Random) -> str:
        """One word of something that is in use; what it was. At first each word of the pools, in turn."""
        pools = [field for field in self.header if field.startswith("pool_")]
        if number < 4 * len(pools):
            field, word = pools[number // 4], number % 4
            self.write(self.header[field][0] + 4 * word, -1, 4)
            return f"word {word} of {field}"
        region = dice.choice((*REGIONS, "header", "header"))
        value = dice.choice([*EXTREMES, dice.getrandbits(64), dice.randrange(64)])
        if region == "header":
            taboo = ("mutex", "geometry", "config", "magic", "ready")  # the lock itself is anybody's to take
            field = dice.choice([field for field in self.header if field not in taboo])
            offset, size = self.header[field]
            at, size = offset + dice.randrange(0, size, 4), min(size, dice.choice((4, 8)))
        else:
            field, size = "", dice.choice((4, 8))
            at = self.regions[region] + dice.randrange(0, 2048, 4)
        self.write(at, value, size)
        return f"{region} {field} at {at}: {value:#x}"


def calls(store: millpond.Store, refs: list[Any], pickles: list[bytes]) -> Iterator[Callable[[], Any]]:
    """What a program may do with a store."""
    for ref in refs:
        yield from (ref.get, partial(ref.get, copy=True), partial(store.refs, ref), lambda ref=ref: ref.size)
        yield from (partial(pickle.dumps, ref), partial(store.explain, ref))
    yield from (lambda data=data: pickle.loads(data).get() for data in pickles)
    yield from (store.stats, store.objects, store.check, store._totals, store._tidy, store._members)
    yield lambda: store.lookup("name")
    yield lambda: store.names("")
    yield lambda: store.put([refs[0], 1], name="other", replace=True)
    yield lambda: store.get(refs, timeout=0.2)
    yield lambda: store.wait(refs, timeout=0.01)
    yield lambda: store.put(np.zeros(300_000), timeout=0.2)
    yield lambda: store.spill(refs)
    yield lambda: store.prefetch(refs)
    yield lambda: store.create((100,), "int64").seal()
    yield lambda: store.configure(memory_limit="6MiB")
    yield lambda: store.delete("name")
    yield lambda: store.delete(refs[-1])
    yield lambda: len(store)


def attacked(own: Any, directory: Path, log: Path, seed: int) -> list[str]:
    """Stores that are damaged while they are used; what was raised that is no error of a store."""
    os.environ["MILLPOND_DIR"] = str(directory / "registry")
    wrong = []
    for number in range(seed, seed + BATCH):
        dice = random.Random(number)
        store = millpond.Store("4MiB", spill_dir=directory / "spill")
        inner = store.put({"a": 1})
        refs = [inner, store.put([inner, inner]), store.put(np.arange(100_000)), store.put(np.ones(1000))]
        store.spill([store.put(np.ones(2000)), refs[3]])
        store.put(b"named", name="name")
        pickles = [pickle.dumps(ref) for ref in refs]
        view = refs[2].get()
        what = Table(store).spoil(number, dice)
        log.write_text(f"seed {number}: {what}")
        for call in calls(store, refs, pickles):
            try:
                call()
            except (millpond.MillpondError, OSError, MemoryError):
                pass
            except (pickle.UnpicklingError, EOFError) as error:  # bytes of a value, not of the table
                wrong += [] if "entries" in what else [f"seed {number}, {what}: {error!r}"]
            except Exception as error:
                wrong.append(f"seed {number}, {what}: {type(error).__name__}: {error}")
        del view, inner, refs
        with suppress(millpond.MillpondError):
            store.close()
    return wrong


def test_a_scribbled_table_crashes_nobody(tmp_path: Path, tally: Counter[str]) -> None:
    for batch in range(BATCHES):
        worker = Worker(program=True)
        log = tmp_path / f"log of {batch}"
        worker.run(
            lambda own, path: setattr(own, "log", os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)),
            str(log),
        )
        try:
            wrong = worker.run(attacked, tmp_path, log, batch * BATCH)
        except EOFError:
            pytest.fail(f"the process died: {log.read_text()}")
        finally:
            worker.end()
        assert wrong == []
        tally["damaged tables used from Python"] += BATCH


STRANGE = {
    "magic": "not a millpond table",
    "layout_version": "another layout version",
    "abi": "another C library or architecture",
    "ready": "not ready",
    "geometry": "size is wrong|geometry is damaged",
    "uuid": "belongs to the store",
    "boot_id": "before the last boot",
    "pid_namespace": "another pid namespace.*--pid=container",
    "uid": "belongs to user",
    "gid": "group",
    "config": "not those of a store",
}


def test_a_header_of_something_else_is_refused(pond: Pond) -> None:
    """With the reason. Who is in the store stays; the newcomer is let in when the header is right again."""
    store = pond.store()
    ref = store.put(1)
    table, newcomer = Table(store), pond.worker(program=True)
    for field, reason in STRANGE.items():
        offset = table.header[field][0]
        right = os.pread(table.fd, 4, offset)
        table.write(offset, int.from_bytes(right, "little") ^ 1, 4)
        refused = newcomer.run(connection, store.address)
        os.pwrite(table.fd, right, offset)
        assert re.match(f"(AttachError|StoreCorruptedError): .*({reason})", refused), (field, refused)
        assert newcomer.run(connection, store.address) == "joined", field
    assert ref.get() == 1 and store.stats().members == 1


@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_native_code_cannot_write_through_a_view(pond: Pond, size: int) -> None:
    """It takes no notice of NumPy's flag, and meets a mapping that is read-only."""
    store = pond.store()
    view = store.put(np.ones(size, np.uint8)).get()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # no traceback of faulthandler
        ctypes.memset(view.ctypes.data, 7, size)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGSEGV
    assert (view == 1).all()
