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

Several sessions of sites of their own (groups) go through the exchanges side by side, one message a site in each: they take no longer than one, and
one that ends early leaves the others as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import ConfigRecord

from cloister.core import protocol
from cloister.core.errors import IntegrityError, PeersMissing
from cloister.core.update import Vector
from cloister.privacy.manifest import Manifest, SumKind
from cloister.privacy.masking import Refusal, ServerSession, parameters
from cloister.privacy.updates import centred
from cloister.server.courier import Courier
from cloister.server.exchange import Answer
from cloister.server.plan import SecureSeat
from cloister.server.replies import CheckedUpdate, Refused, Wanted, check_step, check_update
from cloister.server.secure.manifests import Manifests
from cloister.server.secure.summing import Given, Heard, Summed, size_of

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
        (only,) = self.sums(kind, number, {0: cohort}, vectors=vectors, clip=clip, given=given).values()
        return only

    def sums(
        self,
        kind: SumKind,
        number: int,
        cohorts: Mapping[int, Sequence[int]],
        *,
        vectors: Mapping[str, Vector],
        clip: float | None,
        given: Given,
    ) -> dict[int, Summed]:
        """Run one session for each group of sites, all at once, and return what each came to.

        Args:
            kind: what is summed.
            number: the round.
            cohorts: by group, its positions in the directory; no site is in two.
            vectors: what the sites are sent.
            clip: the round's clip, where it adapts.
            given: is told of each share.
        """
        sessions = {}
        for group, cohort in cohorts.items():
            names = self._courier.names(list(cohort))
            manifest = self._manifests.make(
                kind,
                number,
                names,
                vectors=vectors,
                clip=clip,
                graph=parameters(len(names)),
                group=group,
            )
            sessions[group] = _Session(manifest, self._seat, dict(zip(names, cohort, strict=True)))
        run = _Exchanges(self._courier, kind, number, tuple(sessions.values()), clip=clip)
        run.set_up()
        run.add(vectors, given)
        run.agree()
        return {group: self._opened(session, clip) for group, session in sessions.items()}

    def _opened(self, one: _Session, clip: float | None) -> Summed:
        total = one.total()
        if total is None:
            return Summed(
                values={},
                count=0,
                heard=one.heard,
                why=one.why,
                suspects=one.session.suspects,
                tried=one.tried,
            )
        manifest, count = one.manifest, len(one.session.survivors().names)
        code = self._manifests.code(manifest.kind, most=manifest.cohort_size, clip=clip)
        return Summed(values=code.decode(total, count=count), count=count, heard=one.heard, tried=one.tried)


class _Session:
    """One session under way."""

    def __init__(self, manifest: Manifest, seat: SecureSeat, positions: dict[str, int]) -> None:
        self.manifest = manifest
        self.positions = positions
        self.signed = manifest.signed(seat.identity)
        self.session = ServerSession(manifest, self.signed, seat.consortium, list(positions))
        self.heard = Heard()
        self.over = False
        self.why = ""
        self.tried: tuple[str, ...] = ()

    def going_on(self, end: Callable[[ServerSession], tuple[str, ...]]) -> tuple[str, ...]:
        """End a phase and return who goes on; nobody where too few are left."""
        if self.over:
            return ()
        try:
            return end(self.session)
        except (PeersMissing, IntegrityError) as error:
            self.over, self.why = True, error.message
            return ()

    def total(self) -> Any:
        """Return the centred sum, or ``None``."""
        if self.over:
            return None
        self.tried = self.session.survivors().names
        try:
            return centred(self.session.result(), self.manifest.modulus_bits)
        except (PeersMissing, IntegrityError) as error:
            self.over, self.why = True, error.message
            return None


