"""A round under a robust rule: rows are kept, all weigh the same, draws are keyed by the round, memory is that of the rows."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cloister.core import protocol
from cloister.core.errors import IntegrityError
from cloister.core.randomness import SeededRandomness
from cloister.core.spec import parse_federation
from cloister.server.gathering import Gatherer, gatherer_from
from cloister.server.replies import CheckedUpdate
from cloister.strategies.mean import Direction
from cloister.strategies.robust import Pipeline

ROWS = np.random.default_rng(0).standard_normal((9, 40)).astype(np.float32)


def gatherer(rule: str, f: int = 2, size: int = 40, seed: int = 0) -> Gatherer:
    document = {
        "federation": {"name": "t", "rounds": 3},
        "task": {"use": "digits"},
        "aggregation": {"rule": rule, "byzantine": f},
    }
    return gatherer_from(
        parse_federation(document, base=Path()).spec, size=size, randomness=SeededRandomness(seed)
    )


def direction(made: Gatherer, number: int, rows: npt.NDArray[np.float32] = ROWS) -> Direction:
    gathering = made.start(number, (protocol.VECTOR,))
    for place, row in enumerate(rows):
        assert gathering.add(checked(row, records=10**place)) is None
    return gathering.finish().directions[protocol.VECTOR]


def checked(row: npt.NDArray[Any], records: int = 1) -> CheckedUpdate:
    return CheckedUpdate(arrays={protocol.VECTOR: row}, loss=None, records=records)


@pytest.mark.parametrize("rule", ["median", "arc | nnm | trimmed-mean", "krum", "geometric-median"])
def test_the_direction_is_the_pipeline_s_whatever_sites_say_of_their_records(rule: str) -> None:
    assert (direction(gatherer(rule), 1) == Pipeline.parse(rule).aggregate(ROWS, f=2)).all()


def test_what_a_rule_draws_is_keyed_by_the_round_and_the_seed() -> None:
    rule = "bucketing(2) | median"
    first = direction(gatherer(rule), 1)
    assert (direction(gatherer(rule), 1) == first).all()
    assert not (direction(gatherer(rule), 2) == first).all()
    assert not (direction(gatherer(rule, seed=1), 1) == first).all()


def test_centered_clipping_goes_on_from_the_last_round_also_after_a_resume() -> None:
    whole = gatherer("centered-clipping(1)")
    first, second = direction(whole, 1), direction(whole, 2)
    assert not (first == second).all()
    resumed = gatherer("centered-clipping(1)")
    resumed.restore(whole.arrays() | {"direction": first})
    assert (direction(resumed, 2) == second).all()
    with pytest.raises(IntegrityError, match="stored direction"):
        resumed.restore({"direction": np.zeros(3)})


def test_a_rule_without_a_past_keeps_nothing() -> None:
    made = gatherer("median")
    direction(made, 1)
    assert made.arrays() == {}


def test_an_attempt_that_did_not_count_leaves_no_trace() -> None:
    made = gatherer("centered-clipping(1)")
    made.start(1, (protocol.VECTOR,)).add(checked(ROWS[0]))
    assert made.arrays() == {}
    assert (direction(made, 1) == direction(gatherer("centered-clipping(1)"), 1)).all()


def test_a_row_is_kept_though_its_message_is_written_over() -> None:
    made = gatherer("median").start(1, (protocol.VECTOR,))
    row = ROWS[0].copy()
    for _ in range(5):
        made.add(checked(row))
    row[:] = 1e6
    assert made.finish().directions[protocol.VECTOR] == pytest.approx(ROWS[0])


def test_memory_is_that_of_the_rows() -> None:
    size, count = 300_000, 7
    made = gatherer("arc | nnm | trimmed-mean", size=size)
    tracemalloc.start()
    try:
        gathering = made.start(1, (protocol.VECTOR,))
        for place in range(count):
            gathering.add(checked(np.full(size, place, np.float32)))
        gathering.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < count * size * 4 + size * 8 + 16 * (1 << 20)
