"""Sums under homomorphic encryption: two exchanges with a cohort, one with the key authority.

===========  =============================================  ================================================
exchange     the sites send                                 who is gone after it
===========  =============================================  ================================================
add          the hash of their ciphertext                   is not in the sum
seal         the ciphertext, signed with all the hashes     is not in the sum
===========  =============================================  ================================================

Why hashes go first is said in `cloister.privacy.homomorphic.sealed`. The authority gives each session a key of its own and opens one sum with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from flwr.app import ConfigRecord

from cloister.core import protocol
from cloister.core.errors import IntegrityError, PeersMissing, PolicyError
from cloister.core.update import Vector
from cloister.privacy.homomorphic import PublicKey, Sealed, ServerSum
from cloister.privacy.manifest import Manifest, SumKind
from cloister.server.courier import Courier
from cloister.server.exchange import Answer
from cloister.server.plan import Opener, SecureSeat
from cloister.server.replies import CheckedUpdate, Refused, check_ciphertext, check_commitment
from cloister.server.secure.manifests import Manifests
from cloister.server.secure.summing import Given, Heard, Summed

__all__ = ["EncryptedSums"]


class EncryptedSums:
    """Sums under encryption.

    Args:
        courier: reaches the sites.
        manifests: makes this run's manifests.
        seat: who the server is.
        authority: holds the keys.
        scheme: how values are encrypted.
    """

    def __init__(
        self,
        courier: Courier,
        manifests: Manifests,
        seat: SecureSeat,
        authority: Opener,
        scheme: Literal["bfv", "ckks"],
    ) -> None:
        self._courier = courier
        self._manifests = manifests
        self._seat = seat
        self._authority = authority
        self._scheme: Literal["bfv", "ckks"] = scheme

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
        names, heard = self._courier.names(cohort), Heard()
        serial = self._manifests.next_serial()
        key = self._authority.public(self._manifests.run, serial, self._scheme)
        manifest = self._manifests.make(
            kind,
            number,
            names,
            vectors=vectors,
            clip=clip,
            graph=(len(names) - 1, 2),  # no shares: nothing is unmasked
            serial=serial,
            key=PublicKey.read(key, self._seat.consortium).key_id,
        )
        positions = dict(zip(names, cohort, strict=True))
        try:
            sums = self._collected(manifest, key, positions, vectors=vectors, given=given, heard=heard)
            total = self._authority.decrypt(sums.total(self._seat.identity))
        except (PeersMissing, IntegrityError, PolicyError) as error:
            return Summed(values={}, count=0, heard=heard, why=error.message)
        code = self._manifests.code(kind, most=len(names), clip=clip)
        count = len(sums.names)
        return Summed(values=code.decode(total, count=count), count=count, heard=heard)

    def _collected(
        self,
        manifest: Manifest,
        key: bytes,
        positions: dict[str, int],
        *,
        vectors: Mapping[str, Vector],
        given: Given,
        heard: Heard,
    ) -> ServerSum:
        """Have the sites compute and commit, then send what they committed to."""
        signed = manifest.signed(self._seat.identity)
        sums = ServerSum(signed, positions, self._seat.consortium)
        told = {} if not manifest.clip else {protocol.CLIP: manifest.clip}
        step = ConfigRecord({protocol.STEP: protocol.ADD, protocol.KEY: key, **signed.to_fields()})
        nbytes = sum(vector.nbytes for vector in vectors.values())
        heard.bytes_down += len(positions) * (nbytes + len(self._courier.federation) + len(key))
        committed: list[str] = []
        for name, answer in self._courier.ask(
            manifest.kind,
            manifest.round_number,
            list(positions.values()),
            vectors=vectors,
            told=told,
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
            told=told,
            secure=lambda _: together,
            phase=manifest.kind,
        ):
            self._take(sums, name, answer, heard)
        return sums

    def _take(self, sums: ServerSum, name: str, answer: Answer, heard: Heard) -> None:
        found = check_ciphertext(answer, f"cloister.{self._scheme}")
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
