"""Many federations at once: models of one shape stacked along a new axis, each trained on its own records of the same sites.

What a shadow goes through is what the run's model went through: the same rounds, cohorts of the same size, local passes or noisy steps with the
file's optimiser, schedule and penalties, weights and server optimiser. What differs is who trains on what, the shuffles, the coins and the noise. One step
of all shadows is one batched product (``torch.func.vmap`` over `functional_call`); torch's optimisers work number by number, so that one of them over the
stack is as many as there are shadows.

`obstacle` says where that is not the run's training: those runs are simulated as they are, one after another (`cloister.simulation.membership.one_by_one`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from cloister.client.optimisers import make_optimiser
from cloister.core.randomness import Randomness
from cloister.core.schedule import learning_rate
from cloister.core.spec import FederationSpec, RecordsCap
from cloister.core.task import Task
from cloister.core.update import Layout
from cloister.privacy.record_plans import record_plan
from cloister.server.cohort import choose_cohort
from cloister.strategies.optimisers import optimiser_from

__all__ = ["Records", "obstacle", "train_side_by_side"]

Members = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Records:
    """One site's records, those that shadows are dealt from.

    Attributes:
        inputs: (n, …).
        targets: (n,).
    """

    inputs: Tensor
    targets: Tensor


def obstacle(spec: FederationSpec, task: Task, model: nn.Module, records: Sequence[Records]) -> str:
    """Return why shadows cannot be trained side by side as the run's model was; empty where they can."""
    training, aggregation = spec.training, spec.aggregation
    found = [
        (training.adversarial is not None, "adversarial training"),
        (training.scaffold, "SCAFFOLD"),
        (training.early_stop is not None, "early stopping"),
        (spec.privacy.unit not in {"none", "record"}, f"privacy.unit = '{spec.privacy.unit}'"),
        (aggregation.rule not in {"mean", ""}, f"the rule '{aggregation.rule}'"),
        (aggregation.average_rounds is not None, "averaging of rounds"),
        (any(True for _ in model.buffers()), "a model with buffers"),
        (not all(isinstance(part.inputs, Tensor) for part in records), "inputs that are no tensor"),
    ]
    for holds, why in found:
        if holds:
            return why
    part = next(part for part in records if len(part.targets))
    try:
        stack = _Stack(model, 2)
        rows = torch.zeros((2, 2), dtype=torch.int64)
        losses = stack.losses(task, part.inputs[rows], part.targets[rows])
        losses.sum().backward()  # type: ignore[no-untyped-call]
        if spec.privacy.unit == "record":
            stack.record_gradients(task, part.inputs[rows], part.targets[rows])
    except (RuntimeError, ValueError, TypeError, NotImplementedError):
        return "a model that cannot be stacked"
    return ""


def train_side_by_side(
    spec: FederationSpec,
    task: Task,
    model: nn.Module,
    records: Sequence[Records],
    members: Members,
    *,
    randomness: Randomness,
    tell: Callable[[int, int], None] = lambda *_: None,
) -> list[dict[str, Tensor]]:
    """Return the parameters of each shadow by name.

    Args:
        spec: the federation.
        task: what is learned.
        model: as every site builds it: where all shadows begin.
        records: of each site.
        members: (shadows, records of all sites) who is trained with what.
        randomness: of shuffles, coins and noise; a shadow's depend on its place in ``members``.
        tell: is told of rounds done and all of them.
    """
    count = len(members)
    layout = Layout.of(model)
    start = layout.read(model)
    vectors = [start.copy() for _ in range(count)]
    server = optimiser_from(spec.aggregation.optimizer)
    states = [server.start(len(start)) for _ in range(count)]
    stack = _Stack(model, count)
    work = _Work(spec, task, stack, layout)
    edges = np.cumsum([0, *(len(part.targets) for part in records)])
    own = [members[:, edges[place] : edges[place + 1]] for place in range(len(records))]
    for number in range(1, spec.federation.rounds + 1):
        cohort = choose_cohort(spec.cohort, len(records), randomness.generator("shadow-cohort", number))
        totals = np.zeros((count, len(start)))
        weights = np.zeros(count)
        for place in cohort:
            sizes = own[place].sum(axis=1)
            if not sizes.any():
                continue
            stack.load(vectors)
            work.round(records[place], own[place], number, randomness, place)
            share = _weights(spec, sizes)
            totals += share[:, None] * (stack.read() - np.stack(vectors))
            weights += share
        for shadow in range(count):
            if weights[shadow]:
                vectors[shadow], states[shadow] = server.step(
                    vectors[shadow], totals[shadow] / weights[shadow], states[shadow]
                )
        tell(number, spec.federation.rounds)
    found = []
    for vector in vectors:
        named = layout.split(vector)
        found.append({name: torch.from_numpy(np.array(value)) for name, value in named.items()})
    return found


