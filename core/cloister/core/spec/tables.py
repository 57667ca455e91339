"""The tables of the federation file, frozen and checked once.

One class a table. A field's ``description`` is its documentation: ``docs/federation-file.md`` is written from it. Names are a
contract: a key may be added; one that stands keeps its name and meaning.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "Aggregation",
    "Cohort",
    "EarlyStop",
    "Evaluation",
    "Federation",
    "FederationSpec",
    "Optimizer",
    "Partition",
    "PoissonCohort",
    "Privacy",
    "RecordsCap",
    "Schedule",
    "ServerOptimizer",
    "Table",
    "TaskTable",
    "Tracking",
    "Training",
]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class Table(BaseModel):
    """Base of every table: frozen, unknown keys refused, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Federation(Table):
    """``[federation]``: what the run is called and how long it lasts."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] = Field(
        description="names the run folder: letters, digits, '-', '_' and '.'"
    )
    rounds: Count = Field(description="how many rounds of training")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        default=0,
        description="seed of a simulation; a deployment draws from the operating system and says so",
    )
    checkpoint_every: Count = Field(
        default=1, description="rounds between two checkpoints; the best and the last round always make one"
    )


class TaskTable(BaseModel):
    """``[task]``: which task, and the task's own options (checked by the task)."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    use: Annotated[str, Field(min_length=1)] = Field(
        description="an installed task, or 'module:attribute', or 'file.py:attribute'"
    )

    @property
    def options(self) -> dict[str, Any]:
        """The task's own options: every key but ``use``."""
        return dict(self.model_extra or {})


class Partition(Table):
    """``cohort.partition``: how a simulation splits the data over its sites."""

    by: Literal["site", "iid", "dirichlet", "shards", "quantity"] = Field(
        default="site",
        description="site: the owners that the data comes with; the others pool the data and split it anew",
    )
    alpha: Positive | None = Field(
        default=None,
        description="dirichlet: concentration of each class's spread over the sites (smaller: more skew)",
    )
    per_site: Count | None = Field(
        default=None,
        description="shards: how many shards a site gets; iid: records a site draws for itself (virtual sites, which may share records)",
    )
    skew: Positive | None = Field(
        default=None, description="quantity: concentration of the site sizes (smaller: more skew)"
    )

    @model_validator(mode="after")
    def _own_keys(self) -> Partition:
        allowed = {
            "dirichlet": {"alpha"},
            "shards": {"per_site"},
            "iid": {"per_site"},
            "quantity": {"skew"},
        }.get(self.by, set())
        needed = {"dirichlet": "alpha", "shards": "per_site", "quantity": "skew"}.get(self.by)
        for key in ("alpha", "per_site", "skew"):
            if getattr(self, key) is not None and key not in allowed:
                raise ValueError(f"'{key}' does not go with by = '{self.by}'; remove it")
        if needed and getattr(self, needed) is None:
            raise ValueError(
                f"by = '{self.by}' needs '{needed}', for example {needed} = {'2' if needed == 'per_site' else '0.5'}"
            )
        return self


class PoissonCohort(Table):
    """``per_round = { poisson = 0.1 }``: every site joins a round with this probability."""

    poisson: Annotated[float, Field(gt=0, le=1)] = Field(
        description="the chance of each site to join a round"
    )


class Cohort(Table):
    """``[cohort]``: who takes part."""

    sites: Count | None = Field(
        default=None,
        description="simulation only: how many sites; may be left out with partition by = 'site'",
    )
    partition: Partition = Field(
        default=Partition(), description="simulation only: how the data is split over the sites"
    )
    per_round: Literal["all"] | Count | PoissonCohort = Field(
        default="all", description="'all', a number of sites drawn each round, or { poisson = p }"
    )
    min_sites: Count = Field(
        default=1, description="below it a round is not aggregated and the run stops with exit 6"
    )
    wait_s: Positive = Field(
        default=600.0, description="seconds that a round waits; a straggler's message expires with it"
    )

    @model_validator(mode="after")
    def _reachable(self) -> Cohort:
        if isinstance(self.per_round, int) and self.per_round < self.min_sites:
            raise ValueError(
                f"per_round = {self.per_round} can never reach min_sites = {self.min_sites}; lower min_sites"
            )
        if self.sites is not None and self.sites < self.min_sites:
            raise ValueError(
                f"sites = {self.sites} can never reach min_sites = {self.min_sites}; lower min_sites"
            )
        if self.sites is not None and isinstance(self.per_round, int) and self.per_round > self.sites:
            raise ValueError(
                f"per_round = {self.per_round} is more than sites = {self.sites}; lower per_round"
            )
        return self


