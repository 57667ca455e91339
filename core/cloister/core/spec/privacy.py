"""``[privacy]`` and its inner table: what is promised, to whom, and by which mechanism."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cloister.core.spec.base import Fraction, Positive, Table

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

    unit: Literal["none", "record", "site", "site-local", "site-distributed"] = Field(
        default="none",
        description=(
            "none: no differential privacy; record: each site's own records, by DP-SGD at the site; a whole site's contribution: "
            "site (noise added by a trusted server), site-local (each site's own noise), site-distributed (noise shares that add up)"
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
        description="record: q, the chance of each record to join a step; with training.batch_size, the public divisor of the sum",
    )
    max_records_per_person: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None,
        description="record: k, the most records that one person has at a site; the promise is then made to persons. 1 unless given",
    )
    adaptive_clip: AdaptiveClip | None = Field(
        default=None,
        description="site: let the clip follow the norms, from privacy.clip on; off unless given",
    )

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
            {"sampling_rate": "0.05"} if self.unit == "record" else {}
        )
        for key, example in examples.items():
            if key not in given:
                raise ValueError(f"unit = '{self.unit}' needs '{key}', for example {key} = {example}")
        if self.unit != "record" and self.sampling_rate is not None:
            raise ValueError(
                f"'sampling_rate' does not go with unit = '{self.unit}', which samples no records; remove it"
            )
        if self.unit != "record" and self.max_records_per_person is not None:
            raise ValueError(
                f"'max_records_per_person' does not go with unit = '{self.unit}', which hides a site's records all together; remove it"
            )
        if self.unit != "site" and self.adaptive_clip is not None:
            raise ValueError(
                f"'adaptive_clip' does not go with unit = '{self.unit}': only the server of unit = 'site' can add the noise that the "
                "count of updates within the clip needs; remove it"
            )
        return self
