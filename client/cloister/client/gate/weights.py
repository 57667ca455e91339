"""Models that copy records into an update, found by their weights.

Those that the task builds are looked at before a run, those that the server sends in every round. A layer whose rows all measure the same thing of a
record, each against a threshold of its own, sorts the records of a batch into bins; the differences between the rows' gradients are then the records themselves, also in a sum over many sites (Fowl, Geiping, Czaja, Goldblum &
Goldstein 2022, "Robbing the Fed", Sec. 4; Zhao, Sharma, Elkordy, Ezzeldin, Avestimehr & Bagchi 2023, "LOKI"). A layer of which one row is far longer
than the others makes one class or one feature of one record outweigh a whole batch (Wen, Geiping, Fowl, Goldblum & Goldstein 2022, "Fishing for
User Data in Large-Batch Federated Learning", Sec. 3). Both can be seen in the weights, whoever made them.

Formal guarantees:

- `check_weights` refuses a layer of at least two inputs in which ``parallel_rows`` rows or more point the same way or the opposite one (up to
  `_COSINE`; `_NARROW` with fewer than `_FEW` inputs) and have thresholds further apart than their directions, if they are at least one in `_SHARE` of
  its rows, but for a chance of 1e-6. A layer without a bias has its thresholds elsewhere: there the directions are enough.
- It refuses a layer whose rows, at least `_LEAST_ROWS` of `_FEW` numbers or more, all lie in one plane and point in ``parallel_rows`` directions
  there or more: the same with the thresholds in the weights.
- It refuses a layer whose longest row, bias included, is more than ``norm_ratio`` times as long as the middle one of those that are not 0
  (or `_SHORT`, where that is less).

Training alone brings rows together, under strong weight decay above all (neurons condense), but then weights and threshold as one: bins narrower than
their rows' own differences hold no single record, and are not refused.

What it cannot find: a layer that sorts records by many different directions at once (Boenisch et al. 2021, "When the Curious Abandon
Honesty"), or one whose rows are turned apart far enough; only noise bounds what those reveal. Nor what SCAFFOLD's control makes of the model
between two local steps: a site that lets a ``control`` leave lets the server steer there (the default policy does not).

==========================================  =====================================================
case                                        outcome
==========================================  =====================================================
rows of 0                                   left out: their gradient tells nothing of a threshold
one input                                   left out: there is one direction only
embeddings, biases, norms                   left out: no row of them measures a record
the layer of `audit.canaries`               left out: it reads a constant, and no record
==========================================  =====================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
from torch import nn

from cloister.core.errors import PolicyError
from cloister.core.update import Layout, Vector
from cloister.privacy.audit.canaries import CanaryModel

__all__ = ["check_architecture", "check_weights", "measuring_layers"]

Rows = npt.NDArray[np.float32]
_COSINE, _NARROW, _FEW = 0.98, 1 - 1e-6, 8
#: Thresholds this close are one, in units of a row of length 1: rounding and training make as much.
_APART = 1e-3
_SHARE = 64
#: Rows that are looked at: of at least one in `_SHARE`, none is among them with a chance of (1 - 1/64)^896 < 1e-6.
_SAMPLE = 896
_LEAST_ROWS = 16
#: A middle row that is shorter counts as this long: most rows of a sparse layer are nearly 0.
_SHORT = 0.1
_FLAT = 1e-5
_WIDE = 1024
_BLOCK = 1 << 24


def measuring_layers(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters whose rows measure records: weights of two dimensions or more, but for embeddings and canaries."""
    passed = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        for parameter in module.parameters(recurse=False)
    }
    if isinstance(model, CanaryModel):
        passed.add(id(model.canaries.weight))
    return frozenset(
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and id(parameter) not in passed
    )


def check_architecture(model: nn.Module, *, widest: float) -> None:
    """Check that no layer is far wider than what it reads: room for a bin for every record.

    Raises:
        PolicyError: (policy-model) one is.
    """
    for name, parameter in model.named_parameters():
        if name not in measuring_layers(model):
            continue
        units, inputs = len(parameter), parameter[0].numel()
        if units > _WIDE and units > widest * inputs:
            raise _refused(
                name,
                f"has {units} units over {inputs} inputs, more than {widest:g} to one: room to copy single records into the update",
            )


