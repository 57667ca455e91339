"""The run folder: a folder that does not hold is refused with what to do, and a killed write leaves nothing for ever."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.core.errors import CloisterError, IntegrityError, UsageError
from cloister.core.spec import Loaded, load_federation
from cloister.server.run_folder import RunFolder

FILE = """
[federation]
name = "small"
rounds = 2
[task]
use = "t.py:T"
[cohort]
sites = 2
partition = { by = "iid" }
"""


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    (tmp_path / "federation.toml").write_text(FILE)
    return load_federation(tmp_path / "federation.toml")


@pytest.fixture
def run(tmp_path: Path, loaded: Loaded) -> Path:
    folder = RunFolder.create(tmp_path / "runs", loaded)
    folder.close()
    return folder.path


def test_what_was_made_is_opened_again(run: Path, loaded: Loaded) -> None:
    folder, again = RunFolder.reopen(run)
    folder.close()
    assert (again.digest(), again.base) == (loaded.digest(), loaded.base)


def test_what_a_killed_write_left_is_removed_and_nothing_else(run: Path) -> None:
    left = [".round-000003.safetensors.k3_x9abc", ".round-000003.safetensors.00000000"]
    stay = ["round-000003.safetensors", ".round-3.safetensors.k3_x9abc", ".mine.k3_x9abc"]
    for name in left + stay:
        (run / "checkpoints" / name).write_bytes(b"x")
    for name in (".model.safetensors.abcdefgh", ".report.html.abcdefgh"):
        (run / name).write_bytes(b"x")
    (run / ".notes.abcdefgh").write_bytes(b"x")
    folder, _ = RunFolder.reopen(run)
    folder.close()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == sorted(stay)
    hidden = sorted(path.name for path in run.iterdir() if path.name.startswith("."))
    assert hidden == [".lock", ".notes.abcdefgh"]


def _without_checkpoints(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def _checkpoints_a_file(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("x")


def _base(raw: bytes) -> Callable[[Path], None]:
    def write(run: Path) -> None:
        (run / "base.txt").write_bytes(raw)

    return write


def _lock_a_folder(run: Path) -> None:
    (run / ".lock").unlink()
    (run / ".lock").mkdir()


@pytest.mark.parametrize(
    ("damage", "kind", "what"),
    [
        (_without_checkpoints, IntegrityError, "checkpoints"),
        (_checkpoints_a_file, IntegrityError, "checkpoints"),
        (_base(b"\xff\xfe"), IntegrityError, r"base\.txt"),
        (_base(b""), IntegrityError, r"base\.txt"),
        (_base(b"/a\0b"), IntegrityError, r"base\.txt"),
        (_lock_a_folder, UsageError, r"\.lock"),
    ],
)
def test_a_damaged_folder_is_refused_with_a_remedy_and_stays_unlocked(
    run: Path, damage: Callable[[Path], None], kind: type[CloisterError], what: str
) -> None:
    damage(run)
    for _ in range(2):
        with pytest.raises(kind, match=what) as refused:
            RunFolder.reopen(run)
        assert refused.value.remedy