class Optimizer(Table):
    """``training.optimizer``: the local optimiser; fresh at each round (a site keeps no optimiser state)."""

    name: Literal["sgd", "adam", "adamw", "rmsprop"] = Field(default="sgd", description="as in torch.optim")
    lr: Positive = Field(default=0.05, description="learning rate; the schedule multiplies it")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="sgd and rmsprop")
    nesterov: bool = Field(default=False, description="sgd with momentum")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="adam and adamw", strict=False)
    eps: Positive = Field(default=1e-8, description="adam, adamw and rmsprop")
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
    gamma: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="step and exponential: factor of each drop"
    )
    floor: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="cosine: the factor that the curve ends on, just after the last round"
    )
    warmup: Annotated[int, Field(ge=0)] = Field(
        default=0, description="rounds of linear warm-up before any of them"
    )

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
        if self.scaffold and (self.optimizer.name != "sgd" or self.optimizer.momentum):
            raise ValueError(
                "scaffold needs optimizer.name = 'sgd' without momentum: its control variates are plain gradients"
            )
        return self

    @property
    def epochs(self) -> int:
        """Local epochs, where they count (``local_steps`` is not given)."""
        return self.local_epochs or 1


class Privacy(Table):
    """``[privacy]``: the guarantee promised to records or to sites."""

    unit: Literal["none"] = Field(default="none", description="none: no differential privacy")


class RecordsCap(Table):
    """``weighting = { records_cap = 500 }``: a site weighs its records, at most this public number."""

    records_cap: Count = Field(description="the most records that a site can weigh")


class ServerOptimizer(Table):
    """``aggregation.optimizer``: how the mean update moves the model (Reddi et al. 2021)."""

    name: Literal["fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi"] = Field(
        default="fedavg", description="fedavg: add the mean update; the others keep a state at the server"
    )
    lr: Positive = Field(default=1.0, description="server learning rate; about 0.01 for the adaptive ones")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.9, description="fedavgm")
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.9, description="fedadagrad, fedadam, fedyogi"
    )
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.99, description="fedadam, fedyogi")
    tau: Positive = Field(default=1e-3, description="adaptivity: fedadagrad, fedadam, fedyogi")


class Aggregation(Table):
    """``[aggregation]``: how updates become a model."""

    protection: Literal["plain"] = Field(default="plain", description="plain: the server sees every update")
    rule: Literal["mean"] = Field(
        default="mean", description="mean: the weighted mean, which one site that lies can move anywhere"
    )
    weighting: Literal["uniform"] | RecordsCap = Field(
        default="uniform",
        description="uniform, or { records_cap = n }: the server's choice, never only the site's word",
    )
    optimizer: ServerOptimizer = Field(default=ServerOptimizer(), description="the server's step")


class Evaluation(Table):
    """``[evaluation]``: who measures the model, and how often."""

    every: Annotated[int, Field(ge=0)] = Field(
        default=1, description="rounds between two evaluations; 0: none; the last round counts always"
    )
    central: bool = Field(
        default=True,
        description="the server measures on the pooled test records (simulation) or on its own set",
    )
    sites: bool = Field(default=True, description="each site of the cohort measures on its own test records")
    baselines: tuple[Literal["pooled", "local"], ...] = Field(
        default=(),
        description="simulation only: also train on the pooled data, and each site alone, with the same number of steps",
        strict=False,
    )


class Tracking(Table):
    """``[tracking]``: other places that the run's figures go to."""

    tensorboard: bool = Field(
        default=False, description="write TensorBoard files into the run folder (extra cloister[tensorboard])"
    )
    mlflow: str | None = Field(
        default=None,
        description="an MLflow tracking address, for example 'file:mlruns' (extra cloister[mlflow])",
    )


class FederationSpec(Table):
    """A whole federation file."""

    federation: Federation
    task: TaskTable
    cohort: Cohort = Cohort()
    training: Training = Training()
    privacy: Privacy = Privacy()
    aggregation: Aggregation = Aggregation()
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
