"""Is this release what its certificate says? Offline, from the files alone; whatever does not hold is named, each with its reason.

==========================  ==========================================================================================================
code                        what does not hold
==========================  ==========================================================================================================
document, signature, …      the certificate itself: then nothing else is looked at (`cloister.server.releasing.certificate`)
release-model               the model's file is not the one that was certified
release-file                a file beside the certificate, or one that was given, is not the one that was certified
release-request             the request is not signed by a user of the consortium, or is for another federation
release-federation          the federation file is not the run's
release-epsilon             the certified rounds cost more, under the federation file, than the ε that is certified; a ledger charged more of them
release-ledger              a ledger does not verify, or does not hold the head that is certified
release-thresholds          what is certified does not meet the federation file's thresholds (exit 8)
==========================  ==========================================================================================================

What is not at hand is not checked, and said: a verification without the federation file, say, recomputes no ε.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloister.core.errors import AuditFailed, CloisterError, IntegrityError, UsageError
from cloister.core.evidence import Finding
from cloister.core.spec import FederationSpec, load_federation
from cloister.privacy.accounting import account
from cloister.privacy.identity import Consortium, Role
from cloister.privacy.identity.members import Purpose
from cloister.privacy.identity.register import read_revoked
from cloister.privacy.ledger import Head, verify
from cloister.privacy.ledger.heads import anchor_path
from cloister.privacy.ledger.inspection import inspect
from cloister.privacy.ledger.verification import TOLERANCE
from cloister.privacy.plan import plan_from
from cloister.privacy.request import JobRequest
from cloister.server.audit.thresholds import Measures, judged
from cloister.server.releasing.certificate import Certificate, Signed, read_certificate
from cloister.server.releasing.issuing import SEALED
from cloister.server.releasing.sealing import is_sealed
from cloister.server.releasing.stating import MODEL

__all__ = ["Fault", "Verified", "read_consortium", "verify_release"]

_LONGEST = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that does not hold."""

    code: str
    message: str


@dataclass(kw_only=True)
class Verified:
    """What a verification found.

    Attributes:
        signed: the certificate.
        held: what was checked and holds, in words.
        faults: what does not.
        unchecked: what was not at hand.
    """

    signed: Signed
    held: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    def require(self) -> None:
        """Raise what does not hold.

        Raises:
            IntegrityError: with the code of the first fault; the message names each.
            AuditFailed: all that does not hold are thresholds.
        """
        if not self.faults:
            return
        lines = "".join(f"\n  {fault.message}" for fault in self.faults)
        wrong = [fault for fault in self.faults if fault.code != "release-thresholds"]
        kind = IntegrityError if wrong else AuditFailed
        raise kind(
            f"this release is not what its certificate says:{lines}",
            remedy="do not use it; ask its server for the release, and compare",
            code=(wrong or self.faults)[0].code,
        )


