"""What ``[privacy]`` costs and does where the unit is a whole site: noise, events and ε of the three site-level mechanisms.

The public numbers that they rest on:

======  ======================================================================================================
n       the divisor of the sum: ``cohort.per_round``, or the rate times ``cohort.sites``; never how many answered
least   ``cohort.min_sites``: so many noise shares are in every sum that is used, ``privacy.colluders`` of them of no use
most    the largest cohort: of a Poisson cohort its mean and eight standard deviations, at most all sites
======  ======================================================================================================

With ``aggregation.group_size`` each is that of one group: a group's sum is opened by itself, so it carries the whole noise by itself, calibrated to
the `LEAST_PROTECTED` sites with which it still counts. A site is in one group, so what it costs is one sum a round, however many groups there are; the
rule that joins the groups' means reads nothing else.

No gain from a cohort's secrecy is claimed: the server draws the cohort and sites see who is asked, so a site is charged in full for
every round that it is asked in (known cohort; design: "cohort hidden or not").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar

from cloister.core.errors import SpecError
from cloister.core.spec import FederationSpec
from cloister.core.spec.grouping import least_in_sum
from cloister.privacy.accounting import Spent, spent
from cloister.privacy.calibration import noise_multiplier_for
from cloister.privacy.events import Composed, Gaussian, Skellam
from cloister.privacy.ledger.entry import Figures
from cloister.privacy.public_numbers import given, most_in_sum, sites_in_sum
from cloister.privacy.statement import Unit
from cloister.privacy.updates import BITS, AdaptiveClip, IntegerCode, choose_scale, padded
from cloister.privacy.updates.encoding import WRAP_SIGMAS

__all__ = [
    "MEASURED",
    "DistributedPlan",
    "LocalPlan",
    "SitePlan",
    "distributed_plan",
    "server_or_local_plan",
    "shares_not_covered",
]

#: Rounding may add so much to the sensitivity, relatively, before 20 bits count as too few.
MOST_STRETCH = 1.1

_CHARGED = (
    "none is claimed: whether a site was asked counts as known, so a site is charged in full for every round that it is asked in; "
    "the sum is divided by the public number of {sites:g} sites"
)


@dataclass(frozen=True, kw_only=True)
class _Gaussian:
    """What the two Gaussian mechanisms share: each round is one Gaussian query with noise multiplier z."""

    records_per_person: ClassVar[int] = 1
    repeatable: ClassVar[bool] = True

    noise_multiplier: float
    clip: float
    sites: float
    rounds: int
    delta: float

    @property
    def sampling(self) -> str:
        """How cohorts are drawn and what that is worth, in words."""
        return _CHARGED.format(sites=self.sites)

    def figures(self) -> Figures:
        """Return what a round ran with, for a reader of the ledger."""
        return Figures(noise_multiplier=self.noise_multiplier, clip=self.clip)

    def event(self, rounds: int = 1) -> Gaussian:
        """Return what a site's ``rounds`` rounds are, for the accountant and the ledger."""
        return Gaussian(noise_multiplier=self.noise_multiplier, count=rounds)

    def spent(self, rounds: int) -> Spent:
        """Return what a site has spent after taking part in ``rounds`` rounds."""
        return spent(self.event(rounds), self.delta)

    def spent_by(self, survivors: Mapping[int, int]) -> Spent:
        """Return what a site has spent in rounds with these survivors (survivors → rounds), which change nothing here."""
        return self.spent(sum(survivors.values()))


@dataclass(frozen=True, kw_only=True)
class SitePlan(_Gaussian):
    """Site-level differential privacy by a trusted server (``unit = "site"``).

    Formal guarantee: the models (and, with ``adaptive``, the clips) of all rounds together are (ε, δ)-differentially private for all that one
    site contributed in ``rounds`` rounds, in the zero-out relation, against everybody but the server. Each update has norm at most C,
    N(0, (z_Δ·C)²) is added once to their sum.

    Attributes:
        noise_multiplier: z, what a round costs; updates and bits together where the clip adapts.
        clip: C, or the first round's where it adapts.
        sites: n, the public divisor.
        rounds: the most rounds that a site can take part in.
        delta: δ.
        adaptive: how C follows the norms, or ``None``.
    """

    unit: ClassVar[Unit] = "site"

    adaptive: AdaptiveClip | None = None

    @cached_property
    def update_noise(self) -> float:
        """z_Δ: the standard deviation of the noise on the sum of updates, over C."""
        return (
            self.noise_multiplier
            if self.adaptive is None
            else self.adaptive.update_noise(self.noise_multiplier)
        )

    @property
    def not_covered(self) -> tuple[str, ...]:
        """What this plan leaves open beside what its unit does."""
        return (MEASURED,)

    def facts(self) -> dict[str, Any]:
        """Return what ``cloister check`` says beside ε."""
        return {
            "clip": self.clip,
            "divisor": self.sites,
            "update_noise_multiplier": self.update_noise,
            "count_noise": self.adaptive.count_noise if self.adaptive else None,
        }


