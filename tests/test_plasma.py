"""Plasma's API over a store: what its documentation says, without its server, and without pyarrow."""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import millpond
from millpond.integrations import plasma
from millpond.integrations.plasma import PlasmaClient, notices, objects
from ponds import Pond
from workers import wait_until

ObjectID = plasma.ObjectID
new_id = ObjectID.from_random


@pytest.fixture
def make(pond: Pond) -> Iterator[Callable[..., PlasmaClient]]:
    """A client of a new store: of `capacity` bytes under Plasma's terms, or without it an ordinary one."""
    clients = []

    def make(capacity: int | None = None, **options: Any) -> PlasmaClient:
        if capacity is None:
            store = pond.store(**options)
        else:
            store = pond.store(capacity + (1 << 20), **{"spill_limit": 0, **options})
            store.put((capacity, options.get("spill_limit", 0) != 0), name="plasma.terms")
        clients.append(plasma.connect(store.address, 0))
        return clients[-1]

    yield make
    for client in clients:
        client.disconnect()


@pytest.fixture
def client(make: Callable[..., PlasmaClient]) -> PlasmaClient:
    """A client of 10 MB under Plasma's terms."""
    return make(10_000_000)


def again(client: PlasmaClient) -> PlasmaClient:
    return plasma.connect(client.store_socket_name, 0)


# --- ids ---


def test_ids() -> None:
    one, same, other = ObjectID(b"1" * 20), ObjectID(b"1" * 20), new_id()
    assert one == same != other and len({one, same, other}) == 2 and one != "1" * 20
    assert pickle.loads(pickle.dumps(one)) == one and one.binary() == b"1" * 20
    assert repr(one) == "ObjectID(" + "31" * 20 + ")"
    wrong: Any
    for wrong in ("1" * 20, b"1" * 19, b"", None, bytearray(20)):
        with pytest.raises(ValueError, match="20 bytes"):
            ObjectID(wrong)


# --- create, seal, get ---


def test_create_and_seal_in_place(client: PlasmaClient) -> None:
    key = new_id()
    buffer = client.create(key, 1000, b"meta")
    written = np.frombuffer(buffer, np.uint8)
    written[:] = np.arange(1000) % 256
    assert not client.contains(key) and client.get_buffers([key], timeout_ms=0) == [None]
    client.seal(key)
    (found,) = again(client).get_buffers([key])
    assert np.frombuffer(found, np.uint8).ctypes.data % 64 == 0
    assert found.to_pybytes() == written.tobytes() and not found.is_mutable
    assert client.get_buffers([key], with_meta=True)[0][0] == b"meta"
    assert client.get_metadata([key])[0].to_pybytes() == b"meta"
    assert np.shares_memory(np.frombuffer(found, np.uint8), np.frombuffer(client.get_buffers([key])[0], "u1"))


def test_a_sealed_object_stays_where_its_writer_has_it(client: PlasmaClient) -> None:
    key = new_id()
    buffer = client.create(key, 5_000_000)
    client.seal(key)
    assert client.evict(1) == 0, "the writer still has the buffer"
    np.frombuffer(buffer, np.uint8)[7] = 9  # as in Plasma: it must not, but it harms nobody
    assert client.get_buffers([key])[0].to_pybytes()[7] == 9
    del buffer
    assert client.evict(1) == 5_000_000 and not client.contains(key)


def test_empty_objects(client: PlasmaClient) -> None:
    key = new_id()
    client.create_and_seal(key, b"")
    assert client.get_buffers([key], with_meta=True)[0][0] == b"" and client.contains(key)
    assert client.get_buffers([key])[0].to_pybytes() == b""
    with pytest.raises(ValueError, match="-1 bytes"):
        client.create(new_id(), -1)


def test_an_id_is_given_once(client: PlasmaClient) -> None:
    key = new_id()
    client.create(key, 10)
    for _ in range(2):
        with pytest.raises(plasma.PlasmaObjectExists):
            again(client).create_and_seal(key, b"other")
    client.seal(key)
    with pytest.raises(plasma.PlasmaObjectExists):
        client.put(1, key)
    with pytest.raises(plasma.PlasmaObjectSealed):
        client.seal(key)
    with pytest.raises(plasma.PlasmaObjectNotFound):
        client.seal(new_id())
    client.delete([key, new_id()])
    assert client.put(2, key) == key and client.get(key) == 2


