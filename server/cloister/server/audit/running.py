"""Running checks: each finding is written down as soon as it is there, so that an audit that was interrupted goes on.

``audits/<name>.json`` holds the finding, and the key of what it depends on (model, federation, seed, settings, version). A finding whose key still
holds is not made again.

=============================  ===========================================================================
a check                        what comes of it
=============================  ===========================================================================
returns a finding              it is written
raises a `CloisterError`       verdict "no power", with the error's own text; not written, so it is tried again
raises anything else           verdict "no power", with the exception's type and nothing of its text; not written
returns something else         the same
is interrupted                 the audit ends; what was found before it is there
=============================  ===========================================================================
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from cloister.core._version import __version__
from cloister.core.errors import CloisterError, IntegrityError, StorageError
from cloister.core.evidence import Finding
from cloister.core.files import write_whole
from cloister.server.audit.subject import AuditSubject

__all__ = ["Check", "kept_finding", "run_check", "run_checks", "write_finding"]

Check = Callable[[AuditSubject], Finding]


def run_checks(
    subject: AuditSubject, checks: Iterable[tuple[str, Check]], *, again: bool = False
) -> Iterator[Finding]:
    """Yield the finding of each check, in order: see `run_check`."""
    for name, check in checks:
        yield run_check(subject, name, check, again=again)


def run_check(subject: AuditSubject, name: str, check: Check, *, again: bool = False) -> Finding:
    """Return what ``check`` finds, from ``audits/<name>.json`` where that still holds.

    Args:
        subject: what is looked at.
        name: the check's name.
        check: the check.
        again: whether it is run although its finding is there.

    Raises:
        StorageError: the finding cannot be written.
    """
    kept = None if again else kept_finding(subject, name)
    if kept is not None:
        subject.tell(f"{name}: {kept.verdict} (found before)")
        return kept
    subject.tell(f"{name}: looking")
    begun = time.monotonic()
    try:
        found = check(subject)
        if not isinstance(found, Finding) or found.name != name:
            raise TypeError("a check returns its own finding")  # noqa: TRY301 - told like any other fault
    except StorageError:
        raise
    except CloisterError as error:
        return _could_not(name, error.message, {"code": error.code})
    except Exception as error:
        if os.environ.get("CLOISTER_DEBUG") == "1":
            raise
        return _could_not(name, f"the check failed ({type(error).__name__})", {"code": "check-failed"})
    found = found.took(time.monotonic() - begun)
    write_finding(subject, found)
    subject.tell(f"{name}: {found.verdict} ({found.seconds:.1f} s)")
    return found


def kept_finding(subject: AuditSubject, name: str) -> Finding | None:
    """Return the finding that was written for this very subject; ``None`` where there is none that holds."""
    try:
        value = json.loads((subject.folder / f"{name}.json").read_text(encoding="utf-8"))
        found = Finding.from_dict(value["finding"])
    except (OSError, ValueError, KeyError, TypeError, IntegrityError):
        return None
    there = all((subject.folder / artefact).is_file() for artefact in found.artefacts)
    return found if value.get("key") == subject.key(name) and found.name == name and there else None


def write_finding(subject: AuditSubject, found: Finding) -> Path:
    """Write a finding and return its file.

    Raises:
        StorageError: the disk is full or refuses.
    """
    value: dict[str, Any] = {
        "format": 1,
        "key": subject.key(found.name),
        "run": subject.path.name,
        "federation": subject.loaded.digest(),
        "model": subject.sha256,
        "seed": subject.seed,
        "version": __version__,
        "finding": found.as_dict(),
    }
    path = subject.folder / f"{found.name}.json"
    try:
        subject.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError.of(path, error) from None
    write_whole(path, json.dumps(value, allow_nan=False, ensure_ascii=False, indent=1) + "\n", mode=0o600)
    return path


def _could_not(name: str, why: str, figures: dict[str, Any]) -> Finding:
    return Finding(
        name=name,
        verdict="no power",
        sentence=f"This was not looked at: {why}.",
        figures=figures,
        power="It could have shown nothing.",
    )
