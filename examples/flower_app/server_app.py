"""The server: an ordinary Flower ServerApp whose strategy is one of Cloister's."""

from __future__ import annotations

from collections.abc import Callable

import problem
from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result, Strategy

from cloister.server.flower_strategies import CloisterStrategy, ScaffoldStrategy
from cloister.strategies import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "fedavg": lambda: CloisterStrategy(optimiser=FedAvg(lr=1.0)),
    "fedavgm": lambda: CloisterStrategy(optimiser=FedAvgM(lr=1.0, momentum=0.5)),
    "fedadagrad": lambda: CloisterStrategy(optimiser=FedAdagrad(lr=0.1, beta1=0.0)),
    "fedadam": lambda: CloisterStrategy(optimiser=FedAdam(lr=0.05)),
    "fedyogi": lambda: CloisterStrategy(optimiser=FedYogi(lr=0.05)),
    "scaffold": lambda: ScaffoldStrategy(lr=1.0),
}


def make_app(strategy: str, rounds: int, done: Callable[[Result], None] | None = None) -> ServerApp:
    """Return a ServerApp that trains for ``rounds`` rounds and hands its result to ``done``."""
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
        initial = ArrayRecord({name: Array(array) for name, array in problem.initial_model().items()})
        result = STRATEGIES[strategy]().start(grid, initial, num_rounds=rounds, evaluate_fn=_measure)
        if done is not None:
            done(result)

    return server


def _measure(server_round: int, arrays: ArrayRecord) -> MetricRecord:  # noqa: ARG001 - Flower's signature
    model = {name: array.numpy() for name, array in arrays.items()}
    return MetricRecord({"accuracy": problem.accuracy(model, *problem.test_data())})


app = make_app("fedadam", rounds=10)
