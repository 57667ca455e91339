"""Sums under homomorphic encryption: two exchanges with a cohort, between those that make a key and those that open the sum (`keys`).

===========  =============================================  ================================================
exchange     the sites send                                 who is gone after it
===========  =============================================  ================================================
add          the hash of their ciphertext                   is not in the sum
seal         the ciphertext, signed with all the hashes     is not in the sum
===========  =============================================  ================================================

Why hashes go first is said in `cloister.privacy.homomorphic.sealed`. Each session has a key of its own, which opens one sum.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ConfigRecord

from cloister.core import protocol
from cloister.core.errors import IntegrityError, PeersMissing, PolicyError
from cloister.core.update import Vector
from cloister.privacy.homomorphic import Sealed, ServerSum
from cloister.privacy.manifest import Manifest, SumKind
from cloister.server.courier import Courier
from cloister.server.exchange import Answer
from cloister.server.plan import SecureSeat
from cloister.server.replies import CheckedUpdate, Refused, check_ciphertext, check_commitment
from cloister.server.secure.keys import Asking, Keys, SessionKey
from cloister.server.secure.manifests import Manifests
from cloister.server.secure.summing import Given, Heard, Summed

__all__ = ["EncryptedSums"]


class EncryptedSums:
    """Sums under encryption.

    Args:
        courier: reaches the sites.
        manifests: makes this run's manifests.
        seat: who the server is.
        keys: where a session's key comes from, and who opens its sum.
    """

    def __init__(
        self,
        courier: Courier,
        manifests: Manifests,
        seat: SecureSeat,
        keys: Keys,
    ) -> None:
        self._courier = courier
        self._manifests = manifests
        self._seat = seat
        self._keys = keys

    def sum(
        self,
        kind: SumKind,
        number: int,
        cohort: list[int],
        *,
        vectors: Mapping[str, Vector],
        clip: float | None,
        given: Given,
    ) -> Summed:
        """Run one session: see `Summing`."""
        heard = Heard()
        told = {} if not clip else {protocol.CLIP: clip}
        asking = Asking(kind=kind, number=number, told=told, heard=heard)
        try:
            key = self._keys.begin(asking, cohort)
        except PeersMissing as error:
            return Summed(values={}, count=0, heard=heard, why=error.message)
        names = self._courier.names(key.cohort)
        manifest = self._manifests.make(
            kind,
            number,
            names,
            vectors=vectors,
            clip=clip,
            graph=(len(names) - 1, 2),  # no shares: nothing is unmasked
            serial=key.serial,
            key=key.key_id,
        )
        try:
            sums = self._collected(manifest, key, vectors=vectors, given=given, asking=asking)
            request = sums.total(self._seat.identity)
        except (PeersMissing, IntegrityError, PolicyError) as error:
            return Summed(values={}, count=0, heard=heard, why=error.message)
        again = sums.names if self._keys.joint else ()
        if self._keys.joint and len(again) < len(names):
            why = f"{len(names) - len(again)} of the {len(names)} sites that hold the session's key sent nothing to sum, and they open a sum of all of them or none"
            return Summed(values={}, count=0, heard=heard, why=why, tried=again)
        try:
            total = self._keys.open(asking, key, request)
        except (PeersMissing, IntegrityError, PolicyError) as error:
            return Summed(values={}, count=0, heard=heard, why=error.message, tried=again)
        code = self._manifests.code(kind, most=len(names), clip=clip)
        count = len(sums.names)
        return Summed(values=code.decode(total, count=count), count=count, heard=heard)

    def _collected(
        self,
        manifest: Manifest,
        key: SessionKey,
        *,
        vectors: Mapping[str, Vector],
        given: Given,
        asking: Asking,
    ) -> ServerSum:
        """Have the sites compute and commit, then send what they committed to."""
        signed, heard = manifest.signed(self._seat.identity), asking.heard
        positions = dict(zip(self._courier.names(key.cohort), key.cohort, strict=True))
        sums = ServerSum(signed, positions, self._seat.consortium)
        step = ConfigRecord({protocol.STEP: protocol.ADD, **key.fields, **signed.to_fields()})
        nbytes = sum(vector.nbytes for vector in vectors.values())
        heard.bytes_down += len(positions) * (nbytes + len(self._courier.federation) + key.nbytes)
        committed: list[str] = []
        for name, answer in self._courier.ask(
            manifest.kind,
            manifest.round_number,
            list(positions.values()),
            vectors=vectors,
            told=asking.told,
            secure=lambda _: step,
        ):
            digest, checked = check_commitment(answer)
            checked = given(name, answer, checked)
            if isinstance(checked, CheckedUpdate):
                sums.commit(name, digest)
                committed.append(name)
            else:
                heard.lost(name, answer, checked)
        together = ConfigRecord({protocol.STEP: protocol.SEAL, protocol.TOGETHER: sums.agree()})
        for name, answer in self._courier.ask(
            protocol.SECURE_QUERY,
            manifest.round_number,
            [positions[name] for name in committed],
            told=asking.told,
            secure=lambda _: together,
            phase=manifest.kind,
        ):
            self._take(sums, manifest.scheme, name, answer, heard)
        return sums

    @staticmethod
    def _take(sums: ServerSum, scheme: str, name: str, answer: Answer, heard: Heard) -> None:
        found = check_ciphertext(answer, f"cloister.{scheme}")
        if isinstance(found, Refused):
            heard.lost(name, answer, found)
            return
        container, signature, certificate = found
        try:
            sums.take(name, Sealed(container=container, signature=signature, certificate=certificate))
        except IntegrityError as error:
            heard.lost(name, answer, Refused(error.code, error.message))
        else:
            heard.bytes_up += len(container)
