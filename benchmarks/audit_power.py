"""How often a privacy-budget audit finds a planted fault, and how often it cries wolf.

    python benchmarks/audit_power.py [--repetitions 10] [--honest 50] [--seed 1] [--case N]

Each audit is `cloister audit privacy` on the digits with 1000 canaries in gradient space at 95% confidence, one seed after the other; faults are planted in
Cloister's own code while it runs. ``--honest`` is for the rows without a fault, ``--repetitions`` for the others. A claim is refuted by chance in 1 of 20 audits: the
share of refutations without a fault is given with its exact 95% interval.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measuring import hand_in, machine, options, table, target_table
from scipy import stats

from cloister.client.trainer import Trainer
from cloister.core.errors import DataError
from cloister.core.spec import parse_federation
from cloister.privacy import bookkeeping
from cloister.privacy.dpsgd import DpSgd
from cloister.privacy.gradients.clipping import Factors
from cloister.privacy.noise import GaussianSource
from cloister.privacy.record_plans import DistributedRecordPlan
from cloister.simulation.engines import LocalEngine
from cloister.simulation.privacy_audit.auditing import Audit
from cloister.simulation.privacy_audit.planning import designed

Plant = Callable[[], AbstractContextManager[object]]

#: Every record in every step: 2 rounds of 2 steps at one site.
FULL: dict[str, Any] = {
    "task": {"use": "digits", "model": {"name": "mlp", "hidden": [8]}},
    "cohort": {"sites": 1, "min_sites": 1, "partition": {"by": "iid"}},
    "training": {"local_steps": 2, "batch_size": 1000, "optimizer": {"name": "sgd", "lr": 0.1}},
    "privacy": {"unit": "record", "delta": 1e-5, "clip": 1.0, "sampling_rate": 1.0},
}
#: A sixth of the records in each of 60 steps.
SAMPLED: dict[str, Any] = FULL | {
    "training": FULL["training"] | {"local_steps": 30},
    "privacy": FULL["privacy"] | {"sampling_rate": 1 / 6},
}
#: Each record is attacked by three steps of PGD before it is trained on.
ADVERSARIAL: dict[str, Any] = FULL | {
    "training": FULL["training"]
    | {"adversarial": {"method": "pgd", "norm": "linf", "epsilon": 0.1, "steps": 3, "step_size": 0.05}}
}
#: One step a round over the records of twelve sites; three noise shares make σ. In clear: a masked session of twelve needs nine to open.
SHARED: dict[str, Any] = FULL | {
    "cohort": {"sites": 12, "min_sites": 3, "partition": {"by": "iid"}},
    "aggregation": {"protection": "plain"},
    "training": FULL["training"] | {"local_steps": 1, "batch_size": 200},
    "privacy": FULL["privacy"] | {"unit": "record-distributed"},
}


@contextlib.contextmanager
def half_noise() -> Iterator[None]:
    """Noise is drawn with half its standard deviation."""
    drawn = GaussianSource.perturb
    with patch.object(GaussianSource, "perturb", lambda self, total, *, std: drawn(self, total, std=std / 2)):
        yield


@contextlib.contextmanager
def no_clip() -> Iterator[None]:
    """Records are summed as long as they are."""

    def factors(squared: torch.Tensor, clip: float) -> Factors:  # noqa: ARG001 - the patched function's signature
        return Factors(torch.ones_like(squared), None)

    with patch.object(bookkeeping, "clip_factors", factors):
        yield


@contextlib.contextmanager
def hooks_left_on() -> Iterator[None]:
    """The passes of the attack leave per-record gradients too, each clipped and added by itself, as when Opacus' hooks are left on."""
    summed = DpSgd._accumulate  # noqa: SLF001 - where the fault is planted

    def accumulate(self: DpSgd, batches: Any, sums: Any, objective: Any) -> Any:
        kept = list(batches)
        if objective is not None:
            for _ in range(objective.table.steps):
                summed(self, kept, sums, None)
        return summed(self, kept, sums, objective)

    with patch.object(DpSgd, "_accumulate", accumulate):
        yield


