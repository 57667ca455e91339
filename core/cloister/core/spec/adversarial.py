"""``[training.adversarial]``: what an adversary may do to a record, and how a site trains against it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cloister.core.spec.base import Positive, Table, Whole

__all__ = ["Adversarial"]

#: Methods that others offer and Cloister refuses, with the reason.
_REFUSED = {
    "free": "method = 'free' (Shafahi et al. 2019) carries one batch's perturbation on to the next batch: a record's perturbation "
    "then depends on other records, which no privacy for records survives; use 'pgd', 'trades' or 'fgsm-rs'",
    "universal": "method = 'universal' shares one perturbation between all records of a batch: each record's gradient then depends "
    "on the others; use 'pgd', 'trades' or 'fgsm-rs'",
}
_STEPS = {"pgd": 7, "trades": 10, "fgsm-rs": 1}


class Adversarial(Table):
    """``[training.adversarial]``: each record is attacked before it is trained on."""

    method: Literal["pgd", "trades", "fgsm-rs"] = Field(
        description="pgd: train on attacked records (Madry et al. 2018); trades: on clean ones, with a penalty for moving "
        "(Zhang et al. 2019); fgsm-rs: one step from a random start (Wong et al. 2020), watched by a PGD canary"
    )
    norm: Literal["linf", "l2"] = Field(default="linf", description="how a perturbation is measured")
    epsilon: Positive = Field(
        description="the largest norm of a record's perturbation, in the units of the model's input"
    )
    steps: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None, description="gradient steps of the attack (default: pgd 7, trades 10, fgsm-rs 1)"
    )
    step_size: Positive | None = Field(
        default=None, description="length of a step (default 2.5 epsilon / steps; fgsm-rs 1.25 epsilon)"
    )
    beta: Positive | None = Field(default=None, description="trades: weight of the penalty (default 6)")
    random_start: bool = Field(
        default=True, description="begin at a random point within epsilon (trades: very near the record)"
    )
    warmup: Whole = Field(
        default=0, description="rounds over which epsilon grows to its value, in equal steps"
    )
    calibrated: bool = Field(
        default=False,
        description="CalFAT (Chen et al. 2022): add the log of the site's own class shares to the scores while training, against "
        "label skew; the counts stay at the site",
    )
    features: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(
        default=None,
        strict=False,
        description="records of named columns: the numeric columns that an adversary can change (default all numeric ones)",
    )

    @model_validator(mode="before")
    @classmethod
    def _known_to_be_unsound(cls, table: Any) -> Any:
        method = table.get("method") if isinstance(table, dict) else None
        if isinstance(method, str) and method in _REFUSED:
            raise ValueError(_REFUSED[method])
        return table

    @model_validator(mode="after")
    def _own_keys(self) -> Adversarial:
        if self.beta is not None and self.method != "trades":
            raise ValueError(f"'beta' does not go with method = '{self.method}'; remove it")
        if self.method == "fgsm-rs" and self.steps not in (None, 1):
            raise ValueError(f"steps = {self.steps}: fgsm-rs makes one step; use method = 'pgd'")
        if self.method == "fgsm-rs" and not self.random_start:
            raise ValueError(
                "method = 'fgsm-rs' without random_start overfits to its one step (Wong et al. 2020, section 5.1); "
                "use 'pgd', or set random_start = true"
            )
        if self.features is not None and len(set(self.features)) < len(self.features):
            raise ValueError("'features' names a column twice")
        return self

    @property
    def attack_steps(self) -> int:
        """Gradient steps of the attack."""
        return self.steps or _STEPS[self.method]

    def attack_step_size(self, epsilon: float) -> float:
        """Length of a step for a perturbation of at most ``epsilon``; a given ``step_size`` shrinks with the warm-up."""
        if self.step_size is not None:
            return self.step_size * epsilon / self.epsilon
        return 1.25 * epsilon if self.method == "fgsm-rs" else 2.5 * epsilon / self.attack_steps

    def epsilon_in(self, round_number: int) -> float:
        """The largest perturbation in a round, counted from 1: less than ``epsilon`` while it warms up."""
        return self.epsilon * min(1.0, round_number / (self.warmup + 1))
