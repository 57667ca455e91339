"""The released model: named tensors in one safetensors file, with what is needed to read them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from cloister.core.errors import TaskError
from cloister.core.files import write_whole
from cloister.core.update import Layout, Vector

__all__ = ["try_model", "write_model"]


def write_model(path: Path, model: nn.Module, layout: Layout, vector: Vector, about: dict[str, Any]) -> None:
    """Write ``vector`` as the named tensors of ``model`` (shapes and types as the model has them).

    What a module keeps as extra state, and is no tensor, is left out.

    Args:
        path: the safetensors file, written whole or not at all.
        model: a module of this layout; its tensors are overwritten.
        layout: what lies where.
        vector: (size,) float32.
        about: small facts for the file's metadata, stored as JSON under ``cloister``.

    Raises:
        StorageError: the disk is full or refuses.
    """
    write_whole(path, _file(model, layout, vector, about))


def try_model(model: nn.Module, layout: Layout) -> None:
    """Make the file of ``model`` as it is, in memory, so that a model that cannot be written is refused before it is trained.

    Raises:
        TaskError: it cannot be written.
    """
    try:
        _file(model, layout, layout.read(model), {})
    except Exception as error:
        raise TaskError(
            f"the task's model cannot be written to a safetensors file ({type(error).__name__})",
            remedy="register plain dense tensors: no expanded, sparse or quantised buffer, none on the meta device; "
            "CLOISTER_DEBUG=1 shows the traceback",
            code="task-model",
        ) from error


def _file(model: nn.Module, layout: Layout, vector: Vector, about: dict[str, Any]) -> bytes:
    layout.write(model, vector)
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    stored: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        # A module's extra state may be no tensor: safetensors has no place for it. A tied tensor is written once.
        if not isinstance(tensor, torch.Tensor) or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        plain = tensor.detach().cpu().contiguous()
        place = plain.untyped_storage().data_ptr()
        tensors[name] = plain.clone() if place in stored else plain  # views of one memory are written as two
        stored.add(place)
    return save(tensors, metadata={"cloister": json.dumps(about, sort_keys=True)})