@dataclass(frozen=True, kw_only=True)
class LocalPlan(_Gaussian):
    """Site-level differential privacy by each site's own noise (``unit = "site-local"``).

    Formal guarantee: what one site sends in ``rounds`` rounds is (ε, δ)-differentially private for all its data, in the zero-out relation,
    against everybody outside the site, the server included: an update of norm at most C with N(0, (zC)²) in every coordinate. The
    sensitivity is C under zero-out. Under replace-one it is 2C: there the same noise costs what half of z costs.

    Attributes:
        noise_multiplier: z, the noise's standard deviation over C.
        clip: C, the largest L2 norm of an update.
        sites: n, the public divisor.
        rounds: the most rounds that a site can take part in.
        delta: δ.
    """

    unit: ClassVar[Unit] = "site-local"

    @property
    def not_covered(self) -> tuple[str, ...]:
        """What this plan leaves open beside what its unit does."""
        return (MEASURED,)

    def facts(self) -> dict[str, Any]:
        """Return what ``cloister check`` says beside ε."""
        return {"clip": self.clip, "divisor": self.sites}


@dataclass(frozen=True, kw_only=True)
class DistributedPlan:
    """Site-level differential privacy by the noise shares of all (``unit = "site-distributed"``).

    Formal guarantee: the sums of all rounds are (ε, δ)-differentially private for all that one site contributed, in the zero-out relation,
    against whoever sees only the sums, with at least ``least`` sites in each, together with all that up to ``colluders`` of those know. A
    single message carries one share of the noise, 1/``honest`` of the variance: without secure aggregation whoever sees it, the server
    above all, is not covered.

    Attributes:
        noise_multiplier: z, the standard deviation of the noise of ``honest`` sites over C.
        clip: C, the largest L2 norm of an update.
        sites: n, the public divisor.
        rounds: the most rounds that a site can take part in.
        delta: δ.
        least: the fewest sites in a sum.
        colluders: how many of those may side with an attacker.
        code: how an update becomes integers.
        seed: public, of the rotations.
        in_clear: whether the server sees single messages.
    """

    unit: ClassVar[Unit] = "site-distributed"
    records_per_person: ClassVar[int] = 1

    noise_multiplier: float
    clip: float
    sites: float
    rounds: int
    delta: float
    least: int
    colluders: int
    code: IntegerCode
    seed: int
    in_clear: bool

    @property
    def repeatable(self) -> bool:
        """Whether a message may be sent again: only where it is seen by itself anyway."""
        return self.in_clear

    @property
    def honest(self) -> int:
        """The fewest honest sites in a sum: so many shares make z."""
        return self.least - self.colluders

    @property
    def sampling(self) -> str:
        """How cohorts are drawn and what that is worth, in words."""
        return _CHARGED.format(sites=self.sites)

    @property
    def not_covered(self) -> tuple[str, ...]:
        """What this plan leaves open beside what its unit does."""
        return (*shares_not_covered(self.honest, self.colluders, in_clear=self.in_clear), MEASURED)

    def figures(self) -> Figures:
        """Return what a round ran with, for a reader of the ledger."""
        return Figures(noise_multiplier=self.noise_multiplier, clip=self.clip, survivors=self.least)

    def event(self, rounds: int = 1, *, survivors: int | None = None) -> Skellam:
        """Return what a site's ``rounds`` rounds are with so many survivors; with the fewest, where that is left out."""
        return _skellam(self.code, (self.least if survivors is None else survivors) - self.colluders, rounds)

    def spent(self, rounds: int) -> Spent:
        """Return what a site has spent after ``rounds`` rounds with the fewest survivors."""
        return spent(self.event(rounds), self.delta)

    def spent_by(self, survivors: Mapping[int, int]) -> Spent:
        """Return what a site has spent in rounds with these survivors (survivors → rounds); fewer than ``least`` count as ``least``."""
        rounds = (self.event(count, survivors=max(many, self.least)) for many, count in survivors.items())
        return spent(Composed(events=tuple(rounds)), self.delta)

    def facts(self) -> dict[str, Any]:
        """Return what ``cloister check`` says beside ε."""
        return {
            "clip": self.clip,
            "divisor": self.sites,
            "survivors": self.least,
            "colluders": self.colluders,
            "scale": self.code.scale,
            "dimension": self.code.dim,
            "bits": BITS,
        }


#: What the server measures is not the sites' to protect.
MEASURED = "the figures that the server measures on its own test records; in a simulation those are the sites' own, pooled"


