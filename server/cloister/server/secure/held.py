"""Keys that the sites of a session hold together (``threshold-bfv``): two exchanges before a sum, and one after it.

===========  =============================================  ====================================================================
exchange     the sites send                                 who is gone after it
===========  =============================================  ====================================================================
hold         the hash of their share of the key             is not asked for a share of the sum
show         the share, signed with all the hashes          is not asked; the others make another key
add, seal    as in `encrypted`                              is not asked; the round is tried again with the others, under another key
open         their partial decryption of the sum            costs the round its sum: the key is of all. It is asked again, with the same sites
===========  =============================================  ====================================================================

What a site checks of all this is said in `cloister.privacy.threshold`. The server adds residues and calls OpenFHE only on what it added up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from flwr.app import ConfigRecord

from cloister.core import protocol
from cloister.core.errors import IntegrityError, PeersMissing
from cloister.privacy.homomorphic import Ciphertexts, Form, SumRequest
from cloister.privacy.homomorphic.lanes import Integers
from cloister.privacy.identity import Consortium
from cloister.privacy.manifest import Manifest
from cloister.privacy.masking import Fields
from cloister.privacy.threshold import (
    KeyShare,
    OpenRequest,
    PublicShares,
    Recounted,
    ShareCommitments,
    agreed_shares,
    check_formed,
    check_share,
    engine,
    fused,
    share_commitment,
)
from cloister.server.courier import Courier
from cloister.server.exchange import Answer
from cloister.server.replies import Refused, check_partial, check_step
from cloister.server.secure.keys import Asking, SessionKey
from cloister.server.secure.manifests import Manifests
from cloister.server.secure.summing import size_of

__all__ = ["HeldKeys"]

_HASH = 32
#: Keys that are begun before the server gives a sum up: each was not made because a site went away meanwhile.
_TRIES = 3


class HeldKeys:
    """Keys of the cohort, which opens the sums.

    Args:
        courier: reaches the sites.
        manifests: numbers this run's sessions.
        consortium: who vouches for the sites.

    Raises:
        SpecError: (threshold-missing) OpenFHE cannot be used here.
    """

    def __init__(self, courier: Courier, manifests: Manifests, consortium: Consortium) -> None:
        self._courier = courier
        self._manifests = manifests
        self._consortium = consortium
        engine().check()

    def begin(self, asking: Asking, cohort: list[int]) -> SessionKey:
        """Return a key of those of the cohort that are there.

        Raises:
            PeersMissing: they are too few, or some go away each time.
        """
        for _ in range(_TRIES):
            key, cohort = self._made(asking, cohort)
            if key is not None:
                return key
        raise PeersMissing(
            f"{_TRIES} keys were begun, and each time a site was gone before it was made",
            remedy="find out which sites come and go, and leave them out",
        )

    def check(self, manifest: Manifest, name: str, container: bytes) -> None:
        """Check that each ciphertext comes with a proof that it is well formed: the sites will not help to open one that does not.

        Raises:
            IntegrityError: (ciphertext-proof and others) one does not.
        """
        ciphertexts = Ciphertexts.read(container, Form.of(manifest))
        check_formed(ciphertexts, run=manifest.run, serial=manifest.serial, name=name)

    def open(self, asking: Asking, key: SessionKey, request: SumRequest) -> Integers:
        """Return what all holders together decrypt.

        Raises:
            PeersMissing: one of them is not there, or refuses.
            IntegrityError: a partial decryption does not hold, or the sum is out of range.
        """
        sum_, found = Recounted.of(request, self._consortium, formed=False), {}
        fields = OpenRequest.of(request).to_fields()
        for name, answer in self._ask(asking, key.cohort, protocol.OPEN, fields):
            part = check_partial(answer, f"cloister.{sum_.manifest.scheme}.partial")
            if isinstance(part, Refused):
                raise PeersMissing(
                    f"'{name}' holds a share of the session's key and did not help to open the sum ({part})",
                    remedy="bring it back, and go on with the same sites; if it does not come back, begin a new run: the others open no second sum of this round",
                )
            asking.heard.bytes_up += len(part)
            found[name] = part
        return fused(sum_, found, engine())

    def _made(self, asking: Asking, cohort: list[int]) -> tuple[SessionKey | None, list[int]]:
        """Return the key, or ``None`` where somebody went away; and who is still there."""
        run, serial = self._manifests.run, self._manifests.next_serial()
        commitments: dict[str, bytes] = {}
        for name, answer in self._ask(
            asking, cohort, protocol.HOLD, {protocol.SERIAL: serial, "kind": asking.kind}
        ):
            digest = _commitment(answer)
            if isinstance(digest, Refused):
                asking.heard.lost(name, answer, digest)
            else:
                commitments[name] = digest
        there = self._enough(asking, cohort, commitments.keys())
        names = tuple(sorted(commitments))
        told = ShareCommitments(names=names, digests=tuple(commitments[name] for name in names))
        key_id = agreed_shares(commitments, run=run, serial=serial)
        shown: dict[str, KeyShare] = {}
        for name, answer in self._ask(asking, there, protocol.SHOW, told.to_fields()):
            share = self._share(name, answer, commitments[name], serial=serial, key_id=key_id)
            if isinstance(share, Refused):
                asking.heard.lost(name, answer, share)
            else:
                shown[name] = share
        if len(shown) < len(there):
            return None, self._enough(asking, there, shown.keys())
        fields = PublicShares.of(shown).to_fields()
        nbytes = sum(len(one.share) + len(one.proof) + len(one.certificate) for one in shown.values())
        asking.heard.bytes_up += nbytes
        return (
            SessionKey(serial=serial, key_id=key_id, cohort=there, fields=fields, nbytes=nbytes),
            there,
        )

    def _share(
        self, name: str, answer: Answer, digest: bytes, *, serial: int, key_id: str
    ) -> KeyShare | Refused:
        said = check_step(answer)
        if isinstance(said, Refused):
            return said
        try:
            share = KeyShare.from_fields(said)
            found = share_commitment(share.share, run=self._manifests.run, serial=serial, name=name)
            check_share(
                name,
                share,
                found,
                self._consortium,
                run=self._manifests.run,
                serial=serial,
                key_id=key_id,
            )
        except IntegrityError as error:
            return Refused(error.code, error.message)
        return share if found == digest else Refused("key-share", "it is not what it committed to")

    def _enough(self, asking: Asking, cohort: list[int], names: Collection[str]) -> list[int]:
        """Return those of the cohort that are named, if they are enough."""
        least = self._manifests.least(asking.kind)
        if len(names) < least:
            raise PeersMissing(
                f"{len(names)} sites hold a share of the key, and a sum of fewer than {least} is not opened",
                remedy="ask more sites, or wait longer for them",
            )
        return [
            position
            for position, name in zip(cohort, self._courier.names(cohort), strict=True)
            if name in names
        ]

    def _ask(
        self, asking: Asking, cohort: list[int], step: str, fields: Fields
    ) -> Iterator[tuple[str, Answer]]:
        record = ConfigRecord({protocol.STEP: step, **fields})
        asking.heard.bytes_down += len(cohort) * size_of(fields)
        return self._courier.ask(
            protocol.SECURE_QUERY,
            asking.number,
            cohort,
            told=asking.told,
            secure=lambda _: record,
            phase=asking.kind,
        )


def _commitment(answer: Answer) -> bytes | Refused:
    said = check_step(answer)
    if isinstance(said, Refused):
        return said
    digest = said.get(protocol.COMMITMENT)
    if set(said) != {protocol.COMMITMENT} or not isinstance(digest, bytes) or len(digest) != _HASH:
        return Refused("wrong-records", f"expected a commitment of {_HASH} bytes")
    return digest
