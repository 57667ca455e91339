"""Read a flat vector from bytes of somebody else: NumPy's file format, and of that one exact form.

``numpy.load`` takes much more (ZIP archives, headers that it evaluates, other types and orders); a hostile sender has room in there. Here
the bytes must be the very header that ``numpy.save`` writes for an array of the expected type and length, and then the numbers.
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.core.update import Vector

__all__ = ["LARGEST", "decode_array", "decode_vector"]

#: A number beyond this in an update or a model is refused: sums of any number of them stay far inside float32.
LARGEST = 1e30

#: The types that travel, as NumPy's headers spell them.
_TYPES = {"float32": "<f4", "uint32": "<u4"}


def decode_vector(data: bytes, size: int) -> Vector:
    """Return the (size,) float32 vector in ``data``, read-only.

    Raises:
        ValueError: as `decode_array`.
    """
    vector: Vector = decode_array(data, size, "float32")
    return vector


def decode_array(data: bytes, size: int, dtype: str) -> npt.NDArray[Any]:
    """Return the (size,) vector of ``dtype`` (``float32`` or ``uint32``) in ``data``, read-only.

    Raises:
        ValueError: other bytes than ``numpy.save`` writes for such a vector, or fewer or more of them.
    """
    header = _header(size, _TYPES[dtype])
    if len(data) != len(header) + 4 * size:
        raise ValueError(f"{len(data)} bytes are not a {dtype} vector of {size} numbers")
    if not data.startswith(header):
        raise ValueError(f"the bytes do not begin with the header of a {dtype} vector of this length")
    found = np.frombuffer(data, dtype=_TYPES[dtype], count=size, offset=len(header))
    return found.astype(dtype, copy=False)


@lru_cache(maxsize=16)
def _header(size: int, descr: str) -> bytes:
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": descr, "fortran_order": False, "shape": (size,)})
    return buffer.getvalue()
