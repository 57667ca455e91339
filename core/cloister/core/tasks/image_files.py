"""Labelled images from IDX files, an NPZ file or class folders, all as (n, channels, height, width) bytes."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.core.errors import DataError, TaskError
from cloister.core.spec.refusals import nearest
from cloister.core.tasks.idx import find_idx, read_idx

__all__ = ["Labelled", "Parts", "class_folders", "holds_pictures", "load_picture", "read_images"]

_PICTURES = (".jpeg", ".jpg", ".png")
_CHANNELS = (1, 3, 4)

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Images and their labels.

    Attributes:
        pixels: (n, channels, height, width) uint8.
        labels: (n,) int64 class numbers.
    """

    pixels: Pixels
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a source holds: images to train on, and to test on where it sets some apart."""

    train: Labelled
    test: Labelled | None


def read_images(
    data: Path, *, size: tuple[int, int] | None, channels: int, classes: Sequence[str] | None
) -> Parts:
    """Read the images that ``data`` names, whatever their form.

    Args:
        data: an NPZ file, a folder of IDX files, or a folder of class folders (with ``train`` and ``test``
            above them or not).
        size: (height, width) that pictures are brought to; needed for a folder of pictures.
        channels: 1 for grey or 3 for colour, for a folder of pictures.
        classes: the class folders' names in the order of their numbers; alphabetical without it.

    Raises:
        DataError: nothing readable is there, or a file is not what it should be.
        TaskError: pictures without a size.
    """
    if not data.exists():
        raise DataError(
            f"there is no file or folder '{data}'",
            remedy="check task.data; paths are taken from the federation file's folder",
            code="data-missing-file",
        )
    if data.is_file():
        return _read_npz(data)
    if find_idx(data, "train", images=True):
        test = _read_idx_part(data, "t10k") if find_idx(data, "t10k", images=True) else None
        return Parts(train=_read_idx_part(data, "train"), test=test)
    if size is None:
        raise TaskError(
            f"'{data}' is a folder of pictures, which may differ in size",
            remedy="declare task.size, for example size = [32, 32]",
            code="task-option",
        )
    names = list(classes) if classes is not None else class_folders(data)
    parted = [(data / part).is_dir() for part in ("train", "test")]
    train = _read_folder(data / "train" if parted[0] else data, names, size, channels)
    return Parts(
        train=train, test=_read_folder(data / "test", names, size, channels) if all(parted) else None
    )


def holds_pictures(data: Path) -> bool:
    """Return whether ``data`` is a folder that `read_images` takes for class folders of pictures."""
    return data.is_dir() and find_idx(data, "train", images=True) is None


def class_folders(data: Path) -> list[str]:
    """Return the names of the class folders in ``data`` (or in its ``train``), alphabetically.

    Raises:
        DataError: there is none.
    """
    folder = data / "train" if (data / "train").is_dir() else data
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        raise DataError(
            f"'{folder}' holds neither IDX files nor class folders",
            remedy="give IDX files, an NPZ file, or one folder for each class",
            code="data-missing-file",
        )
    return names


def load_picture(source: Any, name: str, size: tuple[int, int], channels: int) -> Pixels:
    """Return a picture as (channels, height, width) bytes, upright and brought to ``size``.

    Args:
        source: a path, an open file, or a picture that Pillow has read.
        name: what a message calls it.
        size: (height, width).
        channels: 1 or 3.

    Raises:
        DataError: Pillow cannot read it, or it is too large to be a picture.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = (
                source if isinstance(source, Image.Image) else Image.open(source, formats=("PNG", "JPEG"))
            )
            upright = ImageOps.exif_transpose(picture).convert("L" if channels == 1 else "RGB")
            resized = (
                upright
                if upright.size == size[::-1]
                else upright.resize(size[::-1], Image.Resampling.BILINEAR)
            )
    except (
        OSError,
        SyntaxError,
        ValueError,
        UnidentifiedImageError,
        Image.DecompressionBombWarning,
        Image.DecompressionBombError,
    ):
        raise DataError(
            f"{name} is not a PNG or JPEG picture that can be read",
            remedy="mend or remove it",
            code="data-unreadable",
        ) from None
    return np.asarray(resized, dtype=np.uint8).reshape(*size, channels).transpose(2, 0, 1)


