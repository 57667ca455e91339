"""Canaries at a real site: its coins are sealed before it trains, kept over a restart, and opened once, after the last round."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message

from cloister.client.canaries import KeptCoins, SeededCoins, records_with_canaries
from cloister.client.run_files import forget_runs
from cloister.core import protocol
from cloister.core.command import run as command
from cloister.core.errors import IntegrityError, SpecError, TaskError
from cloister.core.randomness import SeededRandomness, SystemRandomness
from cloister.core.spec import parse_federation
from cloister.core.update import Layout
from cloister.privacy.audit.canaries import CanaryTask, PlantedData, place_in, released, with_canaries
from cloister.privacy.audit.coins import opened
from gated import GatedSite, code_of, federation, policy

COUNT = 64
PLANTED: dict[str, Any] = {"audit": {"canaries": COUNT, "canary_site": "north"}}


@pytest.fixture
def site(tmp_path: Path) -> Callable[..., GatedSite]:
    def make(**rule: Any) -> GatedSite:
        return GatedSite(tmp_path, policy({"canaries": True, **rule})).open()

    return make


def said(reply: Message) -> dict[str, Any]:
    assert code_of(reply) == ""
    assert list(reply.content) == [protocol.CANARIES]
    return dict(reply.content.config_records[protocol.CANARIES])


def test_a_seal_leaves_before_training_and_the_coins_that_it_fits_after_the_last_round(
    site: Callable[..., GatedSite],
) -> None:
    made = site()
    asked = made.request(federation(**PLANTED))
    assert asked.code("train") == "audit-seal", "nothing is trained whose coins nobody has the seal of"
    first = said(asked.send(protocol.SEAL_QUERY))
    assert set(first) == {"seal", "canaries"}
    assert first["canaries"] == COUNT
    for number in (1, 2, 3):
        assert asked.code(protocol.OPEN_QUERY, 3) == "canaries-early"
        assert asked.code("train", number) == ""
        made.open()  # a restart: the same coins, and the same record of what left
        assert said(asked.send(protocol.SEAL_QUERY)) == first
    told = said(asked.send(protocol.OPEN_QUERY, 3))
    coins = opened(first["seal"], told)
    assert 10 < coins.included.sum() < COUNT - 10
    assert said(asked.send(protocol.OPEN_QUERY, 3)) == told, "a server that lost the answer asks again"
    assert asked.code("train", 3) == "canaries-opened"
    left = [line["said"]["message"] for line in made.lines() if line["kind"] == "left"]
    assert left.count(protocol.OPEN_QUERY) == 2
    assert left[0] == protocol.SEAL_QUERY
    (record,) = [line for line in made.lines() if line["kind"] == "left"][-1]["said"]["records"]
    assert {one["name"] for one in record["fields"]} == {"canaries", "salt", "coins"}


def test_the_coins_are_the_sites_own_file_and_another_runs_are_others(
    site: Callable[..., GatedSite],
) -> None:
    made = site()
    seals = {said(made.request(federation(**PLANTED)).send(protocol.SEAL_QUERY))["seal"] for _ in range(2)}
    files = sorted((made.folder / "state").glob("sessions.canaries-*.json"))
    assert len(seals) == len(files) == 2
    for path in files:
        assert path.stat().st_mode & 0o777 == 0o600
        assert json.loads(path.read_text())["seal"] in seals
    text = "\n".join(map(str, made.lines()))
    assert not any(json.loads(path.read_text())["opening"]["coins"] in text for path in files)


def test_a_site_plants_only_where_its_policy_says_so_and_only_where_it_is_named(
    site: Callable[..., GatedSite],
) -> None:
    made = site(canaries=False)
    asked = made.request(federation(**PLANTED))
    for kind in ("query", protocol.SEAL_QUERY, "train"):
        assert asked.code(kind) == "policy-canaries"
    elsewhere = made.request(federation(audit={"canaries": COUNT, "canary_site": "south"}))
    assert elsewhere.code("train") == "", "the canaries are another site's"
    assert elsewhere.code(protocol.SEAL_QUERY) == "audit-site"
    assert made.request(federation()).code(protocol.SEAL_QUERY) == "audit-site"


def test_an_approval_of_a_kind_of_run_is_none_of_the_same_with_canaries(
    site: Callable[..., GatedSite],
) -> None:
    made = site(approval="first")
    first = made.request(federation())
    assert first.code("query") == "wait-approval"
    assert command(["site", "approve", first.request.run, str(made.folder)]) == 0
    assert made.request(federation()).code("query") == ""
    planted = made.request(federation(**PLANTED))
    assert planted.code(protocol.SEAL_QUERY) == "wait-approval"
    elsewhere = made.request(federation(audit={"canaries": COUNT, "canary_site": "south"}))
    assert elsewhere.code("query") == "wait-approval"
    assert command(["site", "approve", elsewhere.request.run, str(made.folder)]) == 0
    assert planted.code(protocol.SEAL_QUERY) == "wait-approval", (
        "whoever agreed to another site's did not agree to its own"
    )
    (held,) = made.gate.status()["held"]  # type: ignore[union-attr]
    assert any("64 made-up records" in sentence for sentence in held["server_sees"])


def test_a_server_that_moves_the_canaries_weights_is_not_taken_for_one_that_copies_records(
    site: Callable[..., GatedSite],
) -> None:
    """The weights of a round's model differ by three orders of magnitude and all point one way: the layer reads no record."""
    made = site()
    asked = made.request(federation(**PLANTED))
    said(asked.send(protocol.SEAL_QUERY))
    trainer = made.source.workbench(json.dumps(asked.file)).trainer
    vector = trainer.layout.read(trainer.model)
    place = place_in(trainer.layout)
    vector[place : place + COUNT] = np.geomspace(1e-4, 1e3, COUNT, dtype=np.float32)
    assert asked.code("train", 1, vector) == ""


