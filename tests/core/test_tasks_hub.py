"""Hugging Face data sets through flwr-datasets, on small local ones: no network is reached."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import numpy as np
import pytest
import torch

from cloister.core.errors import DataError, TaskError
from cloister.core.tasks.hub import INFERRED_CLASSES, Hub

COUNT = 40


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def write(folder: Path, **columns: Any) -> Path:
    rows = {
        "a": np.arange(COUNT) / COUNT,
        "b": -np.arange(COUNT) / COUNT,
        "label": [["low", "high"][n >= 20] for n in range(COUNT)],
    } | columns
    datasets.Dataset.from_dict({name: value for name, value in rows.items() if value is not None}).to_parquet(
        folder / "rows.parquet"
    )
    return folder / "rows.parquet"


def make(folder: Path, **options: Any) -> Hub:
    place = {"dataset": "parquet", "data_files": folder / "rows.parquet", "cache": folder / "cache"}
    return Hub(**{**place, "inputs": ["a", "b"], "owners": 4, "model": "mlp", **options})


def everything(data: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return data.batch(torch.arange(len(data)))  # type: ignore[no-any-return]


def test_records_are_dealt_to_the_owners_each_once_and_the_same_way_every_time(tmp_path: Path) -> None:
    write(tmp_path)
    first, again, other = (
        make(tmp_path, classes=["low", "high"], split_seed=seed).data() for seed in (1, 1, 2)
    )
    assert list(first) == ["owner-0000", "owner-0001", "owner-0002", "owner-0003"]
    parts = [everything(part)[0][:, 0] for split in first.values() for part in (split.train, split.test)]
    assert torch.cat(parts).sort().values.tolist() == pytest.approx([n / COUNT for n in range(COUNT)])
    one, two, three = (everything(held["owner-0000"].train)[0] for held in (first, again, other))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    dealt = [
        make(tmp_path, classes=["low", "high"], split_seed=seed, test_fraction=0).data() for seed in (1, 2)
    ]
    one, two = (everything(held["owner-0000"].train)[0][:, 0].sort().values for held in dealt)
    assert not torch.equal(one, two)
    assert [len(split.test) for split in first.values()] == [2, 2, 2, 2]


def test_a_column_names_each_records_owner(tmp_path: Path) -> None:
    write(tmp_path, ward=[f"ward {n % 3}" for n in range(COUNT)])
    held = make(tmp_path, owners="ward", classes=["low", "high"], test_fraction=0).data()
    assert {name: len(split.train) for name, split in held.items()} == {
        "ward 0": 14,
        "ward 1": 13,
        "ward 2": 13,
    }
    numbers = (everything(held["ward 1"].train)[0][:, 0] * COUNT).round().int()
    assert (numbers % 3 == 1).all()


def test_classes_come_from_the_task_then_the_data_set_then_the_values(tmp_path: Path) -> None:
    write(tmp_path)
    declared, guessed = make(tmp_path, classes=["low", "high"]), make(tmp_path)
    assert (declared.classes, declared.notes) == (("low", "high"), [])
    assert (guessed.classes, guessed.notes) == (("high", "low"), [INFERRED_CLASSES])
    features = datasets.Features(
        {"a": datasets.Value("float32"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = datasets.Dataset.from_dict({"a": [0.0, 1.0], "label": [0, 1]}, features=features)
    rows.to_parquet(tmp_path / "named.parquet")
    named = make(tmp_path, data_files=tmp_path / "named.parquet", inputs=["a"], owners=1, test_fraction=0)
    assert (named.classes, named.notes) == (("no", "yes"), [])
    inputs, targets = everything(named.data()["owner-0000"].train)
    assert inputs.flatten().tolist() == targets.tolist()


def test_numbers_are_normalised_by_public_constants_and_may_be_lists(tmp_path: Path) -> None:
    write(tmp_path, lists=[[n, 2 * n, 3 * n] for n in range(COUNT)])
    held = make(
        tmp_path,
        inputs="lists",
        mean=(0.0, 1.0, 2.0),
        std=2.0,
        classes=["low", "high"],
        owners=1,
        test_fraction=0,
    )
    inputs, _ = everything(held.data()["owner-0000"].train)
    number = torch.arange(COUNT, dtype=torch.float32)
    wanted = torch.stack([number / 2, (2 * number - 1) / 2, (3 * number - 2) / 2], dim=1)
    torch.testing.assert_close(inputs[inputs[:, 0].argsort()], wanted)
    assert held.model()(inputs).shape == (COUNT, 2)


def test_pictures_are_brought_to_the_declared_size(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (6, 9, 7, 3), dtype=np.uint8)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    datasets.Dataset.from_dict({"image": list(pixels), "label": [0, 1] * 3}, features=features).to_parquet(
        tmp_path / "rows.parquet"
    )
    same = make(tmp_path, inputs="image", owners=1, size=(9, 7), model="cnn", test_fraction=0)
    found = {
        tuple(image.flatten().tolist())
        for image in (everything(same.data()["owner-0000"].train)[0] * 255).round().int()
    }
    assert found == {tuple(image.transpose(2, 0, 1).flatten().tolist()) for image in pixels}
    grey = make(tmp_path, inputs="image", owners=2, size=8, channels=1, model="cnn", test_fraction=0)
    assert everything(grey.data()["owner-0001"].train)[0].shape == (3, 1, 8, 8)
    assert grey.model()(torch.zeros(2, 1, 8, 8)).shape == (2, 2)


def test_a_test_split_is_dealt_to_the_owners(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    for part, count in (("train", 12), ("test", 8)):
        rows = {"a": np.arange(count) / 10.0, "label": ["x", "y"] * (count // 2)}
        datasets.Dataset.from_dict(rows).to_parquet(folder / f"{part}-00000-of-00001.parquet")
    task = Hub(
        dataset=str(folder),
        inputs=["a"],
        owners=4,
        model="mlp",
        classes=["x", "y"],
        test_split="test",
        cache=tmp_path / "cache",
    )
    held = task.data()
    assert [(len(split.train), len(split.test)) for split in held.values()] == [(3, 2)] * 4
    tested = torch.cat([everything(split.test)[0] for split in held.values()])
    assert tested.flatten().sort().values.tolist() == pytest.approx([n / 10 for n in range(8)])


def refused(task: Hub) -> DataError:
    with pytest.raises(DataError) as caught:
        task.data()
    assert caught.value.remedy
    assert "secret" not in caught.value.message
    return caught.value


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"inputs": ["a", "bb"]}, "data-missing-column", "did you mean 'b'?"),
        ({"target": "lable"}, "data-missing-column", "did you mean 'label'?"),
        ({"owners": "ward"}, "data-missing-column", "no column 'ward'"),
        ({"inputs": ["a", "text"]}, "data-not-a-number", "not numbers"),
        ({"inputs": ["a", "gaps"]}, "data-not-a-number", "missing or not finite"),
        ({"classes": ["low", "hihg"]}, "data-target", "record"),
        ({"split": "validation"}, "data-unreadable", "ValueError"),
        ({"dataset": "nobody/nothing", "data_files": None}, "data-unreadable", "nobody/nothing"),
        ({"inputs": "a", "size": 8}, "data-not-a-picture", "not one column of pictures"),
    ],
)
def test_a_data_set_that_is_not_what_was_declared_is_refused(
    tmp_path: Path, options: dict[str, Any], code: str, said: str
) -> None:
    write(tmp_path, text=["secret"] * COUNT, gaps=[None, *range(COUNT - 1)])
    error = refused(make(tmp_path, **{"classes": ["low", "high"], **options}))
    assert error.code == code
    assert said in error.message


def test_without_the_extra_the_task_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "flwr_datasets" else plain(name, *rest),
    )
    with pytest.raises(TaskError) as caught:
        Hub(dataset="mnist")
    assert caught.value.code == "task-extra"
    assert "cloister[hub]" in caught.value.remedy


def test_the_model_card_names_the_data_set_and_its_revision(tmp_path: Path) -> None:
    write(tmp_path)
    card = make(tmp_path, classes=["low", "high"]).describe()
    assert card["title"] == "parquet"
    assert "revision" in card["source"]
