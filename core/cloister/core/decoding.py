"""Read a flat float32 vector from bytes of somebody else: NumPy's file format, and of that one exact form.

``numpy.load`` takes much more (ZIP archives, headers that it evaluates, other types and orders); a hostile sender has room in there. Here
the bytes must be the very header that ``numpy.save`` writes for a float32 array of the expected length, and then the numbers.
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np

from cloister.core.update import Vector

__all__ = ["LARGEST", "decode_vector"]

#: A number beyond this in an update or a model is refused: sums of any number of them stay far inside float32.
LARGEST = 1e30


def decode_vector(data: bytes, size: int) -> Vector:
    """Return the (size,) float32 vector in ``data``, read-only.

    Raises:
        ValueError: other bytes than ``numpy.save`` writes for such a vector, or fewer or more of them.
    """
    header = _header(size)
    if len(data) != len(header) + 4 * size:
        raise ValueError(f"{len(data)} bytes are not a float32 vector of {size} numbers")
    if not data.startswith(header):
        raise ValueError("the bytes do not begin with the header of a float32 vector of this length")
    return np.frombuffer(data, dtype="<f4", count=size, offset=len(header)).astype(np.float32, copy=False)


@lru_cache(maxsize=16)
def _header(size: int) -> bytes:
    buffer = BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (size,)})
    return buffer.getvalue()
