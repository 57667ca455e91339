"""``cloister statistics``: one question over four hospitals, end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from scipy import stats

from cloister.client.app import make_client_app
from cloister.client.site_config import DataTable
from cloister.client.site_data import load_dataset
from cloister.core import command, protocol
from cloister.core.errors import PolicyError, UsageError
from cloister.core.resolve import load_task, owners
from cloister.core.spec import load_federation, parse_federation
from cloister.core.spec.tables import TaskTable
from cloister.core.tasks.heart import Heart
from cloister.core.tasks.statistics import Statistics
from cloister.privacy.accounting import account, spent
from cloister.privacy.events import Gaussian
from cloister.privacy.ledger import verify
from cloister.server.statistics.answering import answer, write_answer
from cloister.server.statistics.asking import question
from cloister.simulation.engines import LocalEngine
from cloister.simulation.live_array import LiveArray
from cloister.simulation.simulate import simulate
from cloister.simulation.sites import SimulatedSites

COLUMNS = ("age", "chol", "sex", "target")


@pytest.fixture(scope="module")
def heart(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> tuple[Path, Path]:
    """The run folder of one question with ε = 1, and its ledgers."""
    folder = tmp_path_factory.mktemp("statistics")
    loaded = question(
        load_federation(repository / "examples" / "heart" / "federation.toml"), columns=COLUMNS, epsilon=1.0
    )
    made = simulate(loaded, out=folder, engine=LocalEngine(0), ledgers=folder / "ledgers")
    return made.run, folder / "ledgers"


def truth() -> tuple[np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]]]:
    """The exact counts of the same cells, and the columns' values, of all records."""
    table = {"use": "statistics", "of": {"use": "heart"}, "columns": list(COLUMNS)}
    counted = owners(load_task(TaskTable.model_validate(table), Path()))
    counts: np.ndarray[Any, Any] = np.sum(
        [part.train.batch(torch.arange(len(part.train)))[0].numpy().sum(0) for part in counted.values()],
        axis=0,
    )
    parts = [part for split in Heart().data().values() for part in (split.train, split.test)]
    inputs = np.concatenate([part.batch(torch.arange(len(part)))[0].numpy() for part in parts])
    return counts, {"age": 50 + 30 * inputs[:, 0], "chol": 200 + 200 * inputs[:, 1]}


def test_the_answer_holds_the_truth_within_its_stated_intervals(heart: tuple[Path, Path]) -> None:
    found = answer(heart[0])
    counts, values = truth()
    assert found["records"]["low"] <= 740 <= found["records"]["high"]
    for column in found["columns"][:2]:
        for one in column["quantiles"]:
            exact = float(np.quantile(values[column["name"]], one["share"]))
            assert one["low"] <= exact <= one["high"]
            assert one["high"] - one["low"] < 0.5 * (column["edges"][-1] - column["edges"][0])
    noisy = np.array([cell["value"] for column in found["columns"] for cell in column["cells"]])
    off = (noisy - counts) / found["noise_std"]
    # Two-sided: neither less noise than stated nor more.
    low, high = (stats.chi2.ppf(tail, len(off)) for tail in (5e-5, 1 - 5e-5))
    assert low < float((off**2).sum()) < high
    assert stats.kstest(off, "norm").pvalue > 1e-4
    inside = sum(
        cell["low"] <= exact <= cell["high"]
        for cell, exact in zip(
            (cell for column in found["columns"] for cell in column["cells"]), counts, strict=True
        )
    )
    assert stats.binom.ppf(5e-5, len(counts), 0.95) <= inside


def test_each_sites_ledger_is_charged_with_the_mechanism_under_the_name_of_the_records(
    heart: tuple[Path, Path],
) -> None:
    run, ledgers = heart
    privacy = answer(run)["privacy"]
    independent = spent([Gaussian(noise_multiplier=privacy["noise_multiplier"])], privacy["delta"]).epsilon
    assert privacy["epsilon"] == pytest.approx(independent, rel=1e-9)
    assert privacy["epsilon"] <= 1.0
    books = sorted((ledgers / "heart").glob("*.sqlite"))
    assert len(books) == 4
    for book in books:
        epsilon, delta = verify(book, account=account).epsilon["record-distributed"]
        assert epsilon == pytest.approx(independent, rel=1e-9)
        assert delta == privacy["delta"]


