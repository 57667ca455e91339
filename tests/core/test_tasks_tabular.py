"""Tables: what a public schema makes of them, what is guessed without one, and what is refused without quoting a value."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloister.core import Split, TensorData
from cloister.core.errors import CloisterError, DataError, TaskError
from cloister.core.resolve import load_task, owners
from cloister.core.spec.tables import TaskTable
from cloister.core.tasks.columns import BooleanColumn, CategoricalColumn, NumericColumn, read_schema
from cloister.core.tasks.splitting import split_rows
from cloister.core.tasks.tabular import INFERRED, Tabular

AGE = {"kind": "numeric", "low": 20, "high": 80}
WARD = {"kind": "categorical", "values": ["a", "b"]}
SICK = {"kind": "boolean"}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def all_rows(task: Tabular, owner: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets of a task with ``test_fraction = 0``: the file's rows in its order."""
    held = task.data()
    split = held if isinstance(held, Split) else held[owner or next(iter(held))]
    assert isinstance(split.train, TensorData)
    assert len(split.test) == 0
    return split.train.inputs, split.train.targets


def make(path: Path, target: str = "ill", **options: Any) -> Tabular:
    if isinstance(options.get("schema"), dict):
        options["schema"] = {"columns": options["schema"]}
    return Tabular(data=path, target=target, **{"test_fraction": 0.0, **options})


def refused(
    error: type[DataError | TaskError], path: Path, target: str = "ill", **options: Any
) -> CloisterError:
    with pytest.raises(error) as caught:
        make(path, target, **options).data()
    assert caught.value.remedy
    assert "secret" not in caught.value.message + caught.value.remedy
    return caught.value


