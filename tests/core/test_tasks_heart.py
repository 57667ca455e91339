"""The heart task: the records of four hospitals, and what a model can learn from them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from cloister.core import Data, TensorData
from cloister.core.errors import DataError
from cloister.core.metrics import measure
from cloister.core.resolve import build_model
from cloister.core.tasks.digits import Digits
from cloister.core.tasks.heart import HOSPITALS, Heart, heart_data


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors on a busy machine: a second thread costs more than it gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_four_hospitals_come_in_order_with_their_complete_records() -> None:
    held = Heart().data()
    assert tuple(held) == HOSPITALS == ("cleveland", "hungarian", "switzerland", "long-beach-va")
    assert [len(split.train) + len(split.test) for split in held.values()] == [303, 261, 46, 130]


def test_a_third_of_each_hospital_is_kept_for_testing_with_the_same_share_of_disease() -> None:
    for split in Heart().data().values():
        count = len(split.train) + len(split.test)
        assert abs(len(split.test) - 0.34 * count) <= 1
        for number in (0, 1):
            trained, tested = (int((part.targets == number).sum()) for part in (split.train, split.test))
            assert abs(tested - 0.34 * (trained + tested)) <= 0.5


def test_the_split_is_fixed() -> None:
    first, second = Heart().data(), Heart(model="mlp").data()
    for name in HOSPITALS:
        one, two = first[name].test, second[name].test
        assert isinstance(one, TensorData)
        assert isinstance(two, TensorData)
        assert torch.equal(one.inputs, two.inputs)
    cleveland = first["cleveland"].test
    assert isinstance(cleveland, TensorData)
    assert cleveland.targets[:12].tolist() == [1, 1, 0, 1, 1, 0, 0, 0, 1, 1, 1, 1]


def test_inputs_are_scaled_by_public_constants_only(tmp_path: Path) -> None:
    """A record reads the same whatever other records stand beside it."""
    for name in HOSPITALS:
        shutil.copyfile(heart_data() / f"{name}.csv", tmp_path / f"{name}.csv")
    path = tmp_path / "switzerland.csv"
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join([lines[0], "50,1,3,140,200,0,1,140,0,2,,,,1", "99,0,1,300,900,1,2,10,1,9,,,,0"]) + "\n"
    )
    split = Heart(data=tmp_path).data()["switzerland"]
    assert isinstance(split.train, TensorData)
    by_class = dict(zip(split.train.targets.tolist(), split.train.inputs, strict=True))
    # age, chol, cp x 4, exang, fbs, oldpeak, restecg x 3, sex, thalach, trestbps
    torch.testing.assert_close(
        by_class[1], torch.tensor([0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0], dtype=torch.float32)
    )
    torch.testing.assert_close(
        by_class[0], torch.tensor([1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 0, 1, 0, -1, 1], dtype=torch.float32)
    )


def joined(parts: Sequence[Data]) -> tuple[torch.Tensor, torch.Tensor]:
    batches = [part.batch(torch.arange(len(part))) for part in parts]
    return torch.cat([inputs for inputs, _ in batches]), torch.cat([targets for _, targets in batches])


def test_a_pooled_logistic_regression_reaches_078_for_every_seed() -> None:
    task, held = Heart(), Heart().data()
    (x, y), test = (
        joined([split.train for split in held.values()]),
        TensorData(*joined([split.test for split in held.values()])),
    )
    for seed in range(3):
        model = build_model(task, seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
        order = torch.Generator().manual_seed(seed)
        for _ in range(15):
            for rows in torch.split(torch.randperm(len(y), generator=order), 16):
                optimizer.zero_grad()
                functional.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        assert measure(task, model, test).metrics["accuracy"] >= 0.78


@pytest.mark.parametrize("damage", ["no file", "missing column", "text", "no record"])
def test_a_damaged_folder_is_refused_without_a_value_of_it(tmp_path: Path, damage: str) -> None:
    for name in HOSPITALS:
        shutil.copyfile(heart_data() / f"{name}.csv", tmp_path / f"{name}.csv")
    path = tmp_path / "hungarian.csv"
    lines = path.read_text().splitlines()
    code, said = {
        "no file": ("data-missing-file", "hungarian.csv"),
        "missing column": ("data-missing-column", "no column 'thalach'"),
        "text": ("data-not-a-number", "column 'age', row 2"),
        "no record": ("data-empty", "hungarian.csv"),
    }[damage]
    if damage == "no file":
        for name in HOSPITALS:
            (tmp_path / f"{name}.csv").unlink()
    if damage == "missing column":
        path.write_text("\n".join([lines[0].replace("thalach", "pulse"), *lines[1:]]))
    if damage == "text":
        path.write_text("\n".join([lines[0], lines[1], "secret" + lines[2][2:], *lines[3:]]))
    if damage == "no record":
        path.write_text(lines[0] + "\n")
    with pytest.raises(DataError) as caught:
        Heart(data=tmp_path).data()
    assert caught.value.code == code
    assert said in caught.value.message
    assert "secret" not in caught.value.message + caught.value.remedy


def test_digits_are_1797_images_split_by_class() -> None:
    split = Digits().data()
    inputs, targets = split.train.batch(torch.arange(len(split.train)))
    assert len(split.train) + len(split.test) == 1797
    assert inputs.shape[1:] == (1, 8, 8)
    assert inputs.min() == 0
    assert inputs.max() == 1
    shares = np.bincount(split.test.targets) / (np.bincount(split.test.targets) + np.bincount(targets))
    assert np.abs(shares - 0.2).max() < 0.01
