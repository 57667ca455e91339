"""Findings about records as a model reads them: how many, of which classes, and which stand in both parts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cloister.client.data_check.finding import Finding, of
from cloister.core.data import Data, Split
from cloister.core.guarding import guarded
from cloister.core.task import Task

__all__ = ["record_findings"]

_FEW, _VERY_FEW = 100, 10
#: A class below this share of the records is rare.
_RARE = 0.1
#: Numbers that are looked at for repeated records; of more, the first records are.
_LOOKED_AT = 50_000_000
#: Steps of an input's range within which two are near, and the fewest quantities in a record for which chance does not make it so.
_STEPS, _WIDE = 20, 6


def record_findings(task: Task, split: Split, *, smallest_group: int = 5) -> Iterator[Finding]:
    """Yield what is to be said of a site's records.

    Args:
        task: what they are for.
        split: the records.
        smallest_group: k: fewer records than this in a group are few.
    """
    train, test = len(split.train), len(split.test)
    if train < _FEW:
        yield Finding(
            code="few-records",
            severity="error" if train < _VERY_FEW else "warning",
            what=f"there are {train} records to train on",
            remedy="join with a larger data set: a few records weigh as much in the sum as many, and are the easier to guess",
        )
    if not test:
        yield Finding(
            code="no-test-records",
            severity="note",
            what="no record is kept for testing: this site takes no part in measurements",
            remedy="set the task's test_fraction",
        )
    if task.kind == "classification":
        yield from _classes(split.train.targets, len(task.classes), smallest_group)
    read = partial(guarded, type(task).__name__, "its records")
    parts = (read(partial(_inputs, split.train)), read(partial(_inputs, split.test)))
    rows = [part for part in parts if part is not None]
    if len(rows) == 2:
        yield from _shared(task, rows[0], rows[1])


def _classes(targets: Tensor, classes: int, smallest_group: int) -> Iterator[Finding]:
    counts = np.bincount(targets.numpy(), minlength=classes)
    total, absent = int(counts.sum()), int((counts == 0).sum())
    present = counts[counts > 0]
    if absent:
        yield Finding(
            code="class-missing",
            severity="warning",
            what=f"{absent} of the {classes} classes have no record to train on",
            remedy="check the export's filter; one class alone at a site pulls the model towards it",
        )
    if len(present) > 1 and present.min() < min(_RARE, 1 / classes / 2) * total:
        yield Finding(
            code="class-imbalance",
            severity="warning",
            what=f"the rarest class has {of(int(present.min()), total)} to train on, the most frequent {int(present.max()):,}",
            remedy="give training.class_weights in the federation file, and judge the model by F1 or AUROC and not by accuracy",
        )
    if len(present) and present.min() < smallest_group:
        yield Finding(
            code="class-few",
            severity="warning",
            what=f"a class has fewer than {smallest_group} records to train on",
            remedy="join classes, or leave this site out: so few records can be guessed from what they change",
        )


def _inputs(data: Data) -> Tensor | None:
    """Return (n, d) inputs of the records, or of the first of them; ``None`` where they are no tensor."""
    if not len(data):
        return None
    first, _ = data.batch(torch.arange(1))
    if not isinstance(first, Tensor):
        return None
    rows = min(len(data), max(1, _LOOKED_AT // max(1, first.numel())))
    inputs: Tensor = data.batch(torch.arange(rows))[0]
    return inputs.reshape(rows, -1).to(torch.float32)


def _shared(task: Task, train: Tensor, test: Tensor) -> Iterator[Finding]:
    seen = _hashes(train)
    same = int(np.isin(_hashes(test), seen).sum())
    if same:
        yield Finding(
            code="test-in-train",
            severity="warning" if same > 0.05 * len(test) else "note",
            what=f"{of(same, len(test))} kept for testing read the same as one to train on",
            remedy="remove repeated records; where one person has several, keep all of a person's in one part",
        )
    if (train.shape[1] if task.features is None else len(task.features)) < _WIDE:
        return
    low, high = (
        (0.0, 1.0)
        if task.bounds is None
        else tuple(torch.as_tensor(end, dtype=torch.float32).reshape(-1) for end in task.bounds)
    )
    coarse = [
        _hashes(torch.round(_STEPS * (part - low) / (high - low))) for part in _small(task, train, test)
    ]
    near = int(np.isin(coarse[1], coarse[0]).sum()) - same
    if near > 0:
        yield Finding(
            code="test-near-train",
            severity="warning" if near > 0.05 * len(test) else "note",
            what=f"{of(near, len(test))} kept for testing are nearly the same as one to train on (each input within {1 / _STEPS:.0%} of its range)",
            remedy="look for repeated records with other rounding, or for pictures of one series",
        )


def _small(task: Task, *parts: Tensor) -> tuple[Tensor, ...]:
    """Return records as they are; a per-channel bound of pictures does not go with flat rows, so they are scaled by what occurs."""
    if task.bounds is None or all(
        torch.as_tensor(end).numel() in (1, parts[0].shape[1]) for end in task.bounds
    ):
        return parts
    return tuple((part - parts[0].min()) / (parts[0].max() - parts[0].min() + 1e-9) for part in parts)


def _hashes(rows: Tensor) -> npt.NDArray[np.uint64]:
    """Return (n,) a 64-bit hash of each row."""
    import pandas as pd

    plain = np.ascontiguousarray(rows.numpy() + 0.0)  # -0.0 is 0.0
    raw = plain.view(np.dtype((np.void, plain.dtype.itemsize * plain.shape[1]))).ravel()
    return pd.util.hash_array(np.array([row.tobytes() for row in raw], dtype=object))
