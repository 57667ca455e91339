"""The tables of the federation file, frozen and checked once.

One class a table. A field's ``description`` is its documentation: ``docs/federation-file.md`` is written from it. Names are a
contract: a key may be added; one that stands keeps its name and meaning.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cloister.core.spec.adversarial import Adversarial
from cloister.core.spec.attack import Attack
from cloister.core.spec.auditing import Audit, Require, unsound_canaries
from cloister.core.spec.base import Count, Positive, Rate, Spread, Table, Whole
from cloister.core.spec.grouping import LEAST_PROTECTED, least_in_sum, unsound_groups
from cloister.core.spec.pipelines import pipeline_text, read_pipeline
from cloister.core.spec.privacy import AdaptiveClip, Privacy
from cloister.core.spec.robustness import UNDEFENDED, filled, unsound_rule
from cloister.core.spec.training import EarlyStop, Optimizer, Schedule, Training

__all__ = [
    "LEAST_PROTECTED",
    "AdaptiveClip",
    "Adversarial",
    "Aggregation",
    "Attack",
    "Audit",
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
    "Require",
    "Schedule",
    "ServerOptimizer",
    "Table",
    "TaskTable",
    "Tracking",
    "Training",
]


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
    alpha: Spread | None = Field(
        default=None,
        description="dirichlet: concentration of each class's spread over the sites (smaller: more skew)",
    )
    per_site: Count | None = Field(
        default=None,
        description="shards: how many shards a site gets; iid: records a site draws for itself (virtual sites, which may share records)",
    )
    skew: Spread | None = Field(
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
        default=1,
        description="below it a round is not aggregated and the run stops with exit 6; left out, it is 3 where updates are protected (and never "
        "less there), and the fewest that a robust rule needs for aggregation.byzantine",
    )
    wait_s: Annotated[float, Field(ge=1e-3, le=1e8)] = Field(
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


class RecordsCap(Table):
    """``weighting = { records_cap = 500 }``: a site weighs its records, at most this public number."""

    records_cap: Count = Field(description="the most records that a site can weigh")


class ServerOptimizer(Table):
    """``aggregation.optimizer``: how the mean update moves the model (Reddi et al. 2021)."""

    name: Literal["fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi"] = Field(
        default="fedavg", description="fedavg: add the mean update; the others keep a state at the server"
    )
    lr: Rate = Field(default=1.0, description="server learning rate; about 0.01 for the adaptive ones")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.9, description="fedavgm")
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.9, description="fedadagrad, fedadam, fedyogi"
    )
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.99, description="fedadam, fedyogi")
    tau: Positive = Field(default=1e-3, description="adaptivity: fedadagrad, fedadam, fedyogi")


class Aggregation(Table):
    """``[aggregation]``: how updates become a model."""

    protection: Literal["plain", "masked", "bfv", "ckks", "threshold-bfv"] = Field(
        default="plain",
        description=(
            "masked: the server sees sums of updates only (the default of every federation of three sites or more); bfv, ckks: sums "
            "under homomorphic encryption, opened by a key authority; threshold-bfv: the same, opened by all sites of the round together (experimental; needs OpenFHE); "
            "plain: the server sees every update (the default of fewer sites, and "
            "where a robust rule or an attack is about single updates)"
        ),
    )
    reach: Positive = Field(
        default=4.0,
        description="where updates are protected: the largest magnitude of one number of an update; what lies beyond is cut to it, and the report says so",
    )
    rule: str = Field(
        default="mean",
        description="mean: the weighted mean, which one site that lies can move anywhere; or a pipeline, left to right, for example "
        "`arc | nnm | trimmed-mean`: see [robustness](robustness.md)",
    )
    byzantine: Whole = Field(
        default=0,
        description="f: how many of the sites that answer a round may lie; a rule that cannot bear so many is refused",
    )
    group_size: Count | None = Field(
        default=None,
        description="masked, with a robust rule: sites are split into fixed groups of at least so many (3 or more) that nobody chooses, the server "
        "sees one sum a group, and the rule joins the groups' means: see [robustness](robustness.md#under-masks-in-groups)",
    )
    weighting: Literal["uniform"] | RecordsCap = Field(
        default="uniform",
        description="uniform, or { records_cap = n }: the server's choice, never only the site's word",
    )
    optimizer: ServerOptimizer = Field(default=ServerOptimizer(), description="the server's step")
    average_rounds: Count | None = Field(
        default=None,
        description="the model that is measured and released is a running mean of the rounds' models over about so many; off unless given",
    )

    @field_validator("rule")
    @classmethod
    def _one_way(cls, text: str) -> str:
        """Write a pipeline in one way, so that two files that mean the same are the same."""
        return pipeline_text(read_pipeline(text))


class Evaluation(Table):
    """``[evaluation]``: who measures the model, and how often."""

    every: Whole = Field(
        default=1, description="rounds between two evaluations; 0: none; the last round counts always"
    )
    central: bool = Field(
        default=True,
        description="the server measures on the pooled test records (simulation) or on its own set",
    )
    sites: bool = Field(
        default=True,
        description="each site of the cohort measures on its own test records; off in a private run, where that would leak",
    )
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
    attack: Attack | None = None
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()
    audit: Audit = Audit()

    @model_validator(mode="before")
    @classmethod
    def _withhold_metrics(cls, document: Any) -> Any:
        """A private run measures nothing at the sites unless the file asks for it (and then it is refused)."""
        if not isinstance(document, dict):
            return document
        privacy, evaluation = document.get("privacy"), document.get("evaluation", {})
        private = isinstance(privacy, dict) and privacy.get("unit", "none") != "none"
        if private and isinstance(evaluation, dict) and "sites" not in evaluation:
            return {**document, "evaluation": {**evaluation, "sites": False}}
        return document

    @model_validator(mode="before")
    @classmethod
    def _protect(cls, document: Any) -> Any:
        """Fill in what depends on other tables: updates are masked wherever three sites can be in a sum; a robust rule sets how many it needs."""
        if not isinstance(document, dict):
            return document
        document = filled(document)
        cohort, aggregation, audit = (document.get(name, {}) for name in ("cohort", "aggregation", "audit"))
        if not all(isinstance(table, dict) for table in (cohort, aggregation, audit)):
            return document
        asked = [cohort.get("sites"), cohort.get("per_round")]
        few = any(type(number) is int and number < LEAST_PROTECTED for number in asked)
        grouped = aggregation.get("group_size") is not None
        robust = aggregation.get("rule", UNDEFENDED) != UNDEFENDED and not grouped
        single = robust or document.get("attack") is not None
        protection = aggregation.get("protection", "plain" if few or single else "masked")
        least = 1 if protection == "plain" else LEAST_PROTECTED
        return {
            **document,
            "aggregation": {"protection": protection, **aggregation},
            "cohort": {"min_sites": least, **cohort},
            "audit": {"transcript": "off" if protection == "plain" else "bounded", **audit},
        }

    @model_validator(mode="after")
    def _sound_protection(self) -> FederationSpec:
        """Refuse sums that would show one site to another, or to the server."""
        protection, least = self.aggregation.protection, self.cohort.min_sites
        if protection != "plain" and least < LEAST_PROTECTED:
            raise ValueError(
                f"aggregation.protection = '{protection}' protects sums of at least {LEAST_PROTECTED} sites, and cohort.min_sites = {least} "
                "would reveal smaller ones; raise cohort.min_sites, or set aggregation.protection = 'plain': the server then sees every update"
            )
        return self

    @model_validator(mode="after")
    def _sound_rule(self) -> FederationSpec:
        """Refuse a rule that cannot keep what it says."""
        reasons = [*unsound_rule(self), *unsound_groups(self)]
        if reasons:
            raise ValueError("; ".join(reasons))
        return self

    @model_validator(mode="after")
    def _sound_privacy(self) -> FederationSpec:
        """Refuse what would void the guarantee, each with its reason."""
        if self.privacy.unit == "none":
            return self
        unit = self.privacy.unit
        unsound = self._unsound_for_all() | (
            self._unsound_for_records() if self.privacy.hides_records else self._unsound_for_sites()
        )
        if self.privacy.shares_noise:
            unsound |= self._unsound_for_shares()
        if unit == "record-distributed":
            unsound |= self._unsound_for_one_step()
        reasons = [reason for reason, holds in unsound.items() if holds]
        if reasons:
            raise ValueError(f"privacy.unit = '{unit}' is unsound here: " + "; ".join(reasons))
        return self

    @model_validator(mode="after")
    def _sound_canaries(self) -> FederationSpec:
        """Refuse canaries where they would show nothing."""
        reasons = list(unsound_canaries(self))
        if reasons:
            raise ValueError("audit.canaries is unsound here: " + "; ".join(reasons))
        return self

    def _unsound_for_all(self) -> dict[str, bool]:
        return {
            "aggregation.weighting = { records_cap } tells each site's number of records; use 'uniform'": self.aggregation.weighting
            != "uniform",
            "evaluation.sites would release metrics of each site's records without noise; set it to false": self.evaluation.sites,
        }

    def _unsound_for_records(self) -> dict[str, bool]:
        training = self.training
        return {
            "training.local_steps must be given: the number of noisy steps is public": training.local_steps
            is None,
            "training.early_stop reads the site's records without noise": training.early_stop is not None,
            "training.gradient_clip would hide whether privacy.clip holds; use privacy.clip": training.gradient_clip
            is not None,
            "training.precision = 'mixed' is not offered under differential privacy": training.precision
            == "mixed",
            "training.scaffold is not offered under differential privacy": training.scaffold,
        } | self._unsound_attacks()

    def _unsound_attacks(self) -> dict[str, bool]:
        """What would read a site's records without noise while it trains against an adversary."""
        adversarial = self.training.adversarial
        return {
            "training.adversarial.calibrated reads the site's class counts without noise": adversarial
            is not None
            and adversarial.calibrated,
            "training.adversarial.method = 'fgsm-rs' stops a site by a canary that reads its records without noise; use 'pgd' with steps = 1": (
                adversarial is not None and adversarial.method == "fgsm-rs"
            ),
        }

    def _unsound_for_sites(self) -> dict[str, bool]:
        return {
            "training.scaffold sends a second array that no noise covers; remove it": self.training.scaffold,
            **self._unsound_for_sums(),
        }

    def _unsound_for_sums(self) -> dict[str, bool]:
        return {
            "aggregation.rule must be 'mean': the noise is calibrated to a sum (aggregation.group_size gives each group one)": (
                self.aggregation.rule != "mean" and self.aggregation.group_size is None
            ),
            "the sum is divided by a public number of sites, and the file has none; give cohort.sites, or cohort.per_round as a number": (
                self.cohort.sites is None and not isinstance(self.cohort.per_round, int)
            ),
        }

    def _unsound_for_shares(self) -> dict[str, bool]:
        colluders, least = self.privacy.colluders or 0, least_in_sum(self)
        of, more = ("cohort.min_sites", "raise min_sites")
        if self.aggregation.group_size is not None:
            of, more = ("the fewest sites in a group's sum", "lower colluders")
        return {
            f"privacy.colluders = {colluders} leaves no honest site of {of} = {least}; {more}": colluders
            >= least
        }

    def _unsound_for_one_step(self) -> dict[str, bool]:
        """Refuse what a site would do to a step that is the whole federation's."""
        training, optimizer = self.training, self.training.optimizer
        return {
            **self._unsound_for_sums(),
            "training.local_steps must be 1: the noise shares of a step add up before the next one, or not at all": training.local_steps
            != 1,
            "training.optimizer must be plain sgd without momentum and weight_decay: a site sends a clipped sum, and the step is the "
            "server's; use aggregation.optimizer": (
                optimizer.name != "sgd" or optimizer.momentum > 0 or optimizer.weight_decay > 0
            ),
            "training.proximal_mu, l1 and l2 change a step at the site, and the step is the server's; remove them": (
                training.proximal_mu > 0 or training.l1 > 0 or training.l2 > 0
            ),
            "evaluation.baselines train without the other sites' noise shares; remove them": bool(
                self.evaluation.baselines
            ),
        }
