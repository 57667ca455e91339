"""What a certificate says of a run: gathered from its folder, with ε recomputed from the events."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from cloister.core._version import __version__
from cloister.core.errors import IntegrityError
from cloister.core.evidence import Finding
from cloister.core.exposure import exposure
from cloister.privacy.identity import Consortium, Identity
from cloister.privacy.request import SignedRequest
from cloister.server.audit.budget.runs import read_run
from cloister.server.audit.record.accounting import charged_in
from cloister.server.audit.subject import AuditSubject
from cloister.server.audit.thresholds import Measures, measures_of
from cloister.server.audit.verdicts import Summary, Threshold
from cloister.server.history import History
from cloister.server.releasing.certificate import (
    NOT_COVERED,
    AskedBy,
    Certificate,
    CheckSaid,
    FederationSaid,
    LowerBound,
    ModelSaid,
    PrivacySaid,
    SignerSaid,
    SiteSaid,
    ThresholdSaid,
    digest_of,
)
from cloister.server.run_folder import REQUEST

__all__ = ["MODEL", "finding_digest", "is_simulated", "stated"]

MODEL = "model.safetensors"
_DEPLOYED = "superlink"


def stated(
    subject: AuditSubject,
    history: History,
    summary: Summary,
    thresholds: Sequence[Threshold],
    *,
    at: str,
    files: Mapping[str, str],
    sealed: str | None,
    signer: tuple[Identity, Consortium],
) -> Certificate:
    """Return what the certificate of a run says.

    Args:
        subject: the run with its model.
        history: what its events add up to.
        summary: what its audits found.
        thresholds: all of them, met.
        at: now, UTC.
        files: SHA-256 of what is released with the model.
        sealed: SHA-256 of the encrypted model; ``None``: it is not encrypted.
        signer: who signs, and who vouches for that.

    Raises:
        IntegrityError: a deployed run does not hold the request that it was made for, or it does not hold itself.
    """
    run, simulated = subject.path, is_simulated(history)
    measures = measures_of(run)
    identity, consortium = signer
    return Certificate(
        run=_run_name(run),
        simulated=simulated,
        at=at,
        model=ModelSaid(
            sha256=subject.sha256,
            sealed=sealed,
            bytes=(run / MODEL).stat().st_size,
            parameters=history.run.parameters if history.run else None,
            layout=history.run.layout if history.run else None,
        ),
        federation=FederationSaid(name=subject.spec.federation.name, digest=subject.loaded.digest()),
        request=_request(run, consortium, simulated=simulated),
        privacy=_privacy(subject, history, summary),
        sites=_sites(run, history),
        measures=_plain(measures),
        measured_on=measures.where,
        checks=[_said(found) for found in summary.findings],
        thresholds=[
            ThresholdSaid(name=one.name, required=one.required, found=one.found, asked=one.asked)
            for one in thresholds
        ],
        server_saw=list(exposure(subject.spec).server),
        files=dict(files),
        versions=_versions(history, summary),
        signer=SignerSaid(
            name=identity.name,
            certificate=identity.certificate.hex(),
            consortium=consortium.certificate.hex(),
        ),
        not_covered=[*_not_covered(simulated=simulated), *NOT_COVERED],
    )


def is_simulated(history: History) -> bool:
    """Whether a run was a simulation on one machine."""
    return history.run is None or history.run.engine != _DEPLOYED


def finding_digest(found: Finding) -> str:
    """Return the SHA-256 (hex) of a finding, with its figures, in one form."""
    return digest_of(
        json.dumps(found.as_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    )


def _run_name(run: Path) -> str:
    try:
        return (run / "run-id.txt").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return run.name


def _request(run: Path, consortium: Consortium, *, simulated: bool) -> AskedBy | None:
    path = run / REQUEST
    if not path.is_file():
        if simulated:
            return None
        raise IntegrityError(
            f"the run '{run.name}' does not hold the request that it was made for: '{REQUEST}'",
            remedy="restore that file from the server's queue",
            code="run-folder",
        )
    try:
        fields = {name: bytes.fromhex(value) for name, value in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        raise IntegrityError(f"'{path}' is no request", remedy="restore that file", code="request") from None
    signed = SignedRequest.from_fields(fields)
    user, request = signed.opened(consortium)
    return AskedBy(
        user=user.name,
        purpose=request.purpose,
        at=request.at,
        encoded=signed.encoded.hex(),
        signature=signed.signature.hex(),
        certificate=signed.certificate.hex(),
    )


def _privacy(subject: AuditSubject, history: History, summary: Summary) -> PrivacySaid:
    charged = read_run(subject.path)
    newest = max(
        (event for event in history.privacy.values() if event.get("epsilon") is not None),
        key=lambda event: float(event["epsilon"]),
        default={},
    )
    spent = [] if charged is None else [one.epsilon for one in charged_in(charged).values()]
    return PrivacySaid(
        unit=subject.spec.privacy.unit,
        epsilon=max(spent, default=None),
        delta=None if charged is None else charged.plan.delta,
        relation=newest.get("relation"),
        noise_multiplier=None if charged is None else charged.plan.noise_multiplier,
        statement=str(newest.get("statement") or "No differential privacy."),
        lower_bounds=[*_lower_bounds(summary)],
    )


def _lower_bounds(summary: Summary) -> list[LowerBound]:
    found = [one for one in summary.findings if one.name == "privacy" and "lower_bound" in one.figures]
    return [
        LowerBound(
            check=one.name,
            epsilon=float(one.figures["lower_bound"]),
            confidence=float(one.figures["confidence"]),
            how=f"{one.figures['decided_by']}, {one.figures['canaries']} canaries, run {one.figures.get('run')}",
        )
        for one in found
    ]


def _sites(run: Path, history: History) -> list[SiteSaid]:
    charged = read_run(run)
    costs = {} if charged is None else charged_in(charged)
    names = sorted(costs) if costs else sorted(history.sites)
    return [
        SiteSaid(
            name=name,
            rounds=costs[name].pairs if name in costs else [],
            epsilon=costs[name].epsilon if name in costs and math.isfinite(costs[name].epsilon) else None,
            head=(history.privacy.get(name, {}).get("ledger") or {}).get("head"),
        )
        for name in names
    ]


def _said(found: Finding) -> CheckSaid:
    return CheckSaid(
        name=found.name,
        verdict=found.verdict,
        sentence=found.sentence,
        power=found.power,
        finding=finding_digest(found),
    )


def _versions(history: History, summary: Summary) -> dict[str, str]:
    run = {} if history.run is None else {name: str(value) for name, value in history.run.versions.items()}
    provenance = next((one.figures for one in summary.findings if one.name == "provenance"), {})
    code = str(provenance.get("facts", {}).get("code_fingerprint") or "not told")
    return run | {"audited with": summary.version, "released with": __version__, "code of the task": code}


def _plain(measures: Measures) -> dict[str, float]:
    return {
        name: value
        for name, value in asdict(measures).items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _not_covered(*, simulated: bool) -> list[str]:
    if not simulated:
        return []
    return [
        (
            "Anything about real sites: the run was a simulation, in which one machine held all records. The key that signed this was made for it; "
            "it shows that nothing was changed since, and not who made it."
        )
    ]
