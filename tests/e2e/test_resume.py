"""A run that is killed or interrupted goes on to the result of an unbroken one, to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.core.spec import load_federation
from cloister.server.checkpoints import CheckpointStore
from cloister.simulation.engines import LocalEngine
from cloister.simulation.simulate import resume, simulate

pytestmark = pytest.mark.usefixtures("undrawn")

#: Everything that a run must carry over: controls at the sites and the server, an adaptive server optimiser, dropout, a schedule.
STATEFUL: dict[str, dict[str, Any]] = {
    "federation": {"rounds": 6},
    "training": {"scaffold": True, "local_epochs": 2, "schedule": {"name": "cosine"}},
    "aggregation": {"optimizer": {"name": "fedyogi", "lr": 0.05}},
}

#: Record-level differential privacy: noise, Poisson batches and what has been spent must carry over too.
PRIVATE: dict[str, dict[str, Any]] = {
    "federation": {"rounds": 6},
    "training": {"local_steps": 3, "optimizer": {"name": "sgd", "lr": 0.2, "momentum": 0.5}},
    "privacy": {"unit": "record", "noise_multiplier": 1.1, "delta": 1e-4, "clip": 0.5, "sampling_rate": 0.2},
}


#: Site level with a clip that adapts: the clip must carry over too.
ADAPTIVE: dict[str, dict[str, Any]] = {
    "federation": {"rounds": 6},
    "privacy": {
        "unit": "site",
        "noise_multiplier": 0.5,
        "delta": 1e-3,
        "clip": 0.01,
        "adaptive_clip": {"rate": 1.0, "count_noise": 0.5},
    },
}

#: Distributed noise: integers, and rounds charged by their survivors.
DISTRIBUTED: dict[str, dict[str, Any]] = {
    "federation": {"rounds": 6},
    "privacy": {"unit": "site-distributed", "noise_multiplier": 1.0, "delta": 1e-3, "clip": 0.2},
}

#: One step of all sites a round, with a momentum, a schedule and a mean of the models at the server.
SHARED: dict[str, dict[str, Any]] = {
    "federation": {"rounds": 6},
    "training": {"local_steps": 1, "schedule": {"name": "cosine"}},
    "aggregation": {"average_rounds": 4, "optimizer": {"name": "fedavgm"}},
    "privacy": {
        "unit": "record-distributed",
        "noise_multiplier": 1.0,
        "delta": 1e-4,
        "clip": 0.2,
        "sampling_rate": 0.2,
    },
}


def fingerprint(run: Path) -> tuple[bytes, list[str]]:
    """The released model's bytes and every measurement and round, without times and what hangs on them.

    Bytes are left out too: the certificates of a simulation's identities are new with each process, and DER is a byte shorter now and then.
    """
    lines = []
    for line in (run / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["kind"] in ("round", "evaluation", "privacy"):
            lines.append(
                json.dumps(
                    {
                        key: value
                        for key, value in event.items()
                        if key not in ("time", "seconds", "transcript", "bytes_up", "bytes_down")
                    }
                )
            )
    return (run / "model.safetensors").read_bytes(), lines


def finish(path: Path, out: Path, workers: int = 0) -> tuple[bytes, list[str]]:
    return fingerprint(simulate(load_federation(path), out=out, engine=LocalEngine(workers)).run)


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_result_to_the_bit(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_file(**STATEFUL)
    results = [finish(path, tmp_path / f"runs{workers}", workers) for workers in (0, 1, 3)]
    for other in results[1:]:
        assert other == results[0]
    another = finish(make_file(**STATEFUL | {"federation": {"rounds": 6, "seed": 12}}), tmp_path / "another")
    assert another[0] != results[0][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tables", "stop_after"),
    [(STATEFUL, 0), (STATEFUL, 1), (STATEFUL, 5), (PRIVATE, 3), (ADAPTIVE, 3), (DISTRIBUTED, 3), (SHARED, 3)],
)
def test_a_run_stopped_after_any_round_resumes_to_the_same_result(
    make_file: Callable[..., Path], tmp_path: Path, stop_after: int, tables: Any
) -> None:
    path = make_file(**tables)
    unbroken = finish(path, tmp_path / "unbroken")

    class Stop:
        def handle(self, event: Any) -> None:
            if event["kind"] == "round" and event["round"] == stop_after + 1:
                raise KeyboardInterrupt

        def close(self) -> None:
            pass

    with pytest.raises(KeyboardInterrupt):
        simulate(load_federation(path), out=tmp_path / "broken", engine=LocalEngine(0), sinks=(Stop(),))
    (run,) = (tmp_path / "broken").iterdir()
    assert fingerprint(resume(run, engine=LocalEngine(2)).run) == unbroken


def test_a_finished_run_resumes_to_itself(make_file: Callable[..., Path], tmp_path: Path) -> None:
    made = simulate(load_federation(make_file()), out=tmp_path / "runs", engine=LocalEngine(0))
    before = fingerprint(made.run)
    assert fingerprint(resume(made.run, engine=LocalEngine(0)).run) == before


def start(path: Path, out: Path) -> subprocess.Popen[str]:
    command = [
        str(Path(sys.executable).with_name("cloister")),
        "simulate",
        str(path),
        "--out",
        str(out),
        "--workers",
        "2",
    ]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)


def wait_for(out: Path, round_number: int, process: subprocess.Popen[Any]) -> Path:
    """Return the run folder once its checkpoint of ``round_number`` is there."""
    deadline = time.monotonic() + 180  # a loaded machine takes long to start
    ended = False
    while time.monotonic() < deadline and not ended:
        ended = process.poll() is not None
        for run in out.glob("rings-*"):
            if _newest(run) >= round_number:
                return run
        time.sleep(0.002)
    raise AssertionError(f"no checkpoint of round {round_number}; exit {process.poll()}")


def _newest(run: Path) -> int:
    """Return the round of a run's last checkpoint, -1 without any."""
    found = [path.stem.removeprefix("round-") for path in run.glob("checkpoints/round-*.safetensors")]
    return max(map(int, found), default=-1)


