"""A federation over real processes: what was provisioned runs, and goes on whatever dies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from safetensors import safe_open

from cloister.client.controls import FileControls
from cloister.client.fleet_link import FleetLink
from cloister.client.tls_line import tls_context
from cloister.core import protocol
from cloister.core.errors import PolicyError
from cloister.core.metrics import measure
from cloister.core.resolve import build_model, load_task
from cloister.core.spec import load_federation
from cloister.core.spec.tables import TaskTable
from cloister.privacy.identity import Role
from cloister.privacy.identity.kit import load_kit
from cloister.privacy.request import JobRequest
from cloister.server.deployment.client import JobsClient
from cloister.server.deployment.running import open_office
from cloister.server.exchange import exchange
from consortium import Deployment, deployed, has_nginx

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

HOSPITALS = ("cleveland", "hungarian", "long-beach-va", "switzerland")


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("deployed"), HOSPITALS) as one:
        yield one


def charges(one: Deployment, site: str, run: str) -> list[tuple[int, str]]:
    """Return (round, kind) of a run's entries in a site's ledger."""
    path = next((one.site(site) / "state" / "ledgers").glob("*.sqlite"), None)
    if path is None:  # nothing was ever charged
        return []
    found = json.loads(one.run("ledger", "show", str(path), "--last", "0", "--json").stdout)["entries"]
    kinds = {entry["seq"]: (entry["round"], entry["run"]) for entry in found if entry["kind"] == "RESERVE"}
    return [
        (kinds.get(entry.get("reservation"), (entry.get("round"), ""))[0], entry["kind"])
        for entry in found
        if run in (entry.get("run"), kinds.get(entry.get("reservation"), (0, ""))[1])
    ]


def has_logged(one: Deployment, site: str, run: str, code: str) -> bool:
    """Whether a site's log has a line of this run with this code."""
    lines = json.loads(one.run("site", "log", str(one.site(site)), "--json").stdout)["lines"]
    return any((line.get("run"), line.get("code")) == (run, code) for line in lines)


def accuracy(model: Path) -> float:
    """Return a released model's accuracy over all hospitals' test records."""
    from safetensors.numpy import load_file

    task = load_task(TaskTable.model_validate({"use": "heart"}), Path())
    module = build_model(task, 7)
    state = module.state_dict()
    for name, array in load_file(model).items():
        state[name].copy_(torch.from_numpy(array))
    right = total = 0.0
    splits = task.data()
    assert isinstance(splits, dict)
    for split in splits.values():
        found = measure(task, module, split.test)
        right, total = right + found.metrics["accuracy"] * found.records, total + found.records
    return right / total


def test_a_masked_private_job_from_submission_to_download(consortium: Deployment, tmp_path: Path) -> None:
    run = consortium.submit(rounds=6, wait_s=120)  # every site in every round, however slow the machine
    assert consortium.ended(run)["state"] == "done", consortium.work_log(run)
    to = str(tmp_path / "got")
    consortium.run("job", "download", run, "--kit", str(consortium.user()), "--to", to, apart=True)
    names = {path.name for path in (tmp_path / "got").iterdir()}
    assert {"model.safetensors", "report.html", "report.json", "federation.toml"} <= names
    assert accuracy(tmp_path / "got" / "model.safetensors") > 0.7
    for site in HOSPITALS:
        consortium.run(
            "ledger", "verify", str(next((consortium.site(site) / "state" / "ledgers").glob("*.sqlite")))
        )
        consortium.run("site", "log", str(consortium.site(site)), "--verify")
        kinds = [kind for _, kind in charges(consortium, site, run)]
        assert kinds.count("RESERVE") == kinds.count("COMMIT") == 6
    ledgers = [
        str(path)
        for site in HOSPITALS
        for path in (consortium.site(site) / "state" / "ledgers").glob("*.sqlite")
    ]
    consortium.run("audit", "budget", *ledgers, "--run", str(consortium.server / "runs" / run))
    audit = consortium.run("audit", "transcript", str(consortium.server / "runs" / run), "--json")
    assert json.loads(audit.stdout)


