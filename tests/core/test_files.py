"""Files are written whole or not at all; what a killed write left can be told apart and removed."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from cloister.core.errors import CloisterError, StorageError
from cloister.core.files import sweep, write_whole


def test_a_full_disk_is_a_refusal_of_its_own_and_the_old_file_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.txt"
    write_whole(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CloisterError, match=r"kept\.txt.*No space left on device") as refused:
        write_whole(path, "new")
    assert (refused.value.exit_code, refused.value.code) == (1, "disk")
    assert "free space" in refused.value.remedy
    assert path.read_text() == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["kept.txt"]


def test_a_folder_that_is_not_there_is_named_and_still_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file") as refused:
        write_whole(tmp_path / "no" / "file", b"")
    assert isinstance(refused.value, StorageError)
    assert refused.value.errno == errno.ENOENT
    assert refused.value.strerror == "No such file or directory"
    assert "free space" not in refused.value.remedy


def test_only_temporary_files_of_the_named_files_are_swept(tmp_path: Path) -> None:
    stay = [
        "a.txt",
        ".a.txt",
        ".a.txt.short",
        ".a.txt.TOOLOUD1",
        ".b.txt.abcd1234",
        ".a.txt.abcd12345",
        "x.a.txt.abcd1234",
    ]
    for name in [*stay, ".a.txt.abcd1234", ".a.txt.ab_d1234"]:
        (tmp_path / name).write_text("x")
    (tmp_path / ".a.txt.folder12").mkdir()
    sweep(tmp_path, re.compile(r"a\.txt"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*stay, ".a.txt.folder12"])
    sweep(tmp_path / "missing", re.compile(".*"))


def test_what_is_not_a_file_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(StorageError, match="not a file"):
        write_whole(pipe, b"x")
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
