"""Cloister's rules and server optimisers as Flower strategies, for a Flower app of your own.

::

    from cloister.server.flower_strategies import CloisterStrategy
    from cloister.strategies import FedAdam

    strategy = CloisterStrategy(optimiser=FedAdam(lr=0.01))
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=10)

The ClientApp stays as it is: it takes an `ArrayRecord` (a state dict of any names and shapes), trains, and sends the trained arrays
back under the same names. What differs from Flower's own strategies:

- A reply is checked (sender, names, shapes, types, finite) and refused by a log line; the round goes on with the others. Flower
  ends the run on the first inconsistent reply, and lets NaN through.
- Weights are the server's: uniform, or what ``weight_of`` says of a node. What a client claims in ``num-examples`` counts for
  nothing; nor does it for metrics, which are plain means.
- Replies are summed in the order of node ids, so that a result does not depend on the order of arrival.
- Where too few nodes are connected, it waits ``wait_s`` seconds and then raises `PeersMissing`. Flower waits for ever.
- A node's error is logged by its code only: its text may hold a value of the node's data.

Floating-point arrays are averaged in float32 and return in their own types; integer and boolean arrays (counters) keep the
server's value.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from cloister.core.errors import PeersMissing
from cloister.core.randomness import Randomness, SystemRandomness
from cloister.core.update import Vector
from cloister.strategies.arrays import ArrayLayout
from cloister.strategies.mean import Direction
from cloister.strategies.optimisers import FedAvg, OptimiserState, ServerOptimiser
from cloister.strategies.rules import Mean, Rule
from cloister.strategies.scaffold import ScaffoldState, server_step

__all__ = ["CONTROL", "CloisterStrategy", "ScaffoldStrategy", "mean_metrics"]

#: The record that carries SCAFFOLD's controls: c on the way to a client, Δc_i on the way back.
CONTROL = "control"

MetricsFunction = Callable[[list[RecordDict], str], MetricRecord]

_LOG = logging.getLogger("flwr")  # Flower's own: its handlers are where a Flower user looks
_POLL_S = 0.2


class _Refused(Exception):  # noqa: N818 - a reason on its way to the log, never seen outside this module
    """Why a reply was refused."""


class CloisterStrategy(FlowerFedAvg):
    """Federated learning with a server optimiser and a rule of Cloister's.

    Args:
        optimiser: how the direction moves the model; `FedAvg` with lr 1 by default.
        rule: how updates become a direction; `Mean` by default.
        weight_of: a node's weight by its id, the server's choice; ``None``: all weigh the same.
        min_replies: with fewer accepted replies a round leaves the model as it is.
        wait_s: seconds to wait for enough nodes before `PeersMissing`.
        randomness: where cohorts are drawn from; ``None``: the operating system.
        fraction_train: share of the connected nodes that train in a round.
        fraction_evaluate: share of the connected nodes that evaluate; 0: none do.
        min_train_nodes: fewest nodes that train.
        min_evaluate_nodes: fewest nodes that evaluate.
        min_available_nodes: fewest connected nodes.
        arrayrecord_key: the model's name in messages.
        configrecord_key: the configuration's name in messages.
        train_metrics_aggr_fn: your own way to join training metrics; `mean_metrics` by default.
        evaluate_metrics_aggr_fn: your own way to join evaluation metrics; `mean_metrics` by default.

    Attributes:
        state: what the optimiser remembers after the last round; it begins anew at round 1.
    """

    def __init__(
        self,
        *,
        optimiser: ServerOptimiser | None = None,
        rule: Rule | None = None,
        weight_of: Callable[[int], float] | None = None,
        min_replies: int = 1,
        wait_s: float = 600.0,
        randomness: Randomness | None = None,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsFunction | None = None,
        evaluate_metrics_aggr_fn: MetricsFunction | None = None,
    ) -> None:
        super().__init__(
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_train_nodes,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn or mean_metrics,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn or mean_metrics,
        )
        if min_replies < 1:
            raise ValueError(f"min_replies = {min_replies} must be at least 1")
        self.optimiser = optimiser or FedAvg()
        self.rule = rule or Mean()
        self.weight_of = weight_of or (lambda _: 1.0)
        self.min_replies = min_replies
        self.wait_s = wait_s
        self.randomness = randomness or SystemRandomness()
        self.state = OptimiserState()
        self._layout: ArrayLayout | None = None
        self._arrays: Mapping[str, npt.NDArray[Any]] = {}
        self._model: Vector = np.empty(0, np.float32)
        self._asked: set[int] = set()

    def summary(self) -> None:
        """Log what the strategy will do."""
        _LOG.info("\t├──> Server optimiser: %s", self.optimiser)
        _LOG.info(
            "\t├──> Rule: %s, weights by the server, at least %d replies a round",
            self.rule.name,
            self.min_replies,
        )
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the round's nodes and address the model to them.

        Raises:
            PeersMissing: too few nodes are connected after ``wait_s``.
            SpecError: the model holds an array that is no real number, or none to average.
        """
        if self.fraction_train == 0.0:
            return []
        nodes, connected = self._draw("train", server_round, grid, self.fraction_train, self.min_train_nodes)
        self._arrays = {name: array.numpy() for name, array in arrays.items()}
        layout = ArrayLayout.of(self._arrays)
        self._layout, self._model, self._asked = layout, layout.flatten(self._arrays), set(nodes)
        self._begin(server_round, layout, connected)
        config["server-round"] = server_round
        return self._construct_messages(self._outgoing(arrays, config, layout), nodes, MessageType.TRAIN)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the nodes that evaluate and address the model to them.

        Raises:
            PeersMissing: too few nodes are connected after ``wait_s``.
        """
        if self.fraction_evaluate == 0.0:
            return []
        nodes, _ = self._draw("evaluate", server_round, grid, self.fraction_evaluate, self.min_evaluate_nodes)
        config["server-round"] = server_round
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        return self._construct_messages(content, nodes, MessageType.EVALUATE)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check the replies, join those that are accepted, and move the model.

        Returns:
            (next model, metrics), or (``None``, ``None``) where fewer than ``min_replies`` were accepted.
        """
        layout = self._layout
        if layout is None:
            return None, None
        totals = [self.rule.start(layout.size) for _ in range(self._vectors_a_reply)]
        accepted: list[RecordDict] = []
        for node, content in self._answers(server_round, replies):
            try:
                vectors = self._vectors(content, layout)
            except _Refused as reason:
                _LOG.warning("round %d: refused the reply of node %d: %s", server_round, node, reason)
                continue
            weight = self.weight_of(node)
            for total, vector in zip(totals, vectors, strict=True):
                total.add(vector, weight)
            accepted.append(content)
        _LOG.info("round %d: %d of %d replies accepted", server_round, len(accepted), len(self._asked))
        if len(accepted) < self.min_replies:
            _LOG.warning(
                "round %d: fewer than %d replies accepted, the model stays as it is",
                server_round,
                self.min_replies,
            )
            return None, None
        self._asked = set()
        model = self._move([total.result() for total in totals], len(accepted))
        arrays = layout.unflatten(model, fixed=self._arrays)
        record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        return record, self.train_metrics_aggr_fn(accepted, self.weighted_by_key)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Join the metrics of the replies that hold content."""
        contents = []
        for message in sorted(replies, key=lambda message: message.metadata.src_node_id):
            if message.has_error():
                _LOG.warning(
                    "round %d: node %d failed to evaluate (error %d)",
                    server_round,
                    message.metadata.src_node_id,
                    message.error.code,
                )
            else:
                contents.append(message.content)
        return self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key) if contents else None

    # What `ScaffoldStrategy` does in its own way --------------------------------------------------------------------------------

    _vectors_a_reply = 1

    def _begin(self, server_round: int, layout: ArrayLayout, connected: int) -> None:  # noqa: ARG002 - SCAFFOLD counts them
        if server_round == 1 or any(len(array) != layout.size for array in self.state.arrays().values()):
            self.state = self.optimiser.start(layout.size)

    def _outgoing(self, arrays: ArrayRecord, config: ConfigRecord, layout: ArrayLayout) -> RecordDict:  # noqa: ARG002
        return RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})

    def _vectors(self, content: RecordDict, layout: ArrayLayout) -> list[Vector]:
        return [_finite_difference(_read(content, self.arrayrecord_key, layout), self._model)]

    def _move(self, directions: list[Direction], count: int) -> Vector:  # noqa: ARG002
        model, self.state = self.optimiser.step(self._model, directions[0], self.state)
        return model

    # -----------------------------------------------------------------------------------------------------------------------------

    def _draw(
        self, purpose: str, server_round: int, grid: Grid, fraction: float, minimum: int
    ) -> tuple[list[int], int]:
        """Return the drawn node ids in ascending order, and how many nodes are connected."""
        deadline = time.monotonic() + self.wait_s
        while True:
            nodes = sorted(grid.get_node_ids())
            size = max(int(len(nodes) * fraction), minimum)
            needed = max(size, self.min_available_nodes)
            if len(nodes) >= needed:
                break
            if time.monotonic() >= deadline:
                raise PeersMissing(
                    f"{len(nodes)} nodes are connected after {self.wait_s:g} s: round {server_round} needs {needed} to {purpose}",
                    remedy="start more nodes, raise wait_s, or lower min_available_nodes and the other minima",
                )
            time.sleep(min(_POLL_S, self.wait_s))
        drawn = self.randomness.generator("cohort", purpose, server_round).choice(
            len(nodes), size=size, replace=False
        )
        return sorted(nodes[int(index)] for index in drawn), len(nodes)

    def _answers(self, server_round: int, replies: Iterable[Message]) -> Iterable[tuple[int, RecordDict]]:
        """Yield (node, content) in the order of node ids, once a node; log the rest."""
        seen: set[int] = set()
        for message in sorted(replies, key=lambda message: message.metadata.src_node_id):
            node = message.metadata.src_node_id
            if message.has_error():
                _LOG.warning("round %d: node %d failed (error %d)", server_round, node, message.error.code)
            elif node not in self._asked:
                _LOG.warning("round %d: refused the reply of node %d: it was not asked", server_round, node)
            elif node in seen:
                _LOG.warning(
                    "round %d: refused the reply of node %d: it has answered already", server_round, node
                )
            else:
                seen.add(node)
                yield node, message.content


class ScaffoldStrategy(CloisterStrategy):
    """SCAFFOLD (Karimireddy et al. 2020, option II) for a ClientApp that keeps its control in ``context.state``.

    A train message holds a second `ArrayRecord`, ``control``: the server's c, one float32 array for each floating-point array of the
    model, under the same names. The client adds `cloister.strategies.scaffold.correction` to every gradient, computes its next
    control by `cloister.strategies.scaffold.client_control`, keeps it, and sends the change back as ``control``. See
    ``examples/flower_app``. Weights are uniform and the rule is the mean, as the algorithm has it.

    Args:
        lr: server learning rate η_g.
        **options: those of `CloisterStrategy` but ``optimiser``, ``rule`` and ``weight_of``.

    Attributes:
        control: the server's control after the last round; it begins anew at round 1.
    """

    _vectors_a_reply = 2

    def __init__(self, *, lr: float = 1.0, **options: Any) -> None:
        if taken := {"optimiser", "rule", "weight_of"} & set(options):
            raise ValueError(f"SCAFFOLD has no {min(taken)}: it takes the plain mean and moves by lr")
        super().__init__(optimiser=FedAvg(lr=lr), **options)
        self.control = ScaffoldState.start(0)
        self._controls: ArrayLayout | None = None
        self._population = 0

    def _begin(self, server_round: int, layout: ArrayLayout, connected: int) -> None:
        super()._begin(server_round, layout, connected)
        self._population = connected
        self._controls = ArrayLayout.of(
            {name: np.empty(layout.shapes[name], np.float32) for name in layout.averaged}
        )
        if server_round == 1 or len(self.control.control) != layout.size:
            self.control = ScaffoldState.start(layout.size)

    def _outgoing(self, arrays: ArrayRecord, config: ConfigRecord, layout: ArrayLayout) -> RecordDict:
        content = super()._outgoing(arrays, config, layout)
        if self._controls is not None:
            content[CONTROL] = ArrayRecord(
                {name: Array(array) for name, array in self._controls.unflatten(self.control.sent()).items()}
            )
        return content

    def _vectors(self, content: RecordDict, layout: ArrayLayout) -> list[Vector]:
        if CONTROL not in content.array_records or self._controls is None:
            raise _Refused(f"there is no ArrayRecord '{CONTROL}'")
        change = _read(content, CONTROL, self._controls)
        if not np.isfinite(change).all():
            raise _Refused("the change of its control is not finite")
        return [*super()._vectors(content, layout), change]

    def _move(self, directions: list[Direction], count: int) -> Vector:
        population = max(self._population, count)
        model, self.control = server_step(
            self._model,
            directions[0],
            self.control,
            directions[1],
            cohort=count,
            population=population,
            lr=self.optimiser.lr,
        )
        return model


def mean_metrics(records: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Return the plain mean of every metric over the clients that report it with finite values; no client weighs more.

    Args:
        records: the replies' contents.
        weighted_by_key: a count that Flower apps send along; it is left out of the answer and weighs nothing.
    """
    found: dict[str, list[npt.NDArray[np.float64]]] = {}
    for record in records:
        for metrics in record.metric_records.values():
            for name, value in metrics.items():
                number = np.asarray(value, dtype=np.float64)
                if name != weighted_by_key and np.isfinite(number).all():
                    found.setdefault(name, []).append(number)
    means = MetricRecord()
    for name, numbers in found.items():
        if len({number.shape for number in numbers}) == 1:
            mean = np.mean(numbers, axis=0)
            means[name] = [float(number) for number in mean] if mean.ndim else float(mean)
    return means


def _read(content: RecordDict, key: str, layout: ArrayLayout) -> Vector:
    """Return the arrays under ``key`` as a flat vector, or refuse."""
    records = content.array_records
    if key not in records:
        raise _Refused(f"there is no ArrayRecord '{key}'")
    arrays = {name: _numpy(array) for name, array in records[key].items()}
    if reason := layout.mismatch(arrays):
        raise _Refused(reason)
    return layout.flatten(arrays)


def _numpy(array: Array) -> npt.NDArray[Any]:
    try:
        found = array.numpy()  # never unpickles
    except Exception:  # noqa: BLE001 - a stranger's bytes may make numpy raise anything
        raise _Refused("an array cannot be read") from None
    if not isinstance(found, np.ndarray):  # a ZIP file reads as an archive
        raise _Refused("an array cannot be read")
    return found


def _finite_difference(trained: Vector, model: Vector) -> Vector:
    with np.errstate(over="ignore", invalid="ignore"):
        update: Vector = trained - model
    if not np.isfinite(update).all():
        raise _Refused("a value is not finite")
    return update
