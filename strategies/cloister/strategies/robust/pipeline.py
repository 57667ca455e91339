"""A pipeline of stages, as ``aggregation.rule`` writes it: ``"arc | nnm | trimmed-mean"``.

A rule F is (f, κ)-robust if for every S of n - f rows ``|F - mean_S|² ≤ κ · (mean squared deviation of S)`` (Allouah et al. 2023, Definition 2);
no rule has κ below f / (n - 2f). What is known of the stages, with r = f / (n - 2f):

==============================  ============================
pipeline                        κ
==============================  ============================
any of these, f = 0             0 where it is the mean then
trimmed-mean                    6r (1 + r)
krum                            6 (1 + r)
median, geometric-median        4 (1 + r)²
nnm before F                    8f / (n - f) · (κ_F + 1)
arc before F                    κ_F + 2r
anything else                   not known
==============================  ============================

(ibid., Appendix D and Lemma 5; Allouah et al. 2025, Theorem 3.2.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloister.core.errors import InfeasibleByzantineBound, SpecError
from cloister.core.spec.pipelines import Stage, fewest_rows, pipeline_text, read_pipeline
from cloister.strategies.mean import Direction
from cloister.strategies.robust.centres import centered_clipping_weights, geometric_median_weights
from cloister.strategies.robust.clipping import arc_factors, bound_factors
from cloister.strategies.robust.coordinates import by_coordinate, middle, trimmed
from cloister.strategies.robust.mixing import bucketing_weights, nnm_weights
from cloister.strategies.robust.rows import Matrix, RowsLike
from cloister.strategies.robust.selecting import bulyan_of, krum_choice, mean_of, multi_krum_choice
from cloister.strategies.robust.span import Span
from cloister.strategies.robust.spectral import dnc_weights
from cloister.strategies.robust.trust import fltrust_weights

__all__ = ["Joined", "Pipeline", "aggregate_groups"]

Point = npt.NDArray[np.float32] | npt.NDArray[np.float64]


@dataclass(frozen=True)
class Joined:
    """What a pipeline made of its rows.

    Attributes:
        direction: (dim,) float64.
        shares: (n,) the weight of each row in it; where the last rule looks at each coordinate by itself, that in what it was given.
    """

    direction: Direction
    shares: Matrix


@dataclass(frozen=True)
class Pipeline:
    """Steps and a rule.

    Attributes:
        stages: in the order in which they are applied; a rule stands last.
    """

    stages: tuple[Stage, ...]

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Read a pipeline.

        Raises:
            SpecError: it is none (code ``rule``).
        """
        try:
            return cls(read_pipeline(text))
        except ValueError as error:
            raise SpecError(
                str(error), remedy='write for example "arc | nnm | trimmed-mean"', code="rule"
            ) from None

    @property
    def name(self) -> str:
        """The pipeline as the federation file writes it."""
        return pipeline_text(self.stages)

    @property
    def draws(self) -> bool:
        """Whether it draws: a generator must be given."""
        return any(stage.name in ("bucketing", "dnc") for stage in self.stages)

    @property
    def remembers(self) -> bool:
        """Whether it goes on from the last round's direction."""
        return self.stages[-1].name == "centered-clipping"

    @property
    def trusts(self) -> bool:
        """Whether it needs an update that the server trusts."""
        return self.stages[-1].name == "fltrust"

    def least(self, f: int) -> int | None:
        """Return the fewest rows that it needs for ``f`` lying ones; ``None``: no number is enough."""
        return fewest_rows(self.stages, f)

    def check(self, *, n: int, f: int) -> None:
        """Refuse (n, f) that it cannot bear.

        Raises:
            InfeasibleByzantineBound: n is too small for f, or no n would do.
            ValueError: n or f is negative.
        """
        if n < 0 or f < 0:
            raise ValueError(f"n = {n} and f = {f} must not be negative")
        needed = self.least(f)
        if needed is None or n < needed:
            raise InfeasibleByzantineBound.of(self.name, n=n, f=f, needed=needed)

    def kappa(self, *, n: int, f: int) -> float | None:
        """Return κ for f lying rows of n, or ``None`` where no bound is known.

        Raises:
            InfeasibleByzantineBound: it cannot bear (n, f).
        """
        self.check(n=n, f=f)
        kappa = _kappa_of_rule(self.stages[-1].name, n, f)
        for stage in reversed(self.stages[:-1]):
            if kappa is None:
                return None
            if stage.name == "nnm":
                kappa = 8 * f / (n - f) * (kappa + 1)
            elif stage.name == "arc":
                kappa += 2 * f / (n - 2 * f)
            else:
                return None
        return kappa

    def aggregate(
        self,
        rows: RowsLike,
        *,
        f: int,
        generator: np.random.Generator | None = None,
        start: Direction | None = None,
        trusted: Point | None = None,
    ) -> Direction:
        """Return the direction of the rows, (dim,) float64, all rows weighing the same.

        Rows are checked to be finite first, and read twice more. The same arguments give the same bits.

        Args:
            rows: (n, dim) float32 or float64, or n vectors; never written.
            f: how many of them may lie.
            generator: where ``bucketing`` and ``dnc`` draw from.
            start: (dim,) the last round's direction, where ``centered-clipping`` begins; ``None``: at zero.
            trusted: (dim,) the server's own update, which ``fltrust`` needs.

        Raises:
            InfeasibleByzantineBound: the pipeline cannot bear f lying rows of so many.
            ValueError: a row is not finite or of another shape, or an argument that a stage needs is missing.
        """
        return self.joined(rows, f=f, generator=generator, start=start, trusted=trusted).direction

    def joined(
        self,
        rows: RowsLike,
        *,
        f: int,
        generator: np.random.Generator | None = None,
        start: Direction | None = None,
        trusted: Point | None = None,
    ) -> Joined:
        """Return what `aggregate` does, and how much of each row is in it."""
        self.check(n=len(rows), f=f)
        more = [one for one, wanted in ((start, self.remembers), (trusted, self.trusts)) if wanted]
        span = Span.of(rows, more=[one for one in more if one is not None])
        for stage in self.stages[:-1]:
            span = _step(stage, span, f, generator)
        point = None if not more or more[0] is None else np.eye(len(span.rows))[-1]
        found = _rule(self.stages[-1], span, f, generator, point)
        return Joined(found.direction, found.shares[: len(rows)])


