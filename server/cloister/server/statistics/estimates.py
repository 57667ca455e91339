"""From noisy counts to counts, shares and quantiles, each with the interval that its noise leaves.

Formal guarantees, for counts c of k cells that are released as c + N(0, s²), independent, s public:

- An interval of a count holds the count of the records that answered with probability ``confidence``.
- The interval of the quantile q holds a q-quantile of those records with probability at least ``confidence``, as good as the normal approximation of
  a ratio is: its ends are edges of bins, found by asking at each edge whether the share below it can be q. It has no narrower unit than a bin.
- All of it is post-processing: it reads the released counts and public numbers only.

What an interval does not cover: that the records are a sample of anything, that some were left out for missing values, and that somebody
lied. Each interval is for its own number; of twenty, one is expected to miss.

=========================================  ==================================================
case                                       outcome
=========================================  ==================================================
fewer records than the noise can tell      quantiles are ``None``
a negative noisy count                     shown as it is; the interval is cut at 0
shares below an edge that are not monotone  made so (isotonic regression) for the estimate, not for the interval
=========================================  ==================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MISSING", "column_estimate", "records_estimate"]

Counts = npt.NDArray[np.float64]

MISSING = "missing"


def records_estimate(
    questions: Sequence[Mapping[str, Any]], counts: Counts, std: float, *, confidence: float
) -> dict[str, float]:
    """Return the number of records: every question counts each of them once, and the answers are averaged.

    Args:
        questions: as `cloister.core.tasks.statistics.Question.as_dict` gives them.
        counts: (size,) the noisy counts of all cells.
        std: s.
        confidence: of the interval.
    """
    cells = sum(len(one["labels"]) for one in questions)
    return _interval(
        float(counts[:cells].sum()) / len(questions), std * cells**0.5 / len(questions), confidence
    )


def column_estimate(
    question: Mapping[str, Any], counts: Counts, std: float, *, quantiles: Sequence[float], confidence: float
) -> dict[str, Any]:
    """Return what is known of one column.

    Args:
        question: what was asked.
        counts: (size,) the noisy counts of all cells.
        std: s.
        quantiles: which to estimate, for a numeric column; each above 0 and below 1.
        confidence: of each interval.
    """
    labels, start = question["labels"], question["start"]
    own = counts[start : start + len(labels)]
    total = float(own.sum())
    cells = [
        {
            "label": label,
            **_interval(float(count), std, confidence),
            "share": float(count) / total if total > 0 else None,
        }
        for label, count in zip(labels, own, strict=True)
    ]
    found: dict[str, Any] = {
        "name": question["name"],
        "kind": "numeric" if question["edges"] else "categories",
        "cells": cells,
    }
    if question["edges"]:
        edges = np.array(question["edges"])
        found["edges"] = edges.tolist()
        found["quantiles"] = _quantiles(own[: len(edges) - 1], edges, std, quantiles, confidence)
    return found


def _interval(value: float, std: float, confidence: float) -> dict[str, float]:
    far = NormalDist().inv_cdf((1 + confidence) / 2) * std
    return {"value": value, "low": max(0.0, value - far), "high": max(0.0, value + far)}


def _quantiles(
    bins: Counts, edges: Counts, std: float, wanted: Sequence[float], confidence: float
) -> list[dict[str, float]] | None:
    from scipy.optimize import isotonic_regression

    total, count = float(bins.sum()), len(bins)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    if total <= 2 * z * std * count**0.5:
        return None
    below = np.concatenate([[0.0], np.cumsum(bins)]) / total
    places = np.arange(count + 1)
    # F = S/(S + R), S and R independent with variances s²j and s²(B - j): the delta method
    spread = z * std / total * np.sqrt(places * (1 - below) ** 2 + (count - places) * below**2)
    monotone = np.clip(isotonic_regression(below).x, 0, 1)
    monotone[0], monotone[-1] = 0.0, 1.0
    found = []
    for share in wanted:
        low = edges[int(np.argmin(below + spread < share)) - 1]  # all edges up to this one are surely below
        high = edges[
            count + 1 - int(np.argmin((below - spread > share)[::-1]))
        ]  # and all from this one on above
        value = float(np.clip(_inverse(monotone, edges, share), low, high))
        found.append({"share": share, "value": value, "low": float(low), "high": float(high)})
    return found


def _inverse(below: Counts, edges: Counts, share: float) -> float:
    """Return where the line through (edge, share below it) reaches ``share``; the middle, where it lies flat there."""
    first = int(np.searchsorted(below, share, side="left"))
    last = int(np.searchsorted(below, share, side="right"))
    if last > first:  # it is reached at edges
        return float((edges[first] + edges[last - 1]) / 2)
    step = (share - below[first - 1]) / (below[first] - below[first - 1])
    return float(edges[first - 1] + step * (edges[first] - edges[first - 1]))
