"""A run that plants canaries is its own audit; and an audit that was killed goes on to the same verdict."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from cloister.client import app, canaries
from cloister.core.command import run as command
from cloister.core.errors import IntegrityError, SpecError
from cloister.core.randomness import SeededRandomness
from cloister.core.spec import load_federation
from cloister.privacy.audit import power
from cloister.privacy.audit.coins import Coins
from cloister.privacy.noise import GaussianSource
from cloister.server.audit.model.provenance import check_provenance
from cloister.server.audit.record.claim import check_privacy
from cloister.server.audit.subject import open_audit
from cloister.simulation.engines import LocalEngine
from cloister.simulation.simulate import resume, simulate

pytestmark = pytest.mark.usefixtures("undrawn")

Made = Callable[..., Path]

PLANTED: dict[str, dict[str, Any]] = {
    "federation": {"rounds": 3},
    "cohort": {"sites": 3, "per_round": "all", "partition": {"by": "iid"}, "min_sites": 3},
    "training": {"local_steps": 2, "batch_size": 100, "optimizer": {"name": "sgd", "lr": 0.1}},
    "privacy": {"unit": "record", "epsilon": 4.0, "delta": 1e-5, "clip": 1.0, "sampling_rate": 1.0},
    "aggregation": {"protection": "plain"},
    "audit": {"canaries": 1000, "canary_site": "site-002"},
}


@pytest.fixture(autouse=True)
def quick_power(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute power from fewer simulated audits: `tests/privacy/test_audit_judging.py` tests it in full."""
    power.prepare.cache_clear()
    for name, value in (("_RUNS", 40), ("_HALVINGS", 5), ("_MEDIAN", 5)):
        monkeypatch.setattr(power, name, value)


def tables(**changes: dict[str, Any]) -> dict[str, Any]:
    return {name: {**table, **changes.pop(name, {})} for name, table in PLANTED.items()} | changes


def run(path: Path, out: Path, **options: Any) -> Path:
    return simulate(load_federation(path), out=out, engine=LocalEngine(0), **options).run


def figures(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "audit-privacy.json").read_text())
    return found


def verdicts(folder: Path) -> list[str]:
    events = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [event["verdict"] for event in events if event["kind"] == "audit"]


def test_an_honest_run_is_consistent_and_says_so_where_its_model_is_audited(
    make_file: Made, tmp_path: Path
) -> None:
    folder = run(make_file(**tables()), tmp_path / "runs", ledgers=tmp_path / "ledgers")
    found = figures(folder)
    assert verdicts(folder) == ["sealed", "opened", "consistent"]
    assert 2.5 < found["lower_bound"] < 4.0
    assert found["set_up"]["sees"] == "update"
    page = (folder / "audit-privacy.html").read_text()
    assert "the run itself" in page
    assert "on the promised epsilon: consistent" in (folder / "report.html").read_text()
    assert (folder / "audit-privacy.json").stat().st_mode & 0o77 == 0
    subject = open_audit(folder)
    told = check_privacy(subject)
    assert (told.verdict, told.figures["in_run"]) == ("pass", True)
    assert "this very run" in told.power
    assert check_provenance(subject).verdict == "pass", check_provenance(subject).sentence
    assert not [name for name in load_file(folder / "model.safetensors") if "canar" in name]


