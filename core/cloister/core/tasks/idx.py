"""IDX files, plain or gzip: the form in which MNIST and its kin are distributed.

The format is described at the end of Y. LeCun, C. Cortes, C. Burges, "The MNIST database".
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from cloister.core.errors import DataError

__all__ = ["find_idx", "read_idx"]

_UNSIGNED_BYTE = 0x08
_MAX_BYTES = 1 << 34


def find_idx(folder: Path, part: str, *, images: bool) -> Path | None:
    """Return the IDX file of a part (``train`` or ``t10k``), under any of the names in use; ``None``: none."""
    what = "images{}idx3-ubyte" if images else "labels{}idx1-ubyte"
    for mark in ("-", "."):
        for ending in ("", ".gz"):
            path = folder / f"{part}-{what.format(mark)}{ending}"
            if path.is_file():
                return path
    return None


def read_idx(path: Path, *, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes.

    Args:
        path: the file; ``.gz`` is unpacked.
        dimensions: how many the array must have: 3 for images, 1 for labels.

    Raises:
        DataError: the file is not IDX, holds other numbers, has other dimensions, or is longer or shorter
            than its header says.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _read(path, file, dimensions)
    except (OSError, EOFError, zlib.error) as error:
        reason = (
            error.strerror if isinstance(error, OSError) and error.strerror else "it is cut short or not gzip"
        )
        raise DataError(
            f"cannot read '{path}': {reason}", remedy="fetch the file again", code="data-unreadable"
        ) from None


def _read(path: Path, file: BinaryIO | gzip.GzipFile, dimensions: int) -> npt.NDArray[np.uint8]:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0":
        raise _refused(path, "it does not start like an IDX file")
    if magic[2] != _UNSIGNED_BYTE:
        raise _refused(path, f"its numbers have type 0x{magic[2]:02x}, not 0x08 (unsigned bytes)")
    if magic[3] != dimensions:
        raise _refused(path, f"it has {magic[3]} dimensions, not {dimensions}")
    header = file.read(4 * dimensions)
    if len(header) < 4 * dimensions:
        raise _refused(path, "its header is cut short")
    shape = tuple(int(side) for side in np.frombuffer(header, dtype=">u4"))
    size = 1
    for side in shape:
        size *= side
    if size > _MAX_BYTES:
        raise _refused(path, f"its header speaks of {size} bytes, more than {_MAX_BYTES}")
    body = file.read(size + 1)
    if len(body) != size:
        raise _refused(
            path,
            f"its header speaks of {size} bytes, but it holds {'more' if len(body) > size else len(body)}",
        )
    return np.frombuffer(bytearray(body), dtype=np.uint8).reshape(shape)


def _refused(path: Path, why: str) -> DataError:
    return DataError(
        f"'{path}' is not what it should be: {why}",
        remedy="fetch the file again, or check that it is the right one",
        code="data-unreadable",
    )
