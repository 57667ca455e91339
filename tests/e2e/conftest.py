"""A user's federation in a folder of its own: one task file, one federation file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from cloister.core.command import run

TASK = '''
import torch
from torch import nn
from cloister.core import Split, Task, TensorData

class Rings(Task):
    """Points inside or outside a ring: not linearly separable."""
    classes = ("inside", "outside")

    def __init__(self, records: int = 240, fault: str = "") -> None:
        self.records, self.fault = records, fault

    def model(self) -> nn.Module:
        if self.fault == "model":
            raise RuntimeError("Jane Doe 1950-01-01")
        if self.fault == "batch-norm":
            return nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Linear(16, 2))
        width = 3 if self.fault == "shape" else 2
        return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, width))

    def data(self) -> Split:
        x = torch.randn(self.records, 2, generator=torch.Generator().manual_seed(1)) * 1.2
        y = (x.norm(dim=1) > 1.3).long()
        if self.fault == "nan":
            x[:] = float("nan")
        if self.fault == "data":
            raise ValueError("Jane Doe 1950-01-01")
        cut = self.records * 3 // 4
        return Split(TensorData(x[:cut], y[:cut]), TensorData(x[cut:], y[cut:]))

    def loss(self, outputs, targets):
        if self.fault == "loss":
            raise RuntimeError("Jane Doe 1950-01-01")
        return super().loss(outputs, targets)
'''


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[..., Path]:
    """Write ``rings.py`` and a federation file over it; keyword arguments are tables laid over the base."""

    def make(**tables: dict[str, Any]) -> Path:
        (tmp_path / "rings.py").write_text(TASK)
        document: dict[str, Any] = {
            "federation": {"name": "rings", "rounds": 4, "seed": 11},
            "task": {"use": "rings.py:Rings"},
            "cohort": {"sites": 5, "partition": {"by": "dirichlet", "alpha": 1.0}, "per_round": 3},
            "training": {"batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.1}},
        }
        for name, table in tables.items():
            document[name] = {**document.get(name, {}), **table}
        path = tmp_path / "federation.toml"
        path.write_text(tomli_w.dumps(document))
        return path

    return make


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def installed(tmp_path: Path) -> Command:
    """Run the installed command as a user would, from a folder outside the repository."""

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).with_name("cloister")), *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")},
        )

    return call


@pytest.fixture
def cloister(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process, from a folder outside the repository: a start of its own takes seconds."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        given = [*map(str, arguments)]
        capfd.readouterr()
        status = run(given)
        said = capfd.readouterr()
        return subprocess.CompletedProcess(given, status, said.out, said.err)

    return call


@pytest.fixture
def answer() -> Callable[[subprocess.CompletedProcess[str]], dict[str, Any]]:
    """Read the one JSON object on standard output."""

    def read(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return read
