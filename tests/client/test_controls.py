"""SCAFFOLD's control at a real site: of one run and one round, over restarts, and never silently lost."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest

from cloister.client.controls import FileControls
from cloister.client.run_files import forget_runs
from cloister.core.errors import IntegrityError

SIZE = 5


def vector(value: float) -> np.ndarray:
    return np.full(SIZE, value, dtype=np.float32)


@pytest.fixture
def controls(tmp_path: Path) -> FileControls:
    return FileControls(tmp_path / "state" / "sessions", "run")


def test_a_round_that_is_asked_for_again_begins_as_before_and_the_next_with_what_came_of_it(
    controls: FileControls, tmp_path: Path
) -> None:
    assert not controls.read(1, SIZE).any()
    controls.keep(1, before=vector(0), after=vector(1))
    again = FileControls(tmp_path / "state" / "sessions", "run")  # another process
    assert np.array_equal(again.read(1, SIZE), vector(0))
    assert np.array_equal(again.read(2, SIZE), vector(1))
    assert np.array_equal(again.read(4, SIZE), vector(1)), "a site need not take part in each round"
    again.keep(4, before=vector(1), after=vector(2))
    assert np.array_equal(again.read(4, SIZE), vector(1))
    assert np.array_equal(again.read(5, SIZE), vector(2))
    (path,) = (tmp_path / "state").glob("*.safetensors")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_lost_one_is_begun_anew_and_said(
    controls: FileControls, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    controls.read(1, SIZE)
    assert not caplog.records, "in the first round nothing was lost"
    assert not controls.read(3, SIZE).any()
    assert "zeros" in caplog.records[-1].getMessage()
    controls.keep(3, before=vector(1), after=vector(2))
    caplog.clear()
    assert not controls.read(2, SIZE).any(), "the server went back further than the site remembers"
    assert "round 3" in caplog.records[-1].getMessage()
    assert not FileControls(tmp_path / "state" / "sessions", "another").read(1, SIZE).any()


@pytest.mark.parametrize("damage", ["cut", "another run", "another model"])
def test_a_damaged_one_is_refused(controls: FileControls, tmp_path: Path, damage: str) -> None:
    controls.keep(1, before=vector(0), after=vector(1))
    (path,) = (tmp_path / "state").glob("*.safetensors")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "another run":
        other = FileControls(tmp_path / "other", "another")
        other.keep(1, before=vector(0), after=vector(1))
        path.write_bytes(next(tmp_path.glob("*.safetensors")).read_bytes())
    with pytest.raises(IntegrityError) as refused:
        controls.read(2, SIZE + (damage == "another model"))
    assert refused.value.code == "control-store"


def test_of_a_run_that_is_over_none_is_begun_anew(controls: FileControls, tmp_path: Path) -> None:
    controls.keep(1, before=vector(0), after=vector(1))
    assert forget_runs(tmp_path / "state" / "sessions", lambda *_: True) == 1
    assert not list((tmp_path / "state").glob("*.safetensors"))
    for use in (
        lambda: controls.read(2, SIZE),
        lambda: controls.keep(2, before=vector(0), after=vector(1)),
    ):
        with pytest.raises(IntegrityError) as refused:
            use()
        assert refused.value.code == "run-over"
