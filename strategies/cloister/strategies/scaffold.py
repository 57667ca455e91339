"""SCAFFOLD: control variates against the drift of sites whose data differ.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh (2020), *SCAFFOLD: Stochastic Controlled Averaging for Federated Learning*,
Algorithm 1, with option II for the clients' controls::

    line 10   y_i ← y_i - η_l (g_i(y_i) - c_i + c)         a local step: `correction` is what is added to the gradient
    line 12   c_i⁺ ← c_i - c + (x - y_i) / (K η_l)         after K steps: `client_control`
    line 13   send Δy_i = y_i - x and Δc_i = c_i⁺ - c_i
    line 16   Δx, Δc ← plain means over the cohort S
    line 17   x ← x + η_g Δx  and  c ← c + |S|/N Δc        `server_step`, `server_control`

x is the round's model, c the server's control, c_i a client's (both zero before the first round), N the number of clients. Where
every client keeps its c_i, c stays the mean of all c_i, to rounding. A client whose reply was lost or refused has moved its own c_i
all the same; the method tolerates it, that identity does not.

The functions work element by element, so they take flat vectors as well as arrays of any one shape: with a model of several
arrays, call them once an array. Arithmetic is float64; what is sent and kept at a client is float32. Option II holds for plain
gradient steps only (no momentum, no adaptive optimiser). Wrong arguments raise `ValueError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.core.errors import IntegrityError
from cloister.core.update import Vector
from cloister.strategies.mean import Direction
from cloister.strategies.optimisers import FedAvg

__all__ = ["ScaffoldState", "client_control", "correction", "server_control", "server_step"]


@dataclass(frozen=True, kw_only=True)
class ScaffoldState:
    """What the server remembers between rounds.

    Attributes:
        control: c, (size,) float64.
    """

    control: Direction

    @classmethod
    def start(cls, size: int) -> ScaffoldState:
        """Return c = 0 for a model of ``size`` elements."""
        return cls(control=np.zeros(size))

    def sent(self) -> Vector:
        """Return c as the clients receive it, (size,) float32."""
        return self.control.astype(np.float32)

    def arrays(self) -> dict[str, Direction]:
        """Return the state as named arrays, for a checkpoint."""
        return {"control": self.control}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], size: int) -> ScaffoldState:
        """Return the state that `arrays` named.

        Raises:
            IntegrityError: another name, shape or type, or a value that is not finite.
        """
        control = arrays.get("control")
        if set(arrays) != {"control"} or control is None:
            raise IntegrityError(
                f"the stored state of scaffold has the arrays {sorted(arrays)}, not ['control']",
                remedy="resume with training.scaffold as the run began",
                code="checkpoint",
            )
        if control.shape != (size,) or control.dtype != np.float64 or not np.isfinite(control).all():
            raise IntegrityError(
                f"the stored control is not {size} finite float64 values (found {control.dtype} {control.shape})",
                remedy="resume from another checkpoint",
                code="checkpoint",
            )
        return cls(control=control)


def correction(server: Vector, client: Vector) -> Vector:
    """Return ``c - c_i``, what a client adds to every gradient of the round (line 10).

    Args:
        server: c as received, float32.
        client: c_i, float32, of the same shape.
    """
    _same_shape(server=server, client=client)
    return (server.astype(np.float64) - client).astype(np.float32)


def client_control(
    *, client: Vector, server: Vector, start: Vector, end: Vector, steps: int, lr: float
) -> tuple[Vector, Vector]:
    """Return the client's next control ``c_i⁺ = c_i - c + (x - y_i) / (K η_l)`` and the change ``Δc_i`` to send (lines 12, 13).

    Args:
        client: c_i, float32.
        server: c as received, float32.
        start: x, the round's model, float32.
        end: y_i, the model after the local steps, float32.
        steps: K, how many local steps were taken.
        lr: η_l, the same in all of them.

    Returns:
        (c_i⁺, Δc_i), both float32, in the arguments' shape; ``Δc_i`` is the difference of the float32 controls.

    Raises:
        ValueError: shapes differ, ``steps`` is below 1, ``lr`` is not a positive number, or the result is not finite in float32.
    """
    _same_shape(client=client, server=server, start=start, end=end)
    if steps < 1:
        raise ValueError(f"steps = {steps}: a control needs at least one local step")
    if not (np.isfinite(lr) and lr > 0):
        raise ValueError(f"lr = {lr} must be a positive number")
    with np.errstate(over="ignore", invalid="ignore"):
        following = (
            client.astype(np.float64) - server + (start.astype(np.float64) - end) / (steps * lr)
        ).astype(np.float32)
        change = (following.astype(np.float64) - client).astype(np.float32)
    if not (np.isfinite(following).all() and np.isfinite(change).all()):
        raise ValueError("the client's control is not finite: its local training diverged")
    return following, change


def server_control(
    state: ScaffoldState, mean_change: Direction, *, cohort: int, population: int
) -> ScaffoldState:
    """Return the state with ``c + |S|/N Δc`` (line 17, right).

    Args:
        state: c before the round.
        mean_change: Δc, the plain mean of the cohort's ``Δc_i``, (size,) float64.
        cohort: |S|, how many clients' changes are in that mean.
        population: N, how many clients there are.

    Raises:
        ValueError: a wrong shape, a value that is not finite, or not ``1 ≤ cohort ≤ population``.
    """
    _same_shape(control=state.control, mean_change=mean_change)
    if not 1 <= cohort <= population:
        raise ValueError(f"cohort = {cohort} does not lie between 1 and population = {population}")
    if not np.isfinite(mean_change).all():
        raise ValueError("the mean change of the controls holds a value that is not finite")
    return ScaffoldState(control=state.control + (cohort / population) * mean_change)


def server_step(
    model: Vector,
    mean_update: Direction,
    state: ScaffoldState,
    mean_change: Direction,
    *,
    cohort: int,
    population: int,
    lr: float = 1.0,
) -> tuple[Vector, ScaffoldState]:
    """Return the next model ``x + η_g Δx`` and the next state (line 17); the arguments are left as they are.

    Args:
        model: x, (size,) float32.
        mean_update: Δx, the plain mean of the cohort's ``Δy_i``, (size,) float64.
        state: c before the round.
        mean_change: Δc, the plain mean of the cohort's ``Δc_i``, (size,) float64.
        cohort: |S|.
        population: N.
        lr: η_g.

    Raises:
        ValueError: a wrong shape or dtype, a value that is not finite, or not ``1 ≤ cohort ≤ population``.
        SpecError: the next model leaves float32's range.
    """
    optimiser = FedAvg(lr=lr)
    following, _ = optimiser.step(model, mean_update, optimiser.start(len(model)))
    return following, server_control(state, mean_change, cohort=cohort, population=population)


def _same_shape(**arrays: npt.NDArray[Any]) -> None:
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(
            "these must have one shape: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        )