def test_values(client: PlasmaClient) -> None:
    array = np.arange(100_000)
    for value in (
        None,
        "text",
        [1, {"a": (2.5, b"b")}],
        {"x": array},
        np.zeros(3),
        np.zeros((0, 4)),
        array[::2],
    ):
        found = client.get(client.put(value))
        assert pickle.dumps(found) == pickle.dumps(value) or np.array_equal(found, value)
    small = client.get(client.put(np.arange(3)))
    assert not small.flags.writeable and not small.flags.owndata
    assert client.get([client.put(1), client.put("b")]) == [1, "b"]
    assert client.get(new_id(), timeout_ms=0) is plasma.ObjectNotAvailable
    assert client.get([new_id()], timeout_ms=5) == [plasma.ObjectNotAvailable]
    offset = 3
    assert client.get(client.put(lambda x: x + offset))(1) == 4
    with pytest.raises(millpond.SerializationError, match="lock"):
        client.put({"lock": threading.Lock()})
    with pytest.raises(TypeError, match="register_reducer"):
        client.put(1, serialization_context=object())  # type: ignore[arg-type]


def test_bytes_travel_between_stores(make: Callable[..., PlasmaClient]) -> None:
    here, there = make(10_000_000), make()
    key = here.put({"x": np.arange(1000)})
    (data,) = here.get_buffers([key])
    there.put_raw_buffer(data, key)
    assert there.get(key)["x"][-1] == 999 and there.hash(key) == here.hash(key)
    array = np.arange(12).reshape(3, 4)
    raw = here.put_raw_buffer(array.T, metadata=b"T")
    assert here.get_buffers([raw])[0].to_pybytes() == array.T.tobytes()
    with pytest.raises(millpond.SerializationError, match="get_buffers"):
        here.get(raw)


