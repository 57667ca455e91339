"""Workload W: 1000 clients over MNIST, 50 a round. Cloister beside Flower's Ray engine, pfl, a plain loop and the machine's limit.

All contestants run in turn, each time in a fresh process, in an order that rotates from repetition to repetition. A round's time is
the median over all timed rounds; a ratio is the median of the ratios of the repetitions. See README.md beside this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import (
    Noise,
    Run,
    cores,
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
from pfl_venv import PFL, default_folder, python_of
from plain_w import BATCH, CLIENTS, COHORT, LEARNING_RATE, PARAMETERS, RECORDS

#: Rounds at the start of each contestant that are not timed.
WARM = 3

TITLES = {
    "local": "Cloister, local engine",
    "ray": "Cloister's app on Flower's Ray engine",
    "pfl": f"pfl {PFL}",
    "pfl-tuned": f"pfl {PFL} with Cloister's way of writing the CNN",
    "loop": "plain loop, one core",
    "loop-tuned": "plain loop, one core, Cloister's way of writing the CNN",
    "limit": "limit: each operation at its own best rate",
    "peak": "limit: all operations at the fastest convolution's rate",
}


def main() -> None:
    parser = options(__doc__, repetitions=3)
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST's four IDX files")
    parser.add_argument(
        "--rounds", type=int, default=12, help="timed rounds of each contestant in each repetition (12)"
    )
    parser.add_argument(
        "--pfl-venv",
        type=Path,
        default=default_folder(),
        help="pfl's environment; made there when it is missing",
    )
    parser.add_argument(
        "--without",
        nargs="*",
        choices=[name for name in TITLES if name not in ("local", "peak")],
        default=[],
        help="leave these out",
    )
    given = parser.parse_args()

    contestants = _contestants(given)
    names = [name for name in contestants if name not in given.without]
    found: dict[str, list[Run]] = {name: [] for name in names}
    noise = Noise(given.patience)
    for repetition in range(given.repetitions):
        turn = repetition % len(names)
        for name in names[turn:] + names[:turn]:
            say(f"repetition {repetition + 1} of {given.repetitions}: {name} ...", end=" ")
            noise.sample()
            one = contestants[name](given.seed + repetition)
            found[name].append(one)
            say(
                f"{median(one.rounds(WARM)):.3f} s a round"
                if one.ends
                else f"{one.answer['own']:.3f} s a round"
            )
    answer = _answer(given, found, noise)
    hand_in(
        given,
        answer,
        _text(answer),
        missed=[target["what"] for target in answer["targets"] if not target["met"]],
    )


def _contestants(given: argparse.Namespace) -> dict[str, Callable[[int], Run]]:
    """Return how to run each contestant once with a seed."""
    rounds = ["--rounds", str(given.rounds + WARM)]
    data = ["--data", str(given.data.expanduser().resolve())]
    python = "" if {"pfl", "pfl-tuned"} <= set(given.without) else str(python_of(given.pfl_venv))
    torchrun = [python, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={cores()}"]

    def cloister(seed: int, *more: str) -> Run:
        return run("cloister_workload_w.py", [*data, *rounds, "--seed", str(seed), *more])

    def pfl(seed: int, model: str) -> Run:
        arguments = [*data, *rounds, "--seed", str(seed), "--model", model]
        return run(
            "pfl_workload_w.py",
            arguments,
            python=torchrun,
            environment={"OMP_NUM_THREADS": "1", "PFL_PYTORCH_DEVICE": "cpu"},
        )

    def loop(seed: int, model: str) -> Run:
        return run("loop_workload_w.py", [*data, *rounds, "--seed", str(seed), "--model", model])

    return {
        "local": cloister,
        "ray": lambda seed: cloister(seed, "--engine", "ray"),
        "pfl": lambda seed: pfl(seed, "plain"),
        "pfl-tuned": lambda seed: pfl(seed, "tuned"),
        "loop": lambda seed: loop(seed, "plain"),
        "loop-tuned": lambda seed: loop(seed, "tuned"),
        "limit": lambda _: run("limit_workload_w.py", ["--processes", str(cores())]),
    }


def _answer(given: argparse.Namespace, found: dict[str, list[Run]], noise: Noise) -> dict[str, Any]:
    seconds = {
        name: [median(one.rounds(WARM)) for one in runs] for name, runs in found.items() if name != "limit"
    }
    pooled = {
        name: median([second for one in runs for second in one.rounds(WARM)])
        for name, runs in found.items()
        if name != "limit"
    }
    for limit, key in (("limit", "own"), ("peak", "peak")):
        if "limit" in found:
            seconds[limit] = [one.answer[key] for one in found["limit"]]
            pooled[limit] = median(seconds[limit])
    started = {
        name: {
            "with_imports": [one.ends[0] - one.spawned for one in runs],
            "without_imports": [one.ends[0] - one.answer["marks"]["imported"] for one in runs],
        }
        for name, runs in found.items()
        if name in ("local", "ray")
    }
    introductions = [
        one.answer["marks"]["introduced"] - one.answer["marks"]["first_introduced"]
        for one in found.get("ray", [])
    ]
    speed = {
        name: vars(ratio(figures, seconds["local"])) for name, figures in seconds.items() if name != "local"
    }
    first = {}
    if "ray" in started:
        first = {how: vars(ratio(started["local"][how], started["ray"][how])) for how in started["local"]}
        bare = [
            whole - part for whole, part in zip(started["ray"]["without_imports"], introductions, strict=True)
        ]
        first["without_imports_or_introductions"] = vars(ratio(started["local"]["without_imports"], bare))
    return {
        "benchmark": "workload-w",
        "workload": {
            "clients": CLIENTS,
            "cohort": COHORT,
            "records": RECORDS,
            "batch": BATCH,
            "parameters": PARAMETERS,
            "learning_rate": LEARNING_RATE,
        },
        "machine": machine(),
        "pfl": found["pfl"][0].answer["versions"] if "pfl" in found else None,
        "seeds": [given.seed + repetition for repetition in range(given.repetitions)],
        "warm_rounds": WARM,
        **noise.report(),
        "seconds_a_round": pooled,
        "times_cloister": speed,
        "first_round_seconds": started,
        "introductions_seconds": introductions,
        "first_round_ratio": first,
        "targets": _targets(speed, first),
        "timings": {
            name: [one.rounds(WARM) for one in runs] for name, runs in found.items() if name != "limit"
        },
        "limits": [one.answer for one in found.get("limit", [])],
    }


def _targets(speed: dict[str, Any], first: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the issue's targets, each with what was found."""
    wanted = [
        ("ray", "rounds per second over Flower's Ray engine", 3.5),
        ("pfl", f"rounds per second over pfl {PFL} with {cores()} processes", 1.2),
    ]
    targets = [
        {
            "what": what,
            "target": f">= {least}",
            "found": speed[name]["median"],
            "met": speed[name]["median"] >= least,
        }
        for name, what, least in wanted
        if name in speed
    ]
    for how, words in (("with_imports", "imports included"), ("without_imports", "imports excluded")):
        if how in first:
            share = first[how]["median"]
            targets.append(
                {
                    "what": f"first round over Ray's, {words}",
                    "target": "<= 0.2",
                    "found": share,
                    "met": share <= 0.2,
                }
            )
    return targets


