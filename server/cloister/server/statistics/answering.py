"""The answer of a finished run: its noisy counts, read from the run folder, with what its noise and its promise were."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from cloister.core.errors import IntegrityError, UsageError
from cloister.core.files import write_whole
from cloister.core.finding import STATISTICS
from cloister.core.spec import Loaded, load_federation
from cloister.privacy.record_plans import distributed_record_plan
from cloister.server.events import read_events
from cloister.server.statistics.estimates import column_estimate, records_estimate
from cloister.server.statistics.page import render_page

__all__ = ["FIGURES", "PAGE", "QUANTILES", "answer", "write_answer"]

FIGURES, PAGE = "statistics.json", "statistics.html"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def answer(run: Path, *, quantiles: Sequence[float] = QUANTILES, confidence: float = 0.95) -> dict[str, Any]:
    """Return the answer that a finished run holds.

    Args:
        run: the run folder, of a simulation or downloaded from a server.
        quantiles: which to estimate.
        confidence: of each interval.

    Raises:
        UsageError: the run is no question, or did not end with an answer.
        IntegrityError: its files do not hold together.
    """
    loaded = load_federation(run / "federation.toml")
    if loaded.spec.task.use != STATISTICS:
        raise UsageError(f"'{run}' is no run of a question", remedy="make one with: cloister statistics FILE")
    events = list(read_events(run / "events.jsonl"))
    begun = next((event for event in events if event["kind"] == "run"), None)
    ended = next((event for event in reversed(events) if event["kind"] == "end"), None)
    rounds = [event for event in events if event["kind"] == "round"]
    if begun is None or ended is None or ended["status"] != "done" or not rounds:
        raise UsageError(
            f"the run '{run}' has not come to its end", remedy=f"go on with: cloister simulate --resume {run}"
        )
    questions = _questions(begun)
    counts, std = _released(run, loaded, rounds[-1], sum(len(one["labels"]) for one in questions))
    plan = distributed_record_plan(loaded.spec)
    answered = int(rounds[-1]["answered"])
    return {
        "federation": loaded.spec.federation.name,
        "digest": loaded.digest(),
        "run": str(run),
        "of": dict(loaded.spec.task.options["of"]),
        "sites": answered,
        "protected": loaded.spec.aggregation.protection,
        "reproducible": bool(begun.get("reproducible")),
        "privacy": {
            "unit": plan.unit,
            "epsilon": plan.spent(1).epsilon,
            "epsilon_of_the_sum": plan.spent_by({answered: 1}).epsilon,
            "delta": plan.delta,
            "noise_multiplier": plan.noise_multiplier,
            "records_per_person": plan.records_per_person,
        },
        "noise_std": std,
        "confidence": confidence,
        "records": records_estimate(questions, counts, std, confidence=confidence),
        "columns": [
            column_estimate(one, counts, std, quantiles=quantiles, confidence=confidence) for one in questions
        ],
    }


def write_answer(found: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Write ``statistics.json`` and ``statistics.html`` into ``folder`` and return their paths.

    Raises:
        StorageError: they cannot be written.
    """
    write_whole(folder / FIGURES, json.dumps(found, ensure_ascii=False, allow_nan=False, indent=1) + "\n")
    write_whole(folder / PAGE, render_page(found))
    return {"figures": str(folder / FIGURES), "page": str(folder / PAGE)}


def _questions(begun: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = (begun.get("task") or {}).get("questions")
    whole = isinstance(found, list) and all(
        isinstance(one, dict) and {"name", "labels", "edges", "start"} <= one.keys() for one in found
    )
    if not whole or not found:
        raise IntegrityError("the run's events do not say what was asked", code="statistic-unreadable")
    return list(found)


def _released(
    run: Path, loaded: Loaded, last: Mapping[str, Any], size: int
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float]:
    """Return the noisy counts, and the standard deviation of what each is off by."""
    plan = distributed_record_plan(loaded.spec)
    try:
        weight = load((run / "model.safetensors").read_bytes())["weight"].reshape(-1).astype(np.float64)
    except (OSError, SafetensorError, KeyError) as error:
        raise IntegrityError(
            f"the run's model cannot be read ({type(error).__name__})",
            remedy="run the question again",
            code="statistic-unreadable",
        ) from None
    noise = last.get("noise_std")
    if weight.shape != (size,) or not isinstance(noise, float) or not np.isfinite(weight).all():
        raise IntegrityError("the run's model is not the answer to its question", code="statistic-unreadable")
    rounding = int(last["answered"]) / (
        4 * plan.code.scale**2
    )  # each site rounds once at random: at most a variance of 1/4 unit²
    shrunk = min(1.0, plan.clip / math.sqrt(len(loaded.spec.task.options["columns"])))
    return -weight * plan.divisor / shrunk, math.sqrt(noise**2 + rounding) / shrunk
