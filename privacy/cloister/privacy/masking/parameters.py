"""How many neighbours a site needs and how many shares rebuild a secret: failure bounds of SecAgg+ (Bell et al. 2020, section 3).

Of ``n`` sites at most ``ceil(corrupt n)`` collude with the server and at most ``ceil(dropout n)`` drop; each of the others has ``degree`` = k
of the n - 1 others as neighbours, at random, so that how many of them are corrupt, or drop, is hypergeometric.

Formal guarantees of `parameters` for more than `COMPLETE` sites:

- Security: with a probability of at least 1 - 2^-40 no site has ``2 t - k`` corrupt neighbours or more. With fewer, no two sets of answers,
  not even to a server that tells its sites different things, hold t shares of both of a site's secrets: an honest neighbour answers once.
  (In particular nobody has t corrupt neighbours.)
- Correctness: with a probability of at least 1 - 2^-20 no site loses more than ``k - t`` neighbours, and every secret can be rebuilt.
- k is the least for which both hold, and t the least for that k. Both bounds are union bounds over n sites.

These give (31, 21) for n = 100 at 10% corrupt and 10% dropout, (41, 31) at 20% and 10%, and (95, 66) for n = 1000 at 10% and 10%.

Up to `COMPLETE` sites everybody is everybody's neighbour and keeps a share for itself, and t = floor(2 n / 3) + 1: then ``2 t > n + c`` for
every c < n / 3, which is what makes two contradictory answers of a majority impossible with c corrupt sites (Bonawitz et al. 2017,
section 6, for a server that lies).

=================================  ==========================================
case                               outcome
=================================  ==========================================
n < 3                              ``SpecError`` (masking-parameters)
corrupt >= 1 / 3                   ``SpecError`` (masking-parameters)
no degree below n - 1 will do      complete graph, if 2 t > n + c; else ``SpecError``
n = 3                              (2, 3): everybody has to stay
=================================  ==========================================

What `check_graph` refuses at a site, with ``PolicyError`` (masking-graph), before anything is allocated:

=============================================  ===========================================
the server's numbers                           why
=============================================  ===========================================
not `SECURITY_BITS` safe with `CORRUPT`        some site's secrets might be rebuilt
complete, of more than `MOST_COMPLETE` sites   memory: a site computes the whole graph
not complete, of more than `MOST_SITES` sites  memory
more than twice the degree of `parameters`     memory
=============================================  ===========================================
"""

from __future__ import annotations

import math
from functools import lru_cache

from cloister.core.errors import PolicyError, SpecError
from cloister.privacy.manifest import Manifest

__all__ = [
    "COMPLETE",
    "CORRECTNESS_BITS",
    "CORRUPT",
    "MOST_COMPLETE",
    "MOST_SITES",
    "SECURITY_BITS",
    "check_graph",
    "parameters",
    "quorum",
    "security_bits",
    "tail",
]

#: Most sites for which the graph is complete.
COMPLETE = 50
#: σ: a failure of security has a probability of at most 2 to minus this.
SECURITY_BITS = 40
#: η: a failure to unmask has a probability of at most 2 to minus this.
CORRECTNESS_BITS = 20
#: Most sites of a session whose graph is not complete, as a site accepts it.
MOST_SITES = 4096
#: Most sites of a session whose graph is complete, as a site accepts it.
MOST_COMPLETE = 200
#: The share of corrupt sites that a site wants to be safe against, whatever the server asks for.
CORRUPT = 0.1


@lru_cache(maxsize=256)
def parameters(
    n: int,
    *,
    corrupt: float = CORRUPT,
    dropout: float = 0.1,
    security: float = SECURITY_BITS,
    correctness: float = CORRECTNESS_BITS,
) -> tuple[int, int]:
    """Return ``(degree, threshold)`` for ``n`` sites.

    Args:
        n: sites of the cohort.
        corrupt: the share of them that may collude with the server, below 1/3.
        dropout: the share of them that may drop in the session.
        security: σ, bits.
        correctness: η, bits.

    Raises:
        SpecError: (masking-parameters) there are no such parameters.
    """
    if n < 3 or not 0 <= corrupt < 1 / 3 or not 0 <= dropout < 1:
        raise _impossible(n, corrupt, dropout)
    bad, gone = _count(corrupt, n), _count(dropout, n)
    if n > COMPLETE:
        for degree in range(3, n - 1):
            threshold = (degree + _least(n, bad, degree, security) + 1) // 2
            lost = _least(n, gone, degree, correctness) - 1
            if degree + 1 < 2 * threshold and threshold <= degree - lost:
                return degree, threshold
    threshold = 2 * n // 3 + 1
    if 2 * threshold <= n + bad or n - gone < threshold < n > COMPLETE:
        raise _impossible(n, corrupt, dropout)
    return n - 1, threshold