def _text(answer: dict[str, Any]) -> str:
    seconds, speed = answer["seconds_a_round"], answer["times_cloister"]
    shown = [name for name in TITLES if name in seconds]
    rows = [
        [
            TITLES[name],
            f"{seconds[name]:.3f}",
            f"{1 / seconds[name]:.2f}",
            "1"
            if name == "local"
            else f"{speed[name]['median']:.2f} ({speed[name]['least']:.2f} to {speed[name]['most']:.2f})",
        ]
        for name in shown
    ]
    machine_, versions = answer["machine"], answer["machine"]["versions"]
    about = (
        f"Workload W: {CLIENTS} clients over MNIST, {COHORT} a round, {RECORDS} records each, batches of {BATCH}, "
        f"{PARAMETERS:,} parameters; {machine_['cores']} cores, torch {versions['torch']}"
    )
    parts = [about, table(["", "s a round", "rounds a s", "time over Cloister's (by repetition)"], rows)]
    if answer["first_round_ratio"]:
        parts.append(_first_rounds(answer))
    parts.append(target_table(answer["targets"]))
    if "limit" in seconds:
        parts.append(
            f"Cloister is at {seconds['limit'] / seconds['local']:.0%} of the limit of its own operations "
            f"and at {seconds['peak'] / seconds['local']:.0%} of the fastest convolution's rate."
        )
    if answer["unreliable"]:
        parts.append(
            f"UNRELIABLE: other programs used {median(answer['busy_before']):.0%} of the cores between the contestants."
            if answer["busy_before"]
            else "UNRELIABLE: this system does not tell how busy it is."
        )
    return "\n\n".join(parts)


def _first_rounds(answer: dict[str, Any]) -> str:
    started, shares = answer["first_round_seconds"], answer["first_round_ratio"]
    rows = [
        [
            words,
            f"{median(started['local'][how]):.1f}",
            f"{median(started['ray'][how]):.1f}",
            f"{shares[how]['median']:.3f}",
        ]
        for how, words in (
            ("with_imports", "from the start of the process"),
            ("without_imports", "from the call, everything imported"),
        )
    ]
    without = median(
        [
            w - i
            for w, i in zip(started["ray"]["without_imports"], answer["introductions_seconds"], strict=True)
        ]
    )
    rows.append(
        [
            f"from the call, without asking the other {CLIENTS - 1} sites for their names",
            f"{median(started['local']['without_imports']):.1f}",
            f"{without:.1f}",
            f"{shares['without_imports_or_introductions']['median']:.3f}",
        ]
    )
    return table(["to the end of the first round, s", "Cloister", "Ray", "ratio"], rows)


if __name__ == "__main__":
    main()