def test_a_run_is_refused_before_it_begins_where_canaries_would_show_nothing() -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"audit": {"canaries": COUNT}}, "canary_site go together"),
        ({"audit": {"canaries": 49, "canary_site": "north"}}, "at least 50"),
        ({**PLANTED, "privacy": None}, "promises nothing"),
        (
            {
                **PLANTED,
                "privacy": {"unit": "site", "sampling_rate": None},
                "cohort": {"sites": 9},
                "training": {},
            },
            "whole sites",
        ),
        ({**PLANTED, "cohort": {"per_round": 4}}, "per_round must be 'all'"),
        (
            {**PLANTED, "training": {"adversarial": {"method": "trades", "epsilon": 0.1}}},
            "compares all scores",
        ),
    ]
    for change, why in refused:
        with pytest.raises(SpecError, match=why):
            changed(change)
    spec = parse_federation(federation(**PLANTED), base=Path()).spec
    with pytest.raises(TaskError, match="regression"):
        with_canaries(regression(), spec)


def changed(change: dict[str, Any]) -> None:
    document = federation()
    for name, table in change.items():
        document[name] = {
            k: v for k, v in {**document.get(name, {}), **(table or {})}.items() if v is not None
        }
        if table is None:
            del document[name]
    parse_federation(document, base=Path())


def regression() -> Any:
    from cloister.core.tasks.digits import Digits

    task = Digits()
    task.kind = "regression"
    return task


