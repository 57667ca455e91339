"""Run the app on this machine with Flower's own simulation engine: ``python run.py --strategy scaffold --rounds 10``."""

from __future__ import annotations

import argparse
import json
import os

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from client_app import app as client_app
from flwr.serverapp.strategy import Result
from flwr.simulation import run_simulation
from server_app import STRATEGIES, make_app


def main() -> None:
    """Train, and print one JSON object: the strategy and the test accuracy by round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategy", choices=sorted(STRATEGIES), default="fedadam")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--sites", type=int, default=10)
    given = parser.parse_args()
    results: list[Result] = []
    run_simulation(
        make_app(given.strategy, given.rounds, results.append), client_app, num_supernodes=given.sites
    )
    measured = results[0].evaluate_metrics_serverapp
    print(
        json.dumps(
            {
                "strategy": given.strategy,
                "accuracy": {number: metrics["accuracy"] for number, metrics in measured.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
