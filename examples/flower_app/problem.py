"""The problem: ten handwritten digits, softmax regression in plain numpy. Nothing here knows of Flower or Cloister."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

STEPS = 10
LEARNING_RATE = 0.2

Arrays = dict[str, np.ndarray]


def initial_model() -> Arrays:
    """Return the model before the first round: named arrays of different shapes."""
    return {"weight": np.zeros((64, 10), np.float32), "bias": np.zeros(10, np.float32)}


def site_data(site: int, sites: int) -> tuple[np.ndarray, np.ndarray]:
    """Return one site's training records: two runs of the digits sorted by class, so no site knows all ten."""
    inputs, targets = _split()[0]
    order = np.argsort(targets, kind="stable")
    shards = np.array_split(order, 2 * sites)
    rows = np.concatenate([shards[site], shards[site + sites]])
    return inputs[rows], targets[rows]


def test_data() -> tuple[np.ndarray, np.ndarray]:
    """Return the records that nobody trains on."""
    return _split()[1]


def gradient(model: Arrays, inputs: np.ndarray, targets: np.ndarray) -> Arrays:
    """Return the gradient of the mean cross-entropy, by name."""
    error = _probabilities(model, inputs)
    error[np.arange(len(targets)), targets] -= 1
    error /= len(targets)
    return {"weight": inputs.T @ error, "bias": error.sum(axis=0)}


def train(model: Arrays, inputs: np.ndarray, targets: np.ndarray, correction: Arrays | None = None) -> Arrays:
    """Return the model after `STEPS` gradient steps; ``correction`` is added to every gradient (SCAFFOLD)."""
    for _ in range(STEPS):
        slope = gradient(model, inputs, targets)
        if correction is not None:
            slope = {name: slope[name] + correction[name] for name in slope}
        model = {name: model[name] - np.float32(LEARNING_RATE) * slope[name] for name in model}
    return model


def accuracy(model: Arrays, inputs: np.ndarray, targets: np.ndarray) -> float:
    """Return the share of records that the model gets right."""
    return float((_probabilities(model, inputs).argmax(axis=1) == targets).mean())


def _probabilities(model: Arrays, inputs: np.ndarray) -> np.ndarray:
    scores = inputs @ model["weight"] + model["bias"]
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def _split() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    inputs, targets = load_digits(return_X_y=True)
    inputs = (inputs / 16).astype(np.float32)
    test = np.arange(len(targets)) % 5 == 0
    return (inputs[~test], targets[~test]), (inputs[test], targets[test])
