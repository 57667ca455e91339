"""``[training]`` and its inner tables: what a site does in a round."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cloister.core.spec.adversarial import Adversarial
from cloister.core.spec.base import Count, Fraction, NonNegative, Positive, Rate, Table, Whole

__all__ = ["EarlyStop", "Optimizer", "Schedule", "Training"]


class Optimizer(Table):
    """``training.optimizer``: the local optimiser; fresh at each round (a site keeps no optimiser state)."""

    name: Literal["sgd", "adam", "adamw", "rmsprop"] = Field(default="sgd", description="as in torch.optim")
    lr: Rate = Field(default=0.05, description="learning rate; the schedule multiplies it")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="sgd and rmsprop")
    nesterov: bool = Field(default=False, description="sgd with momentum")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="adam and adamw", strict=False)
    eps: Annotated[float, Field(ge=1e-30, le=1e6)] = Field(
        default=1e-8, description="adam, adamw and rmsprop"
    )
    weight_decay: NonNegative = Field(
        default=0.0, description="decay of the weights as the optimiser does it"
    )

    @model_validator(mode="after")
    def _own_keys(self) -> Optimizer:
        if self.momentum and self.name in ("adam", "adamw"):
            raise ValueError(f"'momentum' does not go with name = '{self.name}'; use betas")
        if self.nesterov and (self.name != "sgd" or not self.momentum):
            raise ValueError("'nesterov' needs name = 'sgd' and a momentum above 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas = {list(self.betas)} must each be at least 0 and below 1")
        return self


class Schedule(Table):
    """``training.schedule``: the learning rate's factor over the rounds."""

    name: Literal["constant", "step", "exponential", "cosine"] = Field(
        default="constant",
        description="constant, dropping at steps, falling by a factor each round, or along half a cosine",
    )
    every: Count | None = Field(default=None, description="step: rounds between two drops")
    gamma: Annotated[float, Field(ge=1e-12, le=1)] | None = Field(
        default=None, description="step and exponential: factor of each drop"
    )
    floor: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="cosine: the factor that the curve ends on, just after the last round"
    )
    warmup: Whole = Field(default=0, description="rounds of linear warm-up before any of them")

    @model_validator(mode="after")
    def _own_keys(self) -> Schedule:
        if self.name == "step" and (self.every is None or self.gamma is None):
            raise ValueError("name = 'step' needs 'every' and 'gamma', for example every = 10, gamma = 0.5")
        if self.name == "exponential" and self.gamma is None:
            raise ValueError("name = 'exponential' needs 'gamma', for example gamma = 0.97")
        if self.every is not None and self.name != "step":
            raise ValueError(f"'every' does not go with name = '{self.name}'; remove it")
        if self.gamma is not None and self.name not in ("step", "exponential"):
            raise ValueError(f"'gamma' does not go with name = '{self.name}'; remove it")
        return self


class EarlyStop(Table):
    """``training.early_stop``: a site stops its local epochs when its own validation loss no longer falls."""

    patience: Count = Field(default=1, description="epochs without a better validation loss")
    validation: Fraction = Field(
        default=0.2, description="share of the site's training records held out for it"
    )


class Training(Table):
    """``[training]``: what a site does in a round."""

    local_epochs: Count | None = Field(default=None, description="passes over the site's records (default 1)")
    local_steps: Count | None = Field(
        default=None, description="or a number of batches, the same at every site"
    )
    batch_size: Count = Field(default=32, description="records a step; a pass's last batch may be smaller")
    optimizer: Optimizer = Field(default=Optimizer(), description="the local optimiser")
    schedule: Schedule = Field(
        default=Schedule(), description="how the learning rate changes over the rounds"
    )
    proximal_mu: NonNegative = Field(
        default=0.0, description="FedProx (Li et al. 2020): pull towards the round's model"
    )
    scaffold: bool = Field(
        default=False, description="SCAFFOLD (Karimireddy et al. 2020): control variates against drift"
    )
    gradient_clip: Positive | None = Field(
        default=None, description="largest L2 norm of a batch gradient (no privacy by itself)"
    )
    l1: NonNegative = Field(default=0.0, description="L1 penalty on the trained parameters")
    l2: NonNegative = Field(
        default=0.0,
        description="L2 penalty (half the squared norm) in the loss; weight_decay is the optimiser's",
    )
    class_weights: tuple[Positive, ...] | None = Field(
        default=None, description="one public weight a class; never computed from a site's data", strict=False
    )
    early_stop: EarlyStop | None = Field(
        default=None, description="stop local epochs on the site's own validation loss; off unless given"
    )
    adversarial: Adversarial | None = Field(
        default=None, description="attack each record before it is trained on; off unless given"
    )
    precision: Literal["float32", "mixed"] = Field(
        default="float32", description="mixed: where the device has it"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="where a site trains; auto: CUDA, then MPS, then the CPU"
    )

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if self.local_epochs is not None and self.local_steps is not None:
            raise ValueError("give local_epochs or local_steps, not both")
        if self.early_stop is not None and self.local_steps is not None:
            raise ValueError("early_stop counts epochs: give local_epochs instead of local_steps")
        if self.early_stop is not None and self.adversarial is not None:
            raise ValueError(
                "early_stop waits for the loss on records that nobody attacked, and adversarial trains for another; remove one"
            )
        if self.scaffold and (self.optimizer.name != "sgd" or self.optimizer.momentum):
            raise ValueError(
                "scaffold needs optimizer.name = 'sgd' without momentum: its control variates are plain gradients"
            )
        return self

    @property
    def epochs(self) -> int:
        """Local epochs, where they count (``local_steps`` is not given)."""
        return self.local_epochs or 1
