"""Drafts: written in place, seen by nobody before the seal, gone when they are given up."""

from __future__ import annotations

import gc
import pickle
import threading
import time
from typing import Any

import numpy as np
import pytest

import millpond
import workers
from ponds import Pond
from workers import inherited, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


def address(array: np.ndarray) -> int:
    found: int = array.__array_interface__["data"][0]
    return found


# --- building in place ---


@pytest.mark.parametrize(
    "shape", [(), 0, 7, (3, 0), (4, 5), (2, 3, 4), (1000, 300), np.int64(5), [2, 2]], ids=str
)
@pytest.mark.parametrize("dtype", ["f8", bool, np.float16, "c16", "i1"], ids=str)
def test_an_array_is_built_in_place(store: millpond.Store, shape: Any, dtype: Any) -> None:
    draft = store.create(shape, dtype)
    array = draft.array
    expected = (np.arange(array.size) % 100).reshape(array.shape).astype(dtype)
    assert array.dtype == np.dtype(dtype) and array.flags.c_contiguous and array.flags.writeable
    array[...] = expected
    del array
    ref = draft.seal()
    found = store.get(ref)
    assert (found == expected).all() and found.shape == expected.shape and found.dtype == expected.dtype
    assert not found.flags.writeable and not draft.array.flags.writeable
    assert ref == draft.ref and draft.sealed


def test_the_seal_copies_nothing(store: millpond.Store) -> None:
    draft = store.create(1_000_000, "u1")
    first = draft.array
    where = address(first)
    first[:] = 9
    del first
    assert address(draft.array) == where
    found = draft.seal().get()
    assert found[-1] == 9
    # The same bytes in another mapping, the read-only one: a second draft tells that both are shifted alike.
    other = store.create(1_000_000, "u1")
    shift = address(other.array) - where
    assert address(other.seal().get()) - address(found) == shift


@pytest.mark.parametrize("nbytes", [0, 1, 64, 5000, 1_000_000])
def test_a_buffer_is_built_in_place(store: millpond.Store, nbytes: int) -> None:
    draft = store.create_buffer(nbytes)
    content = (bytes(range(251)) * 4000)[:nbytes]
    with draft.buffer as buffer:
        assert buffer.nbytes == nbytes and not buffer.readonly
        buffer[:] = content
    found = store.get(draft.seal())
    assert type(found) is memoryview and found.readonly and found == content and found.nbytes == nbytes
    private = store.get(draft.ref, copy=True)
    assert private == content and (not nbytes or not memoryview(private).readonly)
    assert draft.buffer == content


def test_the_wrong_face_of_a_draft(store: millpond.Store) -> None:
    with store.create(3, "f8") as draft, pytest.raises(TypeError, match=r"use draft\.array"):
        _ = draft.buffer
    with store.create_buffer(3) as draft, pytest.raises(TypeError, match=r"use draft\.buffer"):
        _ = draft.array


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (3, object),
        (3, ">f8"),
        (3, "S4"),
        (3, "M8[s]"),
        (-1, "f8"),
        ((2, -3), "f8"),
        ((1,) * 33, "f8"),
        (1 << 60, "f8"),
        ((1 << 40, 1 << 40), "f8"),
    ],
)
def test_drafts_that_cannot_be(store: millpond.Store, shape: Any, dtype: Any) -> None:
    with pytest.raises(ValueError, match=r"draft|shape"):
        store.create(shape, dtype)
    for nbytes in (-1, 1 << 63):
        with pytest.raises(ValueError, match=f"{nbytes} bytes"):
            store.create_buffer(nbytes)
    assert len(store) == 0


@pytest.mark.parametrize("length", [1 << 25, 1 << 50, (1 << 60) - 1], ids=hex)
def test_a_draft_must_fit_into_memory(store: millpond.Store, length: int) -> None:
    for create in (lambda: store.create((length, 1), "f8"), lambda: store.create_buffer(8 * length)):
        with pytest.raises(millpond.StoreFullError, match=r"A draft must be in memory; put need not"):
            create()
    assert len(store) == 0


# --- sealing ---


