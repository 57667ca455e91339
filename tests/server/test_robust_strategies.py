"""Robust rules in somebody else's Flower app: the pure function's answer, f refused when the strategy is made, liars that move nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from tests.server.test_flower_strategies import HereGrid, numpy_of, record_of

from cloister.core.errors import InfeasibleByzantineBound, SpecError
from cloister.core.randomness import SeededRandomness
from cloister.server import robust_strategies as strategies
from cloister.server.robust_strategies import (
    BulyanStrategy,
    CenteredClippingStrategy,
    DnCStrategy,
    FLTrustStrategy,
    GeometricMedianStrategy,
    KrumStrategy,
    MedianStrategy,
    MultiKrumStrategy,
    NormBoundStrategy,
    RobustStrategy,
    TrimmedMeanStrategy,
)
from cloister.strategies.robust import Pipeline, centered_clipping, fltrust

pytestmark = pytest.mark.usefixtures("flower_task")

NODES, F = 11, 2
START = {"w": np.zeros((3, 4), np.float32), "b": np.ones(2, np.float32)}
SIZE = 14
UPDATES = np.random.default_rng(0).standard_normal((NODES, SIZE)).astype(np.float32) / 8
UPDATES[[2, 7]] = 50
CLEAN = np.linspace(-1, 1, SIZE).astype(np.float32)


def moved(arrays: dict[str, Any], update: Any) -> dict[str, Any]:
    return {
        "w": arrays["w"] + update[:12].reshape(3, 4).astype(np.float32),
        "b": arrays["b"] + update[12:].astype(np.float32),
    }


def run(strategy: RobustStrategy, rounds: int = 1) -> Any:
    """The change of the model after some rounds in which each node answers with its own update."""

    def client(message: Message, context: Any) -> Message:
        arrays = moved(numpy_of(message.content["arrays"]), UPDATES[context.node_id - 1])
        return Message(RecordDict({"arrays": record_of(arrays)}), reply_to=message)

    result = strategy.start(grid=HereGrid(client, NODES), initial_arrays=record_of(START), num_rounds=rounds)
    assert isinstance(result.arrays, ArrayRecord)
    end = numpy_of(result.arrays)
    return np.concatenate([(end["w"] - START["w"]).ravel(), (end["b"] - START["b"]).ravel()])


def options() -> dict[str, Any]:
    return {"byzantine": F, "fraction_evaluate": 0.0, "randomness": SeededRandomness(3)}


@pytest.mark.parametrize(
    ("made", "pipeline"),
    [
        (lambda: MedianStrategy(**options()), "median"),
        (lambda: TrimmedMeanStrategy(**options()), "trimmed-mean"),
        (lambda: GeometricMedianStrategy(**options()), "geometric-median"),
        (lambda: KrumStrategy(**options()), "krum"),
        (lambda: MultiKrumStrategy(**options()), "multi-krum"),
        (lambda: BulyanStrategy(**options()), "bulyan"),
        (lambda: DnCStrategy(**options()), "dnc"),
        (lambda: NormBoundStrategy(bound=0.5, **options()), "norm-bound(0.5)"),
        (lambda: CenteredClippingStrategy(radius=0.5, **options()), "centered-clipping(0.5)"),
        (lambda: RobustStrategy("arc | nnm | trimmed-mean", **options()), "arc | nnm | trimmed-mean"),
        (lambda: RobustStrategy("bucketing(2) | median", **options()), "bucketing(2) | median"),
    ],
)
def test_a_round_is_the_pure_function_s(made: Any, pipeline: str) -> None:
    draw = SeededRandomness(3).generator("rule", 1)
    expected = Pipeline.parse(pipeline).aggregate(UPDATES, f=F, generator=draw)
    assert run(made()) == pytest.approx(expected, abs=1e-5)


def test_fltrust_takes_the_server_s_own_update() -> None:
    strategy = FLTrustStrategy(trusted=lambda _number, arrays: moved(dict(arrays), CLEAN), **options())
    assert run(strategy) == pytest.approx(fltrust(UPDATES, CLEAN, F), abs=1e-5)
    with pytest.raises(ValueError, match="trusted"):
        FLTrustStrategy(**options())


def test_centered_clipping_begins_where_the_last_round_ended_and_a_new_run_begins_anew() -> None:
    strategy = CenteredClippingStrategy(radius=0.05, **options())
    first = centered_clipping(UPDATES, 0.05, F)
    second = centered_clipping(UPDATES, 0.05, F, start=first)
    assert np.abs(first - second).max() > 1e-3
    for _ in range(2):
        assert run(strategy, rounds=2) == pytest.approx(first + second, abs=1e-4)


def test_two_liars_move_the_mean_and_not_the_rule() -> None:
    honest = np.delete(UPDATES, [2, 7], axis=0)
    assert np.abs(run(RobustStrategy("arc | nnm | trimmed-mean", **options()))).max() < np.abs(honest).max()
    assert np.abs(run(RobustStrategy("mean", **{**options(), "byzantine": 0}))).min() > 5


@pytest.mark.parametrize("made", [MedianStrategy, KrumStrategy, BulyanStrategy])
def test_f_that_the_replies_cannot_bear_is_refused_when_the_strategy_is_made(made: Any) -> None:
    least = made(byzantine=2).min_replies
    assert made(byzantine=2, min_replies=least + 3).min_replies == least + 3
    with pytest.raises(InfeasibleByzantineBound) as caught:
        made(byzantine=2, min_replies=least - 1)
    assert (caught.value.n, caught.value.f, caught.value.needed) == (least - 1, 2, least)
    with pytest.raises(InfeasibleByzantineBound, match="no lying site"):
        RobustStrategy("mean", byzantine=1)


def test_what_does_not_go_with_a_robust_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="weight_of"):
        RobustStrategy("median", byzantine=1, weight_of=lambda _: 2.0)
    with pytest.raises(SpecError, match="'men' is no stage"):
        RobustStrategy("men", byzantine=1)


def test_too_few_replies_leave_the_model_as_it_is() -> None:
    strategy = BulyanStrategy(**options())
    asked = list(
        strategy.configure_train(1, record_of(START), ConfigRecord(), HereGrid(lambda m, _: m, NODES))
    )
    arrays = {node: moved(START, UPDATES[node - 1]) for node in range(1, 11)}  # ten of eleven
    replies = [
        Message(RecordDict({"arrays": record_of(arrays[m.metadata.dst_node_id])}), reply_to=m)
        for m in asked
        if m.metadata.dst_node_id in arrays
    ]
    assert strategy.aggregate_train(1, replies) == (None, None)


def test_every_strategy_is_public() -> None:
    assert strategies.__all__ == sorted(strategies.__all__)
