"""Images: every form they come in reads the same, and a damaged file is refused."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cloister.core import Data, Split
from cloister.core.errors import CloisterError, DataError, TaskError
from cloister.core.resolve import load_task, owners
from cloister.core.spec.tables import TaskTable
from cloister.core.tasks.idx import read_idx
from cloister.core.tasks.images import INFERRED_CLASSES, Images

DRAW = np.random.default_rng(5)
PIXELS = DRAW.integers(0, 256, (12, 6, 5), dtype=np.uint8)
LABELS = (np.arange(12) % 3).astype(np.uint8)


def idx(array: np.ndarray[Any, Any]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder: Path, *, zipped: bool = True, mark: str = "-", test: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    for part, rows in (("train", slice(0, 9)), ("t10k", slice(9, 12)))[: 2 if test else 1]:
        for what, array in (("images{}idx3", PIXELS), ("labels{}idx1", LABELS)):
            name = f"{part}-{what.format(mark)}-ubyte"
            raw = idx(array[rows])
            (folder / f"{name}.gz").write_bytes(gzip.compress(raw)) if zipped else (
                folder / name
            ).write_bytes(raw)
    return folder


def write_pictures(folder: Path, *, parts: bool = False) -> Path:
    for row, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        place = folder / ("train" if row < 9 else "test") if parts else folder
        (place / f"kind {label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"kind {label}" / f"{row:02d}.png")
    return folder


def everything(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, targets = data.batch(torch.arange(len(data)))
    return inputs, targets


def refused(error: type[CloisterError], path: Path, **options: Any) -> CloisterError:
    with pytest.raises(error) as caught:
        Images(data=path, **options).data()
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize(("zipped", "mark"), [(True, "-"), (False, "-"), (False, ".")])
def test_idx_files_are_read_as_they_are_distributed(tmp_path: Path, zipped: bool, mark: str) -> None:
    task = Images(data=write_idx(tmp_path / "mnist", zipped=zipped, mark=mark), classes=3)
    split = task.data()
    inputs, targets = everything(split.train)
    assert inputs.dtype == torch.float32
    assert torch.equal(inputs, torch.from_numpy(PIXELS[:9, None]) * torch.tensor(1 / 255))
    assert targets.tolist() == LABELS[:9].tolist()
    assert everything(split.test)[1].tolist() == LABELS[9:].tolist()
    assert task.classes == ("0", "1", "2")
    assert task.notes == []


@pytest.mark.parametrize("layout", ["nhw", "nchw", "nhwc", "float", "parts"])
def test_npz_files_of_every_usual_layout_read_the_same(tmp_path: Path, layout: str) -> None:
    colour = np.stack([PIXELS] * 3, axis=1)
    forms: dict[str, dict[str, Any]] = {
        "nhw": {"x": PIXELS, "y": LABELS},
        "nchw": {"x": colour, "y": LABELS},
        "nhwc": {"x": colour.transpose(0, 2, 3, 1), "y": LABELS[:, None]},
        "float": {"x": PIXELS / 255, "y": LABELS.astype(np.int64)},
        "parts": {"x_train": PIXELS[:9], "y_train": LABELS[:9], "x_test": PIXELS[9:], "y_test": LABELS[9:]},
    }
    np.savez(tmp_path / "i.npz", **forms[layout])
    split = Images(data=tmp_path / "i.npz", classes=3, test_fraction=0, model="mlp").data()
    found = (
        torch.cat([everything(split.train)[0], everything(split.test)[0]])
        if layout == "parts"
        else everything(split.train)[0]
    )
    wanted = colour if layout in ("nchw", "nhwc") else PIXELS[:, None]
    torch.testing.assert_close(found, torch.from_numpy(np.ascontiguousarray(wanted)) / 255)


@pytest.mark.parametrize("parts", [False, True])
def test_a_folder_of_class_folders_reads_the_same(tmp_path: Path, parts: bool) -> None:
    task = Images(
        data=write_pictures(tmp_path / "p", parts=parts),
        size=(6, 5),
        channels=1,
        model="mlp",
        test_fraction=0.25,
    )
    split = task.data()
    assert task.classes == ("kind 0", "kind 1", "kind 2")
    assert (len(split.train), len(split.test)) == (9, 3)
    known = {tuple(image.flatten().tolist()): int(label) for image, label in zip(PIXELS, LABELS, strict=True)}
    for data in (split.train, split.test):
        inputs, targets = everything(data)
        bytes_of = (inputs * 255).round().to(torch.uint8)
        assert [known[tuple(image.flatten().tolist())] for image in bytes_of] == targets.tolist()


def test_pictures_are_brought_to_the_declared_size_and_channels(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    for name, mode, size in (
        ("a", "RGB", (40, 20)),
        ("b", "L", (7, 9)),
        ("c", "RGBA", (16, 16)),
        ("c", "P", (16, 16)),
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, 200 if mode in ("L", "P") else (200, 0, 0, 255)[: len(mode)]).save(
            folder / name / f"{mode}.png"
        )
    Image.new("RGB", (30, 30), (200, 0, 0)).save(folder / "a" / "x.JPEG")
    for channels in (1, 3):
        split = Images(data=folder, size=8, channels=channels, test_fraction=0).data()
        assert everything(split.train)[0].shape == (5, channels, 8, 8)
    assert everything(split.train)[0][0, :, 4, 4].tolist() == pytest.approx([200 / 255, 0, 0], abs=0.02)


def test_pixels_are_normalised_by_public_constants_only(tmp_path: Path) -> None:
    np.savez(tmp_path / "i.npz", x=np.stack([PIXELS] * 3, axis=1), y=LABELS)
    split = Images(
        data=tmp_path / "i.npz", classes=3, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0), test_fraction=0
    ).data()
    inputs = everything(split.train)[0]
    plain = torch.from_numpy(PIXELS) / 255
    for channel, (mean, std) in enumerate(((0.1, 0.5), (0.2, 1.0), (0.3, 2.0))):
        torch.testing.assert_close(inputs[:, channel], (plain - mean) / std)


def test_bytes_are_kept_once_and_subsets_copy_none(tmp_path: Path) -> None:
    split = Images(data=write_idx(tmp_path / "m"), classes=3).data()
    part = split.train.subset(np.array([8, 0, 3])).subset(np.array([2, 0]))
    assert everything(part)[1].tolist() == LABELS[[3, 8]].tolist()
    assert torch.equal(everything(part)[0], everything(split.train)[0][[3, 8]])
    assert part._pixels.data_ptr() == split.train._pixels.data_ptr()  # type: ignore[attr-defined]


def test_a_party_without_data_builds_the_same_model(tmp_path: Path) -> None:
    server = Images(data=tmp_path / "nowhere", classes=3, size=(6, 5), channels=1)
    site = Images(data=write_idx(tmp_path / "m"), classes=3)
    shapes = [[tuple(p.shape) for p in task.model().parameters()] for task in (server, site)]
    assert shapes[0] == shapes[1]
    assert server.describe()["title"]


def test_classes_that_are_not_declared_are_taken_from_the_data_and_that_is_said(tmp_path: Path) -> None:
    task = Images(data=write_idx(tmp_path / "m"))
    assert task.classes == ("0", "1", "2")
    assert task.notes == [INFERRED_CLASSES]


def test_without_test_images_the_split_is_by_class_and_by_the_tasks_own_seed(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "m", test=False)
    first, again, other = (
        Images(data=folder, classes=3, test_fraction=0.34, split_seed=seed).data() for seed in (1, 1, 2)
    )
    assert sorted(everything(first.test)[1].tolist()) == [0, 1, 2]
    assert torch.equal(everything(first.test)[0], everything(again.test)[0])
    assert not torch.equal(everything(first.test)[0], everything(other.test)[0])


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "magic": (lambda raw: b"\x01" + raw[1:], "does not start like an IDX file"),
    "type": (lambda raw: raw[:2] + b"\x0d" + raw[3:], "type 0x0d"),
    "dimensions": (lambda raw: raw[:3] + b"\x01" + raw[4:], "1 dimensions, not 3"),
    "cut": (lambda raw: raw[:-1], "speaks of 270 bytes, but it holds 269"),
    "long": (lambda raw: raw + b"x", "it holds more"),
    "header": (lambda raw: raw[:9], "header is cut short"),
    "huge": (lambda raw: raw[:4] + b"\xff" * 12 + raw[16:], "more than"),
    "empty": (lambda _: b"", "does not start like an IDX file"),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_idx_file_is_refused_with_what_is_wrong(tmp_path: Path, damage: str, zipped: bool) -> None:
    folder = write_idx(tmp_path / "m", zipped=zipped)
    path = folder / ("train-images-idx3-ubyte" + (".gz" if zipped else ""))
    change, said = DAMAGES[damage]
    raw = change(idx(PIXELS[:9]))
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    error = refused(DataError, folder, classes=3)
    assert error.code == "data-unreadable"
    assert said in error.message
    assert "train-images" in error.message


@pytest.mark.parametrize(
    "change", [lambda raw: raw[:-9], lambda raw: b"PK" + raw[2:], lambda raw: raw[:40] + bytes(9) + raw[49:]]
)
def test_a_damaged_gzip_file_is_refused(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    folder = write_idx(tmp_path / "m")
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(change(path.read_bytes()))
    assert refused(DataError, folder, classes=3).code == "data-unreadable"


@settings(max_examples=60)
@given(at=st.integers(0, 40), value=st.integers(0, 255))
def test_any_changed_byte_of_an_idx_file_is_read_or_refused_and_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int
) -> None:
    path = tmp_path_factory.mktemp("idx") / "i"
    raw = bytearray(idx(PIXELS[:2, :3, :3]))
    raw[min(at, len(raw) - 1)] = value
    path.write_bytes(raw)
    try:
        assert read_idx(path, dimensions=3).size == len(raw) - 16
    except DataError as error:
        refusal = error.code
    else:
        refusal = "data-unreadable"
    assert refusal == "data-unreadable"


def test_images_and_labels_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    folder = write_idx(tmp_path / "m", zipped=False)
    labels = folder / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(LABELS[:8]))
    assert "9 images but" in refused(DataError, folder, classes=3).message
    labels.unlink()
    assert refused(DataError, folder, classes=3).code == "data-missing-file"


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": PIXELS}, "no array 'x_train'"),
        ({"x": PIXELS, "y": LABELS[:5]}, "for 12 images"),
        ({"x": PIXELS, "y": LABELS.astype(float)}, "not class numbers"),
        ({"x": PIXELS[:, 0], "y": LABELS}, "has shape (12, 5)"),
        ({"x": np.zeros((12, 7, 6, 5), np.uint8), "y": LABELS}, "has shape (12, 7, 6, 5)"),
        ({"x": PIXELS.astype(np.int64), "y": LABELS}, "no pixels"),
        ({"x": PIXELS * 1.0, "y": LABELS}, "no pixels"),
        ({"x": np.array([{"a": 1}] * 12), "y": LABELS}, "Python objects"),
    ],
)
def test_npz_arrays_that_are_no_images_are_refused(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    np.savez(tmp_path / "i.npz", **arrays)
    error = refused(DataError, tmp_path / "i.npz", classes=3)
    assert said in error.message
    assert error.code == "data-unreadable"


@pytest.mark.parametrize(
    "raw", [b"", b"secret", b"PK\x03\x04 secret", b"\x93NUMPY secret", b"\x80\x04secret"]
)
def test_a_file_that_is_no_npz_is_refused(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "i.npz").write_bytes(raw)
    assert refused(DataError, tmp_path / "i.npz", classes=3).code == "data-unreadable"


def test_a_label_outside_the_classes_is_refused_by_its_image(tmp_path: Path) -> None:
    np.savez(tmp_path / "i.npz", x=PIXELS, y=LABELS)
    error = refused(DataError, tmp_path / "i.npz", classes=["a", "b"])
    assert error.code == "data-target"
    assert "image 3: its label is none of the 2 classes" in error.message


@pytest.mark.parametrize("options", [{"size": 7, "channels": 1}, {"size": (6, 5), "channels": 3}])
def test_images_of_another_shape_than_declared_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    assert refused(DataError, write_idx(tmp_path / "m"), classes=3, **options).code == "data-shape"


def test_folders_that_are_not_what_was_declared_are_refused(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p")
    assert refused(TaskError, folder).code == "task-option"
    assert "did you mean" in refused(DataError, folder, size=8, classes=["kind 0", "kind 1"]).message
    assert "3 class folders, not 4" in refused(DataError, folder, size=8, classes=4).message
    (folder / "kind 1" / "broken.png").write_bytes(b"secret")
    error = refused(DataError, folder, size=8)
    assert "broken.png" in error.message
    assert error.code == "data-unreadable"
    (tmp_path / "empty").mkdir()
    assert refused(DataError, tmp_path / "empty", size=8).code == "data-missing-file"
    (tmp_path / "hollow" / "kind").mkdir(parents=True)
    assert refused(DataError, tmp_path / "hollow", size=8, classes=["kind", "other"]).code == "data-empty"
    assert refused(DataError, tmp_path / "nowhere", size=8).code == "data-missing-file"


def test_a_site_may_lack_a_declared_class(tmp_path: Path) -> None:
    task = Images(
        data=write_pictures(tmp_path / "p"),
        size=8,
        classes=["kind 2", "unseen", "kind 1", "kind 0"],
        test_fraction=0,
    )
    assert sorted(set(everything(task.data().train)[1].tolist())) == [0, 2, 3]


def test_a_picture_too_large_to_be_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_pictures(tmp_path / "p")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert refused(DataError, folder, size=8).code == "data-unreadable"


@pytest.mark.parametrize("options", [{"mean": (0.1, 0.2)}, {"std": (1.0, 1.0, 1.0)}, {"classes": ["a", "a"]}])
def test_constants_and_classes_that_do_not_fit_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    assert refused(TaskError, write_idx(tmp_path / "m"), **{"classes": 3, **options}).code == "task-option"


def test_options_come_from_a_federation_file(tmp_path: Path) -> None:
    write_idx(tmp_path / "m")
    options = {
        "use": "images",
        "data": "m",
        "classes": 3,
        "size": [6, 5],
        "channels": 1,
        "mean": 0.5,
        "std": [0.5],
        "model": {"name": "cnn", "hidden": 8},
    }
    held = owners(load_task(TaskTable.model_validate(options), tmp_path))
    assert isinstance(held["pooled"], Split)
    for key, value in (("std", 0), ("size", [6]), ("channels", 2), ("classes", 1), ("tset_fraction", 0.5)):
        with pytest.raises(TaskError, match=key):
            load_task(TaskTable.model_validate({**options, key: value}), tmp_path)
