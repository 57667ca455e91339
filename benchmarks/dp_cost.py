"""What a differentially private step costs: Cloister's DP-SGD and Opacus' beside the same model's ordinary step.

All contestants take one step each, in an order that is shuffled anew, over and over in one process, on the same made-up batch; a private step holds per-record
gradients, clipping, noise and the optimiser. The process keeps freed memory, as a worker of a simulation does. A ratio is the median over the repetitions of (private step / ordinary step next to it).
"""
# ruff: noqa: E402 - how torch's threads wait is said before torch is loaded

from __future__ import annotations

import copy
import random
import time
import warnings
from collections.abc import Callable
from typing import Any

from cloister.core.waiting import wait_briefly

wait_briefly()  # as the `cloister` command does, before torch is loaded; for every contestant

import torch
from measuring import Noise, hand_in, machine, median, options, ratio, say, table, target_table
from opacus import GradSampleModule  # type: ignore[import-untyped]
from opacus.grad_sample import GradSampleModuleFastGradientClipping  # type: ignore[import-untyped]
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping  # type: ignore[import-untyped]
from opacus.utils.fast_gradient_clipping_utils import (  # type: ignore[import-untyped]
    DPLossFastGradientClipping,
)
from torch import Tensor, nn
from torch.nn import functional

from cloister.core.models import build
from cloister.core.randomness import SystemRandomness
from cloister.privacy.dpsgd import DpSgd, DpSgdSettings
from cloister.privacy.gradients.convolution import registered_conv2d
from cloister.privacy.noise import gaussian_source
from cloister.simulation.threads import keep_memory

RATE, CLIP, SIGMA = 0.01, 1.0, 1.0
WARM = 2

#: What is trained: the model, one record's shape, its vocabulary.
MODELS: dict[str, tuple[str | dict[str, Any], tuple[int, ...], int | None]] = {
    "cnn": ("cnn", (1, 28, 28), None),
    "tanh-cnn": ("tanh-cnn", (1, 28, 28), None),
    "mlp": ({"name": "mlp", "hidden": [512, 512]}, (28, 28), None),
    "resnet": ("resnet", (3, 32, 32), None),
    "separable": ("separable", (3, 32, 32), None),
    "lstm": ("lstm", (32, 16), None),
    "transformer": ("transformer", (64,), 1000),
}
#: The most that a step of Cloister may cost, in ordinary steps.
TARGETS = {"cnn": 1.6, "mlp": 2.5}
TITLES = {
    "plain": "ordinary step",
    "cloister": "Cloister",
    "hooks": "Opacus, hooks",
    "hooks+sampler": "Opacus, hooks with Cloister's convolution sampler",
    "ghost": "Opacus, ghost clipping",
}

Batch = tuple[Tensor, Tensor]
Step = Callable[[], None]


def main() -> None:
    parser = options(__doc__, repetitions=25)
    parser.add_argument(
        "--models", nargs="*", choices=MODELS, default=["cnn", "mlp", "tanh-cnn"], help="(cnn mlp tanh-cnn)"
    )
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2], help="(1 2)")
    parser.add_argument("--batch", type=int, default=256, help="records of a step, all at once (256)")
    parser.add_argument(
        "--without", nargs="*", choices=TITLES, default=[], help="contestants to leave out (none)"
    )
    given = parser.parse_args()
    keep_memory()
    noise, found, targets = Noise(given.patience), [], []
    for threads in given.threads:
        torch.set_num_threads(threads)
        for name in given.models:
            say(f"{name}, {threads} thread(s)")
            noise.sample()
            one = measure(name, given.batch, given.repetitions, given.seed, set(given.without))
            found.append({"model": name, "threads": threads} | one)
            if name in TARGETS and "cloister" in one["ratios"]:
                targets.append(
                    {
                        "what": f"{name}, {threads} thread(s): Cloister's step / ordinary step",
                        "target": f"at most {TARGETS[name]}",
                        "found": one["ratios"]["cloister"]["median"],
                        "met": one["ratios"]["cloister"]["median"] <= TARGETS[name],
                    }
                )
    answer = {
        "benchmark": "dp-cost",
        "batch": given.batch,
        "machine": machine(),
        "noise": noise.report(),
        "results": found,
        "targets": targets,
    }
    hand_in(given, answer, text(answer), missed=[t["what"] for t in targets if not t["met"]])