def test_coins_that_cannot_be_read_are_never_drawn_anew(tmp_path: Path) -> None:
    source = KeptCoins(tmp_path / "sessions", SystemRandomness())
    with pytest.raises(IntegrityError) as refused:
        source.coins("run-1", COUNT, draw=False)
    assert refused.value.code == "audit-seal"
    drawn = source.coins("run-1", COUNT, draw=True)
    again = KeptCoins(tmp_path / "sessions", SystemRandomness()).coins("run-1", COUNT, draw=True)
    assert again.opening() == drawn.opening()
    (path,) = tmp_path.glob("sessions.canaries-*.json")
    kept = path.read_text()
    other = json.loads(kept)
    other["opening"]["coins"] = "00" * (COUNT // 8)
    for text in ("", "{", kept.replace("run-1", "run-2"), json.dumps(other)):
        path.write_text(text)
        with pytest.raises(IntegrityError) as refused:
            source.coins("run-1", COUNT, draw=True)
        assert refused.value.code == "audit-coins"
    path.write_text(kept)
    with pytest.raises(IntegrityError, match="another number"):
        source.coins("run-1", COUNT + 1, draw=True)
    assert forget_runs(tmp_path / "sessions", lambda _short, _used: True) == 1
    assert not path.exists()
    with pytest.raises(IntegrityError) as refused:
        source.coins("run-1", COUNT, draw=True)
    assert refused.value.code == "run-over"


def test_canaries_that_are_in_come_beside_the_records_as_often_as_a_person_has_records(
    tmp_path: Path,
) -> None:
    document = federation(**PLANTED, privacy={"max_records_per_person": 3})
    spec = parse_federation(document, base=tmp_path).spec
    from cloister.core.tasks.digits import Digits

    task = with_canaries(Digits(model={"name": "mlp", "hidden": [4]}), spec)
    split = task.inner.data() if isinstance(task, CanaryTask) else None
    coins = SeededCoins(SeededRandomness(1))
    data = records_with_canaries(split, task, spec, coins, site="north", run="r")  # type: ignore[arg-type]
    inside = np.flatnonzero(coins.coins("r", COUNT, draw=False).included)
    targets = data.targets[len(split.train) :]  # type: ignore[union-attr]
    assert torch.equal(targets, torch.from_numpy(inside + 10).repeat_interleave(3))
    assert records_with_canaries(split, task, spec, coins, site="south", run="r") is split.train  # type: ignore[arg-type,union-attr]


def test_nothing_of_a_record_is_in_a_canary() -> None:
    """A record whose numbers overflow on the way through a hostile model must not take canaries with it: their absence would tell of it."""
    records = Records(torch.full((4, 3), 7.0), torch.full((4, 2), 5))
    data = PlantedData(records, torch.tensor([2, 3]))
    (x, tokens), targets = data.batch(torch.tensor([1, 4, 5, 0]))
    assert targets.tolist() == [0, 2, 3, 0]
    assert x.tolist() == [[7.0] * 3, [0.0] * 3, [0.0] * 3, [7.0] * 3]
    assert tokens.tolist() == [[5, 5], [1, 1], [1, 1], [5, 5]]
    assert records.x.eq(7.0).all(), "the site's own tensors are left alone"
    assert data.subset(np.array([5, 1])).batch(torch.tensor([0]))[0][0].tolist() == [[0.0] * 3]


class Records:
    """Records with two inputs: numbers and tokens."""

    def __init__(self, x: torch.Tensor, tokens: torch.Tensor) -> None:
        self.x, self.tokens = x, tokens
        self.targets = torch.zeros(len(x), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: torch.Tensor) -> tuple[Any, torch.Tensor]:
        return (self.x[rows], self.tokens[rows]), self.targets[rows]

    def subset(self, rows: Any) -> Any:
        raise NotImplementedError(rows)


def test_a_measured_or_released_model_knows_of_no_canary() -> None:
    from cloister.core.tasks.digits import Digits

    inner = Digits(model={"name": "mlp", "hidden": [4]})
    task = CanaryTask(inner, COUNT, 1.0)
    torch.manual_seed(0)
    model = task.model()
    inputs = torch.rand(2, 1, 8, 8)
    assert model.train()(inputs).shape == (2, 10 + COUNT + 1)
    assert model.eval()(inputs).shape == (2, 10)
    assert task.classes == inner.classes
    assert Layout.of(released(model)).digest == Layout.of(inner.model()).digest
