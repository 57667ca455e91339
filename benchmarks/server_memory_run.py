"""One federation of ``wide_mlp.py`` in a process of its own: the contestant that ``server_memory.py`` starts."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plain_w import hand_over

FEDERATION = """
[federation]
name = "server-memory"
rounds = {rounds}
seed = {seed}
checkpoint_every = {rounds}

[task]
use = {task}
width = {width}

[cohort]
sites = {clients}
partition = {{ by = "iid", per_site = 8 }}

[training]
local_steps = 1
batch_size = 8
optimizer = {{ name = "sgd", lr = 0.01 }}
device = "cpu"

[aggregation]
protection = "plain"    # the streaming mean of updates is what is measured

[evaluation]
every = 0
central = false
sites = false
"""


class Watch:
    """An event sink that notes the process's memory before the first round and after the last."""

    def __init__(self) -> None:
        self.parameters = 0
        self.answered = 0
        self.before: dict[str, int] = {}
        self.after: dict[str, int] = {}

    def handle(self, event: Mapping[str, Any]) -> None:
        """Take one event."""
        if event["kind"] == "run":
            self.parameters = event["parameters"]
        elif event["kind"] == "asked" and not self.before:
            self.before = memory()
        elif event["kind"] == "round":
            self.answered = event["answered"]
            self.after = memory()

    def close(self) -> None:
        """Nothing to close."""


def memory() -> dict[str, int]:
    """Return this process's memory in bytes: now, at its peak, and the part now that is not shared."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    sizes = {name: int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM", "RssAnon")}
    return {"now": sizes["VmRSS"], "peak": sizes["VmHWM"], "own": sizes["RssAnon"]}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--result", type=Path, required=True)
    arguments.add_argument("--clients", type=int, required=True)
    arguments.add_argument("--width", type=int, required=True)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seed", type=int, default=1)
    given = arguments.parse_args()

    from cloister.core.spec import load_federation
    from cloister.simulation.engines import make_engine
    from cloister.simulation.simulate import simulate

    watch = Watch()
    task = json.dumps(f"{Path(__file__).resolve().parent / 'wide_mlp.py'}:WideMlp")
    with tempfile.TemporaryDirectory(prefix="server-memory-") as folder:
        file = Path(folder) / "federation.toml"
        file.write_text(
            FEDERATION.format(
                rounds=given.rounds, seed=given.seed, task=task, width=given.width, clients=given.clients
            )
        )
        simulate(
            load_federation(file),
            out=Path(folder) / "runs",
            engine=make_engine("local", None),
            sinks=(watch,),
        )
    if watch.answered != given.clients:
        raise SystemExit(f"{watch.answered} of {given.clients} clients answered")
    answer = {"parameters": watch.parameters, "before": watch.before, "after": watch.after}
    hand_over(given.result, answer)


if __name__ == "__main__":
    main()
