"""Flower records between processes of one machine: arrays through shared memory, the rest as plain data.

`pack` turns records into plain Python data in which each array is a `Piece` of one shared block; `unpack` reads them back. The
receiver of the round's model reads it where it lies; the receiver of an update takes one copy and hands the block back, to be
filled again (`Outbox`): making, mapping and removing shared memory costs more than what is written into it. A `LiveArray`
travels as its memory; any other ``Array`` (a ciphertext, or what a hostile app made) as the bytes that it is, unread.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from cloister.core.errors import CloisterError
from cloister.simulation.live_array import LiveArray

__all__ = ["Attached", "Block", "Outbox", "Packed", "Piece", "pack", "payload", "remove", "unpack"]

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
    """Memory that holds some arrays: shared with other processes, or ``private`` to this one.

    Raises:
        CloisterError: there is no room for it in shared memory (``code = "shared-memory"``); nothing is kept of it.
    """

    def __init__(self, arrays: list[npt.NDArray[Any]], *, private: bool = False) -> None:
        self._size = max(_room(arrays), 1)
        self.memory = _Private(self._size) if private else _shared(self._size)
        self.pieces: list[Piece] = []
        try:
            self.fill(arrays)
        except BaseException:
            self.free()
            raise

    def fits(self, arrays: list[npt.NDArray[Any]]) -> bool:
        """Whether there is room for ``arrays``."""
        return _room(arrays) <= self._size

    def fill(self, arrays: list[npt.NDArray[Any]]) -> None:
        """Write ``arrays`` over what was there; `pieces` then tells where each lies."""
        offset, pieces = 0, []
        for array in arrays:
            piece = Piece(self.memory.name, offset, str(array.dtype), array.shape)
            _view(self.memory, piece)[...] = array
            pieces.append(piece)
            offset += _aligned(array.nbytes)
        self.pieces = pieces

    def free(self) -> None:
        """Give the memory back; a process that is attached keeps it until it lets go."""
        with suppress(BufferError):
            self.memory.close()
        self.memory.unlink()


class Outbox:
    """The blocks in which one process answers: one that was read is filled again."""

    def __init__(self, *, private: bool = False) -> None:
        self._private = private
        self._free: list[Block] = []
        self._out: dict[str, Block] = {}

    def place(self, arrays: list[npt.NDArray[Any]]) -> Block:
        """Return a block that holds ``arrays``; it is taken until its name comes back.

        Raises:
            CloisterError: there is no room in shared memory.
        """
        block = next((one for one in self._free if one.fits(arrays)), None)
        if block is None:
            block = Block(arrays, private=self._private)
        else:
            self._free.remove(block)
            block.fill(arrays)
        self._out[block.memory.name] = block
        return block

    def take_back(self, names: Iterable[str]) -> None:
        """Use these blocks again."""
        self._free.extend(self._out.pop(name) for name in names)

    def free(self) -> None:
        """Give all memory back."""
        for block in [*self._free, *self._out.values()]:
            block.free()
        self._free, self._out = [], {}


class Attached:
    """The blocks that this process reads, each attached once.

    Args:
        keep: how many stay attached; the one that was attached first is let go. All of them until `let_go` when left out.
    """

    def __init__(self, *, keep: int | None = None) -> None:
        self._keep = keep
        self._blocks: dict[str, _Memory | _Private] = {}

    def view(self, piece: Piece) -> npt.NDArray[Any]:
        """Return the array where it lies, read-only."""
        memory = self._blocks.get(piece.block)
        if memory is None:
            while self._keep is not None and len(self._blocks) >= self._keep:
                self.let_go(next(iter(self._blocks)))
            memory = self._blocks[piece.block] = _attach(piece.block)
        view = _view(memory, piece)
        view.flags.writeable = False
        return view

    def take(self, piece: Piece) -> npt.NDArray[Any]:
        """Return a copy of the array."""
        return self.view(piece).copy()

    def let_go(self, name: str) -> None:
        """Attach a block no longer; what still reads it keeps it."""
        memory = self._blocks.pop(name, None)
        if memory is not None:
            with suppress(BufferError):
                memory.close()


def remove(name: str) -> None:
    """Remove a block that another process made and cannot remove any more; one that is gone is no error."""
    with suppress(OSError):
        memory = _attach(name)
        memory.close()
        memory.unlink()


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


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _room(arrays: list[npt.NDArray[Any]]) -> int:
    return sum(_aligned(array.nbytes) for array in arrays)


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
