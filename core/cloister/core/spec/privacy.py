"""``[privacy]`` and its inner table: what is promised, to whom, and by which mechanism."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cloister.core.spec.base import Fraction, Positive, Table, Whole

__all__ = ["AdaptiveClip", "Privacy"]


class AdaptiveClip(Table):
    """``privacy.adaptive_clip``: a clip that follows a quantile of the updates' norms (Andrew et al. 2021)."""

    quantile: Fraction = Field(
        default=0.5, description="γ: the share of updates that shall be within the clip"
    )
    rate: Annotated[float, Field(gt=0, le=10)] = Field(
        default=0.2, description="η: each round moves the clip by a factor of exp(-η·(share within - γ))"
    )
    count_noise: Positive | None = Field(
        default=None,
        description="σ_b: standard deviation of the noise on how many are within, in sites; default max(n/20, z) for n sites a round",
    )


class Privacy(Table):
    """``[privacy]``: the guarantee promised, and to whom.

    Everything here is public: none of it may depend on how many records a site has.
    """

    unit: Literal["none", "record", "record-distributed", "site", "site-local", "site-distributed"] = Field(
        default="none",
        description=(
            "none: no differential privacy; each site's own records: record (DP-SGD at the site), record-distributed (one step of DP-SGD "
            "over all sites a round, noise shares that add up); a whole site's contribution: site (noise added by a trusted server), "
            "site-local (each site's own noise), site-distributed (noise shares that add up)"
        ),
    )
    epsilon: Positive | None = Field(
        default=None,
        description="the noise is calibrated so that the whole run costs at most this; or give noise_multiplier",
    )
    noise_multiplier: Positive | None = Field(
        default=None,
        description="σ or z: the noise's standard deviation over the clip; ε follows from it",
    )
    delta: Fraction | None = Field(
        default=None,
        description="δ: well below one over the records of the largest site, or over the number of sites where they are the unit",
    )
    clip: Positive | None = Field(
        default=None,
        description="C: the largest L2 norm of one record's gradient, or of one site's update where sites are the unit",
    )
    sampling_rate: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="record, record-distributed: q, the chance of each record to join a step; with training.batch_size, the public divisor "
        "of a site's sum",
    )
    max_records_per_person: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None,
        description="record: k, the most records that one person has at a site (record-distributed: at all sites together); the promise is "
        "then made to persons. 1 unless given",
    )
    colluders: Whole | None = Field(
        default=None,
        description="record-distributed, site-distributed: of cohort.min_sites so many may side with an attacker; the others' noise shares "
        "alone keep the promise. 0 unless given",
    )
    adaptive_clip: AdaptiveClip | None = Field(
        default=None,
        description="site: let the clip follow the norms, from privacy.clip on; off unless given",
    )

    @property
    def hides_records(self) -> bool:
        """Whether the guarantee is a record's (or a person's), and not a whole site's."""
        return self.unit in ("record", "record-distributed")

    @property
    def shares_noise(self) -> bool:
        """Whether the noise is the sum of the sites' shares."""
        return self.unit in ("record-distributed", "site-distributed")

    @model_validator(mode="after")
    def _complete(self) -> Privacy:
        given = [
            key
            for key in (
                "epsilon",
                "noise_multiplier",
                "delta",
                "clip",
                "sampling_rate",
                "max_records_per_person",
                "colluders",
                "adaptive_clip",
            )
            if getattr(self, key) is not None
        ]
        if self.unit == "none":
            if given:
                raise ValueError(
                    f"'{given[0]}' does not go with unit = 'none'; set unit = 'record', or remove it"
                )
            return self
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("give either epsilon (the noise follows) or noise_multiplier (ε follows)")
        examples = {"delta": "1e-5", "clip": "1.0"} | (
            {"sampling_rate": "0.05"} if self.hides_records else {}
        )
        for key, example in examples.items():
            if key not in given:
                raise ValueError(f"unit = '{self.unit}' needs '{key}', for example {key} = {example}")
        if not self.hides_records and self.sampling_rate is not None:
            raise ValueError(
                f"'sampling_rate' does not go with unit = '{self.unit}', which samples no records; remove it"
            )
        if not self.hides_records and self.max_records_per_person is not None:
            raise ValueError(
                f"'max_records_per_person' does not go with unit = '{self.unit}', which hides a site's records all together; remove it"
            )
        if not self.shares_noise and self.colluders is not None:
            raise ValueError(
                f"'colluders' does not go with unit = '{self.unit}', whose noise nobody shares in; remove it"
            )
        if self.unit != "site" and self.adaptive_clip is not None:
            raise ValueError(
                f"'adaptive_clip' does not go with unit = '{self.unit}': only the server of unit = 'site' can add the noise that the "
                "count of updates within the clip needs; remove it"
            )
        return self
