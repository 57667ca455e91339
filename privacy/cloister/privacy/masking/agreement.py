"""The step in which sites agree on who survived, as a site checks it (Bonawitz et al. 2017, round 3).

Without it a server shows one half of the sites one set and the other half another, and collects both secrets of a site whose vector it wants
to read. A site signs one set and reveals shares only once a quorum of that set's members has signed the same: of two quorums one honest
site would have signed twice.

Formal guarantees:

- `check_survivors` accepts only a set of sites on the roster, in which this site is, whose members among this site's neighbours have all shared
  their secrets with it, and which is no smaller than the quorum and the manifest's least.
- `check_confirmations` accepts only signatures by as many members of the set, over the set, the manifest and the roster.
"""

from __future__ import annotations

from collections.abc import Collection

from cloister.core.errors import IntegrityError, PolicyError
from cloister.privacy.identity import Consortium, Identity, Purpose, Role
from cloister.privacy.manifest import Manifest
from cloister.privacy.masking.messages import Confirmations, Roster, Survivors, survivors_bound
from cloister.privacy.masking.parameters import quorum

__all__ = ["check_confirmations", "check_survivors", "too_few"]


def check_survivors(
    survivors: Survivors, manifest: Manifest, roster: Roster, *, own: str, shared: Collection[str]
) -> None:
    """Check a set of survivors.

    Args:
        survivors: the set.
        manifest: the session's.
        roster: the site's.
        own: the site's name.
        shared: its neighbours that have shared their secrets.

    Raises:
        IntegrityError: (masking-survivors) it is not a set of those who shared that this site is in.
        PolicyError: (masking-floor) too few survived.
    """
    alive = set(survivors.names)
    if own not in alive:
        raise _unfit("this site is not among them, and its vector has left")
    if not alive <= {roster.cohort[number] for number in roster.present}:
        raise _unfit("one of them is not on the roster")
    if alive & {advert.name for advert in roster.adverts}.difference(shared):
        raise _unfit("one of them has not shared its secrets with this site")
    if len(alive) < quorum(manifest):
        raise too_few("survived", len(alive), quorum(manifest))


def check_confirmations(
    confirmations: Confirmations,
    survivors: Survivors,
    manifest: Manifest,
    roster: Roster,
    *,
    own: Identity,
    consortium: Consortium,
) -> None:
    """Check that a quorum of ``survivors`` signed that they are the survivors.

    Raises:
        IntegrityError: (signature, identity, masking-survivors) somebody has not signed this set, or is not in it.
        PolicyError: (masking-floor) too few have.
    """
    if len(confirmations.names) < quorum(manifest):
        raise too_few("confirmed who survived", len(confirmations.names), quorum(manifest))
    if not set(confirmations.names) <= set(survivors.names):
        raise _unfit("somebody confirmed them that is not among them")
    message = survivors_bound(manifest.digest, roster.digest(manifest.digest), survivors)
    known = {advert.name: advert.certificate for advert in roster.adverts} | {own.name: own.certificate}
    known |= dict(zip(confirmations.names, confirmations.certificates, strict=False))
    for name, signature in zip(confirmations.names, confirmations.signatures, strict=True):
        member = consortium.member(known.get(name, b""), role=Role.SITE)
        if member.name != name:
            raise _unfit(f"the certificate for '{name}' is that of '{member.name}'")
        member.check(Purpose.SURVIVORS, message, signature)


def too_few(what: str, found: int, least: int) -> PolicyError:
    """Return a site's refusal to go on with ``found`` sites where ``least`` are needed."""
    return PolicyError(
        f"{found} sites {what}, and this session needs {least}: the site goes no further",
        remedy="run the round again when enough sites are there",
        code="masking-floor",
    )


def _unfit(why: str) -> IntegrityError:
    return IntegrityError(
        f"the set of survivors was refused: {why}",
        remedy="find out why the server names such a set: the site reveals nothing",
        code="masking-survivors",
    )