def check_weights(
    layout: Layout,
    vector: Vector,
    layers: frozenset[str],
    *,
    parallel_rows: int | None,
    norm_ratio: float,
    generator: np.random.Generator,
) -> None:
    """Check the weights of a model.

    Args:
        layout: what lies where in ``vector``.
        vector: (layout.size,) float32, finite.
        layers: the tensors that are looked at (`measuring_layers`).
        parallel_rows: see above; ``None``: not looked at.
        norm_ratio: see above.
        generator: draws the rows that are compared: whoever makes the weights must not know them.

    Raises:
        PolicyError: (policy-imprint, policy-weights) a layer copies records.
    """
    for name, rows, bias in _layers(layout.split(vector), layers):
        _check_lengths(name, rows, bias, norm_ratio)
        if parallel_rows is not None and rows.shape[1] > 1:
            _check_directions(name, rows, bias, parallel_rows, generator)


def _layers(tensors: Mapping[str, Vector], layers: frozenset[str]) -> Iterator[tuple[str, Rows, Rows | None]]:
    """Yield name, rows, and the bias of the same name where there is one."""
    for name, tensor in tensors.items():
        if name not in layers or not tensor.size:
            continue
        rows = tensor.reshape(len(tensor), -1)
        bias = tensors.get("bias".join(name.rsplit("weight", 1)))
        yield name, rows, bias if bias is not None and bias.shape == rows.shape[:1] else None


def _check_lengths(name: str, rows: Rows, bias: Rows | None, norm_ratio: float) -> None:
    squared = np.square(rows, dtype=np.float64).sum(axis=1)
    if bias is not None:
        squared += np.square(bias, dtype=np.float64)
    lengths = np.sqrt(squared)
    real = lengths[lengths > 0]
    if real.size < 2:
        return
    found = float(real.max() / max(float(np.median(real)), _SHORT))
    if found > norm_ratio:
        raise _refused(
            name,
            f"has a row {found:.3g} times as long as its middle one: one record can outweigh all others",
            code="policy-weights",
        )


def _check_directions(
    name: str, rows: Rows, bias: Rows | None, parallel_rows: int, generator: np.random.Generator
) -> None:
    # In float64: rows so short or long that their squares leave float32 measure as well as any.
    lengths = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1))
    real = lengths > 0
    count, inputs = int(real.sum()), rows.shape[1]
    if count < parallel_rows:
        return
    unit = (rows[real] / lengths[real, None]).astype(np.float32)
    cuts = None if bias is None else bias[real] / lengths[real]
    chosen = np.arange(count) if count <= _SAMPLE else generator.choice(count, _SAMPLE, replace=False)
    alike = _NARROW if inputs < _FEW else _COSINE
    block = max(1, _BLOCK // count)
    most = max(
        _bins(unit, cuts, chosen[first : first + block], alike) for first in range(0, len(chosen), block)
    )
    if most >= parallel_rows:
        raise _imprint(name, f"has {most} rows of {count} that measure the same thing")
    if count >= _LEAST_ROWS and inputs >= _FEW and _fan(unit[chosen]) >= parallel_rows:
        raise _imprint(name, f"has {count} rows that all lie in one plane")


def _bins(unit: Rows, cuts: Rows | None, chosen: npt.NDArray[np.int64], alike: float) -> int:
    """Return how many rows measure what one of the ``chosen`` does against other thresholds, that one with them, at the most."""
    cosines = unit[chosen] @ unit.T
    found = np.abs(cosines) >= alike
    if cuts is not None:
        turned = np.sqrt(2 * np.maximum(1 - np.abs(cosines), 0))
        apart = np.abs(np.sign(cosines) * cuts - cuts[chosen, None])
        found &= apart > turned + _APART
        return int(found.sum(axis=1).max()) + 1
    return int(found.sum(axis=1).max())


def _fan(unit: Rows) -> int:
    """Return in how many directions the rows point if they all lie in one plane, else 0."""
    first = unit[0].astype(np.float64)
    along = unit @ first
    other = unit[np.abs(along).argmin()]
    second = other - (other @ first) * first
    length = float(np.linalg.norm(second))
    if length < _APART:
        return 1
    across = unit @ (second / length)
    if (1 - np.square(along) - np.square(across)).mean() > _FLAT:
        return 0
    angles = np.sort(np.arctan2(across, along) % np.pi)
    return int((np.diff(angles) > _APART).sum()) + 1


def _imprint(name: str, what: str) -> PolicyError:
    return _refused(
        name,
        f"{what}: such a layer copies single records into the update (Robbing the Fed)",
        code="policy-imprint",
    )


def _refused(name: str, what: str, *, code: str = "policy-model") -> PolicyError:
    return PolicyError(
        f"the model's '{name}' {what}",
        remedy="use a model without such a layer; [models] of the site's policy says what is refused",
        code=code,
    )