def test_a_store_failure_leaves_no_object(client: PlasmaClient, monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_id()

    def fail(draft: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(objects, "finish", fail)
        client.put(np.zeros(1000), key)
    assert client.put(3, key) == key


def test_get_waits_for_the_seal(pond: Pond, client: PlasmaClient) -> None:
    keys = [new_id() for _ in range(3)]
    worker = pond.worker(program=True)

    def work(own: Any, address: str, keys: list[Any]) -> list[Any]:
        from millpond.integrations import plasma

        own.client = plasma.connect(address)
        found: list[Any] = own.client.get(keys)
        return found

    worker.start(work, client.store_socket_name, keys)
    for number, key in enumerate(keys):
        assert not worker.answered(0.05)
        buffer = client.create(key, 1000)
        client.delete([key])  # the id was a mistake
        del buffer
        client.put(number, key)
    assert worker.result() == [0, 1, 2]


def test_hash(client: PlasmaClient) -> None:
    one, same, other = new_id(), new_id(), new_id()
    client.create_and_seal(one, b"data", b"meta")
    client.create_and_seal(same, b"data", b"meta")
    client.create_and_seal(other, b"data", b"Meta")
    assert len(client.hash(one)) == 8 and client.hash(one) == client.hash(same) != client.hash(other)
    client.create(new := new_id(), 3)
    for missing in (new, new_id()):
        with pytest.raises(plasma.PlasmaObjectNotFound):
            client.hash(missing)


# --- room ---


def test_eviction_takes_the_longest_unread(client: PlasmaClient) -> None:
    keys = [client.put_raw_buffer(bytes(1_000_000)) for _ in range(9)]
    used = client.get_buffers(keys[:1])
    client.get_buffers(keys[1:2])
    client.create_and_seal(new_id(), bytes(1_500_000))  # a fifth of the capacity goes at once
    assert [client.contains(key) for key in keys] == [True, True, False, False] + [True] * 5
    del used
    assert client.evict(20_000_000) == 7 * 1_000_000 + 1_500_000 and client.evict(1) == 0
    assert client.list() == {}


def test_a_full_store(client: PlasmaClient) -> None:
    with pytest.raises(plasma.PlasmaStoreFull, match=r"10000001 bytes are more than .* 10000000"):
        client.create(new_id(), 10_000_000, b"1")
    key = client.put_raw_buffer(bytes(6_000_000))
    used = client.get_buffers([key])
    with pytest.raises(millpond.StoreFullError, match="no room for 4000001 bytes"):
        client.create(missing := new_id(), 4_000_001)
    assert not client.contains(missing) and client.contains(key)
    client.create_and_seal(new_id(), bytes(4_000_000))
    del used
    client.create_and_seal(new_id(), bytes(9_999_999), b"1")
    assert client.store_capacity() == 10_000_000 and not client.contains(key)


def test_what_is_evicted_comes_back_from_disk(make: Callable[..., PlasmaClient]) -> None:
    for client in (make(3_000_000, spill_limit=None), make(memory_limit="4MiB")):
        keys = [client.put(np.full(125_000, n)) for n in range(12)]
        assert all(client.contains(key) for key in keys)
        assert [int(client.get(key)[0]) for key in keys] == list(range(12))
        assert client.evict(1_000_000) >= 1_000_000 and len(client.list()) == 12
        restored = client._catalogue.store.stats().restored_objects_total
        assert {info["state"] for info in client.list().values()} == {"sealed"}
        assert client._catalogue.store.stats().restored_objects_total == restored, "listing restores nothing"
        assert client.store_capacity() in (3_000_000, 4 << 20)
        client.delete(keys)


def test_deleting_what_is_in_use(client: PlasmaClient) -> None:
    key = client.put(np.arange(10_000))
    view = client.get(key)
    client.delete([key])
    assert not again(client).contains(key) and view[-1] == 9999
    client.create(key, 100)
    client.delete([key])
    client.seal(key)
    assert not client.contains(key) and client.list() == {}


# --- processes ---


def test_a_writer_that_is_killed(pond: Pond, client: PlasmaClient) -> None:
    sealed, unsealed = new_id(), new_id()
    worker = pond.worker(program=True)

    def work(own: Any, address: str, sealed: Any, unsealed: Any) -> None:
        from millpond.integrations import plasma

        own.client = plasma.connect(address)
        own.client.create_and_seal(sealed, b"here to stay")
        own.buffer = own.client.create(unsealed, 100_000)

    worker.run(work, client.store_socket_name, sealed, unsealed)
    assert client.list()[unsealed]["state"] == "created"
    worker.kill()
    assert client.get_buffers([sealed])[0].to_pybytes() == b"here to stay"
    assert client.get(unsealed, timeout_ms=1500) is plasma.ObjectNotAvailable
    assert client.put(5, unsealed) == unsealed and client.get(unsealed) == 5


def test_a_forked_child_ends_nothing(pond: Pond, client: PlasmaClient) -> None:
    key = new_id()
    buffer = client.create(key, 10)
    client.subscribe()

    def work(own: Any) -> None:
        from workers import inherited

        inherited[0].disconnect()

    from workers import inherited

    inherited.append(client)
    pond.worker().run(work)
    np.frombuffer(buffer, np.uint8)[:] = 7
    client.seal(key)
    assert client.get_next_notification() == (key, 10, 0)
    assert client.get_buffers([key])[0].to_pybytes() == b"\7" * 10


def test_disconnect(make: Callable[..., PlasmaClient]) -> None:
    first, second = make(10_000_000), None
    second = again(first)
    key, unsealed = second.put(np.arange(1000)), new_id()
    view = second.get(key)
    kept = second.create(unsealed, 10)
    second.disconnect()
    second.disconnect()
    assert view[-1] == 999 and first.contains(key) and unsealed not in first.list()
    np.frombuffer(kept, np.uint8)[0] = 1
    for use in (lambda: second.get(key), lambda: second.create(new_id(), 1), second.list, second.subscribe):
        with pytest.raises(plasma.PlasmaConnectionError, match="disconnected"):
            use()
    with pytest.raises(TypeError, match="store_socket_name"):
        pickle.dumps(first)
    assert "connected" in repr(first) and "disconnected" in repr(second)
    assert "members=1" in first.debug_string()


def test_list(client: PlasmaClient) -> None:
    before = time.time()
    buffer = client.create(one := new_id(), 11, b"1234567")
    del buffer
    info = client.list()[one]
    assert (info["data_size"], info["metadata_size"], info["state"]) == (11, 7, "created")
    client.seal(one)
    two = client.put(np.arange(3))
    view = client.get(two)
    found = client.list()
    assert [found[key]["ref_count"] for key in (one, two)] == [0, 1] and view[2] == 2
    assert found[one]["state"] == "sealed" and found[one]["metadata_size"] == 7
    assert before - 1 <= found[one]["create_time"] <= time.time() + 1
    assert 0 <= found[one]["construct_duration"] <= time.time() - before + 1


# --- notices ---


def test_subscribers_hear_everything_in_order(client: PlasmaClient) -> None:
    old = client.put_raw_buffer(b"old", metadata=b"m")
    other = again(client)
    with pytest.raises(RuntimeError, match="subscribe"):
        other.get_next_notification()
    other.subscribe()
    client.subscribe()
    keys = [client.put_raw_buffer(bytes(n)) for n in range(300)]
    client.delete([keys[5]])
    assert client.evict(1) == 4, "the oldest, with its metadata"
    expected = [(old, 3, 1), *((key, n, 0) for n, key in enumerate(keys)), (keys[5], -1, -1), (old, -1, -1)]
    for subscriber in (other, client):
        assert [subscriber.get_next_notification() for _ in expected] == expected
    other.disconnect()
    client.put(1)
    assert client.get_next_notification()[1] > 0


def test_the_socket_of_notices(client: PlasmaClient) -> None:
    client.subscribe()
    socket = client.get_notification_socket()
    keys = [client.put_raw_buffer(b"x" * n) for n in range(2000)]  # more than a socket's buffer holds
    for number, key in enumerate(keys):
        message = socket.recv(int.from_bytes(socket.recv(8), "little"))
        assert client.decode_notifications(message) == ([key], [number], [0])
    again_key = client.put(1)
    assert client.get_next_notification()[0] == again_key
    client.disconnect()
    assert socket.recv(8) == b""
    socket.close()


def test_a_notice_that_is_read_before_its_publisher_looks(client: PlasmaClient) -> None:
    """The mark has moved past it: the publisher takes it back and sends it again; it arrives once."""
    client.subscribe()
    other = again(client)
    subscription = client._subscription
    assert subscription is not None
    stored, moved, sent = (threading.Event() for _ in range(3))
    put, move = other._catalogue.put_notice, subscription._put

    def store_and_wait(value: Any, **options: Any) -> Any:
        ref = put(value, **options)
        stored.set()
        assert moved.wait(60)
        return ref

    def move_and_wait(value: Any, **options: Any) -> Any:
        ref = move(value, **options)
        moved.set()
        assert sent.wait(60)
        return ref

    keys = [client.put_raw_buffer(b"x") for _ in range(notices._READ_AT_ONCE - 1)]
    other._catalogue.put_notice = store_and_wait  # type: ignore[method-assign]
    subscription._put = move_and_wait

    def publish() -> None:
        keys.append(other.put_raw_buffer(b"x"))
        sent.set()

    thread = threading.Thread(target=publish)
    thread.start()
    assert stored.wait(60)
    socket = client.get_notification_socket()  # its thread reads on while nobody takes anything
    thread.join(60)
    keys.append(client.put_raw_buffer(b"after"))
    for key in keys:
        message = socket.recv(int.from_bytes(socket.recv(8), "little"))
        assert client.decode_notifications(message)[0] == [key]
    socket.close()


def test_a_notice_that_makes_room_tells_what_went(pond: Pond) -> None:
    """Here notices, not objects, meet the end of memory."""
    store = pond.store("1MiB", spill_limit=0)
    store.put((1 << 20, False), name="plasma.terms")
    client = plasma.connect(store.address, 0)
    client.subscribe()
    keys = [client.put_raw_buffer(bytes(4000)) for _ in range(1500)]
    heard = [client.get_next_notification() for _ in range(1500)]
    while heard[-1][0] != keys[-1]:
        heard.append(client.get_next_notification())
    gone = [key for key, size, _ in heard if size < 0]
    assert [key for key, size, _ in heard if size >= 0] == keys
    assert keys[: len(gone)] == gone and len(gone) > 1000
    client.disconnect()


def test_processes_publish_side_by_side(pond: Pond, client: PlasmaClient) -> None:
    client.subscribe()
    workers = [pond.member(client._catalogue.store) for _ in range(2)]

    def work(own: Any, address: str) -> list[bytes]:
        from millpond.integrations import plasma

        own.client = plasma.connect(address)
        return [own.client.put_raw_buffer(b"x").binary() for _ in range(500)]

    for worker in workers:
        worker.start(work, client.store_socket_name)
    heard = [client.get_next_notification()[0].binary() for _ in range(1000)]
    for worker in workers:
        sent = set(order := worker.result())
        assert [key for key in heard if key in sent] == order
    assert len(set(heard)) == 1000


def test_the_queue_of_a_killed_subscriber_is_removed(pond: Pond, client: PlasmaClient) -> None:
    worker = pond.member(client._catalogue.store)

    def work(own: Any, address: str) -> None:
        from millpond.integrations import plasma

        own.client = plasma.connect(address)
        own.client.subscribe()

    worker.run(work, client.store_socket_name)
    client.put(1)
    store = client._catalogue.store
    assert len(list(store.names("plasma.queue:"))) == 2
    worker.kill()
    wait_until(lambda: store.stats().members == 1)
    client.subscribe()
    assert len(list(store.names("plasma.queue:"))) == 1
    client.disconnect()
    assert list(store.names("plasma.queue:")) == [] and list(store.names("plasma.s")) == []


# --- pyarrow ---


def test_without_pyarrow() -> None:
    """Also where it is installed: a program that cannot import it."""
    program = """
import sys
sys.modules["pyarrow"] = None
import millpond, numpy as np
from millpond.integrations import plasma
with millpond.Store("16MiB") as store:
    client = plasma.connect(store.address)
    key = plasma.ObjectID.from_random()
    buffer = client.create(key, 5, b"meta")
    assert isinstance(buffer, plasma.PlasmaBuffer) and buffer.is_mutable and buffer.size == len(buffer) == 5
    buffer[:] = b"hello"[0]
    memoryview(buffer)[1:3] = b"ey"
    client.seal(key)
    (found,) = client.get_buffers([key])
    assert found.to_pybytes() == b"heyhh" and bytes(found.slice(1, 2)) == b"ey" and found.equals(b"heyhh")
    assert not found.is_mutable and found.address % 64 == 0 and not found.equals(b"hey")
    assert client.get_metadata([key])[0].to_pybytes() == b"meta"
    for wrong in (lambda: found[5], lambda: found.__setitem__(0, 1), plasma.PlasmaBuffer):
        try:
            wrong()
        except (IndexError, ValueError, TypeError):
            continue
        raise AssertionError(wrong)
    assert client.get(client.put(np.arange(9))).sum() == 36
    try:
        client.put(1, key)
    except plasma.PlasmaObjectExists:
        print("done")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "done\n", done.stderr


def test_with_pyarrow(client: PlasmaClient) -> None:
    pa = pytest.importorskip("pyarrow")
    assert issubclass(plasma.PlasmaStoreFull, pa.lib.ArrowException) and plasma.PlasmaBuffer is pa.Buffer
    batch = pa.record_batch({"n": [1, 12, 23, 3, 34], "s": ["a", "b", None, "d", "e"]})
    sink = pa.MockOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    key = new_id()
    buffer = client.create(key, sink.size())
    with pa.ipc.new_stream(pa.FixedSizeBufferWriter(buffer), batch.schema) as writer:
        writer.write_batch(batch)
    del writer
    client.seal(key)
    del buffer
    found = pa.ipc.open_stream(client.get_buffers([key])[0]).read_all()
    assert found.to_pydict() == batch.to_pydict() and client.evict(1) == 0
    del found
    assert client.evict(1) == sink.size()


def test_the_conformance_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Plasma's own tests, where `MILLPOND_PYARROW11` is the Python of an environment that has them."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    conformance = importlib.import_module("plasma_conformance")
    assert "test_plasma_deprecated" in conformance.expected()
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuite><testcase name="test_good"/><testcase name="test_bad"><failure message="why&#10;that"/>'
        '</testcase><testcase name="test_left"><skipped message="no"/></testcase></testsuite>'
    )
    assert conformance.read(report) == {"": "1", "test_bad": "why", "test_left": "skipped: no"}
    python = os.environ.get("MILLPOND_PYARROW11")
    if python is None:
        pytest.skip("MILLPOND_PYARROW11 names no Python that has pyarrow 11")
    assert conformance.run(python).keys() - {""} == conformance.expected()
