"""Sums under masks: drives a session of `cloister.privacy.masking` through five exchanges with a cohort.

===========  ====================================  ==================================================================
exchange     the sites send                        who is gone after it
===========  ====================================  ==================================================================
advert       signed keys                           is not in the session
share        sealed shares of their secrets        the same; none of the others masks for them
add          their vector under masks              is not in the sum; the others' shares take the masks off
confirm      a signature of who is in the sum      is in the sum; so many must remain that shares suffice
reveal       one share for each of the others      is in the sum
===========  ====================================  ==================================================================

``add`` is the training (or measuring) message itself, so one exchange more than four would be needed in any protocol that trains between sharing
and unmasking. Why no two of the five can be one is said in `cloister.privacy.masking`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flwr.app import ConfigRecord

from cloister.core import protocol
from cloister.core.errors import IntegrityError, PeersMissing
from cloister.core.update import Vector
from cloister.privacy.manifest import Manifest, SumKind
from cloister.privacy.masking import Refusal, ServerSession, parameters
from cloister.privacy.updates import centred
from cloister.server.courier import Courier
from cloister.server.plan import SecureSeat
from cloister.server.replies import CheckedUpdate, Refused, Wanted, check_step, check_update
from cloister.server.secure.manifests import Manifests
from cloister.server.secure.summing import Given, Heard, Summed

__all__ = ["MaskedSums"]

_Fields = Mapping[str, Any]


class MaskedSums:
    """Sums under masks.

    Args:
        courier: reaches the sites.
        manifests: makes this run's manifests.
        seat: who the server is.
    """

    def __init__(self, courier: Courier, manifests: Manifests, seat: SecureSeat) -> None:
        self._courier = courier
        self._manifests = manifests
        self._seat = seat

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
        names = self._courier.names(cohort)
        manifest = self._manifests.make(
            kind, number, names, vectors=vectors, clip=clip, graph=parameters(len(names))
        )
        run = _Session(self._courier, manifest, self._seat, dict(zip(names, cohort, strict=True)), clip=clip)
        try:
            run.set_up()
            run.add(vectors, given)
            total = run.unmask()
        except (PeersMissing, IntegrityError) as error:
            return Summed(values={}, count=0, heard=run.heard, why=error.message)
        code = self._manifests.code(kind, most=len(names), clip=clip)
        count = len(run.session.survivors().names)
        return Summed(values=code.decode(total, count=count), count=count, heard=run.heard)


class _Session:
    """One session under way."""

    def __init__(
        self,
        courier: Courier,
        manifest: Manifest,
        seat: SecureSeat,
        positions: dict[str, int],
        *,
        clip: float | None,
    ) -> None:
        self._courier = courier
        self._manifest = manifest
        self._positions = positions
        self._told = {} if clip is None else {protocol.CLIP: clip}
        self._signed = manifest.signed(seat.identity)
        self.session = ServerSession(manifest, self._signed, seat.consortium, list(positions))
        self.heard = Heard()

    def set_up(self) -> None:
        """Exchange keys and shares."""
        session = self.session
        self._query(
            protocol.ADVERT,
            tuple(self._positions),
            lambda _: self._signed.to_fields(),
            session.take_advert,
        )
        self._query(
            protocol.SHARE,
            session.end_adverts(),
            lambda name: session.roster_for(name).to_fields(),
            session.take_shares,
        )

    def add(self, vectors: Mapping[str, Vector], given: Given) -> None:
        """Have the sites compute, and take what they made under masks."""
        session, kind = self.session, self._manifest.kind
        names = session.end_shares()
        nbytes = sum(vector.nbytes for vector in vectors.values())
        self.heard.bytes_down += len(names) * (nbytes + len(self._courier.federation))
        wanted = {protocol.SUM: Wanted(size=self._manifest.size, dtype="uint32")}
        for name, answer in self._courier.ask(
            kind,
            self._manifest.round_number,
            [self._positions[name] for name in names],
            vectors=vectors,
            told=self._told,
            secure=lambda name: _record(protocol.ADD, session.deliveries_for(name).to_fields()),
        ):
            checked = given(name, answer, check_update(answer, wanted=wanted, private=True))
            if isinstance(checked, CheckedUpdate):
                refused = session.take_masked(name, checked.arrays[protocol.SUM])
                if refused is None:
                    self.heard.bytes_up += checked.nbytes
                    continue
                checked = Refused(*refused)
            self.heard.lost(name, answer, checked)

    def unmask(self) -> Any:
        """Have the sites agree on who is in the sum, and unmask it; return the centred sum."""
        session = self.session
        self._query(
            protocol.CONFIRM,
            session.end_masked(),
            lambda _: session.survivors().to_fields(),
            session.take_confirmation,
        )
        self._query(
            protocol.REVEAL,
            session.end_confirmations(),
            lambda _: session.confirmations().to_fields(),
            session.take_reveal,
        )
        return centred(session.result(), self._manifest.modulus_bits)

    def _query(
        self,
        step: str,
        names: Sequence[str],
        asked: Callable[[str], _Fields],
        take: Callable[[str, _Fields], Refusal | None],
    ) -> None:
        """Ask ``names`` for one step; who does not answer it well is lost to the session."""
        for name, answer in self._courier.ask(
            protocol.SECURE_QUERY,
            self._manifest.round_number,
            [self._positions[name] for name in names],
            told=self._told,
            secure=lambda name: _record(step, asked(name)),
            phase=self._manifest.kind,
        ):
            fields = check_step(answer)
            if isinstance(fields, Refused):
                self.heard.lost(name, answer, fields)
                continue
            self.heard.bytes_up += _size(fields)
            refused = take(name, fields)
            if refused is not None:
                self.heard.lost(name, answer, Refused(*refused))


def _record(step: str, fields: _Fields) -> ConfigRecord:
    return ConfigRecord({protocol.STEP: step, **fields})


def _size(fields: _Fields) -> int:
    return sum(_bytes(value) for value in fields.values())


def _bytes(value: Any) -> int:
    if isinstance(value, bytes | str):
        return len(value)
    return sum(map(_bytes, value)) if isinstance(value, list) else 8
