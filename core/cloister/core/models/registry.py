"""Models by name, built for a task's records: ``build("mlp", input_shape=(13,), outputs=2)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import ValidationError
from torch import nn

from cloister.core.errors import TaskError
from cloister.core.models.dense import Logistic, LogisticOptions, Mlp, MlpOptions
from cloister.core.models.images import (
    Cnn,
    CnnOptions,
    ResNet,
    ResNetOptions,
    Separable,
    SeparableOptions,
    TanhCnn,
    TanhCnnOptions,
)
from cloister.core.models.records import Records
from cloister.core.models.sequences import Recurrent, RecurrentOptions, Transformer, TransformerOptions
from cloister.core.spec.base import Table
from cloister.core.spec.refusals import nearest, refusals

__all__ = ["ModelChoice", "build", "model_names", "read_model"]

#: How a federation file names a model: ``"mlp"``, or ``{ name = "mlp", hidden = [64, 32] }``.
ModelChoice = str | dict[str, Any]

_MODELS: dict[str, tuple[type[Table], Callable[..., nn.Module]]] = {
    "cnn": (CnnOptions, Cnn),
    "gru": (RecurrentOptions, partial(Recurrent, "gru")),
    "logistic": (LogisticOptions, Logistic),
    "lstm": (RecurrentOptions, partial(Recurrent, "lstm")),
    "mlp": (MlpOptions, Mlp),
    "resnet": (ResNetOptions, ResNet),
    "separable": (SeparableOptions, Separable),
    "tanh-cnn": (TanhCnnOptions, TanhCnn),
    "transformer": (TransformerOptions, Transformer),
}
_ALIASES = {"linear": "logistic"}


def model_names() -> list[str]:
    """Return the names that `build` knows, sorted."""
    return sorted([*_MODELS, *_ALIASES])


def read_model(model: str | Mapping[str, Any]) -> tuple[str, Table]:
    """Return a model's name and its checked options, without building it.

    Args:
        model: a name, or a table with ``name`` and the model's options.

    Raises:
        TaskError: an unknown name or option (with the nearest known one), or an option of the wrong type.
    """
    options = {"name": model} if isinstance(model, str) else dict(model)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise TaskError(
            "the model's table has no 'name'",
            remedy=f"name one of: {', '.join(model_names())}",
            code="model-unknown",
        )
    known = _ALIASES.get(name, name)
    if known not in _MODELS:
        raise TaskError(
            f"there is no model '{name}'{nearest(name, model_names())}",
            remedy=f"name one of: {', '.join(model_names())}",
            code="model-unknown",
        )
    table = _MODELS[known][0]
    try:
        return known, table.model_validate(options)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in refusals(error, table, prefix="task.model"))
        raise TaskError(
            f"model '{name}' was refused:\n{lines}",
            remedy="change these keys of `model` and try again",
            code="model-option",
        ) from None


def build(
    model: str | Mapping[str, Any], *, input_shape: Sequence[int], outputs: int, vocabulary: int | None = None
) -> nn.Module:
    """Build a model for a task's records.

    It has no batch norm, and Opacus gives every record its own gradient. Initial weights come from torch's
    generator, which Cloister seeds before a task builds its model.

    Args:
        model: a name, or a table with ``name`` and the model's options.
        input_shape: of one record: (features,), (channels, height, width), (length,) of tokens, or (length,
            features).
        outputs: scores a record: the number of classes, or 1 for regression.
        vocabulary: how many different tokens there are, where the input is int64 tokens.

    Returns:
        A module from (n, *input_shape) to (n, outputs).

    Raises:
        TaskError: an unknown name or option, or a model that cannot take these records.
    """
    name, options = read_model(model)
    records = Records(shape=tuple(input_shape), outputs=outputs, vocabulary=vocabulary)
    return _MODELS[name][1](options, records)
