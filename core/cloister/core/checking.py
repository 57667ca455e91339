"""Checks that need more than the federation file: the task, this machine, the records.

`check_federation` asks whether file, task and machine fit together; `check_records` whether the file fits the records. Both
refuse what cannot give a sound run, all reasons at once, and return warnings for what can but is probably not meant.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from cloister.core.adversarial.objectives import trained_threat
from cloister.core.data import Split
from cloister.core.errors import SpecError, TaskError
from cloister.core.resolve import POOLED
from cloister.core.spec import FederationSpec, Loaded, Origin, PoissonCohort, Training
from cloister.core.spec.grouping import unsound_groups
from cloister.core.spec.pipelines import read_pipeline
from cloister.core.spec.robustness import UNDEFENDED, fewest_updates
from cloister.core.task import Task
from cloister.core.tasks.statistics import bare_statistic

__all__ = ["MOST_LOCAL_BASELINES", "check_federation", "check_records", "expected_cohort", "population"]

#: ``evaluation.baselines = ["local"]`` is refused over more sites than this.
MOST_LOCAL_BASELINES = 20

_ADAPTIVE = ("fedadagrad", "fedadam", "fedyogi")
_EXTRAS = {"tensorboard": "tensorboard", "mlflow": "mlflow"}
#: A run is warned of when a round is likelier than this to fall below ``min_sites`` by the draw alone.
_SHORT_ROUND = 0.01
#: At most so many sites are named in one warning.
_NAMED = 5


def check_federation(loaded: Loaded, task: Task) -> list[str]:
    """Check that the file fits the task and this machine; return warnings.

    Raises:
        SpecError: they do not go together; the message holds every reason.
    """
    bare = bare_statistic(loaded.spec, task)
    _refuse(iter([bare] if bare else _unsound(loaded.spec, task)))
    return [*_poor_training(loaded), *_poor_rounds(loaded.spec)]


def check_records(loaded: Loaded, splits: Mapping[str, Split]) -> list[str]:
    """Check that the file fits the records; return warnings.

    Args:
        loaded: the federation file.
        splits: the records by owner, as `cloister.core.resolve.owners` returns them.

    Raises:
        SpecError: no sound run is possible with these records; the message holds every reason.
    """
    _refuse(_unsound_records(loaded.spec, splits))
    return [*_poor_cohort(loaded.spec, splits), *_poor_sites(loaded.spec, splits)]


def population(spec: FederationSpec, splits: Mapping[str, Split]) -> int:
    """Return the number of sites: ``cohort.sites``, or the owners that the data comes with."""
    return spec.cohort.sites or len(splits)


def expected_cohort(spec: FederationSpec, sites: int) -> float:
    """Return how many of ``sites`` sites take part in a round: the mean, where it is drawn."""
    per_round = spec.cohort.per_round
    if isinstance(per_round, PoissonCohort):
        return sites * per_round.poisson
    return float(min(per_round, sites) if isinstance(per_round, int) else sites)


def _refuse(reasons: Iterator[str]) -> None:
    lines = list(reasons)
    if lines:
        raise SpecError(
            "the federation is unsound:\n" + "\n".join(f"  {line}" for line in lines),
            remedy="change these keys and try again",
            code="unsound",
        )


def _unsound(spec: FederationSpec, task: Task) -> Iterator[str]:
    training, weights = spec.training, spec.training.class_weights
    if weights is not None and task.kind == "regression":
        yield "training.class_weights goes with a classification, and the task is a regression; remove it"
    elif weights is not None and len(weights) != len(task.classes):
        yield f"training.class_weights has {len(weights)} entries, and the task has {len(task.classes)} classes; give one weight a class"
    if training.scaffold and training.early_stop is not None:
        yield "training.early_stop goes back to an earlier model, and scaffold's control variates count every step; remove one"
    yield from _unsound_attack(training, task)
    yield from _unsound_canaries(spec, task)
    if not {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(
        training.device, True
    ):
        yield f"training.device = '{training.device}' is not on this machine; use device = 'auto'"
    by = spec.cohort.partition.by
    if by != "site" and spec.cohort.sites is None:
        yield f"cohort.partition by = '{by}' pools the data and splits it anew: say over how many sites, for example cohort.sites = 10"
    if by == "dirichlet" and task.kind == "regression":
        yield f"cohort.partition by = '{by}' spreads classes, and the task is a regression; use 'iid', 'shards' or 'quantity'"
    if spec.evaluation.baselines and not spec.evaluation.central:
        yield "evaluation.baselines are measured on the central test records; set evaluation.central = true, or remove baselines"
    for key, module in _EXTRAS.items():
        if getattr(spec.tracking, key) and importlib.util.find_spec(module) is None:
            yield f"tracking.{key} needs a package that is not installed; pip install 'cloister[{key}]', or remove the key"


def _unsound_canaries(spec: FederationSpec, task: Task) -> Iterator[str]:
    if spec.audit.canaries is not None and task.kind == "regression":
        yield "audit.canaries are known by their class, and the task is a regression; audit a classification under the same [privacy] table"


def _unsound_attack(training: Training, task: Task) -> Iterator[str]:
    if training.adversarial is not None:
        try:
            trained_threat(training.adversarial, task)
        except TaskError as error:
            yield f"{error.message}; {error.remedy}"


def _poor_training(loaded: Loaded) -> Iterator[str]:
    training, rounds = loaded.spec.training, loaded.spec.federation.rounds
    optimizer, schedule = training.optimizer, training.schedule
    if optimizer.name != "sgd" and loaded.origins.get("training.optimizer.lr") is Origin.DEFAULT:
        yield f"training.optimizer.lr = {optimizer.lr} is a default for sgd; {optimizer.name} usually wants about 0.001"
    if schedule.warmup >= rounds:
        yield f"training.schedule.warmup = {schedule.warmup} never ends within {rounds} rounds"
    if schedule.every is not None and schedule.every >= rounds:
        yield f"training.schedule.every = {schedule.every} never drops the learning rate within {rounds} rounds"
    if training.early_stop is not None and training.epochs == 1:
        yield "training.early_stop can stop nothing with one local epoch, and holds records out; raise local_epochs or remove it"
    if training.scaffold and training.proximal_mu:
        yield "training.scaffold and proximal_mu both correct drift; one of them is usually enough"
    if training.precision == "mixed" and training.device == "cpu":
        yield "training.precision = 'mixed' changes nothing on device = 'cpu'"
    aggregation = loaded.spec.aggregation
    if not aggregation.byzantine and any(stage.kind.uses for stage in read_pipeline(aggregation.rule)):
        yield f"aggregation.rule = '{aggregation.rule}' with byzantine = 0 defends against nobody; say how many sites may lie"
    server = aggregation.optimizer
    if server.name in _ADAPTIVE and server.lr >= 0.5:
        yield f"aggregation.optimizer.lr = {server.lr} moves each parameter by about that much a round with {server.name}; try 0.01"


def _poor_rounds(spec: FederationSpec) -> Iterator[str]:
    rounds, evaluation = spec.federation.rounds, spec.evaluation
    if spec.cohort.min_sites == 1:
        yield "cohort.min_sites = 1: a round that one site answers releases that site's own model to all; use at least 3"
    if spec.aggregation.group_size is not None and spec.aggregation.protection == "plain":
        yield "aggregation.group_size in clear: the server sees each update; this is a rehearsal of what masks would give"
    elif spec.aggregation.rule != UNDEFENDED and spec.aggregation.group_size is None:
        yield "aggregation.rule compares single updates: the server sees each site's in clear (protection = 'plain')"
    if not evaluation.central and not evaluation.sites:
        yield "evaluation.central and evaluation.sites are both false: nothing measures the model"
    elif evaluation.every > rounds:
        yield f"evaluation.every = {evaluation.every} is more than {rounds} rounds: only the last round is measured"


def _unsound_records(spec: FederationSpec, splits: Mapping[str, Split]) -> Iterator[str]:
    cohort, sites = spec.cohort, population(spec, splits)
    if cohort.partition.by == "site":
        if set(splits) == {POOLED}:
            yield "cohort.partition by = 'site' needs data that comes with owners, and this task's has none; use for example by = 'iid'"
        elif sites != len(splits):
            yield f"cohort.sites = {sites}, and the data comes with {len(splits)} owners; remove cohort.sites, or split anew with by = 'iid'"
    elif cohort.partition.by != "iid" or cohort.partition.per_site is None:
        records = sum(len(split.train) for split in splits.values())
        needed = sites * (cohort.partition.per_site or 1)
        if needed > records:
            yield f"cohort.partition by = '{cohort.partition.by}' needs at least {needed} training records, and there are {records}; lower cohort.sites"
    yield from _too_few(spec, sites)
    planting = spec.audit.canary_site
    if planting is not None and cohort.partition.by == "site" and planting not in splits:
        yield f"audit.canary_site = '{planting}' is no site of the data; name one of {', '.join(list(splits)[:_NAMED])}"
    if isinstance(cohort.per_round, int) and cohort.per_round > sites:
        yield f"cohort.per_round = {cohort.per_round} is more than {sites} sites; lower it"
    if "local" in spec.evaluation.baselines and sites > MOST_LOCAL_BASELINES:
        yield (
            f"evaluation.baselines = 'local' trains a model for each of {sites} sites, one by one, "
            f"and does so for at most {MOST_LOCAL_BASELINES}; keep 'pooled' only"
        )
    if spec.evaluation.baselines and not _tested(splits):
        yield "evaluation.baselines are measured on test records, and the task has none; remove baselines"


def _too_few(spec: FederationSpec, sites: int) -> Iterator[str]:
    least, aggregation = fewest_updates(spec), spec.aggregation
    if aggregation.group_size is not None:
        yield from unsound_groups(
            spec.model_copy(update={"cohort": spec.cohort.model_copy(update={"sites": sites})})
        )
    elif least is not None and least > sites:
        yield (
            f"aggregation.rule = '{aggregation.rule}' with byzantine = {aggregation.byzantine} needs at least {least} updates a round, "
            f"and there are {sites} sites; lower byzantine, or choose another rule"
        )
    if spec.cohort.min_sites > sites and (least is None or least <= sites):
        yield f"cohort.min_sites = {spec.cohort.min_sites} can never be reached by {sites} sites; lower it"


def _poor_cohort(spec: FederationSpec, splits: Mapping[str, Split]) -> Iterator[str]:
    cohort, sites = spec.cohort, population(spec, splits)
    delta = spec.privacy.delta
    if delta is not None and spec.privacy.unit.startswith("site") and delta * sites >= 1:
        yield f"privacy.delta = {delta:g} allows to expose one of {sites} sites outright; take a δ well below {1 / sites:.2g}"
    if isinstance(cohort.per_round, PoissonCohort):
        short = _binomial_below(cohort.min_sites, sites, cohort.per_round.poisson)
        if short > _SHORT_ROUND:
            yield (
                f"cohort.per_round = {{ poisson = {cohort.per_round.poisson} }} of {sites} sites falls below "
                f"min_sites = {cohort.min_sites} in {short:.0%} of the draws; raise poisson or lower min_sites"
            )


def _poor_sites(spec: FederationSpec, splits: Mapping[str, Split]) -> Iterator[str]:
    if spec.evaluation.central and not _tested(splits):
        yield "the task has no test record: evaluation.central measures nothing"
    if spec.cohort.partition.by != "site":
        return
    small = [name for name, split in splits.items() if len(split.train) < spec.training.batch_size]
    if small and spec.training.local_steps is None:
        yield f"training.batch_size = {spec.training.batch_size} is more than all records of {_names(small)}: one step an epoch there"
    untested = [name for name, split in splits.items() if not len(split.test)]
    if untested and spec.evaluation.sites:
        yield f"no test record at {_names(untested)}: evaluation.sites measures nothing there"
    single = [name for name, split in splits.items() if _one_class(split.train.targets)]
    if single:
        yield f"all training records of {_names(single)} have one class"


def _tested(splits: Mapping[str, Split]) -> bool:
    return any(len(split.test) for split in splits.values())


def _one_class(targets: Tensor) -> bool:
    return not targets.is_floating_point() and bool((targets == targets[0]).all())


def _binomial_below(least: int, trials: int, chance: float) -> float:
    """Return the probability of fewer than ``least`` successes in ``trials``."""
    if chance >= 1:
        return float(trials < least)
    logs = [
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(chance)
        + (trials - k) * math.log1p(-chance)
        for k in range(min(least, trials + 1))
    ]
    return math.fsum(map(math.exp, logs))


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
