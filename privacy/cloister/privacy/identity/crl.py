"""``tls/crl.pem``: the TLS certificates that were taken back, as nginx reads them (X.509), put in place only of an older list."""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from cloister.core.errors import IntegrityError
from cloister.core.files import write_whole
from cloister.privacy.identity.documents import read_document

__all__ = ["CRL", "take_crl"]

#: The file in the server's kit.
CRL = "tls/crl.pem"


def take_crl(folder: Path, raw: bytes) -> int:
    """Put a list of revoked TLS certificates into the server's kit, and return its number.

    Raises:
        IntegrityError: (document, document-old) the kit's TLS root did not sign it, or it is older than the one that is there.
        StorageError: it cannot be written.
    """
    try:
        root = x509.load_pem_x509_certificate(read_document(folder / "tls" / "root.pem"))
        key = root.public_key()
        good = x509.load_pem_x509_crl(raw).is_signature_valid(key)  # type: ignore[arg-type]
        number = _number(raw)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        good, number = False, 0
    if not good:
        raise IntegrityError(
            "the list of revoked TLS certificates is not of this consortium",
            remedy="take crl.pem from the consortium's folder 'public'",
            code="document",
        )
    before = folder / CRL
    if before.is_file() and number < _number(read_document(before)):
        raise IntegrityError(
            f"the list of revoked TLS certificates, number {number}, is older than the one that is here",
            remedy="ask the consortium for its newest one",
            code="document-old",
        )
    write_whole(before, raw)
    return number


def _number(raw: bytes) -> int:
    return x509.load_pem_x509_crl(raw).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
