"""Images with labels: IDX files (MNIST and its kin), an NPZ file, or one folder of pictures for each class."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from cloister.core.data import Split
from cloister.core.errors import DataError, TaskError
from cloister.core.models import ModelChoice, build, read_model
from cloister.core.task import Task
from cloister.core.tasks.image_files import Labelled, Parts, class_folders, holds_pictures, read_images
from cloister.core.tasks.pixels import PixelData, PixelScale, pixel_bounds
from cloister.core.tasks.splitting import split_rows

__all__ = ["INFERRED_CLASSES", "Images"]

#: What `Images.notes` says where the classes were not declared.
INFERRED_CLASSES = (
    "the classes were taken from the data: declare `classes` before using it over real sites, where one site "
    "may not hold them all"
)

Side = Annotated[int, Field(ge=1, le=4096)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Spread = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Images(Task):
    """Which class an image belongs to.

    A party without any data (a server) builds the same model where ``classes``, ``size`` and ``channels`` are
    declared.

    Args:
        data: a folder of IDX files under MNIST's names (plain or gzip), an NPZ file (arrays x and y, or
            x_train, y_train, x_test and y_test), or a folder of class folders of PNG and JPEG pictures, with
            or without ``train`` and ``test`` above them.
        model: a model's name, or a table with its name and options.
        size: (height, width), or one number for both: pictures are brought to it; IDX and NPZ images must
            have it already.
        channels: 1 for grey, 3 for colour (4 in NPZ); pictures are brought to it (3 without it), other files
            must have it already.
        classes: the classes' names in the order of their numbers, or how many there are; for pictures their
            folders' names.
        mean: public constant taken from each pixel (0 to 1), for all channels or one each.
        std: public constant that the rest is divided by.
        test_fraction: share kept for testing where the source sets no test images apart.
        split_seed: seed of that split; a federation's own seed does not change it.
    """

    places = ("data",)

    def __init__(
        self,
        *,
        data: Path,
        model: ModelChoice = "cnn",
        size: Side | tuple[Side, Side] | None = None,
        channels: Literal[1, 3, 4] | None = None,
        classes: Annotated[int, Field(ge=2)] | list[str] | None = None,
        mean: Finite | tuple[Finite, ...] = 0.0,
        std: Spread | tuple[Spread, ...] = 1.0,
        test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        split_seed: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        read_model(model)
        self._data, self._model = data, model
        self._size = (size, size) if isinstance(size, int) else size
        self._channels, self._mean, self._std = channels, mean, std
        self.bounds = pixel_bounds(mean, std)
        self._test_fraction, self._split_seed = test_fraction, split_seed
        #: What a user should know before running it; empty where everything was declared.
        self.notes: list[str] = []
        self._folders = classes if isinstance(classes, list) else None
        if classes is None:
            self.notes.append(INFERRED_CLASSES)
        self.classes = self._name_classes(classes)
        if len(set(self.classes)) < len(self.classes):
            raise TaskError(
                "task.classes names a class twice", remedy="list each class once", code="task-option"
            )

    def model(self) -> nn.Module:
        """Return a new model from (n, channels, height, width) images to (n, classes) scores."""
        return build(self._model, input_shape=self._shape, outputs=len(self.classes))

    def data(self) -> Split:
        """Return the images: the source's own parts, or split by class with the task's own seed.

        Raises:
            DataError: nothing readable is there, or the images are not of the declared size, channels or
                classes.
            TaskError: ``mean`` or ``std`` does not go with the channels.
        """
        for name, constant in (("mean", self._mean), ("std", self._std)):
            if isinstance(constant, tuple) and len(constant) not in (1, self._shape[0]):
                raise TaskError(
                    f"task.{name} has {len(constant)} numbers for {self._shape[0]} channels",
                    remedy="give one number, or one a channel",
                    code="task-option",
                )
        scale = PixelScale(self._mean, self._std)
        train = self._data_of(self._parts.train, scale)
        if self._parts.test is not None:
            return Split(train, self._data_of(self._parts.test, scale))
        labels = self._parts.train.labels
        kept, tested = split_rows(
            labels, test_fraction=self._test_fraction, seed=self._split_seed, owner="images"
        )
        return Split(train.subset(kept), train.subset(tested))

    def describe(self) -> dict[str, Any]:
        """Return what a model card says of the task."""
        channels, height, width = self._shape
        return {
            "title": "Images",
            "description": f"Tells which of {len(self.classes)} classes an image of {height} x {width} pixels and {channels} channels belongs to.",
            "source": self._data.name,
            "licence": "as the images' own",
            "intended_use": "images of the same kind, brought to the same size",
            "normalisation": {"mean": self._mean, "std": self._std},
        }

    @cached_property
    def _parts(self) -> Parts:
        return read_images(self._data, size=self._size, channels=self._channels or 3, classes=self._folders)

    @cached_property
    def _shape(self) -> tuple[int, ...]:
        if self._size is not None and self._channels is not None:
            return (self._channels, *self._size)
        return tuple(self._parts.train.pixels.shape[1:])

    def _name_classes(self, classes: int | list[str] | None) -> tuple[str, ...]:
        if isinstance(classes, list):
            return tuple(classes)
        if holds_pictures(self._data):
            names = class_folders(self._data)
            if classes is not None and len(names) != classes:
                raise DataError(
                    f"'{self._data}' has {len(names)} class folders, not {classes}",
                    remedy="list the folders' names in task.classes",
                    code="data-target",
                )
            return tuple(names)
        if classes is None:
            parts = [part for part in (self._parts.train, self._parts.test) if part is not None]
            classes = int(max(part.labels.max(initial=0) for part in parts)) + 1
        return tuple(str(number) for number in range(classes))

    def _data_of(self, part: Labelled, scale: PixelScale) -> PixelData:
        if part.pixels.shape[1:] != self._shape:
            raise DataError(
                f"'{self._data}' has images of shape {part.pixels.shape[1:]}, not {self._shape}",
                remedy="declare task.size and task.channels as the files have them",
                code="data-shape",
            )
        wrong = (part.labels < 0) | (part.labels >= len(self.classes))
        if wrong.any():
            raise DataError(
                f"'{self._data}', image {int(wrong.argmax()) + 1}: its label is none of the {len(self.classes)} classes",
                remedy="declare every class in task.classes, in the order of their numbers",
                code="data-target",
            )
        return PixelData(torch.from_numpy(part.pixels), torch.from_numpy(part.labels), scale)