def _read_idx_part(folder: Path, part: str) -> Labelled:
    images, labels = find_idx(folder, part, images=True), find_idx(folder, part, images=False)
    if images is None or labels is None:
        raise DataError(
            f"'{folder}' has no labels for its {part} images",
            remedy=f"add {part}-labels-idx1-ubyte",
            code="data-missing-file",
        )
    pixels, numbers = read_idx(images, dimensions=3), read_idx(labels, dimensions=1)
    if len(pixels) != len(numbers):
        raise DataError(
            f"'{images}' has {len(pixels)} images but '{labels}' has {len(numbers)} labels",
            remedy="use files that go together",
            code="data-unreadable",
        )
    return Labelled(pixels=pixels[:, None], labels=numbers.astype(np.int64))


def _read_npz(path: Path) -> Parts:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        reason = "it holds Python objects" if "allow_pickle" in str(error) else "it is not an NPZ file"
        raise DataError(
            f"cannot read '{path}': {reason}",
            remedy="write it with numpy.savez(path, x=images, y=labels)",
            code="data-unreadable",
        ) from None
    if "x" in arrays and "y" in arrays:
        return Parts(train=_from_arrays(path, arrays, "x", "y"), test=None)
    for key in ("x_train", "y_train"):
        if key not in arrays:
            raise DataError(
                f"'{path}' has no array '{key}'{nearest(key, arrays)}",
                remedy="name its arrays x and y, or x_train, y_train, x_test and y_test",
                code="data-unreadable",
            )
    test = (
        _from_arrays(path, arrays, "x_test", "y_test") if "x_test" in arrays and "y_test" in arrays else None
    )
    return Parts(train=_from_arrays(path, arrays, "x_train", "y_train"), test=test)


def _from_arrays(path: Path, arrays: dict[str, npt.NDArray[Any]], x: str, y: str) -> Labelled:
    images, labels = arrays[x], arrays[y].squeeze()
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[3] in _CHANNELS and images.shape[1] not in _CHANNELS:
        images = images.transpose(0, 3, 1, 2)
    elif images.ndim != 4 or images.shape[1] not in _CHANNELS:
        raise _wrong(
            path,
            x,
            f"has shape {images.shape}",
            "give (n, height, width), (n, channels, height, width) or (n, height, width, channels)",
        )
    if images.dtype.kind == "f" and images.size and images.min() >= 0 and images.max() <= 1:
        images = (images * 255).round()
    elif images.dtype != np.uint8:
        raise _wrong(
            path,
            x,
            f"holds {images.dtype} that are no pixels",
            "give bytes, or floating-point numbers from 0 to 1",
        )
    if labels.ndim != 1 or len(labels) != len(images):
        raise _wrong(
            path, y, f"has shape {arrays[y].shape} for {len(images)} images", "give one label an image"
        )
    if labels.dtype.kind not in "iu":
        raise _wrong(path, y, f"holds {labels.dtype}, not class numbers", "give whole numbers from 0")
    return Labelled(pixels=np.ascontiguousarray(images, dtype=np.uint8), labels=labels.astype(np.int64))


def _wrong(path: Path, key: str, what: str, remedy: str) -> DataError:
    return DataError(f"'{path}': the array '{key}' {what}", remedy=remedy, code="data-unreadable")


def _read_folder(folder: Path, names: Sequence[str], size: tuple[int, int], channels: int) -> Labelled:
    found = class_folders(folder)
    for name in found:
        if name not in names:
            raise DataError(
                f"'{folder / name}' is not a folder of one of the task's classes{nearest(name, names)}",
                remedy="declare it in task.classes, or remove it",
                code="data-target",
            )
    files = [
        (path, number)
        for number, name in enumerate(names)
        if name in found
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in _PICTURES and not path.name.startswith(".")
    ]
    if not files:
        raise DataError(
            f"'{folder}' holds no PNG or JPEG picture",
            remedy="put the pictures into one folder for each class",
            code="data-empty",
        )
    pixels = np.empty((len(files), channels, *size), dtype=np.uint8)
    for row, (path, _) in enumerate(files):
        pixels[row] = load_picture(path, f"'{path}'", size, channels)
    return Labelled(pixels=pixels, labels=np.array([number for _, number in files], dtype=np.int64))
