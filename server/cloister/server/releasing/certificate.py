"""``certificate.json``: what is said of a released model, signed by the server of its consortium.

A document of `cloister.privacy.identity.documents`: content in one form, a signature over it under the purpose ``certificate``. It carries the server's
own certificate and the consortium's, so that it can be read alone; who checks it compares the consortium's with the one in hand.

Formal guarantees (of `read_certificate`):

- What it returns was signed, in this very form, by a key that the consortium in it certified as a server's at the time that it states.
- With a consortium in hand: by that consortium, and by a key that was not taken back.

==============================================  =====================================
case                                            outcome
==============================================  =====================================
no JSON, another form or version, too long      ``IntegrityError`` (document)
a byte of the content changed                   ``IntegrityError`` (signature)
signed by no server of the consortium           ``IntegrityError`` (identity)
another consortium than the one in hand         ``IntegrityError`` (identity)
a key that was taken back                       ``IntegrityError`` (identity-revoked)
==============================================  =====================================
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from cloister.core.errors import IntegrityError
from cloister.privacy.identity import Consortium, Identity, Member, Purpose, Role
from cloister.privacy.identity.documents import Content, read_document, sealed, unsealed

__all__ = [
    "CERTIFICATE",
    "NOT_COVERED",
    "AskedBy",
    "Certificate",
    "CheckSaid",
    "FederationSaid",
    "LowerBound",
    "ModelSaid",
    "PrivacySaid",
    "Signed",
    "SignerSaid",
    "SiteSaid",
    "ThresholdSaid",
    "digest_of",
    "read_certificate",
    "signed_certificate",
]

#: Its name in the folder of a release.
CERTIFICATE = "certificate.json"
_LONGEST = 1 << 22

_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Hex = Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$", max_length=1 << 15)]
_Time = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
_Count = Annotated[int, Field(ge=0, lt=1 << 53)]
_Epsilon = Annotated[float, Field(ge=0, allow_inf_nan=False)]

#: What no certificate of this kind says, whatever the run.
NOT_COVERED = (
    "That the sites' records are true, lawful to use, or fit for the purpose: no part of this system looks at that.",
    "That each site ran this code on its records: a site's word for that is its ledger and its log.",
    "What a site's operator, or somebody with access to its machine, did with its records.",
    "Harm by an answer of the model: intended use and limits are in the model card, and whether they are kept is up to its user.",
    "Attacks and faults that no check looked for; what each check could have shown is said beside its verdict.",
    "The server's own record of the run (events, transcript, findings): it was made by the party that signed this.",
)


class ModelSaid(Content):
    """The model's file; ``sealed`` is the SHA-256 of its encrypted form, where it was encrypted."""

    sha256: _Digest
    sealed: _Digest | None
    bytes: _Count
    parameters: _Count | None
    layout: str | None


class FederationSaid(Content):
    """The effective federation file."""

    name: str
    digest: _Digest


class AskedBy(Content):
    """The request as a user signed it, and what it says."""

    user: str
    purpose: str
    at: _Time
    encoded: _Hex
    signature: _Hex
    certificate: _Hex


class SiteSaid(Content):
    """One site: what it is charged for the run, and the head of its ledger as the server saw it last in it.

    ``rounds``: pairs of survivors of a round's sum (0: not known) and number of such rounds.
    """

    name: str
    rounds: list[list[_Count]]
    epsilon: _Epsilon | None
    head: dict[str, Any] | None


class LowerBound(Content):
    """What an audit showed that ε is at least."""

    check: str
    epsilon: _Epsilon
    confidence: Annotated[float, Field(gt=0, lt=1)]
    how: str


class PrivacySaid(Content):
    """What is promised and what was spent; ``epsilon`` is the most of a site, recomputed from the events; none where nothing is promised."""

    unit: str
    epsilon: _Epsilon | None
    delta: float | None
    relation: str | None
    noise_multiplier: float | None
    statement: str
    lower_bounds: list[LowerBound]


class CheckSaid(Content):
    """One check: its verdict and what it could have shown; ``finding`` is the SHA-256 of its figures as JSON in one form."""

    name: str
    verdict: Literal["pass", "warn", "fail", "no power"]
    sentence: str
    power: str
    finding: _Digest


class ThresholdSaid(Content):
    """One threshold and how it was met."""

    name: str
    required: str
    found: str
    asked: bool


class SignerSaid(Content):
    """Who signed, and who vouches for that: certificates (DER, hex)."""

    name: str
    certificate: _Hex
    consortium: _Hex


class Certificate(Content):
    """All of it.

    Attributes:
        simulated: whether the run was a simulation on one machine.
        measures: the figures that thresholds are about, beside ε.
        files: SHA-256 of the files that were released with the model.
        server_saw: what lay open to the server, by the federation file.
    """

    version: Literal[1] = 1
    run: str
    simulated: bool
    at: _Time
    model: ModelSaid
    federation: FederationSaid
    request: AskedBy | None
    privacy: PrivacySaid
    sites: list[SiteSaid]
    measures: dict[str, float]
    measured_on: str
    checks: list[CheckSaid]
    thresholds: list[ThresholdSaid]
    server_saw: list[str]
    files: dict[str, _Digest]
    versions: dict[str, str]
    signer: SignerSaid
    not_covered: list[str]

    @property
    def time(self) -> datetime:
        """When it was signed, as it states."""
        return datetime.strptime(self.at, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A certificate that holds.

    Attributes:
        content: what it says.
        signer: who signed.
        consortium: who vouches for the signer.
        known: whether that consortium was in hand; else the certificate's own word is taken for it.
    """

    content: Certificate
    signer: Member
    consortium: Consortium
    known: bool


def signed_certificate(content: Certificate, identity: Identity) -> bytes:
    """Return the certificate as a file holds it."""
    return sealed(content, lambda message: identity.sign(Purpose.CERTIFICATE, message))


def read_certificate(path: Path, consortium: Consortium | None = None) -> Signed:
    """Read and check a certificate.

    Args:
        path: the file.
        consortium: whom to believe; without it, whom the certificate itself names.

    Raises:
        UsageError: there is no such file.
        IntegrityError: see the table.
    """
    found: list[tuple[Member, Consortium]] = []

    def check(content: Certificate, message: bytes, signature: bytes) -> None:
        own = Consortium(bytes.fromhex(content.signer.consortium))
        if consortium is not None and consortium.certificate != own.certificate:
            simulated = ": it was signed in a simulation" if content.simulated else ""
            raise IntegrityError(
                f"the certificate is of the consortium '{own.name}' ({own.fingerprint[:16]}…), and not of "
                f"'{consortium.name}' ({consortium.fingerprint[:16]}…){simulated}",
                remedy="compare the fingerprints with the consortium's, over the telephone",
                code="identity",
            )
        trusted = consortium or own
        member = trusted.member(bytes.fromhex(content.signer.certificate), role=Role.SERVER, now=content.time)
        member.check(Purpose.CERTIFICATE, message, signature)
        if member.name != content.signer.name:
            raise IntegrityError("the certificate names another signer than its key is of", code="identity")
        found.append((member, trusted))

    content = unsealed(
        read_document(path, most=_LONGEST), Certificate, check, what="the release certificate", most=_LONGEST
    )
    ((member, trusted),) = found
    return Signed(content=content, signer=member, consortium=trusted, known=consortium is not None)


def digest_of(raw: bytes) -> str:
    """Return the SHA-256 (hex) of a file's bytes."""
    return hashlib.sha256(raw).hexdigest()
