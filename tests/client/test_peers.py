"""Whom a site takes to be in the run: those of the request that a user signed, and nobody that only the server names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from cloister.client.incoming import Job, read_job
from cloister.client.peers import groups_for
from cloister.core import protocol
from cloister.core.errors import CloisterError
from cloister.core.randomness import SeededRandomness, SystemRandomness
from cloister.core.spec import Loaded, parse_federation
from cloister.privacy.grouping import Groups
from cloister.privacy.identity import Role
from cloister.privacy.masking.rehearsal import Stage
from cloister.privacy.request import JobRequest, SignedRequest

NAMES = tuple(f"site-{number}" for number in range(9))


def loaded(**aggregation: Any) -> Loaded:
    document: dict[str, Any] = {
        "federation": {"name": "t", "rounds": 3},
        "task": {"use": "digits"},
        "aggregation": {"rule": "median", "byzantine": 1, "group_size": 3, **aggregation},
    }
    return parse_federation(document, base=Path())


@pytest.fixture(scope="module")
def stage() -> Stage:
    return Stage()


def asked(run: str, federation: Loaded, request: SignedRequest | None) -> tuple[Message, Job]:
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 9
    job = {
        "protocol": protocol.PROTOCOL,
        "run": run,
        "round": 1,
        "federation": json.dumps(federation.effective()),
        "layout": "a",
    }
    content = RecordDict({protocol.JOB: ConfigRecord(job)})  # type: ignore[arg-type]  # all are plain values
    if request is not None:
        content[protocol.REQUEST] = ConfigRecord(dict(request.to_fields()))
    message = Message(content, 1, "train")
    return message, read_job(message)


def groups(
    stage: Stage,
    run: str,
    federation: Loaded,
    request: SignedRequest | None,
    *,
    peers: tuple[str, ...] = (),
    seeded: bool = False,
) -> Groups | None:
    message, job = asked(run, federation, request)
    return groups_for(
        message,
        job,
        federation.spec,
        consortium=stage.consortium,
        peers=peers,
        randomness=SeededRandomness(1) if seeded else SystemRandomness(),
    )


def test_groups_are_drawn_from_the_signed_request_s_hash_and_its_sites(stage: Stage) -> None:
    federation, user = loaded(), stage.identity("carla", Role.USER)
    request = JobRequest.new("t", federation.digest(), sites=NAMES)
    found = groups(stage, request.run, federation, request.signed(user))
    assert found == Groups.draw(request.run, NAMES, 3)
    again = JobRequest.new("t", federation.digest(), sites=NAMES)
    assert groups(stage, again.run, federation, again.signed(user)) != found


def test_no_groups_without_group_size(stage: Stage) -> None:
    plain = parse_federation(
        {"federation": {"name": "t", "rounds": 3}, "task": {"use": "digits"}}, base=Path()
    )
    assert groups(stage, "r", plain, None) is None


def test_the_sites_of_a_simulation_know_each_other(stage: Stage) -> None:
    found = groups(stage, "r", loaded(), None, peers=NAMES, seeded=True)
    assert found is not None
    assert found.names == NAMES


def test_what_the_server_alone_says_is_refused(stage: Stage) -> None:
    federation = loaded()
    user, server = stage.identity("carla", Role.USER), stage.coordinator
    good = JobRequest.new("t", federation.digest(), sites=NAMES)
    other = JobRequest.new("t", loaded(byzantine=0).digest(), sites=NAMES)
    everybody = JobRequest.new("t", federation.digest())
    few = JobRequest.new("t", federation.digest(), sites=NAMES[:2])
    signed = good.signed(user)
    cases: list[tuple[str, SignedRequest | None, str]] = [
        (good.run, None, "groups-open"),
        (everybody.run, everybody.signed(user), "groups-open"),
        ("another-run", signed, "request"),
        (other.run, other.signed(user), "request"),
        (good.run, good.signed(server), "identity"),
        (few.run, few.signed(user), "group-differs"),
        (
            good.run,
            SignedRequest(encoded=other.encoded, signature=signed.signature, certificate=signed.certificate),
            "signature",
        ),
    ]
    for run, request, code in cases:
        with pytest.raises(CloisterError) as refused:
            groups(stage, run, federation, request, peers=NAMES)
        assert refused.value.code == code


def test_another_number_of_sites_than_the_file_s_is_refused(stage: Stage) -> None:
    """The file's number is the public divisor of private sums."""
    document = loaded().effective()
    document["cohort"]["sites"] = 12
    federation = parse_federation(document, base=Path())
    request = JobRequest.new("t", federation.digest(), sites=NAMES)
    with pytest.raises(CloisterError) as refused:
        groups(stage, request.run, federation, request.signed(stage.identity("carla", Role.USER)))
    assert refused.value.code == "group-differs"
