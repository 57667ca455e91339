"""The attacker's side of a masked session: what opens with everything that the server received.

The session is played again with the server's own code (`ServerSession`) on the received messages: whoever it refuses now it refused then. Then
the server is taken to be curious: each secret of which enough shares were revealed, by whatever message, is rebuilt, and from each site's vector
every mask that these secrets give is taken away.

Formal guarantees:

- A vector counts as *open* exactly if its own mask and every pairwise mask in it can be computed from the shares that were revealed.
- A sum over some of the sites counts as open exactly if each one's own mask is known and no pairwise mask that is not known leads from one of
  them to another site: masks between two of them cancel. `Examined.groups` are the smallest such sums.
- What is left of each vector that is not open is given on, to be tested against uniform: where a site has left off the masks that cannot be
  taken away, its update stands there in clear.

==============================================  ====================================================
case                                            outcome
==============================================  ====================================================
vectors that were not kept                      the messages are played again without them; no sum
a share that is none, or whose owner is absent  it rebuilds nothing
the session ended early                         ``why`` says where; nothing has opened
==============================================  ====================================================
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cloister.core import protocol
from cloister.core.errors import CloisterError, IntegrityError, PeersMissing
from cloister.privacy.identity import Consortium, Role
from cloister.privacy.masking import Advert, Refusal, ServerSession, keys
from cloister.privacy.masking.graph import neighbours
from cloister.privacy.masking.messages import Roster
from cloister.privacy.masking.rebuilding import Rebuilder
from cloister.privacy.masking.shamir import SHARE
from cloister.privacy.masking.stream import add_streams
from cloister.privacy.updates.modular import Residues
from cloister.server.audit.transcript.examined import Examined, Scheme, begun
from cloister.server.audit.transcript.reading import Received, Record
from cloister.server.audit.transcript.sessions import Session

__all__ = ["MASKED"]


def _examine(session: Session, record: Record, authority: bytes) -> Examined:
    """Play a session again, and try to open what it does not open."""
    consortium, found = begun(session, authority)
    held: dict[str, list[Residues | None]] = defaultdict(list)
    for site, entry in session.vectors():
        held[site].append(record.vector(entry))
    found.twice = tuple(sorted(site for site, several in held.items() if len(several) > 1))
    _replay(session, {site: several[0] for site, several in held.items()}, consortium, found)
    _Attack(session, consortium, found).run({site: several[0] for site, several in held.items()})
    if len(session.named) > 1:
        found.unsigned.append(f"the server named {len(session.named)} different sets of survivors")
    found.unsigned += [
        f"'{site}' signed another set of survivors than the server names ({code})"
        for step, site, code in found.refused
        if step == protocol.CONFIRM and code == "signature"
    ]
    return found


def _replay(
    session: Session, held: Mapping[str, Residues | None], consortium: Consortium, found: Examined
) -> None:
    try:
        server = ServerSession(session.manifest, session.signed, consortium, session.names)
    except ValueError:
        found.why = "the sites that were asked are not the manifest's cohort"
        return
    player = _Player(session, held, server)
    try:
        for step, take, end in player.steps():
            for reply in session.of(step):
                refused = take(reply)
                if refused is not None and protocol.REFUSAL not in reply.records:
                    found.refused.append((step, reply.site, refused.code))
            result = end()
            if step == protocol.ADD:
                found.survivors = server.survivors().names
    except (PeersMissing, IntegrityError) as error:
        found.why = error.message
        return
    if player.complete and isinstance(result, np.ndarray):
        found.opened = result
    else:
        found.why = "the vectors of this session were not kept: its sum cannot be opened again"


@dataclass
class _Player:
    """Hands what was received to the server's own session."""

    session: Session
    held: Mapping[str, Residues | None]
    server: ServerSession
    complete: bool = True

    def steps(self) -> Iterator[tuple[str, Callable[[Received], Refusal | None], Callable[[], object]]]:
        """Yield each step, what takes a reply of it, and what ends it."""
        server = self.server
        yield protocol.ADVERT, partial(self._fields, server.take_advert), server.end_adverts
        yield protocol.SHARE, partial(self._fields, server.take_shares), server.end_shares
        yield protocol.ADD, self._vector, server.end_masked
        yield protocol.CONFIRM, partial(self._fields, server.take_confirmation), server.end_confirmations
        yield protocol.REVEAL, partial(self._fields, server.take_reveal), server.result

    def _fields(self, take: Callable[..., Refusal | None], reply: Received) -> Refusal | None:
        return take(reply.site, reply.values(protocol.SECURE))

    def _vector(self, reply: Received) -> Refusal | None:
        if reply.site not in self.held or reply.site not in self.session.survivors:
            return Refusal("not-in-the-sum", "")
        kept = self.held[reply.site]
        self.complete &= kept is not None
        nothing = np.zeros(self.session.manifest.size, dtype=np.uint32)
        return self.server.take_masked(reply.site, nothing if kept is None else kept)