def shares_not_covered(honest: int, colluders: int, *, in_clear: bool) -> tuple[str, ...]:
    """Return what noise shares leave open.

    Args:
        honest: the fewest honest sites in a sum.
        colluders: how many other sites in it are made good.
        in_clear: whether the server sees single messages.
    """
    clear = (
        f"the server of this run, to which each message goes in clear with 1/{honest} of the noise's variance: the "
        "guarantee needs secure aggregation to hold against it"
    )
    alone = (
        "a site of the federation that attacks, even by itself: it knows its own share of the noise, and with privacy.colluders = 0 every "
        "share is counted on"
    )
    return (*((clear,) if in_clear else ()), *(() if colluders else (alone,)))


def server_or_local_plan(spec: FederationSpec) -> SitePlan | LocalPlan:
    """Return the plan of ``unit = "site"`` or ``"site-local"``.

    Raises:
        SpecError: the promise cannot be kept.
    """
    privacy, rounds = spec.privacy, spec.federation.rounds
    clip, delta = given(privacy.clip, "privacy.clip"), given(privacy.delta, "privacy.delta")
    noise = privacy.noise_multiplier
    if noise is None:
        noise = _calibrated(given(privacy.epsilon, "privacy.epsilon"), delta, rounds)
    n = sites_in_sum(spec)
    if privacy.unit == "site-local":
        return LocalPlan(noise_multiplier=noise, clip=clip, sites=n, rounds=rounds, delta=delta)
    adaptive = None
    if (table := privacy.adaptive_clip) is not None:
        adaptive = AdaptiveClip(
            quantile=table.quantile,
            rate=table.rate,
            count_noise=table.count_noise or AdaptiveClip.default_count_noise(noise, n),
            sites=n,
        )
    plan = SitePlan(noise_multiplier=noise, clip=clip, sites=n, rounds=rounds, delta=delta, adaptive=adaptive)
    _ = plan.update_noise  # refused here where the bits alone would cost too much
    return plan


def distributed_plan(spec: FederationSpec, size: int) -> DistributedPlan:
    """Return the plan of ``unit = "site-distributed"`` for a model of ``size`` numbers.

    Raises:
        SpecError: the promise cannot be kept, or 20 bits do not suffice for it.
    """
    privacy, rounds = spec.privacy, spec.federation.rounds
    clip, delta = given(privacy.clip, "privacy.clip"), given(privacy.delta, "privacy.delta")
    colluders = privacy.colluders or 0
    least = least_in_sum(spec)
    shares = _Shares(clip=clip, most=most_in_sum(spec), honest=least - colluders, size=size)
    noise = privacy.noise_multiplier
    if noise is None:
        noise = _calibrated_shares(given(privacy.epsilon, "privacy.epsilon"), delta, rounds, shares)
    code = shares.code(noise)
    if code.stretch > MOST_STRETCH:
        raise SpecError(
            f"privacy.unit = 'site-distributed': {BITS} bits do not suffice for {shares.most} sites, noise of {noise:.4g} times the clip from "
            f"{shares.honest} of them, and {size} parameters: with {WRAP_SIGMAS} standard deviations kept from wrapping, rounding would make the "
            f"sensitivity {code.stretch:.3g} times the clip's",
            remedy="raise cohort.min_sites towards the cohort's size, allow a larger epsilon, ask fewer sites a round, or train a smaller model",
            code="privacy-bits",
        )
    return DistributedPlan(
        noise_multiplier=noise,
        clip=clip,
        sites=sites_in_sum(spec),
        rounds=rounds,
        delta=delta,
        least=least,
        colluders=colluders,
        code=code,
        seed=spec.federation.seed,
        in_clear=spec.aggregation.protection == "plain",
    )


@dataclass(frozen=True, kw_only=True)
class _Shares:
    """What the integers depend on beside the noise."""

    clip: float
    most: int
    honest: int
    size: int

    def code(self, noise: float) -> IntegerCode:
        scale = choose_scale(
            clip=self.clip, noise_multiplier=noise, most=self.most, least=self.honest, dim=padded(self.size)
        )
        share = (noise * scale * self.clip) ** 2 / self.honest
        return IntegerCode(size=self.size, clip=self.clip, scale=scale, share=share)


def _skellam(code: IntegerCode, honest: int, rounds: int) -> Skellam:
    return Skellam(variance=honest * code.share, l2=code.l2, l1=code.l1, count=rounds)


@lru_cache(maxsize=64)
def _calibrated(epsilon: float, delta: float, rounds: int) -> float:
    return noise_multiplier_for(epsilon, delta, lambda noise: Gaussian(noise_multiplier=noise, count=rounds))


@lru_cache(maxsize=64)
def _calibrated_shares(epsilon: float, delta: float, rounds: int, shares: _Shares) -> float:
    return noise_multiplier_for(
        epsilon, delta, lambda noise: _skellam(shares.code(noise), shares.honest, rounds)
    )
