"""The public key of one session, as the key authority hands it out.

A key is for one sum: for one (run, serial) and one cohort, all of which must be in it, and destroyed when that sum is decrypted. Sums of one key are never many, so nothing that was
encrypted in one session can be slipped into another, and no one can probe a key by having it decrypt again and again.

It comes to the sites through the server, which must not be able to put its own in the place: the authority signs it, and the
consortium certifies the authority in a role of its own.

Formal guarantee: `PublicKey.read` returns only what the consortium's key authority signed, with the scheme, run, serial and cohort that it signed.

==========================================  ===================================================
case                                        outcome
==========================================  ===================================================
another form, longer than 1 MiB             ``IntegrityError`` (public-key)
signed by the server, by a site             ``IntegrityError`` (identity)
changed, or of another run or serial        ``IntegrityError`` (signature, ciphertext-key)
==========================================  ===================================================
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from cloister.core.errors import IntegrityError
from cloister.privacy.homomorphic.frames import framed, unframed
from cloister.privacy.homomorphic.parameters import Parameters, parameters_of
from cloister.privacy.identity import Consortium, Identity, Purpose, Role
from cloister.privacy.manifest import Manifest

__all__ = ["PublicKey", "key_refused"]

_MOST = 1 << 20
_LABEL = b"cloister public key 2"


@dataclass(frozen=True, kw_only=True)
class PublicKey:
    """A key that values of one session are encrypted under.

    Attributes:
        scheme: ``bfv`` or ``ckks``.
        run: the session's run.
        serial: the session's number in its run.
        cohort: `cohort_digest` of the sites whose sum it is for.
        context: TenSEAL's public context, serialised.
    """

    scheme: str
    run: str
    serial: int
    cohort: str
    context: bytes

    @cached_property
    def key_id(self) -> str:
        """SHA-256 (hex) over all of it: what a manifest names."""
        return hashlib.sha256(self._signed).hexdigest()

    @property
    def parameters(self) -> Parameters:
        """The scheme's parameters."""
        return parameters_of(self.scheme)

    @property
    def _signed(self) -> bytes:
        session = [self.scheme, self.run, str(self.serial), self.cohort]
        return framed([*(part.encode() for part in session), self.context])

    def signed(self, authority: Identity) -> bytes:
        """Return it as the authority hands it out."""
        signature = authority.sign(Purpose.KEY, self._signed)
        return framed([_LABEL, self._signed, signature, authority.certificate])

    @classmethod
    def read(cls, data: bytes, consortium: Consortium) -> PublicKey:
        """Return the key in what `signed` made.

        Raises:
            IntegrityError: (public-key, identity, identity-revoked, signature) the consortium's authority did not hand this out.
            SpecError: (protection-scheme) it is of a scheme that this version does not know.
        """
        try:
            label, inner, signature, certificate = unframed(data, count=4, most=_MOST)
            scheme, run, serial, cohort, context = unframed(inner, count=5, most=_MOST)
            made = cls(
                scheme=scheme.decode(),
                run=run.decode(),
                serial=int(serial),
                cohort=cohort.decode(),
                context=context,
            )
        except ValueError:
            label, made = b"", None
        if made is None or label != _LABEL or made._signed != inner:  # noqa: SLF001 - its own class
            raise IntegrityError(
                "the public key cannot be read",
                remedy="fetch it again from the key authority",
                code="public-key",
            )
        authority = consortium.member(certificate, role=Role.AUTHORITY)
        authority.check(Purpose.KEY, inner, signature)
        parameters_of(made.scheme)
        return made

    def check(self, manifest: Manifest) -> None:
        """Check that this is the key of the session of ``manifest``.

        Raises:
            IntegrityError: (ciphertext-key) it is another's.
        """
        if (manifest.scheme, manifest.run, manifest.serial, manifest.key, manifest.cohort) != (
            self.scheme,
            self.run,
            self.serial,
            self.key_id,
            self.cohort,
        ):
            raise key_refused(
                f"the key {self.key_id[:16]}… is of session {self.serial} of run '{self.run}' ({self.scheme}) over {self.cohort[:16]}…, and the manifest asks for "
                f"{manifest.key[:16]}… of session {manifest.serial} of run '{manifest.run}' ({manifest.scheme}) over {manifest.cohort[:16]}…"
            )


def key_refused(why: str) -> IntegrityError:
    """Return the refusal of a key."""
    return IntegrityError(
        why,
        remedy="have the server fetch a key of this session from the key authority, and begin again",
        code="ciphertext-key",
    )
