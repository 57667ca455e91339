"""Clean and robust accuracy of adversarially trained federations: digits, digits under differential privacy, MNIST.

    python benchmarks/adversarial.py --out FOLDER [--data FOLDER] [--only digits digits-private mnist] [--records 1000]

Each federation is trained once under ``--out`` (a run that is there is read; one of another federation file is not), then evaluated by
what ``cloister audit robustness`` runs. MNIST needs ``--data`` (its four IDX files).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from measuring import hand_in, machine, say, table, target_table

from cloister.core.spec import Loaded, load_federation
from cloister.server.robustness.evaluation import Settings, evaluate
from cloister.server.robustness.subject import open_subject
from cloister.simulation.engines import LocalEngine
from cloister.simulation.simulate import resume, simulate

HERE = Path(__file__).parent
#: File, ε of the evaluation, least clean accuracy, least accuracy under attack, and under which.
CASES = {
    "digits": ("digits_adversarial.toml", 0.1, 0.99, 0.84, "pgd"),
    "digits-private": ("digits_adversarial_private.toml", 0.1, 0.85, 0.56, "pgd"),
    "mnist": ("mnist_adversarial.toml", 0.3, 0.97, 0.85, "all"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--data", type=Path, help="folder with MNIST's four IDX files")
    parser.add_argument("--only", nargs="+", choices=list(CASES), help="which federations (all)")
    parser.add_argument("--records", type=int, default=1000, help="test records of an evaluation (1000)")
    parser.add_argument("--workers", type=int, default=2, help="processes that train (2)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument(
        "--doc", type=Path, metavar="FILE", help="also put the tables between the benchmark's two markers"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    given = parser.parse_args()
    cases = given.only or [name for name in CASES if name != "mnist" or given.data is not None]
    found = [measure_case(name, given) for name in cases]
    targets = [target for one in found for target in one.pop("targets")]
    answer = {"benchmark": "adversarial", "machine": machine(), "cases": found, "targets": targets}
    hand_in(given, answer, text(found, targets), missed=[t["what"] for t in targets if not t["met"]])


def measure_case(name: str, given: argparse.Namespace) -> dict[str, Any]:
    file, epsilon, clean, robust, under = CASES[name]
    data = [f"task.data={json.dumps(str(given.data.expanduser().resolve()))}"] if name == "mnist" else []
    loaded = load_federation(HERE / file, data)
    begun = time.monotonic()
    run = trained(loaded, given.out / f"{name}-{loaded.digest()[:12]}", given.workers)
    took = json.loads((run / "report.json").read_text())["time"]["seconds"]
    say(f"{name}: trained in {took:.0f} s ({time.monotonic() - begun:.0f} s now)")
    settings = Settings(norm="linf", epsilon=epsilon, records=given.records, restarts=5, steps=50)
    result = evaluate(open_subject(run), settings, tell=say)
    least = result["robust_accuracy"] if under == "all" else result["attacks"][under]
    targets = [
        target(f"{name}: clean accuracy, %", clean, result["accuracy"]["accuracy"]),
        target(
            f"{name}: accuracy under {'all attacks' if under == 'all' else 'PGD'}, %",
            robust,
            least["accuracy"],
        ),
    ]
    return {"name": name, "run": str(run), "train_seconds": took, "result": result, "targets": targets}


def trained(loaded: Loaded, folder: Path, workers: int) -> Path:
    """Return the run of this federation: the one that is there, gone on with if need be, or a new one."""
    runs = sorted(path.parent for path in folder.glob("*/federation.toml"))
    if not runs:
        return simulate(loaded, out=folder, engine=LocalEngine(workers)).run
    if not (runs[-1] / "model.safetensors").exists():
        resume(runs[-1], engine=LocalEngine(workers))
    return runs[-1]


def target(what: str, least: float, found: float) -> dict[str, Any]:
    return {"what": what, "target": f">= {100 * least:g}", "found": 100 * found, "met": found >= least}


def text(found: list[dict[str, Any]], targets: list[dict[str, Any]]) -> str:
    """Return the result as tables."""
    names = ["fgsm", "pgd-20", "pgd", "apgd-ce", "apgd-t", "fab-t", "square"]
    rows = []
    for one in found:
        result = one["result"]
        attacks = result["attacks"]
        rows.append(
            [
                f"{one['name']}, ε = {result['epsilon']:g}",
                str(result["records"]),
                f"{100 * result['accuracy']['accuracy']:.1f}",
                *(f"{100 * attacks[name]['accuracy']:.1f}" if name in attacks else "–" for name in names),
                f"{100 * result['robust_accuracy']['accuracy']:.1f}",
                f"{100 * result['sites'][result['worst_site']]['robust']:.1f}",
                ", ".join(alarm["name"] for alarm in result["alarms"] if alarm["raised"]) or "none",
            ]
        )
    header = ["federation", "records", "clean, %", *names, "all", "worst site", "alarms"]
    return "\n".join([table(header, rows), "", target_table(targets)])


if __name__ == "__main__":
    main()
