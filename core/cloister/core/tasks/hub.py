"""A data set of the Hugging Face Hub, divided by flwr-datasets: at random, or by a column that names owners.

An extra: ``pip install "cloister[hub]"``. Records are fetched when they are first needed, and kept in the
cache of ``datasets``; no code of a data set is run. flwr-datasets reports its use to its makers unless told
not to: it is told not to.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import nn

from cloister.core.data import Data, Split, TensorData
from cloister.core.errors import DataError, TaskError
from cloister.core.models import ModelChoice, build, read_model
from cloister.core.spec.refusals import nearest
from cloister.core.task import Task
from cloister.core.tasks.image_files import load_picture
from cloister.core.tasks.pixels import PixelData, PixelScale, pixel_bounds
from cloister.core.tasks.splitting import split_rows

__all__ = ["INFERRED_CLASSES", "Hub"]

#: What `Hub.notes` says where neither the task nor the data set names the classes.
INFERRED_CLASSES = (
    "the classes were taken from the target's values: declare `classes` to fix them and their order"
)

Side = Annotated[int, Field(ge=1, le=4096)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Spread = Annotated[float, Field(gt=0, allow_inf_nan=False)]
T = TypeVar("T")


class Hub(Task):
    """Which class a record of a Hugging Face data set belongs to: pictures, or columns of numbers.

    Args:
        dataset: a name on the Hub, or a format (``csv``, ``json``, ``parquet``) with ``data_files``.
        target: the column of classes.
        inputs: a column of pictures (then give ``size``), a column of lists of numbers, or several columns of
            numbers.
        owners: how many owners the records are dealt to at random, or the column that names each record's
            owner.
        model: a model's name, or a table with its name and options.
        subset: the data set's configuration, where it has several.
        split: the part to divide among owners.
        test_split: a part to test on, dealt to the owners at random; without it each owner keeps some of its
            own records.
        revision: the Hub's commit or tag; name one, and a run can be repeated.
        data_files: a local file in place of the Hub's.
        cache: the folder that fetched data is kept in.
        size: (height, width) of pictures, or one number for both.
        channels: 1 for grey, 3 for colour pictures.
        classes: the target's values in the order of their numbers; without it the data set's own names.
        mean: public constant taken from each input (a pixel is 0 to 1), for all or one for each channel or
            column.
        std: public constant that the rest is divided by.
        test_fraction: share that an owner keeps for testing where there is no ``test_split``.
        split_seed: seed of both divisions; a federation's own seed does not change them.
    """

    places = ("dataset", "subset", "revision", "data_files", "cache", "owners")

    def __init__(
        self,
        *,
        dataset: str,
        target: str = "label",
        inputs: str | list[str] = "image",
        owners: Annotated[int, Field(ge=1)] | str = 10,
        model: ModelChoice = "cnn",
        subset: str | None = None,
        split: str = "train",
        test_split: str | None = None,
        revision: str | None = None,
        data_files: Path | None = None,
        cache: Path | None = None,
        size: Side | tuple[Side, Side] | None = None,
        channels: Literal[1, 3] = 3,
        classes: list[str] | None = None,
        mean: Finite | tuple[Finite, ...] = 0.0,
        std: Spread | tuple[Spread, ...] = 1.0,
        test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2,
        split_seed: Annotated[int, Field(ge=0)] = 0,
    ) -> None:
        if importlib.util.find_spec("flwr_datasets") is None:
            raise TaskError(
                "task 'hub' needs flwr-datasets, which is not installed",
                remedy='pip install "cloister[hub]"',
                code="task-extra",
            )
        read_model(model)
        self._dataset, self._subset, self._split, self._test_split = dataset, subset, split, test_split
        self._target, self._inputs, self._owners, self._model = target, inputs, owners, model
        self._size = (size, size) if isinstance(size, int) else size
        self._channels, self._mean, self._std = channels, mean, std
        self.bounds = None if size is None else pixel_bounds(mean, std)
        self._test_fraction, self._split_seed = test_fraction, split_seed
        places = {"revision": revision, "data_files": data_files, "cache_dir": cache}
        self._places = {name: str(value) for name, value in places.items() if value is not None}
        #: What a user should know before running it; empty where everything was declared.
        self.notes: list[str] = []
        self.classes = tuple(classes) if classes else self._names_of_classes()

    def model(self) -> nn.Module:
        """Return a new model for the pictures or numbers."""
        if self._size is not None:
            shape: tuple[int, ...] = (self._channels, *self._size)
        elif isinstance(self._inputs, list):
            shape = (len(self._inputs),)
        else:
            shape = self._numbers(self._load(self._split).select([0])).shape[1:]
        return build(self._model, input_shape=shape, outputs=len(self.classes))

    def data(self) -> dict[str, Split]:
        """Return each owner's records.

        Raises:
            DataError: the data set cannot be had, or lacks a split or a column, or a value is no class,
                number or picture.
        """
        self._load(self._split)
        partitioner = self._guard(lambda: self._federated.partitioners[self._split])
        count = self._guard(lambda: int(partitioner.num_partitions))
        held = None if self._test_split is None else self._load(self._test_split)
        return dict(self._owner(partitioner, number, count, held) for number in range(count))

    def describe(self) -> dict[str, Any]:
        """Return what a model card says of the task."""
        info = self._load(self._split).info
        return {
            "title": f"{self._dataset}" + (f" ({self._subset})" if self._subset else ""),
            "description": (info.description or "").strip()
            or f"Tells which of {len(self.classes)} classes a record belongs to.",
            "source": info.homepage
            or f"Hugging Face data set '{self._dataset}', revision {self._places.get('revision', 'not fixed')}",
            "licence": info.license or "see the data set's own page",
            "intended_use": "see the data set's own page",
        }

    def _owner(self, partitioner: Any, number: int, count: int, held: Any) -> tuple[str, Split]:
        rows = self._guard(lambda: self._federated.load_partition(number, self._split))
        named = isinstance(self._owners, str)
        name = str(partitioner.partition_id_to_natural_id[number]) if named else f"owner-{number:04d}"
        own = self._read(rows)
        if held is not None:
            return name, Split(own, self._read(held.shard(num_shards=count, index=number, contiguous=True)))
        labels = own.targets.numpy()
        kept, tested = split_rows(
            labels, test_fraction=self._test_fraction, seed=self._split_seed, owner=name
        )
        return name, Split(own.subset(kept), own.subset(tested))

    @cached_property
    def _federated(self) -> Any:
        os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
        from flwr_datasets import FederatedDataset  # type: ignore[import-untyped]  # flwr-datasets ships no types
        from flwr_datasets.partitioner import (  # type: ignore[import-untyped]
            IidPartitioner,
            NaturalIdPartitioner,
        )

        owners = self._owners
        partitioner = (
            NaturalIdPartitioner(partition_by=owners)
            if isinstance(owners, str)
            else IidPartitioner(num_partitions=owners)
        )
        return FederatedDataset(
            dataset=self._dataset,
            subset=self._subset,
            partitioners={self._split: partitioner},
            shuffle=True,
            seed=self._split_seed,
            **self._places,
        )

    def _load(self, split: str) -> Any:
        rows = self._guard(lambda: self._federated.load_split(split))
        wanted = [self._target, *([self._inputs] if isinstance(self._inputs, str) else self._inputs)]
        for column in [
            *wanted,
            *([self._owners] if isinstance(self._owners, str) and split == self._split else []),
        ]:
            if column not in rows.column_names:
                raise DataError(
                    f"data set '{self._dataset}' has no column '{column}'{nearest(column, rows.column_names)}",
                    remedy="check task.target, task.inputs and task.owners",
                    code="data-missing-column",
                )
        return rows

    def _guard(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except (
            OSError,
            ValueError,
            KeyError,
        ) as error:  # `datasets` derives its own errors from these; their text may quote records
            raise DataError(
                f"data set '{self._dataset}' cannot be read: {type(error).__name__}",
                remedy="check task.dataset, task.subset, task.split and task.revision, and that the Hub can be reached or the data set is in the cache",
                code="data-unreadable",
            ) from error

    def _names_of_classes(self) -> tuple[str, ...]:
        rows = self._load(self._split)
        names = getattr(rows.features[self._target], "names", None)
        if names:
            return tuple(names)
        self.notes.append(INFERRED_CLASSES)
        return tuple(str(value) for value in sorted(rows.unique(self._target)))

    def _read(self, rows: Any) -> Data:
        labels = self._labels(rows)
        if self._size is None:
            numbers = self._numbers(rows)
            mean, std = (torch.tensor(value, dtype=torch.float32) for value in (self._mean, self._std))
            return TensorData((numbers - mean) / std, labels)
        if not isinstance(self._inputs, str) or type(rows.features[self._inputs]).__name__ != "Image":
            raise DataError(
                f"data set '{self._dataset}': the inputs '{self._inputs}' are not one column of pictures",
                remedy="name a column of pictures in task.inputs; for numbers leave task.size out",
                code="data-not-a-picture",
            )
        pictures = rows[self._inputs]
        pixels = np.empty((len(rows), self._channels, *self._size), dtype=np.uint8)
        for row, picture in enumerate(pictures):
            pixels[row] = load_picture(
                picture, f"data set '{self._dataset}', record {row + 1}", self._size, self._channels
            )
        return PixelData(torch.from_numpy(pixels), labels, PixelScale(self._mean, self._std))

    def _labels(self, rows: Any) -> torch.Tensor:
        values = rows[self._target]
        if getattr(rows.features[self._target], "names", None):
            return torch.tensor(list(values), dtype=torch.int64)
        numbers = {name: number for number, name in enumerate(self.classes)}
        found = [numbers.get(str(value), -1) for value in values]
        if -1 in found:
            raise DataError(
                f"data set '{self._dataset}', column '{self._target}', record {found.index(-1) + 1}: not one of the {len(self.classes)} classes",
                remedy="declare every class in task.classes",
                code="data-target",
            )
        return torch.tensor(found, dtype=torch.int64)

    def _numbers(self, rows: Any) -> torch.Tensor:
        columns = [self._inputs] if isinstance(self._inputs, str) else self._inputs
        try:
            parts = [np.asarray(list(rows[column]), dtype=np.float32) for column in columns]
            found = (
                parts[0] if isinstance(self._inputs, str) and parts[0].ndim > 1 else np.stack(parts, axis=1)
            )
        except (TypeError, ValueError):
            raise DataError(
                f"data set '{self._dataset}': the inputs {columns} are not numbers of one length",
                remedy="name columns of numbers; for pictures give task.size",
                code="data-not-a-number",
            ) from None
        if not np.isfinite(found).all():
            raise DataError(
                f"data set '{self._dataset}': an input is missing or not finite",
                remedy="choose complete columns",
                code="data-not-a-number",
            )
        return torch.from_numpy(np.ascontiguousarray(found))
