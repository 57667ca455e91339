"""Intervals of noisy counts and quantiles: how often they hold the truth, and how wide they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from cloister.server.statistics.estimates import column_estimate, records_estimate

BINS, LOW, HIGH = 20, 0.0, 100.0
EDGES = np.linspace(LOW, HIGH, BINS + 1)
SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
TRIALS = 400


def question(**more: Any) -> dict[str, Any]:
    return {
        "name": "age",
        "labels": [f"b{n}" for n in range(BINS)],
        "edges": EDGES.tolist(),
        "start": 0,
    } | more


def records(seed: int = 1, n: int = 2000) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).beta(2, 5, n) * HIGH


def counts_of(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.histogram(values, EDGES)[0].astype(np.float64)


def quantiles(
    counts: npt.NDArray[np.float64], std: float, confidence: float = 0.95
) -> list[dict[str, float]]:
    found = column_estimate(question(), counts, std, quantiles=SHARES, confidence=confidence)["quantiles"]
    assert found is not None
    return list(found)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_an_interval_of_a_count_holds_the_count_as_often_as_it_says(confidence: float) -> None:
    """Of 400 x 20 intervals; false alarms of this test: about one in a million."""
    truth, draw, std = 1000 + counts_of(records()), np.random.default_rng(2), 9.0
    hits = total = 0
    for _ in range(TRIALS):
        found = column_estimate(
            question(), truth + draw.normal(0, std, BINS), std, quantiles=(), confidence=confidence
        )
        hits += sum(
            cell["low"] <= true <= cell["high"] for cell, true in zip(found["cells"], truth, strict=True)
        )
        total += BINS
    low, high = (stats.binom.ppf(tail, total, confidence) for tail in (5e-7, 1 - 5e-7))
    assert low <= hits <= high


@pytest.mark.parametrize("std", [2.0, 12.0])
def test_an_interval_of_a_quantile_holds_it_at_least_as_often_as_it_says_and_is_no_wider_than_it_must_be(
    std: float,
) -> None:
    values = records()
    truth, draw = counts_of(values), np.random.default_rng(3)
    exact = np.quantile(values, SHARES)
    hits, width = np.zeros(len(SHARES)), np.zeros(len(SHARES))
    for _ in range(TRIALS):
        for place, one in enumerate(quantiles(truth + draw.normal(0, std, BINS), std)):
            assert one["low"] <= one["value"] <= one["high"]
            hits[place] += one["low"] <= exact[place] <= one["high"]
            width[place] += (one["high"] - one["low"]) / TRIALS
    assert hits.min() >= stats.binom.ppf(1e-6, TRIALS, 0.95)
    # At most two bins beyond the range that the noise itself leaves: z·sd of the share below over the density there.
    density = len(values) * np.interp(
        exact, (EDGES[1:] + EDGES[:-1]) / 2, truth / len(values) / np.diff(EDGES)
    )
    below = np.array(SHARES)
    places = np.interp(exact, EDGES, np.arange(BINS + 1))
    spread = 1.96 * std * np.sqrt(places * (1 - below) ** 2 + (BINS - places) * below**2) / density
    step = EDGES[1] - EDGES[0]
    assert (width <= 2 * spread + 2.5 * step + 10 * (std > 5)).all()


def test_without_noise_a_quantile_is_found_within_its_bin() -> None:
    values = records()
    step = EDGES[1] - EDGES[0]
    for one, exact in zip(quantiles(counts_of(values), 1e-9), np.quantile(values, SHARES), strict=True):
        assert one["high"] - one["low"] <= 2 * step
        assert one["low"] <= exact <= one["high"]
        assert abs(one["value"] - exact) <= step


def test_quantiles_never_fall() -> None:
    truth, draw = counts_of(records()), np.random.default_rng(4)
    for _ in range(TRIALS):
        found = [one["value"] for one in quantiles(truth + draw.normal(0, 15.0, BINS), 15.0)]
        assert found == sorted(found)


def test_too_few_records_for_the_noise_have_no_quantiles() -> None:
    found = column_estimate(question(), counts_of(records(n=40)), 20.0, quantiles=SHARES, confidence=0.95)
    assert found["quantiles"] is None
    assert all(cell["low"] >= 0 for cell in found["cells"])


def test_records_with_a_missing_value_are_counted_and_are_in_no_quantile() -> None:
    values = records()
    labels = [*question()["labels"], "missing"]
    counts = np.append(counts_of(values), 5000.0)
    found = column_estimate(question(labels=labels), counts, 1e-9, quantiles=(0.5,), confidence=0.95)
    assert found["cells"][-1]["value"] == 5000
    assert abs(found["quantiles"][0]["value"] - np.median(values)) < EDGES[1]


def test_the_number_of_records_is_the_mean_of_all_answers_with_their_noise() -> None:
    both = [question(), question(name="b", start=BINS)]
    truth = np.concatenate([counts_of(records())] * 2)
    draw, std = np.random.default_rng(6), 5.0
    found = [
        records_estimate(both, truth + draw.normal(0, std, 2 * BINS), std, confidence=0.95)
        for _ in range(2000)
    ]
    hits = sum(one["low"] <= 2000 <= one["high"] for one in found)
    assert stats.binom.ppf(1e-6, 2000, 0.95) <= hits <= stats.binom.ppf(1 - 1e-6, 2000, 0.95)
    assert abs(np.mean([one["value"] for one in found]) - 2000) < 5 * std * np.sqrt(2 * BINS) / 2 / np.sqrt(
        2000
    )