class _Attack:
    """A server that tries everything with what it was sent."""

    def __init__(self, session: Session, consortium: Consortium, found: Examined) -> None:
        self._session, self._found = session, found
        self._digest = session.manifest.digest
        cohort = tuple(sorted(session.names))
        self._number = {name: number for number, name in enumerate(cohort)}
        self._adverts: dict[str, Advert] = {}
        for reply in session.of(protocol.ADVERT):
            try:
                advert = Advert.from_fields(reply.values(protocol.SECURE))
                consortium.member(advert.certificate, role=Role.SITE)
            except CloisterError:
                continue
            if advert.name == reply.site:
                self._adverts.setdefault(advert.name, advert)
        digests = tuple(self._adverts[n].digest(self._digest) if n in self._adverts else b"" for n in cohort)
        roster = Roster(cohort=cohort, digests=digests, adverts=())
        graph = neighbours(roster.present, session.manifest.degree, roster.digest(self._digest))
        shared = {
            reply.site for reply in session.of(protocol.SHARE) if protocol.SECURE in reply.records
        } & self._adverts.keys()
        self._beside = {
            cohort[one]: tuple(cohort[other] for other in beside if cohort[other] in shared)
            for one, beside in graph.items()
        }
        found.public = {
            name: (one.mask_key, one.seal_key, one.commitment) for name, one in self._adverts.items()
        }

    def run(self, held: Mapping[str, Residues | None]) -> None:
        """Open what opens."""
        seeds, privates = self._secrets()
        edges: dict[str, set[str]] = {}
        for site, vector in held.items():
            if site not in self._adverts:
                continue
            streams, unknown = self._known(site, seeds, privates)
            own = site not in seeds
            self._found.left[site] = len(unknown) + own
            edges[site] = unknown | ({"its own mask"} if own else set())
            if vector is not None and streams:
                rest = vector.copy()
                add_streams(rest, streams)
                self._found.rests[site] = rest
        self._found.groups = _closed(edges)

    def _secrets(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Rebuild what can be rebuilt, and count the shares."""
        shares: dict[str, dict[str, dict[int, bytes]]] = {
            "seeds": defaultdict(dict),
            "keys": defaultdict(dict),
        }
        for reply in self._session.of(protocol.REVEAL):
            values = reply.values(protocol.SECURE)
            for kind, owners, given in (
                ("seeds", "seeds_of", "seed_shares"),
                ("keys", "keys_of", "key_shares"),
            ):
                for owner, share in zip(_list(values.get(owners)), _list(values.get(given)), strict=False):
                    if isinstance(owner, str) and isinstance(share, bytes) and reply.site in self._number:
                        shares[kind][owner][self._number[reply.site] + 1] = share
        found = self._found
        found.seeds = {owner: len(held) for owner, held in sorted(shares["seeds"].items())}
        found.keys = {owner: len(held) for owner, held in sorted(shares["keys"].items())}
        found.both = tuple(sorted(found.seeds.keys() & found.keys.keys()))
        return self._rebuilt(shares["seeds"], self._is_seed), self._rebuilt(shares["keys"], self._is_key)

    def _rebuilt(
        self, shares: Mapping[str, Mapping[int, bytes]], holds: Callable[[Advert, bytes], bool]
    ) -> dict[str, bytes]:
        rebuilder = Rebuilder(self._session.manifest.threshold)
        secrets = {}
        for owner, held in shares.items():
            if owner in self._adverts:
                sound = {point: share for point, share in held.items() if len(share) == SHARE}
                secret = rebuilder.rebuilt(sound, partial(holds, self._adverts[owner]))
                if secret is not None:
                    secrets[owner] = secret
        return secrets

    def _known(
        self, site: str, seeds: Mapping[str, bytes], privates: Mapping[str, bytes]
    ) -> tuple[list[tuple[bytes, int]], set[str]]:
        """Return the streams that take a site's known masks away, and with whom it has masks that are not known."""
        streams = [(keys.self_key(seeds[site], manifest=self._digest), -1)] if site in seeds else []
        unknown = set()
        for peer in self._beside.get(site, ()):
            low, high = sorted((site, peer))
            holder, other = (site, peer) if site in privates else (peer, site)
            if holder not in privates:
                unknown.add(peer)
                continue
            key = keys.pair_key(
                X25519PrivateKey.from_private_bytes(privates[holder]),
                self._adverts[other].mask_key,
                manifest=self._digest,
                low=low,
                high=high,
            )
            streams.append((key, -1 if site == low else 1))
        return streams, unknown

    def _is_seed(self, advert: Advert, secret: bytes) -> bool:
        return keys.hashed("seed", self._digest, secret) == advert.commitment

    def _is_key(self, advert: Advert, secret: bytes) -> bool:
        return keys.public_of(secret) == advert.mask_key


def _closed(edges: Mapping[str, set[str]]) -> tuple[tuple[str, ...], ...]:
    """Return the connected sets of sites that no unknown mask leaves."""
    left, found = set(edges), []
    while left:
        reached, grown = {min(left)}, True
        while grown:
            more = {peer for one in reached for peer in edges.get(one, ())} - reached
            grown, reached = bool(more), reached | more
        left -= reached
        if reached <= edges.keys():
            found.append(tuple(sorted(reached)))
    return tuple(found)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []


MASKED = Scheme(
    examine=_examine,
    signed="keys are signed by sites of the consortium, and each session's survivors signed one set",
    closed="with all shares that were revealed: at least {least} of its masks stay on each",
    sums="{sums} sums open, the smallest over {smallest} sites",
)