class _Stack:
    """Copies of one model, every parameter with a first axis of its own."""

    def __init__(self, model: nn.Module, count: int) -> None:
        self.model = model.train()
        self.parameters = {
            name: nn.Parameter(
                value.detach().expand(count, *value.shape).clone(), requires_grad=value.requires_grad
            )
            for name, value in model.named_parameters()
        }
        self.trained = {name: value for name, value in self.parameters.items() if value.requires_grad}
        self._scores = vmap(self._one, randomness="different")

    def _one(self, parameters: dict[str, Tensor], inputs: Tensor) -> Tensor:
        scores: Tensor = functional_call(self.model, parameters, (inputs,))
        return scores

    def losses(self, task: Task, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the (shadows, batch) losses."""
        scores = self._scores(dict(self.parameters), inputs)
        return task.loss(scores.flatten(0, 1), targets.flatten()).reshape(targets.shape)

    def record_gradients(self, task: Task, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return each record's gradient, (shadows, batch, …) by name."""

        def loss(parameters: dict[str, Tensor], record: Tensor, target: Tensor) -> Tensor:
            scores = functional_call(self.model, parameters, (record.unsqueeze(0),))
            return task.loss(scores, target.unsqueeze(0)).sum()

        of_records = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
        detached = {name: value.detach() for name, value in self.parameters.items()}
        found: dict[str, Tensor] = vmap(of_records, randomness="different")(detached, inputs, targets)
        return found

    def load(self, vectors: Sequence[npt.NDArray[np.float32]]) -> None:
        """Put a flat vector of trained parameters into each copy."""
        flat = torch.from_numpy(np.stack(vectors))
        with torch.no_grad():
            for part, value in zip(
                torch.split(flat, [value[0].numel() for value in self.trained.values()], dim=1),
                self.trained.values(),
                strict=True,
            ):
                value.copy_(part.reshape(value.shape))

    def read(self) -> npt.NDArray[np.float64]:
        """Return all trained parameters, (shadows, size)."""
        with torch.no_grad():
            flat = torch.cat([value.flatten(1) for value in self.trained.values()], dim=1)
        return flat.double().numpy()


class _Work:
    """A site's share of a round, for all shadows."""

    def __init__(self, spec: FederationSpec, task: Task, stack: _Stack, layout: Layout) -> None:
        self._spec, self._task, self._stack = spec, task, stack
        self._training, self._plan = spec.training, record_plan(spec)
        self._optimiser = make_optimiser(spec.training.optimizer, list(stack.trained.values()))
        weights = spec.training.class_weights
        self._class_weights = None if weights is None else torch.tensor(weights)
        self._size = layout.size

    def round(
        self, records: Records, members: Members, number: int, randomness: Randomness, place: int
    ) -> None:
        """Train every shadow on its records of one site."""
        self._optimiser.begin_round(learning_rate(self._spec, number))
        start = {name: value.detach().clone() for name, value in self._stack.trained.items()}
        rows = [np.flatnonzero(row) for row in members]
        # One generator for all shadows of a round and site: each draws its own part of it, in its order.
        generator = randomness.generator("shadow", number, place)
        seed = randomness.torch_seed("shadow-torch", number, place)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self._plan is None:
                for batch, weight in _batches(rows, self._spec, generator):
                    self._plain(records, batch, weight)
                    self._correct(start)
                    self._optimiser.step()
            else:
                noise = torch.Generator().manual_seed(seed)
                for _ in range(self._plan.steps):
                    batch, weight = _padded(
                        [own[generator.random(len(own)) < self._plan.sampling_rate] for own in rows]
                    )
                    self._private(records, batch, weight, noise)
                    self._correct(start)
                    self._optimiser.step()

    def _plain(self, records: Records, batch: Tensor, weight: Tensor) -> None:
        self._optimiser.zero_grad()
        targets = records.targets[batch]
        losses = self._stack.losses(self._task, records.inputs[batch], targets) * weight
        if self._class_weights is not None:
            losses = losses * self._class_weights[targets]
        (losses.sum(1) / weight.sum(1).clamp_min(1)).sum().backward()  # type: ignore[no-untyped-call]

    def _private(self, records: Records, batch: Tensor, weight: Tensor, noise: torch.Generator) -> None:
        plan = self._plan
        if plan is None:
            return
        found = self._stack.record_gradients(self._task, records.inputs[batch], records.targets[batch])
        if self._class_weights is not None:
            factors = self._class_weights[records.targets[batch]]
            found = {name: value * _over(factors, value) for name, value in found.items()}
        squares = torch.stack(
            [value.flatten(2).square().sum(2) for name, value in found.items() if name in self._stack.trained]
        )
        factor = (plan.clip / squares.sum(0).sqrt().clamp_min(1e-12)).clamp_max(1.0) * weight
        for name, value in self._stack.trained.items():
            total = (found[name] * _over(factor, found[name])).sum(1)
            total += plan.noise_multiplier * plan.clip * torch.randn(total.shape, generator=noise)
            value.grad = total / plan.expected_batch

    def _correct(self, start: dict[str, Tensor]) -> None:
        """Do as `cloister.client.corrections` does, for each shadow."""
        training = self._training
        with torch.no_grad():
            for name, value in self._stack.trained.items():
                if value.grad is None:
                    continue
                if training.l2:
                    value.grad.add_(value, alpha=training.l2)
                if training.l1:
                    value.grad.add_(value.sign(), alpha=training.l1)
                if training.proximal_mu:
                    value.grad.add_(value - start[name], alpha=training.proximal_mu)
            if training.gradient_clip:
                held = [value.grad for value in self._stack.trained.values() if value.grad is not None]
                norm = torch.stack([part.flatten(1).square().sum(1) for part in held]).sum(0).sqrt()
                factor = (training.gradient_clip / (norm + 1e-6)).clamp_max(1.0)
                for part in held:
                    part.mul_(factor.reshape(-1, *[1] * (part.ndim - 1)))


def _batches(
    rows: Sequence[npt.NDArray[np.int64]], spec: FederationSpec, generator: np.random.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Return each step's rows and weights, (shadows, batch): shuffled passes, or a number of steps that goes through them."""
    size, training = spec.training.batch_size, spec.training
    steps = training.local_steps
    found: list[list[npt.NDArray[np.int64]]] = []
    for own in rows:
        cut: list[npt.NDArray[np.int64]] = []
        passes = training.epochs if steps is None else 10**9
        while passes and len(own) and (steps is None or len(cut) < steps):
            order = generator.permutation(own)
            cut += [order[first : first + size] for first in range(0, len(order), size)]
            passes -= 1
        found.append(cut if steps is None else cut[:steps])
    most = max(len(cut) for cut in found)
    nothing = np.zeros(0, dtype=np.int64)
    return [_padded([cut[step] if step < len(cut) else nothing for cut in found]) for step in range(most)]


def _padded(rows: Sequence[npt.NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """Return rows of equal number, and weights of 0 for those that were added."""
    most = max(1, *(len(own) for own in rows))
    batch = np.zeros((len(rows), most), dtype=np.int64)
    weight = np.zeros((len(rows), most), dtype=np.float32)
    for place, own in enumerate(rows):
        batch[place, : len(own)] = own
        weight[place, : len(own)] = 1
    return torch.from_numpy(batch), torch.from_numpy(weight)


def _weights(spec: FederationSpec, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    weighting = spec.aggregation.weighting
    if isinstance(weighting, RecordsCap):
        return np.minimum(sizes, weighting.records_cap).astype(np.float64)
    return (sizes > 0).astype(np.float64)


def _over(factor: Tensor, value: Tensor) -> Tensor:
    """Return (shadows, batch) factors as they multiply (shadows, batch, …)."""
    return factor.reshape(*factor.shape, *[1] * (value.ndim - 2))
