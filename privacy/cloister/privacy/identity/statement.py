"""A signed statement as it travels: its bytes, a member's signature over them, and that member's certificate.

Each kind of statement says by whom it must be signed, as what, and under which name it stands in a message.

Formal guarantee: `Statement.signer` returns a member only if a member of the right role signed exactly these bytes for this purpose.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from cloister.core.errors import IntegrityError
from cloister.privacy.identity.members import Consortium, Identity, Member, Purpose, Role

__all__ = ["Statement"]


@dataclass(frozen=True, kw_only=True)
class Statement(ABC):
    """A signed statement.

    Attributes:
        encoded: what was signed.
        signature: over it.
        certificate: the signer's, DER.
    """

    encoded: bytes
    signature: bytes
    certificate: bytes

    FIELD: ClassVar[str]
    PURPOSE: ClassVar[Purpose]
    ROLE: ClassVar[Role]

    @classmethod
    def by(cls, signer: Identity, encoded: bytes) -> Self:
        """Return ``encoded`` with the signature of ``signer``."""
        return cls(
            encoded=encoded, signature=signer.sign(cls.PURPOSE, encoded), certificate=signer.certificate
        )

    def to_fields(self) -> dict[str, bytes]:
        """Return it as a message holds it."""
        return {self.FIELD: self.encoded, "signature": self.signature, "certificate": self.certificate}

    @classmethod
    def from_fields(cls, fields: Mapping[str, object]) -> Self:
        """Read it from a message.

        Raises:
            IntegrityError: it is not there; of the code and words of its kind.
        """
        encoded, signature, certificate = (
            fields.get(name) for name in (cls.FIELD, "signature", "certificate")
        )
        if isinstance(encoded, bytes) and isinstance(signature, bytes) and isinstance(certificate, bytes):
            return cls(encoded=encoded, signature=signature, certificate=certificate)
        raise cls.unfit("it is not there")

    def signer(self, consortium: Consortium) -> Member:
        """Return who signed it, checked.

        Raises:
            IntegrityError: (identity, signature) no member of the role that may did.
        """
        member = consortium.member(self.certificate, role=self.ROLE)
        member.check(self.PURPOSE, self.encoded, self.signature)
        return member

    @classmethod
    @abstractmethod
    def unfit(cls, why: str) -> IntegrityError:
        """Return the refusal of a statement of this kind."""
