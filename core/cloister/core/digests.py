"""Digests that two parties compute for themselves and compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["federation_digest", "vectors_digest"]


def federation_digest(effective: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) over an effective federation file, the same whatever the order of its keys."""
    text = json.dumps(effective, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def vectors_digest(arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Return the SHA-256 (hex) over named vectors, in the order of their names."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name} {len(arrays[name])} {arrays[name].dtype.str}\n".encode())
        found.update(np.ascontiguousarray(arrays[name]).data)
    return found.hexdigest()
