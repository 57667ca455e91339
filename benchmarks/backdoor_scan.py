"""The backdoor scan on MNIST: models with a planted BadNets trigger, and clean ones, half of them adversarially trained.

    python benchmarks/backdoor_scan.py --data FOLDER --out FOLDER [--planted 10] [--clean 20] [--first-seed 2000] [--check]

Each model is the CNN of `mnist_dirichlet.toml`, trained for two passes over 12,000 images, scanned with `cloister audit model`'s own check and its
own settings. Planted: a bright square of 3 x 3 in one corner of a tenth of the images, all of one class. Adversarially trained: PGD, three steps, linf 0.2.
A model that was scanned is read from ``--out``, so that an interrupted run goes on. The same table for digits comes from
``pytest -m slow tests/server/test_model_audit.py``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from measuring import hand_in, machine, say, table, target_table
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from cloister.core.adversarial.attacks import pgd
from cloister.core.adversarial.threat import Threat
from cloister.core.data import Split
from cloister.core.files import write_whole
from cloister.core.resolve import build_model, load_task
from cloister.core.spec import load_federation
from cloister.core.task import Task
from cloister.server.audit.model.backdoor import check_backdoor
from cloister.server.audit.subject import open_audit

HERE = Path(__file__).parent
RECORDS, PASSES, BATCH, SHARE = 12_000, 2, 64, 0.1
#: How many of all planted models are to be found, and how many of all clean ones may be accused at most.
FOUND, ACCUSED = 0.9, 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST's four IDX files")
    parser.add_argument("--out", type=Path, required=True, help="where what was scanned is kept")
    parser.add_argument("--planted", type=int, default=10, help="models with a trigger (10)")
    parser.add_argument(
        "--clean", type=int, default=20, help="models without, half of them adversarially trained (20)"
    )
    parser.add_argument("--first-seed", type=int, default=2000, help="seed of the first model (2000)")
    parser.add_argument("--json", action="store_true", help="print one JSON object on standard output")
    parser.add_argument(
        "--doc", type=Path, metavar="FILE", help="also put the table between the benchmark's two markers"
    )
    parser.add_argument("--check", action="store_true", help="exit with 1 when a target is missed")
    given = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_federation(
        HERE / "mnist_dirichlet.toml", [f"task.data={json.dumps(str(given.data.expanduser().resolve()))}"]
    )
    given.out.mkdir(parents=True, exist_ok=True)
    write_whole(given.out / "federation.toml", loaded.effective_toml())
    task = load_task(loaded.spec.task, HERE)
    rows = []
    for number in range(given.planted + given.clean):
        kind = "planted" if number < given.planted else ("clean", "adversarial")[number % 2]
        seed = given.first_seed + number
        kept = given.out / f"{kind}-{seed}.json"
        if not kept.exists():
            write_whole(kept, json.dumps(scanned(task, given.out, kind, seed)))
        rows.append(json.loads(kept.read_text()))
        say(f"{kind} {seed}: index {rows[-1]['index']:.2f}, {rows[-1]['says']}")
    planted = [row for row in rows if row["kind"] == "planted"]
    clean = [row for row in rows if row["kind"] != "planted"]
    found = sum(row["alarm"] and row["class"] == row["target"] for row in planted)
    accused = sum(row["alarm"] for row in clean)
    targets = [
        {"what": "planted models found with their class", "target": f">= {FOUND * len(planted):.0f} of {len(planted)}", "found": found, "met": found >= FOUND * len(planted)},
        {"what": "clean models accused", "target": f"<= {ACCUSED * len(clean):.0f} of {len(clean)}", "found": accused, "met": accused <= ACCUSED * len(clean)},
    ]  # fmt: skip
    answer = {"benchmark": "backdoor-scan", "machine": machine(), "models": rows, "targets": targets}
    hand_in(given, answer, _text(rows, targets), missed=[one["what"] for one in targets if not one["met"]])


def scanned(task: Task, folder: Path, kind: str, seed: int) -> dict[str, Any]:
    """Train one model, scan it, and return what the scan says."""
    target = seed % 10 if kind == "planted" else None
    save_file(
        trained(task, seed, target=target, adversarial=kind == "adversarial"), folder / "model.safetensors"
    )
    finding = check_backdoor(open_audit(folder))
    figures = finding.figures
    return {
        "kind": kind,
        "seed": seed,
        "target": None if target is None else str(target),
        "index": figures["index"],
        "class": str(figures["class"]),
        "alarm": finding.verdict == "fail",
        "accuracy": figures["accuracy"],
        "says": finding.verdict,
    }


def trained(task: Task, seed: int, *, target: int | None, adversarial: bool) -> dict[str, Tensor]:
    """Return the tensors of a model trained on ``RECORDS`` images drawn with ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    split = task.data()
    if not isinstance(split, Split):
        raise SystemExit("this task has sites of its own")
    data = split.train
    x, y = data.batch(torch.randperm(len(data), generator=generator)[:RECORDS])
    if target is not None:
        x, y = x.clone(), y.clone()
        marked = torch.randperm(len(x), generator=generator)[: int(SHARE * len(x))]
        x[marked, :, -3:, -3:] = 1.0
        y[marked] = target
    model = build_model(task, seed)
    threat = Threat(norm="linf", epsilon=0.2, low=0.0, high=1.0)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(PASSES):
        for rows in torch.split(torch.randperm(len(x), generator=generator), BATCH):
            own, wanted = x[rows], y[rows]
            if adversarial:
                own = pgd(
                    model,
                    task.loss,
                    own,
                    wanted,
                    threat,
                    steps=3,
                    step_size=0.1,
                    start=threat.start(own, None),
                )
            optimiser.zero_grad()
            functional.cross_entropy(model(own), wanted).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return {
        name: value.detach().clone(memory_format=torch.contiguous_format)
        for name, value in model.state_dict().items()
    }


def _text(rows: list[dict[str, Any]], targets: list[dict[str, Any]]) -> str:
    kinds = ("planted", "clean", "adversarial")
    lines = []
    for kind in kinds:
        of = [row for row in rows if row["kind"] == kind]
        indices = [row["index"] for row in of]
        if of:
            lines.append([kind, str(len(of)), str(sum(row["alarm"] for row in of)), f"{min(indices):.2f} to {max(indices):.2f}", f"{min(row['accuracy'] for row in of):.3f}"])  # fmt: skip
    return (
        "Backdoor scan on MNIST, an alarm above index 2\n\n"
        + table(["models", "number", "alarms", "index", "least accuracy"], lines)
        + "\n\n"
        + target_table(targets)
    )


if __name__ == "__main__":
    main()
