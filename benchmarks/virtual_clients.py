"""What a population costs: 50 clients a round out of 1,000, 100,000 and 1,000,000 virtual ones.

Workload W with ``partition = { by = "iid", per_site = 60 }``: a client's records are drawn when it is. Each population runs in turn
in fresh processes; the ratio is the median of the repetitions' ratios to the smallest population.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from measuring import Noise, Run, hand_in, machine, median, options, ratio, run, say, table, target_table
from plain_w import CLIENTS, COHORT

#: Rounds at the start of each run that are not timed.
WARM = 3
#: At most this times the time of a round with `CLIENTS` clients.
TARGET = 1.1


def main() -> None:
    parser = options(__doc__, repetitions=5)
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST's four IDX files")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds of each run (20)")
    parser.add_argument(
        "--clients", type=int, nargs="+", default=[100_000, 1_000_000], help="populations beside 1,000"
    )
    given = parser.parse_args()

    populations = [CLIENTS, *given.clients]
    found: dict[int, list[Run]] = {population: [] for population in populations}
    noise = Noise(given.patience)
    for repetition in range(given.repetitions):
        turn = repetition % len(populations)
        for population in populations[turn:] + populations[:turn]:
            say(f"repetition {repetition + 1} of {given.repetitions}: {population:,} clients ...", end=" ")
            noise.sample()
            arguments = [
                "--data",
                str(given.data.expanduser().resolve()),
                "--rounds",
                str(given.rounds + WARM),
            ]
            arguments += ["--seed", str(given.seed + repetition), "--sites", str(population)]
            one = run("cloister_workload_w.py", arguments)
            found[population].append(one)
            say(f"{median(one.rounds(WARM)):.3f} s a round")
    seconds = {population: [median(one.rounds(WARM)) for one in runs] for population, runs in found.items()}
    ratios = {population: ratio(figures, seconds[CLIENTS]) for population, figures in seconds.items()}
    first = {
        population: [one.ends[0] - one.answer["marks"]["called"] for one in runs]
        for population, runs in found.items()
    }
    memory = {
        population: [one.answer["peak_rss_bytes"] for one in runs] for population, runs in found.items()
    }
    targets: list[dict[str, Any]] = [
        {
            "what": f"a round of {population:,} clients over one of {CLIENTS:,}",
            "target": f"<= {TARGET}",
            "found": one.median,
            "met": one.median <= TARGET,
        }
        for population, one in ratios.items()
        if population != CLIENTS
    ]
    answer: dict[str, Any] = {
        "benchmark": "virtual-clients",
        "cohort": COHORT,
        "machine": machine(),
        "seeds": [given.seed + repetition for repetition in range(given.repetitions)],
        "warm_rounds": WARM,
        **noise.report(),
        "seconds_a_round": {
            population: median([s for one in runs for s in one.rounds(WARM)])
            for population, runs in found.items()
        },
        "ratios": {population: vars(one) for population, one in ratios.items()},
        "first_round_seconds": first,
        "peak_rss_bytes": memory,
        "targets": targets,
        "timings": {population: [one.rounds(WARM) for one in runs] for population, runs in found.items()},
    }
    rows = []
    for population in populations:
        second, peak = answer["seconds_a_round"][population], median(memory[population]) / 2**20
        begun = median(first[population])
        rows.append(
            [f"{population:,}", f"{second:.3f}", f"{ratios[population]}", f"{begun:.1f}", f"{peak:.0f}"]
        )
    text = table(
        ["clients", "s a round", "ratio (by repetition)", "first round after, s", "server's peak MiB"], rows
    )
    text += f"\n\n{target_table(targets)}"
    if answer["unreliable"]:
        text += "\n\nUNRELIABLE: other programs used the cores between the runs."
    hand_in(
        given,
        answer,
        f"{COHORT} clients a round out of a population, local engine\n\n{text}",
        missed=[t["what"] for t in targets if not t["met"]],
    )


if __name__ == "__main__":
    main()
