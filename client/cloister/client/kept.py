"""What a site computed under a charge, kept until it is sure to have been used: a crash then needs no new noise.

One file a run beside the ledger, ``<ledger>.kept-<run>.safetensors`` with mode 0600, written whole, overwritten by the run's next
round; those of the newest `_RUNS` runs stay. Under record-level privacy it holds what left the site anyway; under site-level privacy
it may be an update without noise, and is as private as the records.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cloister.core.digests import vectors_digest
from cloister.core.files import write_whole

__all__ = ["Kept", "forget_kept", "keep", "kept_output"]

_RUNS = 4


@dataclass(frozen=True, kw_only=True)
class Kept:
    """The arrays that one attempt at a round made, and what they answer.

    Attributes:
        run: names the run.
        round_number: from 1.
        attempt: from 1.
        given: digest of what the site was sent.
        arrays: by name, each a flat vector.
    """

    run: str
    round_number: int
    attempt: int
    given: str
    arrays: dict[str, npt.NDArray[Any]]

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the arrays: what the ledger's COMMIT states."""
        return vectors_digest(self.arrays)


def keep(ledger: Path, kept: Kept, *, durable: bool = True) -> None:
    """Write ``kept`` beside ``ledger``.

    Args:
        ledger: the ledger's file.
        kept: what to keep.
        durable: whether it must survive a power cut, and not only a killed process.

    Raises:
        StorageError: it could not be written; the round is charged, and must be computed anew.
    """
    about = {
        "run": kept.run,
        "round": kept.round_number,
        "attempt": kept.attempt,
        "given": kept.given,
        "digest": kept.digest,
    }
    path = _path(ledger, kept.run)
    new = not path.exists()
    write_whole(
        path, save(kept.arrays, metadata={"cloister": json.dumps(about)}), mode=0o600, durable=durable
    )
    if new:
        _forget_old_runs(ledger)


def kept_output(ledger: Path, run: str, round_number: int, attempt: int, given: str) -> Kept | None:
    """Return what was kept of one attempt, if it is there, whole, and answers the same question; else ``None``."""
    try:
        with safe_open(_path(ledger, run), framework="np") as file:
            about = json.loads(file.metadata()["cloister"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    found = Kept(run=run, round_number=round_number, attempt=attempt, given=given, arrays=arrays)
    wanted = {
        "run": run,
        "round": round_number,
        "attempt": attempt,
        "given": given,
        "digest": found.digest,
    }
    return found if about == wanted else None


def forget_kept(folder: Path, before: datetime) -> None:
    """Remove what was kept beside the ledgers in ``folder`` and last written before then; what cannot be removed is left."""
    with suppress(OSError):
        for path in folder.glob("*.kept-*.safetensors"):
            if path.stat().st_mtime < before.timestamp():
                path.unlink(missing_ok=True)


def _path(ledger: Path, run: str) -> Path:
    short = hashlib.sha256(run.encode()).hexdigest()[:16]
    return ledger.with_name(f"{ledger.name}.kept-{short}.safetensors")


def _forget_old_runs(ledger: Path) -> None:
    with suppress(OSError):
        files = sorted(
            ledger.parent.glob(f"{ledger.name}.kept-*.safetensors"), key=lambda path: path.stat().st_mtime
        )
        for path in files[:-_RUNS]:
            path.unlink(missing_ok=True)
