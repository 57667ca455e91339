"""How updates become a model: rules and server optimisers, as pure functions on flat numpy vectors."""

from cloister.strategies.arrays import ArrayLayout
from cloister.strategies.mean import Direction, StreamingMean, weighted_mean
from cloister.strategies.optimisers import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    OptimiserState,
    ServerOptimiser,
    optimiser_from,
)
from cloister.strategies.rules import Accumulator, Mean, Rule, rule_from
from cloister.strategies.scaffold import ScaffoldState

__all__ = [
    "Accumulator",
    "ArrayLayout",
    "Direction",
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedYogi",
    "Mean",
    "OptimiserState",
    "Rule",
    "ScaffoldState",
    "ServerOptimiser",
    "StreamingMean",
    "optimiser_from",
    "rule_from",
    "weighted_mean",
]
