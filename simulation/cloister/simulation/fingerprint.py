"""What a run computes on, as a digest: a resumed run whose data changed would end elsewhere without a word."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from cloister.core.data import Data, Split

__all__ = ["data_digest"]

_DEPTH = 8


def data_digest(owners: Mapping[str, Split]) -> str:
    """Return a SHA-256 (hex) over every owner's name, counts, targets and the tensors that its data holds in memory.

    Those are the tensors and NumPy arrays among the attributes of the data and of the data that it is a part of; a tensor that
    several owners share is read once. A data set that reads its items when asked (`LazyData`) is not opened.
    """
    total = hashlib.sha256()
    known: dict[tuple[Any, ...], bytes] = {}
    kept: list[torch.Tensor] = []  # alive until the end: an address that is used again is another tensor
    for owner in sorted(owners, key=str):
        for part in (owners[owner].train, owners[owner].test):
            total.update(repr((str(owner), len(part))).encode())
            for tensor in (torch.as_tensor(part.targets), *_tensors(part, _DEPTH)):
                place = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
                if place not in known or not tensor.data_ptr():
                    known[place] = _digest(tensor)
                    kept.append(tensor)
                total.update(known[place])
    return total.hexdigest()


def _tensors(data: Data, depth: int) -> Iterator[torch.Tensor]:
    """Yield the tensors that ``data`` holds itself, and those of the data that it reads through."""
    for _, value in sorted(getattr(data, "__dict__", {}).items()):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            yield torch.from_numpy(
                np.array(value, copy=False, order="C", dtype=value.dtype.newbyteorder("="))
            )
        elif depth and hasattr(value, "targets") and hasattr(value, "batch"):
            yield from _tensors(value, depth - 1)


def _digest(tensor: torch.Tensor) -> bytes:
    total = hashlib.sha256(repr((tensor.dtype, tuple(tensor.shape))).encode())
    if tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta:
        whole = tensor.detach().cpu().contiguous().reshape(-1)
        if whole.numel() < 2:  # contiguous to torch whatever its stride is
            whole = torch.empty(whole.numel(), dtype=whole.dtype).copy_(whole)
        total.update(whole.view(torch.uint8).numpy().data)
    return total.digest()
