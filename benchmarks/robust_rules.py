"""How long a robust rule takes by the number of updates and their length, and NNM beside byzfl's and a plain loop.

    OMP_NUM_THREADS=1 python benchmarks/robust_rules.py [--clients 10 20 50] [--dims 10000 100000 1000000] [--json]
    pip download byzfl==0.0.11 --no-deps -d /tmp/byzfl && (cd /tmp/byzfl && unzip -q *.whl)
    OMP_NUM_THREADS=1 python benchmarks/robust_rules.py --byzfl /tmp/byzfl        # NNM beside byzfl's

byzfl 0.0.11 depends on torchvision, which does not import beside a CPU build of torch: so its two modules of rules are read from an
unpacked wheel, without the package around them. Times are the smallest of some repetitions; set OMP_NUM_THREADS=1 for one thread.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.strategies.robust import Pipeline, nnm

RULES = (
    "mean",
    "median",
    "trimmed-mean",
    "geometric-median",
    "krum",
    "multi-krum",
    "bulyan",
    "centered-clipping",
    "norm-bound(1)",
    "fltrust",
    "dnc",
    "arc | mean",
    "nnm | mean",
    "bucketing(2) | mean",
    "arc | nnm | trimmed-mean",
)
Rows = npt.NDArray[np.float32]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--dims", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--byzfl", type=Path, help="folder with an unpacked byzfl wheel")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    times = {
        rule: {
            f"{n}x{dim}": _time_of(rule, n, dim, options.repetitions)
            for n in options.clients
            for dim in options.dims
        }
        for rule in RULES
    }
    nearest = _nnm(options.byzfl, options.repetitions)
    if options.json:
        print(json.dumps({"seconds": times, "nnm": nearest}, indent=1))
        return
    head = [f"{n} x {dim:,}" for n in options.clients for dim in options.dims]
    print("| seconds a round, updates x length | " + " | ".join(head) + " |\n|---|" + "---|" * len(head))
    for rule, found in times.items():
        print(
            f"| `{rule.replace('|', chr(92) + '|')}` | "
            + " | ".join(f"{one:.4f}" for one in found.values())
            + " |"
        )
    print("\nNNM of 20 updates of 1,000,000, f = 5:")
    for who, seconds in nearest.items():
        print(f"  {who:<40} {seconds:8.3f} s   {seconds / nearest['cloister, as a step']:6.1f}")


def _time_of(rule: str, n: int, dim: int, repetitions: int) -> float:
    rows = _rows(n, dim)
    pipeline = Pipeline.parse(rule)
    f = next((f for f in range(n // 4, 0, -1) if (pipeline.least(f) or n + 1) <= n), 0)
    trusted = rows.mean(axis=0)
    return _least(
        lambda: pipeline.aggregate(rows, f=f, generator=np.random.default_rng(0), trusted=trusted),
        repetitions,
    )


def _nnm(byzfl: Path | None, repetitions: int) -> dict[str, float]:
    rows, f = _rows(20, 1_000_000), 5
    step, plain = Pipeline.parse("nnm | krum"), Pipeline.parse("krum")
    found = {
        "cloister, as a step": _least(lambda: _weights(rows, f), repetitions),
        "cloister, rows written out in float64": _least(lambda: nnm(rows, f), repetitions),
        "cloister, nnm | krum whole": _least(lambda: step.aggregate(rows, f=f), repetitions),
        "cloister, krum whole": _least(lambda: plain.aggregate(rows, f=f), repetitions),
        "plain loop over pairs, numpy": _least(lambda: _loop(rows, f), 1),
    }
    if byzfl is not None:
        theirs = _byzfl(byzfl)(f)
        found["byzfl 0.0.11, numpy"] = _least(lambda: theirs(rows), repetitions)
        import torch

        torch.set_num_threads(1)
        tensor = torch.from_numpy(rows)
        found["byzfl 0.0.11, torch"] = _least(lambda: theirs(tensor), repetitions)
    return found


def _weights(rows: Rows, f: int) -> Any:
    """Every mixed coordinate, block by block and never written out whole: as a pipeline uses them."""
    from cloister.strategies.robust.mixing import nnm_weights
    from cloister.strategies.robust.span import Span

    span = Span.of(rows)
    mixed = span.mixed(nnm_weights(span, f))
    return sum(float(mixed.block(start, stop).sum()) for start, stop in span.rows.pieces())


def _loop(rows: Rows, f: int) -> Any:
    n = len(rows)
    wide = rows.astype(np.float64)
    far = [[float(np.linalg.norm(wide[i] - wide[j])) for j in range(n)] for i in range(n)]
    return np.stack([wide[sorted(range(n), key=lambda j: far[i][j])[: n - f]].mean(axis=0) for i in range(n)])


def _byzfl(folder: Path) -> Any:
    """Return byzfl's NNM without the package's own ``__init__``, which imports torchvision."""
    sys.path.insert(0, str(folder))
    for name in ("byzfl", "byzfl.utils", "byzfl.aggregators"):
        module = types.ModuleType(name)
        module.__path__ = [str(folder / name.replace(".", "/"))]
        sys.modules[name] = module
    from byzfl.aggregators.preaggregators import NNM  # type: ignore[import-not-found]

    return NNM


def _rows(n: int, dim: int) -> Rows:
    return np.random.default_rng(0).standard_normal((n, dim), dtype=np.float32)


def _least(work: Callable[[], Any], repetitions: int) -> float:
    found = []
    for _ in range(repetitions):
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return min(found)


if __name__ == "__main__":
    main()
