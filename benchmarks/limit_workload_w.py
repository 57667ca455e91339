"""What this machine could do at most: the rate of workload W's own operations, each alone, all cores busy.

One single-threaded process a core. Each operation of the network (forward, gradient of the inputs, gradient of the weights) runs
at several batch sizes, channels last, in all processes at once; its rate is the best over the batch sizes of what all processes did
together. Two limits follow for a round:

- ``peak``: all its operations at the rate of the fastest convolution;
- ``own``: each operation at its own best rate, whatever the batch size. That is what a round would cost if everything else
  (pooling, ReLU, bias, loss, optimiser, Python, messages) cost nothing.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
from plain_w import COHORT, RECORDS, flops_of_a_round, hand_over, now
from torch import Tensor

_BATCHES = (10, 32, 128, 512)
_SECONDS, _BEST_OF = 0.08, 3

Rates = dict[str, float]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--result", type=Path, required=True)
    arguments.add_argument("--processes", type=int, required=True)
    given = arguments.parse_args()

    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(given.processes), context.Queue()
    started = [context.Process(target=_measure, args=(barrier, queue)) for _ in range(given.processes)]
    for process in started:
        process.start()
    found: list[dict[str, list[float]]] = [queue.get() for _ in started]
    for process in started:
        process.join()
    # The same attempt ran everywhere at once: its rates add up. Then the best attempt counts.
    rates = {
        name: max(sum(attempt) for attempt in zip(*(one[name] for one in found), strict=True))
        for name in found[0]
    }
    flops = flops_of_a_round()
    peak = max(rate for name, rate in rates.items() if not name.startswith("linear"))
    answer = {
        "processes": given.processes,
        "rates": rates,
        "flops": sum(flops.values()),
        "peak": sum(flops.values()) / peak,
        "own": sum(count / rates[name] for name, count in flops.items()),
    }
    hand_over(given.result, answer)


def _measure(barrier: Barrier, queue: Queue[Any]) -> None:
    """Answer with the rates of every attempt (operations a second) by operation."""
    torch.set_num_threads(1)
    flops = {name: count / (COHORT * RECORDS) for name, count in flops_of_a_round().items()}  # of one record
    rates: dict[str, list[float]] = {name: [] for name in flops}
    for batch in _BATCHES:
        for name, operation in _operations(batch).items():
            operation()
            for _ in range(_BEST_OF):
                barrier.wait()
                begun, done = now(), 0
                while now() - begun < _SECONDS:
                    operation()
                    done += 1
                rates[name].append(done * batch * flops[name] / (now() - begun))
    queue.put(rates)


def _operations(batch: int) -> dict[str, Callable[[], Any]]:
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def last(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=torch.channels_last)

    first_in, first_weights, first_out = (
        last(random(batch, 1, 28, 28)),
        last(random(16, 1, 5, 5)),
        last(random(batch, 16, 28, 28)),
    )
    second_in, second_weights, second_out = (
        last(random(batch, 16, 14, 14)),
        last(random(32, 16, 5, 5)),
        last(random(batch, 32, 14, 14)),
    )
    linear_in, linear_weights, linear_out = random(batch, 1568), random(64, 1568), random(batch, 64)

    def backward(
        out: Tensor, given: Tensor, weights: Tensor, mask: tuple[bool, bool, bool]
    ) -> Callable[[], Any]:
        return lambda: torch.ops.aten.convolution_backward(
            out, given, weights, None, [1, 1], [2, 2], [1, 1], False, [0, 0], 1, list(mask)
        )

    return {
        "first.forward": lambda: torch.conv2d(first_in, first_weights, padding=2),
        "first.weights": backward(first_out, first_in, first_weights, (False, True, False)),
        "second.forward": lambda: torch.conv2d(second_in, second_weights, padding=2),
        "second.inputs": backward(second_out, second_in, second_weights, (True, False, False)),
        "second.weights": backward(second_out, second_in, second_weights, (False, True, False)),
        "linear.forward": lambda: linear_in @ linear_weights.T,
        "linear.inputs": lambda: linear_out @ linear_weights,
        "linear.weights": lambda: linear_out.T @ linear_in,
    }


if __name__ == "__main__":
    main()
