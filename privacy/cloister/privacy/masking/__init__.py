"""Secure aggregation by masking: the server learns the sum of the sites' vectors, and no site's own.

In the manner of Bonawitz et al. (2017), "Practical secure aggregation for privacy-preserving machine learning", with the sparse graph of Bell et
al. (2020), "Secure single-server aggregation with (poly)logarithmic overhead", signed keys, and a quorum on who survived. Two state machines,
`SiteSession` and `ServerSession`, exchange the messages below; who carries them is somebody else's business. ``rehearsal`` runs whole sessions
in memory.

One session is one sum, of one signed manifest: n sites, each the neighbour of k others; t shares rebuild a secret (`parameters`).

===========  ==================================================  ==================================================================
step         the site is told                                    the site answers
===========  ==================================================  ==================================================================
1 advert     the manifest                                        two X25519 keys and a commitment to a seed b, drawn from the operating
                                                                 system, signed over the manifest's digest
2 share      `Roster`: a hash of every advert, its neighbours'   b and its mask key s as Shamir shares, one for each neighbour, sealed
                                                                 with ChaCha20-Poly1305
3 mask       `Deliveries`: its neighbours' shares for it         x + PRG(b) + sum over neighbours that shared of ±PRG(key of the pair)
4 confirm    `Survivors`: whose vectors arrived                  a signature over them, the manifest and the roster
5 reveal     `Confirmations`: a quorum's signatures              of each survivor its share of b, of each other sharer its share of s
===========  ==================================================  ==================================================================

The server takes PRG(b) of every survivor, and the pairwise masks of those that dropped after sharing, away from the sum of the vectors. The
weight and every metric belong into x: nothing else that a site sends depends on its data.

**Which steps are one exchange.** None of the five may be merged with the next:

- advert and share: shares are sealed to keys that the first exchange collects.
- share and mask: a site masks only with those whose shares the server has. Were both sent at once, a site that dies while it trains would
  have its pairwise masks in everybody's vector and its mask key in nobody's hands, and take the sum with it. (Training may go on between
  the two, or before the first; the model may travel with the deliveries.)
- mask and confirm: who survived is known when the last vector has come.
- confirm and reveal: a site that reveals before it knows that a quorum signed the same set gives the server a choice. It would show one half a
  set with site v in it and the other half one without, collect t shares of both b and s of v, and read x of v alone; or two sets that
  differ in v, and subtract.

The reveal of one session and the advert of the next may share one exchange, as the two are independent.

**Values modulo a power of two.** Vectors are uint32 and added modulo 2^32; masks are uniform there. Whoever sums modulo 2^m with m < 32 hands over
residues from 0 to 2^m - 1 (`cloister.privacy.updates.wrapped`), and `ServerSession.result` is reduced modulo 2^m: since 2^m divides 2^32,
the sum of masks that cancel modulo 2^32 cancels modulo 2^m, and carries beyond bit m fall away. Signed integers are residues too; that n
of them do not wrap is checked when the manifest is made.

**Security.** X25519 (decisional Diffie-Hellman), HKDF-SHA256 as a random oracle, AES-256 in counter mode as a pseudorandom generator, ChaCha20-Poly1305 and Ed25519 are
taken to be what they are held for. Let the server and c of the n sites collude, tell anybody anything and pool all they see, where

- c < 2 q - n, with q = `quorum`: with t = floor(2 n / 3) + 1 in a complete graph that is every c < n / 3;
- in a sparse graph, no honest site has ``2 t - k`` corrupt neighbours: but for 2^-40, that is so for c <= n / 10 or what else was assumed.

Then all that they learn of the honest sites' vectors is this. There is at most one set S of survivors, with at least ``least`` and q members, for which
anything is revealed (two quorums share an honest site, and it signs once). They learn the sum over the honest members of S in a complete graph; in a
sparse one, the sum over each connected component of the graph on the honest members of S. Every component has more than ``t - x`` honest sites, where
x is the largest number of corrupt neighbours of one: without t answers a seed cannot be rebuilt, and those who answer are corrupt or neighbours
in the same component. For drops that do not depend on the graph there is one component (Bell et al. 2020, section 3); a server that sees the
graph and lies about who dropped can aim for more. Of a site outside S they learn nothing.

- The server alone (c = 0) learns the sum over S.
- Sites that collude without the server learn nothing but what the server publishes.
- Colluding sites know their own vectors: a sum of ``least`` sites of which c collude is one of ``least - c``. The floor must allow for that.
- With c >= 2 q - n, or t corrupt neighbours of one site, that site's vector is read. No protocol of this kind prevents that.

Not promised: that a sum comes about (it does not when fewer than q sites stay, nor when a site has shared wrong secrets), and that a corrupt
site's vector is sensible (it can be any; see ``cloister.strategies``). A wrong share cannot change the sum: what is rebuilt is checked against
the public key or the commitment that its owner signed, and shares that do not fit are left out or end the session.

**Against Flower's SecAgg+** (1.41): there, keys are unsigned, the server picks the threshold, a peer named as active and as dead has both its
secrets revealed, seeds shrink to 28 bits of a Mersenne Twister, and weights travel in clear. ``tests/adversarial`` holds each against this package.
"""

from cloister.privacy.masking.fields import Fields
from cloister.privacy.masking.messages import (
    Advert,
    Confirmation,
    Confirmations,
    Deliveries,
    Reveal,
    Roster,
    SealedShares,
    Survivors,
)
from cloister.privacy.masking.parameters import parameters, quorum
from cloister.privacy.masking.server import Refusal, ServerSession
from cloister.privacy.masking.site import SiteSession

__all__ = [
    "Advert",
    "Confirmation",
    "Confirmations",
    "Deliveries",
    "Fields",
    "Refusal",
    "Reveal",
    "Roster",
    "SealedShares",
    "ServerSession",
    "SiteSession",
    "Survivors",
    "parameters",
    "quorum",
]
