"""Whatever is wrong: one stable code, its exit status, a message that names the thing, a remedy, no data, nothing half-made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("undrawn")

BAD: list[tuple[str, dict[str, dict[str, Any]], int, str, str]] = [
    (
        "unknown key",
        {"training": {"batchsize": 4}},
        3,
        "spec",
        "unknown key 'training.batchsize'; did you mean 'batch_size'?",
    ),
    ("unknown table", {"trainning": {"x": 1}}, 3, "spec", "did you mean 'training'?"),
    ("wrong type", {"federation": {"rounds": "many"}}, 3, "spec", 'federation.rounds = "many"'),
    ("out of range", {"federation": {"rounds": 0}}, 3, "spec", "federation.rounds = 0"),
    ("missing task file", {"task": {"use": "nowhere.py:Rings"}}, 3, "task-unknown", "nowhere.py"),
    ("missing attribute", {"task": {"use": "rings.py:Ring"}}, 3, "task-unknown", "did you mean 'Rings'?"),
    ("unknown task", {"task": {"use": "hart"}}, 3, "task-unknown", "did you mean 'heart'?"),
    ("unknown option", {"task": {"recordz": 3}}, 3, "task-option", "did you mean 'records'?"),
    ("option of wrong type", {"task": {"records": "many"}}, 3, "task-option", "task.records"),
    ("batch norm", {"task": {"fault": "batch-norm"}}, 3, "batch-norm", "layer '1' is BatchNorm1d"),
    ("model raises", {"task": {"fault": "model"}}, 3, "task-raised", "raised RuntimeError in model()"),
    ("data raises", {"task": {"fault": "data"}}, 3, "task-raised", "raised ValueError in data()"),
    (
        "loss raises",
        {"task": {"fault": "loss"}},
        3,
        "task-raised",
        "raised RuntimeError in its model or loss",
    ),
    ("wrong output", {"task": {"fault": "shape"}}, 3, "task-model", "returned (2, 3) for 2 records"),
    ("loss not finite", {"task": {"fault": "nan"}}, 3, "task-loss", "not finite"),
    ("more sites than records", {"cohort": {"sites": 500, "partition": {"by": "iid"}}}, 3, "", "500"),
    ("no owners", {"cohort": {"sites": 5, "partition": {"by": "site"}}}, 3, "", "partition"),
    ("class weights", {"training": {"class_weights": [1.0, 2.0, 3.0]}}, 3, "", "class_weights"),
    (
        "diverges",
        {
            "training": {"optimizer": {"name": "sgd", "lr": 1e6, "weight_decay": 1e6}},
            "aggregation": {"protection": "plain"},
        },
        6,
        "peers-missing",
        "update-not-finite",
    ),
]


@pytest.mark.parametrize(
    ("tables", "exit_code", "code", "says"), [case[1:] for case in BAD], ids=[case[0] for case in BAD]
)
def test_bad_input_is_refused_with_its_code_and_a_remedy(
    make_file: Callable[..., Path],
    cloister: Any,
    tmp_path: Path,
    tables: Any,
    exit_code: int,
    code: str,
    says: str,
) -> None:
    done = cloister("simulate", make_file(**tables), "--json", "--workers", "0")
    assert done.returncode == exit_code, done.stderr
    error = json.loads(done.stdout)["error"]
    assert says in error["message"]
    assert error["remedy"]
    if code:
        assert error["code"] == code
    assert "Jane" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if exit_code in (3, 4):
        assert not (tmp_path / "runs").exists(), "nothing half-made"


def test_a_missing_federation_file_is_named(cloister: Any) -> None:
    done = cloister("simulate", "nowhere.toml")
    assert done.returncode == 3
    assert "there is no federation file 'nowhere.toml'" in done.stderr
    assert "→" in done.stderr


def test_usage_errors_exit_2(cloister: Any, make_file: Callable[..., Path]) -> None:
    assert cloister("simulate").returncode == 2
    assert cloister("simulate", make_file(), "--engine", "warp").returncode == 2
    assert cloister("simulate", "--resume", "x", "--set", "a=1").returncode == 2
    assert cloister("simulate", "--resume", "nowhere").returncode == 2
    assert cloister("simulate", make_file(), "--workers", "-1").returncode == 2


def test_an_unwritable_place_is_refused(
    cloister: Any, make_file: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    done = cloister("simulate", make_file(), "--out", tmp_path / "file")
    assert done.returncode == 2
    assert "cannot write a run folder" in done.stderr


@pytest.mark.slow
def test_a_users_task_in_one_file_works_from_outside_the_repository(
    make_file: Callable[..., Path], installed: Any, answer: Any, tmp_path: Path
) -> None:
    done = installed(
        "simulate", make_file(), "--json", "--set", "federation.rounds=25", "--set", "training.local_epochs=4"
    )
    assert done.returncode == 0, done.stderr
    found = answer(done)
    assert set(found) >= {"run", "report", "metrics", "privacy"}
    assert found["metrics"]["central"]["last"]["accuracy"] > 0.75
    run = tmp_path / found["run"]
    for name in (
        "federation.toml",
        "events.jsonl",
        "model.safetensors",
        "report.html",
        "report.json",
        "checkpoints",
    ):
        assert (run / name).exists()
    assert "rounds = 25" in (run / "federation.toml").read_text()


@pytest.mark.slow
def test_the_plain_command_ends_with_the_paths_and_the_next_step(
    make_file: Callable[..., Path], cloister: Any
) -> None:
    done = cloister("simulate", make_file())
    assert done.returncode == 0, done.stderr
    assert "report.html" in done.stdout
    assert "model.safetensors" in done.stdout
    assert "Next:" in done.stdout


def csv_federation(folder: Path, files: dict[str, str]) -> Path:
    """A federation over CSV files, one a site."""
    (folder / "data").mkdir()
    for name, text in files.items():
        (folder / "data" / f"{name}.csv").write_text(text)
    path = folder / "federation.toml"
    path.write_text(
        "[federation]\nname = 'csv'\nrounds = 1\n[task]\nuse = 'tabular'\ndata = 'data'\ntarget = 'sick'\nallow_single_class = false\n"
    )
    return path


GOOD = "age,dose,sick\n" + "".join(f"{40 + i},{i % 7}.5,{i % 2}\n" for i in range(30))
CSV = {
    "missing column": ({"north": GOOD, "south": GOOD.replace("dose", "sex")}, "dose"),
    "text in a number": ({"north": GOOD, "south": GOOD.replace("41,1.5", "41,JaneDoe")}, "row"),
    "empty site": ({"north": GOOD, "south": "age,dose,sick\n"}, "south"),
    "single-class site": ({"north": GOOD, "south": GOOD.replace(",1\n", ",0\n")}, "south"),
    "empty file": ({"north": GOOD, "south": ""}, "south"),
}


@pytest.mark.parametrize(("files", "says"), CSV.values(), ids=list(CSV))
def test_a_sites_bad_table_exits_4_and_names_file_and_place_but_no_value(
    cloister: Any, tmp_path: Path, files: Any, says: str
) -> None:
    done = cloister("simulate", csv_federation(tmp_path, files), "--json", "--workers", "0")
    assert done.returncode == 4, done.stdout + done.stderr
    error = json.loads(done.stdout)["error"]
    assert says in error["message"]
    assert "south" in error["message"]
    assert error["remedy"]
    assert "JaneDoe" not in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_folder_of_tables_trains(cloister: Any, tmp_path: Path) -> None:
    done = cloister(
        "simulate", csv_federation(tmp_path, {"north": GOOD, "south": GOOD}), "--json", "--workers", "0"
    )
    assert done.returncode == 0, done.stdout
