"""Make a release: hold the audit against the thresholds, write model, card, report and federation file, and sign what they are.

::

    RUN/release/model.safetensors      or model.sealed, where it was encrypted
    RUN/release/model-card.md, report.html, report.json, federation.toml, audits.json
    RUN/release/certificate.json       last: a folder without it is no release

Formal guarantees:

- Nothing is signed unless every threshold of the run's own federation file is met, by findings about the very model that is released.
- A finding that stands in a file of its own and reads otherwise in the summary is refused.

==========================================  =====================================
case                                        outcome
==========================================  =====================================
not audited, or another model was           ``AuditFailed`` (not-audited)
a threshold that is not met                 ``AuditFailed`` (thresholds), with each
a finding that was changed                  ``IntegrityError`` (audit-summary)
a deployed run without the server's kit     ``UsageError``
released before                             ``UsageError`` (released)
==========================================  =====================================
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.core.errors import AuditFailed, IntegrityError, StorageError, UsageError
from cloister.core.evidence import Finding
from cloister.core.files import write_whole
from cloister.privacy.identity import Consortium, ConsortiumAuthority, Identity, Role
from cloister.server.audit.subject import AuditSubject, open_audit
from cloister.server.audit.thresholds import judged, measures_of
from cloister.server.audit.verdicts import SUMMARY, Summary, Threshold, read_summary
from cloister.server.events import read_events
from cloister.server.folding import Fold
from cloister.server.releasing.certificate import CERTIFICATE, Certificate, digest_of, signed_certificate
from cloister.server.releasing.sealing import Secret, seal
from cloister.server.releasing.stating import MODEL, finding_digest, is_simulated, stated
from cloister.server.report.clearance import RELEASE, Clearance
from cloister.server.report.writing import rendered

__all__ = [
    "SEALED",
    "Released",
    "audited",
    "issue",
    "simulated_signer",
    "thresholds_now",
]

#: The encrypted model.
SEALED = "model.sealed"


@dataclass(frozen=True, kw_only=True)
class Released:
    """What a release made.

    Attributes:
        folder: where it lies.
        certificate: its certificate.
        content: what that says.
        fingerprint: of the consortium that vouches for the signer.
    """

    folder: Path
    certificate: Path
    content: Certificate
    fingerprint: str


def simulated_signer(name: str) -> tuple[Identity, Consortium]:
    """Return an identity for a release without a consortium: a key that is made for it and forgotten."""
    authority = ConsortiumAuthority(f"no consortium: {name}", Ed25519PrivateKey.generate(), days=3650)
    return authority.identity("simulation", Role.SERVER, Ed25519PrivateKey.generate()), authority.consortium()


def audited(subject: AuditSubject) -> Summary:
    """Return the audit of the very model that lies in the run's folder.

    Raises:
        AuditFailed: (not-audited) there is none.
        IntegrityError: (audit-summary) a finding was changed.
    """
    summary, again = read_summary(subject.folder), f"cloister audit run {subject.path}"
    if summary is None:
        raise AuditFailed(f"the run '{subject.path.name}' was not audited", remedy=again, code="not-audited")
    if (summary.model, summary.federation) != (subject.sha256, subject.loaded.digest()):
        raise AuditFailed(
            f"the audit of '{subject.path.name}' is of another model or federation file than lies there now",
            remedy=again,
            code="not-audited",
        )
    for found in summary.findings:
        _check_kept(subject, found, again)
    return summary


def thresholds_now(subject: AuditSubject, summary: Summary) -> list[Threshold]:
    """Return the thresholds, judged anew.

    Raises:
        AuditFailed: (thresholds) some are not met; the message names each.
    """
    thresholds = judged(subject.spec, measures_of(subject.path), summary.findings)
    if missed := [one for one in thresholds if not one.met]:
        raise AuditFailed(
            "this model is not released:"
            + "".join(f"\n  {one.name}: {one.found}, required: {one.required}" for one in missed),
            remedy="train it anew; thresholds are those of the run's federation file, [audit.require], and cannot be changed after the run",
            code="thresholds",
        )
    return thresholds


def issue(
    run: Path,
    *,
    kit: tuple[Identity, Consortium] | None = None,
    secret: Secret | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Released:
    """Release the model of a run.

    Args:
        run: the run's folder.
        kit: the server's identity and its consortium; ``None`` in a simulation.
        secret: what the model is encrypted with; ``None``: it is not.
        tell: is told what goes on.

    Raises:
        AuditFailed: (not-audited, thresholds) see the table.
        IntegrityError: a file of the run does not hold.
        UsageError: it was released before, or a deployed run comes without the server's kit.
        StorageError: the disk is full or refuses.
    """
    folder = run / RELEASE
    history = Fold.of(read_events(run / "events.jsonl")).history()
    simulated = is_simulated(history)
    if kit is None and not simulated:
        raise UsageError(
            "this is a run of real sites: its certificate needs the server's identity",
            remedy="give --kit FOLDER, the server's folder",
        )
    if (folder / CERTIFICATE).exists():
        raise UsageError(
            f"'{folder}' is a release already",
            remedy="a certificate stands for what it says: move the folder away to make another",
            code="released",
        )
    tell("holding the audit against the thresholds")
    subject = open_audit(run)
    summary = audited(subject)
    thresholds = thresholds_now(subject, summary)
    identity, consortium = kit or simulated_signer(subject.spec.federation.name)
    at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    tell("writing model, card and report")
    files = _files(subject, summary, Clearance.released(at, summary))
    _made(folder)
    sealed = _model(subject, folder, secret)
    for name, raw in files.items():
        write_whole(folder / name, raw)
    content = stated(
        subject,
        history,
        summary,
        thresholds,
        at=at,
        files={name: digest_of(raw) for name, raw in files.items()},
        sealed=sealed,
        signer=(identity, consortium),
    )
    path = folder / CERTIFICATE
    write_whole(path, signed_certificate(content, identity))
    return Released(folder=folder, certificate=path, content=content, fingerprint=consortium.fingerprint)


def _check_kept(subject: AuditSubject, found: Finding, again: str) -> None:
    path = subject.folder / f"{found.name}.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))["finding"]
        same = finding_digest(Finding.from_dict(kept)) == finding_digest(found)
    except FileNotFoundError:
        same = found.verdict == "no power"  # what could not be looked at is not written down
    except (OSError, ValueError, KeyError, TypeError, IntegrityError):
        same = False
    if not same:
        raise IntegrityError(
            f"the finding in '{path}' is not the one in '{SUMMARY}'",
            remedy=f"find out who changed it, then audit again: {again} --again",
            code="audit-summary",
        )


def _files(subject: AuditSubject, summary: Summary, clearance: Clearance) -> dict[str, bytes]:
    report = rendered(subject.path, clearance)
    audits = json.dumps(summary.as_dict(), allow_nan=False, ensure_ascii=False, indent=1) + "\n"
    return {
        "report.html": report.html.encode(),
        "report.json": report.json.encode(),
        "model-card.md": report.card.encode(),
        "federation.toml": (subject.path / "federation.toml").read_bytes(),
        "audits.json": audits.encode(),
    }


def _made(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
        for name in (MODEL, SEALED):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise StorageError.of(folder, error) from None


def _model(subject: AuditSubject, folder: Path, secret: Secret | None) -> str | None:
    source = subject.path / MODEL
    if secret is None:
        raw = source.read_bytes()
        if digest_of(raw) != subject.sha256:
            raise IntegrityError(f"'{source}' changed meanwhile", remedy="audit and release again")
        write_whole(folder / MODEL, raw)
        return None
    seal(source, folder / SEALED, secret)
    return digest_of((folder / SEALED).read_bytes())
