"""What a real site keeps of a run in files, what becomes of it when the run is over, and what is left of it then.

Beside one path, ``<beside>``, all of mode 0600 and written whole::

    <beside>.sessions-<run>.json          the secure sessions of a run (`FileShelf`)
    <beside>.control-<run>.safetensors    SCAFFOLD's control variate (`cloister.client.controls`)
    <beside>.canaries-<run>.json          the coins of its canaries (`cloister.client.canaries`)
    <beside>.over.json                    which runs are over, and the newest session that the site took part in
    <beside>.runs.lock                    held by whoever reads and writes any of them

Formal guarantees:

- Of a run that is over nothing is left but a digest of its name and a number, and it does not begin anew: whatever is asked of it is refused.
- That is on the disk before anything of the run is removed.

==========================================  =======================================================
case                                        outcome
==========================================  =======================================================
a message of a run that is over             ``IntegrityError`` (run-over)
a file that cannot be read                  ``IntegrityError`` (session-store): nothing is answered
==========================================  =======================================================
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloister.core.errors import IntegrityError
from cloister.core.files import write_whole

__all__ = ["FileShelf", "RunFiles", "forget_runs", "packed", "short_name", "unpacked"]

#: Bytes, alone or in lists, are texts that begin with this: no name holds it, since federation files refuse it.
_MARK = "\0"


def short_name(run: str) -> str:
    """Return what stands for a run in the names of its files."""
    return hashlib.sha256(run.encode()).hexdigest()[:16]


class RunFiles:
    """Where the files of one run are; nothing is made before it is used.

    Args:
        beside: their common beginning.
        run: names the run.
        durable: whether they must survive a power cut.
    """

    def __init__(self, beside: Path, run: str, *, durable: bool = True) -> None:
        self._beside, self._short = beside, short_name(run)
        self.durable = durable

    def path(self, kind: str, ending: str) -> Path:
        """Return the file that holds one kind of thing."""
        return self._beside.with_name(f"{self._beside.name}.{kind}-{self._short}.{ending}")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the files, while nobody else does.

        Raises:
            IntegrityError: (run-over) the run is over; (session-store) they cannot be used.
        """
        with _alone(self._beside):
            if self._short in _over(self._beside):
                raise IntegrityError(
                    "this run is over for this site: what it kept of the run's sessions was removed",
                    remedy="submit the federation anew",
                    code="run-over",
                )
            yield


class FileShelf:
    """A book of secure sessions (`cloister.client.book.Shelf`) in a file of the site's own, one for each run.

    Args:
        beside: the site's ledger, or where else its files are.
        run: names the run.
        durable: whether it must survive a power cut.
    """

    most = 4096

    def __init__(self, beside: Path, run: str, *, durable: bool = True) -> None:
        self._files = RunFiles(beside, run, durable=durable)
        self._path = self._files.path("sessions", "json")

    @contextmanager
    def turn(self) -> Iterator[dict[str, Any]]:
        """Lend what the file holds, while no other turn has it.

        Raises:
            IntegrityError: (session-store) it cannot be read; (run-over) the run is over.
            StorageError: it cannot be written.
        """
        with self._files.alone():
            record = _read_record(self._path)
            yield record
            write_whole(self._path, packed(record), mode=0o600, durable=self._files.durable)


def forget_runs(beside: Path, over: Callable[[str, datetime], bool], *, durable: bool = True) -> int:
    """Remove what is kept of runs that are over; return how many they were.

    Args:
        beside: the common beginning of the files' names.
        over: says of a run, by its `short_name` and when its files were last written, whether no message of it is let in any more.
        durable: whether it must survive a power cut.

    Raises:
        IntegrityError: (session-store) they cannot be used.
        StorageError: they cannot be written; nothing was removed.
    """
    if not beside.parent.exists():
        return 0
    with _alone(beside):
        files: dict[str, list[Path]] = {}
        for kind, ending in (("sessions", "json"), ("control", "safetensors"), ("canaries", "json")):
            for path in beside.parent.glob(f"{beside.name}.{kind}-*.{ending}"):
                short = path.name.removesuffix(f".{ending}").rpartition("-")[2]
                files.setdefault(short, []).append(path)
        gone = {short: paths for short, paths in files.items() if over(short, _last_used(paths))}
        if gone:
            serials = {short: _newest(paths) for short, paths in gone.items()}
            text = json.dumps({**_over(beside), **serials}, sort_keys=True)
            write_whole(_over_path(beside), text, mode=0o600, durable=durable)
            for paths in gone.values():
                for path in paths:
                    path.unlink(missing_ok=True)
        return len(gone)


def packed(record: Mapping[str, Any]) -> str:
    """Return a record of plain data and bytes as text."""
    return json.dumps({name: _written(value) for name, value in record.items()})


def unpacked(text: str) -> dict[str, Any]:
    """Return the record that `packed` wrote.

    Raises:
        ValueError, AttributeError: it is none.
    """
    found: dict[str, Any] = json.loads(text)
    return {name: _read(value) for name, value in found.items()}


@contextmanager
def _alone(beside: Path) -> Iterator[None]:
    path = beside.with_name(f"{beside.name}.runs.lock")
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _unreadable(path, error) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _over_path(beside: Path) -> Path:
    return beside.with_name(f"{beside.name}.over.json")


def _over(beside: Path) -> dict[str, int]:
    found = _read_record(_over_path(beside))
    if not all(type(serial) is int for serial in found.values()):
        raise _unreadable(_over_path(beside), ValueError())
    return found


def _newest(paths: list[Path]) -> int:
    """Return the serial of the newest session, for whoever reads the file; 0 where there was none, or nobody can tell."""
    serials: list[object] = []
    with suppress(IntegrityError):  # a damaged file of a run that is over needs no longer be mended
        serials = [_read_record(path).get("serial", 0) for path in paths if path.suffix == ".json"]
    return max((serial for serial in serials if isinstance(serial, int)), default=0)


def _last_used(paths: list[Path]) -> datetime:
    return datetime.fromtimestamp(max(path.stat().st_mtime for path in paths), UTC)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return unpacked(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> IntegrityError:
    return IntegrityError(
        f"what this site remembers of secure sessions cannot be read: '{path}' ({type(error).__name__})",
        remedy="restore the file; a site that forgets what it opened can be made to show its own share",
        code="session-store",
    )


def _written(value: Any) -> Any:
    if isinstance(value, bytes):
        return _MARK + base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {name: _written(inner) for name, inner in value.items()}
    return [_written(entry) for entry in value] if isinstance(value, list) else value


def _read(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_MARK):
        return base64.b64decode(value.removeprefix(_MARK))
    if isinstance(value, dict):
        return {name: _read(inner) for name, inner in value.items()}
    return [_read(entry) for entry in value] if isinstance(value, list) else value
