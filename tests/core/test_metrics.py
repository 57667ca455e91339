"""Metrics: each against scikit-learn or a slow loop, and what is left out where the records do not define it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from cloister.core import LazyData, Split, Task, TensorData
from cloister.core.errors import DataError, TaskError
from cloister.core.metrics import measure


class Scores(Task):
    """Inputs are the scores themselves: the model hands them on."""

    def __init__(
        self, classes: int = 3, kind: Literal["classification", "regression"] = "classification"
    ) -> None:
        self.kind = kind
        self.classes = tuple(str(number) for number in range(classes))

    def model(self) -> nn.Module:
        return nn.Identity()

    def data(self) -> Split:
        raise NotImplementedError


def drawn(classes: int, count: int = 60, seed: int = 3) -> TensorData:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, classes, (count,), generator=generator)
    scores = torch.randn(count, classes, generator=generator) + 1.5 * nn.functional.one_hot(targets, classes)
    return TensorData(scores, targets)


def measured(data: TensorData, **how: Any) -> Any:
    return measure(Scores(data.inputs.shape[1]), nn.Identity(), data, **how)


def calibration_by_loop(confidence: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    edges, error = np.linspace(0, 1, 16), 0.0
    for low, high in pairwise(edges):
        inside = (confidence >= low) & ((confidence < high) | ((high == 1) & (confidence == 1)))
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return error


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_classification_agrees_with_scikit_learn(classes: int) -> None:
    data = drawn(classes)
    found = measured(data)
    truth, guess = data.targets.numpy(), data.inputs.argmax(1).numpy()
    chances = data.inputs.double().softmax(1).numpy()
    average = "binary" if classes == 2 else "macro"
    area = (
        sk.roc_auc_score(truth, chances[:, 1])
        if classes == 2
        else sk.roc_auc_score(truth, chances, multi_class="ovr", average="macro")
    )
    calibration = (
        calibration_by_loop(chances[:, 1], truth)
        if classes == 2
        else calibration_by_loop(chances.max(1), truth == guess)
    )
    assert found.metrics == pytest.approx(
        {
            "accuracy": sk.accuracy_score(truth, guess),
            "precision": sk.precision_score(truth, guess, average=average, zero_division=0),
            "recall": sk.recall_score(truth, guess, average=average, zero_division=0),
            "f1": sk.f1_score(truth, guess, average=average, zero_division=0),
            "auroc": area,
            "calibration_error": calibration,
        },
        abs=1e-6,
    )
    assert found.confusion == sk.confusion_matrix(truth, guess).tolist()
    assert found.loss == pytest.approx(sk.log_loss(truth, chances), abs=1e-6)
    assert found.records == 60


def test_regression_agrees_with_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(1)
    truth = torch.randn(50, generator=generator)
    guess = truth + 0.3 * torch.randn(50, generator=generator)
    found = measure(Scores(0, "regression"), nn.Identity(), TensorData(guess[:, None], truth))
    wanted = {
        "mse": sk.mean_squared_error(truth, guess),
        "mae": sk.mean_absolute_error(truth, guess),
        "r2": sk.r2_score(truth, guess),
    }
    assert found.metrics == pytest.approx(wanted, abs=1e-6)
    assert found.loss == pytest.approx(wanted["mse"], abs=1e-6)
    assert found.confusion is None


@settings(max_examples=30)
@given(
    classes=st.integers(2, 4), count=st.integers(1, 20), seed=st.integers(0, 1000), batch=st.integers(1, 7)
)
def test_every_metric_is_a_share_and_batches_do_not_matter(
    classes: int, count: int, seed: int, batch: int
) -> None:
    data = drawn(classes, count, seed)
    whole, parts = measured(data), measured(data, batch_size=batch)
    assert all(0 <= value <= 1 for value in whole.metrics.values())
    assert np.sum(whole.confusion) == count
    assert ("auroc" in whole.metrics) == (len(set(data.targets.tolist())) > 1)
    assert parts.metrics == whole.metrics
    assert parts.loss == pytest.approx(whole.loss)


@pytest.mark.parametrize("classes", [2, 3])
def test_auroc_of_a_single_class_is_left_out(classes: int) -> None:
    data = drawn(classes)
    found = measured(TensorData(data.inputs, torch.zeros(60, dtype=torch.int64)))
    assert "auroc" not in found.metrics
    assert {"accuracy", "precision", "recall", "f1", "calibration_error"} <= set(found.metrics)


def test_auroc_is_the_mean_over_the_classes_that_the_records_hold() -> None:
    data = drawn(4)
    rows = np.flatnonzero(data.targets.numpy() != 2)
    found = measured(data, rows=rows)
    truth, chances = data.targets.numpy()[rows], data.inputs.softmax(1).numpy()[rows]
    areas = [sk.roc_auc_score(truth == number, chances[:, number]) for number in (0, 1, 3)]
    assert found.metrics["auroc"] == pytest.approx(np.mean(areas), abs=1e-6)


def test_r2_of_equal_targets_is_left_out() -> None:
    found = measure(Scores(0, "regression"), nn.Identity(), TensorData(torch.rand(4), torch.ones(4)))
    assert set(found.metrics) == {"mse", "mae"}


def test_scores_that_are_not_finite_leave_out_what_reads_them_and_keep_the_rest() -> None:
    data = drawn(3)
    data.inputs[7] = float("nan")
    found = measured(data)
    assert set(found.metrics) == {"accuracy", "precision", "recall", "f1"}
    assert np.isnan(found.loss)
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["loss"] is None


def test_only_the_rows_asked_for_are_measured() -> None:
    data, rows = drawn(3), np.array([4, 9, 2])
    chosen = torch.from_numpy(rows)
    assert measured(data, rows=rows) == measured(TensorData(data.inputs[chosen], data.targets[chosen]))


def test_lazy_data_measure_the_same() -> None:
    data = drawn(3)
    pairs: Any = TensorDataset(data.inputs, data.targets)
    assert measure(Scores(), nn.Identity(), LazyData(pairs, data.targets)) == measured(data)


def test_inputs_may_be_a_table_of_tensors() -> None:
    class Named:
        targets = torch.tensor([0, 2, 1])

        def __len__(self) -> int:
            return 3

        def batch(self, rows: Tensor) -> tuple[Any, Tensor]:
            return {"scores": [torch.eye(3)[rows]]}, self.targets[rows]

        def subset(self, rows: Any) -> Any:
            raise NotImplementedError

    class Model(nn.Module):
        def forward(self, inputs: dict[str, list[Tensor]]) -> Tensor:
            return inputs["scores"][0]

    assert measure(Scores(), Model(), Named()).metrics["accuracy"] == pytest.approx(1 / 3)


def test_every_layer_keeps_the_mode_and_the_weights_it_had_and_no_gradient_is_made() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 3))
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = (measure(Scores(), model, drawn(3)) for _ in range(2))
    assert first == second, "dropout must not act"
    assert [module.training for module in model] == [True, False, True]
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_mode_comes_back_when_the_model_raises() -> None:
    model = nn.Sequential(nn.Linear(9, 3))
    with pytest.raises(TaskError):
        measure(Scores(), model, drawn(3))
    assert model[0].training


def test_no_record_is_refused() -> None:
    with pytest.raises(DataError, match="no record to measure"):
        measured(drawn(3), rows=np.empty(0, dtype=np.int64))


@pytest.mark.parametrize(
    ("kind", "classes", "shape"),
    [("classification", 4, (5, 3)), ("classification", 3, (5,)), ("regression", 0, (5, 2))],
)
def test_outputs_of_the_wrong_shape_are_refused(kind: Any, classes: int, shape: tuple[int, ...]) -> None:
    data = TensorData(torch.zeros(shape), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(TaskError, match="returned") as caught:
        measure(Scores(classes, kind), nn.Identity(), data)
    assert caught.value.code == "task-model"


def test_a_loss_that_is_not_one_a_record_is_refused() -> None:
    class Mean(Scores):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().loss(outputs, targets).mean()

    with pytest.raises(TaskError, match=r"returned \(\) for 60 records") as caught:
        measure(Mean(), nn.Identity(), drawn(3))
    assert caught.value.code == "task-loss"


@pytest.mark.parametrize("stop", [ValueError("record 4711"), SystemExit(0)])
@pytest.mark.parametrize("part", ["model", "loss", "data"])
def test_a_task_that_raises_or_leaves_in_an_evaluation_is_refused_without_its_words(
    part: str, stop: BaseException
) -> None:
    def fail(*_: object) -> Any:
        raise stop

    class Failing(Scores):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return fail() if part == "loss" else super().loss(outputs, targets)

    class Model(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return fail() if part == "model" else inputs

    records = drawn(3)

    class Pairs(Dataset[tuple[Any, Any]]):
        def __getitem__(self, index: int) -> tuple[Any, Any]:
            return fail() if part == "data" else (records.inputs[index], records.targets[index])

    data = LazyData(Pairs(), records.targets)
    with pytest.raises(TaskError) as caught:
        measure(Failing(), Model(), data)
    assert (caught.value.code, caught.value.exit_code) == ("task-raised", 3)
    assert "4711" not in caught.value.message
    assert caught.value.remedy


def test_a_loss_that_is_no_tensor_is_refused() -> None:
    class Number(Scores):
        def loss(self, outputs: Tensor, targets: Tensor) -> Any:
            return float(super().loss(outputs, targets).mean())

    with pytest.raises(TaskError, match="returned float for 60 records"):
        measure(Number(), nn.Identity(), drawn(3))