def measure(name: str, batch: int, repetitions: int, seed: int, without: set[str]) -> dict[str, Any]:
    """Return the seconds of every step, and the ratios to the ordinary step."""
    model, shape, vocabulary = MODELS[name]
    generator = torch.Generator().manual_seed(seed)
    inputs = (
        torch.randn(batch, *shape, generator=generator)
        if vocabulary is None
        else torch.randint(0, vocabulary, (batch, *shape), generator=generator)
    )
    data = inputs, torch.randint(0, 10, (batch,), generator=generator)
    torch.manual_seed(seed)
    start = build(model, input_shape=shape, outputs=10, vocabulary=vocabulary).train()
    steps: dict[str, Step] = {}
    for title, make in CONTESTANTS.items():
        if title not in without:
            steps[title] = make(copy.deepcopy(start), data)
    seconds: dict[str, list[float]] = {title: [] for title in steps}
    shuffle = random.Random(seed)  # noqa: S311 - an order, not a secret
    for repetition in range(-WARM, repetitions):
        for title in shuffle.sample(list(steps), len(steps)):
            began = time.perf_counter()
            steps[title]()
            if repetition >= 0:
                seconds[title].append(time.perf_counter() - began)
    ratios = {
        title: vars(ratio(times, seconds["plain"])) for title, times in seconds.items() if title != "plain"
    }
    return {
        "parameters": sum(p.numel() for p in start.parameters()),
        "seconds": seconds,
        "ratios": ratios,
    }


def plain(model: nn.Module, data: Batch) -> Step:
    """Return an ordinary step of SGD."""
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        functional.cross_entropy(model(data[0]), data[1]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def cloister(model: nn.Module, data: Batch) -> Step:
    """Return a private step as a site takes it, noise from the cipher included."""
    settings = DpSgdSettings(
        noise_multiplier=SIGMA,
        clip=CLIP,
        expected_batch=float(len(data[1])),
        physical_batch=len(data[1]),
    )
    engine = DpSgd(model, each, settings)
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    source = gaussian_source(SystemRandomness(), "benchmark")

    def step() -> None:
        engine.step([data], source)
        optimiser.step()

    return step


def hooks(model: nn.Module, data: Batch) -> Step:
    """Return a private step of Opacus' default mode."""
    wrapped = GradSampleModule(model, loss_reduction="mean")
    optimiser = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=RATE),
        noise_multiplier=SIGMA,
        max_grad_norm=CLIP,
        expected_batch_size=len(data[1]),
    )

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        functional.cross_entropy(wrapped(data[0]), data[1]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def hooks_with_our_sampler(model: nn.Module, data: Batch) -> Step:
    """Return a private step of Opacus' default mode, its sampler for convolutions replaced during the step."""
    inner = hooks(model, data)

    def step() -> None:
        with registered_conv2d():
            inner()

    return step


def ghost(model: nn.Module, data: Batch) -> Step:
    """Return a private step of Opacus' ghost clipping."""
    wrapped = GradSampleModuleFastGradientClipping(model, max_grad_norm=CLIP, use_ghost_clipping=True)
    optimiser = DPOptimizerFastGradientClipping(
        torch.optim.SGD(wrapped.parameters(), lr=RATE),
        noise_multiplier=SIGMA,
        max_grad_norm=CLIP,
        expected_batch_size=len(data[1]),
    )
    criterion = DPLossFastGradientClipping(wrapped, optimiser, nn.CrossEntropyLoss())

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        criterion(wrapped(data[0]), data[1]).backward()
        optimiser.step()

    return step


def each(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return each record's loss."""
    return functional.cross_entropy(outputs, targets, reduction="none")


CONTESTANTS: dict[str, Callable[[nn.Module, Batch], Step]] = {
    "plain": plain,
    "cloister": cloister,
    "hooks": hooks,
    "hooks+sampler": hooks_with_our_sampler,
    "ghost": ghost,
}


def text(answer: dict[str, Any]) -> str:
    """Return the result as tables."""
    rows = []
    for one in answer["results"]:
        for title, times in one["seconds"].items():
            found = one["ratios"].get(title)
            rows.append(
                [
                    f"{one['model']}, {one['threads']} thread(s)",
                    TITLES[title],
                    f"{1e3 * median(times):.1f}",
                    "1" if found is None else f"{found['median']:.2f}",
                ]
            )
    lines = [table(["model", "step", "ms", "ratio"], rows), "", target_table(answer["targets"])]
    if answer["noise"]["unreliable"]:
        lines.append("\nUNRELIABLE: other programs used more than a tenth of the cores.")
    return "\n".join(lines)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
    main()
