"""Workload W with differential privacy for each record: Cloister beside its own app on Flower's Ray engine, and Flower with Opacus.

1000 clients over MNIST, 50 a round, 60 records each; a client takes 6 noisy steps on Poisson batches of probability 1/6, with C = 1 and
σ = 1. All contestants run in turn, each time in a fresh process, in an order that rotates from repetition to repetition.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import (
    Noise,
    Run,
    hand_in,
    machine,
    median,
    options,
    ratio,
    run,
    say,
    table,
    target_table,
)
from plain_w import BATCH, CLIENTS, CLIP, COHORT, PARAMETERS, RECORDS, SIGMA

#: Rounds at the start of each contestant that are not timed.
WARM = 3

TITLES = {
    "local": "Cloister, local engine",
    "ray": "Cloister's app on Flower's Ray engine",
    "opacus": "Flower's Ray engine with Opacus",
    "plain": "Cloister, local engine, without privacy",
}
#: The least rounds per second over Flower with Opacus.
TARGET = 3.5


def main() -> None:
    parser = options(__doc__, repetitions=3)
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST's four IDX files")
    parser.add_argument(
        "--rounds", type=int, default=10, help="timed rounds of each contestant in each repetition (10)"
    )
    parser.add_argument(
        "--without",
        nargs="*",
        choices=[name for name in TITLES if name != "local"],
        default=[],
        help="leave these out",
    )
    given = parser.parse_args()

    contestants = {name: start for name, start in _contestants(given).items() if name not in given.without}
    names = list(contestants)
    found: dict[str, list[Run]] = {name: [] for name in names}
    noise = Noise(given.patience)
    for repetition in range(given.repetitions):
        turn = repetition % len(names)
        for name in names[turn:] + names[:turn]:
            say(f"repetition {repetition + 1} of {given.repetitions}: {name} ...", end=" ")
            noise.sample()
            one = contestants[name](given.seed + repetition)
            found[name].append(one)
            say(f"{median(one.rounds(WARM)):.3f} s a round")
    answer = _answer(given, found, noise)
    hand_in(given, answer, _text(answer), missed=[t["what"] for t in answer["targets"] if not t["met"]])


def _contestants(given: argparse.Namespace) -> dict[str, Callable[[int], Run]]:
    """Return how to run each contestant once with a seed."""
    common = [
        "--data",
        str(given.data.expanduser().resolve()),
        "--rounds",
        str(given.rounds + WARM),
        "--seed",
    ]

    def cloister(seed: int, *more: str) -> Run:
        return run("cloister_workload_w.py", [*common, str(seed), *more])

    return {
        "local": lambda seed: cloister(seed, "--private"),
        "ray": lambda seed: cloister(seed, "--private", "--engine", "ray"),
        "opacus": lambda seed: run("opacus_workload_w.py", [*common, str(seed)]),
        "plain": cloister,
    }


def _answer(given: argparse.Namespace, found: dict[str, list[Run]], noise: Noise) -> dict[str, Any]:
    seconds = {name: [median(one.rounds(WARM)) for one in runs] for name, runs in found.items()}
    times = {
        name: vars(ratio(figures, seconds["local"])) for name, figures in seconds.items() if name != "local"
    }
    targets = []
    if "opacus" in times:
        over = times["opacus"]["median"]
        targets.append(
            {
                "what": "rounds per second over Flower's Ray engine with Opacus",
                "target": f">= {TARGET}",
                "found": over,
                "met": over >= TARGET,
            }
        )
    return {
        "benchmark": "workload-w-dp",
        "machine": machine(),
        "seeds": [given.seed + repetition for repetition in range(given.repetitions)],
        "warm_rounds": WARM,
        **noise.report(),
        "seconds_a_round": {
            name: median([second for one in runs for second in one.rounds(WARM)])
            for name, runs in found.items()
        },
        "times_cloister": times,
        "targets": targets,
        "timings": {name: [one.rounds(WARM) for one in runs] for name, runs in found.items()},
    }


def _text(answer: dict[str, Any]) -> str:
    seconds, times = answer["seconds_a_round"], answer["times_cloister"]
    rows = [
        [
            TITLES[name],
            f"{seconds[name]:.3f}",
            f"{1 / seconds[name]:.2f}",
            "1"
            if name == "local"
            else f"{times[name]['median']:.2f} ({times[name]['least']:.2f} to {times[name]['most']:.2f})",
        ]
        for name in TITLES
        if name in seconds
    ]
    here = answer["machine"]
    about = (
        f"Workload W with DP-SGD: {CLIENTS} clients over MNIST, {COHORT} a round, {RECORDS} records each, {RECORDS // BATCH} steps, "
        f"q = 1/{RECORDS // BATCH}, C = {CLIP:g}, σ = {SIGMA:g}, {PARAMETERS:,} parameters; {here['cores']} cores, "
        f"torch {here['versions']['torch']}"
    )
    parts = [
        about,
        table(["", "s a round", "rounds a s", "time over Cloister's (by repetition)"], rows),
        target_table(answer["targets"]),
    ]
    if answer["unreliable"]:
        parts.append(
            f"UNRELIABLE: other programs used {median(answer['busy_before']):.0%} of the cores between the contestants."
            if answer["busy_before"]
            else "UNRELIABLE: this system does not tell how busy it is."
        )
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
