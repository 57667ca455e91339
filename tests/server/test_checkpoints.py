"""Checkpoints: whole or not at all, the newest two and the best, refused when they belong to something else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloister.core.errors import IntegrityError
from cloister.server.checkpoints import Best, Checkpoint, CheckpointStore


def checkpoint(number: int, best: int | None = None) -> Checkpoint:
    arrays = {"model": np.full(5, number, dtype=np.float32), "optimiser.momentum": np.arange(5.0)}
    found = None if best is None else Best(round_number=best, by="accuracy", value=0.5)
    return Checkpoint(
        round_number=number, digest="d", layout="l", events_offset=10 * number, arrays=arrays, best=found
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back_with_every_bit(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(3, best=2))
    found = store.newest(digest="d", layout="l")
    assert found is not None
    assert (found.round_number, found.events_offset, found.best) == (
        3,
        30,
        Best(round_number=2, by="accuracy", value=0.5),
    )
    assert found.arrays["model"].dtype == np.float32
    assert found.arrays["optimiser.momentum"].dtype == np.float64
    for name, array in checkpoint(3).arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)


def test_the_newest_two_and_the_best_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for number in range(8):
        store.save(checkpoint(number, best=min(number, 2)))
    assert names(tmp_path) == [
        "round-000002.safetensors",
        "round-000006.safetensors",
        "round-000007.safetensors",
    ]
    assert store.load(2).arrays["model"][0] == 2


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path).newest(digest="d", layout="l") is None


@pytest.mark.parametrize(
    ("digest", "layout", "what"), [("other", "l", "federation file"), ("d", "other", "model layout")]
)
def test_a_checkpoint_of_something_else_is_refused(
    tmp_path: Path, digest: str, layout: str, what: str
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    with pytest.raises(IntegrityError, match=f"another {what}") as refused:
        store.newest(digest=digest, layout=layout)
    assert refused.value.exit_code == 7


@pytest.mark.parametrize("damage", ["truncate", "empty", "garbage"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_can_be_used(tmp_path: Path, damage: str) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    store.save(checkpoint(2))
    path = tmp_path / "round-000002.safetensors"
    raw = path.read_bytes()
    path.write_bytes({"truncate": raw[: len(raw) // 2], "empty": b"", "garbage": b"x" * 200}[damage])
    with pytest.raises(IntegrityError, match=r"round-000002.*cannot be read"):
        store.newest(digest="d", layout="l")
    path.unlink()
    found = store.newest(digest="d", layout="l")
    assert found is not None
    assert found.round_number == 1


def test_a_temporary_file_of_a_crash_is_not_taken_for_a_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(checkpoint(1))
    (tmp_path / ".round-000009.safetensors.abc").write_bytes(b"half")
    found = store.newest(digest="d", layout="l")
    assert found is not None
    assert found.round_number == 1


@pytest.mark.parametrize(
    "model",
    [None, np.zeros(4, np.float32), np.zeros((5, 1), np.float32), np.zeros(5), np.zeros((), np.float32)],
    ids=["missing", "short", "shape", "dtype", "number"],
)
def test_a_checkpoint_without_the_whole_model_is_refused(tmp_path: Path, model: object) -> None:
    store = CheckpointStore(tmp_path)
    arrays = {} if model is None else {"model": np.asarray(model)}
    store.save(replace(checkpoint(1), arrays={"other": np.zeros(1), **arrays}))
    with pytest.raises(IntegrityError, match="does not hold the model") as refused:
        store.newest(digest="d", layout="l", size=5)
    assert refused.value.remedy


@pytest.mark.parametrize("field", [{"events_offset": "x"}, {"round_number": 7}, {"fingerprint": 3}])
def test_a_checkpoint_whose_state_is_odd_is_refused(tmp_path: Path, field: dict[str, Any]) -> None:
    CheckpointStore(tmp_path).save(replace(checkpoint(1), **field))
    (found,) = tmp_path.iterdir()
    found.rename(tmp_path / "round-000001.safetensors")
    with pytest.raises(IntegrityError, match="cannot be read"):
        CheckpointStore(tmp_path).load(1)


@pytest.mark.parametrize(
    ("now", "what"),
    [
        ("data=2 code=1 versions=1", "the data changed"),
        ("data=1 code=2 versions=1", "the task's code changed"),
        ("data=1 code=1 versions=2", "the versions of Cloister and torch changed"),
        ("data=2 code=2 versions=1", "the task's code and the data changed"),
    ],
)
def test_a_checkpoint_of_other_data_code_or_versions_is_refused_by_name(
    tmp_path: Path, now: str, what: str
) -> None:
    store = CheckpointStore(tmp_path)
    store.save(replace(checkpoint(3), fingerprint="data=1 code=1 versions=1"))
    with pytest.raises(IntegrityError, match=f"^{what} since round 3") as refused:
        store.newest(digest="d", layout="l", fingerprint=now)
    assert refused.value.exit_code == 7
    for same in ("data=1 code=1 versions=1", ""):
        assert store.newest(digest="d", layout="l", size=5, fingerprint=same) is not None


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_checkpoints_folder_that_is_none_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "c").write_text("x")
    with pytest.raises(IntegrityError, match="folder"):
        CheckpointStore(tmp_path / "c").newest(digest="d", layout="l")