def read_consortium(path: Path) -> Consortium:
    """Return the consortium whose certificate (DER) lies in ``path``, less those whom a ``revoked.json`` beside it names.

    Raises:
        UsageError: the file cannot be read.
        IntegrityError: (identity, document, signature) it is no consortium's, or the list does not hold.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_LONGEST)
    except OSError as error:
        raise UsageError(f"'{path}' cannot be read: {error.strerror}", remedy="name consortium.der") from None
    revoked = read_revoked(path.parent, Consortium(raw))
    return Consortium(raw, revoked=frozenset() if revoked is None else revoked.serials)


def verify_release(
    certificate: Path,
    *,
    consortium: Consortium | None = None,
    model: Path | None = None,
    reports: Sequence[Path] = (),
    federation: Path | None = None,
    ledgers: Sequence[Path] = (),
) -> Verified:
    """Check a release; what does not hold is returned, and raised only where the certificate itself does not.

    Args:
        certificate: ``certificate.json``; the files that it names are looked for beside it.
        consortium: whom to believe; without it, whom the certificate names.
        model: the model's file, where it is not beside the certificate; plain or encrypted.
        reports: report, card or other files of the release, where they are not beside it.
        federation: the federation file, where it is not beside it.
        ledgers: sites' ledgers, that must hold the certified heads.

    Raises:
        UsageError: a file that was given cannot be read.
        IntegrityError: the certificate does not hold.
    """
    signed = read_certificate(certificate, consortium)
    found, content = Verified(signed=signed), signed.content
    _signer(found)
    _model(found, certificate.parent, model)
    _files(found, certificate.parent, reports)
    _request(found)
    spec = _federation(found, certificate.parent, federation)
    if spec is not None:
        _epsilon(found, spec)
        _thresholds(found, spec)
    _ledgers(found, content, ledgers)
    return found


def _signer(found: Verified) -> None:
    signed = found.signed
    found.held.append(
        f"signed by server '{signed.signer.name}' of '{signed.consortium.name}', fingerprint {signed.consortium.fingerprint}"
    )
    if signed.content.simulated:
        found.unchecked.append("the run was a simulation: there is nobody behind it but who made it")
    if not signed.known:
        found.unchecked.append(
            "who signed: no consortium was given, and the certificate vouches for itself; give --consortium consortium.der"
        )


def _model(found: Verified, beside: Path, given: Path | None) -> None:
    said = found.signed.content.model
    path = given or next((beside / name for name in (SEALED, MODEL) if (beside / name).is_file()), None)
    if path is None:
        found.unchecked.append("the model: it is not beside the certificate; give --model FILE")
        return
    sealed = is_sealed(path)
    expected = said.sealed if sealed else said.sha256
    digest = _digest(path)
    if digest != expected:
        text = f"the model '{path.name}' has the SHA-256 {digest[:16]}…, and {_short(expected)} was certified"
        found.faults.append(Fault(code="release-model", message=text))
        return
    found.held.append(
        f"the model is the one that was certified ({digest})" + (", encrypted" if sealed else "")
    )


def _files(found: Verified, beside: Path, given: Sequence[Path]) -> None:
    said = found.signed.content.files
    for path in given:
        digest = _digest(path)
        name = next((name for name, one in said.items() if one == digest), None)
        if name is None:
            text = f"'{path.name}' is none of the files that were certified ({', '.join(sorted(said))})"
            found.faults.append(Fault(code="release-file", message=text))
        else:
            found.held.append(f"'{path.name}' is the {name} that was certified")
    for name, expected in sorted(said.items()):
        path = beside / name
        if path.name != name or not path.is_file():
            if not any(path.name == name for path in given):
                found.unchecked.append(f"{name}: it is not beside the certificate")
            continue
        if _digest(path) != expected:
            text = f"'{name}' was changed: it is not the file that was certified"
            found.faults.append(Fault(code="release-file", message=text))
        else:
            found.held.append(f"{name} is the one that was certified")


def _request(found: Verified) -> None:
    content, consortium = found.signed.content, found.signed.consortium
    said = content.request
    if said is None:
        return

    def check() -> None:
        request = JobRequest.decode(bytes.fromhex(said.encoded))
        user = consortium.member(bytes.fromhex(said.certificate), role=Role.USER, now=request.time)
        user.check(Purpose.JOB, request.encoded, bytes.fromhex(said.signature))
        told = (user.name, request.purpose, request.at, request.federation, request.run)
        if told != (said.user, said.purpose, said.at, content.federation.digest, content.run):
            raise IntegrityError("it is for another run, or of another user")

    if _holds(found, "release-request", "the request", check):
        found.held.append(f"user '{said.user}' asked for this very federation on {said.at[:10]}")


def _federation(found: Verified, beside: Path, given: Path | None) -> FederationSpec | None:
    path = given or beside / "federation.toml"
    if given is None and not path.is_file():
        found.unchecked.append(
            "epsilon and thresholds: the federation file is not beside the certificate; give --federation FILE"
        )
        return None
    try:
        loaded = load_federation(path)
    except CloisterError as error:
        if given is not None:
            raise
        text = f"the federation file cannot be read: {error.message}"
        found.faults.append(Fault(code="release-federation", message=text))
        return None
    if loaded.digest() != found.signed.content.federation.digest:
        text = f"the federation file has the digest {loaded.digest()[:16]}…, and {_short(found.signed.content.federation.digest)} was certified"
        found.faults.append(Fault(code="release-federation", message=text))
        return None
    found.held.append(f"the federation file is the run's ({loaded.digest()})")
    return loaded.spec


def _epsilon(found: Verified, spec: FederationSpec) -> None:
    content = found.signed.content
    plan = plan_from(spec, content.model.parameters or 1)
    if plan is None:
        if content.privacy.epsilon is not None:
            text = "an epsilon is certified, and the federation file promises none"
            found.faults.append(Fault(code="release-epsilon", message=text))
        return
    most, faults = 0.0, len(found.faults)
    if not content.sites:
        text = "no site is certified that would have spent anything"
        found.faults.append(Fault(code="release-epsilon", message=text))
    for site in content.sites:
        cost = plan.spent_by(Counter(dict(_pairs(site.rounds)))).epsilon
        most = max(most, cost)
        if site.epsilon is None or cost > site.epsilon * (1 + TOLERANCE):
            text = f"the rounds of site '{site.name}' cost epsilon = {cost:.4g}, and {site.epsilon} was certified"
            found.faults.append(Fault(code="release-epsilon", message=text))
    stated = content.privacy.epsilon
    if stated is None or most > stated * (1 + TOLERANCE) or content.privacy.delta != plan.delta:
        text = f"the rounds cost epsilon = {most:.4g} at delta = {plan.delta:g}, and {stated} at {content.privacy.delta} was certified"
        found.faults.append(Fault(code="release-epsilon", message=text))
    if len(found.faults) == faults:
        found.held.append(
            f"epsilon = {most:.4g} at delta = {plan.delta:g}, recomputed from the rounds of {len(content.sites)} sites"
        )


def _thresholds(found: Verified, spec: FederationSpec) -> None:
    content = found.signed.content
    measures = Measures(
        epsilon=content.privacy.epsilon,
        accuracy=content.measures.get("accuracy"),
        auroc=content.measures.get("auroc"),
        worst_site_accuracy=content.measures.get("worst_site_accuracy"),
        where=content.measured_on,
    )
    findings = [
        Finding(name=one.name, verdict=one.verdict, sentence=one.sentence, power=one.power)
        for one in content.checks
    ]
    thresholds = judged(spec, measures, findings)
    missed = [one for one in thresholds if not one.met]
    for one in missed:
        text = f"threshold '{one.name}': {one.found}, required: {one.required}"
        found.faults.append(Fault(code="release-thresholds", message=text))
    if not missed:
        asked = sum(one.asked for one in thresholds)
        found.held.append(f"{asked} thresholds of the federation file are met, and no other check failed")


def _ledgers(found: Verified, content: Certificate, ledgers: Sequence[Path]) -> None:
    heads = {site.name: Head.from_dict(site.head) for site in content.sites if site.head is not None}
    seen = set()
    for path in ledgers:
        if not path.is_file():
            raise UsageError(f"there is no ledger '{path}'", remedy="name the ledger's file")
        checked = verify(path, account=account, anchored=anchor_path(path).is_file())
        head = heads.get(checked.site)
        if checked.ok and head is None:
            text = f"the ledger of '{checked.site}': no head of it is certified"
            found.faults.append(Fault(code="release-ledger", message=text))
            continue
        if checked.ok and head is not None:
            checked = verify(path, public_key=head.public_key, witnessed=[head], anchored=False)
        if not checked.ok:
            why = "; ".join(problem.message for problem in checked.problems)
            text = f"the ledger '{path.name}' ({checked.site or 'nobody knows whose'}): {why}"
            found.faults.append(Fault(code="release-ledger", message=text))
            continue
        if over := _more_charged(content, checked.site, path):
            found.faults.append(Fault(code="release-epsilon", message=over))
            continue
        seen.add(checked.site)
        found.held.append(
            f"the ledger of '{checked.site}' verifies, and holds the certified entry {head.seq if head else 0}"
        )
    left = sorted(set(heads) - seen)
    if left:
        found.unchecked.append(
            f"the ledgers of {', '.join(left[:10])}: give --ledger FILE; each site has its own"
        )


def _more_charged(content: Certificate, site: str, path: Path) -> str:
    """Return how a ledger charged more rounds of the run than are certified; nothing where it did not."""
    charged = sum(
        one.reserve.run == content.run and one.charge is not None
        for one in inspect(path, anchored=False).chain.holdings
    )
    certified = sum(count for one in content.sites if one.name == site for _, count in _pairs(one.rounds))
    if charged <= certified:
        return ""
    return f"the ledger of '{site}' charged {charged} rounds of this run, and {certified} are certified"


def _holds(found: Verified, code: str, what: str, check: Callable[[], Any]) -> bool:
    try:
        check()
    except CloisterError as error:
        found.faults.append(Fault(code=code, message=f"{what}: {error.message}"))
        return False
    return True


def _pairs(rounds: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    for pair in rounds:
        if len(pair) == 2:
            yield pair[0], pair[1]


def _digest(path: Path) -> str:
    made = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                made.update(block)
    except OSError as error:
        raise UsageError(f"'{path}' cannot be read: {error.strerror}", remedy="name another file") from None
    return made.hexdigest()


def _short(digest: str | None) -> str:
    return "no encrypted one" if digest is None else f"{digest[:16]}…"