def test_a_numeric_column_is_scaled_by_its_public_range_and_clipped(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", "age,ill\n20,0\n50,1\n80,0\n1e9,1\n-5,0\n")
    centred, _ = all_rows(make(path, schema={"age": AGE, "ill": SICK}))
    unit, _ = all_rows(make(path, schema={"age": AGE | {"scale": "unit"}, "ill": SICK}))
    assert centred.flatten().tolist() == [-1, 0, 1, 1, -1]
    assert unit.flatten().tolist() == [0, 0.5, 1, 1, 0]


def test_a_categorical_column_has_one_input_a_value_and_one_for_any_other(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", "ward,ill\na,0\n b ,1\nzzz,0\n")
    inputs, _ = all_rows(make(path, schema={"ward": WARD, "ill": SICK}))
    assert inputs.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    error = refused(
        DataError,
        write(tmp_path / "t.csv", "ward,ill\na,0\nsecret,1\n"),
        schema={"ward": WARD | {"other": False}, "ill": SICK},
    )
    assert error.code == "data-unknown-category"
    assert "t.csv', column 'ward', row 2" in error.message


def test_a_category_is_the_same_as_a_whole_number_however_it_is_written(tmp_path: Path) -> None:
    schema = {"grade": {"kind": "categorical", "values": [1, 2], "other": False}, "ill": SICK}
    text, _ = all_rows(make(write(tmp_path / "s.csv", "grade,ill\n1,0\n2.0,1\n"), schema=schema))
    pd.DataFrame({"grade": [1.0, 2.0], "ill": [False, True]}).to_parquet(tmp_path / "s.parquet")
    parquet, targets = all_rows(make(tmp_path / "s.parquet", schema=schema))
    assert text.tolist() == parquet.tolist() == [[1, 0], [0, 1]]
    assert targets.tolist() == [0, 1]


@pytest.mark.parametrize("yes", ["1", "true", "True", "YES", "t", "y"])
def test_yes_and_no_may_be_written_in_any_usual_way(tmp_path: Path, yes: str) -> None:
    no = {"1": "0", "true": "false", "True": "False", "YES": "NO", "t": "f", "y": "n"}[yes]
    path = write(tmp_path / "s.csv", f"smokes,ill\n{yes},{no}\n{no},{yes}\n")
    inputs, targets = all_rows(make(path, schema={"smokes": SICK, "ill": SICK}))
    assert inputs.flatten().tolist() == [1, 0]
    assert targets.tolist() == [0, 1]


@pytest.mark.parametrize("gap", ["", "?", "NA", "nan", " null "])
def test_a_missing_value_drops_the_row_or_is_said_by_an_input(tmp_path: Path, gap: str) -> None:
    path = write(tmp_path / "s.csv", f"age,ward,ill\n20,a,0\n{gap},a,1\n80,{gap},0\n80,b,{gap}\n")
    dropping = make(path, schema={"age": AGE, "ward": WARD, "ill": SICK})
    inputs, _ = all_rows(dropping)
    assert inputs.tolist() == [[-1, 1, 0, 0]]
    assert dropping.dropped == {"s": 3}
    say = {"missing": "indicator"}
    inputs, targets = all_rows(make(path, schema={"age": AGE | say, "ward": WARD | say, "ill": SICK}))
    assert inputs.tolist() == [[-1, 0, 1, 0, 0, 0], [0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 1]]
    assert targets.tolist() == [0, 1, 0]


def test_the_schema_may_say_what_stands_for_a_missing_value(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", "ward,ill\n-9,0\nNA,1\n")
    task = Tabular(
        data=path,
        target="ill",
        test_fraction=0,
        schema={"columns": {"ward": WARD, "ill": SICK}, "missing_values": ["-9"]},
    )
    inputs, _ = all_rows(task)
    assert inputs.tolist() == [[0, 0, 1]]


def test_inputs_follow_the_names_whatever_the_order_of_file_and_schema(tmp_path: Path) -> None:
    one = make(
        write(tmp_path / "one.csv", "b,a,extra,ill\n20,80,x,0\n80,20,y,1\n"),
        schema={"b": AGE, "a": AGE, "ill": SICK},
    )
    two = make(
        write(tmp_path / "two.csv", "ill,a,b\n0,80,20\n1,20,80\n"), schema={"ill": SICK, "a": AGE, "b": AGE}
    )
    assert torch.equal(all_rows(one)[0], all_rows(two)[0])
    assert all_rows(one)[0].tolist() == [[1, -1], [-1, 1]]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_comma_semicolon_and_tab_are_told_by_the_header(tmp_path: Path, mark: str) -> None:
    path = write(tmp_path / "s.csv", "\ufeffage,ward,ill\n20,a,0\n80,b,1\n".replace(",", mark))
    inputs, _ = all_rows(make(path, schema={"age": AGE, "ward": WARD, "ill": SICK}))
    assert inputs.tolist() == [[-1, 1, 0, 0], [1, 0, 1, 0]]


def test_a_party_without_data_builds_the_same_model(tmp_path: Path) -> None:
    schema = {"age": AGE, "ward": WARD | {"missing": "indicator"}, "ill": SICK}
    server = make(tmp_path / "nowhere.csv", schema=schema)
    site = make(write(tmp_path / "s.csv", "age,ward,ill\n20,a,0\n80,b,1\n"), schema=schema)
    shapes = [[tuple(p.shape) for p in task.model().parameters()] for task in (server, site)]
    assert shapes[0] == shapes[1] == [(64, 5), (64,), (2, 64), (2,)]
    assert server.classes == ("false", "true")
    assert server.notes == []


@pytest.mark.parametrize(
    ("column", "options", "kind", "classes"),
    [
        ({"kind": "categorical", "values": ["x", "y"]}, {}, "classification", ("x", "y")),
        (None, {"classes": ["y", "x"]}, "classification", ("y", "x")),
        (None, {"classes": [1, 0]}, "classification", ("1", "0")),
        ({"kind": "numeric", "low": 0, "high": 2}, {}, "regression", ()),
        ({"kind": "numeric", "low": 0, "high": 2}, {"kind": "regression"}, "regression", ()),
        (
            {"kind": "numeric", "low": 0, "high": 2},
            {"kind": "classification", "classes": ["0", "1"]},
            "classification",
            ("0", "1"),
        ),
    ],
)
def test_the_declared_target_decides_the_kind(
    tmp_path: Path, column: Any, options: Any, kind: str, classes: Any
) -> None:
    columns = {"age": AGE} | ({"out": column} if column else {})
    task = make(tmp_path / "unread.csv", "out", schema=columns, **options)
    assert (task.kind, task.classes) == (kind, classes)
    assert task.model()(torch.zeros(3, 1)).shape == (3, len(classes) or 1)


def test_a_regression_target_is_scaled_by_its_public_range(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", "age,cost\n20,0\n80,1000\n50,250\n")
    _, targets = all_rows(
        make(path, "cost", schema={"age": AGE, "cost": {"kind": "numeric", "low": 0, "high": 1000}})
    )
    assert targets.tolist() == [-1, 1, -0.5]
    assert targets.dtype == torch.float32


def test_each_file_of_a_folder_is_an_owner_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "zurich.csv", "age,ill\n20,0\n30,1\n")
    write(tmp_path / "basel.csv", "age,ill\n80,1\n70,0\n60,1\n")
    pd.DataFrame({"age": [50], "ill": [1]}).to_parquet(tmp_path / "geneva.parquet")
    write(tmp_path / "README.md", "not a table")
    task = make(tmp_path, schema={"age": AGE, "ill": SICK})
    held = task.data()
    assert isinstance(held, dict)
    assert {name: len(split.train) for name, split in held.items()} == {"basel": 3, "geneva": 1, "zurich": 2}
    assert all_rows(task, "geneva")[0].tolist() == [[0]]


def test_without_a_schema_types_are_guessed_and_that_is_said(tmp_path: Path) -> None:
    rows = "\n".join(
        f"{20 + n},{'abc'[n % 3]},{n % 2},{'' if n == 4 else n / 2},name {n},x,{n % 4}" for n in range(60)
    )
    path = write(tmp_path / "s.csv", f"age,ward,smokes,dose,name,constant,grade\n{rows}\n")
    task = make(path, "grade")
    assert task.notes[0] == INFERRED
    assert "declare a schema" in task.notes[0]
    assert "classes" in task.notes[1]
    assert (task.kind, task.classes) == ("classification", ("0", "1", "2", "3"))
    guessed = read_schema(task.inferred_schema()).columns
    assert guessed["age"] == NumericColumn(low=20, high=79)
    assert guessed["ward"] == CategoricalColumn(values=("a", "b", "c"))
    assert guessed["smokes"] == BooleanColumn()
    assert guessed["dose"] == NumericColumn(low=0, high=29.5, missing="indicator")
    assert "name" not in guessed
    assert "constant" not in guessed
    inputs, targets = all_rows(task)
    assert inputs.shape == (60, 1 + 2 + 1 + 4)
    assert targets.tolist() == [n % 4 for n in range(60)]


@pytest.mark.parametrize(
    ("values", "kind", "classes"),
    [
        (["yes", "no"] * 5, "classification", ("false", "true")),
        (["b", "a", "c"] * 4, "classification", ("a", "b", "c")),
        ([3, 1, 10] * 4, "classification", ("1", "3", "10")),
        ([0.5 * n for n in range(12)], "regression", ()),
        (list(range(30)), "regression", ()),
    ],
)
def test_a_target_that_is_not_declared_is_guessed(
    tmp_path: Path, values: list[Any], kind: str, classes: Any
) -> None:
    pd.DataFrame({"age": np.linspace(20, 80, len(values)), "out": values}).to_csv(
        tmp_path / "s.csv", index=False
    )
    task = make(tmp_path / "s.csv", "out", schema={"age": AGE})
    assert (task.kind, task.classes) == (kind, classes)
    assert len(task.notes) == 1
    all_rows(task)


@pytest.mark.parametrize("form", ["toml", "json"])
def test_a_guessed_schema_can_be_written_read_and_used(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "s.csv", "age,ward,ill\n20,a,0\n80,b,1\n50,,1\n")
    guess = make(path)
    file = tmp_path / f"schema.{form}"
    guess.inferred_schema(tmp_path / "schema.toml")
    assert "Replace them by public ones" in (tmp_path / "schema.toml").read_text().splitlines()[0]
    if form == "json":
        file.write_text(json.dumps(tomllib.loads((tmp_path / "schema.toml").read_text())))
    task = make(path, schema=file)
    assert task.notes == []
    assert torch.equal(all_rows(task)[0], all_rows(guess)[0])


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("years,ill\n30,0\n", "data-missing-column", "no column 'age'"),
        ("agee,ill\n30,0\n", "data-missing-column", "did you mean 'agee'?"),
        ("age\n30\n", "data-missing-column", "no column 'ill'"),
        ("age,ill\n30,0\nsecret,1\n", "data-not-a-number", "s.csv', column 'age', row 2"),
        ("age,ill\n30,0\n40,1\n-inf,1\n", "data-not-a-number", "row 3"),
        ("age,ill\n30,0\n40,secret\n", "data-not-a-boolean", "column 'ill', row 2"),
        ("age,ill\n", "data-empty", "has no record"),
        ("age,ill\n,1\n30,\n", "data-empty", "has no row with every value"),
        ("", "data-unreadable", "not a table"),
        ("age,ill\n30,0,secret\n40,1\n", "data-unreadable", "not a table"),
        ("age,ill\n30,0\n40,1,secret,3\n", "data-unreadable", "line 3"),
        ("age,age,ill\n30,30,0\n", "data-unreadable", "two columns of one name"),
    ],
)
def test_a_table_that_is_not_what_it_should_be_is_refused_by_file_column_and_row(
    tmp_path: Path, text: str, code: str, said: str
) -> None:
    error = refused(DataError, write(tmp_path / "s.csv", text), schema={"age": AGE, "ill": SICK})
    assert error.code == code
    assert said in error.message
    assert "s.csv" in error.message
    assert error.exit_code == 4


@pytest.mark.parametrize("guessing", [False, True])
def test_a_file_that_is_not_there_or_not_a_table_is_refused(tmp_path: Path, guessing: bool) -> None:
    schema: dict[str, Any] = {} if guessing else {"schema": {"age": AGE, "ill": SICK}}
    (tmp_path / "empty").mkdir()
    (tmp_path / "bytes.csv").write_bytes(b"age,ill\n\xff\xfe,0\n")
    (tmp_path / "bytes.parquet").write_bytes(b"secret")
    write(tmp_path / "notes.txt", "age,ill\n")
    for name, code in (
        ("missing.csv", "data-missing-file"),
        ("empty", "data-missing-file"),
        ("bytes.csv", "data-unreadable"),
        ("bytes.parquet", "data-unreadable"),
        ("notes.txt", "data-unreadable"),
    ):
        error = refused(DataError, tmp_path / name, **schema)
        assert error.code == code
        assert name in error.message


def test_an_unknown_class_is_refused_by_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", "age,out\n30,x\n40,secret\n")
    error = refused(DataError, path, "out", schema={"age": AGE}, classes=["x", "y"])
    assert error.code == "data-target"
    assert "column 'out', row 2" in error.message


def test_a_site_of_one_class_is_refused_unless_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "s.csv", "age,ill\n30,1\n40,1\n")
    with pytest.raises(DataError) as caught:
        owners(make(path, schema={"age": AGE, "ill": SICK}))
    assert caught.value.code == "data-single-class"
    assert (
        len(owners(make(path, schema={"age": AGE, "ill": SICK}, allow_single_class=True))["pooled"].train)
        == 2
    )


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"columns": {"age": {"kind": "numeric", "low": 5}}}, "'high' is missing"),
        ({"columns": {"age": {"kind": "numeric", "low": 5, "high": 5}}}, "low = 5.0 is not below high = 5.0"),
        ({"columns": {"age": {"kind": "numeric", "low": 5, "hihg": 9, "high": 9}}}, "did you mean 'high'?"),
        ({"columns": {"age": {"kind": "numerical", "low": 5, "high": 9}}}, "did you mean 'numeric'?"),
        ({"columns": {"age": {"low": 5, "high": 9}}}, "column 'age' has no known kind"),
        ({"columns": {"ward": {"kind": "categorical", "values": []}}}, "column 'ward'"),
        ({"columns": {"ward": {"kind": "categorical", "values": ["1", 1]}}}, "a value stands twice"),
        ({"columns": {}}, "declares no columns"),
        ({"column": {"age": AGE}}, "did you mean 'columns'?"),
        ({"columns": {"age": AGE}, "missing_values": "?"}, "missing_values is not a list"),
        ({"columns": {"age": {"kind": "ignore"}, "ill": SICK}}, "no column to predict 'ill' from"),
    ],
)
def test_a_schema_that_says_nothing_sound_is_refused(tmp_path: Path, schema: Any, said: str) -> None:
    with pytest.raises(TaskError) as caught:
        Tabular(data=tmp_path / "s.csv", target="ill", schema=schema)
    assert caught.value.code == "task-schema"
    assert said in caught.value.message
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("s.toml", "columns = ["),
        ("s.json", "{"),
        ("s.json", "[" * 100_000),
        ("s.json", "[1]"),
        ("none.toml", None),
    ],
)
def test_a_schema_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str, text: str | None) -> None:
    if text is not None:
        write(tmp_path / name, text)
    with pytest.raises(TaskError) as caught:
        Tabular(data=tmp_path / "s.csv", target="ill", schema=tmp_path / name)
    assert caught.value.code == "task-schema"
    assert name in caught.value.message


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"classes": ["a", "a"]}, "task-option"),
        ({"classes": ["a", "b"], "kind": "regression"}, "task-option"),
        ({"kind": "classification", "schema": {"age": AGE, "ill": AGE}}, "task-classes"),
        ({"kind": "regression"}, "task-option"),
        ({"model": "mlpp"}, "model-unknown"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    tmp_path: Path, options: dict[str, Any], code: str
) -> None:
    error = refused(TaskError, tmp_path / "s.csv", **{"schema": {"age": AGE, "ill": SICK}, **options})
    assert error.code == code


