"""A site's data set: the federation's task over the place that the site's own file gives."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cloister.client.site_config import DataTable
from cloister.client.site_data import load_dataset, site_task
from cloister.core.data import TensorData
from cloister.core.errors import CloisterError
from cloister.core.finding import named_tasks
from cloister.core.spec.tables import TaskTable
from cloister.core.tasks.heart import HOSPITALS, Heart, heart_data

SCHEMA = {"columns": {"age": {"kind": "numeric", "low": 0, "high": 100}}}
OWN_TASK = """
from pathlib import Path
import torch
from torch import nn
from cloister.core import Split, Task, TensorData

class Own(Task):
    classes = ("a", "b")
    def __init__(self, *, folder: Path, more: tuple[Path, ...] = (), lookup: Path | dict[str, str] | None = None, width: int = 2) -> None:
        self.said = (folder, more, lookup, width)
    def model(self) -> nn.Module:
        return nn.Linear(2, 2)
    def data(self) -> Split:
        return Split(*(TensorData(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])) for _ in range(2)))
"""


def federation(**options: Any) -> TaskTable:
    return TaskTable.model_validate(options)


def refused(table: DataTable, task: TaskTable, base: Path) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        load_dataset(table, task, base)
    assert caught.value.remedy
    return caught.value


def only(tmp_path: Path, *names: str) -> Path:
    for name in names:
        shutil.copyfile(heart_data() / f"{name}.csv", tmp_path / f"{name}.csv")
    return tmp_path


@pytest.mark.parametrize("held", [HOSPITALS, ("hungarian",)])
def test_a_site_reads_the_same_records_whether_or_not_others_files_lie_beside_its_own(
    tmp_path: Path, held: tuple[str, ...]
) -> None:
    only(tmp_path, *held)
    table = DataTable(task="heart", owner="hungarian", options={"data": str(tmp_path)})
    _, split = load_dataset(table, federation(use="heart", model="mlp"), tmp_path / "elsewhere")
    wanted = Heart().data()["hungarian"]
    for part, expected in ((split.train, wanted.train), (split.test, wanted.test)):
        assert isinstance(part, TensorData)
        assert isinstance(expected, TensorData)
        assert torch.equal(part.inputs, expected.inputs)


def test_a_site_with_one_owners_records_need_not_name_it(tmp_path: Path) -> None:
    only(tmp_path, "hungarian")
    table = DataTable(task="heart", options={"data": "."})
    _, split = load_dataset(table, federation(use="heart"), tmp_path)
    assert len(split.train) + len(split.test) == 261


def test_a_site_with_several_owners_records_has_to_say_whose_it_means(tmp_path: Path) -> None:
    none = refused(DataTable(task="heart"), federation(use="heart"), tmp_path)
    assert none.code == "data-owner"
    wrong = refused(DataTable(task="heart", owner="clevland"), federation(use="heart"), tmp_path)
    assert wrong.code == "data-owner"
    assert "did you mean 'cleveland'" in wrong.message
    alone = refused(DataTable(task="digits", owner="cleveland"), federation(use="digits"), tmp_path)
    assert alone.code == "data-owner"


def test_the_federation_file_does_not_choose_what_a_site_reads(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("age,y\n10,a\n20,b\n30,a\n40,b\n")
    (tmp_path / "secret.csv").write_text("age,y\n90,a\n91,b\n92,a\n93,b\n")
    task = federation(use="tabular", target="y", classes=["a", "b"], schema=SCHEMA, data="secret.csv")
    table = DataTable(task="tabular", options={"data": "mine.csv"})
    _, split = load_dataset(table, task, tmp_path)
    assert isinstance(split.train, TensorData)
    assert float(split.train.batch(torch.arange(len(split.train)))[0].max()) < 0
    lacking = refused(DataTable(task="tabular"), task, tmp_path)
    assert lacking.code == "task-place"
    assert "'data'" in lacking.message


def test_a_site_does_not_choose_what_the_federation_decides(tmp_path: Path) -> None:
    for name, value in (("model", "mlp"), ("split_seed", 3), ("unheard_of", 1)):
        table = DataTable(task="heart", owner="cleveland", options={name: value})
        error = refused(table, federation(use="heart"), tmp_path)
        assert error.code == "task-place"
        assert name in error.message
    error = refused(DataTable(task="digits", options={"data": "x"}), federation(use="digits"), tmp_path)
    assert error.code == "task-place"


def test_a_data_set_of_another_task_is_refused(tmp_path: Path) -> None:
    error = refused(DataTable(task="heart"), federation(use="digits"), tmp_path)
    assert (error.code, error.exit_code) == ("task-differs", 5)


@pytest.mark.parametrize(
    "path", ["/etc/schema.toml", "../schema.toml", "a/../../schema.toml", "C:\\schema.toml"]
)
def test_a_federations_path_stays_in_the_sites_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "mine.csv").write_text("age,y\n10,a\n20,b\n30,a\n40,b\n")
    table = DataTable(task="tabular", options={"data": "mine.csv"})
    error = refused(table, federation(use="tabular", target="y", schema=path), tmp_path)
    assert error.code == "task-place"
    assert "schema" in error.message


def test_of_an_own_task_the_options_that_can_only_be_paths_are_the_sites(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN_TASK)
    use = "own.py:Own"
    task = federation(use=use, folder="theirs", lookup="table.toml", width=3)
    merged = site_task(DataTable(task=use, options={"folder": "mine", "more": ["a"]}), task, tmp_path)
    assert merged.options == {"folder": "mine", "more": ["a"], "lookup": "table.toml", "width": 3}
    found, _ = load_dataset(DataTable(task=use, options={"folder": "mine"}), task, tmp_path)
    assert vars(found)["said"][0] == tmp_path / "mine"
    assert (
        refused(DataTable(task=use, options={"folder": "m", "lookup": "x"}), task, tmp_path).code
        == "task-place"
    )
    assert refused(DataTable(task=use), task, tmp_path).code == "task-place"


def test_a_federation_does_not_bring_a_task_in_by_the_option_of_another(tmp_path: Path) -> None:
    """The site names its task; what that one wraps would be another, from wherever the federation says."""
    wrapper = (
        "from cloister.core import Split, Task\nfrom torch import nn\n"
        "class Wrapper(Task):\n    classes = ('a', 'b')\n    def __init__(self, *, of: Task) -> None:\n        self.of = of\n"
        "    def model(self) -> nn.Module:\n        return self.of.model()\n    def data(self) -> Split:\n        return self.of.data()\n"
    )
    (tmp_path / "own.py").write_text(wrapper)
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath(__file__).with_name('ran').touch()\n")
    task = federation(use="own.py:Wrapper", of={"use": "evil.py:Evil"})
    assert refused(DataTable(task="own.py:Wrapper"), task, tmp_path).code == "task-place"
    statistic = federation(use="statistics", of={"use": "evil.py:Evil"}, columns=["target"])
    assert refused(DataTable(task="heart", owner="cleveland"), statistic, tmp_path).code == "task-differs"
    assert not (tmp_path / "ran").exists()
    assert named_tasks(task) == ["own.py:Wrapper", "evil.py:Evil"]
