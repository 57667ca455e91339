"""What a site must remember between two steps of a masked session, and what it forgets after each.

Formal guarantee: after ``masked`` the site's own secrets are gone from the state, after ``revealed`` the shares that it was given too. (Python
cannot promise that no copy is left in freed memory.)

===================  ==================================================================
phase                what the state holds
===================  ==================================================================
begun                two private keys and the seed
shared               these, the roster, its own share (in a complete graph)
masked               the roster, its own share and those of its neighbours
confirmed            these, and the survivors that it signed
revealed             nothing
===================  ==================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cloister.core.errors import IntegrityError
from cloister.privacy.masking.fields import Fields, Message, malformed
from cloister.privacy.masking.messages import Roster
from cloister.privacy.masking.shamir import SHARE

__all__ = ["PHASES", "SiteState"]

#: In order.
PHASES = ("begun", "shared", "masked", "confirmed", "revealed")
_PREFIX = "roster_"


@dataclass(frozen=True, kw_only=True)
class _Kept(Message):
    """All of the state but the roster; what there is not, or not any more, is empty.

    Attributes:
        phase: the last step that was taken.
        mask_private: X25519, 32 bytes.
        seal_private: X25519, 32 bytes.
        seed: of the site's own mask, 32 bytes.
        own_share: of its own secrets; empty in a graph that is not complete.
        senders: the neighbours that shared.
        received: what each of them sent; empty where it could not be opened.
        survivors: whom the site has signed for.
    """

    phase: str = "begun"
    mask_private: bytes = b""
    seal_private: bytes = b""
    seed: bytes = b""
    own_share: bytes = b""
    senders: tuple[str, ...] = ()
    received: tuple[bytes, ...] = ()
    survivors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.phase not in PHASES or len(self.received) != len(self.senders):
            raise malformed(type(self), "it is no state of a site")
        if any(len(share) not in (0, 2 * SHARE) for share in (self.own_share, *self.received)):
            raise malformed(type(self), "a share has another length")


@dataclass(frozen=True)
class SiteState:
    """A site's state in one session.

    Attributes:
        kept: all but the roster.
        roster: who takes part, from ``shared`` to ``confirmed``.
    """

    kept: _Kept
    roster: Roster | None = None

    @classmethod
    def begun(cls, *, mask_private: bytes, seal_private: bytes, seed: bytes) -> SiteState:
        """Return the state of a site that has drawn its keys."""
        return cls(_Kept(mask_private=mask_private, seal_private=seal_private, seed=seed))

    def shared(self, roster: Roster, own_share: bytes) -> SiteState:
        """Return the state after the site shared its secrets."""
        return SiteState(replace(self.kept, phase="shared", own_share=own_share), roster)

    def masked(self, senders: tuple[str, ...], received: tuple[bytes, ...]) -> SiteState:
        """Return the state after its vector was masked: its own secrets are gone."""
        kept = _Kept(phase="masked", own_share=self.kept.own_share, senders=senders, received=received)
        return SiteState(kept, self.roster)

    def confirmed(self, survivors: tuple[str, ...]) -> SiteState:
        """Return the state after it signed who survived."""
        return SiteState(replace(self.kept, phase="confirmed", survivors=survivors), self.roster)

    def revealed(self) -> SiteState:
        """Return the state after it revealed shares: nothing is left."""
        return SiteState(_Kept(phase="revealed"))

    def held(self, own: str) -> dict[str, bytes]:
        """Return the shares that the site holds, by the name of whom they are of, sorted; ``own`` is the site's name."""
        shares = dict(zip(self.kept.senders, self.kept.received, strict=True)) | {own: self.kept.own_share}
        return {name: share for name, share in sorted(shares.items()) if share}

    def need_roster(self) -> Roster:
        """Return the roster.

        Raises:
            IntegrityError: (masking-order) there is none in this phase.
        """
        if self.roster is None:
            raise IntegrityError("the site's state holds no roster", code="masking-order")
        return self.roster

    def to_fields(self) -> Fields:
        """Return it as a flat mapping."""
        roster = self.roster.to_fields() if self.roster else {}
        return self.kept.to_fields() | {_PREFIX + name: value for name, value in roster.items()}

    @classmethod
    def from_fields(cls, given: Mapping[str, object]) -> SiteState:
        """Read it from a flat mapping.

        Raises:
            IntegrityError: (masking-message) it is none.
        """
        roster = {
            name.removeprefix(_PREFIX): value for name, value in given.items() if name.startswith(_PREFIX)
        }
        kept = {name: value for name, value in given.items() if not name.startswith(_PREFIX)}
        made = cls(_Kept.from_fields(kept), Roster.from_fields(roster) if roster else None)
        if (made.roster is None) != (made.kept.phase in ("begun", "revealed")):
            raise malformed(cls, "its roster does not fit its phase")
        return made
