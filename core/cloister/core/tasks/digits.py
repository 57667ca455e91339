"""Handwritten digits of 8 x 8 pixels, from scikit-learn: a task that needs no file and trains in seconds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from cloister.core.data import Split, TensorData
from cloister.core.models import ModelChoice, build, read_model
from cloister.core.task import Task
from cloister.core.tasks.splitting import split_rows

__all__ = ["Digits"]

_TEST_FRACTION = 0.2
_SPLIT_SEED = 0


class Digits(Task):
    """The 1797 digits of scikit-learn's ``load_digits``: (1, 8, 8) images with pixels from 0 to 1.

    Args:
        model: a model's name, or a table with its name and options.
    """

    classes = tuple("0123456789")
    bounds = (0.0, 1.0)

    def __init__(self, *, model: ModelChoice = "mlp") -> None:
        read_model(model)
        self._model = model

    def model(self) -> nn.Module:
        """Return a new model from (n, 1, 8, 8) images to (n, 10) scores."""
        return build(self._model, input_shape=(1, 8, 8), outputs=10)

    def data(self) -> Split:
        """Return the images: 80% to train on, 20% to test on, by class, the same ones in every run."""
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # scikit-learn ships no types

        bunch = load_digits()
        inputs = torch.from_numpy((bunch.images / 16.0).astype(np.float32)).unsqueeze(1)
        targets = bunch.target.astype(np.int64)
        train, test = (
            torch.from_numpy(rows)
            for rows in split_rows(targets, test_fraction=_TEST_FRACTION, seed=_SPLIT_SEED, owner="digits")
        )
        labels = torch.from_numpy(targets)
        return Split(TensorData(inputs[train], labels[train]), TensorData(inputs[test], labels[test]))

    def describe(self) -> dict[str, Any]:
        """Return what a model card says of the task."""
        return {
            "title": "Handwritten digits, 8 x 8 pixels",
            "description": "Tells which digit an 8 x 8 image shows.",
            "source": "scikit-learn load_digits: test part of the UCI Optical Recognition of Handwritten Digits data (E. Alpaydin, C. Kaynak, 1998)",
            "licence": "CC BY 4.0",
            "intended_use": "examples and tests",
        }
