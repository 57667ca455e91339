"""Imprint layers: a server that may choose the model reads single records from a mean gradient.

Fowl, Geiping, Czaja, Goldblum & Goldstein (2022), "Robbing the Fed: directly obtaining private data in federated learning with modified models". In front of the model
stand a linear layer whose rows are all one direction h, with biases at the quantiles of <h, x>, a ReLU, and a layer that gives all of its units one and the
same weight. Unit i is active for records beyond its bias, so that

    (grad W_i - grad W_{i+1}) / (grad b_i - grad b_{i+1})

is the record between bias i and i + 1, exactly, where there is one (their eq. 3). It needs no optimisation, and works through means of any size as long as there
are more bins than records.

=============================  =================================================================
case                           outcome
=============================  =================================================================
no record in a bin             both differences are 0: no candidate
two records in a bin           a weighted mean of the two: matches neither
noise on the gradient          candidates of noise, which match nothing
a gradient that is not finite  no candidate
=============================  =================================================================
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = ["Imprint", "imprinted", "recover"]

#: A difference of bias gradients below this share of the largest one holds no record.
_NOTHING = 1e-5


class Imprint(nn.Module):
    """A model with an imprint layer before it.

    Attributes:
        reading: the layer whose gradient holds records: (bins, d) weights, (bins,) biases.
    """

    def __init__(self, model: nn.Module, direction: Tensor, edges: Tensor) -> None:
        super().__init__()
        bins, size = len(edges), len(direction)
        self.reading = nn.utils.skip_init(nn.Linear, size, bins)  # type: ignore[no-untyped-call]
        self.passing = nn.utils.skip_init(nn.Linear, bins, size, bias=False)  # type: ignore[no-untyped-call]
        self.model = model
        with torch.no_grad():
            self.reading.weight.copy_(direction.expand(bins, size))
            self.reading.bias.copy_(-edges)
            # Every unit is passed on alike: the gradient by a unit's output is then the same for all that are active.
            self.passing.weight.fill_(1.0 / bins)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the scores of (n, …) inputs."""
        passed = self.passing(torch.relu(self.reading(inputs.flatten(1))))
        scores: Tensor = self.model(passed.reshape(inputs.shape))
        return scores


def imprinted(model: nn.Module, public: Tensor, *, bins: int, seed: int) -> Imprint:
    """Return ``model`` with an imprint layer whose bins fit ``public`` records.

    Args:
        model: stays as it is, and is used as it is.
        public: (n, …) records of the same kind, for the quantiles.
        bins: how many.
        seed: of the direction.
    """
    flat = public.flatten(1).float()
    direction = torch.randn(flat.shape[1], generator=torch.Generator().manual_seed(seed))
    direction = direction / direction.norm()
    # A Gaussian of the records' mean and deviation, as in the paper's section 3.2: no quantile lies on a record.
    measured = flat @ direction
    shares = (torch.arange(bins) + 0.5) / bins
    edges = measured.mean() + measured.std() * torch.special.ndtri(shares.double()).float()
    return Imprint(model, direction, edges)


def recover(weight: npt.NDArray[np.floating], bias: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return candidate records, (k, d), from the gradient of an imprint layer.

    Args:
        weight: (bins, d) its gradient by the weights, or a multiple of it.
        bias: (bins,) by the biases, the same multiple.
    """
    if not np.isfinite(weight).all() or not np.isfinite(bias).all() or not np.any(bias):
        return np.zeros((0, weight.shape[1]))
    by_weight = -np.diff(np.concatenate([weight.astype(np.float64), np.zeros((1, weight.shape[1]))]), axis=0)
    by_bias = -np.diff(np.concatenate([bias.astype(np.float64), [0.0]]))
    held = np.abs(by_bias) > _NOTHING * np.abs(by_bias).max()
    return np.asarray(by_weight[held] / by_bias[held, None], dtype=np.float64)
