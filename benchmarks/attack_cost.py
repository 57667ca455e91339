"""What a step of PGD costs, beside torchattacks' (pip install --no-deps torchattacks requests tqdm).

    python benchmarks/attack_cost.py [--repetitions 15] [--steps 20] [--batch 64]

Both attack the same model, batch and ε with the same steps and a random start; they run in turn, and a step's time is the attack's
divided by its steps. The ratio of a repetition compares two attacks that ran one after the other.
"""

from __future__ import annotations

import statistics
import time

import torch
from measuring import hand_in, machine, options, table, target_table
from torch.nn import functional

from cloister.core.adversarial.attacks import pgd
from cloister.core.adversarial.threat import Threat
from cloister.core.models import build

MODELS = {
    "cnn": {"name": "cnn"},
    "cnn of strides": {"name": "cnn", "halve": "stride"},
    "resnet": {"name": "resnet"},
}


def main() -> None:
    parser = options(__doc__, repetitions=15)
    parser.add_argument("--steps", type=int, default=20, help="steps of an attack (20)")
    parser.add_argument("--batch", type=int, default=64, help="images of an attack (64)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: compare(model, given) for name, model in MODELS.items()}
    targets = [
        {
            "what": f"{name}: our step over torchattacks'",
            "target": "<= 1",
            "found": one["ratio"],
            "met": one["ratio"] <= 1,
        }
        for name, one in found.items()
    ]
    rows = [
        [name, f"{one['ours']:.2f}", f"{one['theirs']:.2f}", f"{one['ratio']:.2f}"]
        for name, one in found.items()
    ]
    answer = {"benchmark": "attack-cost", "machine": machine(), "models": found, "targets": targets}
    header = ["model", "Cloister, ms a step", "torchattacks 3.5.1, ms a step", "ratio"]
    words = f"PGD of {given.steps} steps on {given.batch} images of 28 x 28, one thread\n"
    hand_in(
        given,
        answer,
        "\n".join([words, table(header, rows), "", target_table(targets)]),
        missed=[t["what"] for t in targets if not t["met"]],
    )


def compare(model: dict[str, str], given: object) -> dict[str, float]:
    import torchattacks

    steps, batch, repetitions = (getattr(given, name) for name in ("steps", "batch", "repetitions"))
    torch.manual_seed(0)
    net = build(model, input_shape=(1, 28, 28), outputs=10).eval()
    images, labels = torch.rand(batch, 1, 28, 28), torch.randint(0, 10, (batch,))
    threat = Threat(norm="linf", epsilon=0.3, low=0.0, high=1.0)
    theirs = torchattacks.PGD(net, eps=0.3, alpha=0.02, steps=steps, random_start=True)

    def ours() -> None:
        start = threat.start(images, None)
        pgd(net, loss, images, labels, threat, steps=steps, step_size=0.02, start=start)

    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for repetition in range(repetitions + 1):
        turn = [("ours", ours), ("theirs", lambda: theirs(images, labels))]
        for name, attack in turn[:: 1 if repetition % 2 else -1]:  # whoever comes second finds warm caches
            begun = time.process_time()
            attack()
            if repetition:  # the first one warms up
                times[name].append(1000 * (time.process_time() - begun) / steps)
    ratios = [one / other for one, other in zip(times["ours"], times["theirs"], strict=True)]
    return {name: statistics.median(values) for name, values in times.items()} | {
        "ratio": statistics.median(ratios)
    }


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


if __name__ == "__main__":
    main()
