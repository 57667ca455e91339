"""The round loop: choose a cohort, send the model, check what comes back, move the model, measure, keep.

The loop knows Flower only through a ``Grid``, so it is the same in process, over Ray and over a SuperLink. A bad reply costs its
sender the round and nobody else; a round with too few usable replies is tried again, and a run whose rounds keep failing stops
with the names of the missing and stays resumable.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
from flwr.serverapp import Grid

from cloister.core import protocol
from cloister.core.errors import PeersMissing, PolicyError
from cloister.core.spec.grouping import LEAST_PROTECTED
from cloister.core.update import Vector
from cloister.server.audit.canaries.asking import talk_of
from cloister.server.checkpoints import Arrays, Best, Checkpoint
from cloister.server.cohort import choose_cohort
from cloister.server.collecting import Collected
from cloister.server.courier import Courier
from cloister.server.directory import Directory
from cloister.server.gathering import Gatherer, gatherer_from, group_gatherer_from
from cloister.server.grouping import placed_groups
from cloister.server.leave import ends_run, is_busy, refusal_of
from cloister.server.plan import RunPlan
from cloister.server.secure.choosing import collector_for
from cloister.server.signals import Signals
from cloister.server.spending import Spending
from cloister.strategies.averaging import RunningMean
from cloister.strategies.mean import Direction
from cloister.strategies.optimisers import OptimiserState, optimiser_from
from cloister.strategies.scaffold import ScaffoldState, server_control

__all__ = ["Coordinator"]

#: A round that found too few sites is tried this often before the run stops.
_ATTEMPTS = 3
#: A cohort that is drawn smaller than ``min_sites`` (a Poisson draw may be empty) is drawn again, at most so often.
_DRAWS = 10_000
#: Up to this many sites, the last round is measured at all of them and not only at its cohort.
_ALL_SITES = 200


@dataclass(frozen=True, kw_only=True)
class _State:
    """A run between two rounds; ``mean``: of the rounds' models, where that is what is released."""

    round_number: int
    model: Vector
    optimiser: OptimiserState
    scaffold: ScaffoldState | None
    mean: RunningMean | None
    best: Best | None

    @property
    def released(self) -> Vector:
        """The model that is measured, and leaves when the run ends here."""
        return self.model if self.mean is None else self.mean.model()


