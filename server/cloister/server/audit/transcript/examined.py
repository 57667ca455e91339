"""What the examination of one session gives, whatever its scheme, and what a scheme says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from cloister.core.errors import IntegrityError
from cloister.privacy.identity import Consortium, Member, Role
from cloister.privacy.updates.modular import Residues
from cloister.server.audit.transcript.reading import Record
from cloister.server.audit.transcript.sessions import Session

__all__ = ["ConsortiumAt", "Examined", "Looked", "Scheme", "begun"]


class ConsortiumAt(Consortium):
    """A consortium as it was when a session took place: a certificate that has run out since then was good."""

    def __init__(self, certificate: bytes, time: datetime) -> None:
        super().__init__(certificate)
        self._time = time

    def member(self, certificate: bytes, *, role: Role, now: datetime | None = None) -> Member:
        """Return whom ``certificate`` is of, by default at that time."""
        return super().member(certificate, role=role, now=now or self._time)


@dataclass(kw_only=True)
class Examined:
    """What one session shows.

    Attributes:
        signed: whether the consortium's server signed the manifest; else why not.
        unsigned: what else is not signed as it must be, in words.
        refused: (step, site, code) of each message that the server's own code refuses.
        survivors: who is in the sum.
        opened: the sum that opens, modulo 2^modulus_bits; ``None``: none does.
        why: why not.
        seeds: how many shares of its own mask's seed were revealed, by owner.
        keys: the same of its mask key.
        both: of whom shares of both secrets were revealed.
        left: of each vector, how many of its masks (of the keys that open its ciphertexts) stay unknown, by site.
        rests: of each vector, what is left when all known masks are taken away; none where nothing was.
        groups: the sets of sites whose sums open (by the key authority, where it holds the key), and no part of each.
        twice: who sent more than one vector.
        public: the public keys and commitments, by who made them.
    """

    signed: str = ""
    unsigned: list[str] = field(default_factory=list)
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    survivors: tuple[str, ...] = ()
    opened: Residues | None = None
    why: str = ""
    seeds: dict[str, int] = field(default_factory=dict)
    keys: dict[str, int] = field(default_factory=dict)
    both: tuple[str, ...] = ()
    left: dict[str, int] = field(default_factory=dict)
    rests: dict[str, Residues] = field(default_factory=dict)
    groups: tuple[tuple[str, ...], ...] = ()
    twice: tuple[str, ...] = ()
    public: dict[str, tuple[bytes, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How sessions of one scheme are examined, and in which words it is told.

    Attributes:
        examine: gives what a session shows, from its lines, the transcript and the authority's certificate.
        signed: what holds where nothing is wrong with the signatures.
        closed: why no vector opens; ``{least}``: the fewest masks left on one.
        sums: which sums open; ``{sums}`` of them, the ``{smallest}``.
        holder: who alone can open sums, where not the server: they are not computed again.
        trusted: with what the holder is trusted, and on whose side it must not be.
        recorded: where it stands which sums were opened.
        rests_on: what that rests on.
    """

    examine: Callable[[Session, Record, bytes], Examined]
    signed: str
    closed: str
    sums: str
    holder: str = ""
    trusted: str = ""
    recorded: str = ""
    rests_on: str = ""


@dataclass(frozen=True, kw_only=True)
class Looked:
    """A session and what its examination found."""

    session: Session
    found: Examined
    scheme: Scheme


def begun(session: Session, authority: bytes) -> tuple[Consortium, Examined]:
    """Return the consortium as it was, and findings that say whether its server signed the manifest."""
    consortium, found = ConsortiumAt(authority, session.time), Examined()
    try:
        session.signed.opened(consortium)
    except IntegrityError as error:
        found.signed = error.message
    return consortium, found
