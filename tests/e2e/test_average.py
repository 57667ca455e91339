"""``aggregation.average_rounds``: what is measured and released is a running mean; sites go on from the models themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from cloister.core.metrics import measure
from cloister.core.spec import load_federation
from cloister.simulation.engines import LocalEngine
from cloister.simulation.simulate import simulate
from cloister.simulation.sites import SimulatedSites

pytestmark = pytest.mark.usefixtures("undrawn")


def run(path: Path, out: Path, *overrides: str) -> Any:
    return simulate(load_federation(path, list(overrides)), out=out, engine=LocalEngine(0))


def tensors(made: Any) -> dict[str, npt.NDArray[np.float64]]:
    return {name: array.astype(np.float64) for name, array in load_file(made.model).items()}


@pytest.mark.slow
def test_the_released_and_measured_model_is_the_mean_and_sites_go_on_from_the_models(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Oracle: the models of runs that end after 1, 2, 3 and 4 rounds, averaged by hand over two rounds or so."""
    path = make_file()
    ends = [tensors(run(path, tmp_path / str(count), f"federation.rounds={count}")) for count in range(1, 5)]
    made = run(path, tmp_path / "mean", "aggregation.average_rounds=2")
    released = tensors(made)
    for name, found in released.items():
        by_hand = ends[0][name]
        for end in ends[1:]:
            by_hand = (by_hand + end[name]) / 2
        np.testing.assert_allclose(found, by_hand, atol=1e-6)
        assert abs(found - ends[-1][name]).max() > 1e-3, "the fixture must tell the mean from the last"

    loaded = load_federation(path)
    sites = SimulatedSites(json.dumps(loaded.effective()), loaded.base)
    model = sites.bench.trainer.model
    model.load_state_dict(load_torch(made.model))
    loss = measure(sites.task, model, sites.roster.central_test).loss
    assert made.figures["metrics"]["central"]["last"]["loss"] == pytest.approx(loss, rel=1e-5)