def test_options_come_from_a_federation_file_and_paths_from_its_folder(tmp_path: Path) -> None:
    write(tmp_path / "s.csv", "age,ill\n30,1\n40,0\n50,1\n60,0\n")
    write(
        tmp_path / "schema.toml",
        '[columns.age]\nkind = "numeric"\nlow = 20\nhigh = 80\n[columns.ill]\nkind = "boolean"\n',
    )
    options = {
        "use": "tabular",
        "data": "s.csv",
        "target": "ill",
        "schema": "schema.toml",
        "test_fraction": 0.5,
        "split_seed": 3,
    }
    task = load_task(TaskTable.model_validate(options), tmp_path)
    split = owners(task)["pooled"]
    assert len(split.train) == len(split.test) == 2
    with pytest.raises(TaskError, match="did you mean 'target'"):
        load_task(TaskTable.model_validate({**options, "targt": "x"}), tmp_path)
    with pytest.raises(TaskError, match="test_fraction"):
        load_task(TaskTable.model_validate({**options, "test_fraction": 1.5}), tmp_path)


@given(
    strata=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    fraction=st.floats(0, 0.95),
    seed=st.integers(0, 50),
    owner=st.sampled_from(["a", "b"]),
)
def test_a_split_takes_each_row_once_the_same_share_of_each_stratum_and_leaves_one_to_train_on(
    strata: list[int], fraction: float, seed: int, owner: str
) -> None:
    labels = np.array(strata, dtype=np.int64)
    train, test = split_rows(labels, test_fraction=fraction, seed=seed, owner=owner)
    assert sorted([*train, *test]) == list(range(len(strata)))
    for stratum in set(strata):
        count, kept = strata.count(stratum), int((labels[test] == stratum).sum())
        assert kept <= count - 1
        assert kept == count - 1 or abs(kept - fraction * count) <= 0.5
    again = split_rows(labels, test_fraction=fraction, seed=seed, owner=owner)
    assert (again[0] == train).all()
    assert (again[1] == test).all()


def test_a_split_is_the_same_on_every_machine_and_differs_by_owner_and_seed() -> None:
    labels = np.arange(12, dtype=np.int64) % 3
    splits = {
        key: split_rows(labels, test_fraction=0.34, seed=key[0], owner=key[1])[1].tolist()
        for key in ((2026, "a"), (2026, "b"), (1, "a"))
    }
    assert splits[2026, "a"] == [0, 4, 8]
    assert len({tuple(test) for test in splits.values()}) == 3
