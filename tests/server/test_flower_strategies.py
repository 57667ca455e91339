"""Our strategies in somebody else's Flower app (``examples/flower_app``): the same result as the pure functions, and replies that lie.

The fast tests drive ``strategy.start`` through a small `Grid` that calls the example's own ClientApp in this process; the slow one runs
the example as a user would, on Flower's simulation engine.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from cloister.core.errors import PeersMissing, SpecError
from cloister.core.randomness import SeededRandomness
from cloister.server.flower_strategies import CloisterStrategy, ScaffoldStrategy, mean_metrics
from cloister.strategies import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    ServerOptimiser,
    StreamingMean,
    weighted_mean,
)
from cloister.strategies.scaffold import ScaffoldState, client_control, correction, server_step

pytestmark = pytest.mark.usefixtures("flower_task")

EXAMPLE = Path(__file__).parents[2] / "examples" / "flower_app"
SITES = 4
ROUNDS = 3
Arrays = dict[str, npt.NDArray[Any]]
Tamper = Callable[[int, Message, Message], Iterable[Message]]


class HereGrid(Grid):
    """A Flower Grid that calls a ClientApp in this process; contexts persist a node, replies arrive in reverse order."""

    def __init__(
        self,
        client_app: Callable[[Message, Context], Message],
        nodes: int = SITES,
        tamper: Tamper | None = None,
    ) -> None:
        self.client_app = client_app
        self.nodes = list(range(1, nodes + 1))
        self.tamper = tamper or (lambda node, asked, reply: [reply])
        self.contexts = {
            node: Context(1, node, {"partition-id": node - 1, "num-partitions": nodes}, RecordDict(), {})
            for node in range(1, 20)
        }
        self.asked: list[list[int]] = []

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return self.nodes

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        sent = list(messages)
        self.asked.append([message.metadata.dst_node_id for message in sent])
        replies: list[Message] = []
        for message in reversed(sent):
            node = message.metadata.dst_node_id
            replies += self.tamper(node, message, self.client_app(message, self.contexts[node]))
        return replies


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example's modules, imported as ``python run.py`` imports them."""
    monkeypatch.syspath_prepend(str(EXAMPLE))
    names = ("problem", "client_app", "server_app")
    yield type("Example", (), {name: importlib.import_module(name) for name in names})
    for name in names:
        sys.modules.pop(name, None)


def numpy_of(record: Any) -> Arrays:
    assert isinstance(record, ArrayRecord)
    return {name: array.numpy() for name, array in record.items()}


def record_of(arrays: Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(array)) for name, array in arrays.items()})


def flat(arrays: Arrays) -> npt.NDArray[np.float32]:
    return np.concatenate([array.ravel() for array in arrays.values()])


def close(one: Arrays, other: Arrays) -> bool:
    return list(one) == list(other) and all(
        np.allclose(one[name], other[name], rtol=1e-5, atol=1e-6) for name in one
    )


# The example, against our pure functions -------------------------------------------------------------------------------------


def by_pure_functions(problem: Any, optimiser: ServerOptimiser, rounds: int) -> npt.NDArray[np.float32]:
    """Federate the example's problem without Flower."""
    model = flat(problem.initial_model())
    state = optimiser.start(len(model))
    for _ in range(rounds):
        named = {"weight": model[:640].reshape(64, 10), "bias": model[640:]}
        trained = [flat(problem.train(named, *problem.site_data(site, SITES))) for site in range(SITES)]
        direction = weighted_mean(np.stack(trained) - model, np.ones(SITES))
        model, state = optimiser.step(model, direction, state)
    return model


def scaffold_by_pure_functions(problem: Any, rounds: int) -> npt.NDArray[np.float32]:
    model = flat(problem.initial_model())
    state = ScaffoldState.start(len(model))
    controls = [np.zeros(len(model), np.float32) for _ in range(SITES)]
    for _ in range(rounds):
        updates, changes = StreamingMean(len(model)), StreamingMean(len(model))
        for site in range(SITES):
            pull = correction(state.sent(), controls[site])
            named = {"weight": model[:640].reshape(64, 10), "bias": model[640:]}
            end = flat(
                problem.train(
                    named,
                    *problem.site_data(site, SITES),
                    {"weight": pull[:640].reshape(64, 10), "bias": pull[640:]},
                )
            )
            controls[site], change = client_control(
                client=controls[site],
                server=state.sent(),
                start=model,
                end=end,
                steps=problem.STEPS,
                lr=problem.LEARNING_RATE,
            )
            updates.add(end - model)
            changes.add(change)
        model, state = server_step(
            model, updates.result(), state, changes.result(), cohort=SITES, population=SITES
        )
    return model