@contextlib.contextmanager
def sites_drop_out(*, share_of_all: bool) -> Iterator[None]:
    """Of twelve sites three answer; with ``share_of_all`` each had counted on the noise of all twelve."""
    trained = Trainer.train

    def train(self: Trainer, *arguments: Any, site: str, **rest: Any) -> Any:
        if site not in ("site-001", "site-002", "site-003"):
            raise DataError("off", code="site-off")
        return trained(self, *arguments, site=site, **rest)

    def share(self: DistributedRecordPlan) -> float:
        return self.noise_multiplier / self.sites**0.5

    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(Trainer, "train", train))
        if share_of_all:
            stack.enter_context(patch.object(DistributedRecordPlan, "share", property(share)))
        yield


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: a federation, what it claims, and what is wrong with it."""

    name: str
    file: dict[str, Any]
    epsilon: float
    rounds: int = 2
    plant: Plant = contextlib.nullcontext
    honest: bool = False


CASES = (
    Case(name="nothing, every record in each step", file=FULL, epsilon=1.0, honest=True),
    Case(name="nothing, every record in each step", file=FULL, epsilon=4.0, honest=True),
    Case(name="nothing, every record in each step", file=FULL, epsilon=8.0, honest=True),
    Case(name="nothing, a sixth of them", file=SAMPLED, epsilon=4.0, honest=True),
    Case(name="nothing, adversarial training", file=ADVERSARIAL, epsilon=4.0, honest=True),
    Case(
        name="nothing, nine of twelve sites drop out",
        file=SHARED,
        epsilon=4.0,
        rounds=4,
        plant=lambda: sites_drop_out(share_of_all=False),
        honest=True,
    ),
    Case(name="half the noise", file=FULL, epsilon=4.0, plant=half_noise),
    Case(name="half the noise, a sixth of the records", file=SAMPLED, epsilon=4.0, plant=half_noise),
    Case(name="no clip", file=FULL, epsilon=4.0, plant=no_clip),
    Case(name="hooks left on in adversarial training", file=ADVERSARIAL, epsilon=4.0, plant=hooks_left_on),
    Case(
        name="nine of twelve sites drop out, and their noise",
        file=SHARED,
        epsilon=4.0,
        rounds=4,
        plant=lambda: sites_drop_out(share_of_all=True),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of a case."""

    case: Case
    bounds: tuple[float, ...]
    verdicts: tuple[str, ...]
    refutable: float

    @property
    def refuted(self) -> int:
        """In how many audits the claim was refuted."""
        return sum(verdict == "refuted" for verdict in self.verdicts)

    @property
    def other(self) -> str:
        """What the other audits say."""
        return "/".join(sorted({verdict for verdict in self.verdicts if verdict != "refuted"}))

    @property
    def interval(self) -> tuple[float, float]:
        """The exact 95% interval of the share of refutations."""
        found = stats.binomtest(self.refuted, len(self.bounds)).proportion_ci(0.95, method="exact")
        return float(found.low), float(found.high)


def measured(case: Case, seeds: Sequence[int], *, canaries: int = 1000) -> Row:
    """Audit a case once with each seed."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            tables = case.file | {"federation": {"name": "audit-power", "rounds": case.rounds, "seed": seed}}
            tables["privacy"] = tables["privacy"] | {"epsilon": case.epsilon}
            loaded = parse_federation(tables, base=Path(folder))
            with case.plant():
                made = Audit(design=designed(loaded, canaries=canaries)).run(
                    out=Path(folder), engine=LocalEngine(0)
                )
            found.append(made.judgement)
    decided = next(one for one, _ in found[0].bounds if one.estimator.kind.name == found[0].decided_by)
    return Row(
        case=case,
        bounds=tuple(one.lower_bound for one in found),
        verdicts=tuple(one.verdict for one in found),
        refutable=decided.refutable,
    )


def targets_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return what the rows must show."""
    targets: list[tuple[str, str, float, bool]] = []
    for row in rows:
        case, number = row.case, len(row.bounds)
        name = f"{case.name}, claim {case.epsilon:g}"
        if not case.honest:
            targets.append((f"{name}: refuted", ">= 90%", row.refuted / number, row.refuted >= 0.9 * number))
            continue
        # A share of 1 in 20 is not below what was seen.
        targets.append(
            (f"{name}: refuted, lower end of its interval", "<= 5%", row.interval[0], row.interval[0] <= 0.05)
        )
        if case.epsilon == 1:
            silent = sum(verdict == "no power" for verdict in row.verdicts) / max(number - row.refuted, 1)
            targets.append((f"{name}: of the others, 'no power'", "100%", silent, silent == 1))
        least = {4.0: 3.2, 8.0: 6.8}.get(case.epsilon)
        if case.file is FULL and least is not None:
            mean = statistics.fmean(row.bounds)
            targets.append((f"{name}: mean lower bound", f">= {least}", mean, mean >= least))
    return [
        {"what": what, "target": target, "found": found, "met": met} for what, target, found, met in targets
    ]


def printed(rows: Sequence[Row]) -> str:
    """Return the rows as a table."""
    header = [
        "fault",
        "claim",
        "audits",
        "refuted",
        "95% interval",
        "ε at least (mean)",
        "least",
        "most",
        "could refute from",
        "else",
    ]
    return table(
        header,
        [
            [
                row.case.name,
                f"{row.case.epsilon:g}",
                str(len(row.bounds)),
                str(row.refuted),
                f"{row.interval[0]:.1%} to {row.interval[1]:.1%}",
                f"{statistics.fmean(row.bounds):.2f}",
                f"{min(row.bounds):.2f}",
                f"{max(row.bounds):.2f}",
                f"{row.refutable:.2f}",
                row.other,
            ]
            for row in rows
        ],
    )


def main() -> None:
    parser = options(__doc__, repetitions=10)
    parser.add_argument("--honest", type=int, default=50, help="audits of each row without a fault (50)")
    parser.add_argument("--case", type=int, help="this row only, counted from 1")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for case in CASES if given.case is None else CASES[given.case - 1 : given.case]:
        number = given.honest if case.honest else given.repetitions
        rows.append(measured(case, range(given.seed, given.seed + number)))
        print(printed(rows[-1:]).splitlines()[-1], file=sys.stderr)
    targets = targets_of(rows)
    answer = {
        "benchmark": "audit-power",
        "machine": machine(),
        "seeds": [given.seed, given.seed + max(given.honest, given.repetitions) - 1],
        "rows": [
            {
                "fault": row.case.name,
                "claim": row.case.epsilon,
                "bounds": row.bounds,
                "verdicts": row.verdicts,
            }
            for row in rows
        ],
        "targets": targets,
    }
    hand_in(
        given,
        answer,
        "\n".join([printed(rows), "", target_table(targets)]),
        missed=[one["what"] for one in targets if not one["met"]],
    )


if __name__ == "__main__":
    main()
