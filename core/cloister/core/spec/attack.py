"""``[attack]``: who lies in a simulation, and how. No deployment reads it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cloister.core.spec.base import Count, Positive, Table, Whole

__all__ = ["ATTACKS", "BACKDOORS", "Attack"]

#: The keys of its own that each attack has.
_OWN: dict[str, tuple[str, ...]] = {
    "none": (),
    "sign-flip": ("scale",),
    "ipm": ("scale",),
    "alie": ("z",),
    "opt-alie": (),
    "opt-ipm": (),
    "min-max": ("direction",),
    "min-sum": ("direction",),
    "mimic": (),
    "label-flip": (),
    "not-finite": (),
    "stale-replay": ("delay",),
    "free-rider": (),
    "badnets": ("target", "poison", "patch"),
    "constrain-and-scale": ("target", "poison", "patch", "scale"),
    "dba": ("target", "poison", "patch"),
    "neurotoxin": ("target", "poison", "patch", "ratio"),
}
#: Every attack's name.
ATTACKS = tuple(_OWN)
#: Those that plant a backdoor: they need a task of images.
BACKDOORS = ("badnets", "constrain-and-scale", "dba", "neurotoxin")


class Attack(Table):
    """``[attack]``: simulation only: some sites lie. Which, is drawn from the run's seed.

    They know all honest updates of the round, the rule and f.
    """

    name: Literal[
        "none",
        "sign-flip",
        "ipm",
        "alie",
        "opt-alie",
        "opt-ipm",
        "min-max",
        "min-sum",
        "mimic",
        "label-flip",
        "not-finite",
        "stale-replay",
        "free-rider",
        "badnets",
        "constrain-and-scale",
        "dba",
        "neurotoxin",
    ] = Field(description="what the lying sites do; none: nobody lies")
    fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="share of all sites that lie, rounded down; or give sites. With neither, as many lie as aggregation.byzantine says",
    )
    sites: Count | None = Field(default=None, description="or how many sites lie")
    scale: Positive | None = Field(
        default=None,
        description="sign-flip: the update times -scale (1); ipm: -scale times the honest mean (0.5); constrain-and-scale: the most that an "
        "update is multiplied by (sites that answer over those that lie)",
    )
    z: Positive | None = Field(
        default=None,
        description="alie: standard deviations from the honest mean; left out, the most that hides among the honest",
    )
    direction: Literal["unit", "std", "sign"] | None = Field(
        default=None,
        description="min-max and min-sum: along which they leave the honest mean: against it (unit), against its sign, or along the "
        "standard deviations (std, the default)",
    )
    delay: Count | None = Field(
        default=None, description="stale-replay: rounds by which an update is late (5)"
    )
    target: Whole | None = Field(
        default=None, description="backdoors: the class that the trigger shall give (0)"
    )
    poison: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="backdoors: share of a lying site's records that carry the trigger (0.5)"
    )
    patch: Count | None = Field(default=None, description="backdoors: side of the trigger, in pixels (3)")
    ratio: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None,
        description="neurotoxin: share of the coordinates, those that honest sites move most, that it leaves alone (0.1)",
    )

    @model_validator(mode="after")
    def _own_keys(self) -> Attack:
        if self.fraction is not None and self.sites is not None:
            raise ValueError("give fraction or sites, not both")
        known = sorted({key for keys in _OWN.values() for key in keys})
        for key in known:
            if getattr(self, key) is not None and key not in _OWN[self.name]:
                raise ValueError(f"'{key}' does not go with name = '{self.name}'; remove it")
        return self

    @property
    def backdoor(self) -> bool:
        """Whether it plants a backdoor."""
        return self.name in BACKDOORS

    def liars(self, sites: int, byzantine: int) -> int:
        """Return how many of ``sites`` sites lie."""
        if self.name == "none":
            return 0
        if self.sites is not None:
            return self.sites
        return byzantine if self.fraction is None else int(self.fraction * sites + 1e-9)
