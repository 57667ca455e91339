"""The book-keeping audit over real runs: what holds passes, and each planted discrepancy is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.core.command import run as cloister
from cloister.core.errors import UsageError
from cloister.core.spec import load_federation
from cloister.privacy.accounting import account
from cloister.privacy.events import to_json
from cloister.privacy.ledger import Ledger, load_key
from cloister.privacy.plan import plan_from
from cloister.server.audit.budget.auditing import audit_budget
from cloister.simulation.engines import LocalEngine
from cloister.simulation.simulate import simulate

pytestmark = pytest.mark.usefixtures("undrawn")

FILE = """
[federation]
name = "digits"
rounds = 2
seed = 11
[task]
use = "digits"
model = { name = "mlp", hidden = [4] }
[cohort]
sites = 3
partition = { by = "iid" }
[training]
local_steps = 1
batch_size = 16
[privacy]
unit = "record"
noise_multiplier = 1.1
delta = 1e-4
clip = 0.5
sampling_rate = 0.05
[evaluation]
central = false
"""


class Home:
    """Two runs over the same three sites, with ledgers."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "federation.toml"
        self.runs = sorted((folder / "runs").iterdir())
        self.ledgers = sorted((folder / "ledgers").glob("*/*.sqlite"))
        self.older = folder / "older"

    def audit(self) -> dict[str, Any]:
        return audit_budget(self.ledgers, self.runs)

    def codes(self) -> set[str]:
        return {fault["code"] for fault in self.audit()["discrepancies"]}

    def rewrite(self, change: Callable[[dict[str, Any]], None], number: int = 0) -> None:
        path = self.runs[number] / "events.jsonl"
        events = [json.loads(line) for line in path.read_text().splitlines()]
        for event in events:
            change(event)
        path.write_text("".join(json.dumps(event) + "\n" for event in events))

    def write(self, ledger: int) -> Ledger:
        path = self.ledgers[ledger]
        return Ledger.open(
            path,
            site=path.stem,
            dataset="digits",
            key=load_key(path.with_suffix(".pem")),
            account=account,
            durable=False,
        )


def trained(folder: Path, *settings: str, ledgers: Path | None) -> Path:
    file = load_federation(folder / "federation.toml", settings)
    return simulate(file, out=folder / "runs", engine=LocalEngine(0), ledgers=ledgers).run


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, and the first site's ledger as it was between them."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "federation.toml").write_text(FILE)
    trained(folder, ledgers=folder / "ledgers")
    (folder / "older").mkdir()
    first = min((folder / "ledgers").glob("*/*.sqlite"))
    for one in (first, first.with_name(first.name + ".head")):
        shutil.copy(one, folder / "older")
    trained(folder, ledgers=folder / "ledgers")
    return folder


@pytest.fixture
def home(kept: Path, tmp_path: Path) -> Home:
    return Home(Path(shutil.copytree(kept, tmp_path / "home")))


@pytest.mark.slow
def test_two_runs_and_their_ledgers_tell_one_story(home: Home) -> None:
    found = home.audit()
    assert found["verdict"] == "passed", found["discrepancies"]
    assert [run["updates"] for run in found["runs"]] == [6, 6]
    plan = plan_from(load_federation(home.file).spec, 1)
    assert plan is not None
    for total in found["totals"]:
        assert (total["charges"], total["from_runs"]) == (4, 4)
        assert total["epsilon"] == pytest.approx(plan.spent(4).epsilon)
    assert found["notes"] == []
    alone = audit_budget(home.ledgers[:1], home.runs[:1])
    assert alone["verdict"] == "passed"
    assert any("was not given" in note for note in alone["notes"])
    assert any("1 runs that were not given" in note for note in alone["notes"])


def test_an_update_without_a_charge_is_named(home: Home) -> None:
    """The run has it, the ledger does not: the ledger of another, shorter history in its place."""

    def one_more(event: dict[str, Any]) -> None:
        if event["kind"] == "site" and event["round"] == 2:
            event["round"] = 3

    home.rewrite(one_more)
    assert home.codes() == {"charge-missing", "charge-unknown"}
    fault = home.audit()["discrepancies"][0]
    assert (fault["round"], fault["run"][:6]) == (3, home.runs[0].name[:6])


def test_other_noise_in_the_file_than_was_charged_is_named(home: Home) -> None:
    path = home.runs[1] / "federation.toml"
    text = path.read_text()
    assert "noise_multiplier = 1.1" in text
    path.write_text(text.replace("noise_multiplier = 1.1", "noise_multiplier = 0.55"))
    assert home.codes() >= {"charge-other", "run-federation", "total-ledger", "total-run"}


def test_a_charge_that_the_run_does_not_know_is_named(home: Home) -> None:
    plan = plan_from(load_federation(home.file).spec, 1)
    assert plan is not None
    name = (home.runs[0] / "run-id.txt").read_text().strip()
    with home.write(1) as book:
        book.reserve(
            name,
            7,
            to_json(plan.event()),
            unit="record",
            relation="zero-out",
            delta=1e-4,
            code_hash="x",
            figures=plan.figures(),
        )
    assert home.codes() == {"charge-unknown"}
    home.rewrite(lambda event: event.update(status="interrupted") if event["kind"] == "end" else None)
    assert home.codes() == {"charge-unknown"}, "and it is no interrupted round: that would be the third"


def test_an_older_copy_is_found_by_the_heads_that_the_server_saw(home: Home) -> None:
    for one in home.older.iterdir():
        shutil.copy(one, home.ledgers[0].parent)
    assert home.codes() == {"ledger-rollback", "charge-missing", "head-epsilon"}


def test_a_run_that_states_less_than_its_rounds_cost_is_named(home: Home) -> None:
    def less(event: dict[str, Any]) -> None:
        if event["kind"] == "privacy" and event["site"]:
            event["epsilon"] *= 0.9
            event["ledger"]["epsilon"] *= 0.9

    home.rewrite(less)
    assert home.codes() == {"total-run", "head-epsilon"}


@pytest.mark.slow
def test_a_run_without_ledgers_is_named_and_one_that_promised_nothing_is_told(home: Home) -> None:
    folder = home.file.parent
    bare = trained(folder, "federation.rounds=1", ledgers=None)
    found = audit_budget(home.ledgers, [*home.runs, bare])
    assert {fault["code"] for fault in found["discrepancies"]} == {"run-ledgers"}
    home.file.write_text(FILE[: FILE.index("[privacy]")])
    promised = trained(folder, "federation.rounds=1", ledgers=None)
    assert any("promised nothing" in note for note in audit_budget(home.ledgers, [promised])["notes"])


def test_the_command_ends_with_8_and_names_the_first(
    home: Home, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = [*map(str, home.ledgers), "--run", str(home.runs[0]), "--run", str(home.runs[1])]
    assert cloister(["audit", "budget", *arguments]) == 0
    assert "verdict: passed" in capfd.readouterr().out
    home.ledgers[0].write_bytes(home.ledgers[0].read_bytes()[:-4096])
    assert cloister(["audit", "budget", *arguments, "--json"]) == 8
    told = json.loads(capfd.readouterr().out)
    assert told["verdict"] == "failed"
    assert told["error"]["code"] == "budget-audit"
    assert any(fault["code"].startswith("ledger-") for fault in told["discrepancies"])
    with pytest.raises(UsageError, match="no ledger"):
        audit_budget([tmp_path / "none.sqlite"], [])
    with pytest.raises(UsageError, match="no run"):
        audit_budget(home.ledgers, [tmp_path])
