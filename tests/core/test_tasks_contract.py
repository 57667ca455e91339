"""The contract of the Task seam: every task that comes with Cloister, and the example of a user's own, keeps it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy as np
import pandas as pd
import pytest
import torch
from opacus import GradSampleModule  # type: ignore[import-untyped]
from opacus.validators import ModuleValidator  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from cloister.core import Data, Layout, Split, Task
from cloister.core.metrics import measure
from cloister.core.preflight import try_task
from cloister.core.resolve import build_model, load_task, owners, task_names
from cloister.core.spec.tables import TaskTable

TASKS = ["heart", "digits", "tabular", "tabular-regression", "images", "hub", "own"]


def write_table(folder: Path) -> Path:
    draw = np.random.default_rng(1)
    frame = pd.DataFrame({"age": draw.uniform(20, 80, 60), "ward": draw.choice(["a", "b", "c"], 60)})
    frame["ill"] = np.where(frame["age"] + draw.normal(0, 9, 60) > 50, "yes", "no")
    frame["cost"] = 100 + 3 * frame["age"]
    frame.to_csv(folder / "site.csv", index=False)
    return folder / "site.csv"


def table(name: str, folder: Path, repository: Path) -> tuple[TaskTable, Path]:
    """Return a ``[task]`` table as a federation file would hold it, and the folder that its paths are taken from."""
    if name == "own":
        return TaskTable.model_validate(
            {"use": "parity.py:Parity", "records": 60}
        ), repository / "examples" / "own_task"
    options: dict[str, Any] = {"use": name}
    if name.startswith("tabular"):
        write_table(folder)
        columns = {
            "age": {"kind": "numeric", "low": 0, "high": 100},
            "ward": {"kind": "categorical", "values": ["a", "b"]},
        }
        target = (
            {"cost": {"kind": "numeric", "low": 0, "high": 1000}}
            if name.endswith("regression")
            else {"ill": {"kind": "boolean"}}
        )
        options = {
            "use": "tabular",
            "data": "site.csv",
            "target": next(iter(target)),
            "schema": {"columns": columns | target},
        }
    if name == "images":
        draw = np.random.default_rng(2)
        np.savez(
            folder / "images.npz", x=draw.integers(0, 256, (40, 8, 8), dtype=np.uint8), y=np.arange(40) % 4
        )
        options |= {"data": "images.npz", "classes": 4, "mean": 0.5, "std": 0.25}
    if name == "hub":
        draw = np.random.default_rng(3)
        rows = {"a": draw.normal(size=48), "b": draw.normal(size=48), "label": np.arange(48) % 3}
        datasets.Dataset.from_dict(rows).to_parquet(folder / "rows.parquet")
        options |= {
            "dataset": "parquet",
            "data_files": "rows.parquet",
            "cache": "cache",
            "inputs": ["a", "b"],
            "owners": 3,
            "model": "mlp",
        }
    return TaskTable.model_validate(options), folder


def rows_of(data: Data) -> tuple[Tensor, Tensor]:
    inputs, targets = data.batch(torch.arange(len(data)))
    return inputs, targets


@pytest.fixture(params=TASKS)
def task(
    request: pytest.FixtureRequest, tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> Task:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return load_task(*table(request.param, tmp_path, repository))


@pytest.fixture
def held(task: Task) -> dict[str, Split]:
    return owners(task)


def test_every_installed_task_is_under_this_contract() -> None:
    assert set(task_names()) - {"statistics"} <= set(
        TASKS
    )  # which keeps no test records: see test_tasks_statistics.py


class TestContract:
    """What Cloister relies on in any task."""

    def test_the_model_gives_what_the_kind_asks_for_and_one_finite_loss_a_record(
        self, task: Task, held: dict[str, Split]
    ) -> None:
        model = build_model(task, 0)
        for split in held.values():
            try_task(task, model, split.train)
            inputs, targets = split.train.batch(torch.arange(min(7, len(split.train))))
            outputs = model(inputs)
            assert outputs.shape[0] == len(targets)
            assert outputs.shape[1:] in ({(len(task.classes),)} if task.classes else {(), (1,)})
            losses = task.loss(outputs, targets)
            assert losses.shape == (len(targets),)
            assert losses.isfinite().all()

    def test_targets_are_class_numbers_or_values(self, task: Task, held: dict[str, Split]) -> None:
        for split in held.values():
            for data in (split.train, split.test):
                assert len(data.targets) == len(data) > 0
                if task.kind == "classification":
                    assert data.targets.dtype == torch.int64
                    assert set(data.targets.tolist()) <= set(range(len(task.classes)))
                else:
                    assert data.targets.dtype == torch.float32

    def test_two_readings_give_the_same_records_and_models_in_the_same_order(
        self, task: Task, held: dict[str, Split]
    ) -> None:
        again = owners(task)
        assert list(again) == list(held)
        for name, split in held.items():
            for one, two in ((split.train, again[name].train), (split.test, again[name].test)):
                assert all(torch.equal(a, b) for a, b in zip(rows_of(one), rows_of(two), strict=True))
        first, second = build_model(task, 5), build_model(task, 5)
        layout = Layout.of(first)
        assert layout.digest == Layout.of(second).digest
        assert (layout.read(first) == layout.read(second)).all()

    def test_rows_are_read_in_the_order_asked_for_and_through_subsets(self, held: dict[str, Split]) -> None:
        for split in held.values():
            inputs, targets = rows_of(split.train)
            order = np.arange(len(split.train))[::-2]
            part = split.train.subset(order)
            for found in (
                split.train.batch(torch.from_numpy(order.copy())),
                rows_of(part),
                rows_of(part.subset(np.arange(len(part)))),
            ):
                assert torch.equal(found[0], inputs[order.copy()])
                assert torch.equal(found[1], targets[order.copy()])
            assert torch.equal(part.targets, targets[order.copy()])

    def test_the_model_is_fit_for_differential_privacy(self, task: Task) -> None:
        model = build_model(task, 0)
        assert not any(isinstance(module, _BatchNorm) for module in model.modules())
        ModuleValidator.validate(model, strict=True)

    @pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
    def test_each_record_gets_the_gradient_it_has_alone(self, task: Task, held: dict[str, Split]) -> None:
        model = build_model(task, 0)
        inputs, targets = next(iter(held.values())).train.batch(torch.arange(3))
        wrapped = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
        task.loss(wrapped(inputs), targets).sum().backward()  # type: ignore[no-untyped-call]
        for row in range(3):
            model.zero_grad()
            task.loss(model(inputs[row : row + 1]), targets[row : row + 1]).sum().backward()  # type: ignore[no-untyped-call]
            for one, many in zip(model.parameters(), wrapped._module.parameters(), strict=True):
                assert one.grad is not None
                torch.testing.assert_close(many.grad_sample[row], one.grad, rtol=1e-3, atol=1e-5)

    def test_a_record_is_not_both_trained_and_tested_on(self, task: Task, held: dict[str, Split]) -> None:
        for name, split in held.items():
            if type(task).__name__ == "Heart":
                continue  # different patients may have the same findings; test_tasks_heart.py counts rows
            trained = {tuple(row.flatten().tolist()) for row in rows_of(split.train)[0]}
            tested = {tuple(row.flatten().tolist()) for row in rows_of(split.test)[0]}
            assert not trained & tested, name

    def test_it_can_be_measured(self, task: Task, held: dict[str, Split]) -> None:
        found = measure(task, build_model(task, 0), next(iter(held.values())).test)
        assert ("accuracy" in found.metrics) == (task.kind == "classification")
        assert np.isfinite(found.loss)

    def test_the_model_card_says_what_it_is_and_where_the_data_come_from(self, task: Task) -> None:
        card = task.describe()
        assert card["title"]
        assert card["description"]
        if type(task).__module__.startswith("cloister."):
            assert {"source", "licence", "intended_use"} <= set(card)