def test_a_seal_with_an_array_alive_is_refused(store: millpond.Store) -> None:
    draft = store.create((100, 100), "f8")
    array = draft.array
    part = array[3:, 1]
    for _ in range(2):
        with pytest.raises(BufferError, match="still alive"):
            draft.seal()
    del array
    with pytest.raises(BufferError):
        draft.seal()
    part[:] = 5
    assert not draft.sealed
    del part
    assert draft.seal().get()[3, 1] == 5


def test_a_seal_with_a_memoryview_alive_is_refused(store: millpond.Store) -> None:
    draft = store.create_buffer(100)
    part = draft.buffer[10:20]
    with pytest.raises(BufferError):
        draft.seal()
    part.release()
    draft.seal()


def test_a_draft_ends_once(store: millpond.Store) -> None:
    draft = store.create(3, "f8")
    ref = draft.seal()
    with pytest.raises(ValueError, match="sealed or aborted"):
        draft.seal()
    draft.abort()
    assert ref.get().shape == (3,)
    draft = store.create(3, "f8")
    draft.abort()
    draft.abort()
    for call in (draft.seal, lambda: draft.array):
        with pytest.raises(ValueError, match="sealed or aborted"):
            call()


def test_leaving_a_block_unsealed_discards(store: millpond.Store) -> None:
    with store.create(1000, "f8") as draft:
        ref = draft.ref
    with pytest.raises(millpond.ObjectDeletedError):
        ref.get(timeout=5)
    with pytest.raises(ZeroDivisionError), store.create_buffer(1000) as draft:
        _ = 1 // 0
    assert draft.ref not in store
    with store.create(1000, "f8") as draft:
        ref = draft.seal()
    assert ref.get().size == 1000
    assert len(store) == 1


def test_a_forgotten_draft_is_discarded(store: millpond.Store) -> None:
    draft = store.create(1000, "f8")
    ref = draft.ref
    del draft
    with pytest.raises(millpond.ObjectDeletedError):
        ref.get(timeout=5)


def test_memory_of_an_aborted_draft_is_kept_while_it_is_written(store: millpond.Store) -> None:
    draft = store.create(100_000, "u1")
    array = draft.array
    draft.abort()
    refs = [store.put(np.full(100_000, 7, "u1")) for _ in range(30)]
    array[:] = 1
    assert all((store.get(ref) == 7).all() for ref in refs)
    used = store.stats().committed_bytes - store.stats().warm_bytes
    del array, draft
    assert store.stats().committed_bytes - store.stats().warm_bytes < used


# --- others look at it ---


def test_get_waits_for_the_seal_in_another_process(pond: Pond, store: millpond.Store) -> None:
    reader = pond.member(store)
    draft = store.create(1000, "i8")
    reader.start(lambda own, ref: int(ref.get().sum()), draft.ref)
    assert not reader.answered(0.1)
    draft.array[:] = 3
    draft.seal()
    assert reader.result(5) == 3000


def test_get_waits_no_longer_than_told(store: millpond.Store) -> None:
    with store.create(10, "f8") as draft:
        for timeout in (0, 0.1):
            start = time.monotonic()
            with pytest.raises(millpond.GetTimeoutError, match=f"not sealed within {timeout}"):
                draft.ref.get(timeout=timeout)
            assert timeout <= time.monotonic() - start < timeout + 5
        sealed = store.put(1)
        with pytest.raises(TimeoutError):
            store.get([sealed, draft.ref], timeout=0)


