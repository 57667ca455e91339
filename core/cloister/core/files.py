"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path

from cloister.core.errors import StorageError

__all__ = ["stamp", "sweep", "sync_folder", "write_whole"]


#: The name that `write_whole` writes under: that of the file, hidden, with what ``tempfile.mkstemp`` adds.
_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}", re.DOTALL)


def write_whole(path: Path, data: bytes | str, *, mode: int = 0o644, durable: bool = True) -> None:
    """Write ``data`` to ``path`` so that a crash leaves the old file or the new one, never a part.

    The bytes go to a temporary name in the same folder, reach the disk, and take the name in one step. Where ``durable`` is false
    they need not reach the disk first: that holds against a killed process and not against a power cut.

    Raises:
        StorageError: the disk is full or refuses, or ``path`` is something other than a file, such as a device; what was there stands.
    """
    raw = data.encode() if isinstance(data, str) else data
    try:
        if path.exists() and not path.is_file():  # a rename would take the place of /dev/null
            raise FileExistsError(errno.EEXIST, "it is there and is not a file")
        _write_whole(path, raw, mode, durable=durable)
    except OSError as error:
        raise StorageError.of(path, error) from None


def stamp(path: Path) -> tuple[int, ...]:
    """Return what changes when a file does; empty where there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino


def sweep(folder: Path, names: re.Pattern[str]) -> None:
    """Remove what a killed `write_whole` left in ``folder``: temporary files of the files that ``names`` matches whole.

    Nothing else is touched, and a folder or file that cannot be read or removed is left as it is. Only for a folder that nobody
    else is writing to.
    """
    with suppress(OSError):
        for path in list(folder.iterdir()):
            match = _TEMPORARY.fullmatch(path.name)
            if match and names.fullmatch(match[1]) and path.is_file() and not path.is_symlink():
                path.unlink(missing_ok=True)


def _write_whole(path: Path, raw: bytes, mode: int, *, durable: bool) -> None:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if durable:
                os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename or a removal in ``folder`` last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
