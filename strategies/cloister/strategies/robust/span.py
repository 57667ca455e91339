"""Combinations of rows, kept as weights: a pipeline reads the updates twice, whatever its length.

Every step but the last is linear in the rows once its weights are known, and the weights follow from inner products. So steps work on
(m, n) weights and one (n + 1)² matrix of inner products; the updates are read once for that matrix and once for the answer.

Distances. For float32 rows that differ by 1e-4 of their size, ``|x|² + |y|² - 2x·y`` loses eight digits, and a mean of all rows as the
centre may be moved by one lying site until it has no digit left. Inner products are therefore float64 and taken about one row c, that
of the median norm: as long as fewer than half of the rows lie, c is no longer than the longest honest row. A row is x = y + c, and
differences are taken between weights, where what two combinations share cancels exactly.

Ties. Squared distances are rounded to 40 bits, so that rows which are equally far are equally far for the computer too; of equals the row
that stands first counts as the nearer. Rows stand in the cohort's order, which no site chooses.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cloister.strategies.mean import Direction
from cloister.strategies.robust.rows import Matrix, RowsLike, UpdateRows

__all__ = ["Span", "settled"]

_BITS = 40


@dataclass(frozen=True)
class Span:
    """m combinations of n rows.

    Attributes:
        rows: the n rows.
        inner: (n + 1, n + 1) inner products of the rows about the centre, and last of the centre itself.
        weights: (m, n): combination i is ``Σ_j weights[i, j] rows[j]``.
    """

    rows: UpdateRows
    inner: Matrix
    weights: Matrix

    @classmethod
    def of(cls, vectors: RowsLike, *, more: RowsLike = ()) -> Span:
        """Return the span of ``vectors``, each with weight 1 on itself.

        Args:
            vectors: (n, dim).
            more: further rows that combinations may use, without being combinations themselves: a trusted update, a centre.

        Raises:
            ValueError: what `UpdateRows` refuses.
        """
        rows = UpdateRows([*vectors, *more])
        own = len(vectors)
        centre = int(np.argsort(rows.squares[:own], kind="stable")[own // 2])
        inner = np.zeros((len(rows) + 1, len(rows) + 1))
        with np.errstate(over="ignore", invalid="ignore"):
            for start, stop in rows.pieces():
                block = rows.block(start, stop)
                point = block[centre].copy()
                about = block - point
                inner[:-1, :-1] += about @ about.T
                inner[:-1, -1] += about @ point
                inner[-1, -1] += point @ point
        inner[-1, :-1] = inner[:-1, -1]
        if not np.isfinite(inner).all():
            raise ValueError("the updates' inner products are out of range")
        return cls(rows, inner, np.eye(own, len(rows)))

    def __len__(self) -> int:
        return len(self.weights)

    def mixed(self, weights: Matrix) -> Span:
        """Return (k, m) ``weights`` of these combinations as combinations of the rows."""
        return replace(self, weights=weights @ self.weights)

    def scaled(self, factors: Matrix) -> Span:
        """Return each combination times its own of the (m,) ``factors``."""
        return replace(self, weights=factors[:, None] * self.weights)

    def squared_norms(self) -> Matrix:
        """Return (m,) squared norms."""
        return self.squares_of(self.weights)

    def squares_of(self, weights: Matrix) -> Matrix:
        """Return (k,) squared norms of any combinations, (k, n)."""
        held = _extended(weights)
        found: Matrix = np.maximum(np.einsum("ij,ij->i", held @ self.inner, held), 0.0)
        return found

    def products(self, one: Matrix, others: Matrix) -> Matrix:
        """Return (k, l) inner products of combinations (k, n) with combinations (l, n)."""
        found: Matrix = _extended(one) @ self.inner @ _extended(others).T
        return found

    def centred(self) -> Matrix:
        """Return (m, m) inner products of the combinations about that of the median norm."""
        held = _extended(self.weights)
        order = np.argsort(self.squared_norms(), kind="stable")
        about = held - held[order[len(held) // 2]]
        found: Matrix = about @ self.inner @ about.T
        return (found + found.T) / 2

    def squared_distances(self) -> Matrix:
        """Return (m, m) squared distances, `settled`, with zeros on the diagonal."""
        held = self.centred()
        own = np.diag(held)
        found = np.maximum(own[:, None] + own[None, :] - 2 * held, 0.0)
        # What is left of two equal combinations is rounding: nothing is nearer than that.
        found[found <= 8 * np.finfo(np.float64).eps * (own[:, None] + own[None, :])] = 0.0
        np.fill_diagonal(found, 0.0)
        return settled(found)

    def direction(self, weights: npt.NDArray[np.float64]) -> Direction:
        """Return the combination of combinations with (m,) ``weights``, (dim,) float64."""
        return self.of_rows(weights @ self.weights)

    def of_rows(self, weights: npt.NDArray[np.float64]) -> Direction:
        """Return the combination of the rows with (n,) ``weights``, (dim,) float64; rows of weight 0 are not read."""
        found: Direction = np.zeros(self.rows.size)
        used = np.flatnonzero(weights)
        for start, stop in self.rows.pieces():
            for place in used:
                found[start:stop] += weights[place] * self.rows.vectors[place][start:stop].astype(np.float64)
        return found

    def block(self, start: int, stop: int) -> Matrix:
        """Return these columns of the combinations, (m, stop - start) float64."""
        block = self.rows.block(start, stop)
        plain = self.weights.shape[0] == self.weights.shape[1] and np.array_equal(
            self.weights, np.eye(len(self.weights))
        )
        return block if plain else self.weights @ block

    def whole(self) -> Matrix:
        """Return all combinations, (m, dim) float64: as large as it sounds."""
        found = np.empty((len(self), self.rows.size))
        for start, stop in self.rows.pieces():
            found[:, start:stop] = self.block(start, stop)
        return found


def settled(values: Matrix) -> Matrix:
    """Round each value to 40 binary digits of its own: values that differ by rounding only become equal."""
    digits, exponent = np.frexp(values)
    found: Matrix = np.ldexp(np.rint(np.ldexp(digits, _BITS)), exponent - _BITS)
    return found


def _extended(weights: Matrix) -> Matrix:
    return np.concatenate([weights, weights.sum(axis=1, keepdims=True)], axis=1)
