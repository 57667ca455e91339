"""Baselines: the same training on other records; one that fails never costs the federation its model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cloister.core.spec import load_federation
from cloister.simulation.engines import LocalEngine
from cloister.simulation.simulate import RunResult, simulate

pytestmark = pytest.mark.usefixtures("undrawn")

TASK = """
import torch
from torch import nn
from cloister.core import Split, Task, TensorData

class Line(Task):
    classes = ("a", "b")

    def __init__(self, wild: bool = False) -> None:
        self.wild = wild

    def model(self) -> nn.Module:
        return nn.Linear(2, 2)

    def data(self) -> dict[str, Split]:
        made = {}
        for number, name in enumerate(("north", "south", "west")):
            x = torch.randn(40, 2, generator=torch.Generator().manual_seed(number))
            y = (x[:, 0] > 0).long()
            if self.wild and name == "south":
                x = x * 1e30
            made[name] = Split(TensorData(x[:30], y[:30]), TensorData(x[30:], y[30:]))
        return made
"""
FILE = """
[federation]
name = "line"
rounds = 3
[task]
use = "line.py:Line"
[training]
optimizer = { name = "sgd", lr = 1.0 }
[evaluation]
sites = false
baselines = ["pooled", "local"]
"""


def run(folder: Path, *overrides: str) -> RunResult:
    (folder / "line.py").write_text(TASK)
    (folder / "federation.toml").write_text(FILE)
    loaded = load_federation(folder / "federation.toml", overrides)
    return simulate(loaded, out=folder / "runs", engine=LocalEngine(0))


def test_a_baseline_that_fails_is_a_warning_and_the_model_is_kept(tmp_path: Path) -> None:
    made = run(tmp_path, "task.wild=true")
    assert made.model.is_file()
    events = [json.loads(line) for line in (made.run / "events.jsonl").read_text().splitlines()]
    warnings = [event["text"] for event in events if event["kind"] == "warning"]
    assert any("baseline:local:south could not be trained" in text for text in warnings)
    assert events[-1]["status"] == "done"
    assert set(made.figures["metrics"]["baselines"]["local"]) == {"north", "west"}


def test_with_one_site_the_federation_is_the_sites_own_training(tmp_path: Path) -> None:
    """The same records, rounds and schedule; only the shuffles differ, and one full batch has none."""
    made = run(tmp_path, "cohort.sites=1", "cohort.partition={by='iid'}", "training.batch_size=1000")
    metrics = made.figures["metrics"]
    federated, alone = metrics["central"]["last"], next(iter(metrics["baselines"]["local"].values()))["last"]
    assert alone["loss"] == pytest.approx(federated["loss"], rel=1e-5)
    assert metrics["baselines"]["pooled"]["last"]["loss"] == pytest.approx(federated["loss"], rel=1e-5)
    assert np.isfinite(federated["loss"])
