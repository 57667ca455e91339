"""The attacks of an evaluation, each as one function from a model and records to (n,) bool: which records withstand it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloister.core.adversarial.attacks import Loss, attacking, fgsm, gradient, pgd, pgd_restarts
from cloister.core.adversarial.threat import Threat
from cloister.core.errors import UsageError
from cloister.core.randomness import SeededRandomness
from cloister.server.robustness.blind import margin, random_search
from cloister.server.robustness.ensemble import PARTS, obstacle_to_ensemble, part_survivors

__all__ = [
    "ATTACKS",
    "BLACK_BOX",
    "Bout",
    "accuracy_of",
    "cross_entropy",
    "flat_share",
    "in_batches",
    "right",
]

#: All attacks by name, in the order in which they are run.
ATTACKS = ("fgsm", "pgd-20", "pgd", "pgd-margin", *PARTS, "random-search")
#: Those that ask for scores only.
BLACK_BOX = ("square", "random-search")

_BATCH = 250


@dataclass(frozen=True, kw_only=True, eq=False)
class Bout:
    """A model against attacks on some records.

    Attributes:
        model: in evaluation mode.
        inputs: (n, …).
        targets: (n,).
        threat: what the adversary may do.
        classes: how many.
        seed: of all attacks; each keys its own draws by its name.
        steps: of ``pgd`` and ``pgd-margin``.
        restarts: of ``pgd`` and ``pgd-margin``.
        queries: of the black-box attacks.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    threat: Threat
    classes: int
    seed: int
    steps: int = 40
    restarts: int = 3
    queries: int = 5000

    def obstacle(self) -> str | None:
        """Return why AutoAttack's parts do not fit, or ``None``."""
        return obstacle_to_ensemble(self.threat, self.inputs, self.classes)

    def withstands(self, name: str, among: Tensor) -> Tensor:
        """Return (n,) bool: which of the records ``among`` ((n,) bool, all classified rightly) withstand the attack ``name``.

        Raises:
            UsageError: there is no such attack, or it does not fit the threat.
        """
        if name not in ATTACKS:
            raise UsageError(f"there is no attack '{name}'", remedy="attacks: " + ", ".join(ATTACKS))
        rows = among.nonzero().squeeze(1)
        left = torch.zeros_like(among)
        if name in PARTS:
            if (reason := self.obstacle()) is not None:
                raise UsageError(
                    f"the attack '{name}' does not fit: {reason}", remedy="leave it out of --attacks"
                )
            left[rows] = part_survivors(
                name,
                self.model,
                self.inputs[rows],
                self.targets[rows],
                self.threat,
                classes=self.classes,
                seed=SeededRandomness(self.seed).torch_seed("robustness", name),
                queries=self.queries,
            )
            return left
        found = self.examples(name, rows)
        left[rows] = right(self.model, found, self.targets[rows])
        return left

    def examples(self, name: str, rows: Tensor) -> Tensor:
        """Return what one of our own attacks makes of the records ``rows`` ((k,) int64)."""
        generator = torch.Generator().manual_seed(SeededRandomness(self.seed).torch_seed("robustness", name))
        threat = self.threat

        def attack(inputs: Tensor, targets: Tensor) -> Tensor:
            if name == "fgsm":
                return fgsm(self.model, cross_entropy, inputs, targets, threat)
            if name == "pgd-20":
                return pgd(
                    self.model,
                    cross_entropy,
                    inputs,
                    targets,
                    threat,
                    steps=20,
                    step_size=2.5 * threat.epsilon / 20,
                    start=threat.start(inputs, generator),
                )
            if name == "random-search":
                return random_search(
                    self.model, inputs, targets, threat, queries=self.queries, generator=generator
                )
            return pgd_restarts(
                self.model,
                cross_entropy if name == "pgd" else _below_margin,
                inputs,
                targets,
                threat,
                steps=self.steps,
                step_size=2.5 * threat.epsilon / self.steps,
                restarts=self.restarts,
                generator=generator,
                still=lambda outputs, wanted: outputs.argmax(1) == wanted,
            )

        return in_batches(attack, self.inputs[rows], self.targets[rows])


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the (n,) cross-entropies."""
    return functional.cross_entropy(outputs, targets, reduction="none")


def _below_margin(outputs: Tensor, targets: Tensor) -> Tensor:
    return -margin(outputs, targets)


def right(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return (n,) bool: whether the model's highest score is the target's; never where a score is not finite."""
    if not len(inputs):
        return torch.zeros(0, dtype=torch.bool)
    with attacking(model), torch.no_grad():
        scores = torch.cat([model(part) for part in torch.split(inputs, _BATCH)])
    return (scores.argmax(1) == targets) & scores.isfinite().all(1)


def accuracy_of(held: Tensor) -> float:
    """Return the share of True in (n,) bool."""
    return float(held.double().mean())


def in_batches(attack: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    """Return what ``attack`` makes of the records, a batch at a time."""
    parts = [
        attack(own, wanted)
        for own, wanted in zip(torch.split(inputs, _BATCH), torch.split(targets, _BATCH), strict=True)
        if len(own)
    ]
    return torch.cat(parts) if parts else inputs


def flat_share(model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss = cross_entropy) -> float:
    """Return the share of records at which the loss has no gradient at all, or is not finite; 0 where there is no record."""
    flat = 0
    for own, wanted in zip(torch.split(inputs, _BATCH), torch.split(targets, _BATCH), strict=True):
        if not len(own):
            continue
        with attacking(model):
            found, losses = gradient(model, loss, own, wanted)
        dead = (found.flatten(1) == 0).all(1) | ~found.flatten(1).isfinite().all(1) | ~losses.isfinite()
        flat += int(dead.sum())
    return flat / max(len(inputs), 1)