@pytest.mark.slow
def test_sigkill_leaves_a_folder_that_resumes_and_no_worker_behind(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_file(**STATEFUL | {"federation": {"rounds": 40}})
    unbroken = finish(path, tmp_path / "unbroken")
    process = start(path, tmp_path / "runs")
    run = wait_for(tmp_path / "runs", 2, process)
    children = [
        int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ]
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while any(_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in children)
    assert not (run / "model.safetensors").exists()
    assert fingerprint(resume(run, engine=LocalEngine(0)).run) == unbroken


@pytest.mark.slow
def test_sigkill_at_any_moment_leaves_a_folder_that_resumes(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Killed at three moments spread over the run, then each again once it has resumed."""
    path = make_file(**STATEFUL | {"federation": {"rounds": 30}})
    unbroken = finish(path, tmp_path / "unbroken")
    for attempt in range(3):
        out = tmp_path / f"runs{attempt}"
        process = start(path, out)
        run = wait_for(out, 8 * attempt, process)
        time.sleep(0.005 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        again = subprocess.Popen(
            [str(Path(sys.executable).with_name("cloister")), "simulate", "--resume", str(run)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(out, _newest(run) + 1, again)
        time.sleep(0.015 * attempt)
        again.send_signal(signal.SIGKILL)
        again.wait()
        assert fingerprint(resume(run, engine=LocalEngine(0)).run) == unbroken


@pytest.mark.slow
def test_interrupted_by_the_user_exits_130_and_says_how_to_go_on(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_file(federation={"rounds": 2000})
    command = [
        str(Path(sys.executable).with_name("cloister")),
        "simulate",
        str(path),
        "--out",
        str(tmp_path / "runs"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run = wait_for(tmp_path / "runs", 2, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert f"--resume {run}" in errors.replace("\n", "")
    assert json.loads((run / "events.jsonl").read_text().splitlines()[-1])["status"] == "interrupted"


@pytest.mark.slow
def test_two_processes_cannot_write_to_one_run(
    make_file: Callable[..., Path], tmp_path: Path, cloister: Any
) -> None:
    process = start(make_file(federation={"rounds": 2000}), tmp_path / "runs")
    run = wait_for(tmp_path / "runs", 1, process)
    second = cloister("simulate", "--resume", run, "--json")
    process.kill()
    process.wait()
    assert second.returncode == 7
    assert json.loads(second.stdout)["error"]["code"] == "run-locked"


@pytest.mark.slow
def test_a_checkpoint_of_another_file_is_refused(
    make_file: Callable[..., Path], tmp_path: Path, cloister: Any
) -> None:
    made = simulate(load_federation(make_file()), out=tmp_path / "runs", engine=LocalEngine(0))
    text = (made.run / "federation.toml").read_text()
    (made.run / "federation.toml").write_text(text.replace("lr = 0.1", "lr = 0.2"))
    refused = cloister("simulate", "--resume", made.run)
    assert refused.returncode == 7
    assert "belongs to another federation file" in refused.stderr


def test_the_last_checkpoint_is_the_released_model(make_file: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    loaded = load_federation(make_file())
    made = simulate(loaded, out=tmp_path / "runs", engine=LocalEngine(0))
    flat = CheckpointStore(made.run / "checkpoints").load(4).arrays["model"]
    tensors = load_file(made.run / "model.safetensors")
    assert {name: array.shape for name, array in tensors.items()} == {
        "0.weight": (16, 2),
        "0.bias": (16,),
        "3.weight": (2, 16),
        "3.bias": (2,),
    }
    assert sorted(flat.tolist()) == sorted(
        x for array in tensors.values() for x in array.reshape(-1).tolist()
    )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