def test_half_the_noise_is_refuted_in_the_run_itself(
    make_file: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = GaussianSource.perturb
    monkeypatch.setattr(
        GaussianSource, "perturb", lambda self, total, *, std: drawn(self, total, std=std / 2)
    )
    folder = run(make_file(**tables()), tmp_path / "runs")
    assert figures(folder)["lower_bound"] > 6
    assert check_privacy(open_audit(folder)).verdict == "fail"


@pytest.mark.parametrize(
    ("unit", "protection"),
    [("record", "masked"), ("record-distributed", "masked"), ("record-distributed", "plain")],
)
def test_where_the_coordinator_sees_sums_those_are_what_is_scored(
    make_file: Made, tmp_path: Path, unit: str, protection: str
) -> None:
    file = make_file(
        **tables(
            aggregation={"protection": protection},
            privacy={"unit": unit, "epsilon": 8.0},
            training={"local_steps": 2 if unit == "record" else 1},
            audit={"canaries": 400},
        )
    )
    found = figures(run(file, tmp_path / "runs"))
    assert found["set_up"]["sees"] == "model"
    assert found["verdict"] != "refuted"
    sites, least = 3, 3
    assert found["set_up"]["dilution"] == pytest.approx((sites / (1 if unit == "record" else least)) ** 0.5)
    assert 1.0 < found["lower_bound"] < found["claim"]["epsilon"]


def test_what_would_show_nothing_is_refused_before_a_run_is_made(make_file: Made, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="none of the 3 sites"):
        run(make_file(**tables(audit={"canary_site": "site-999"})), tmp_path / "runs")
    with pytest.raises(SpecError, match="promises nothing"):
        load_federation(make_file(**{**tables(), "privacy": {}}))
    assert not (tmp_path / "runs").exists()


def test_the_released_model_is_the_one_that_would_have_come_without_canaries_but_for_the_noise(
    make_file: Made, tmp_path: Path
) -> None:
    """Every weight differs by no more than two draws of the noise do: five deviations, in a few dozen weights."""
    planted = tables(cohort={"sites": 1, "min_sites": 1}, audit={"canary_site": "site-001", "canaries": 400})
    with_them = run(make_file(**planted), tmp_path / "with")
    without = run(make_file(**{**planted, "audit": {}}), tmp_path / "without")
    sigma = figures(with_them)["set_up"]["noise_multiplier"]
    steps, lr, batch = 6, 0.1, 100
    deviation = (2 * steps) ** 0.5 * lr * sigma / batch
    first, second = (load_file(folder / "model.safetensors") for folder in (with_them, without))
    assert first.keys() == second.keys()
    for name in first:
        assert abs(first[name] - second[name]).max() < 5 * deviation


# ------------------------------------------------------------------ coins


def test_coins_that_were_not_sealed_make_the_audit_void_and_the_release_fails(
    make_file: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = canaries.coins_of

    def lying(*arguments: Any, draw: bool, **options: Any) -> Coins:
        found = asked(*arguments, draw=draw, **options)
        return found if draw else Coins.draw(len(found.included), SeededRandomness(99))

    monkeypatch.setattr(app, "coins_of", lying)
    folder = run(make_file(**tables(audit={"canaries": 64})), tmp_path / "runs")
    assert verdicts(folder) == ["sealed", "void"]
    assert not (folder / "audit-privacy.json").exists()
    told = check_privacy(open_audit(folder))
    assert (told.verdict, "other coins" in told.sentence) == ("fail", True)


def test_coins_that_were_not_opened_leave_a_model_and_no_audit(
    make_file: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = canaries.coins_of

    def silent(*arguments: Any, draw: bool, **options: Any) -> Coins:
        if not draw:
            raise IntegrityError("lost", code="audit-coins")
        return asked(*arguments, draw=draw, **options)

    monkeypatch.setattr(app, "coins_of", silent)
    folder = run(make_file(**tables(audit={"canaries": 64})), tmp_path / "runs")
    assert verdicts(folder) == ["sealed", "incomplete"]
    told = check_privacy(open_audit(folder))
    assert (told.verdict, "did not open its coins" in told.sentence) == ("no power", True)


def test_figures_that_are_not_what_the_events_tell_fail(make_file: Made, tmp_path: Path) -> None:
    folder = run(make_file(**tables(audit={"canaries": 64})), tmp_path / "runs")
    assert check_privacy(open_audit(folder)).verdict == "no power"
    found = figures(folder)
    found["coins"][0] = 1 - found["coins"][0]
    (folder / "audit-privacy.json").write_text(json.dumps(found))
    assert check_privacy(open_audit(folder)).verdict == "fail"


# ------------------------------------------------------------------ interrupted


class Stop:
    """Interrupts a run when it tells of a round."""

    def __init__(self, number: int) -> None:
        self.number = number

    def handle(self, event: Any) -> None:
        if event["kind"] == "round" and event["round"] == self.number:
            raise KeyboardInterrupt

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("number", "protection"),
    [
        (2, "plain"),
        *(
            pytest.param(*more, marks=pytest.mark.slow)
            for more in [(1, "plain"), (3, "plain"), (2, "masked")]
        ),
    ],
)
def test_a_run_that_was_interrupted_comes_to_the_same_scores(
    make_file: Made, tmp_path: Path, number: int, protection: str
) -> None:
    path = make_file(**tables(aggregation={"protection": protection}, audit={"canaries": 64}))
    unbroken = figures(run(path, tmp_path / "unbroken"))
    with pytest.raises(KeyboardInterrupt):
        run(path, tmp_path / "broken", sinks=(Stop(number),))
    (folder,) = (tmp_path / "broken").iterdir()
    found = figures(resume(folder, engine=LocalEngine(0)).run)
    assert {**found, "run": ""} == {**unbroken, "run": ""}
    assert verdicts(folder)[:2] == ["sealed", "opened"]


def test_a_seal_outlives_a_crash_before_the_first_checkpoint_of_a_round(
    make_file: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever seals other coins once rounds have been seen is found, also where the run goes back to its beginning."""
    path = make_file(**tables(federation={"rounds": 3, "checkpoint_every": 3}, audit={"canaries": 64}))
    with pytest.raises(KeyboardInterrupt):
        run(path, tmp_path / "broken", sinks=(Stop(1),))
    (folder,) = (tmp_path / "broken").iterdir()
    other = Coins.draw(64, SeededRandomness(99))
    monkeypatch.setattr(canaries.SeededCoins, "coins", lambda *_, **__: other)
    resume(folder, engine=LocalEngine(0))
    assert verdicts(folder) == ["sealed", "void"]


@pytest.mark.slow
def test_an_audit_that_is_killed_goes_on_to_the_same_verdict(
    make_file: Made, tmp_path: Path, cloister: Any
) -> None:
    path = make_file(**tables(federation={"rounds": 30, "checkpoint_every": 1}))
    asked = ("audit", "privacy", path, "--canaries", 300, "--site", "site-003", "--confidence", 0.9)
    done = cloister(*asked, "--out", tmp_path / "unbroken", "--json")
    unbroken = figures(next((tmp_path / "unbroken").glob("rings-audit-*")))
    assert done.returncode in (0, 8), done.stderr
    for number in (0, 7, 29):
        out = tmp_path / f"killed-{number}"
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("cloister")), *map(str, asked), "--out", str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while not any(
            int(path.stem.removeprefix("round-")) >= number
            for path in out.glob("rings-audit-*/checkpoints/round-*.safetensors")
        ):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        (folder,) = out.glob("rings-audit-*")
        assert cloister("simulate", "--resume", folder).returncode == 2
        again = cloister("audit", "privacy", "--resume", folder, "--json")
        assert again.returncode == done.returncode, again.stderr
        assert {**figures(folder), "run": ""} == {**unbroken, "run": ""}
        assert verdicts(folder).count("sealed") == 1


def test_only_an_audits_run_goes_on_as_one(
    make_file: Made, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = make_file(**tables(audit={"canaries": 64}))
    assert command(["audit", "privacy", "--resume", str(tmp_path), "--json"]) == 2
    assert json.loads(capfd.readouterr().out)["error"]["code"] == "audit-resume"
    assert command(["audit", "privacy", str(path), "--resume", str(tmp_path)]) == 2
    assert command(["audit", "privacy"]) == 2
