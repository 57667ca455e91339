"""The server's groups are those that every site draws from what a user signed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from cloister.core.errors import PeersMissing, SpecError
from cloister.core.randomness import Randomness, SeededRandomness, SystemRandomness
from cloister.core.spec import Loaded, parse_federation
from cloister.core.update import Layout
from cloister.privacy.grouping import Groups
from cloister.privacy.identity import Role
from cloister.privacy.masking.rehearsal import Stage
from cloister.privacy.request import JobRequest, SignedRequest
from cloister.server.checkpoints import CheckpointStore
from cloister.server.directory import ListedDirectory
from cloister.server.events import EventBus, EventLog
from cloister.server.grouping import placed_groups
from cloister.server.plan import RunPlan

NAMES = [f"site-{number}" for number in range(9)]
DIRECTORY = ListedDirectory(list(range(1, 10)), NAMES)


def loaded(**aggregation: Any) -> Loaded:
    document: dict[str, Any] = {
        "federation": {"name": "t", "rounds": 3},
        "task": {"use": "digits"},
        "aggregation": {"rule": "median", "byzantine": 1, "group_size": 3, **aggregation},
    }
    return parse_federation(document, base=Path())


def plan(
    folder: Path, made: Loaded, run: str, *, request: SignedRequest | None, randomness: Randomness
) -> RunPlan:
    (folder / "checkpoints").mkdir(exist_ok=True)
    return RunPlan(
        loaded=made,
        layout=Layout.of(nn.Linear(2, 1)),
        initial=np.zeros(3, dtype=np.float32),
        classes=0,
        randomness=randomness,
        bus=EventBus(EventLog(folder / "events.jsonl")),
        store=CheckpointStore(folder / "checkpoints"),
        central=None,
        run=run,
        request=request,
    )


def asked(made: Loaded, sites: tuple[str, ...]) -> tuple[str, SignedRequest]:
    request = JobRequest.new("t", made.digest(), sites=sites)
    return request.run, request.signed(Stage().identity("carla", Role.USER))


def test_in_a_deployment_they_are_those_of_the_request(tmp_path: Path) -> None:
    made = loaded()
    run, request = asked(made, tuple(NAMES))
    found = placed_groups(
        plan(tmp_path, made, run, request=request, randomness=SystemRandomness()), DIRECTORY
    )
    drawn = Groups.draw(run, NAMES, 3).members
    assert found is not None
    assert [[NAMES[position] for position in group] for group in found] == [list(group) for group in drawn]


def test_in_a_simulation_they_follow_the_seed_and_not_the_run(tmp_path: Path) -> None:
    first, second, other = (
        placed_groups(
            plan(tmp_path, loaded(), run, request=None, randomness=SeededRandomness(seed)), DIRECTORY
        )
        for run, seed in (("a", 1), ("b", 1), ("a", 2))
    )
    assert first == second
    assert first != other


def test_without_group_size_there_are_none(tmp_path: Path) -> None:
    made = parse_federation(
        {"federation": {"name": "t", "rounds": 3}, "task": {"use": "digits"}}, base=Path()
    )
    assert (
        placed_groups(plan(tmp_path, made, "r", request=None, randomness=SeededRandomness(1)), DIRECTORY)
        is None
    )


@pytest.mark.parametrize(
    ("sites", "error", "says"),
    [
        ((), SpecError, "by name in the user's request"),
        ((*NAMES, "site-x"), PeersMissing, "site-x"),
        (tuple(NAMES[:8]), SpecError, "8 make 2 groups"),
    ],
)
def test_a_request_that_lists_nobody_strangers_or_too_few_is_refused(
    tmp_path: Path, sites: tuple[str, ...], error: type[Exception], says: str
) -> None:
    made = loaded()
    run, request = asked(made, sites)
    with pytest.raises(error, match=says):
        placed_groups(plan(tmp_path, made, run, request=request, randomness=SystemRandomness()), DIRECTORY)