class _Exchanges:
    """The exchanges that some sessions share.

    Args:
        courier: reaches the sites.
        kind: what is summed.
        number: the round.
        sessions: of sites of their own.
        clip: the round's clip, where it adapts.
    """

    def __init__(
        self,
        courier: Courier,
        kind: SumKind,
        number: int,
        sessions: Sequence[_Session],
        *,
        clip: float | None,
    ) -> None:
        self._courier, self._kind, self._number = courier, kind, number
        self._sessions = sessions
        self._told = {} if clip is None else {protocol.CLIP: clip}

    def set_up(self) -> None:
        """Exchange keys and shares."""
        self._query(
            protocol.ADVERT,
            {one: tuple(one.positions) for one in self._sessions},
            lambda one, _: one.signed.to_fields(),
            ServerSession.take_advert,
        )
        self._query(
            protocol.SHARE,
            self._left(ServerSession.end_adverts),
            lambda one, name: one.session.roster_for(name).to_fields(),
            ServerSession.take_shares,
        )

    def add(self, vectors: Mapping[str, Vector], given: Given) -> None:
        """Have the sites compute, and take what they made under masks."""
        nbytes = sum(vector.nbytes for vector in vectors.values()) + len(self._courier.federation)
        asked = self._left(ServerSession.end_shares)
        for one, names in asked.items():
            one.heard.bytes_down += len(names) * nbytes
        answers = self._ask(
            self._kind,
            asked,
            lambda one, name: _record(protocol.ADD, one.session.deliveries_for(name).to_fields()),
            vectors=vectors,
        )
        for one, name, answer in answers:
            wanted = {protocol.SUM: Wanted(size=one.manifest.size, dtype="uint32")}
            checked = given(name, answer, check_update(answer, wanted=wanted, private=True))
            if isinstance(checked, CheckedUpdate):
                refused = one.session.take_masked(name, checked.arrays[protocol.SUM])
                if refused is None:
                    one.heard.bytes_up += checked.nbytes
                    continue
                checked = Refused(*refused)
            one.heard.lost(name, answer, checked)

    def agree(self) -> None:
        """Have the sites agree on who is in each sum, and reveal their shares."""
        self._query(
            protocol.CONFIRM,
            self._left(ServerSession.end_masked),
            lambda one, _: one.session.survivors().to_fields(),
            ServerSession.take_confirmation,
        )
        self._query(
            protocol.REVEAL,
            self._left(ServerSession.end_confirmations),
            lambda one, _: one.session.confirmations().to_fields(),
            ServerSession.take_reveal,
        )

    def _left(self, end: Callable[[ServerSession], tuple[str, ...]]) -> dict[_Session, tuple[str, ...]]:
        """End a phase of every session and return who goes on in each."""
        return {one: names for one in self._sessions if (names := one.going_on(end))}

    def _query(
        self,
        step: str,
        asked: Mapping[_Session, tuple[str, ...]],
        said: Callable[[_Session, str], _Fields],
        take: Callable[[ServerSession, str, _Fields], Refusal | None],
    ) -> None:
        """Ask for one step; who does not answer it well is lost to its session."""
        answers = self._ask(
            protocol.SECURE_QUERY, asked, lambda one, name: _record(step, said(one, name)), phase=self._kind
        )
        for one, name, answer in answers:
            fields = check_step(answer)
            if isinstance(fields, Refused):
                one.heard.lost(name, answer, fields)
                continue
            one.heard.bytes_up += size_of(fields)
            refused = take(one.session, name, fields)
            if refused is not None:
                one.heard.lost(name, answer, Refused(*refused))

    def _ask(
        self,
        kind: str,
        asked: Mapping[_Session, tuple[str, ...]],
        said: Callable[[_Session, str], ConfigRecord],
        *,
        vectors: Mapping[str, Vector] | None = None,
        phase: str = "",
    ) -> Iterator[tuple[_Session, str, Answer]]:
        """Send one message to each site of ``asked`` and yield its session, its name and the answer, in the directory's order."""
        session_of = {name: one for one, names in asked.items() for name in names}
        if not session_of:
            return
        positions = sorted(one.positions[name] for name, one in session_of.items())
        for name, answer in self._courier.ask(
            kind,
            self._number,
            positions,
            vectors=vectors or {},
            told=self._told,
            secure=lambda name: said(session_of[name], name),
            phase=phase,
            apart=tuple(asked.values()),
        ):
            yield session_of[name], name, answer


def _record(step: str, fields: _Fields) -> ConfigRecord:
    return ConfigRecord({protocol.STEP: step, **fields})
