"""Canaries in a deployed run: sealed by the site, trained on, opened after the last round, and what the coordinator makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from cloister.core.resolve import build_model, load_task
from cloister.core.spec.tables import TaskTable
from consortium import Deployment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

HOSPITALS = ("cleveland", "hungarian", "switzerland")
FILE = """
[federation]
name = "heart-audited"
rounds = {rounds}
seed = 7
[task]
use = "heart"
[cohort]
min_sites = 3
wait_s = 120
partition = {{ by = "site" }}
[training]
local_steps = 2
batch_size = 200
optimizer = {{ name = "sgd", lr = 0.1 }}
[aggregation]
protection = "{protection}"
[privacy]
unit = "record"
epsilon = 4.0
delta = 1e-5
clip = 1.0
sampling_rate = 1.0
[audit]
canaries = {canaries}
canary_site = "{site}"
"""
#: A fault in one site's program: noise of half the deviation, in the one place where it is drawn.
FAULT = """
from cloister.privacy.noise import GaussianSource

drawn = GaussianSource.perturb
GaussianSource.perturb = lambda self, total, *, std: drawn(self, total, std=std / 2)
"""


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Three hospitals, of which one plants."""
    with Deployment(tmp_path_factory.mktemp("deployed"), HOSPITALS, cap=60.0, door=False) as one:
        for name in HOSPITALS:
            policy = one.site(name) / "policy.toml"
            text = policy.read_text().replace('["masked"]', '["masked", "plain"]')
            policy.write_text(text + ("canaries = true\n" if name == "cleveland" else ""))
        one.start_all()
        yield one


def submit(one: Deployment, **settings: Any) -> str:
    told = {"rounds": 2, "protection": "plain", "canaries": 1000, "site": "cleveland", **settings}
    return one.submit_file(FILE.format(**told))


def figures(one: Deployment, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((one.server / "runs" / run / "audit-privacy.json").read_text())
    return found


def log_of(one: Deployment, site: str, run: str) -> list[dict[str, Any]]:
    """Return what left a site in a run, by its own log."""
    lines = (one.site(site) / "state" / "log.jsonl").read_text().splitlines()
    said = [json.loads(line) for line in lines]
    return [line["said"] for line in said if line["kind"] == "left" and line["said"]["run"] == run]


def test_a_site_that_does_not_allow_canaries_ends_the_run_before_anything_is_charged(
    consortium: Deployment,
) -> None:
    run = submit(consortium, site="hungarian")
    job = consortium.ended(run)
    assert (job["state"], job["code"]) == ("failed", "policy-canaries")
    assert not list(consortium.site("hungarian").glob("state/ledgers/*.sqlite"))


def test_the_run_is_its_own_audit(consortium: Deployment) -> None:
    run = submit(consortium)
    assert consortium.ended(run)["state"] == "done", consortium.work_log(run)
    found = figures(consortium, run)
    assert (found["set_up"]["sees"], found["set_up"]["in_run"]) == ("update", True)
    assert (found["set_up"]["rounds_seen"], found["set_up"]["ledgers"]) == (2, True)
    assert next(one for one in found["estimators"] if one["decides"])["power"]
    # The coins are the operating system's: of honest audits 1 in 20 refutes.
    assert found["verdict"] in ("consistent", "refuted")
    assert 2.0 < found["lower_bound"] < 5.5
    events = consortium.events(run)
    kinds = [event["verdict"] if event["kind"] == "audit" else event["kind"] for event in events]
    assert kinds.index("sealed") < kinds.index("site")
    assert kinds.index("opened") > len(kinds) - 1 - kinds[::-1].index("round")
    model = load_file(consortium.server / "runs" / run / "model.safetensors")
    task = load_task(TaskTable.model_validate({"use": "heart"}), Path())
    assert {name: array.shape for name, array in model.items()} == {
        name: tuple(tensor.shape) for name, tensor in build_model(task, 7).state_dict().items()
    }
    left = [said["message"] for said in log_of(consortium, "cleveland", run)]
    assert left.count("train") == 2
    assert left.index("query.seal") < left.index("train")
    assert left[-1] == "query.open"
    assert not {"query.seal", "query.open"} & {one["message"] for one in log_of(consortium, "hungarian", run)}
    ledger = str(next(consortium.site("cleveland").glob("state/ledgers/*.sqlite")))
    consortium.run("audit", "budget", ledger, "--run", str(consortium.server / "runs" / run))


def test_a_site_and_a_server_that_die_in_the_middle_go_on_with_the_coins_that_were_sealed(
    consortium: Deployment,
) -> None:
    run = submit(consortium, protection="masked", rounds=4, canaries=100)

    def rounds() -> int:
        return sum(event["kind"] == "round" for event in consortium.events(run))

    consortium.until(lambda: rounds() >= 1, 300, "server")
    consortium.stop("cleveland", kill=True)
    consortium.start("cleveland")
    consortium.until(lambda: rounds() >= 2, 400, "server")
    consortium.stop("server", kill=True)
    consortium.start("server")
    assert consortium.ended(run)["state"] == "done", consortium.work_log(run)
    audits = [event for event in consortium.events(run) if event["kind"] == "audit"]
    assert [one["verdict"] for one in audits] == ["sealed", "opened", "no power"]
    assert audits[0]["seal"] == audits[1]["seal"]
    found = figures(consortium, run)
    assert (found["set_up"]["sees"], len(found["scores"])) == ("model", 100)
    audit = consortium.run(
        "audit", "transcript", str(consortium.server / "runs" / run), "--json", status=None
    )
    assert json.loads(audit.stdout)["verdict"] == "passed", audit.stdout
    left = [said["message"] for said in log_of(consortium, "cleveland", run)]
    assert left[-1] == "query.open"


def test_a_site_that_adds_half_the_noise_is_found_out(
    consortium: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last test of this consortium: one site's program is another one from here on."""
    (tmp_path / "sitecustomize.py").write_text(FAULT)
    consortium.stop("cleveland")
    with monkeypatch.context() as patched:
        patched.setenv("PYTHONPATH", str(tmp_path))
        consortium.start("cleveland")
    run = submit(consortium)
    assert consortium.ended(run)["state"] == "done", consortium.work_log(run)
    found = figures(consortium, run)
    assert found["verdict"] == "refuted", found["reason"]
    assert found["lower_bound"] > 6
