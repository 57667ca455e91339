"""A sweep that is killed goes on to the figures of an unbroken one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.simulation.engines import LocalEngine
from cloister.simulation.sweep.running import resume, sweep
from swept import PRIVATE, grid_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("undrawn")]

OVER = "privacy.noise_multiplier=1.0,2.0,3.0"
Make = Callable[..., Path]


def figures_of(folder: Path) -> dict[str, Any]:
    """What a sweep came to, without times and the names that hold them."""
    kept: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    del kept["sweep"]
    for point in kept["points"]:
        for key in ("seconds", "run", "report"):
            point.pop(key, None)
    return kept


def test_a_sweep_killed_in_the_middle_of_a_run_goes_on_to_the_same_figures(
    make_file: Make, tmp_path: Path
) -> None:
    path = make_file(**{**PRIVATE, "federation": {"rounds": 20}})
    over = "privacy.noise_multiplier=1.0,3.0"
    unbroken = sweep(grid_of(path, over), out=tmp_path / "unbroken", engine=LocalEngine(0))
    folder = _killed(path, tmp_path / "runs", over, point="002", checkpoint=5)
    before = json.loads((folder / "sweep.json").read_text())
    assert [point["done"] for point in before["points"]] == [True, False]
    first = folder / before["points"][0]["run"] / "model.safetensors"
    stamp = first.stat().st_mtime_ns
    half = next((folder / "points" / "002").glob("*/"))
    leftover = half.with_name("rings-broken")
    leftover.mkdir()
    resume(folder, engine=LocalEngine(0))
    assert figures_of(folder) == figures_of(unbroken.sweep)
    assert first.stat().st_mtime_ns == stamp, "a finished run is not run again"
    assert (half / "model.safetensors").is_file(), "a run that was begun is gone on with"
    assert json.loads((half / "events.jsonl").read_text().splitlines()[-1])["status"] == "done"
    assert not leftover.exists()


def test_a_sweep_killed_at_any_moment_goes_on_to_the_same_figures(make_file: Make, tmp_path: Path) -> None:
    """Killed in each of its runs, at their beginning, middle and end, and once more after it went on."""
    path = make_file(**{**PRIVATE, "federation": {"rounds": 30}})
    unbroken = sweep(grid_of(path, OVER), out=tmp_path / "unbroken", engine=LocalEngine(0))
    for attempt in range(3):
        out, point = tmp_path / f"runs{attempt}", f"00{1 + attempt}"
        folder = _killed(path, out, OVER, point=point, checkpoint=5 * attempt, wait=0.02 * attempt)
        before = _checkpoints(folder)
        again = subprocess.Popen(
            [*_command("--resume", str(folder))], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 180
        while _checkpoints(folder) <= before and again.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        again.send_signal(signal.SIGKILL)
        again.wait()
        assert _checkpoints(folder) > before, "it was going on"
        resume(folder, engine=LocalEngine(0))
        assert figures_of(folder) == figures_of(unbroken.sweep)


def _command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("cloister")), "sweep", *arguments, "--workers", "0"]


def _checkpoints(folder: Path) -> tuple[str, int]:
    """Return the last run of a sweep, and the round of its last checkpoint: both grow."""
    found = [
        path.relative_to(folder).parts for path in folder.glob("points/*/*/checkpoints/round-*.safetensors")
    ]
    return max((parts[1], _round_of(Path(parts[-1]))) for parts in found)


def _round_of(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("round-"))


def _killed(path: Path, out: Path, over: str, *, point: str, checkpoint: int, wait: float = 0.0) -> Path:
    """Start a sweep, kill it once ``point`` has reached ``checkpoint``, and return its folder."""
    process = subprocess.Popen(
        _command(str(path), "--over", over, "--out", str(out)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 180
    # The newest few are kept: one that was looked for a moment late may be gone.
    name = f"rings-sweep-*/points/{point}/*/checkpoints/round-*.safetensors"
    while not (found := [path for path in out.glob(name) if _round_of(path) >= checkpoint]):
        assert process.poll() is None, f"the sweep ended: exit {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return found[0].parents[4]
