"""Server optimisers: how a round's direction moves the model, as pure functions on flat vectors.

The direction Δ_t is the mean update of the round: the trained models minus the round's model, so it points *downhill* and the
model moves along ``+Δ_t``. Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan (2021), *Adaptive Federated
Optimization*, Algorithm 2, in whose notation::

    line 10   Δ_t = mean of the updates of the cohort                  (the rule's answer)
    line 11   m_t = β₁ m_{t-1} + (1 - β₁) Δ_t
    line 12   v_t = v_{t-1} + Δ_t²                                     FedAdagrad
    line 13   v_t = v_{t-1} - (1 - β₂) Δ_t² sign(v_{t-1} - Δ_t²)       FedYogi
    line 14   v_t = β₂ v_{t-1} + (1 - β₂) Δ_t²                         FedAdam
    line 15   x_{t+1} = x_t + η m_t / (√v_t + τ)

As in the paper, v starts at τ² (line 1 asks for at least that; its experiments take equality), m starts at 0, and there is **no
bias correction**. FedAdagrad takes β₁ as line 11 does; the paper's experiments set it to 0 there. FedAvgM is Hsu, Qi, Brown
(2019), §4.3: ``m_t = β m_{t-1} + Δ_t``, ``x_{t+1} = x_t + η m_t``.

What Flower 1.41 does differently, should you compare: its v starts at 0; its FedAdam multiplies η by
``√(1 - β₂^(t+1)) / (1 - β₁^(t+1))`` with t the round from 1; its FedAdagrad has no momentum; its η defaults to 0.1 or 0.01.

All arithmetic is float64; the model is float32 and is rounded once, at the end of a step. Wrong shapes, types and values that are
not finite raise `ValueError` (the caller's fault, as in `cloister.strategies.mean`); a stored state that does not fit raises
`IntegrityError`; a step that leaves float32's range raises `SpecError`, since the remedy is in the federation file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cloister.core.errors import IntegrityError, SpecError
from cloister.core.spec import ServerOptimizer
from cloister.core.update import Vector
from cloister.strategies.mean import Direction

__all__ = [
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedYogi",
    "OptimiserState",
    "ServerOptimiser",
    "optimiser_from",
]

_MOST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class OptimiserState:
    """What an optimiser remembers between rounds.

    Attributes:
        momentum: m_t, (size,) float64, or ``None`` for an optimiser without.
        variance: v_t, (size,) float64, or ``None`` for an optimiser without.
    """

    momentum: Direction | None = None
    variance: Direction | None = None

    def arrays(self) -> dict[str, Direction]:
        """Return the state as named arrays, for a checkpoint; `ServerOptimiser.from_arrays` is the way back."""
        named = {"momentum": self.momentum, "variance": self.variance}
        return {name: array for name, array in named.items() if array is not None}


@dataclass(frozen=True, kw_only=True)
class ServerOptimiser(ABC):
    """How the mean update moves the model. An optimiser is configuration only; what changes is its `OptimiserState`.

    Attributes:
        lr: server learning rate η, dimensionless.
    """

    name: ClassVar[str]
    lr: float = 1.0

    def __post_init__(self) -> None:
        _in_range("lr", self.lr, above=0.0)

    @abstractmethod
    def start(self, size: int) -> OptimiserState:
        """Return the state before the first round for a model of ``size`` elements."""

    @abstractmethod
    def _move(self, direction: Direction, state: OptimiserState) -> tuple[Direction, OptimiserState]:
        """Return the displacement of the model (size,) float64, in an array of its own, and the next state."""

    def step(
        self, model: Vector, direction: Direction, state: OptimiserState
    ) -> tuple[Vector, OptimiserState]:
        """Return the next model and the next state; the arguments are left as they are.

        Args:
            model: x_t, (size,) float32.
            direction: Δ_t, (size,) float64.
            state: the state after the last round, or `start`.

        Raises:
            ValueError: a wrong shape or dtype, a value that is not finite, or another optimiser's state.
            SpecError: the next model leaves float32's range (code ``diverged``).
        """
        if model.ndim != 1 or model.dtype != np.float32:
            raise ValueError(f"expected a flat float32 model, got {model.dtype} {model.shape}")
        if direction.shape != model.shape or direction.dtype != np.float64:
            raise ValueError(
                f"expected a float64 direction of shape {model.shape}, got {direction.dtype} {direction.shape}"
            )
        if not (np.abs(direction) <= _MOST).all():
            raise ValueError(
                "the direction holds a value that is not finite, or that no mean of float32 updates can have"
            )
        self._check(state, len(model))
        with np.errstate(over="ignore", invalid="ignore"):
            moved, state = self._move(direction, state)
            np.add(moved, model, out=moved)
            following = moved.astype(np.float32)
        if not np.isfinite(following).all():
            raise SpecError(
                f"the model left float32's range in a step of {self.name} with lr = {self.lr:g}",
                remedy="lower aggregation.optimizer.lr, or training.optimizer.lr",
                code="diverged",
            )
        return following, state

    def from_arrays(self, arrays: Mapping[str, npt.NDArray[Any]], size: int) -> OptimiserState:
        """Return the state that `OptimiserState.arrays` named.

        Raises:
            IntegrityError: names, shapes or types are not those of this optimiser and model, a value is not finite, or a variance
                is negative.
        """
        expected = self.start(1).arrays()
        if set(arrays) != set(expected):
            raise IntegrityError(
                f"the stored state of {self.name} has the arrays {sorted(arrays)}, not {sorted(expected)}",
                remedy="resume with the optimiser that the run began with",
                code="checkpoint",
            )
        for name, array in arrays.items():
            if array.shape != (size,) or array.dtype != np.float64 or not np.isfinite(array).all():
                raise IntegrityError(
                    f"the stored '{name}' of {self.name} is not {size} finite float64 values (found {array.dtype} {array.shape})",
                    remedy="resume from another checkpoint",
                    code="checkpoint",
                )
        if "variance" in arrays and (arrays["variance"] < 0).any():
            raise IntegrityError(
                f"the stored 'variance' of {self.name} is negative somewhere",
                remedy="resume from another checkpoint",
                code="checkpoint",
            )
        return OptimiserState(momentum=arrays.get("momentum"), variance=arrays.get("variance"))

    def _check(self, state: OptimiserState, size: int) -> None:
        found = {name: array.shape for name, array in state.arrays().items()}
        expected = dict.fromkeys(self.start(1).arrays(), (size,))
        if found != expected:
            raise ValueError(f"the state of {self.name} holds {found}, expected {expected}")


@dataclass(frozen=True, kw_only=True)
class FedAvg(ServerOptimiser):
    """``x + η Δ`` (McMahan et al. 2017). With ``lr = 1`` the next model is exactly the model plus the mean update."""

    name: ClassVar[str] = "fedavg"

    def start(self, size: int) -> OptimiserState:  # noqa: ARG002 - every optimiser has this signature
        """Return the empty state: nothing is remembered."""
        return OptimiserState()

    def _move(self, direction: Direction, state: OptimiserState) -> tuple[Direction, OptimiserState]:
        return self.lr * direction, state


@dataclass(frozen=True, kw_only=True)
class FedAvgM(ServerOptimiser):
    """Server momentum (Hsu et al. 2019, §4.3): ``m = β m + Δ``, ``x + η m``.

    Attributes:
        momentum: β in [0, 1); 0 is `FedAvg`.
    """

    name: ClassVar[str] = "fedavgm"
    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        _in_range("momentum", self.momentum, below=1.0)

    def start(self, size: int) -> OptimiserState:
        """Return m = 0."""
        return OptimiserState(momentum=np.zeros(size))

    def _move(self, direction: Direction, state: OptimiserState) -> tuple[Direction, OptimiserState]:
        momentum = self.momentum * _present(state.momentum) + direction
        return self.lr * momentum, OptimiserState(momentum=momentum)


@dataclass(frozen=True, kw_only=True)
class _Adaptive(ServerOptimiser):
    """What the three adaptive optimisers share: lines 1, 11 and 15 of Algorithm 2.

    Attributes:
        beta1: β₁ in [0, 1), momentum.
        tau: τ > 0, adaptivity: the larger, the closer to momentum alone. v starts at τ².
    """

    beta1: float = 0.9
    tau: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        _in_range("beta1", self.beta1, below=1.0)
        _in_range("tau", self.tau, above=0.0)

    def start(self, size: int) -> OptimiserState:
        """Return m = 0 and v = τ² (Algorithm 2, line 1)."""
        return OptimiserState(momentum=np.zeros(size), variance=np.full(size, self.tau**2))

    @abstractmethod
    def _variance(self, variance: Direction, squared: Direction) -> Direction:
        """Return v_t from v_{t-1} and Δ_t²."""

    def _move(self, direction: Direction, state: OptimiserState) -> tuple[Direction, OptimiserState]:
        momentum = self.beta1 * _present(state.momentum) + (1 - self.beta1) * direction  # line 11
        variance = self._variance(_present(state.variance), np.square(direction))  # line 12, 13 or 14
        moved: Direction = self.lr * momentum / (np.sqrt(variance) + self.tau)  # line 15
        return moved, OptimiserState(momentum=momentum, variance=variance)


@dataclass(frozen=True, kw_only=True)
class FedAdagrad(_Adaptive):
    """Reddi et al. (2021), Algorithm 2, line 12: every past Δ² counts in full."""

    name: ClassVar[str] = "fedadagrad"

    def _variance(self, variance: Direction, squared: Direction) -> Direction:
        return variance + squared


@dataclass(frozen=True, kw_only=True)
class FedAdam(_Adaptive):
    """Reddi et al. (2021), Algorithm 2, line 14: past Δ² fade by β₂; no bias correction.

    Attributes:
        beta2: β₂ in [0, 1).
    """

    name: ClassVar[str] = "fedadam"
    beta2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        _in_range("beta2", self.beta2, below=1.0)

    def _variance(self, variance: Direction, squared: Direction) -> Direction:
        faded: Direction = self.beta2 * variance + (1 - self.beta2) * squared
        return faded


@dataclass(frozen=True, kw_only=True)
class FedYogi(_Adaptive):
    """Reddi et al. (2021), Algorithm 2, line 13: v moves towards Δ² by (1 - β₂) Δ², whatever their distance.

    Attributes:
        beta2: β₂ in [0, 1).
    """

    name: ClassVar[str] = "fedyogi"
    beta2: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        _in_range("beta2", self.beta2, below=1.0)

    def _variance(self, variance: Direction, squared: Direction) -> Direction:
        moved: Direction = variance - (1 - self.beta2) * squared * np.sign(variance - squared)
        return moved


def optimiser_from(table: ServerOptimizer) -> ServerOptimiser:
    """Return the optimiser that ``aggregation.optimizer`` names, with the keys of the table that are its own."""
    match table.name:
        case "fedavg":
            return FedAvg(lr=table.lr)
        case "fedavgm":
            return FedAvgM(lr=table.lr, momentum=table.momentum)
        case "fedadagrad":
            return FedAdagrad(lr=table.lr, beta1=table.beta1, tau=table.tau)
        case "fedadam":
            return FedAdam(lr=table.lr, beta1=table.beta1, beta2=table.beta2, tau=table.tau)
        case "fedyogi":
            return FedYogi(lr=table.lr, beta1=table.beta1, beta2=table.beta2, tau=table.tau)


def _in_range(name: str, value: float, *, above: float | None = None, below: float | None = None) -> None:
    fits = (
        np.isfinite(value)
        and (value > above if above is not None else value >= 0)
        and (below is None or value < below)
    )
    if not fits:
        limits = f"above {above:g}" if above is not None else f"at least 0 and below {below:g}"
        raise ValueError(f"{name} = {value} must be {limits}")


def _present(array: Direction | None) -> Direction:
    if array is None:
        raise ValueError("the state belongs to another optimiser")
    return array
