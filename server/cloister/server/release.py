"""The released model: named tensors in one safetensors file, with what is needed to read them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from cloister.core.files import write_whole
from cloister.core.update import Layout, Vector

__all__ = ["write_model"]


def write_model(path: Path, model: nn.Module, layout: Layout, vector: Vector, about: dict[str, Any]) -> None:
    """Write ``vector`` as the named tensors of ``model`` (shapes and types as the model has them).

    Args:
        path: the safetensors file, written whole or not at all.
        model: a module of this layout; its tensors are overwritten.
        layout: what lies where.
        vector: (size,) float32.
        about: small facts for the file's metadata, stored as JSON under ``cloister``.
    """
    layout.write(model, vector)
    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:  # a tied tensor is written once, under its first name
            seen.add(id(tensor))
            tensors[name] = tensor.detach().cpu().contiguous()
    write_whole(path, save(tensors, metadata={"cloister": json.dumps(about, sort_keys=True)}))
