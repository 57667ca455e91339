"""How records are dealt to virtual sites, as pure functions: each returns the site of every record.

An answer ``site_of`` has shape (n_records,), int64, values in [0, sites); so every record goes to exactly one site by construction.
All draws come from the generator that is handed in.

Counts are rounded *systematically*: with shares p and one uniform u for a class of n records, the cuts are ``⌊n · cumsum(p) + u⌋``. A
site's count is then its exact share rounded up or down, and right on average; rounding every class the same way would starve
the same sites each time.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["deal_by_class", "deal_by_size", "deal_evenly", "deal_like", "deal_shards"]

Sites = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int64]


def deal_evenly(records: int, sites: int, rng: np.random.Generator) -> Sites:
    """Deal shuffled records in turn: sizes differ by at most one."""
    return rng.permutation(np.arange(records, dtype=np.int64) % sites)


def deal_by_size(records: int, sites: int, skew: float, rng: np.random.Generator) -> Sites:
    """Deal one record to every site and the rest by sizes drawn from a symmetric Dirichlet(``skew``) over the sites.

    Args:
        records: at least ``sites``.
        sites: how many.
        skew: concentration; the smaller, the more unequal the sizes.
        rng: where draws come from.
    """
    sizes = 1 + _rounded(rng.dirichlet(np.full(sites, skew)), records - sites, rng)
    return rng.permutation(np.repeat(np.arange(sites, dtype=np.int64), sizes))


def deal_by_class(labels: Labels, sites: int, alpha: float, rng: np.random.Generator) -> Sites:
    """Deal each class by shares of its own, drawn from a symmetric Dirichlet(``alpha``) over the sites.

    Yurochkin et al. (2019), *Bayesian Nonparametric Federated Learning of Neural Networks*, §4; the usual form of the Dirichlet
    partitions that followed Hsu, Qi, Brown (2019). A site's share of a class has mean 1/N and variance (1/N)(1 - 1/N)/(Nα + 1)
    for N sites, so sizes vary too (Hsu et al. keep them equal). A site may get no record at all.

    Args:
        labels: (n,) class numbers.
        sites: how many.
        alpha: concentration; the smaller, the fewer sites share a class.
        rng: where draws come from.
    """
    site_of = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        counts = _rounded(rng.dirichlet(np.full(sites, alpha)), len(rows), rng)
        site_of[rng.permutation(rows)] = np.repeat(np.arange(sites), counts)
    return site_of


def deal_shards(
    values: npt.NDArray[np.float64] | Labels, sites: int, per_site: int, rng: np.random.Generator
) -> Sites:
    """Sort by value, cut into ``sites · per_site`` shards of equal size (to one), and deal ``per_site`` shards to each site.

    McMahan et al. (2017), §3, "pathological non-IID". Records of one value are shuffled first. Where a shard is no longer than the
    smallest class it touches at most two classes, so a site at most ``2 · per_site``.

    Args:
        values: (n,) class numbers, or values to predict; n is at least ``sites · per_site``.
        sites: how many.
        per_site: shards a site.
        rng: where draws come from.
    """
    shuffled = rng.permutation(len(values))
    order = shuffled[np.argsort(values[shuffled], kind="stable")]
    shards = sites * per_site
    lengths = np.full(shards, len(values) // shards)
    lengths[: len(values) % shards] += 1
    owners = rng.permutation(np.repeat(np.arange(sites, dtype=np.int64), per_site))
    site_of = np.empty(len(values), dtype=np.int64)
    site_of[order] = np.repeat(owners, rng.permutation(lengths))
    return site_of


def deal_like(labels: Labels, counts: npt.NDArray[np.int64], rng: np.random.Generator) -> Sites:
    """Deal records so that each class spreads over the sites as it does in ``counts``.

    Args:
        labels: (n,) class numbers of the records to deal.
        counts: (sites, classes) how many records of each class a site has already; a class without any spreads as all
            records do.
        rng: where draws come from.
    """
    sites = len(counts)
    totals = counts.sum(axis=0)
    sizes = counts.sum(axis=1)
    site_of = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        shares = counts[:, label] / totals[label] if totals[label] else sizes / sizes.sum()
        site_of[rng.permutation(rows)] = np.repeat(np.arange(sites), _rounded(shares, len(rows), rng))
    return site_of


def _rounded(shares: npt.NDArray[np.float64], total: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Round ``shares · total`` to whole numbers that sum to ``total``, each its exact value rounded up or down."""
    cuts = np.minimum(np.floor(np.cumsum(shares) * total + rng.random()), total).astype(np.int64)
    cuts[-1] = total
    return np.diff(cuts, prepend=0)
