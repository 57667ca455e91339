"""Accuracy on MNIST against ε: ten IID sites with record-level differential privacy, over several seeds.

    python benchmarks/mnist_private.py --data FOLDER --out FOLDER [--unit record-distributed] [--epsilon 3 8] [--seeds 1 2 3]

``--unit record`` (each site has noise of its own: ``mnist_private.toml``) or ``record-distributed`` (the sites' shares add up to the noise
of one central run: ``mnist_private_distributed.toml``). Every point (an ε and a seed) is one run of that file in a folder of its own under ``--out``. A point that is there is
read, one that was interrupted goes on from its last checkpoint, and one whose federation file has changed is run anew.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from measuring import hand_in, machine, say, table, target_table

from cloister.core.spec import Loaded, load_federation
from cloister.simulation.engines import LocalEngine
from cloister.simulation.simulate import resume, simulate

HERE = Path(__file__).parent
FILES = {"record": HERE / "mnist_private.toml", "record-distributed": HERE / "mnist_private_distributed.toml"}

#: The least mean test accuracy for an ε, in percent.
TARGETS = {"record": {3.0: 95.5, 8.0: 97.0}, "record-distributed": {1.0: 96.5, 3.0: 97.5}}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST's four IDX files")
    parser.add_argument("--out", type=Path, required=True, help="where the points' runs are kept")
    parser.add_argument("--unit", choices=FILES, default="record", help="whose noise (record)")
    parser.add_argument("--epsilon", type=float, nargs="+", help="at each site (those that have targets)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(1 2 3)")
    parser.add_argument("--workers", type=int, default=2, help="processes that train (2)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="lay a value over the file"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument(
        "--doc", type=Path, metavar="FILE", help="also put the tables between the benchmark's two markers"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    given = parser.parse_args()

    points = []
    for seed in given.seeds:
        for epsilon in given.epsilon or TARGETS[given.unit]:
            settings = [
                f"task.data={json.dumps(str(given.data.expanduser().resolve()))}",
                f"privacy.epsilon={epsilon}",
                f"federation.seed={seed}",
                *given.set,
            ]
            say(f"epsilon {epsilon:g}, seed {seed} ...", end=" ")
            points.append(point(load_federation(FILES[given.unit], settings), given.out, given.workers))
            say(f"{points[-1]['accuracy']:.2%}")
    name = FILES[given.unit].stem.replace("_", "-")
    answer = {"benchmark": name, "machine": machine(), "points": points} | summary(points, given.unit)
    hand_in(given, answer, text(answer), missed=[t["what"] for t in answer["targets"] if not t["met"]])


def point(loaded: Loaded, out: Path, workers: int) -> dict[str, Any]:
    """Return one run's figures: those kept, those of the interrupted run gone on with, or those of a new one."""
    federation, privacy = loaded.spec.federation, loaded.spec.privacy
    # The digest is in the name: a run of another federation is another point.
    folder = out / f"epsilon-{privacy.epsilon:g}-seed-{federation.seed}-{loaded.digest()[:12]}"
    runs = sorted(path.parent for path in folder.glob("*/federation.toml"))
    report = runs[-1] / "report.json" if runs else None
    if report is not None and report.exists() and json.loads(report.read_text())["status"] == "done":
        figures = json.loads(report.read_text())
    elif runs:
        figures = resume(runs[-1], engine=LocalEngine(workers)).figures
    else:
        figures = simulate(loaded, out=folder, engine=LocalEngine(workers)).figures
    if figures["digest"] != loaded.digest():
        raise SystemExit(f"{folder} holds a run of another federation: remove it, or give another --out")
    return {
        "epsilon": privacy.epsilon,
        "seed": federation.seed,
        "accuracy": figures["metrics"]["central"]["last"]["accuracy"],
        "spent": max(site["epsilon"] for site in figures["privacy"]["sites"].values()),
        "delta": figures["privacy"]["delta"],
        "rounds": figures["rounds"],
        "parameters": figures["parameters"],
    }


def summary(points: list[dict[str, Any]], unit: str) -> dict[str, Any]:
    """Return each ε's mean and spread in percent, and the targets."""
    by_epsilon = {}
    for epsilon in sorted({one["epsilon"] for one in points}):
        found = [100 * one["accuracy"] for one in points if one["epsilon"] == epsilon]
        by_epsilon[epsilon] = {
            "mean": statistics.fmean(found),
            "deviation": statistics.stdev(found) if len(found) > 1 else 0.0,
            "accuracies": found,
            "spent": max(one["spent"] for one in points if one["epsilon"] == epsilon),
        }
    targets = [
        {
            "what": f"mean test accuracy at epsilon {epsilon:g}, %",
            "target": f">= {least:g}",
            "found": by_epsilon[epsilon]["mean"],
            "met": by_epsilon[epsilon]["mean"] >= least,
        }
        for epsilon, least in TARGETS[unit].items()
        if epsilon in by_epsilon
    ]
    return {"by_epsilon": by_epsilon, "targets": targets}


def text(answer: dict[str, Any]) -> str:
    """Return the result as tables."""
    points = answer["points"]
    seeds = list(dict.fromkeys(one["seed"] for one in points))
    rows = [
        [
            f"{epsilon:g}",
            f"{found['spent']:.3f}",
            *(f"{accuracy:.2f}" for accuracy in found["accuracies"]),
            f"{found['mean']:.2f}",
            f"{found['deviation']:.2f}",
        ]
        for epsilon, found in answer["by_epsilon"].items()
    ]
    header = ["ε allowed", "ε spent", *(f"seed {seed}, %" for seed in seeds), "mean, %", "deviation"]
    first = points[0]
    lines = [
        f"MNIST's 10,000 test images after {first['rounds']} rounds, {first['parameters']:,} parameters, δ = {first['delta']:g} at each site\n",
        table(header, rows),
    ]
    if answer["targets"]:
        lines += ["", target_table(answer["targets"])]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
