"""A question over real processes: submitted, answered by sites whose policies allow it, downloaded and shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from consortium import HEART, POLICY, Deployment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

HOSPITALS = ("cleveland", "hungarian", "long-beach-va", "switzerland")
ALLOWS = POLICY.partition("[[allow]]")[2].replace('task = "heart"', 'task = "statistics"')


def allow(consortium: Deployment, name: str) -> None:
    """Let a site answer statistics."""
    policy = consortium.site(name) / "policy.toml"
    policy.write_text(policy.read_text() + "\n[[allow]]" + ALLOWS)


def connected(consortium: Deployment, name: str) -> bool:
    """Whether a site has been let in."""
    return "connected to" in consortium.log(name)


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Four hospitals, three of which allow statistics."""
    with Deployment(tmp_path_factory.mktemp("deployed"), HOSPITALS, door=False) as one:
        for name in HOSPITALS[:3]:
            allow(one, name)
        one.start("server", *HOSPITALS)
        for name in HOSPITALS:
            one.until(partial(connected, one, name), 300, name)
        yield one


def test_a_question_is_answered_once_every_site_allows_it(consortium: Deployment, tmp_path: Path) -> None:
    file, asked, got = tmp_path / "heart.toml", tmp_path / "question.toml", tmp_path / "got"
    file.write_text(HEART.format(rounds=3, epsilon=3.0, wait_s=120))
    consortium.run(
        "statistics",
        str(file),
        "--columns",
        "age,target",
        "--epsilon",
        "1",
        "--write",
        str(asked),
        "--set",
        "cohort.sites=4",
    )
    refused = consortium.submit_file(asked.read_text())
    assert consortium.ended(refused)["state"] == "failed"
    assert "'switzerland': policy-task" in consortium.work_log(refused)
    allow(consortium, "switzerland")
    run = consortium.submit_file(asked.read_text())
    assert consortium.ended(run)["state"] == "done", consortium.work_log(run)
    consortium.run("job", "download", run, "--kit", str(consortium.user()), "--to", str(got))
    found = json.loads(consortium.run("statistics", "--run", str(got), "--json").stdout)
    assert found["sites"] == 4
    assert not found["reproducible"]
    assert found["records"]["low"] <= 740 <= found["records"]["high"]
    assert (got / "statistics.html").is_file()
    for name in HOSPITALS:
        (book,) = consortium.site(name).glob("state/ledgers/*.sqlite")
        assert book.stem == "heart"
        consortium.run("ledger", "verify", str(book))
        shown = consortium.run("ledger", "show", str(book), "--last", "0", "--json")
        kinds = [entry["kind"] for entry in json.loads(shown.stdout)["entries"]]
        assert (
            kinds.count("RESERVE") == kinds.count("COMMIT") == 1
        )  # the question that was refused cost nothing
