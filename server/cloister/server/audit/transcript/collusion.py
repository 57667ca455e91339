"""Who would have to help the server to open one site's vector, from a session's degree and threshold.

A survivor's vector is under its own mask, whose seed the others reveal, and under pairwise masks, which its mask key opens and which nobody
reveals. Sites that help the server hand over the shares of both that they hold.

- *curious*: the server follows the protocol and reads what it gets. It lacks the mask key: t of its holders must help; or all other sites of
  the sum, which need no share: they know what they added.
- *lying*: the server names different survivors to different sites, so that some reveal the seed and others the mask key. Honest sites answer
  once: ``c`` helpers suffice only if ``2 t <= holders + c``, and, since each set needs a quorum of signatures, ``2 quorum <= n + c``.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloister.privacy.manifest import Manifest
from cloister.privacy.masking.parameters import holders_of, is_complete, quorum

__all__ = ["Collusion", "collusion"]


@dataclass(frozen=True, kw_only=True)
class Collusion:
    """How many sites would have to help, of how many.

    Attributes:
        curious: with a server that follows the protocol.
        lying: with one that does not; 0: it needs no help.
        among: how many could be asked: the site's neighbours.
        which: who they are, in words.
    """

    curious: int
    lying: int
    among: int
    which: str


def collusion(manifest: Manifest, survivors: int) -> Collusion:
    """Return who would have to help the server to open one site's vector in a session.

    Args:
        manifest: the session's.
        survivors: how many sites are in its sum.
    """
    n, t, holders = manifest.cohort_size, manifest.threshold, holders_of(manifest)
    curious = min(t, survivors - 1)
    lying = max(0, 2 * t - holders, 2 * quorum(manifest) - n)
    complete = is_complete(manifest)
    return Collusion(
        curious=curious,
        lying=min(curious, lying),
        among=manifest.degree,
        which=f"any of the {n - 1} other sites of the round"
        if complete
        else f"of the {manifest.degree} neighbours that the session's graph gives it",
    )
