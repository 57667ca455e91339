"""Shadows as whole simulations, one after another: for runs whose training cannot be stacked. Slow, and the run's own code.

A shadow's federation file is the run's with another task: `Shadow` hands over the run's sites as owners, each with the shadow's half of its records. Its sums are in
clear where they can be: masks and encryption change a number by less than a rounding, and take most of a small round's time.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from cloister.core.data import Split
from cloister.core.errors import SpecError
from cloister.core.resolve import load_task
from cloister.core.spec import Loaded, parse_federation
from cloister.core.task import Task
from cloister.server.robustness.subject import read_model_file
from cloister.simulation.engines import make_engine
from cloister.simulation.joined import join
from cloister.simulation.records import site_records
from cloister.simulation.simulate import simulate

__all__ = ["Shadow", "train_one"]


class Shadow(Task):
    """A run's task with a shadow's records.

    Args:
        folder: holds ``federation.json`` (the run's file), ``base.txt`` and ``members.safetensors`` (by the number of a site, (n,) whether each of
            its training and then its test records is in).
    """

    def __init__(self, *, folder: Path) -> None:
        self._folder = folder
        document = json.loads((folder / "federation.json").read_text(encoding="utf-8"))
        base = Path((folder / "base.txt").read_text(encoding="utf-8"))
        self._loaded = parse_federation(document, base=base)
        self._task = load_task(self._loaded.spec.task, base)
        self.kind, self.classes = self._task.kind, self._task.classes
        self.bounds, self.features = self._task.bounds, self._task.features

    def model(self) -> nn.Module:
        """Return the run's model."""
        return self._task.model()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the run's loss."""
        return self._task.loss(outputs, targets)

    def data(self) -> Mapping[str, Split]:
        """Return each site's half; its test records are those that it may train on, since nothing is measured."""
        members = load_file(self._folder / "members.safetensors")
        found = {}
        for place, (name, split) in enumerate((site_records(self._loaded) or {}).items()):
            rows = np.flatnonzero(members[str(place)])
            if len(rows):
                both = join([split.train, split.test]) if len(split.test) else split.train
                found[name] = Split(both.subset(rows), both.subset(rows[:0]))
        return found


def train_one(
    loaded: Loaded, members: Mapping[int, npt.NDArray[np.bool_]], *, seed: int
) -> dict[str, Tensor]:
    """Return one shadow's tensors.

    Args:
        loaded: the run's federation.
        members: by a site's place, (n,) whether each of its training and then its test records is in.
        seed: of the shadow's run; the model that it begins with is then another than the run's.
    """
    with tempfile.TemporaryDirectory(prefix="cloister-shadow-") as name:
        folder = Path(name)
        (folder / "federation.json").write_text(json.dumps(loaded.effective()), encoding="utf-8")
        (folder / "base.txt").write_text(str(loaded.base), encoding="utf-8")
        save_file(
            {str(place): np.asarray(part, dtype=np.uint8) for place, part in members.items()},
            folder / "members.safetensors",
        )
        result = simulate(
            _shadowed(loaded, folder, seed), out=folder / "runs", engine=make_engine("local", None)
        )
        tensors, _ = read_model_file(result.model)
        found = {key: value.clone() for key, value in tensors.items()}
        shutil.rmtree(folder / "runs", ignore_errors=True)
    return {key: value if torch.is_floating_point(value) else value.clone() for key, value in found.items()}


def _shadowed(loaded: Loaded, folder: Path, seed: int) -> Loaded:
    document: dict[str, Any] = loaded.effective()
    document["federation"]["seed"] = seed
    document["task"] = {"use": "cloister.simulation.membership.one_by_one:Shadow", "folder": str(folder)}
    document["cohort"]["partition"] = {"by": "site"}
    document["cohort"].pop("sites", None)
    document["evaluation"] = {"every": 0, "central": False, "sites": False}
    document.pop("tracking", None)
    document["audit"] = {"transcript": "off"}
    document.pop("attack", None)
    clear = {**document, "aggregation": {**document["aggregation"], "protection": "plain"}}
    try:
        return parse_federation(clear, base=folder)
    except SpecError:  # what goes under masks only
        return parse_federation(document, base=folder)
