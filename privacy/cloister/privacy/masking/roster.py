"""The roster as a site checks it: who takes part, and who of them is its neighbour.

Formal guarantee: `checked_roster` returns the site's neighbours only if

- the names are those of the manifest's cohort, each once, and the site's own advert stands among them unchanged;
- as many have answered as a quorum needs, and at least the manifest's floor and threshold;
- the adverts shown are those of exactly the neighbours that the graph gives the site, each hashes to what the list says, and is signed by the
  site of the consortium that it names, for this manifest;
- no key occurs twice, and none is a point of low order.

Only the hashes of the others' adverts are seen in a sparse graph. A number on the list is bound to a name by the cohort's digest, so that a
corrupt site has one place on it, however many adverts it signs; a name that nobody holds a certificate for is found out by whoever has it
as a neighbour.
"""

from __future__ import annotations

from cloister.core.errors import IntegrityError, PolicyError
from cloister.privacy.identity import Consortium, Purpose, Role
from cloister.privacy.manifest import Manifest, cohort_digest
from cloister.privacy.masking.graph import neighbours
from cloister.privacy.masking.keys import usable
from cloister.privacy.masking.messages import Advert, Roster
from cloister.privacy.masking.parameters import quorum

__all__ = ["check_advert", "checked_roster"]


def checked_roster(
    roster: Roster, manifest: Manifest, own: Advert, consortium: Consortium
) -> tuple[str, ...]:
    """Return the names of the neighbours of the site whose advert is ``own``, sorted.

    Raises:
        IntegrityError: (masking-roster, signature, identity) somebody is not who it should be.
        PolicyError: (masking-floor) too few have answered.
    """
    if len(roster.cohort) != manifest.cohort_size or cohort_digest(roster.cohort) != manifest.cohort:
        raise _unfit("its names are not the manifest's cohort")
    if own.name not in roster.cohort:
        raise _unfit("this site is not on it")
    number = roster.cohort.index(own.name)
    if roster.digests[number] != own.digest(manifest.digest):
        raise _unfit("this site's own keys were changed")
    least = quorum(manifest)
    if len(roster.present) < least:
        raise PolicyError(
            f"{len(roster.present)} sites are on the roster, and this session needs {least}: the site takes no part",
            remedy="run the round again when enough sites are there",
            code="masking-floor",
        )
    graph = neighbours(roster.present, manifest.degree, roster.digest(manifest.digest))
    beside = tuple(roster.cohort[peer] for peer in graph[number])
    if tuple(advert.name for advert in roster.adverts) != beside:
        raise _unfit("the adverts on it are not those of this site's neighbours")
    for peer, advert in zip(graph[number], roster.adverts, strict=True):
        if advert.digest(manifest.digest) != roster.digests[peer]:
            raise _unfit(f"the advert of '{advert.name}' is not the one that everybody was shown")
        check_advert(advert, manifest, consortium)
    both = [key for advert in (own, *roster.adverts) for key in (advert.mask_key, advert.seal_key)]
    if len(set(both)) != len(both):
        raise _unfit("a key is on it twice")
    return beside


def check_advert(advert: Advert, manifest: Manifest, consortium: Consortium) -> None:
    """Check that the site that ``advert`` names signed it for this manifest, and that its keys can be used.

    Raises:
        IntegrityError: (masking-roster, signature, identity) it did not, or they cannot.
    """
    member = consortium.member(advert.certificate, role=Role.SITE)
    if member.name != advert.name:
        raise _unfit(f"the advert of '{advert.name}' comes with the certificate of '{member.name}'")
    member.check(Purpose.ADVERT, advert.signed_bytes(manifest.digest), advert.signature)
    if not (usable(advert.mask_key) and usable(advert.seal_key)):
        raise _unfit(f"a key of '{advert.name}' is a point of low order")


def _unfit(why: str) -> IntegrityError:
    return IntegrityError(
        f"the session's roster was refused: {why}",
        remedy="find out who changed it: the server, or somebody between it and this site",
        code="masking-roster",
    )
