"""``cloister policy`` and ``cloister site status``: what they say is what the gate does."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import Array, ArrayRecord, Message, RecordDict

from cloister.client.gate.careful import careful_policy
from cloister.client.gate.hours import within
from cloister.client.gate.leaving import check_reply, steps_of
from cloister.client.gate.policy import Allow, DataLimits, Policy, read_policy
from cloister.client.site_config import load_site
from cloister.core import protocol
from cloister.core.command import run
from cloister.core.errors import PolicyError
from cloister.core.spec import FederationSpec, parse_federation
from gated import GatedSite, federation, policy

Told = Callable[..., dict[str, Any]]


@pytest.fixture
def cloister(capsys: pytest.CaptureFixture[str]) -> Told:
    def call(*arguments: object, status: int = 0) -> dict[str, Any]:
        assert run([*map(str, arguments), "--json"]) == status
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return call


@pytest.fixture
def site(tmp_path: Path) -> GatedSite:
    made = GatedSite(tmp_path, policy(data={"rings": {"epsilon_cap": 50.0, "delta_cap": 1e-4}}))
    key = made.kit.identity.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "identity.key").touch(mode=0o600)
    (tmp_path / "identity.key").write_bytes(key)
    (tmp_path / "identity.der").write_bytes(made.kit.identity.certificate)
    return made


def written(folder: Path, **tables: dict[str, Any]) -> Path:
    path = folder / "federation.toml"
    path.write_text(tomli_w.dumps(federation(**tables)))
    return path


def test_check_says_what_the_gate_does_with_and_without_a_site(cloister: Told, site: GatedSite) -> None:
    file, rules = written(site.folder), site.folder / "policy.toml"
    alone = cloister("policy", "check", rules, "--against", file)
    assert (alone["allowed"], alone["dataset"]) == (True, "rings")
    assert len(alone["unchecked"]) == 2
    before = sorted(site.folder.rglob("*"))
    whole = cloister("policy", "check", rules, "--against", file, "--site", site.folder, "--user", "ada")
    assert whole["unchecked"] == []
    assert sorted(one for one in site.folder.rglob("*") if "__pycache__" not in str(one)) == [
        one for one in before if "__pycache__" not in str(one)
    ]
    asked = site.open().request(federation())
    assert asked.code() == ""
    spent = cloister("policy", "check", rules, "--against", file, "--site", site.folder, "--user", "ada")
    assert spent["cost"]["before"] > 0
    assert spent["cost"]["run"] == whole["cost"]["run"] == pytest.approx(whole["cost"]["after"])


@pytest.mark.parametrize(
    ("rule", "tables", "user", "codes"),
    [
        ({}, {}, "eve", ["policy-user"]),
        ({"protection": ["masked"], "rounds": 1}, {}, "ada", ["policy-protection", "policy-rounds"]),
        ({"code": "0" * 64}, {}, "ada", ["policy-code"]),
        ({}, {"data": {"rings": {"epsilon_cap": 0.1, "delta_cap": 1e-4}}}, "ada", ["budget"]),
        ({}, {"data": {"rings": {"min_records": 91}}}, "ada", ["policy-records"]),
    ],
)
def test_check_names_each_reason(
    cloister: Told, site: GatedSite, rule: dict[str, Any], tables: Any, user: str, codes: list[str]
) -> None:
    site.write(policy(rule, **tables))
    arguments = (
        "policy",
        "check",
        site.folder / "policy.toml",
        "--against",
        written(site.folder),
        "--site",
        site.folder,
    )
    error = cloister(*arguments, "--user", user, status=5)["error"]
    assert error["code"] == codes[0]
    assert [line.strip().split(":")[0] for line in error["message"].splitlines()[1:]] == codes


def test_check_and_hash_know_of_canaries(cloister: Told, site: GatedSite) -> None:
    file = written(site.folder, audit={"canaries": 64, "canary_site": "north"})
    asked = ("policy", "check", site.folder / "policy.toml", "--against", file)
    for more in ((), ("--site", site.folder)):
        assert cloister(*asked, *more, status=5)["error"]["code"] == "policy-canaries"
    told = cloister("policy", "hash", "rings.py:Rings", "--site", site.folder, "--against", file)
    site.write(policy({"canaries": True, "layouts": [told["layout"]]}))
    assert cloister(*asked, "--site", site.folder)["allowed"]
    elsewhere = written(site.folder, audit={"canaries": 64, "canary_site": "south"})
    site.write(policy())
    assert cloister(
        "policy", "check", site.folder / "policy.toml", "--against", elsewhere, "--site", site.folder
    )["allowed"]


def test_hash_prints_what_a_policy_allows(cloister: Told, site: GatedSite) -> None:
    file = written(site.folder)
    told = cloister("policy", "hash", "rings.py:Rings", "--site", site.folder, "--against", file)
    site.write(policy({"code": [told["code"]], "layouts": [told["layout"]], "cloister": [told["cloister"]]}))
    assert site.open().request(federation()).code() == ""
    other = cloister("policy", "hash", "heart")
    assert other["code"] != told["code"]
    assert "did you mean" in cloister("policy", "hash", "hart", status=3)["error"]["message"]


def test_init_writes_a_policy_that_allows_nothing_and_whose_every_line_holds_when_it_is_taken_up(
    cloister: Told, site: GatedSite
) -> None:
    path = site.folder / "policy.toml"
    cloister("policy", "init", site.folder, status=2)
    cloister("policy", "init", site.folder, "--replace")
    assert read_policy(path).policy.allow == ()
    assert site.open().request(federation()).code("query") == "policy-user"
    lines = []
    for line in careful_policy(load_site(site.folder)).splitlines():
        bare = line.removeprefix("# ")
        lines.append(bare if line.startswith("# ") and (" = " in bare or bare.startswith("[[")) else line)
    path.write_text("\n".join(lines).replace('"…"', '"any"'))
    taken = read_policy(path).policy
    assert taken.allow[0] == Allow(
        dataset="rings",
        task="rings.py:Rings",
        code="any",
        cloister=taken.allow[0].cloister,
        units=("record", "record-distributed"),
        epsilon_run=1.0,
        rounds=200,
        metrics=("loss",),
    )
    documented = {
        line.split(" = ")[0].strip("# ") for line in careful_policy(load_site(site.folder)).splitlines()
    }
    tables = [Policy.model_fields[name].annotation for name in ("who", "models", "when", "limits")]
    keys = {key for table in tables for key in table.model_fields} | set(Allow.model_fields)  # type: ignore[union-attr]
    assert keys - documented == {"layouts"}


def test_the_officer_s_page_explains_every_key(repository: Path) -> None:
    text = (repository / "docs" / "privacy-officer.md").read_text(encoding="utf-8")
    table = text[text.index("### The policy, key by key") : text.index("### Approving a run")]
    tables = [Policy.model_fields[name].annotation for name in ("who", "models", "when", "limits")]
    keys = [key for one in (*tables, Allow, DataLimits) for key in one.model_fields]  # type: ignore[union-attr]
    assert [key for key in keys if f"{key}`" not in table] == []


def test_status_says_who_asks_why_and_what_it_costs(
    cloister: Told, site: GatedSite, capsys: pytest.CaptureFixture[str]
) -> None:
    site.write(policy({"approval": "always"}, data={"rings": {"epsilon_cap": 50.0, "delta_cap": 1e-4}}))
    asked = site.open().request(federation())
    asked.send("query")
    (held,) = cloister("site", "status", site.folder)["held"]
    assert held["run"] == asked.request.run
    assert run(["site", "status", str(site.folder)]) == 0
    text = capsys.readouterr().out
    for said in (
        "ada",
        "to learn",
        "'rings'",
        "the cap is 50",
        "record",
        "the server will see",
        "cloister site approve",
    ):
        assert said in text
    assert cloister("site", "approve", "rings-", site.folder)["run"] == asked.request.run
    cloister("site", "approve", "rings-", site.folder, status=2)
    assert asked.code() == ""
    status = cloister("site", "status", site.folder)
    assert status["held"] == []
    assert status["left"][-1]["after"] == ["trained", "each record's gradient clipped", "noised at each step"]
    assert 0 < status["budgets"]["rings"][0]["epsilon"] < 50
    assert site.gate is not None
    assert site.gate.status()["left"] == status["left"]
    cloister("site", "pause", site.folder, "--reason", "ε\x1b[2J")
    assert cloister("site", "status", site.folder)["paused"]["reason"]
    assert run(["site", "status", str(site.folder)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    cloister("site", "pause", site.folder, status=2)


def test_the_commands_do_not_need_a_certificate_that_holds(cloister: Told, site: GatedSite) -> None:
    """An officer can pause a site whose certificate has run out."""
    site.open()
    (site.folder / "identity.der").unlink()
    cloister("site", "pause", site.folder)
    cloister("site", "resume", site.folder)


def test_a_site_that_never_ran_has_no_log(cloister: Told, site: GatedSite) -> None:
    assert "begun" in cloister("site", "pause", site.folder, status=2)["error"]["remedy"]


@pytest.mark.parametrize(
    ("windows", "time", "holds"),
    [
        ((), "2026-11-25T12:00", True),
        (("Mon-Fri 18:00-06:00",), "2026-11-25T12:00", False),  # a Wednesday
        (("Mon-Fri 18:00-06:00",), "2026-11-25T18:00", True),
        (("Mon-Fri 18:00-06:00",), "2026-11-25T17:59", False),
        (("Mon-Fri 18:00-06:00",), "2026-11-28T05:59", True),  # a Saturday, from Friday on
        (("Mon-Fri 18:00-06:00",), "2026-11-28T06:00", False),
        (("Mon-Fri 18:00-06:00",), "2026-11-30T05:00", False),  # a Monday: Sunday is no day of it
        (("Sat-Mon 00:00-24:00",), "2026-11-29T23:59", True),
        (("Sat-Mon 00:00-24:00",), "2026-12-01T00:00", False),
        (("12:00-13:00",), "2026-11-29T12:30", True),
        (("Mon 00:00-01:00", "Wed 12:00-13:00"), "2026-11-25T12:30", True),
    ],
)
def test_windows_of_time(windows: tuple[str, ...], time: str, holds: bool) -> None:
    assert within(windows, datetime.fromisoformat(time).replace(tzinfo=UTC)) is holds


def masked() -> FederationSpec:
    return parse_federation(federation(aggregation={"protection": "masked"}), base=Path()).spec


@pytest.mark.usefixtures("flower_task")
@pytest.mark.parametrize(("name", "leaves"), [(protocol.SUM, True), (protocol.VECTOR, False)])
def test_under_masks_a_sum_s_share_leaves_and_no_update(name: str, leaves: bool) -> None:
    rule = Allow(dataset="rings", task="t", code="any", units=("record",))
    content = RecordDict({protocol.UPDATE: ArrayRecord({name: Array(np.zeros(3, dtype=np.uint32))})})
    reply = Message(content, 1, "train")
    if leaves:
        check_reply(reply, masked(), rule)
    else:
        with pytest.raises(PolicyError):
            check_reply(reply, masked(), rule)
    assert steps_of(masked(), "train") == [
        "trained",
        "each record's gradient clipped",
        "noised at each step",
        "rounded to integers",
        "masked",
    ]