def run_example(example: Any, strategy: str, rounds: int = ROUNDS) -> Any:
    results: list[Any] = []
    server = example.server_app.make_app(strategy, rounds, results.append)
    server(HereGrid(example.client_app.app), Context(1, 0, {}, RecordDict(), {}))
    return results[0]


@pytest.mark.parametrize(
    ("name", "optimiser"),
    [
        ("fedavg", FedAvg(lr=1.0)),
        ("fedavgm", FedAvgM(lr=1.0, momentum=0.5)),
        ("fedadagrad", FedAdagrad(lr=0.1, beta1=0.0)),
        ("fedadam", FedAdam(lr=0.05)),
        ("fedyogi", FedYogi(lr=0.05)),
        ("scaffold", None),
    ],
)
def test_the_example_app_learns_what_the_pure_functions_learn(
    example: Any, name: str, optimiser: ServerOptimiser | None
) -> None:
    result = run_example(example, name)
    expected = (
        scaffold_by_pure_functions(example.problem, ROUNDS)
        if optimiser is None
        else by_pure_functions(example.problem, optimiser, ROUNDS)
    )
    # FedAdam's √v can be tiny: float32's last digit of a direction shows more there.
    assert np.allclose(flat(numpy_of(result.arrays)), expected, rtol=1e-4, atol=1e-5)
    accuracies = [metrics["accuracy"] for metrics in result.evaluate_metrics_serverapp.values()]
    assert accuracies[-1] > 0.5 > accuracies[0]


@pytest.mark.slow
def test_the_examples_strategies_all_answer_differently(example: Any) -> None:
    answers = [
        flat(numpy_of(run_example(example, name, rounds=2).arrays)) for name in example.server_app.STRATEGIES
    ]
    assert len({answer.tobytes() for answer in answers}) == 6
    assert (
        min(np.abs(one - other).max() for i, one in enumerate(answers) for other in answers[:i]) > 1e-4
    )  # ten times the tolerance above


