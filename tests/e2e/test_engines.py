"""One federation file, two engines: the in-process grid and Flower's own on Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from cloister.core.spec import load_federation
from cloister.simulation import workers
from cloister.simulation.engines import LocalEngine
from cloister.simulation.simulate import simulate

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.mark.slow
def test_rays_result_is_the_local_one_to_floating_point(
    make_file: Callable[..., Path], installed: Any, answer: Any, tmp_path: Path
) -> None:
    path = make_file(federation={"rounds": 3}, training={"scaffold": True})
    made = {}
    for engine in ("local", "ray"):
        done = installed(
            "simulate",
            path,
            "--json",
            "--engine",
            engine,
            "--workers",
            "2",
            "--out",
            tmp_path / engine,
        )
        assert done.returncode == 0, done.stderr
        run = Path(answer(done)["run"])
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        cohorts = [event["site"] for event in events if event["kind"] == "site" and event["phase"] == "train"]
        made[engine] = (load_file(run / "model.safetensors"), cohorts)
    assert made["local"][1] == made["ray"][1], "the same sites take part in the same rounds"
    for name, array in made["local"][0].items():
        np.testing.assert_allclose(made["ray"][0][name], array, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_all_sites_lost_over_ray_exits_6(make_file: Callable[..., Path], installed: Any, answer: Any) -> None:
    path = make_file(
        training={"optimizer": {"name": "sgd", "lr": 1e6, "weight_decay": 1.0}, "local_epochs": 30}
    )
    done = installed("simulate", path, "--json", "--engine", "ray", "--workers", "2")
    assert done.returncode == 6, done.stderr
    assert answer(done)["error"]["code"] == "peers-missing"


def test_nothing_is_forked_where_a_gpu_is_in_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU every site of a forked worker failed, also on the CPU: autograd and CUDA's own state do not survive a fork there."""
    monkeypatch.setattr("threading.active_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert workers._fork_is_safe()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert not workers._fork_is_safe()


@pytest.mark.slow
def test_spawned_workers_give_the_same_result_to_the_bit(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Where forking is not safe (threads, CUDA, macOS) workers are spawned and build task and partition anew."""
    loaded = load_federation(make_file(federation={"rounds": 2}))
    results = []
    for method in ("fork", "spawn"):
        made = simulate(loaded, out=tmp_path / method, engine=LocalEngine(2, method=method))
        results.append((made.run / "model.safetensors").read_bytes())
    assert results[0] == results[1]