def test_get_waits_in_threads(store: millpond.Store) -> None:
    draft, found = store.create(10, "i8"), []
    threads = [threading.Thread(target=lambda: found.append(int(draft.ref.get()[0]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    draft.array[:] = 8
    draft.seal()
    for thread in threads:
        thread.join(10)
    assert found == [8] * 4


def make_draft(own: Any) -> millpond.ObjectRef:
    own.draft = own.store.create(1_000_000, "u1")
    own.array = own.draft.array
    return own.draft.ref


def test_a_killed_writer_loses_the_object(pond: Pond, store: millpond.Store) -> None:
    writer, reader = pond.member(store), pond.member(store)
    ref = writer.run(make_draft)
    reader.start(lambda own, ref: ref.get(), pickle.loads(pickle.dumps(ref)))
    assert not reader.answered(0.05)
    writer.kill()
    with pytest.raises(millpond.ObjectLostError, match="writer ended before the seal"):
        ref.get(timeout=5)
    with pytest.raises(millpond.ObjectLostError):
        reader.result(5)
    assert ref not in store and store.check() == []
    assert [info.state for info in store.objects()] == ["lost"]


def test_a_writer_that_ends_loses_the_object(pond: Pond, store: millpond.Store) -> None:
    writer = pond.member(store)
    ref = writer.run(make_draft)
    assert writer.end() == 0
    with pytest.raises(millpond.ObjectNotFoundError):
        ref.get(timeout=5)


def test_a_draft_is_deleted_by_somebody_else(pond: Pond, store: millpond.Store) -> None:
    writer, reader = pond.member(store), pond.member(store)
    ref = writer.run(make_draft)
    reader.start(lambda own, ref: ref.get(), pickle.loads(pickle.dumps(ref)))
    assert not reader.answered(0.05)
    store.delete(ref)
    for get in (lambda: ref.get(timeout=5), lambda: reader.result(5)):
        with pytest.raises(millpond.ObjectDeletedError):
            get()

    def seal(own: Any) -> None:
        own.array[:] = 1  # still its own memory
        del own.array
        own.draft.seal()

    with pytest.raises(millpond.ObjectDeletedError):
        writer.run(seal)


def test_a_fork_leaves_a_draft_to_its_parent(pond: Pond, store: millpond.Store) -> None:
    inherited.append(store.create(1000, "i8"))
    child = pond.worker()

    def meddle(own: Any) -> str:
        (draft,) = workers.inherited
        try:
            draft.seal()
        except millpond.StoreClosedError as error:
            draft.abort()
            workers.inherited.clear()
            return str(error)
        return "sealed"

    assert "belongs to the process that made it" in child.run(meddle)
    draft = inherited.pop()
    draft.array[:] = 2
    assert draft.seal().get().sum() == 2000
    assert child.end() == 0


def test_a_named_draft_is_found_before_the_seal(pond: Pond, store: millpond.Store) -> None:
    other = pond.member(store)
    draft = store.create(10, "i8", name="early")
    other.start(lambda own: int(own.store.lookup("early").get()[0]))
    assert not other.answered(0.05)
    draft.array[:] = 4
    draft.seal()
    assert other.result(5) == 4
    with pytest.raises(ValueError, match="'early' is taken"):
        store.create(10, "i8", name="early")
    gc.collect()
    assert len(store) == 1


def test_close_gives_a_draft_up(pond: Pond) -> None:
    store = pond.store()
    other = pond.member(store)
    draft = store.create(1000, "i8")
    array = draft.array
    other.run(lambda own, ref: setattr(own, "ref", ref), draft.ref)
    store.close()
    with pytest.raises(millpond.StoreClosedError):
        draft.seal()
    array[:] = 7
    other.start(lambda own: own.ref.get(timeout=20))
    del array, draft
    with pytest.raises(millpond.ObjectLostError):
        other.result()


# --- room ---


def test_drafts_stay_in_memory_and_sealed_ones_may_go(pond: Pond) -> None:
    store = pond.store("4MiB")
    drafts = []
    with pytest.raises(millpond.StoreFullError, match="A draft must be in memory"):
        while True:
            drafts.append(store.create(400_000, "u1"))
    assert 7 <= len(drafts) <= 10
    for number, draft in enumerate(drafts):
        draft.array[:] = number
    refs = [draft.seal() for draft in drafts]
    del draft, drafts
    more = [store.create(400_000, "u1") for _ in range(5)]
    assert store.stats().spilled_objects >= 5
    for draft in more:
        draft.abort()
    for number, ref in enumerate(refs):
        assert (store.get(ref) == number).all()


def test_create_waits_for_room(pond: Pond) -> None:
    store = pond.store("4MiB")
    draft = store.create(3_000_000, "u1")
    start = time.monotonic()
    with pytest.raises(millpond.StoreFullError):
        store.create(3_000_000, "u1", timeout=0.2)
    assert time.monotonic() - start >= 0.2
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(store.create(3_000_000, "u1", timeout=20)))
    thread.start()
    draft.abort()
    thread.join(20)
    wait_until(lambda: found)
    found[0].seal()
