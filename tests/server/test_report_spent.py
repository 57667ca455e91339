"""What the report says of a private run's cost: by round with the accountant's projection, by site against its cap."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import dp_accounting  # type: ignore[import-untyped]
import pytest
from dp_accounting.pld import PLDAccountant  # type: ignore[import-untyped]

from cloister.core.spec import parse_federation
from cloister.server.events import EventBus, EventLog, read_events
from cloister.server.folding import Fold
from cloister.server.report import ReportPaths, write_report
from cloister.server.report.spent import spent_so_far

SITES = ("north", "south", "west")
STEPS, ROUNDS, DELTA = 4, 12, 1e-5
PRIVACY = {"unit": "record", "noise_multiplier": 1.2, "delta": DELTA, "clip": 1.0, "sampling_rate": 0.05}


def oracle(rounds: int) -> float:
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL, 1e-3)
    step = dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(1.2))
    accountant.compose(dp_accounting.SelfComposedDpEvent(step, STEPS * rounds))
    epsilon: float = accountant.get_epsilon(DELTA)
    return epsilon


def make_run(
    folder: Path, *, rounds: int, told: dict[str, dict[str, Any]] | None = None, private: bool = True
) -> Path:
    """Write a made-up run that ended ``rounds`` of its rounds; ``west`` is asked in every other one."""
    folder.mkdir(parents=True)
    document: dict[str, Any] = {
        "federation": {"name": "clinic", "rounds": ROUNDS},
        "task": {"use": "heart"},
        "training": {"local_steps": STEPS},
    }
    loaded = parse_federation(document | ({"privacy": PRIVACY} if private else {}), base=folder)
    (folder / "federation.toml").write_text(loaded.effective_toml())
    bus = EventBus(EventLog(folder / "events.jsonl"))
    bus.emit("run", 0, name="clinic", rounds=ROUNDS, sites=3, site_names=list(SITES))
    for number in range(1, rounds + 1):
        cohort = SITES if number % 2 else SITES[:2]
        for site in cohort:
            bus.emit("site", number, site=site, phase="train", status="answered", seconds=0.1)
        if private:
            bus.emit("privacy", number, epsilon=oracle(number), delta=DELTA, asked=number, site=None)
        bus.emit("round", number, cohort=len(cohort), answered=len(cohort))
    for site, figures in (told or {}).items():
        bus.emit("privacy", rounds, delta=DELTA, site=site, **figures)
    bus.close()
    return folder


def text_of(paths: ReportPaths) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", paths.html.read_text()))


def test_an_unfinished_run_shows_what_the_accountant_expects_of_the_rounds_that_are_left(
    tmp_path: Path,
) -> None:
    paths = write_report(make_run(tmp_path / "run", rounds=3))
    privacy = json.loads(paths.json.read_text())["privacy"]
    assert [point["round"] for point in privacy["history"]] == [1, 2, 3]
    assert [point["round"] for point in privacy["projection"]] == list(range(3, ROUNDS + 1))
    for point in privacy["projection"]:
        assert point["epsilon"] == pytest.approx(oracle(point["round"]), rel=0.01)
    last, now = privacy["projection"][-1]["epsilon"], privacy["projection"][0]["epsilon"]
    straight = now + (ROUNDS - 3) * (privacy["history"][2]["epsilon"] - privacy["history"][1]["epsilon"])
    assert abs(last - straight) > 0.05 * last, "the fixture must tell a straight line apart"
    text = text_of(paths)
    assert "If asked in every round that is left" in paths.html.read_text()
    assert f"will have spent ε = {last:.2f} after round {ROUNDS}" in text


def test_a_site_of_an_unfinished_run_is_charged_by_the_rounds_it_was_asked_in(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=6)
    history = Fold.of(read_events(folder / "events.jsonl")).history()
    loaded = parse_federation(
        {
            "federation": {"name": "clinic", "rounds": ROUNDS},
            "task": {"use": "heart"},
            "training": {"local_steps": STEPS},
            "privacy": PRIVACY,
        },
        base=folder,
    )
    spent = spent_so_far(loaded.effective(), history)
    assert spent is not None
    assert {name: site.asked for name, site in spent.sites.items()} == {"north": 6, "south": 6, "west": 3}
    assert spent.sites["west"].epsilon == pytest.approx(oracle(3), rel=0.01)
    assert spent.sites["north"].epsilon == pytest.approx(oracle(6), rel=0.01)


def test_a_finished_run_has_no_projection(tmp_path: Path) -> None:
    paths = write_report(make_run(tmp_path / "run", rounds=ROUNDS))
    privacy = json.loads(paths.json.read_text())["privacy"]
    assert privacy["projection"] == []
    assert len(privacy["history"]) == ROUNDS
    assert "If asked in every round that is left" not in paths.html.read_text()
    assert "ε by round" in text_of(paths)


def test_caps_and_ledgers_are_shown_where_sites_told_them(tmp_path: Path) -> None:
    told: dict[str, dict[str, Any]] = {
        "north": {"epsilon": 0.9, "cap": 6.0, "ledger": {"epsilon": 4.25, "delta": DELTA}},
        "south": {"epsilon": 0.9, "cap": 3.5, "ledger": {"epsilon": 3.25, "delta": DELTA}},
        "west": {"epsilon": 0.5},
    }
    paths = write_report(make_run(tmp_path / "run", rounds=ROUNDS, told=told))
    sites = json.loads(paths.json.read_text())["privacy"]["sites"]
    assert (sites["north"]["cap"], sites["north"]["ledger"]["epsilon"]) == (6.0, 4.25)
    assert "cap" not in sites["west"]
    text = text_of(paths)
    assert re.search(r"north 12 0\.900 – 4\.25 6\.00 71%", text)
    assert re.search(r"south 12 0\.900 – 3\.25 3\.50 93%", text)
    assert re.search(r"west 6 0\.500 – – – –", text)
    for label in (
        "All runs, by the site's ledger",
        "The site's cap",
        "Smallest cap of a site, over all its runs",
    ):
        assert label.replace("'", "&#x27;") in paths.html.read_text() or label in paths.html.read_text()


def test_a_run_without_privacy_has_no_cost_to_show(tmp_path: Path) -> None:
    paths = write_report(make_run(tmp_path / "run", rounds=3, private=False))
    privacy = json.loads(paths.json.read_text())["privacy"]
    assert (privacy["history"], privacy["projection"]) == ([], [])
    assert "What it costs" not in text_of(paths)


def test_a_resumed_run_takes_back_the_costs_after_its_checkpoint(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=5)
    bus = EventBus(EventLog(folder / "events.jsonl"))
    bus.emit("run", 3, name="clinic", rounds=ROUNDS, sites=3, site_names=list(SITES), resumed_from=3)
    bus.close()
    history = Fold.of(read_events(folder / "events.jsonl")).history()
    assert [event["round"] for event in history.privacy_by_round] == [1, 2, 3]