def test_a_run_survives_the_death_of_a_site_the_server_and_the_superlink(consortium: Deployment) -> None:
    run = consortium.submit(rounds=8)

    def rounds() -> int:
        return sum(event["kind"] == "round" for event in consortium.events(run))

    consortium.until(lambda: rounds() >= 1, 300, "server")
    consortium.stop("hungarian", kill=True)
    consortium.start("hungarian")
    consortium.until(lambda: rounds() >= 3, 400, "server")
    consortium.kill_superlink()
    consortium.until(lambda: rounds() >= 5, 400, "server")
    consortium.stop("server", kill=True)
    consortium.start("server")
    job = consortium.ended(run)
    assert job["state"] == "done", consortium.work_log(run)
    assert [event["round"] for event in consortium.events(run) if event["kind"] == "round"] == list(
        range(1, 9)
    )
    for site in HOSPITALS:
        consortium.run(
            "ledger", "verify", str(next((consortium.site(site) / "state" / "ledgers").glob("*.sqlite")))
        )
        entries = charges(consortium, site, run)
        charged = {number for number, kind in entries if kind == "RESERVE"}
        committed = {number for number, kind in entries if kind == "COMMIT"}
        answered = {
            event["round"]
            for event in consortium.events(run)
            if event["kind"] == "site" and event.get("site") == site and event.get("status") == "answered"
        }
        assert answered <= committed <= charged  # what was used was charged
        assert (
            len([kind for _, kind in entries if kind == "RESERVE"]) <= len(charged) + 5
        )  # and rounds charged again are few
    norms = [event["update_norm"] for event in consortium.events(run) if event["kind"] == "round"]
    assert np.isfinite(norms).all()


SCAFFOLD = """
[federation]
name = "heart-scaffold"
rounds = 5
seed = 7
[task]
use = "heart"
[cohort]
min_sites = 4
wait_s = 45
partition = { by = "site" }
[training]
local_steps = 4
batch_size = 16
optimizer = { name = "sgd", lr = 0.1 }
scaffold = true
[evaluation]
sites = false
"""


def test_the_control_variate_of_a_site_that_is_killed_is_there_when_it_is_back(
    consortium: Deployment,
) -> None:
    policies = {site: consortium.site(site) / "policy.toml" for site in HOSPITALS}
    before = {site: path.read_text() for site, path in policies.items()}
    for site, path in policies.items():
        path.write_text(
            f'{before[site]}\n[[allow]]\ndataset = "heart"\ntask = "heart"\ncode = "any"\nprotection = ["masked"]\n'
            'units = ["none"]\noutputs = ["update", "control"]\napproval = "never"\n'
        )
    run = consortium.submit_file(SCAFFOLD)

    def rounds() -> int:
        return sum(event["kind"] == "round" for event in consortium.events(run))

    consortium.until(lambda: rounds() >= 2, 300, "server")
    consortium.stop("hungarian", kill=True)
    kept = FileControls(consortium.site("hungarian") / "state" / "sessions", run)
    (path,) = (consortium.site("hungarian") / "state").glob("sessions.control-*.safetensors")
    stopped = path.read_bytes()
    consortium.start("hungarian")
    assert consortium.ended(run)["state"] == "done", consortium.work_log(run)
    assert rounds() == 5
    assert path.read_bytes() != stopped, "it took part again"
    with safe_open(path, framework="np") as file:
        size = len(file.get_tensor("after"))
        assert json.loads(file.metadata()["cloister"]) == {"run": run, "round": 5}
    assert kept.read(6, size).any()
    assert "zeros" not in consortium.log("hungarian")
    for site, one in policies.items():
        one.write_text(before[site])


def test_a_request_is_queued_once_and_only_for_whom_may_ask(consortium: Deployment) -> None:
    loaded = load_federation(consortium.write_heart(rounds=1))
    kit = load_kit(consortium.user(), Role.USER)
    signed = JobRequest.new("heart-private", loaded.digest()).signed(kit.identity)
    effective = json.dumps(loaded.effective())
    with JobsClient(f"127.0.0.1:{consortium.jobs}", kit) as client:
        run = client.submit(signed, effective).run
        with pytest.raises(PolicyError) as refused:
            client.submit(signed, effective)
        assert refused.value.code == "job-replayed"
        client.stop(run)
        assert consortium.ended(run)["state"] == "stopped"
    eve = load_kit(consortium.user("eve"), Role.USER)
    with (
        JobsClient(f"127.0.0.1:{consortium.jobs}", eve) as client,
        pytest.raises(PolicyError) as refused,
    ):
        client.submit(JobRequest.new("heart-private", loaded.digest()).signed(eve.identity), effective)
    assert refused.value.code == "not-allowed"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"epsilon": 50.0}, ("budget", "policy-epsilon")),
        ({"more": '[aggregation]\nprotection = "plain"\n'}, ("policy-protection",)),
        ({"task": "digits"}, ("policy-task",)),
    ],
)
def test_what_the_sites_do_not_allow_is_refused_before_anything_is_charged(
    consortium: Deployment, change: dict[str, Any], code: tuple[str, ...]
) -> None:
    text = consortium.write_heart(rounds=2, epsilon=change.get("epsilon", 3.0), wait_s=120).read_text()
    text = text.replace('"heart"\n', f'"{change.get("task", "heart")}"\n') + change.get("more", "")
    run = consortium.submit_file(text)
    job = consortium.ended(run)
    assert (job["state"], job["code"] in code) == ("failed", True), job
    for site in HOSPITALS:
        assert charges(consortium, site, run) == []
        # A job may end before its slowest site has judged it: that one's line is still to come.
        consortium.until(partial(has_logged, consortium, site, run, job["code"]), 120, site)
        assert charges(consortium, site, run) == []


