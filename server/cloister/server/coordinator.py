"""The round loop: choose a cohort, send the model, check what comes back, move the model, measure, keep.

The loop knows Flower only through a ``Grid``, so it is the same in process, over Ray and over a SuperLink. A bad reply costs its
sender the round and nobody else; a round with too few usable replies is tried again, and a run whose rounds keep failing stops
with the names of the missing and stays resumable.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from cloister.core import protocol
from cloister.core.errors import PeersMissing
from cloister.core.metrics import Measurement
from cloister.core.randomness import Randomness
from cloister.core.spec import Loaded
from cloister.core.update import Layout, Vector
from cloister.server.checkpoints import Arrays, Best, Checkpoint, CheckpointStore
from cloister.server.cohort import choose_cohort
from cloister.server.directory import Directory
from cloister.server.events import EventBus
from cloister.server.exchange import Answer, exchange
from cloister.server.replies import CheckedEvaluation, CheckedUpdate, Refused, check_evaluation, check_update
from cloister.strategies.optimisers import OptimiserState, optimiser_from
from cloister.strategies.rules import rule_from
from cloister.strategies.scaffold import ScaffoldState, server_control

__all__ = ["Coordinator", "RunPlan", "SiteMemory"]

#: A round that found too few sites is tried this often before the run stops.
_ATTEMPTS = 3
#: Up to this many sites, the last round is measured at all of them and not only at its cohort.
_ALL_SITES = 200


class SiteMemory(Protocol):
    """What virtual sites keep between rounds, where an engine holds it for them."""

    def arrays(self) -> Arrays:
        """Return it as named arrays for a checkpoint."""
        ...

    def restore(self, arrays: Arrays) -> None:
        """Put it back."""
        ...


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """All that one run needs.

    Attributes:
        loaded: the federation file.
        layout: what lies where in the model's vector.
        initial: (size,) the model as it was built.
        classes: number of classes (0: regression).
        randomness: seeded in simulation, the operating system's in deployment.
        bus: where events go.
        store: where checkpoints go.
        central: measures a model at the server, or ``None``.
        memory: what virtual sites keep, or ``None``.
        make_array: how a flat vector becomes a Flower ``Array``.
        resume: the checkpoint to go on from.
    """

    loaded: Loaded
    layout: Layout
    initial: Vector
    classes: int
    randomness: Randomness
    bus: EventBus
    store: CheckpointStore
    central: Callable[[Vector], Measurement] | None
    memory: SiteMemory | None = None
    make_array: Callable[[Vector], Array] = Array
    resume: Checkpoint | None = None


@dataclass(frozen=True, kw_only=True)
class _State:
    round_number: int
    model: Vector
    optimiser: OptimiserState
    scaffold: ScaffoldState | None
    best: Best | None


@dataclass(frozen=True, kw_only=True)
class _Trained:
    """What one attempt at a round brought."""

    answered: int
    missing: list[str]
    refused: list[dict[str, str]]
    losses: list[float]
    directions: dict[str, Any]
    bytes_up: int
    bytes_down: int


class Coordinator:
    """Runs one federation over a Flower grid."""

    def __init__(self, plan: RunPlan, grid: Grid, directory: Directory) -> None:
        self._plan = plan
        self._spec = plan.loaded.spec
        self._grid = grid
        self._directory = directory
        self._bus = plan.bus
        self._rule = rule_from(self._spec.aggregation)
        self._optimiser = optimiser_from(self._spec.aggregation.optimizer)
        self._digest = plan.loaded.digest()
        self._federation = json.dumps(plan.loaded.effective())
        scaffold = self._spec.training.scaffold
        self._names = (protocol.VECTOR, protocol.CONTROL) if scaffold else (protocol.VECTOR,)

    def run(self) -> Vector:
        """Run the rounds that are left and return the model.

        Raises:
            PeersMissing: rounds kept falling below ``cohort.min_sites``.
        """
        state = self._begin()
        for number in range(state.round_number + 1, self._spec.federation.rounds + 1):
            state = self._round(number, state)
        return state.model

    def _begin(self) -> _State:
        plan, size = self._plan, self._plan.layout.size
        if plan.resume is not None:
            arrays = plan.resume.arrays
            if plan.memory is not None:
                plan.memory.restore(_under(arrays, "site."))
            return _State(
                round_number=plan.resume.round_number,
                model=arrays["model"],
                optimiser=self._optimiser.from_arrays(_under(arrays, "optimiser."), size),
                scaffold=ScaffoldState.from_arrays(_under(arrays, "scaffold."), size) if self._spec.training.scaffold else None,
                best=plan.resume.best,
            )
        scaffold = ScaffoldState.start(size) if self._spec.training.scaffold else None
        state = _State(round_number=0, model=plan.initial, optimiser=self._optimiser.start(size), scaffold=scaffold, best=None)
        self._save(state)
        return state

    def _round(self, number: int, state: _State) -> _State:
        started = time.monotonic()
        cohort, trained = self._train(number, state)
        after_training = time.monotonic()
        direction = trained.directions[protocol.VECTOR]
        model, optimiser = self._optimiser.step(state.model, direction, state.optimiser)
        scaffold = state.scaffold
        if scaffold is not None:
            change = trained.directions[protocol.CONTROL]
            scaffold = server_control(scaffold, change, cohort=trained.answered, population=len(self._directory))
        after_aggregation = time.monotonic()
        score = self._measure(number, model, cohort) if self._is_due(number) else None
        best = state.best
        if score is not None and (best is None or score[1] > best.value):
            best = Best(round_number=number, by=score[0], value=score[1])
        after_evaluation = time.monotonic()
        new = _State(round_number=number, model=model, optimiser=optimiser, scaffold=scaffold, best=best)
        seconds = {
            "train": after_training - started,
            "aggregate": after_aggregation - after_training,
            "evaluate": after_evaluation - after_aggregation,
        }
        self._bus.emit(
            "round",
            number,
            cohort=len(cohort),
            answered=trained.answered,
            missing=trained.missing,
            refused=trained.refused,
            loss=float(np.mean(trained.losses)),
            update_norm=float(np.linalg.norm(direction)),
            bytes_down=trained.bytes_down,
            bytes_up=trained.bytes_up,
            seconds=seconds,
        )
        last = number == self._spec.federation.rounds
        if last or number % self._spec.federation.checkpoint_every == 0 or (best is not None and best.round_number == number):
            self._save(new)
        return new

    def _train(self, number: int, state: _State) -> tuple[list[int], _Trained]:
        """Try the round until enough sites answered."""
        least = self._spec.cohort.min_sites
        for attempt in range(1, _ATTEMPTS + 1):
            generator = self._plan.randomness.generator("cohort", number, attempt)
            cohort = choose_cohort(self._spec.cohort, len(self._directory), generator)
            if len(cohort) < least:
                self._bus.emit("warning", number, text=f"round {number}: {len(cohort)} sites were drawn, below min_sites = {least}; drawing again")
                continue
            trained = self._ask(number, state, cohort)
            if trained.answered >= least:
                return cohort, trained
            self._bus.emit(
                "warning",
                number,
                text=f"round {number} was not aggregated (attempt {attempt} of {_ATTEMPTS}): {_whom(trained, len(cohort))}",
            )
            failed = trained
        raise PeersMissing(
            f"round {number} had fewer than min_sites = {least} usable replies, {_ATTEMPTS} times: {_whom(failed, len(cohort))}"
            if len(cohort) >= least
            else f"round {number}: cohort.per_round drew fewer than min_sites = {least} sites, {_ATTEMPTS} times",
            remedy="bring the sites back and resume with --resume, or lower cohort.min_sites",
        )

    def _ask(self, number: int, state: _State, cohort: list[int]) -> _Trained:
        size, spec = self._plan.layout.size, self._spec
        sent = {protocol.VECTOR: state.model} | ({} if state.scaffold is None else {protocol.CONTROL: state.scaffold.sent()})
        accumulators = {name: self._rule.start(size) for name in self._names}
        missing: list[str] = []
        refused: list[dict[str, str]] = []
        losses: list[float] = []
        for name, answer in self._exchange("train", number, cohort, sent):
            checked = check_update(answer, size=size, names=self._names)
            self._tell(number, "train", name, answer, checked)
            if isinstance(checked, Refused):
                if answer.reply is None:
                    missing.append(name)
                else:
                    refused.append({"site": name, "reason": str(checked)})
                continue
            weighting = spec.aggregation.weighting
            weight = 1.0 if weighting == "uniform" else float(min(checked.records, weighting.records_cap))
            for array, vector in checked.arrays.items():
                # Control variates are averaged uniformly, as SCAFFOLD defines them.
                accumulators[array].add(vector, weight if array == protocol.VECTOR else 1.0)
            losses.append(checked.loss)
        nbytes = sum(vector.nbytes for vector in sent.values())
        return _Trained(
            answered=len(losses),
            missing=missing,
            refused=refused,
            losses=losses,
            directions={name: accumulator.result() for name, accumulator in accumulators.items()} if losses else {},
            bytes_up=len(losses) * nbytes,
            bytes_down=len(cohort) * (nbytes + len(self._federation)),
        )

    def _exchange(self, kind: str, number: int, cohort: list[int], vectors: dict[str, Vector]) -> Iterator[tuple[str, Answer]]:
        """Send one message to each site of the cohort and yield (name, answer) in the cohort's order."""
        job = ConfigRecord(
            {"protocol": protocol.PROTOCOL, "round": number, "federation": self._federation, "layout": self._plan.layout.digest}
        )
        arrays = ArrayRecord()  # filled item by item: its constructor would copy and serialise each array
        arrays.update({name: self._plan.make_array(vector) for name, vector in vectors.items()})
        wait_s = self._spec.cohort.wait_s
        messages = [
            Message(
                RecordDict({protocol.JOB: job, protocol.MODEL: arrays}),
                self._directory.node(position),
                kind,
                ttl=wait_s,
                group_id=str(number),
            )
            for position in cohort
        ]
        self._bus.announce("asked", number, phase=kind, sites=[self._directory.name(position) for position in cohort])
        for answer in exchange(self._grid, messages, wait_s=wait_s):
            yield self._directory.name(cohort[answer.position]), answer

    def _tell(self, number: int, phase: str, name: str, answer: Answer, checked: CheckedUpdate | CheckedEvaluation | Refused) -> None:
        refused = isinstance(checked, Refused)
        status = "missing" if answer.reply is None else "refused" if refused else "answered"
        self._bus.emit(
            "site",
            number,
            site=name,
            phase=phase,
            status=status,
            reason=str(checked) if refused else None,
            seconds=round(answer.seconds, 4),
            loss=None if isinstance(checked, Refused) else checked.loss,
        )

    def _is_due(self, number: int) -> bool:
        every = self._spec.evaluation.every
        return number == self._spec.federation.rounds or (every > 0 and number % every == 0)

    def _measure(self, number: int, model: Vector, cohort: list[int]) -> tuple[str, float] | None:
        """Measure the model centrally and at the sites; return what the best round is judged by."""
        scores = []
        if self._spec.evaluation.central and self._plan.central is not None:
            found = self._plan.central(model)
            self._bus.emit("evaluation", number, where="central", **vars(found))
            scores.append(_score(found.metrics, found.loss))
        if self._spec.evaluation.sites:
            everyone = number == self._spec.federation.rounds and len(self._directory) <= _ALL_SITES
            found_at_sites = self._measure_at_sites(number, model, list(range(len(self._directory))) if everyone else cohort)
            if found_at_sites is not None:
                scores.append(_score(found_at_sites.metrics, found_at_sites.loss))
        return scores[0] if scores else None

    def _measure_at_sites(self, number: int, model: Vector, cohort: list[int]) -> CheckedEvaluation | None:
        found = []
        for name, answer in self._exchange("evaluate", number, cohort, {protocol.VECTOR: model}):
            checked = check_evaluation(answer, classes=self._plan.classes)
            self._tell(number, "evaluate", name, answer, checked)
            if isinstance(checked, Refused) or checked.records == 0:
                continue
            self._bus.emit("evaluation", number, where=f"site:{name}", **vars(checked))
            found.append(checked)
        if not found:
            return None
        shared = set.intersection(*(set(one.metrics) for one in found))
        mean = CheckedEvaluation(
            loss=float(np.mean([one.loss for one in found])),
            metrics={name: float(np.mean([one.metrics[name] for one in found])) for name in sorted(shared)},
            records=sum(one.records for one in found),
        )
        self._bus.emit("evaluation", number, where="sites", **vars(mean))
        return mean

    def _save(self, state: _State) -> None:
        arrays: Arrays = {"model": state.model}
        arrays |= {f"optimiser.{name}": array for name, array in state.optimiser.arrays().items()}
        if state.scaffold is not None:
            arrays |= {f"scaffold.{name}": array for name, array in state.scaffold.arrays().items()}
        if self._plan.memory is not None:
            arrays |= {f"site.{name}": array for name, array in self._plan.memory.arrays().items()}
        self._bus.sync()
        self._plan.store.save(
            Checkpoint(
                round_number=state.round_number,
                digest=self._digest,
                layout=self._plan.layout.digest,
                events_offset=self._bus.position(),
                arrays=arrays,
                best=state.best,
            )
        )


def _score(metrics: dict[str, float], loss: float) -> tuple[str, float]:
    return ("accuracy", metrics["accuracy"]) if "accuracy" in metrics else ("loss", -loss)


def _under(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _whom(trained: _Trained, cohort: int) -> str:
    """Say who did not answer, by name, and why replies were refused; at most five of each."""
    parts = [f"{trained.answered} of {cohort} answered"]
    if trained.missing:
        parts.append("missing: " + _some(trained.missing))
    if trained.refused:
        parts.append("refused: " + _some([f"{one['site']} ({one['reason']})" for one in trained.refused]))
    return "; ".join(parts)


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