def quorum(manifest: Manifest) -> int:
    """Return how many survivors must have confirmed before a site reveals anything: as large a share of the cohort as t is of the graph.

    It is the threshold itself in a complete graph. Any two such sets of the ``n`` sites share more than ``c`` of them, so one that is honest,
    as long as ``c < 2 quorum - n``: more than (n + c) / 2 have confirmed.
    """
    return max(
        manifest.threshold,
        -(-manifest.cohort_size * manifest.threshold // holders_of(manifest)),
        manifest.least,
    )


def holders_of(manifest: Manifest) -> int:
    """Return how many shares there are of a secret: one a neighbour, and the site's own when the graph is complete."""
    return manifest.degree + is_complete(manifest)


def is_complete(manifest: Manifest) -> bool:
    """Return whether everybody is everybody's neighbour."""
    return manifest.degree == manifest.cohort_size - 1


def check_graph(manifest: Manifest) -> None:
    """Check that the server's degree and threshold are safe with `CORRUPT` of the cohort colluding with it, and at least one site.

    And that the graph is not so large that it costs a site its memory: a site computes all of it, and the server says in a few bytes how large
    it is. Nothing is allocated here.

    Raises:
        PolicyError: (masking-graph) they are not, or it is: see the table.
    """
    _check_size(manifest)
    n, t = manifest.cohort_size, manifest.threshold
    bad = max(1, _count(CORRUPT, n))
    if is_complete(manifest):
        safe = 2 * t > n + bad
    else:
        safe = security_bits(n, manifest.degree, t, corrupt=CORRUPT) >= SECURITY_BITS
    if not safe:
        raise PolicyError(
            f"{manifest.degree} neighbours and a threshold of {t} among {n} sites are not safe if {bad} of them collude with the server",
            remedy="use a server that takes its numbers from cloister.privacy.masking.parameters",
            code="masking-graph",
        )


def _check_size(manifest: Manifest) -> None:
    """Check that a site can afford the graph, which it computes whole: at most `MOST_SITES` times twice the degree that is needed."""
    n, degree = manifest.cohort_size, manifest.degree
    if is_complete(manifest):
        if n > MOST_COMPLETE:
            raise _too_large(f"a complete graph of {n} sites", f"{MOST_COMPLETE} sites")
    elif n > MOST_SITES:
        raise _too_large(f"a graph of {n} sites", f"{MOST_SITES} sites")
    elif degree > 2 * parameters(n)[0]:
        raise _too_large(f"a graph of {n} sites with {degree} neighbours each", f"{2 * parameters(n)[0]}")


def _too_large(what: str, most: str) -> PolicyError:
    return PolicyError(
        f"the session asks for {what}, and this site computes none of more than {most}",
        remedy="ask fewer sites a round, and use a server that takes its numbers from cloister.privacy.masking.parameters",
        code="masking-graph",
    )


def security_bits(n: int, degree: int, threshold: int, *, corrupt: float) -> float:
    """Return -log2 of the bound on the probability that some site has ``2 threshold - degree`` corrupt neighbours; infinite if none can."""
    chance = n * tail(n - 1, max(1, _count(corrupt, n)), degree, 2 * threshold - degree)
    return -math.log2(chance) if chance > 0 else math.inf


def tail(population: int, marked: int, drawn: int, least: int) -> float:
    """Return the probability that of ``drawn`` out of ``population`` at least ``least`` are among the ``marked`` (hypergeometric)."""
    if least <= 0:
        return 1.0
    total = _log_choose(population, drawn)
    return math.fsum(
        math.exp(_log_choose(marked, hit) + _log_choose(population - marked, drawn - hit) - total)
        for hit in range(max(least, drawn - population + marked), min(marked, drawn) + 1)
    )


def _least(n: int, marked: int, degree: int, bits: float) -> int:
    """Return the least number that no site's marked neighbours reach, but for a probability of 2^-bits."""
    allowed = 2.0**-bits / n
    sought = degree * marked // (n - 1)  # the mean: below it there is nothing to find
    while tail(n - 1, marked, degree, sought) > allowed:
        sought += 1
    return sought


def _count(share: float, n: int) -> int:
    return math.ceil(share * n - 1e-9)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _impossible(n: int, corrupt: float, dropout: float) -> SpecError:
    return SpecError(
        f"no masked session of {n} sites is safe with {corrupt:.0%} of them corrupt and still ends when {dropout:.0%} drop",
        remedy="ask at least 3 sites a round, fewer than a third of them corrupt",
        code="masking-parameters",
    )
