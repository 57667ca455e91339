"""A statistic as a task: what each record adds, what is asked, and where it must not be answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cloister.core.checking import check_federation
from cloister.core.errors import SpecError, TaskError
from cloister.core.preflight import try_task
from cloister.core.resolve import build_model, load_task, owners
from cloister.core.spec import parse_federation
from cloister.core.spec.tables import TaskTable
from cloister.core.tasks.heart import HOSPITALS, heart_data
from cloister.core.tasks.statistics import Statistics, bare_statistic


def asked(
    columns: list[str], of: dict[str, Any] | None = None, base: Path = Path(), **more: Any
) -> Statistics:
    table = {"use": "statistics", "of": of or {"use": "heart"}, "columns": columns, **more}
    task = load_task(TaskTable.model_validate(table), base)
    assert isinstance(task, Statistics)
    return task


def totals(task: Statistics) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = sum(
        (rows(split.train).sum(0) for split in owners(task).values()), np.zeros(task.size)
    )
    return found


def rows(data: Any) -> np.ndarray[Any, Any]:
    inputs: np.ndarray[Any, Any] = data.batch(torch.arange(len(data)))[0].numpy()
    return inputs


def test_counts_are_those_of_the_files() -> None:
    task = asked(["age", "cp", "sex", "target"], bins=20)
    frames = [pd.read_csv(heart_data() / f"{name}.csv", na_values="?") for name in HOSPITALS]
    needed = ["age", "chol", "cp", "exang", "fbs", "oldpeak", "restecg", "sex", "thalach", "trestbps", "num"]
    table = pd.concat(frames)[needed].dropna()
    age, cp, sex, target = (totals(task)[one.start : one.stop] for one in task.questions)
    assert age.tolist() == np.histogram(table["age"].clip(20, 80), bins=20, range=(20, 80))[0].tolist()
    assert cp.tolist() == [(table["cp"] == value).sum() for value in (1, 2, 3, 4)]
    assert sex.tolist() == [(table["sex"] == value).sum() for value in (0, 1)]
    assert target.tolist() == [(table["num"] == 0).sum(), (table["num"] > 0).sum()]


def test_each_record_adds_one_to_one_cell_of_each_question() -> None:
    task = asked(["age", "chol", "target"])
    for split in owners(task).values():
        added = rows(split.train)
        assert set(np.unique(added)) == {0.0, 1.0}
        for one in task.questions:
            assert (added[:, one.start : one.stop].sum(1) == 1).all()
        assert np.allclose(np.linalg.norm(added, axis=1), task.norm)
        assert len(split.test) == 0


def test_missing_and_other_values_have_cells_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age,ward,ill,smoker\n,x,yes,1\n10,z,no,\n99,,no,0\n250,y,yes,1\n")
    schema = {
        "columns": {
            "age": {"kind": "numeric", "low": 0, "high": 100, "missing": "indicator", "scale": "unit"},
            "smoker": {"kind": "boolean", "missing": "indicator"},
            "ward": {"kind": "categorical", "values": ["x", "y"], "missing": "indicator"},
            "ill": {"kind": "boolean"},
        }
    }
    of = {"use": "tabular", "data": "a.csv", "target": "ill", "schema": schema, "test_fraction": 0.5}
    task = asked(["age", "ward", "smoker"], of, tmp_path, bins=4)
    age, ward, smoker = task.questions
    found = totals(task)
    assert age.labels[-1] == ward.labels[-1] == smoker.labels[-1] == "missing"
    assert found[age.start : age.stop].tolist() == [1, 0, 0, 2, 1]
    assert dict(zip(ward.labels, found[ward.start : ward.stop], strict=True)) == {
        "x": 1,
        "y": 1,
        "other": 1,
        "missing": 1,
    }
    assert found[smoker.start : smoker.stop].tolist() == [1, 2, 1]


def test_the_gradient_of_a_record_is_what_it_adds() -> None:
    task = asked(["age", "target"], bins=8)
    split = owners(task)["hungarian"]
    model = build_model(task, 3)
    try_task(task, model, split.train)
    inputs, targets = split.train.batch(torch.arange(5))
    for row in range(5):
        model.zero_grad()
        task.loss(model(inputs[row : row + 1]), targets[row : row + 1]).sum().backward()  # type: ignore[no-untyped-call]
        (weight,) = model.parameters()
        assert weight.grad is not None
        assert torch.equal(weight.grad.reshape(-1), inputs[row])
        assert not weight.detach().any()


@pytest.mark.parametrize(
    "table",
    [
        {"of": {"use": "heart"}, "columns": ["agee"]},
        {"of": {"use": "heart"}, "columns": ["age", "age"]},
        {"of": {"use": "heart"}, "columns": []},
        {"of": {"use": "digits"}, "columns": ["age"]},
        {"of": {"use": "statistics", "of": {"use": "heart"}, "columns": ["age"]}, "columns": ["age"]},
        {"of": "heart", "columns": ["age"]},
        {"columns": ["age"]},
        {"of": {"use": "no such task"}, "columns": ["age"]},
        {"of": {"use": "heart"}, "columns": ["age"], "binz": 4},
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(table: dict[str, Any]) -> None:
    with pytest.raises(TaskError) as caught:
        load_task(TaskTable.model_validate({"use": "statistics", **table}), Path())
    assert caught.value.remedy


def federation(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "federation": {"name": "q", "rounds": 1},
        "task": {"use": "statistics", "of": {"use": "heart"}, "columns": ["age"]},
        "cohort": {"sites": 4, "per_round": "all"},
        "training": {"local_steps": 1, "batch_size": 1000, "optimizer": {"lr": 1.0}},
        "aggregation": {"protection": "masked"},
        "privacy": {
            "unit": "record-distributed",
            "epsilon": 1.0,
            "delta": 1e-6,
            "clip": 1.0,
            "sampling_rate": 1.0,
        },
        "evaluation": {"central": False, "sites": False},
    }
    for key, value in changes.items():
        table, name = key.split("__")
        document[table] = value if name == "all" else {**document[table], name: value}
    return document


def test_a_sound_question_is_let_through() -> None:
    loaded = parse_federation(federation(), base=Path())
    task = load_task(loaded.spec.task, Path())
    assert bare_statistic(loaded.spec, task) == ""
    check_federation(loaded, task)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"aggregation__protection": "plain"}, "protection"),
        ({"privacy__all": {"unit": "none"}}, "unit"),
        ({"privacy__unit": "record"}, "unit"),
        ({"federation__rounds": 2}, "rounds"),
        ({"privacy__sampling_rate": 0.5}, "sampling_rate"),
        ({"cohort__per_round": 3}, "per_round"),
        ({"training__optimizer": {"lr": 0.5}}, "lr"),
    ],
)
def test_a_statistic_in_clear_or_without_its_noise_is_refused(changes: dict[str, Any], word: str) -> None:
    loaded = parse_federation(federation(**changes), base=Path())
    task = load_task(loaded.spec.task, Path())
    assert word in bare_statistic(loaded.spec, task)
    with pytest.raises(SpecError) as caught:
        check_federation(loaded, task)
    assert caught.value.code == "unsound"
    assert bare_statistic(loaded.spec, load_task(TaskTable(use="heart"), Path())) == ""
