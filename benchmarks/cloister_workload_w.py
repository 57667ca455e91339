"""Workload W in Cloister, in a process of its own: the contestant that ``workload_w.py``, ``workload_w_dp.py`` and ``virtual_clients.py`` start.

The run is ``cloister simulate``'s own: `simulate` with an engine, a run folder, events, checks and checkpoints, all of it inside
the timed rounds. The clock is an event sink.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import resource
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plain_w import (
    BATCH,
    CLIENTS,
    CLIP,
    COHORT,
    LEARNING_RATE,
    PARAMETERS,
    RECORDS,
    SIGMA,
    hand_over,
    now,
)

FEDERATION = """
[federation]
name = "workload-w"
rounds = {rounds}
seed = {seed}
checkpoint_every = {rounds}

[task]
use = "images"
data = {data}
model = "cnn"

[cohort]
sites = {sites}
partition = {{ by = "iid", per_site = {records} }}
per_round = {cohort}

[training]
{work}
batch_size = {batch}
optimizer = {{ name = "sgd", lr = {rate} }}
device = "cpu"

[aggregation]
protection = "plain"    # as in the other contestants: what masks cost is measured by protected_rounds.py

[evaluation]
every = 0
central = false
sites = false
"""

#: Differential privacy for each record, in as many steps as a pass over the records has.
PRIVACY = f"""
[privacy]
unit = "record"
noise_multiplier = {SIGMA}
clip = {CLIP}
delta = 1e-5
sampling_rate = {BATCH / RECORDS}
"""


class Clock:
    """An event sink that notes when each round ends."""

    def __init__(self) -> None:
        self.marks: dict[str, float] = {}
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.refused = 0
        self.parameters = 0

    def handle(self, event: Mapping[str, Any]) -> None:
        """Take one event."""
        kind = event["kind"]
        if kind == "run":
            self.marks["run"] = now()
            self.parameters = event["parameters"]
        elif kind == "asked":
            self.marks.setdefault("asked", now())
        elif kind == "round":
            self.ends.append(now())
            self.losses.append(event["loss"])
            self.refused += event["cohort"] - event["answered"]

    def close(self) -> None:
        """Nothing to close."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--result", type=Path, required=True)
    arguments.add_argument("--rounds", type=int, required=True)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--sites", type=int, default=CLIENTS)
    arguments.add_argument("--engine", choices=("local", "ray"), default="local")
    arguments.add_argument("--workers", type=int, default=None)
    arguments.add_argument("--private", action="store_true", help="with differential privacy for each record")
    given = arguments.parse_args()

    from cloister.core.spec import load_federation
    from cloister.simulation.engines import make_engine
    from cloister.simulation.simulate import simulate

    clock = Clock()
    engine = make_engine(given.engine, given.workers)
    if (
        given.engine == "ray"
    ):  # what Flower and Ray import by themselves later is imported before the call, too
        import ray  # noqa: F401

        logging.getLogger("ray").setLevel(logging.ERROR)
        _time_introductions(clock.marks)
    clock.marks["imported"] = now()
    with tempfile.TemporaryDirectory(prefix="workload-w-") as folder:
        file = Path(folder) / "federation.toml"
        file.write_text(
            FEDERATION.format(
                rounds=given.rounds,
                seed=given.seed,
                data=json.dumps(str(given.data.resolve())),
                sites=given.sites,
                records=RECORDS,
                cohort=COHORT,
                batch=BATCH,
                rate=LEARNING_RATE,
                work=f"local_steps = {RECORDS // BATCH}" if given.private else "local_epochs = 1",
            )
            + (PRIVACY if given.private else "")
        )
        clock.marks["called"] = now()
        simulate(load_federation(file), out=Path(folder) / "runs", engine=engine, sinks=(clock,))
    if clock.parameters != PARAMETERS or clock.refused or len(clock.ends) != given.rounds:
        raise SystemExit(
            f"not workload W: {clock.parameters} parameters, {clock.refused} replies missing, {len(clock.ends)} rounds"
        )
    answer = {
        "marks": clock.marks,
        "ends": clock.ends,
        "losses": clock.losses,
        "processes": engine.workers,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # kibibytes on Linux
    }
    hand_over(given.result, answer)


class _Watched:
    """A Flower grid that notes when its first reply comes."""

    def __init__(self, grid: Any, marks: dict[str, float]) -> None:
        self._grid = grid
        self._marks = marks

    def push_messages(self, messages: Any) -> Any:
        """Send messages."""
        return self._grid.push_messages(messages)

    def pull_messages(self, identifiers: Any) -> Any:
        """Return the replies that are there."""
        replies = list(self._grid.pull_messages(identifiers))
        if replies:
            self._marks.setdefault("first_introduced", now())
        return replies


def _time_introductions(marks: dict[str, float]) -> None:
    """Note how the app's own first question goes over Ray, a message a site: when the first and the last was answered."""
    directory: Any = importlib.import_module("cloister.server.directory")
    ray_engine: Any = importlib.import_module("cloister.simulation.ray_engine")
    ask, answers = ray_engine.discover, directory.exchange

    def discover(*positional: Any, **named: Any) -> Any:
        found = ask(*positional, **named)
        marks["introduced"] = now()
        return found

    def exchange(grid: Any, messages: Any, **named: Any) -> Any:
        return answers(_Watched(grid, marks), messages, **named)

    ray_engine.discover, directory.exchange = discover, exchange


if __name__ == "__main__":
    main()
