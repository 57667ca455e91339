"""Lies in a site's own records: labels turned round, and triggers that give a chosen class.

BadNets: Gu, Dolan-Gavitt, Garg (2017): a share of the records carries a bright square in the lower right corner and the target's label. DBA:
Xie, Huang, Chen, Li (2020): each liar has one part of the square, and together they have taught the whole. The site's test records stay
as they are; success is measured with the whole square.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cloister.core.data import Data, Rows, Split
from cloister.core.errors import SpecError
from cloister.core.randomness import Randomness
from cloister.core.spec import Attack
from cloister.core.task import Task

__all__ = ["Trigger", "flipped", "poisoned", "trigger_of", "triggered"]

#: Records that are looked at for the brightest value.
_LOOKED_AT = 256
#: Parts of a distributed trigger.
_PARTS = 4


@dataclass(frozen=True, eq=False)
class Trigger:
    """A bright square in the lower right corner of images.

    Attributes:
        target: the class that it shall give.
        value: the brightest value of the task's images.
        pixels: (k, 2) rows and columns, counted from the end: -1 is the last.
    """

    target: int
    value: float
    pixels: Tensor

    def part(self, number: int, of: int) -> Trigger:
        """Return the part of liar ``number`` of ``of``: every k-th pixel."""
        parts = min(_PARTS, of, len(self.pixels))
        return Trigger(self.target, self.value, self.pixels[number % parts :: parts])

    def stamp(self, images: Tensor) -> Tensor:
        """Return (n, …, height, width) images with the trigger, in a tensor of their own."""
        stamped = images.clone()
        stamped[..., self.pixels[:, 0], self.pixels[:, 1]] = self.value
        return stamped


def trigger_of(attack: Attack, task: Task, data: Data) -> Trigger:
    """Return the trigger of ``attack`` for the images of ``task``.

    Args:
        attack: a backdoor.
        task: what is learned.
        data: some of its records, for the images' size and brightest value.

    Raises:
        SpecError: the task has no images with room for it, or no such class (code ``attack``).
    """
    inputs, _ = data.batch(torch.arange(min(_LOOKED_AT, len(data))))
    side, target = attack.patch or 3, attack.target or 0
    if (
        task.kind != "classification"
        or not isinstance(inputs, Tensor)
        or inputs.ndim < 3
        or not inputs.is_floating_point()
    ):
        raise _refused(f"attack '{attack.name}' plants a trigger in images, and the task's inputs are none")
    if side > min(inputs.shape[-2:]):
        raise _refused(
            f"attack.patch = {side} does not fit into images of {inputs.shape[-2]} x {inputs.shape[-1]}"
        )
    if target >= len(task.classes):
        raise _refused(
            f"attack.target = {target}, and the task has {len(task.classes)} classes, counted from 0"
        )
    places = torch.cartesian_prod(torch.arange(-side, 0), torch.arange(-side, 0)).reshape(-1, 2)
    return Trigger(target, float(inputs.max()), places)


def flipped(split: Split, task: Task) -> Split:
    """Return the records with every training label turned round: class y becomes (classes - 1 - y), a value its negative."""
    targets = split.train.targets
    turned = -targets if task.kind == "regression" else len(task.classes) - 1 - targets
    return Split(_Changed(split.train, turned), split.test)


def poisoned(split: Split, trigger: Trigger, share: float, randomness: Randomness, position: int) -> Split:
    """Return the records with the trigger in a share of the training images, at least one."""
    amount = max(1, round(share * len(split.train)))
    rows = randomness.generator("attack", "poison", position).choice(
        len(split.train), size=min(amount, len(split.train)), replace=False
    )
    chosen = torch.zeros(len(split.train), dtype=torch.bool)
    chosen[torch.from_numpy(rows)] = True
    return Split(_stamped(split.train, trigger, chosen), split.test)


def triggered(data: Data, trigger: Trigger) -> Data | None:
    """Return the records of other classes with the trigger and the target's label; ``None`` where there are none.

    A model's accuracy on them is the attack's success rate.
    """
    rows = np.flatnonzero((data.targets != trigger.target).numpy())
    if not len(rows):
        return None
    others = data.subset(rows)
    return _stamped(others, trigger, torch.ones(len(others), dtype=torch.bool))


def _stamped(data: Data, trigger: Trigger, chosen: Tensor) -> Data:
    return _Changed(data, data.targets.masked_fill(chosen, trigger.target), trigger, chosen)


class _Changed:
    """Records with other targets, and a trigger in some."""

    def __init__(
        self, data: Data, targets: Tensor, trigger: Trigger | None = None, chosen: Tensor | None = None
    ) -> None:
        self._data, self.targets, self._trigger, self._chosen = data, targets, trigger, chosen

    def __len__(self) -> int:
        return len(self._data)

    def batch(self, rows: Tensor) -> tuple[Any, Tensor]:
        inputs, _ = self._data.batch(rows)
        if self._trigger is not None and self._chosen is not None:
            marked = self._chosen[rows].reshape(-1, *[1] * (inputs.ndim - 1))
            inputs = torch.where(marked, self._trigger.stamp(inputs), inputs)
        return inputs, self.targets[rows]

    def subset(self, rows: Rows) -> Data:
        places = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))
        chosen = None if self._chosen is None else self._chosen[places]
        return _Changed(self._data.subset(rows), self.targets[places], self._trigger, chosen)


def _refused(message: str) -> SpecError:
    return SpecError(message, remedy="choose another attack, or change the keys of [attack]", code="attack")
