"""Tracking: TensorBoard files and MLflow runs hold the run's figures, a resume goes on, and a dead server stops nothing."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cloister.core.spec import Tracking
from cloister.server.events import EventBus, EventLog, Sink, read_events
from cloister.server.tracking import MlflowSink, TensorBoardSink, figures, tracking_sinks

pytest.importorskip("tensorboard")
mlflow = pytest.importorskip("mlflow")

RUN = {
    "name": "heart",
    "rounds": 3,
    "sites": 2,
    "site_names": ["a", "Zürich <b>"],
    "seed": 7,
    "engine": "in-process",
}


def run_rounds(
    folder: Path, sinks: list[Sink], rounds: range, *, recall: bool = False, end: bool = True, **run: object
) -> list[str]:
    """Emit made-up rounds and return the warnings that were logged."""
    path = folder / "events.jsonl"
    bus = EventBus(EventLog(path), sinks)
    if recall:
        bus.recall(read_events(path))
    else:
        bus.emit("run", 0, **{**RUN, **run})
    for number in rounds:
        for where in ("central", "site:a", "site:Zürich <b>", "baseline:local:a"):
            metrics = {"accuracy": number / 10, "auroc": float("nan")}
            bus.emit("evaluation", number, where=where, loss=1.0 / number, metrics=metrics, records=5)
        bus.emit(
            "round",
            number,
            cohort=2,
            answered=2,
            loss=0.5,
            bytes_down=10,
            bytes_up=20,
            seconds={"train": 0.25},
        )
    if end:
        bus.emit("end", rounds[-1], status="done")
    bus.close()
    return [event["text"] for event in read_events(path) if event["kind"] == "warning"]


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped,unused-ignore]  # no stubs
        EventAccumulator,
    )

    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {
        tag: {point.step: point.value for point in reader.Scalars(tag)} for tag in reader.Tags()["scalars"]
    }


def test_tensorboard_files_hold_every_figure_by_round(tmp_path: Path) -> None:
    assert run_rounds(tmp_path, tracking_sinks(Tracking(tensorboard=True), tmp_path), range(1, 4)) == []
    found = scalars(tmp_path / "tensorboard")
    assert found["central/accuracy"] == pytest.approx({1: 0.1, 2: 0.2, 3: 0.3})
    assert found["baseline/local/a/loss"] == pytest.approx({1: 1.0, 2: 0.5, 3: 1 / 3})
    assert found["round/bytes_up"] == {1: 20, 2: 20, 3: 20}
    assert found["time/train"][2] == 0.25
    assert "central/auroc" not in found
    assert [tag for tag in found if tag.startswith("site/Z_rich _b_-")]


def test_tensorboard_purges_the_steps_that_a_resume_takes_back(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    run_rounds(tmp_path, [TensorBoardSink(tmp_path / "tb")], range(1, 5), end=False)
    kept = b"".join(
        line
        for line in log.read_bytes().splitlines(keepends=True)
        if b'"round":3' not in line and b'"round":4' not in line
    )
    log.write_bytes(kept)  # as the coordinator truncates it: round 3 is done again
    time.sleep(1.1)  # TensorBoard orders its files by the second
    run_rounds(tmp_path, [TensorBoardSink(tmp_path / "tb")], range(3, 4), recall=True)
    assert scalars(tmp_path / "tb")["central/accuracy"] == pytest.approx({1: 0.1, 2: 0.2, 3: 0.3})


def test_mlflow_holds_parameters_figures_and_how_the_run_ended(tmp_path: Path) -> None:
    address = f"file:{tmp_path / 'mlruns'}"
    folder = tmp_path / "heart-1"
    folder.mkdir()
    assert run_rounds(folder, tracking_sinks(Tracking(mlflow=address), folder), range(1, 4)) == []
    client = mlflow.MlflowClient(tracking_uri=address)
    (run,) = client.search_runs([client.get_experiment_by_name("heart").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params["seed"]) == ("heart-1", "FINISHED", "7")
    assert run.data.metrics["round/bytes_down"] == 10
    history = client.get_metric_history(run.info.run_id, "central/accuracy")
    assert {point.step: point.value for point in history} == pytest.approx({1: 0.1, 2: 0.2, 3: 0.3})
    assert [name for name in run.data.metrics if name.startswith("site/Z_rich _b_-")]


def test_mlflow_goes_on_with_the_same_run_after_a_resume(tmp_path: Path) -> None:
    address = f"file:{tmp_path / 'mlruns'}"
    run_rounds(tmp_path, [MlflowSink(address, run_name="heart-1")], range(1, 3), end=False)
    client = mlflow.MlflowClient(tracking_uri=address)
    experiment = client.get_experiment_by_name("heart").experiment_id
    assert [run.info.status for run in client.search_runs([experiment])] == ["KILLED"]
    assert run_rounds(tmp_path, [MlflowSink(address, run_name="heart-1")], range(3, 5), recall=True) == []
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert {point.step for point in client.get_metric_history(run.info.run_id, "central/loss")} == {
        1,
        2,
        3,
        4,
    }


def test_an_address_that_mlflow_refuses_leaves_a_warning_and_the_run_goes_on(tmp_path: Path) -> None:
    warnings = run_rounds(tmp_path, [MlflowSink("bogus:nowhere", run_name="heart-1")], range(1, 4))
    assert len(warnings) == 1
    assert warnings[0].startswith("MlflowSink failed and was switched off: MLflow refused: ")
    assert len([event for event in read_events(tmp_path / "events.jsonl") if event["kind"] == "round"]) == 3


def test_a_server_that_does_not_answer_delays_neither_rounds_nor_the_end(tmp_path: Path) -> None:
    # Port 9 (discard) is closed: MLflow itself would retry for minutes.
    sink = MlflowSink("http://127.0.0.1:9", run_name="heart-1", wait_s=0.5)
    started = time.monotonic()
    warnings = run_rounds(tmp_path, [sink], range(1, 4))
    assert time.monotonic() - started < 5
    assert len(warnings) == 1
    assert "MLflow did not take everything within 0.5 s" in warnings[0] or "MLflow refused" in warnings[0]
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "cloister-mlflow")


def test_sites_own_figures_stay_out_where_there_are_many_sites(tmp_path: Path) -> None:
    run_rounds(tmp_path, [TensorBoardSink(tmp_path / "tb")], range(1, 2), sites=101)
    found = scalars(tmp_path / "tb")
    assert "central/accuracy" in found
    assert not [tag for tag in found if tag.startswith(("site/", "baseline/"))]


def test_nothing_asked_is_nothing_tracked(tmp_path: Path) -> None:
    assert tracking_sinks(Tracking(), tmp_path) == []


@pytest.mark.parametrize(
    ("package", "tracking", "remedy"),
    [
        ("tensorboard", "Tracking(tensorboard=True)", "cloister[tensorboard]"),
        ("mlflow", "Tracking(mlflow='file:mlruns')", "cloister[mlflow]"),
    ],
)
def test_a_tracker_that_is_not_installed_is_refused_with_the_extra_that_brings_it(
    tmp_path: Path, package: str, tracking: str, remedy: str
) -> None:
    program = f"""
import sys
from pathlib import Path
sys.modules["{package}"] = None  # as if it were not installed
from cloister.core.errors import SpecError
from cloister.core.spec import Tracking
from cloister.server.tracking import tracking_sinks
try:
    tracking_sinks({tracking}, Path("."))
except SpecError as error:
    print(error.exit_code, error.code, error.remedy)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.startswith("3 extra-missing ")
    assert remedy in done.stdout


def test_figures_of_an_event_have_one_name_each() -> None:
    privacy = {"kind": "privacy", "round": 2, "epsilon": 0.5, "site": "a"}
    assert dict(figures(privacy)) == {"privacy/a": 0.5}
    assert dict(figures({"kind": "warning", "round": 1, "text": "x"})) == {}