def aggregate_groups(
    pipeline: Pipeline, means: RowsLike, *, f: int, generator: np.random.Generator | None = None
) -> Direction:
    """Return the direction of group means: one lying site spoils its group, so f of the G groups may lie.

    Args:
        pipeline: its bound is on G groups, not on the sites in them.
        means: (G, dim) the mean of each group, all of one size: each weighs the same.
        f: how many sites may lie.
        generator: where stages draw from.

    Raises:
        InfeasibleByzantineBound: G groups are too few for f.
        ValueError: a mean is not finite or of another shape.
    """
    return pipeline.aggregate(means, f=f, generator=generator)


def _step(stage: Stage, span: Span, f: int, generator: np.random.Generator | None) -> Span:
    match stage.name:
        case "arc":
            return span.scaled(arc_factors(span.squared_norms(), f))
        case "nnm":
            return span.mixed(nnm_weights(span, f))
        case "norm-bound":
            return span.scaled(bound_factors(span.squared_norms(), _number(stage)))
        case "bucketing":
            return span.mixed(bucketing_weights(len(span), int(_number(stage)), _drawing(stage, generator)))
        case _:
            raise ValueError(f"'{stage}' is no step")


def _rule(
    stage: Stage, span: Span, f: int, generator: np.random.Generator | None, point: Matrix | None
) -> Joined:
    alike = span.weights.mean(axis=0)
    match stage.name:
        case "median":
            return Joined(by_coordinate(span, middle), alike)
        case "trimmed-mean":
            return Joined(by_coordinate(span, trimmed(f)), alike)
        case "bulyan":
            return Joined(bulyan_of(span, f), alike)
        case "centered-clipping":
            start = np.zeros(len(span.rows)) if point is None else point
            weights = centered_clipping_weights(span, stage.number, start)
            return Joined(span.of_rows(weights), weights)
        case _:
            weights = _linear(stage, span, f, generator, point) @ span.weights
            return Joined(span.of_rows(weights), weights)


def _linear(
    stage: Stage, span: Span, f: int, generator: np.random.Generator | None, point: Matrix | None
) -> Matrix:
    """Return the (m,) weights of a rule that is a combination of its rows."""
    match stage.name:
        case "mean":
            weights = np.full(len(span), 1 / len(span))
        case "norm-bound":
            weights = bound_factors(span.squared_norms(), _number(stage)) / len(span)
        case "geometric-median":
            weights = geometric_median_weights(span)
        case "krum":
            weights = mean_of(krum_choice(span, f), len(span))
        case "multi-krum":
            weights = mean_of(multi_krum_choice(span, f), len(span))
        case "dnc":
            weights = dnc_weights(span, f, _drawing(stage, generator))
        case "fltrust" if point is not None:
            weights = fltrust_weights(span, point)
        case "fltrust":
            raise ValueError("'fltrust' needs an update that the server trusts")
        case _:
            raise ValueError(f"there is no rule '{stage}'")
    return weights


def _kappa_of_rule(name: str, n: int, f: int) -> float | None:
    if name in ("mean", "trimmed-mean", "multi-krum", "bulyan", "dnc") and f == 0:
        return 0.0
    ratio = f / (n - 2 * f)
    match name:
        case "trimmed-mean":
            return 6 * ratio * (1 + ratio)
        case "krum":
            return 6 * (1 + ratio)
        case "median" | "geometric-median":
            return 4 * (1 + ratio) ** 2
        case _:
            return None


def _number(stage: Stage) -> float:
    if stage.number is None:
        raise ValueError(f"'{stage}' needs a number in brackets")
    return stage.number


def _drawing(stage: Stage, generator: np.random.Generator | None) -> np.random.Generator:
    if generator is None:
        raise ValueError(f"'{stage}' draws: it needs a generator")
    return generator
