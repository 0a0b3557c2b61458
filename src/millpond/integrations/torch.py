"""PyTorch: tensors stored without a detour, and read without a copy by those who ask for it.

torch pickles a tensor as a copy of the whole storage that it is a part of. `register()` makes this process
store the bytes that the tensor shows, beside the pickle. `get` gives a tensor of one's own: torch knows no
read-only tensors, and writing to memory that is mapped read-only ends a process. In `shared_tensors()`, `get`
gives tensors over the store's memory instead, where a write makes a private copy of that page.
Invariants: no tensor can change what another process reads.
Not here: tensors on other devices, sparse and quantized ones: torch pickles those.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

import millpond
from millpond.hot import map_private

__all__ = ["register", "shared_tensors"]


class _Reading(threading.local):
    shares = False


_reading = _Reading()


def register() -> None:
    """From now on, tensors that this process puts, also in modules and parameters, store what they show.

    Tensors of one storage come back independent of each other; a tensor that is met twice is one. Idempotent.
    Raises ImportError without torch, when this module is imported.
    """
    millpond.register_reducer(torch.Tensor, reduce_tensor)


@contextmanager
def shared_tensors() -> Iterator[None]:
    """A context in which this thread's `get` makes tensors over the store's memory, without a copy.

    They can be written to: what is written is this process's own, page by page. They pin their object. Holds
    for tensors that were put after `register()`, and not with `get(copy=True)`.
    """
    before, _reading.shares = _reading.shares, True
    try:
        yield
    finally:
        _reading.shares = before


def reduce_tensor(tensor: Any) -> Any:
    """How a tensor is taken apart."""
    plain = (
        tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.numel() > 0
        and tensor.is_leaf
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or tensor.__dict__)
        and not tensor._backward_hooks
    )
    if not plain:
        return tensor.__reduce_ex__(5)
    # From the slowest to the fastest axis, so that transposed and channels-last tensors keep their layout.
    order = sorted(range(tensor.ndim), key=lambda axis: -tensor.stride(axis))
    dense = tensor.detach().permute(order).contiguous()
    memory = dense.reshape(-1).view(torch.uint8).numpy()
    shape = tuple(dense.shape)
    return rebuild_tensor, (pickle.PickleBuffer(memory), tensor.dtype, shape, order, tensor.requires_grad)


def rebuild_tensor(
    memory: Any, dtype: Any, shape: tuple[int, ...], order: list[int], requires_grad: bool
) -> Any:
    """A tensor over memory. Named by stored pickles, so it keeps its name and arguments."""
    if memoryview(memory).readonly:
        shared = map_private(memory) if _reading.shares else None
        memory = np.frombuffer(memory, np.uint8).copy() if shared is None else shared
    back = sorted(range(len(order)), key=order.__getitem__)
    tensor = torch.frombuffer(memory, dtype=dtype).reshape(shape).permute(back)
    return tensor.requires_grad_(requires_grad)
