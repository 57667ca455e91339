"""Sums under homomorphic encryption: two exchanges with a cohort, between those that make a key and those that open the sum (`keys`).

===========  =============================================  ================================================
exchange     the sites send                                 who is gone after it
===========  =============================================  ================================================
add          the hash of their ciphertext                   costs the session: another begins without it
seal         the ciphertext, signed with all the hashes     costs the session: another begins without it
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

#: How often measurements are asked for, each time of those that were there before.
_TRIES = 3


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
        """Run one session: see `Summing`.

        A sum is of all that a key is for. Where some of them send nothing, a round is tried again by whoever asked, with the others; measurements, which
        cost little and which a site without test records never takes part in, are asked for again here.
        """
        heard = Heard()
        asking = Asking(kind=kind, number=number, told={} if not clip else {protocol.CLIP: clip}, heard=heard)
        there: tuple[str, ...] = ()
        try:
            for _ in range(_TRIES if kind == "evaluate" else 1):
                key = self._keys.begin(asking, cohort)
                names = self._courier.names(key.cohort)
                sums, there = self._collected(
                    key, names, vectors=vectors, clip=clip, given=given, asking=asking
                )
                if len(there) == len(names):
                    total = self._keys.open(asking, key, sums.total(self._seat.identity))
                    code = self._manifests.code(kind, most=len(names), clip=clip)
                    values = code.decode(total, count=len(names))
                    return Summed(values=values, count=len(names), heard=heard)
                cohort = [one for one, name in zip(key.cohort, names, strict=True) if name in there]
                why = f"{len(names) - len(there)} of {len(names)} sites sent nothing to sum, and their key opens a sum of all or none"
        except (PeersMissing, IntegrityError, PolicyError) as error:
            why = error.message
        enough = len(there) >= self._manifests.least(kind)
        return Summed(values={}, count=0, heard=heard, why=why, tried=there if enough else ())

    def _collected(
        self,
        key: SessionKey,
        names: list[str],
        *,
        vectors: Mapping[str, Vector],
        clip: float | None,
        given: Given,
        asking: Asking,
    ) -> tuple[ServerSum, tuple[str, ...]]:
        """Have the sites compute and commit, then, if all have, send what they committed to; return the sum, and who is still there."""
        manifest = self._manifests.make(
            asking.kind,
            asking.number,
            names,
            vectors=vectors,
            clip=clip,
            graph=(len(names) - 1, 2),  # no shares: nothing is unmasked
            serial=key.serial,
            key=key.key_id,
        )
        signed, heard = manifest.signed(self._seat.identity), asking.heard
        positions = dict(zip(names, key.cohort, strict=True))
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
        if len(committed) < len(names):
            return sums, tuple(sorted(committed))
        together = ConfigRecord({protocol.STEP: protocol.SEAL, protocol.TOGETHER: sums.agree()})
        for name, answer in self._courier.ask(
            protocol.SECURE_QUERY,
            manifest.round_number,
            key.cohort,
            told=asking.told,
            secure=lambda _: together,
            phase=manifest.kind,
        ):
            self._take(sums, manifest, name, answer, heard)
        return sums, sums.names

    def _take(self, sums: ServerSum, manifest: Manifest, name: str, answer: Answer, heard: Heard) -> None:
        found = check_ciphertext(answer, f"cloister.{manifest.scheme}")
        if isinstance(found, Refused):
            heard.lost(name, answer, found)
            return
        container, signature, certificate = found
        try:
            self._keys.check(manifest, name, container)
            sums.take(name, Sealed(container=container, signature=signature, certificate=certificate))
        except IntegrityError as error:
            heard.lost(name, answer, Refused(error.code, error.message))
        else:
            heard.bytes_up += len(container)
