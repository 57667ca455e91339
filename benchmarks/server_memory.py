"""The server's memory: 20 and 200 clients a round of a model of five million parameters, and 200 of one a quarter as large.

What a run adds is the server process's peak (resident, shared memory included) during three rounds, less what it held before the
first. Each setting runs in turn in fresh processes. Beside it stands what keeping every update of a round would take.
"""

from __future__ import annotations

from typing import Any

from measuring import Run, hand_in, machine, median, options, run, say, table, target_table

#: (clients a round, width of the network), the one that the others are compared with first.
SETTINGS = ((20, 2200), (200, 2200), (200, 1080))
#: Ten times the clients may take at most this times the memory; a model a quarter as large at most this share of it.
MORE_CLIENTS, SMALLER_MODEL = 1.5, 0.5


def main() -> None:
    parser = options(__doc__, repetitions=3)
    given = parser.parse_args()

    found: dict[tuple[int, int], list[Run]] = {setting: [] for setting in SETTINGS}
    for repetition in range(given.repetitions):
        for clients, width in SETTINGS:
            say(
                f"repetition {repetition + 1} of {given.repetitions}: {clients} clients, width {width} ...",
                end=" ",
            )
            one = run(
                "server_memory_run.py",
                ["--clients", str(clients), "--width", str(width), "--seed", str(given.seed + repetition)],
            )
            found[clients, width].append(one)
            say(f"{_added(one) / 2**20:.0f} MiB")
    rows = [_row(clients, runs) for (clients, _), runs in found.items()]
    few, many, small = (row["added_bytes"] for row in rows)
    targets = [
        _target(f"added by {SETTINGS[1][0]} clients over that by {SETTINGS[0][0]}", many / few, MORE_CLIENTS),
        _target("added with a model a quarter as large", small / many, SMALLER_MODEL),
    ]
    answer = {
        "benchmark": "server-memory",
        "machine": machine(),
        "seeds": [given.seed + repetition for repetition in range(given.repetitions)],
        "settings": rows,
        "targets": targets,
    }
    hand_in(given, answer, _text(rows, targets), missed=[t["what"] for t in targets if not t["met"]])


def _added(one: Run) -> int:
    return int(one.answer["after"]["peak"]) - int(one.answer["before"]["now"])


def _row(clients: int, runs: list[Run]) -> dict[str, Any]:
    parameters = runs[0].answer["parameters"]
    return {
        "clients": clients,
        "parameters": parameters,
        "update_bytes": 4 * parameters,
        "added_bytes": median([_added(one) for one in runs]),
        "kept_bytes": 4 * parameters * clients,
        "timings": [one.answer for one in runs],
    }


def _target(what: str, share: float, most: float) -> dict[str, Any]:
    return {"what": what, "target": f"<= {most}", "found": share, "met": share <= most}


def _text(rows: list[dict[str, Any]], targets: list[dict[str, Any]]) -> str:
    cells = [
        [
            f"{row['clients']}",
            f"{row['parameters']:,}",
            f"{row['update_bytes'] / 2**20:.1f}",
            f"{row['added_bytes'] / 2**20:.0f}",
            f"{row['added_bytes'] / row['update_bytes']:.1f}",
            f"{row['kept_bytes'] / 2**20:.0f}",
        ]
        for row in rows
    ]
    header = [
        "clients a round",
        "parameters",
        "an update, MiB",
        "the rounds add, MiB",
        "in updates",
        "all updates kept, MiB (computed)",
    ]
    return f"Memory of the server process\n\n{table(header, cells)}\n\n{target_table(targets)}"


if __name__ == "__main__":
    main()