def test_the_page_and_the_figures_say_the_same(heart: tuple[Path, Path], tmp_path: Path) -> None:
    found = answer(heart[0])
    paths = write_answer(found, tmp_path)
    assert json.loads(Path(paths["figures"]).read_text()) == json.loads(json.dumps(found))
    page = Path(paths["page"]).read_text()
    assert page.count("<svg") == len(COLUMNS)
    assert "protects nobody" in page  # the run is seeded
    assert "://" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    "change",
    [{"aggregation": {"protection": "plain"}}, {"privacy": {"unit": "none"}}, {"federation": {"rounds": 3}}],
    ids=["in clear", "without noise", "more than once"],
)
def test_a_site_refuses_a_statistic_that_would_leave_bare(change: dict[str, Any], repository: Path) -> None:
    """Whatever the server let through: the site's own app looks."""
    asked = question(
        load_federation(repository / "examples" / "heart" / "federation.toml"), columns=["age"], epsilon=1.0
    ).effective()
    for name, table in change.items():
        asked[name] = table if name == "privacy" else {**asked[name], **table}
    loaded = parse_federation(asked, base=Path())
    sites = SimulatedSites(json.dumps(loaded.effective()), Path())
    trainer = sites.bench.trainer
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 9
    job = ConfigRecord(
        {
            "protocol": protocol.PROTOCOL,
            "run": "r",
            "round": 1,
            "federation": sites.federation,
            "layout": trainer.layout.digest,
        }
    )
    arrays = ArrayRecord()
    arrays[protocol.VECTOR] = LiveArray(trainer.layout.read(trainer.model))
    content = RecordDict({protocol.JOB: job, protocol.MODEL: arrays})
    context = Context(run_id=1, node_id=1, node_config={"partition-id": 0}, state=RecordDict(), run_config={})
    reply = make_client_app(sites)(Message(content, 1, "train"), context).content
    assert protocol.UPDATE not in reply
    assert reply.config_records[protocol.REFUSAL]["code"] == "statistic-bare"


def test_a_real_site_answers_over_its_own_records_of_the_task_asked_about(repository: Path) -> None:
    asked = question(
        load_federation(repository / "examples" / "heart" / "federation.toml"), columns=["age"], epsilon=1.0
    )
    task, split = load_dataset(DataTable(task="heart", owner="hungarian"), asked.spec.task, Path())
    assert isinstance(task, Statistics)
    assert len(split.train) == 261
    with pytest.raises(PolicyError) as caught:
        load_dataset(DataTable(task="digits"), asked.spec.task, Path())
    assert caught.value.code == "task-differs"


def test_a_question_can_be_written_for_a_deployment_and_reads_the_same(
    tmp_path: Path, repository: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, written = repository / "examples" / "heart" / "federation.toml", tmp_path / "question.toml"
    ask = [
        "statistics",
        str(file),
        "--columns",
        "age,chol",
        "--epsilon",
        "0.5",
        "--write",
        str(written),
        "--json",
    ]
    assert command.run(ask) == 0
    loaded = load_federation(written)
    assert json.loads(capfd.readouterr().out)["digest"] == loaded.digest()
    assert loaded.digest() == question(load_federation(file), columns=["age", "chol"], epsilon=0.5).digest()
    assert loaded.spec.aggregation.protection == "masked"
    with pytest.raises(UsageError):
        question(loaded, columns=["age"], epsilon=1.0)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--columns", "age"], 2),
        (["--columns", "agee", "--epsilon", "1"], 3),
        (["--epsilon", "-1"], 3),
    ],
)
def test_a_question_that_is_asked_wrongly_ends_with_its_status(
    arguments: list[str], status: int, repository: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = repository / "examples" / "heart" / "federation.toml"
    assert command.run(["statistics", str(file), "--out", str(tmp_path), "--json", *arguments]) == status
    assert json.loads(capfd.readouterr().out)["error"]["remedy"]
