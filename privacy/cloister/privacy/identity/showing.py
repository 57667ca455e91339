"""What ``cloister kit show`` says of a kit: read with the very checks that a run makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cryptography import x509

from cloister.core.errors import IntegrityError
from cloister.privacy.identity.kit import load_kit
from cloister.privacy.identity.members import Role
from cloister.privacy.identity.register import read_revoked

__all__ = ["shown"]


def shown(folder: Path) -> dict[str, Any]:
    """Return who a kit is of, until when it holds, and the numbers of its lists.

    Raises:
        IntegrityError: it does not hold; see `load_kit`.
    """
    refused: IntegrityError | None = None
    for role in Role:
        try:
            kit = load_kit(folder, role)
        except IntegrityError as error:
            if refused is None or "is needed" not in error.message:
                refused = error
            continue
        parsed = x509.load_der_x509_certificate(kit.identity.certificate)
        ends = [parsed.not_valid_after_utc]
        if kit.certificate.is_file():
            ends.append(x509.load_pem_x509_certificate(kit.certificate.read_bytes()).not_valid_after_utc)
        revoked = read_revoked(folder, kit.consortium)
        return {
            "folder": str(folder),
            "role": role.value,
            "name": kit.identity.name,
            "consortium": kit.consortium.name,
            "fingerprint": kit.consortium.fingerprint,
            "expires": min(ends).isoformat(),
            "members": kit.members().number,
            "revoked": None if revoked is None else revoked.number,
        }
    assert refused is not None
    raise refused
