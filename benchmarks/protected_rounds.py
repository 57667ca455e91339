"""What protection costs a round: masked, BFV and clear rounds of one federation, run in turn.

    python benchmarks/protected_rounds.py [--data FOLDER] [--repetitions 3]

Two federations: heart (four hospitals, a tiny model: what the exchanges cost) and MNIST (20 sites that share its records out, an MLP of a million
parameters, one local epoch: what a real round costs). Each contestant is one simulation on two workers; a round's time is the median over the
rounds after the first, whose warm-up is everybody's. A ratio is the median over the repetitions of (protected / clear next to it).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from measuring import Noise, cores, hand_in, machine, median, options, ratio, say, table, target_table

from cloister.core.spec import parse_federation
from cloister.simulation.engines import LocalEngine
from cloister.simulation.simulate import simulate

MOST = 1.3
CLEAR, PROTECTED = "plain", ("masked", "bfv")
HEART: dict[str, Any] = {
    "federation": {"name": "heart", "rounds": 12, "seed": 7},
    "task": {"use": "heart"},
    "cohort": {"min_sites": 3},
    "training": {"local_steps": 4, "batch_size": 32, "optimizer": {"name": "sgd", "lr": 0.5}},
}


def mnist(data: str) -> dict[str, Any]:
    return {
        "federation": {"name": "mnist", "rounds": 4, "seed": 1, "checkpoint_every": 100},
        "task": {
            "use": "images",
            "data": data,
            "model": {"name": "mlp", "hidden": [1260]},
            "classes": 10,
            "size": 28,
            "channels": 1,
        },
        "cohort": {"sites": 20, "min_sites": 3, "partition": {"by": "iid"}},
        "training": {"local_epochs": 1, "batch_size": 20, "optimizer": {"name": "sgd", "lr": 0.1}},
    }


def main() -> None:
    parser = options(__doc__, repetitions=3)
    parser.add_argument("--data", help="folder of MNIST's four IDX files; without it heart only")
    parser.add_argument(
        "--protections", nargs="*", default=list(PROTECTED), help="beside a clear run (masked bfv)"
    )
    parser.add_argument("--only", choices=["heart", "MNIST"], help="one of the two federations")
    given = parser.parse_args()
    noise = Noise(given.patience)
    documents = {"heart, 4 sites": HEART} | ({"MNIST, 20 sites": mnist(given.data)} if given.data else {})
    documents = {name: one for name, one in documents.items() if name.startswith(given.only or "")}
    protections = tuple(given.protections)
    rows, targets, answer = [], [], {}
    for name, document in documents.items():
        seconds: dict[str, list[float]] = {CLEAR: [], **{protection: [] for protection in protections}}
        sent: dict[str, float] = {}
        size = 0
        for number in range(given.repetitions):
            order = [CLEAR, *protections] if number % 2 == 0 else [*reversed(protections), CLEAR]
            for protection in order:
                say(f"{name}, {protection}, repetition {number + 1}")
                noise.sample()
                took, sent[protection], size = _round(document, protection, given.seed + number)
                seconds[protection].append(took)
        for protection, times in seconds.items():
            over = ratio(times, seconds[CLEAR])
            rows.append(
                [
                    f"{name}, {size:,} parameters",
                    protection,
                    f"{1000 * median(times):.0f}",
                    str(over),
                    f"{sent[protection]:.1f}",
                ]
            )
            answer[f"{name}/{protection}"] = {
                "seconds": times,
                "ratio": over.median,
                "bytes": sent[protection],
            }
            if protection == "masked" and size > 10**6:
                targets.append(
                    {
                        "what": f"masked over clear, {name}",
                        "target": f"at most {MOST}",
                        "found": over.median,
                        "met": over.median <= MOST,
                    }
                )
    text = table(
        ["federation", "protection", "ms a round", "over clear", "bytes up a parameter and site"], rows
    )
    if targets:
        text += "\n\n" + target_table(targets)
    if noise.report()["unreliable"]:
        text += "\n\nUNRELIABLE: other programs used more than a tenth of the cores."
    missed = [target["what"] for target in targets if not target["met"]]
    hand_in(given, {"machine": machine(), "noise": noise.report(), **answer}, text, missed=missed)


def _round(document: dict[str, Any], protection: str, seed: int) -> tuple[float, float, int]:
    """Run once; return the median seconds of a round, the bytes up a parameter and site, and the parameters."""
    document = {
        **document,
        "federation": {**document["federation"], "seed": seed},
        "aggregation": {"protection": protection},
        "evaluation": {"sites": False, "every": 0},
    }
    with tempfile.TemporaryDirectory() as out:
        made = simulate(parse_federation(document, base=Path()), out=Path(out), engine=LocalEngine(cores()))
        events = [json.loads(line) for line in (made.run / "events.jsonl").read_text().splitlines()]
    rounds = [event for event in events if event["kind"] == "round"][1:]
    size = int(next(event for event in events if event["kind"] == "run")["parameters"])
    sites = rounds[0]["answered"]
    sent = median([event["bytes_up"] for event in rounds]) / sites / size
    return median([sum(event["seconds"].values()) for event in rounds]), sent, size


if __name__ == "__main__":
    main()
