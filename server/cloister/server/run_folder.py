"""The run folder: where everything that one run makes lies, and who may write to it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cloister.core.errors import IntegrityError, StorageError, UsageError
from cloister.core.files import sweep, write_whole
from cloister.core.spec import Loaded, load_federation

__all__ = ["REQUEST", "RunFolder", "lock_folder", "new_folder"]

#: The request as its user signed it, in the folder of a job's run: the certificate of a release quotes it.
REQUEST = "request.json"

#: The files that are written whole: in the run folder, and among the checkpoints.
_WHOLE = re.compile(
    r"federation\.toml|run-id\.txt|origins\.json|base\.txt|ledgers\.txt|request\.json|model\.safetensors|report\.(json|html)|audit-privacy\.(json|html)|audited\.json|model-card\.md"
)
_CHECKPOINT = re.compile(r"round-\d{6,}\.safetensors")


@dataclass(frozen=True)
class RunFolder:
    """One run's folder, locked against a second writer while it is open.

    ``federation.toml`` (effective), ``origins.json``, ``events.jsonl``, ``checkpoints/``, ``transcript/``, ``model.safetensors``, the report.
    """

    path: Path
    lock: int

    @classmethod
    def create(cls, parent: Path, loaded: Loaded, *, ledgers: Path | None = None) -> RunFolder:
        """Make a new folder ``<name>-<time>`` under ``parent`` and write the effective federation file into it.

        Args:
            parent: where.
            loaded: the federation file.
            ledgers: where the sites of a simulation keep their ledgers, remembered for a resume.

        Raises:
            UsageError: the folder cannot be made there.
        """
        path = new_folder(parent, loaded.spec.federation.name, "a run folder")
        return cls._begun(path, loaded, run=f"{path.name}-{secrets.token_hex(4)}", ledgers=ledgers)

    @classmethod
    def create_at(cls, path: Path, loaded: Loaded, *, run: str) -> RunFolder:
        """Make the folder ``path`` for the run ``run``; what a crash left of an earlier attempt to make it is taken over.

        Raises:
            UsageError: the folder cannot be made there.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"cannot make the run folder '{path}': {error.strerror}", remedy="look at its parent folder"
            ) from None
        return cls._begun(path, loaded, run=run, ledgers=None)

    @classmethod
    def _begun(cls, path: Path, loaded: Loaded, *, run: str, ledgers: Path | None) -> RunFolder:
        try:
            (path / "checkpoints").mkdir(exist_ok=True)
            write_whole(path / "origins.json", json.dumps(dict(loaded.origins), indent=1, sort_keys=True))
            write_whole(path / "base.txt", os.fsencode(loaded.base))
            write_whole(path / "ledgers.txt", b"" if ledgers is None else os.fsencode(ledgers.absolute()))
            write_whole(path / "run-id.txt", run)
            # Last: a folder with this file is a run that can be resumed.
            write_whole(path / "federation.toml", loaded.effective_toml())
        except StorageError:
            raise
        except OSError as error:
            raise StorageError.of(path, error) from None
        return cls(path, lock_folder(path))

    @classmethod
    def reopen(cls, path: Path) -> tuple[RunFolder, Loaded]:
        """Open a run's folder again to go on with it; what a killed write left behind is removed.

        Raises:
            UsageError: it is not a run's folder, or it cannot be written to.
            IntegrityError: another process is writing to it, or a file of it does not hold.
        """
        if not (path / "federation.toml").is_file() or not (path / "base.txt").is_file():
            raise UsageError(
                f"'{path}' is not a run that can be resumed: it has no federation.toml",
                remedy="name a folder under runs/",
            )
        written = load_federation(path / "federation.toml")
        base = _read_folder(path / "base.txt")
        folder = cls(path, lock_folder(path))
        if not folder.checkpoints.is_dir():
            folder.close()
            raise IntegrityError(
                f"the run '{path}' has no folder 'checkpoints'",
                remedy="restore it, or start a new run",
                code="run-folder",
            )
        sweep(path, _WHOLE)
        sweep(folder.checkpoints, _CHECKPOINT)
        return folder, Loaded(spec=written.spec, base=base, origins=written.origins)

    @property
    def run(self) -> str:
        """What names the run in ledgers: no other run has it, wherever its folder lies."""
        try:
            return (self.path / "run-id.txt").read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            raise IntegrityError(
                f"the run '{self.path}' does not say its name: 'run-id.txt' cannot be read",
                remedy="restore that file, or start a new run",
                code="run-folder",
            ) from None

    @property
    def ledgers(self) -> Path | None:
        """Where the sites of a simulation keep their ledgers; ``None``: they keep none.

        Raises:
            IntegrityError: the file that says so cannot be used.
        """
        path = self.path / "ledgers.txt"
        try:
            none = path.stat().st_size == 0
        except OSError:
            none = False
        return None if none else _read_folder(path)

    @property
    def events(self) -> Path:
        """The events file."""
        return self.path / "events.jsonl"

    @property
    def transcript(self) -> Path:
        """The folder of the transcript."""
        return self.path / "transcript"

    @property
    def checkpoints(self) -> Path:
        """The checkpoints' folder."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The released model."""
        return self.path / "model.safetensors"

    def close(self) -> None:
        """Let another process write here."""
        os.close(self.lock)


def new_folder(parent: Path, name: str, what: str) -> Path:
    """Make a new folder ``<name>-<time>`` under ``parent``.

    Args:
        parent: made where it is not there.
        name: the first part of the folder's name.
        what: what the folder is, for the refusal.

    Raises:
        UsageError: it cannot be made there.
    """
    stem = f"{name}-{datetime.now(UTC).strftime('%Y%m%d-%H%M%S')}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return next(p for n in range(1, 1000) if _made(p := parent / (stem if n == 1 else f"{stem}-{n}")))
    except OSError as error:
        raise UsageError(
            f"cannot write {what} under '{parent}': {error.strerror}", remedy="give another --out"
        ) from None


def _made(path: Path) -> bool:
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _read_folder(path: Path) -> Path:
    try:
        text = os.fsdecode(path.read_bytes()).removesuffix("\n")
        if os.path.isabs(text) and "\0" not in text:  # noqa: PTH117 - "" is no path
            return Path(text)
        reason = "it names no folder by its whole path"
    except OSError as error:
        reason = error.strerror or type(error).__name__
    raise IntegrityError(
        f"cannot use '{path}': {reason}",
        remedy="write into it the folder that it named, or start a new run",
        code="run-folder",
    )


def lock_folder(path: Path, what: str = "run") -> int:
    """Lock a folder against a second writer and return the descriptor that holds the lock; closing it lets go.

    Args:
        path: the folder.
        what: what the folder is, for the refusal.

    Raises:
        UsageError: the folder cannot be written to.
        IntegrityError: another process holds the lock.
    """
    try:
        descriptor = os.open(path / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(
            f"cannot write to the {what} '{path}': '.lock': {error.strerror}",
            remedy="check the folder and its permissions; '.lock' must be a file, and may be removed",
            code=f"{what}-folder",
        ) from None
    try:
        # A record lock, which a forked worker does not inherit: it ends with this process, however that ends.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise IntegrityError(
            f"another process is writing to the {what} '{path}'",
            remedy="wait for it to end, or stop it",
            code=f"{what}-locked",
        ) from None
    return descriptor
