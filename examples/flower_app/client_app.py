"""A site: an ordinary Flower ClientApp. It needs Cloister for SCAFFOLD's two formulas and for nothing else."""

from __future__ import annotations

import numpy as np
import problem
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from cloister.strategies import scaffold

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the model that came on this site's records and send it back."""
    start = _numpy(message.content["arrays"])
    inputs, targets = problem.site_data(*_place(context))
    reply = RecordDict()
    if "control" in message.content:
        end, change = _train_with_scaffold(
            start, _numpy(message.content["control"]), inputs, targets, context
        )
        reply["control"] = _record(change)
    else:
        end = problem.train(start, inputs, targets)
    reply["arrays"] = _record(end)
    reply["metrics"] = MetricRecord(
        {"num-examples": len(targets), "train-accuracy": problem.accuracy(end, inputs, targets)}
    )
    return Message(reply, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Measure the model that came on this site's records."""
    inputs, targets = problem.site_data(*_place(context))
    measured = problem.accuracy(_numpy(message.content["arrays"]), inputs, targets)
    return Message(
        RecordDict({"metrics": MetricRecord({"num-examples": len(targets), "accuracy": measured})}),
        reply_to=message,
    )


def _train_with_scaffold(
    start: problem.Arrays, server: problem.Arrays, inputs: np.ndarray, targets: np.ndarray, context: Context
) -> tuple[problem.Arrays, problem.Arrays]:
    """Return the trained model and the change of this site's control, which stays in ``context.state``."""
    kept = context.state.get("control")
    client = (
        _numpy(kept) if kept is not None else {name: np.zeros_like(array) for name, array in server.items()}
    )
    end = problem.train(
        start, inputs, targets, {name: scaffold.correction(server[name], client[name]) for name in server}
    )
    following, change = {}, {}
    for name in server:
        following[name], change[name] = scaffold.client_control(
            client=client[name],
            server=server[name],
            start=start[name],
            end=end[name],
            steps=problem.STEPS,
            lr=problem.LEARNING_RATE,
        )
    context.state["control"] = _record(following)
    return end, change


def _place(context: Context) -> tuple[int, int]:
    return int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])


def _numpy(record: ArrayRecord) -> problem.Arrays:
    return {name: array.numpy() for name, array in record.items()}


def _record(arrays: problem.Arrays) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})
