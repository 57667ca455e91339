"""Lying sites in whole runs: the same for any number of workers, resumed to the bit, and a rule that stands where the mean falls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloister.core.command import run
from cloister.core.errors import SpecError
from cloister.core.spec import Loaded, parse_federation
from cloister.server.events import read_events
from cloister.simulation.engines import LocalEngine
from cloister.simulation.ray_engine import RayEngine
from cloister.simulation.simulate import resume, simulate
from cloister.simulation.sites import SimulatedSites

DIGITS: dict[str, Any] = {
    "federation": {"name": "lies", "rounds": 5, "seed": 4},
    "task": {"use": "digits", "model": {"name": "mlp", "hidden": [16]}},
    "cohort": {"sites": 7, "partition": {"by": "iid"}},
    "training": {"local_steps": 2, "batch_size": 32, "optimizer": {"lr": 0.5}},
    "aggregation": {"rule": "arc | nnm | trimmed-mean", "byzantine": 2},
    "evaluation": {"every": 0, "sites": False},
}


def loaded(attack: str, *overrides: str) -> Loaded:
    return parse_federation(DIGITS, base=Path.cwd(), overrides=[f"attack.name={attack}", *overrides])


def fingerprint(folder: Path) -> tuple[bytes, list[Any]]:
    rounds = [
        {key: value for key, value in event.items() if key not in ("time", "seconds")}
        for event in read_events(folder / "events.jsonl")
        if event["kind"] in ("round", "evaluation")
    ]
    return (folder / "model.safetensors").read_bytes(), rounds


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        "opt-alie",
        pytest.param("stale-replay", marks=pytest.mark.slow),
        pytest.param("dba", marks=pytest.mark.slow),
    ],
)
def test_any_number_of_workers_gives_the_same_result_to_the_bit(attack: str, tmp_path: Path) -> None:
    found = [
        fingerprint(simulate(loaded(attack), out=tmp_path / str(workers), engine=LocalEngine(workers)).run)
        for workers in (0, 2)
    ]
    assert found[0] == found[1]
    honest = simulate(loaded("none"), out=tmp_path / "honest", engine=LocalEngine(0)).run
    assert fingerprint(honest)[0] != found[0][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "own"),
    [
        ("stale-replay", "attack.delay=2"),
        ("mimic", ""),
        ("free-rider", ""),
        ("neurotoxin", "attack.ratio=0.3"),
    ],
)
def test_liars_remember_over_a_break(attack: str, own: str, tmp_path: Path) -> None:
    more = ["aggregation.rule=centered-clipping(1)", *([own] if own else [])]
    unbroken = simulate(loaded(attack, *more), out=tmp_path / "unbroken", engine=LocalEngine(0)).run

    class Stop:
        def handle(self, event: Any) -> None:
            if event["kind"] == "round" and event["round"] == 4:
                raise KeyboardInterrupt

        def close(self) -> None:
            pass

    with pytest.raises(KeyboardInterrupt):
        simulate(loaded(attack, *more), out=tmp_path / "broken", engine=LocalEngine(0), sinks=(Stop(),))
    (folder,) = (tmp_path / "broken").iterdir()
    assert fingerprint(resume(folder, engine=LocalEngine(0)).run) == fingerprint(unbroken)


def test_liars_that_send_no_number_are_refused_each_round_and_the_round_counts(tmp_path: Path) -> None:
    made = simulate(loaded("not-finite"), out=tmp_path, engine=LocalEngine(0))
    events = list(read_events(made.run / "events.jsonl"))
    liars = next(event["liars"] for event in events if event["kind"] == "run")
    assert len(liars) == 2
    for event in events:
        if event["kind"] == "round":
            assert event["answered"] == 5
            assert sorted(one["site"] for one in event["refused"]) == liars


@pytest.mark.slow
def test_the_mean_falls_where_the_rule_stands(tmp_path: Path) -> None:
    def accuracy(*overrides: str) -> float:
        made = simulate(loaded("ipm", "attack.scale=6.0", "federation.rounds=15", *overrides), out=tmp_path, engine=LocalEngine(0))  # fmt: skip
        return float(made.figures["metrics"]["central"]["last"]["accuracy"])

    assert accuracy("aggregation.rule=mean") < 0.2
    assert accuracy() > 0.7


@pytest.mark.slow
def test_a_backdoor_s_success_stands_in_the_report(tmp_path: Path) -> None:
    made = simulate(loaded("badnets", "aggregation.rule=mean"), out=tmp_path, engine=LocalEngine(0))
    assert 0 <= made.figures["metrics"]["central"]["last"]["attack_success"] <= 1
    honest = simulate(loaded("none"), out=tmp_path, engine=LocalEngine(0))
    assert "attack_success" not in honest.figures["metrics"]["central"]["last"]


def test_ray_is_refused_with_an_attack() -> None:
    sites = SimulatedSites(json.dumps(loaded("ipm").effective()), Path())
    with pytest.raises(SpecError, match="--engine local only"), RayEngine(1).open(sites):
        pass


class TestRehearse:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        import tomli_w

        path = tmp_path / "lies.toml"
        path.write_text(tomli_w.dumps({**DIGITS, "federation": {**DIGITS["federation"], "rounds": 2}}))
        return path

    def command(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
        code = run(["rehearse", *arguments, "--json", "--workers", "0"])
        return code, json.loads(capsys.readouterr().out)

    @pytest.mark.slow
    def test_it_runs_every_rule_against_every_attack_and_names_the_worst(
        self, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, found = self.command(
            capsys, str(file), "--rules", "mean; arc|nnm|trimmed-mean", "--attacks", "ipm,badnets", "--seeds", "1,2", "--out", str(tmp_path)
        )  # fmt: skip
        assert code == 0
        assert [rule["rule"] for rule in found["rules"]] == ["mean", "arc | nnm | trimmed-mean"]
        for rule in found["rules"]:
            assert list(rule["attacks"]) == ["none", "ipm", "badnets"]
            lies = {name: one["mean"] for name, one in rule["attacks"].items() if name != "none"}
            assert rule["worst"] == {
                "attack": min(lies, key=lambda name: lies[name]),
                "mean": min(lies.values()),
            }
            assert all(one["n"] == 2 for one in rule["attacks"].values())
            assert rule["nobody_lies"] == rule["attacks"]["none"]["mean"]
        assert found["done"]
        page = Path(found["page"]).read_text()
        assert "<svg" in page
        assert "Worst case" in page
        again, same = self.command(capsys, "--resume", found["folder"])
        assert again == 0
        assert same["rules"] == found["rules"]

    @pytest.mark.parametrize(
        ("arguments", "why"),
        [
            (["--attacks", "alei"], "there is no attack 'alei'; did you mean 'alie'"),
            (["--rules", "mean;;median"], "lacks a rule"),
            (["--rules", "krumm"], "did you mean 'krum'"),
            (["--rules", "bulyan", "--attacks", "ipm"], "needs at least 11 updates"),
            (["--set", "evaluation.central=false"], "judged on the central test records"),
            (["--set", "aggregation.byzantine=0"], "does not say how many sites lie"),
            (["--resume", "x"], "nothing else goes with it"),
        ],
    )
    def test_what_cannot_be_rehearsed_is_refused_before_anything_trains(
        self, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], why: str
    ) -> None:
        code, found = self.command(capsys, str(file), *arguments, *([] if "--resume" in arguments else ["--out", str(tmp_path / "runs")]))  # fmt: skip
        assert code in (2, 3)
        assert why in found["error"]["message"]
        assert not (tmp_path / "runs").exists()
