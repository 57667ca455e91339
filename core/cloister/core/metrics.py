"""How a model did on some records: loss, metrics and confusion matrix (through torchmetrics).

===================  ==============  ==============================================================================
metric               task            meaning
===================  ==============  ==============================================================================
accuracy             classification  share of records whose highest score is their class's
precision            classification  of class 1 where there are two classes; else the mean over the classes
recall               classification  the same way
f1                   classification  the same way
auroc                classification  of class 1's probability; else the mean over the classes that the records hold
calibration_error    classification  expected calibration error over 15 bins: of class 1's probability where there are two
                                     classes, else of the highest probability (Guo et al. 2017)
mse, mae             regression      mean squared and mean absolute error, in the target's unit (squared)
r2                   regression      1 - residual variance / variance of the targets
===================  ==============  ==============================================================================

A metric that the records do not define is left out: AUROC where all records have one class, R² where all
targets are equal, AUROC and calibration error where a score is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cloister.core.data import Data, Rows, move
from cloister.core.errors import DataError, TaskError
from cloister.core.guarding import guarded
from cloister.core.task import Task

__all__ = ["METRIC_RANGES", "Measurement", "measure"]

_BINS = 15
_SHARE = (0.0, 1.0 + 1e-6)  # a float32 may be a rounding above 1
#: Every metric of a kind of task, with its range.
METRIC_RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "classification": dict.fromkeys(
        ("accuracy", "precision", "recall", "f1", "auroc", "calibration_error"), _SHARE
    ),
    "regression": {"mse": (0.0, 1e30), "mae": (0.0, 1e30), "r2": (-1e30, 1.0 + 1e-6)},
}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One evaluation of one model on one set of records.

    Attributes:
        loss: mean loss a record.
        metrics: by name, for example ``accuracy``; a metric that these records do not define (AUROC with one
            class) is left out.
        confusion: (classes, classes) counts, true class by row; ``None`` for regression.
        records: how many records were measured.
    """

    loss: float
    metrics: dict[str, float]
    confusion: list[list[int]] | None
    records: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; a loss that is not finite becomes ``None``."""
        return asdict(self) | {"loss": self.loss if math.isfinite(self.loss) else None}


def measure(
    task: Task,
    model: nn.Module,
    data: Data,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    rows: Rows | None = None,
) -> Measurement:
    """Measure ``model`` on ``data``; no gradient is kept, and each layer's mode is put back.

    Args:
        task: says what the outputs mean and gives each record's loss.
        model: on ``device`` already.
        data: the records.
        device: where to compute.
        batch_size: records at a time.
        rows: (k,) int64 rows of ``data`` to measure; all of them without it.

    Raises:
        DataError: there is no record to measure.
        TaskError: the task's data, model or loss raised or called ``sys.exit``, or the outputs or the losses do not have
            the shape that the task's kind asks for.
    """
    chosen = torch.arange(len(data)) if rows is None else torch.as_tensor(rows, dtype=torch.int64)
    if len(chosen) == 0:
        raise DataError(
            "there is no record to measure a model on",
            remedy="give the site test records, or measure another part",
            code="data-empty",
        )
    name = type(task).__name__
    outputs, targets, total = [], [], 0.0
    with _evaluating(model), torch.inference_mode():
        for batch in torch.split(chosen, batch_size):
            inputs, wanted = guarded(name, "data.batch()", partial(_batch, data, batch, device))
            found = guarded(name, "its model", partial(model, inputs))
            _check(task, found, len(batch))
            losses = guarded(name, "loss()", partial(task.loss, found, wanted))
            shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            if shape != (len(batch),):
                raise TaskError(
                    f"{name}.loss returned {shape} for {len(batch)} records",
                    remedy="return one loss a record",
                    code="task-loss",
                )
            total += float(losses.double().sum())
            outputs.append(found.float().cpu())
            targets.append(wanted.cpu())
        scores, truth = torch.cat(outputs), torch.cat(targets)
        if task.kind == "regression":
            metrics, confusion = _regression(scores.reshape(-1), truth.reshape(-1).float()), None
        else:
            metrics, confusion = _classification(scores, truth)
    return Measurement(loss=total / len(chosen), metrics=metrics, confusion=confusion, records=len(chosen))


def _classification(scores: Tensor, truth: Tensor) -> tuple[dict[str, float], list[list[int]]]:
    from torchmetrics.functional import classification as tm

    classes = scores.shape[1]
    predicted = scores.argmax(1)
    confusion = tm.multiclass_confusion_matrix(predicted, truth, classes, validate_args=False)
    found = {
        "accuracy": tm.multiclass_accuracy(predicted, truth, classes, average="micro", validate_args=False)
    }
    if classes == 2:
        found["precision"] = tm.binary_precision(predicted, truth, validate_args=False)
        found["recall"] = tm.binary_recall(predicted, truth, validate_args=False)
        found["f1"] = tm.binary_f1_score(predicted, truth, validate_args=False)
    else:
        found["precision"] = tm.multiclass_precision(
            predicted, truth, classes, average="macro", validate_args=False
        )
        found["recall"] = tm.multiclass_recall(
            predicted, truth, classes, average="macro", validate_args=False
        )
        found["f1"] = tm.multiclass_f1_score(predicted, truth, classes, average="macro", validate_args=False)
    if bool(scores.isfinite().all()):
        probabilities = scores.softmax(1)
        first = probabilities[:, 1].contiguous() if classes == 2 else probabilities
        if classes == 2:
            found["calibration_error"] = tm.binary_calibration_error(
                first, truth, n_bins=_BINS, validate_args=False
            )
        else:
            found["calibration_error"] = tm.multiclass_calibration_error(
                first, truth, classes, n_bins=_BINS, validate_args=False
            )
        present = sorted(set(truth.tolist()))
        if len(present) > 1:  # one class against the rest is undefined where either side is empty
            areas = [
                tm.binary_auroc(
                    probabilities[:, number].contiguous(), (truth == number).long(), validate_args=False
                )
                for number in ([1] if classes == 2 else present)
            ]
            found["auroc"] = torch.stack(areas).mean()
    counts: list[list[int]] = confusion.tolist()
    return {name: float(value) for name, value in found.items()}, counts


def _regression(values: Tensor, truth: Tensor) -> dict[str, float]:
    from torchmetrics.functional import regression as tm

    found = {"mse": tm.mean_squared_error(values, truth), "mae": tm.mean_absolute_error(values, truth)}
    if bool((truth != truth[0]).any()):
        found["r2"] = tm.r2_score(values, truth)
    return {name: float(value) for name, value in found.items()}


def _batch(data: Data, rows: Tensor, device: torch.device | str) -> tuple[Any, Tensor]:
    inputs, targets = data.batch(rows)
    return move(inputs, device), targets.to(device)


def _check(task: Task, outputs: object, records: int) -> None:
    wanted = [(records, len(task.classes))] if task.kind == "classification" else [(records,), (records, 1)]
    shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if shape not in wanted:
        raise TaskError(
            f"the model of {type(task).__name__} returned {shape} for {records} records, not {' or '.join(map(str, wanted))}",
            remedy="return one score a class, or one value a record for regression",
            code="task-model",
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