def test_a_stranger_to_the_sites_cannot_be_heard_whatever_it_pushes(consortium: Deployment) -> None:
    """Somebody who holds the SuperLink's secret begins a run with a bundle of their own, and messages that nobody signed."""
    office = open_office(consortium.server)
    marker = consortium.folder / "ran"
    bundle = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n".encode()
    desk = replace(office.desk(), app=bundle)
    with desk.open_run(1 << 30) as grid:
        consortium.until(lambda: len(grid.keys()) == len(HOSPITALS), 60, "server")
        nodes = list(grid.keys())
        job = ConfigRecord({"protocol": 3, "run": "hostile", "round": 1, "federation": "{}", "layout": "x"})
        model = ArrayRecord({"vector": Array(np.zeros(3, np.float32))})
        content = RecordDict({protocol.JOB: job, protocol.MODEL: model})
        messages = [Message(content, node, kind, ttl=60) for node in nodes[:1] for kind in ("train", "query")]
        for answer in exchange(grid, messages, wait_s=60):
            assert answer.reply is not None
            assert answer.reply.content.config_records[protocol.REFUSAL]["code"] == "request"
        large = RecordDict({protocol.MODEL: ArrayRecord({"vector": Array(np.zeros(10_000_000, np.float32))})})
        (lost,) = exchange(grid, [Message(large, nodes[0], "train", ttl=20)], wait_s=20)
        assert lost.reply is None or lost.reply.has_error()
        (again,) = exchange(grid, [Message(content, nodes[0], "train", ttl=60)], wait_s=60)
        assert again.reply is not None  # it took no harm
    assert not marker.exists()


@pytest.mark.skipif(not has_nginx(), reason="nginx is not installed")
def test_the_door_lets_nobody_to_the_control_and_runtime_paths(consortium: Deployment) -> None:
    for kit in (load_kit(consortium.user(), Role.USER), load_kit(consortium.site("cleveland"), Role.SITE)):
        with httpx.Client(verify=tls_context(kit), timeout=10) as client:
            for path in ("/v1/control/list-nodes", "/v1/control/start-run", "/v1/runtime/acquire-task"):
                assert client.post(f"https://127.0.0.1:{consortium.door}{path}").status_code in (403, 404)


def test_a_key_that_the_consortium_does_not_know_is_not_let_in(consortium: Deployment) -> None:
    kit = load_kit(consortium.site("cleveland"), Role.SITE)
    stranger = consortium.folder / "stranger"
    (stranger / "tls").mkdir(parents=True)
    for path in (kit.root, kit.certificate, kit.key):
        (stranger / "tls" / path.name).write_bytes(path.read_bytes())
        (stranger / "tls" / path.name).chmod(0o600)
    key = ec.generate_private_key(ec.SECP384R1())
    raw = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    (stranger / "node.key").write_bytes(raw)
    (stranger / "node.key").chmod(0o600)
    with pytest.raises(PolicyError) as refused:
        FleetLink(f"127.0.0.1:{consortium.fleet}", replace(kit, folder=stranger))
    assert refused.value.code == "link-refused"


def test_a_user_who_was_struck_off_is_heard_by_no_site(consortium: Deployment) -> None:
    """The last test of this consortium: the server has not heard of it yet, and the sites have."""
    before = consortium.folder / "ada-before"
    shutil.copytree(consortium.user(), before)
    lists = {name: (consortium.server / name).read_bytes() for name in ("members.json", "revoked.json")}
    consortium.run("provision", "revoke", str(consortium.folder / "c"), "user:ada", "--reason", "left")
    for name, raw in lists.items():  # nobody has told the server
        (consortium.server / name).write_bytes(raw)
    for site in HOSPITALS:
        newest = (consortium.folder / "c" / "public" / "revoked.json").read_bytes()
        (consortium.site(site) / "revoked.json").write_bytes(newest)
    done = consortium.run(
        "job", "submit", str(consortium.write_heart(rounds=1)), "--kit", str(before), "--json"
    )
    run = str(json.loads(done.stdout)["run"])
    consortium.until(lambda: "identity-revoked" in consortium.server_log(), 120, "server")
    assert all(charges(consortium, site, run) == [] for site in HOSPITALS)