@pytest.mark.slow
def test_the_example_runs_on_flowers_own_simulation_engine() -> None:
    pytest.importorskip("ray")
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [
        sys.executable,
        str(EXAMPLE / "run.py"),
        "--strategy",
        "scaffold",
        "--rounds",
        "3",
        "--sites",
        str(SITES),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["strategy"] == "scaffold"
    assert list(answer["accuracy"]) == ["0", "1", "2", "3"]
    assert answer["accuracy"]["3"] > 0.5 > answer["accuracy"]["0"]


# A small app whose clients' answers are known ---------------------------------------------------------------------------------

# Node n adds n to the weight and counts a step; every array type that a state dict may hold is there.
START: Arrays = {
    "weight": np.zeros((2, 3), np.float32),
    "steps": np.array(5, np.int64),
    "bias": np.ones(2, np.float64),
    "scale": np.array(1.0, np.float16),
}


def adding_app(metrics: Callable[[int], dict[str, Any]] | None = None) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        node = context.node_id
        arrays = numpy_of(message.content["arrays"])
        arrays = {
            name: array + np.asarray(node if array.dtype.kind == "f" else 1, array.dtype)
            for name, array in arrays.items()
        }
        reply = RecordDict(
            {
                "arrays": record_of(arrays),
                "metrics": MetricRecord(metrics(node) if metrics else {"num-examples": 10 * node}),
            }
        )
        if "control" in message.content:
            control = numpy_of(message.content["control"])
            reply["control"] = record_of({name: np.full_like(array, node) for name, array in control.items()})
        return Message(reply, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(
            RecordDict({"metrics": MetricRecord({"num-examples": 1, "loss": float(context.node_id)})}),
            reply_to=message,
        )

    return app


def federate(
    strategy: CloisterStrategy, tamper: Tamper | None = None, rounds: int = 1, **options: Any
) -> Arrays:
    grid = HereGrid(adding_app(**options), tamper=tamper)
    return numpy_of(strategy.start(grid, record_of(START), num_rounds=rounds).arrays)


def moved_by(amount: float) -> Arrays:
    return {
        name: array + np.asarray(amount, array.dtype) if array.dtype.kind == "f" else array
        for name, array in START.items()
    }


def test_every_array_returns_in_its_own_name_shape_and_type_and_counters_stay_the_servers() -> None:
    answer = federate(CloisterStrategy())
    assert close(answer, moved_by(2.5))
    assert {name: (array.shape, array.dtype) for name, array in answer.items()} == {
        name: (array.shape, array.dtype) for name, array in START.items()
    }
    assert answer["steps"] == 5


def test_what_a_client_claims_in_num_examples_counts_for_nothing() -> None:
    claims = {1: 1e9, 2: -9, 3: 0, 4: float("nan")}
    assert close(
        federate(CloisterStrategy(), metrics=lambda node: {"num-examples": claims[node]}), moved_by(2.5)
    )


def test_no_num_examples_at_all_is_no_fault() -> None:
    assert close(federate(CloisterStrategy(), metrics=lambda node: {}), moved_by(2.5))


def test_weights_are_the_servers_by_node() -> None:
    answer = federate(CloisterStrategy(weight_of=lambda node: {1: 3.0, 2: 1.0, 3: 1.0, 4: 1.0}[node]))
    assert close(answer, moved_by((3 * 1 + 2 + 3 + 4) / 6))


def test_the_order_of_arrival_does_not_change_a_bit() -> None:
    # In float64, 2**60 + 1 is 2**60: the sum of these depends on their order.
    noise = {
        node: np.full((2, 3), value, np.float32)
        for node, value in enumerate([2.0**60, 1.0, -(2.0**60), 1.0], start=1)
    }

    def answer(order: list[int]) -> bytes:
        strategy = CloisterStrategy()
        grid = HereGrid(adding_app())
        sent = list(strategy.configure_train(1, record_of(START), ConfigRecord(), grid))
        replies = {
            message.metadata.dst_node_id: Message(
                RecordDict(
                    {
                        "arrays": record_of({**START, "weight": noise[message.metadata.dst_node_id]}),
                        "metrics": MetricRecord(),
                    }
                ),
                reply_to=message,
            )
            for message in sent
        }
        arrays, _ = strategy.aggregate_train(1, [replies[node] for node in order])
        return flat({"weight": numpy_of(arrays)["weight"]}).tobytes()

    assert answer([1, 2, 3, 4]) == answer([4, 2, 1, 3]) == answer([3, 4, 1, 2])


# Replies that lie ----------------------------------------------------------------------------------------------------------------


def npy(array: npt.NDArray[Any]) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npz(array: npt.NDArray[Any]) -> bytes:
    buffer = BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


def with_weight(array: Array) -> Callable[[Message, Message], Message]:
    def lie(asked: Message, reply: Message) -> Message:
        arrays = {**dict(reply.content["arrays"].items()), "weight": array}
        return Message(RecordDict({**reply.content, "arrays": ArrayRecord(arrays)}), reply_to=asked)

    return lie


def with_arrays(arrays: Arrays) -> Callable[[Message, Message], Message]:
    return lambda asked, reply: Message(
        RecordDict({**reply.content, "arrays": record_of(arrays)}), reply_to=asked
    )


def raw(data: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array("float32", (2, 3), stype, data)


def huge_header() -> bytes:
    header = repr({"descr": "<f4", "fortran_order": False, "shape": (10**15,)}).encode()
    header += b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


GOOD = np.zeros((2, 3), np.float32)
LIES: dict[str, tuple[Callable[[Message, Message], Message], str]] = {
    "NaN": (with_weight(Array(np.full((2, 3), np.nan, np.float32))), "not finite"),
    "infinity": (with_weight(Array(np.full((2, 3), -np.inf, np.float32))), "not finite"),
    "beyond float32": (with_weight(Array(np.full((2, 3), 1e39))), "not finite"),
    "another shape": (
        with_weight(Array(np.zeros((3, 2), np.float32))),
        r"'weight' has shape (3, 2), expected (2, 3)",
    ),
    "broadcastable": (with_weight(Array(np.zeros((1, 3), np.float32))), r"'weight' has shape (1, 3)"),
    "integers": (with_weight(Array(np.zeros((2, 3), np.int32))), "'weight' is int32"),
    "complex": (with_weight(Array(np.zeros((2, 3), np.complex64))), "'weight' is complex64"),
    "a pickle in NPY": (with_weight(raw(npy(np.array([[print] * 3] * 2, dtype=object)))), "cannot be read"),
    "a bare pickle": (with_weight(raw(pickle.dumps(GOOD))), "cannot be read"),
    "an archive": (with_weight(raw(npz(GOOD))), "cannot be read"),
    "garbage": (with_weight(raw(b"\x00\xff" * 40)), "cannot be read"),
    "nothing": (with_weight(raw(b"")), "cannot be read"),
    "half an array": (with_weight(raw(npy(GOOD)[:-4])), "cannot be read"),
    "a header that claims a petabyte": (with_weight(raw(huge_header())), "cannot be read"),
    "another encoding": (with_weight(raw(npy(GOOD), "masked")), "cannot be read"),
    "metadata that lies of the shape": (
        with_weight(Array("float32", (2, 3), "numpy.ndarray", npy(np.zeros(7, np.float32)))),
        "has shape (7,)",
    ),
    "an array too few": (
        with_arrays({name: array for name, array in START.items() if name != "bias"}),
        "'bias' is missing",
    ),
    "an array too many": (with_arrays({**START, "SECRET": np.zeros(1)}), "1 unknown array"),
    "no array at all": (with_arrays({}), "'weight' is missing"),
    "a counter of another type": (with_arrays({**START, "steps": np.array(5.0)}), "'steps' is float64"),
    "another record's name": (
        lambda asked, reply: Message(
            RecordDict({"model": reply.content["arrays"], "metrics": reply.content["metrics"]}),
            reply_to=asked,
        ),
        "there is no ArrayRecord 'arrays'",
    ),
    "an empty reply": (
        lambda asked, reply: Message(RecordDict(), reply_to=asked),
        "there is no ArrayRecord 'arrays'",
    ),
}


@pytest.mark.parametrize("lie", LIES, ids=list(LIES))
def test_a_lie_is_refused_with_its_reason_and_the_round_goes_on_without_it(
    lie: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, reason = LIES[lie]
    with caplog.at_level(logging.INFO, logger="flwr"):
        answer = federate(
            CloisterStrategy(),
            tamper=lambda node, asked, reply: [
                make(asked, reply) if node == 4 and "arrays" in reply.content else reply
            ],
        )
    assert close(answer, moved_by(2.0))  # the mean of nodes 1, 2, 3
    refused = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert len(refused) == 1
    assert refused[0].startswith("round 1: refused the reply of node 4: ")
    assert reason in refused[0]
    assert "SECRET" not in caplog.text


def test_a_second_answer_and_a_foreign_sender_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    def tamper(node: int, asked: Message, reply: Message) -> list[Message]:
        if node != 4 or "arrays" not in reply.content:
            return [reply]
        stranger = Message(reply.content, reply_to=asked)
        stranger.metadata.__dict__["_src_node_id"] = 77
        return [reply, Message(reply.content, reply_to=asked), stranger]

    with caplog.at_level(logging.WARNING, logger="flwr"):
        assert close(federate(CloisterStrategy(), tamper=tamper), moved_by(2.5))
    assert "refused the reply of node 4: it has answered already" in caplog.text
    assert "refused the reply of node 77: it was not asked" in caplog.text


def test_a_failed_nodes_text_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    def tamper(node: int, asked: Message, reply: Message) -> list[Message]:
        return [Message(Error(2, "KeyError: 'patient 4711'"), reply_to=asked) if node == 4 else reply]

    with caplog.at_level(logging.DEBUG, logger="flwr"):
        assert close(federate(CloisterStrategy(), tamper=tamper), moved_by(2.0))
    assert "node 4 failed (error 2)" in caplog.text
    assert "node 4 failed to evaluate (error 2)" in caplog.text
    assert "4711" not in caplog.text


def test_below_min_replies_the_model_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    lost: dict[Any, list[int]] = {2: [1, 3, 4]}  # in round 2 only node 2 answers
    grid = HereGrid(adding_app())
    grid.tamper = lambda node, asked, reply: (
        []
        if node in lost.get(asked.content.config_records["config"]["server-round"], [])
        and "arrays" in reply.content
        else [reply]
    )
    with caplog.at_level(logging.WARNING, logger="flwr"):
        result = CloisterStrategy(min_replies=2).start(grid, record_of(START), num_rounds=2)
    assert close(numpy_of(result.arrays), moved_by(2.5))
    assert "round 2: fewer than 2 replies accepted, the model stays as it is" in caplog.text
    assert list(result.train_metrics_clientapp) == [1]


def test_where_every_reply_is_refused_the_run_goes_on() -> None:
    poison = with_weight(Array(np.full((2, 3), np.nan, np.float32)))
    strategy = CloisterStrategy()
    grid = HereGrid(
        adding_app(),
        tamper=lambda node, asked, reply: [poison(asked, reply) if "arrays" in reply.content else reply],
    )
    result = strategy.start(grid, record_of(START), num_rounds=2)
    assert not result.arrays
    assert len(result.evaluate_metrics_clientapp) == 2


# Optimiser state, cohorts, waiting, metrics ---------------------------------------------------------------------------------------


def test_the_optimisers_state_lives_between_rounds_and_begins_anew_with_a_new_start() -> None:
    strategy = CloisterStrategy(optimiser=FedAvgM(lr=1.0, momentum=0.5))
    # Δ = 2.5 in every round: 2.5, then 2.5 + 0.5 * 2.5.
    assert close(federate(strategy, rounds=2), moved_by(2.5 + 3.75))
    assert strategy.state.momentum is not None
    assert np.allclose(strategy.state.momentum, 3.75)
    assert close(federate(strategy, rounds=2), moved_by(2.5 + 3.75))


def test_the_same_seed_draws_the_same_cohorts_and_another_seed_others() -> None:
    def cohorts(seed: int) -> list[list[int]]:
        strategy = CloisterStrategy(
            fraction_train=0.5, fraction_evaluate=0.0, randomness=SeededRandomness(seed)
        )
        grid = HereGrid(adding_app(), nodes=12)
        strategy.start(grid, record_of(START), num_rounds=5)
        return [asked for asked in grid.asked if asked]

    assert cohorts(1) == cohorts(1) != cohorts(2)
    assert all(len(set(asked)) == 6 for asked in cohorts(1))
    assert len({tuple(asked) for asked in cohorts(1)}) > 1


def test_too_few_nodes_end_with_peers_missing_and_not_with_waiting_for_ever() -> None:
    grid = HereGrid(adding_app(), nodes=2)
    with pytest.raises(
        PeersMissing, match=r"2 nodes are connected after 0\.05 s: round 1 needs 3 to train"
    ) as missing:
        CloisterStrategy(min_available_nodes=3, wait_s=0.05).start(grid, record_of(START), num_rounds=1)
    assert "start more nodes" in missing.value.remedy


def test_a_node_that_joins_in_time_is_waited_for() -> None:
    class Filling(HereGrid):
        asked_for_nodes = 0

        def get_node_ids(self) -> Iterable[int]:
            self.asked_for_nodes += 1
            return self.nodes[: self.asked_for_nodes]

    grid = Filling(adding_app())
    result = CloisterStrategy(min_available_nodes=3, wait_s=30.0, fraction_evaluate=0.0).start(
        grid, record_of(START), num_rounds=1
    )
    assert close(numpy_of(result.arrays), moved_by(2.0))


def test_metrics_are_plain_means_without_the_count() -> None:
    grid = HereGrid(
        adding_app(
            lambda node: {"num-examples": 10**node, "loss": float(node), "by-class": [1.0 * node, 2.0 * node]}
        )
    )
    result = CloisterStrategy().start(grid, record_of(START), num_rounds=1)
    assert dict(result.train_metrics_clientapp[1]) == {"loss": 2.5, "by-class": [2.5, 5.0]}
    assert dict(result.evaluate_metrics_clientapp[1]) == {"loss": 2.5}


def test_a_metric_that_is_not_finite_or_missing_is_left_out_of_its_mean() -> None:
    sent: list[Any] = [
        {"loss": 1.0, "lists": [1.0]},
        {"loss": float("nan"), "lists": [1.0, 2.0]},
        {"loss": 3, "other": 7.0},
        {},
    ]
    records = [RecordDict({"metrics": MetricRecord(metrics)}) for metrics in sent]
    assert dict(mean_metrics(records, "num-examples")) == {"loss": 2.0, "other": 7.0}


def test_a_users_own_metrics_function_is_taken() -> None:
    strategy = CloisterStrategy(
        train_metrics_aggr_fn=lambda records, key: MetricRecord({"count": len(records)}),
        fraction_evaluate=0.0,
    )
    result = strategy.start(HereGrid(adding_app()), record_of(START), num_rounds=1)
    assert dict(result.train_metrics_clientapp[1]) == {"count": 4}
    assert not result.evaluate_metrics_clientapp


def test_with_fraction_train_zero_nobody_is_asked_and_nothing_changes() -> None:
    grid = HereGrid(adding_app())
    result = CloisterStrategy(fraction_train=0.0).start(grid, record_of(START), num_rounds=1)
    assert grid.asked[0] == []
    assert not result.arrays


def test_a_model_that_cannot_be_averaged_is_refused_before_anybody_is_asked() -> None:
    grid = HereGrid(adding_app())
    with pytest.raises(SpecError, match="no floating-point array"):
        CloisterStrategy().start(grid, record_of({"steps": np.array(1)}), num_rounds=1)
    assert grid.asked == []


@pytest.mark.parametrize("options", [{"min_replies": 0}])
def test_a_setting_out_of_range_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="min_replies = 0"):
        CloisterStrategy(**options)


# SCAFFOLD --------------------------------------------------------------------------------------------------------------------------


def test_scaffold_moves_its_control_by_the_share_of_the_population_that_answered() -> None:
    strategy = ScaffoldStrategy(
        lr=0.5, fraction_train=0.5, fraction_evaluate=0.0, randomness=SeededRandomness(3)
    )
    grid = HereGrid(adding_app())
    answer = numpy_of(strategy.start(grid, record_of(START), num_rounds=1).arrays)
    cohort = grid.asked[0]
    assert len(cohort) == 2
    assert close(answer, moved_by(0.5 * float(np.mean(cohort))))
    assert np.allclose(strategy.control.control, 2 / 4 * np.mean(cohort))


def test_scaffold_sends_its_control_under_the_models_names_without_the_counters() -> None:
    strategy = ScaffoldStrategy()
    grid = HereGrid(adding_app())
    strategy.start(grid, record_of(START), num_rounds=1)
    sent = next(iter(strategy.configure_train(2, record_of(START), ConfigRecord(), grid))).content["control"]
    arrays = numpy_of(sent)
    assert list(arrays) == ["weight", "bias", "scale"]
    assert all(
        array.dtype == np.float32 and array.shape == START[name].shape for name, array in arrays.items()
    )
    assert all(np.allclose(array, 2.5) for array in arrays.values())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (None, "there is no ArrayRecord 'control'"),
        ({"weight": np.full((2, 3), np.nan, np.float32)}, "the change of its control is not finite"),
        ({"weight": np.zeros(2, np.float32)}, "'weight' has shape (2,)"),
        ({"steps": np.array(1)}, "1 unknown array"),
    ],
)
def test_scaffold_refuses_a_control_that_lies_and_takes_nothing_of_that_reply(
    change: Arrays | None, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    def tamper(node: int, asked: Message, reply: Message) -> list[Message]:
        if node != 4 or "arrays" not in reply.content:
            return [reply]
        records = {name: record for name, record in reply.content.items() if name != "control"}
        if change is not None:
            records["control"] = record_of({**numpy_of(reply.content["control"]), **change})
        return [Message(RecordDict(records), reply_to=asked)]

    strategy = ScaffoldStrategy()
    with caplog.at_level(logging.WARNING, logger="flwr"):
        assert close(federate(strategy, tamper=tamper), moved_by(2.0))
    assert "refused the reply of node 4: " in caplog.text
    assert reason in caplog.text
    assert np.allclose(strategy.control.control, 3 / 4 * 2.0)


def test_scaffold_takes_no_rule_optimiser_or_weights() -> None:
    taken: dict[str, Any] = {"optimiser": FedAdam(), "rule": None, "weight_of": None}
    for name, value in taken.items():
        with pytest.raises(ValueError, match=f"SCAFFOLD has no {name}"):
            ScaffoldStrategy(**{name: value})