class Coordinator:
    """Runs one federation over a Flower grid."""

    def __init__(self, plan: RunPlan, grid: Grid, directory: Directory) -> None:
        self._plan = plan
        self._spec = plan.loaded.spec
        self._sites = len(directory)
        groups = placed_groups(plan, directory)
        self._gatherer: Gatherer = (
            gatherer_from(self._spec, size=plan.layout.size, randomness=plan.randomness)
            if groups is None
            else group_gatherer_from(
                self._spec,
                size=plan.layout.size,
                randomness=plan.randomness,
                members=[len(members) for members in groups],
            )
        )
        courier = Courier(plan, grid, directory)
        self._collector = collector_for(plan, courier, self._gatherer, groups)
        self._canaries = talk_of(plan, courier, directory)
        self._grouped = groups is not None
        self._directory = directory
        #: Sites whose secrets could not be rebuilt: they are not asked again while the run lasts.
        self._left_out: set[int] = set()
        self._optimiser = optimiser_from(self._spec.aggregation.optimizer)
        self._spending = Spending(
            self._spec,
            plan.layout.size,
            plan.bus,
            directory,
            seeded=plan.randomness.reproducible,
            witnesses=plan.witnesses,
        )
        self._signals = Signals(plan.layout, plan.bus)
        self._digest = plan.loaded.digest()
        self._saved = -1 if plan.resume is None else plan.resume.round_number

    def run(self) -> Vector:
        """Run the rounds that are left and return the model.

        Raises:
            PeersMissing: rounds kept falling below ``cohort.min_sites``.
            PolicyError: (budget) sites do not allow what the run costs: before its first round, or in the middle of it, where another
                run has spent what was left.
        """
        state = self._begin()
        self._ask_leave(state.round_number)
        if self._canaries is not None:
            self._canaries.seal(state.round_number)
            if self._saved == state.round_number:
                self._save(state)  # with the seal
        for number in range(state.round_number + 1, self._spec.federation.rounds + 1):
            try:
                state = self._round(number, state)
            except PolicyError:
                if self._saved != state.round_number:  # the run ends here, and its last model is released
                    self._save(state)
                raise
        if self._canaries is not None:
            self._canaries.open()
        return state.released

    def _ask_leave(self, done: int) -> None:
        """Ask the sites whether they allow the rounds after ``done``; refuse the run before any training.

        In a simulation only those that keep ledgers have a say. Where enough others are there, a site that is busy is away for the time being.
        """
        if self._plan.witnesses is None and self._plan.request is None:
            return
        refused = self._collector.allowed(done)
        if not refused:
            return
        enough = self._sites - len(refused) >= self._spec.cohort.min_sites
        if not (enough and all(is_busy(one["reason"]) for one in refused)):
            raise refusal_of(refused, self._spec.federation.rounds - done)
        names = ", ".join(f"'{one['site']}'" for one in refused)
        text = f"busy with another run, and asked again with each round: {names}"
        self._plan.bus.emit("warning", done, text=text)

    def _begin(self) -> _State:
        plan, size, scaffold = self._plan, self._plan.layout.size, self._spec.training.scaffold
        averaged = self._spec.aggregation.average_rounds is not None
        if plan.resume is not None:
            arrays = plan.resume.arrays
            if plan.memory is not None:
                plan.memory.restore(_under(arrays, "site."))
            self._spending.restore(_under(arrays, "asked."))
            self._gatherer.restore(_under(arrays, "gathering."))
            self._signals.restore(_under(arrays, "signals."))
            if plan.watch is not None:
                plan.watch.restore(_under(arrays, "canaries."))
            return _State(
                round_number=plan.resume.round_number,
                model=arrays["iterate"] if averaged else arrays["model"],
                optimiser=self._optimiser.from_arrays(_under(arrays, "optimiser."), size),
                scaffold=ScaffoldState.from_arrays(_under(arrays, "scaffold."), size) if scaffold else None,
                mean=RunningMean(mean=arrays["mean"]) if averaged else None,
                best=plan.resume.best,
            )
        state = _State(
            round_number=0,
            model=plan.initial,
            optimiser=self._optimiser.start(size),
            scaffold=ScaffoldState.start(size) if scaffold else None,
            mean=RunningMean.start(plan.initial) if averaged else None,
            best=None,
        )
        self._save(state)
        return state

    def _round(self, number: int, state: _State) -> _State:
        clock = _Phases()
        cohort, collected = self._train(number, state)
        clock.end("train")
        gathered = collected.gathering.finish()
        direction = gathered.directions[protocol.VECTOR]
        if self._plan.watch is not None:
            away = [*collected.missing, *(one["site"] for one in collected.refused)]
            self._plan.watch.end(direction, answered=collected.answered, away=away)
        model, optimiser = self._optimiser.step(state.model, direction, state.optimiser)
        scaffold = state.scaffold
        if scaffold is not None:
            change = gathered.directions[protocol.CONTROL]
            scaffold = server_control(scaffold, change, cohort=collected.answered, population=self._sites)
        mean, over = state.mean, self._spec.aggregation.average_rounds
        if mean is not None and over is not None:
            mean = mean.after(model, round_number=number, rounds=over)
        new = _State(
            round_number=number,
            model=model,
            optimiser=optimiser,
            scaffold=scaffold,
            mean=mean,
            best=state.best,
        )
        clock.end("aggregate")
        best = self._better(state.best, number, self._measure(number, new.released, cohort))
        new = replace(new, best=best)
        clock.end("evaluate")
        self._spending.tell(number)
        self._plan.bus.emit(
            "round",
            number,
            cohort=len(cohort),
            answered=collected.answered,
            missing=collected.missing,
            refused=collected.refused,
            loss=float(np.mean(collected.losses)) if collected.losses else None,
            update_norm=_norm(direction),
            **gathered.facts,
            **({"groups": collected.groups} if collected.groups else {}),
            bytes_down=collected.bytes_down,
            bytes_up=collected.bytes_up,
            seconds=clock.seconds,
            **({} if self._plan.transcript is None else {"transcript": self._plan.transcript.head()}),
        )
        self._signals.tell(number, direction, gathered.seen, collected.names)
        if self._plan.witnesses is not None:
            self._plan.witnesses.save()
        every, last = self._spec.federation.checkpoint_every, number == self._spec.federation.rounds
        if last or number % every == 0 or (best is not None and best.round_number == number):
            self._save(new)
        return new

    def _train(self, number: int, state: _State) -> tuple[list[int], Collected]:
        """Try the round until enough sites answered; return the cohort and what it brought."""
        least = self._spec.cohort.min_sites
        vectors = {protocol.VECTOR: state.model}
        if state.scaffold is not None:
            vectors[protocol.CONTROL] = state.scaffold.sent()
        attempts, why = 0, ""
        again: list[int] | None = None
        for draw in range(1, _DRAWS + 1):
            generator = self._plan.randomness.generator("cohort", number, draw)
            cohort = again or choose_cohort(self._spec.cohort, self._sites, generator)
            cohort = [position for position in cohort if position not in self._left_out]
            if len(cohort) < least:  # a small draw is nobody's fault: draw again
                continue
            self._spending.ask(cohort)
            collected = self._collector.train(number, cohort, vectors)
            if collected.answered >= least and not collected.short:
                if (
                    not self._grouped
                ):  # of a group's own noise shares nothing is known here: charged as if the fewest answered
                    self._spending.settle(cohort, collected.answered)
                return cohort, collected
            final = [one for one in collected.refused if ends_run(one["reason"])]
            if final:
                raise refusal_of(
                    final, self._spec.federation.rounds - number + 1
                )  # asking again costs the others
            attempts, why = attempts + 1, collected.summary()
            text = f"round {number} was not aggregated (attempt {attempts} of {_ATTEMPTS}): {why}"
            self._plan.bus.emit("warning", number, text=text)
            again = self._repeated(number, attempts, cohort, collected)
            if attempts == _ATTEMPTS:
                raise PeersMissing(
                    f"round {number} stayed below min_sites = {least} in {_ATTEMPTS} attempts: {why}",
                    remedy="bring the sites back and resume with --resume, or lower cohort.min_sites",
                )
        raise PeersMissing(
            f"round {number}: cohort.per_round did not draw min_sites = {least} of {self._sites} sites in {_DRAWS} draws",
            remedy="raise cohort.per_round, or lower cohort.min_sites",
        )

    def _repeated(
        self, number: int, attempt: int, cohort: list[int], collected: Collected
    ) -> list[int] | None:
        """Return who is asked when a sum could not be opened, or ``None``: whoever is drawn.

        The sites that were asked to open it open no sum of others in this round, so that no difference shows one of them. Where one of them has
        shared garbage, they can be asked again without it and without as many others as make that difference one of `LEAST_PROTECTED` sites.
        """
        named = {self._directory.name(position): position for position in cohort}
        tried = [named[name] for name in collected.tried]
        if self._grouped or not tried:
            return None
        suspects = {named[name] for name in collected.suspects}
        others = [position for position in tried if position not in suspects]
        generator = self._plan.randomness.generator("left out", number, attempt)
        more = generator.permutation(others)[: max(0, LEAST_PROTECTED - len(suspects))].tolist()
        left = sorted(set(others) - set(more))
        if not suspects or len(left) < max(LEAST_PROTECTED, self._spec.cohort.min_sites):
            return sorted(tried)
        self._left_out |= suspects
        names = ", ".join(f"'{name}'" for name in collected.suspects)
        text = (
            f"round {number}: the shares of {names} do not give what was signed: it has shared garbage, or sites that hold its shares lie. The round is "
            f"tried again without it and {len(more)} others, so that the two sums differ by at least {LEAST_PROTECTED} sites; in later rounds it is not asked"
        )
        self._plan.bus.emit("warning", number, text=text)
        return left

    def _measure(self, number: int, model: Vector, cohort: list[int]) -> tuple[str, float] | None:
        """Measure the model where it is due, centrally and at the sites; return what the best round is judged by."""
        evaluation, last = self._spec.evaluation, number == self._spec.federation.rounds
        if not last and (evaluation.every == 0 or number % evaluation.every):
            return None
        score = None
        if evaluation.central and self._plan.central is not None:
            found = self._plan.central(model)
            self._plan.bus.emit("evaluation", number, where="central", **vars(found))
            score = _score(found.metrics, found.loss)
        if evaluation.sites:
            everyone = list(range(self._sites)) if last and self._sites <= _ALL_SITES else cohort
            if not self._grouped:
                everyone = [position for position in everyone if position not in self._left_out]
            mean = self._collector.measure(number, everyone, model)
            if score is None and mean is not None:
                score = _score(mean.metrics, mean.loss)
        return score

    def _better(self, best: Best | None, number: int, score: tuple[str, float] | None) -> Best | None:
        if score is None or not math.isfinite(score[1]):
            return best
        if best is not None and (score[0] != best.by or score[1] <= best.value):
            return best  # a run is judged by one measure from its first measurement on
        return Best(round_number=number, by=score[0], value=score[1])

    def _save(self, state: _State) -> None:
        self._saved = state.round_number
        arrays: Arrays = {"model": state.released}
        if state.mean is not None:
            arrays |= {"iterate": state.model, "mean": state.mean.mean}
        arrays |= {f"optimiser.{name}": array for name, array in state.optimiser.arrays().items()}
        if state.scaffold is not None:
            arrays |= {f"scaffold.{name}": array for name, array in state.scaffold.arrays().items()}
        arrays |= {f"asked.{name}": array for name, array in self._spending.arrays().items()}
        arrays |= {f"gathering.{name}": array for name, array in self._gatherer.arrays().items()}
        arrays |= {f"signals.{name}": array for name, array in self._signals.arrays().items()}
        if self._plan.watch is not None:
            arrays |= {f"canaries.{name}": array for name, array in self._plan.watch.arrays().items()}
        if self._plan.memory is not None:
            arrays |= {f"site.{name}": array for name, array in self._plan.memory.arrays().items()}
        if self._plan.transcript is not None:
            self._plan.transcript.sync()  # first: events of a checkpoint name lines of it
        self._plan.bus.sync()
        self._plan.store.save(
            Checkpoint(
                round_number=state.round_number,
                digest=self._digest,
                layout=self._plan.layout.digest,
                events_offset=self._plan.bus.position(),
                arrays=arrays,
                best=state.best,
                fingerprint=self._plan.fingerprint,
            )
        )


class _Phases:
    """Seconds of each phase of a round."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self.seconds: dict[str, float] = {}

    def end(self, phase: str) -> None:
        now = time.monotonic()
        self.seconds[phase] = now - self._since
        self._since = now


def _norm(direction: Direction) -> float:
    """Return the Euclidean norm without BLAS, whose threads go on spinning for a while after each call, on the workers' cores."""
    return math.sqrt(float(np.einsum("i,i->", direction, direction)))


def _score(metrics: dict[str, float], loss: float) -> tuple[str, float]:
    return ("accuracy", metrics["accuracy"]) if "accuracy" in metrics else ("loss", -loss)


def _under(arrays: Arrays, prefix: str) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
