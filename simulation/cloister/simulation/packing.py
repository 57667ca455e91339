"""Flower records between processes of one machine: arrays through shared memory, the rest as plain data.

`pack` turns records into plain Python data in which each array is a `Piece` of one shared block; `unpack` reads them back. The
receiver of the round's model reads it where it lies; the receiver of an update takes one copy and frees the block. A `LiveArray`
travels as its memory; any other ``Array`` (a ciphertext, or what a hostile app made) as the bytes that it is, unread.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from cloister.core.errors import CloisterError
from cloister.simulation.live_array import LiveArray

__all__ = ["Attached", "Block", "Packed", "Piece", "pack", "payload", "unpack"]

_ALIGN = 64


@dataclass(frozen=True)
class Piece:
    """One array in a block: where it starts and what it is."""

    block: str
    offset: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Packed:
    """Records as plain data: (kind, name, items); an array is (`Piece`, what its bytes claim to be or ``None``)."""

    records: tuple[tuple[str, str, dict[str, Any]], ...]


class _Memory(SharedMemory):
    """Shared memory that may be let go while an array still lies in it: the mapping then ends with the last array."""

    def __del__(self) -> None:
        with suppress(BufferError, OSError):
            self.close()


class _Private:
    """Memory of this process alone, with the part of `SharedMemory` that a block needs."""

    _numbers = itertools.count(1)
    known: ClassVar[dict[str, _Private]] = {}

    def __init__(self, size: int) -> None:
        self.name = f"private-{next(self._numbers)}"
        self.buf = memoryview(bytearray(size))
        self.known[self.name] = self

    def close(self) -> None:
        """Nothing to do: the memory ends with the last array that lies in it."""

    def unlink(self) -> None:
        self.known.pop(self.name, None)


class Block:
    """Memory that holds some arrays, each once: shared with other processes, or ``private`` to this one.

    Raises:
        CloisterError: there is no room for it in shared memory (``code = "shared-memory"``); nothing is kept of it.
    """

    def __init__(self, arrays: list[npt.NDArray[Any]], *, private: bool = False) -> None:
        offsets, size = [], 0
        for array in arrays:
            offsets.append(size)
            size += -(-array.nbytes // _ALIGN) * _ALIGN
        self.memory = _Private(max(size, 1)) if private else _shared(max(size, 1))
        self.pieces = [
            Piece(self.memory.name, o, str(a.dtype), a.shape) for o, a in zip(offsets, arrays, strict=True)
        ]
        try:
            for array, piece in zip(arrays, self.pieces, strict=True):
                _view(self.memory, piece)[...] = array
        except BaseException:
            self.free()
            raise

    def free(self) -> None:
        """Give the memory back; a process that is attached keeps it until it lets go."""
        with suppress(BufferError):
            self.memory.close()
        self.memory.unlink()


class Attached:
    """The blocks that this process reads, each attached once; those that were not used last are let go.

    Attributes:
        private: both ends are this process: blocks made in answer need not be shared.
    """

    def __init__(self, *, private: bool = False) -> None:
        self.private = private
        self._blocks: dict[str, _Memory | _Private] = {}

    def view(self, piece: Piece) -> npt.NDArray[Any]:
        """Return the array where it lies, read-only."""
        if piece.block not in self._blocks:
            self._release()
            self._blocks[piece.block] = _attach(piece.block)
        view = _view(self._blocks[piece.block], piece)
        view.flags.writeable = False
        return view

    def take(self, piece: Piece) -> npt.NDArray[Any]:
        """Return a copy of the array."""
        return self.view(piece).copy()

    def free(self, name: str) -> None:
        """Let a block go and remove it for everybody."""
        memory = self._blocks.pop(name, None) or _attach(name)
        with suppress(BufferError):  # somebody still reads it: it ends with the last array
            memory.close()
        memory.unlink()

    def _release(self) -> None:
        for name in list(self._blocks):
            with suppress(BufferError):
                self._blocks.pop(name).close()


def pack(content: RecordDict, place: Callable[[Array], Piece]) -> Packed:
    """Turn records into plain data, each array into the piece that ``place`` gives."""
    records: list[tuple[str, str, dict[str, Any]]] = [
        ("arrays", name, {key: (place(array), _claim(array)) for key, array in record.items()})
        for name, record in content.array_records.items()
    ]
    records += [("metrics", name, dict(record)) for name, record in content.metric_records.items()]
    records += [("config", name, dict(record)) for name, record in content.config_records.items()]
    return Packed(tuple(records))


def unpack(packed: Packed, fetch: Callable[[Piece], npt.NDArray[Any]]) -> RecordDict:
    """Turn plain data back into records, each piece into the array that ``fetch`` gives."""
    content = RecordDict()
    for kind, name, items in packed.records:
        if kind == "arrays":
            record = ArrayRecord()  # filled item by item: its constructor would copy and serialise each array
            record.update({key: _array(fetch(piece), claim) for key, (piece, claim) in items.items()})
            content[name] = record
        elif kind == "metrics":
            content[name] = MetricRecord(items)
        else:
            content[name] = ConfigRecord(items)
    return content


def payload(array: Array) -> npt.NDArray[Any]:
    """Return what travels of an array: its memory, or its serialised bytes."""
    return array.live if isinstance(array, LiveArray) else np.frombuffer(array.data, dtype=np.uint8)


def _claim(array: Array) -> tuple[str, tuple[int, ...], str] | None:
    return None if isinstance(array, LiveArray) else (array.dtype, tuple(array.shape), array.stype)


def _array(memory: npt.NDArray[Any], claim: tuple[str, tuple[int, ...], str] | None) -> Array:
    return LiveArray(memory) if claim is None else Array(*claim, memory.tobytes())


def _attach(name: str) -> _Memory | _Private:
    return _Private.known.get(name) or _Memory(name)


def _shared(size: int) -> _Memory:
    """Make shared memory whose pages are there: without that, the first write to a full /dev/shm is a SIGBUS."""
    memory = None
    try:
        memory = _Memory(create=True, size=size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(memory._fd, 0, size)  # type: ignore[attr-defined]  # noqa: SLF001 - it has no public name
    except BaseException as error:
        if isinstance(error, OSError) and memory and error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return memory  # a file system that cannot reserve: as it was without
        if memory is not None:
            memory.close()
            memory.unlink()
        if isinstance(error, OSError):
            raise CloisterError(
                f"there is no room for {size / 1e6:.1f} MB in shared memory (/dev/shm): {error.strerror}",
                remedy="give it more (docker run --shm-size=2g), or run with fewer --workers, or with --workers 0",
                code="shared-memory",
            ) from None
        raise
    return memory


def _view(memory: _Memory | _Private, piece: Piece) -> npt.NDArray[Any]:
    count = int(np.prod(piece.shape, dtype=np.int64))
    if memory.buf is None:
        raise ValueError("this shared memory was let go")
    return np.frombuffer(memory.buf, dtype=piece.dtype, count=count, offset=piece.offset).reshape(piece.shape)
