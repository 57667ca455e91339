"""``[audit]``: what is kept for audits of the run, which audits are made, and what its model must pass before it is released.

Thresholds are a part of the file, and so of its digest: every site knows them before it trains, and nobody lowers them once the figures are known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from cloister.core.spec.base import Positive, Table

if TYPE_CHECKING:
    from cloister.core.spec.tables import FederationSpec

__all__ = ["Audit", "CheckName", "Level", "Require", "unsound_canaries"]

_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")

CheckName = Annotated[str, Field(pattern=f"^{_NAME.pattern}$")]
#: What a check's verdict must be: pass; pass or warn; anything but fail; anything.
Level = Literal["pass", "warn", "not-failed", "any"]
_Share = Annotated[float, Field(ge=0, le=1)]


class Require(Table):
    """``[audit.require]``: what the model must pass for `cloister release`; beside the keys below, the name of any check."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    __pydantic_extra__: dict[str, Level]

    epsilon_at_most: Positive | None = Field(
        default=None,
        description="no site may have spent more than this ε in the run, recomputed from its events",
    )
    accuracy_at_least: _Share | None = Field(
        default=None,
        description="on the pooled test records, or the mean of the sites where nobody holds those",
    )
    auroc_at_least: _Share | None = Field(default=None, description="on the same records as the accuracy")
    worst_site_accuracy_at_least: _Share | None = Field(
        default=None, description="the least accuracy of a site on its own test records"
    )

    @property
    def levels(self) -> dict[str, Level]:
        """What each named check's verdict must be."""
        return dict(self.__pydantic_extra__ or {})

    @model_validator(mode="after")
    def _named(self) -> Self:
        for name in self.__pydantic_extra__ or {}:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"'{name}' is neither a threshold nor the name of a check (lower-case letters, digits, hyphens)"
                )
        return self


class Audit(Table):
    """``[audit]``: what is kept for, and asked of, audits of the run."""

    transcript: Literal["full", "bounded", "off"] = Field(
        default="off",
        description=(
            "whether the server writes down all that it receives, for `cloister audit transcript`: full: with every protected vector; "
            "bounded: of vectors beyond 256 MiB a digest and figures (the default where updates are protected); off (the default where not)"
        ),
    )
    checks: tuple[CheckName, ...] | None = Field(
        default=None,
        description="the checks that `cloister audit run` makes; left out, every installed one",
        strict=False,
    )
    canaries: Annotated[int, Field(ge=50, le=100_000)] | None = Field(
        default=None,
        description=(
            "so many made-up records with sealed coins, of which half are trained on beside the records of one site, to audit the promise of [privacy] "
            "in the run itself (docs/audits.md); none unless given. 1000 see something at an epsilon of 2 and more"
        ),
    )
    canary_site: Annotated[str, Field(min_length=1, max_length=100)] | None = Field(
        default=None,
        description="the site that plants them, by name: its policy must allow it",
    )
    require: Require | None = Field(
        default=None,
        description="thresholds of `cloister release`; without any, no check may have failed",
    )

    @field_validator("checks", mode="before")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and len({str(name) for name in value}) != len(value):
            raise ValueError("a check is named twice; name each once")
        return value

    @model_validator(mode="after")
    def _planted(self) -> Self:
        if (self.canaries is None) != (self.canary_site is None):
            raise ValueError("canaries and canary_site go together: say how many, and which site plants them")
        return self

    @property
    def canary_weights(self) -> int:
        """How many numbers more the model has while it is trained: one a canary, and a blank."""
        return 0 if self.canaries is None else self.canaries + 1

    @model_validator(mode="after")
    def _made(self) -> Self:
        """Refuse a threshold on a check that is not made."""
        if self.checks is None or self.require is None:
            return self
        left = [
            name for name, level in self.require.levels.items() if level != "any" and name not in self.checks
        ]
        if left:
            raise ValueError(
                f"audit.require.{left[0]} asks for a check that audit.checks leaves out; name it there too"
            )
        return self


def unsound_canaries(spec: FederationSpec) -> Iterator[str]:
    """Say why the run's own canaries would show nothing, or not what they should."""
    if spec.audit.canaries is None:
        return
    privacy, adversarial = spec.privacy, spec.training.adversarial
    if privacy.unit == "none":
        yield "privacy.unit = 'none' promises nothing that could be audited; give the file a [privacy] table"
    elif not privacy.hides_records:
        yield (
            f"privacy.unit = '{privacy.unit}' would take whole sites for canaries, which a run over real sites does not have; `cloister audit privacy` "
            "simulates them"
        )
    if spec.cohort.per_round != "all":
        yield "cohort.per_round must be 'all': the promise is about a site that takes part in every round"
    if spec.aggregation.group_size is not None:
        yield "aggregation.group_size would put the canaries' site into a sum of its group, which is not scored; remove it"
    if spec.attack is not None:
        yield "[attack] would lie about the canaries, too; remove it"
    if adversarial is not None and adversarial.method == "trades":
        yield "training.adversarial.method = 'trades' compares all scores of a record, the canaries' with them; use 'pgd' or 'fgsm-rs'"
