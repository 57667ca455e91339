"""A sweep: its grid, what it refuses before anything trains or goes on, its page, and what all points cost together."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dp_accounting  # type: ignore[import-untyped]
import pytest
from dp_accounting.pld import PLDAccountant  # type: ignore[import-untyped]

from cloister.core.command import run
from cloister.core.errors import CloisterError, IntegrityError, SpecError
from cloister.core.spec import parse_federation
from cloister.server.report.words import metric_text, number
from cloister.simulation.engines import LocalEngine
from cloister.simulation.sweep.composing import Charged, composed
from cloister.simulation.sweep.grid import MOST_POINTS, read_over
from cloister.simulation.sweep.running import SweepResult, resume, sweep
from swept import PRIVATE, grid_of

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """A finished sweep over the noise, with two seeds and the reference."""
    from cloister.core.spec import load_federation

    folder = tmp_path_factory.mktemp("sweep")
    (folder / "rings.py").write_text(_task())
    path = folder / "federation.toml"
    path.write_text(
        '[federation]\nname = "rings"\nrounds = 4\n[task]\nuse = "rings.py:Rings"\n'
        '[cohort]\nsites = 5\npartition = { by = "iid" }\nper_round = 3\n'
        '[training]\nbatch_size = 16\nlocal_steps = 3\noptimizer = { name = "sgd", lr = 0.3 }\n'
        '[privacy]\nunit = "record"\nnoise_multiplier = 1.0\ndelta = 1e-4\nclip = 0.5\nsampling_rate = 0.2\n'
    )
    load_federation(path)
    grid = grid_of(path, "privacy.noise_multiplier=0.8,16", seeds="7,8", reference=True)
    return sweep(grid, out=folder / "runs", engine=LocalEngine(0))


def _task() -> str:
    text = (Path(__file__).parent / "conftest.py").read_text()
    return text.split("TASK = '''")[1].split("'''")[0]


# The grid


def test_the_points_are_the_product_of_the_values_and_the_seeds_in_their_order(make_file: Make) -> None:
    grid = grid_of(make_file(), "training.optimizer.lr=0.1,0.2", "federation.rounds=2,3,4", seeds="7,8")
    points = grid.points()
    found = [
        (
            point.values["training.optimizer.lr"],
            point.values["federation.rounds"],
            point.loaded.spec.federation.seed,
        )
        for point in points
    ]
    assert found == [(lr, rounds, seed) for lr in (0.1, 0.2) for rounds in (2, 3, 4) for seed in (7, 8)]
    assert [point.name for point in points] == [f"{number:03d}" for number in range(1, 13)]
    assert all(
        point.loaded.spec.training.optimizer.lr == point.values["training.optimizer.lr"] for point in points
    )


def test_a_comma_inside_a_value_does_not_end_it() -> None:
    over = read_over(['cohort.per_round=2, {poisson = 0.5},"all"', "a.b=[1,2],'x,y',plain"])
    assert over == {
        "cohort.per_round": ("2", "{poisson = 0.5}", '"all"'),
        "a.b": ("[1,2]", "'x,y'", "plain"),
    }


def test_any_key_can_be_swept_also_over_texts_and_tables(make_file: Make) -> None:
    path = make_file()
    rounds = grid_of(path, "cohort.per_round=2,{poisson=0.5},all").points()
    assert [point.values["cohort.per_round"] for point in rounds] == [2, {"poisson": 0.5}, "all"]
    names = grid_of(path, "aggregation.optimizer.name=fedavg,fedavgm").points()
    assert [point.loaded.spec.aggregation.optimizer.name for point in names] == ["fedavg", "fedavgm"]
    assert [point.loaded.spec.task.options["records"] for point in grid_of(path, "task.records=99,120").points()] == [99, 120]  # fmt: skip


def test_a_reference_is_the_same_federation_without_privacy_once_for_each_other_value(
    make_file: Make,
) -> None:
    grid = grid_of(
        make_file(**PRIVATE),
        "privacy.noise_multiplier=1,2",
        "training.optimizer.lr=0.1,0.2",
        seeds="7,8",
        reference=True,
    )
    points = grid.points()
    references = [point for point in points if point.reference]
    assert len(points) == 8 + 4
    assert [point.values for point in references] == [{"training.optimizer.lr": lr} for lr in (0.1, 0.2) for _ in (7, 8)]  # fmt: skip
    private, open_ = points[0].loaded.effective(), references[0].loaded.effective()
    assert open_.pop("privacy") == {"unit": "none"}
    private.pop("privacy")
    assert open_ == private


@pytest.mark.parametrize(
    ("over", "seeds", "code", "says"),
    [
        (["privacy.epsilon"], None, "over", "is not key=value"),
        (["=1,2"], None, "over", "is not key=value"),
        (["a..b=1"], None, "over", "is not key=value"),
        (["federation.rounds=1,,2"], None, "over", "is not key=value"),
        (["federation.rounds="], None, "over", "is not key=value"),
        (["federation.rounds=1", "federation.rounds=2"], None, "over", "set the same key"),
        (["privacy.clip=1", "privacy={unit='none'}"], None, "over", "set the same key"),
        (["federation.rounds=1"], "7,x", "seeds", "is not a list of whole numbers"),
        (["federation.rounds=1"], "-1", "seeds", "is not a list of whole numbers"),
        (["federation.seed=1,2"], "7", "seeds", "both set 'federation.seed'"),
        (["federation.rounds=3,2,3"], None, "grid", "same federation: federation.rounds = 3"),
        (["federation.rounds=3"], "7,7", "grid", "same federation"),
        ([f"federation.rounds={','.join(map(str, range(1, MOST_POINTS + 2)))}"], None, "grid", "at most 1000"),
        (["federation.round=3"], None, "spec", "at the point federation.round=3: .*did you mean 'rounds'"),
        (["federation.rounds=3,0"], None, "spec", "at the point federation.rounds=0: .*at least 1"),
    ],
)  # fmt: skip
def test_a_bad_grid_is_refused_with_a_code_the_place_and_a_remedy(
    make_file: Make, over: list[str], seeds: str | None, code: str, says: str
) -> None:
    with pytest.raises(SpecError) as refused:
        grid_of(make_file(), *over, seeds=seeds).points()
    assert refused.value.code == code
    assert re.search(says, refused.value.message, flags=re.DOTALL)
    assert refused.value.remedy


def test_a_reference_where_nothing_is_private_is_refused(make_file: Make) -> None:
    with pytest.raises(SpecError, match="no point of the sweep has any") as refused:
        grid_of(make_file(), "federation.rounds=1,2", reference=True).points()
    assert refused.value.code == "reference"


@pytest.mark.parametrize(
    ("over", "kind", "says"),
    [
        ("cohort.wait_s=300,600", None, ""),
        ("task.records=200,4", SpecError, "task.records = 4"),
        ("task.fault=,", SpecError, "is not key=value"),
        ("task.fault='',batch-norm", CloisterError, "task.fault = batch-norm"),
        ("task.fault='',data", CloisterError, "task.fault = data"),
        ("task.fault='','nan'", SpecError, "task.fault = nan"),
        ("privacy.sampling_rate=0.1,0.2", None, ""),
        ("training.class_weights=[1.0,1.0],[1.0,1.0,1.0]", SpecError, "class_weights"),
    ],
)
def test_every_point_is_checked_before_the_first_trains(
    make_file: Make, tmp_path: Path, over: str, kind: type[CloisterError] | None, says: str
) -> None:
    path = make_file(**PRIVATE)
    started: list[Path] = []

    class Started(Exception):  # noqa: N818
        pass

    def start(folder: Path) -> None:
        started.append(folder)
        raise Started

    with pytest.raises(kind or Started) as refused:
        sweep(
            grid_of(path, over, settings=("cohort.partition={by='iid'}",)),
            out=tmp_path / "runs",
            engine=LocalEngine(0),
            on_start=start,
        )
    if kind is not None:
        assert says in str(refused.value)
        assert "Jane" not in str(refused.value)
        assert not started
        assert not (tmp_path / "runs").exists()


def test_a_promise_that_no_noise_keeps_is_refused_before_any_training(
    make_file: Make, tmp_path: Path
) -> None:
    privacy = {key: value for key, value in PRIVATE["privacy"].items() if key != "noise_multiplier"}
    path = make_file(**{**PRIVATE, "privacy": {**privacy, "epsilon": 0.3}})
    with pytest.raises(SpecError, match=r"at the point privacy\.delta = 1e-300.*out of reach"):
        sweep(
            grid_of(path, "privacy.delta=1e-4,1e-300"),
            out=tmp_path / "runs",
            engine=LocalEngine(0),
        )
    assert not (tmp_path / "runs").exists()


# What all points cost together


@pytest.mark.slow
def test_the_cost_of_all_points_is_that_of_dp_accounting_on_events_written_by_hand(
    private: SweepResult,
) -> None:
    """Two noise levels and two seeds: each site by the rounds it was asked in, all runs in one composition, no ε added."""
    (entry,) = private.figures["composed"]
    asked: dict[str, dict[str, int]] = {}
    for point in private.figures["points"]:
        if point["reference"]:
            continue
        for line in (private.sweep / point["run"] / "events.jsonl").read_text().splitlines():
            event = json.loads(line)
            if event["kind"] == "site" and event["phase"] == "train":
                rounds = asked.setdefault(event["site"], {})
                rounds[point["name"]] = rounds.get(point["name"], 0) + 1
    assert len({tuple(sorted(rounds.items())) for rounds in asked.values()}) > 1, (
        "the fixture must tell sites apart"
    )
    noise = {point["name"]: point["values"].get("privacy.noise_multiplier") for point in private.figures["points"]}  # fmt: skip
    assert entry["sites"].keys() == asked.keys()
    for site, rounds in asked.items():
        expected = _oracle({name: 3 * times for name, times in rounds.items()}, noise, rate=0.2, delta=1e-4)
        assert entry["sites"][site]["epsilon"] == pytest.approx(expected, rel=0.01)
        assert entry["sites"][site]["rounds"] == sum(rounds.values())
    dearest = max(cost["epsilon"] for cost in entry["sites"].values())
    assert entry["most"]["epsilon"] >= dearest
    one_run = max(point["privacy"]["epsilon"] or 0 for point in private.figures["points"])
    added = sum(point["privacy"]["epsilon"] or 0 for point in private.figures["points"])
    assert one_run < dearest < 0.95 * added


def _oracle(steps: Mapping[str, int], noise: Mapping[str, float], *, rate: float, delta: float) -> float:
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL, 1e-3)
    for name, times in steps.items():
        step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise[name]))
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, times))
    epsilon: float = accountant.get_epsilon(delta)
    return epsilon


def charged(asked: dict[str, int], **privacy: Any) -> Charged:
    document = {
        "federation": {"name": "a", "rounds": 50},
        "task": {"use": "heart"},
        "training": {"local_steps": 4},
        "privacy": {**PRIVATE["privacy"], **privacy} if privacy.get("unit") != "none" else privacy,
    }
    return Charged(spec=parse_federation(document, base=Path()).spec, asked=asked)


def test_points_of_different_delta_compose_at_the_smallest_and_those_without_privacy_never() -> None:
    points = [
        charged({"a": 20, "b": 5}, noise_multiplier=1.5, delta=1e-3),
        charged({"a": 20}, noise_multiplier=2.5, delta=1e-5),
        charged({"a": 20, "b": 20}, unit="none"),
    ]
    (entry,) = composed(points)
    assert (entry["points"], entry["delta"], entry["unit"]) == (2, 1e-5, "record")
    noise = {"x": 1.5, "y": 2.5}
    both = _oracle({"x": 80, "y": 80}, noise, rate=0.2, delta=1e-5)
    alone = _oracle({"x": 20}, noise, rate=0.2, delta=1e-5)
    assert entry["sites"]["a"]["epsilon"] == pytest.approx(both, rel=0.01)
    assert entry["sites"]["b"]["epsilon"] == pytest.approx(alone, rel=0.01)
    assert entry["most"] == entry["sites"]["a"]
    assert composed(points[2:]) == []


@pytest.mark.slow
def test_the_sites_ledgers_hold_what_the_sweep_says_that_it_cost(repository: Path, tmp_path: Path) -> None:
    """All points are charged to one account a site; the references to none."""
    path = repository / "examples" / "heart" / "private.toml"
    made = sweep(
        grid_of(path, "privacy.epsilon=1,2", reference=True, settings=("federation.rounds=2",)),
        out=tmp_path / "runs",
        engine=LocalEngine(0),
        ledgers=tmp_path / "ledgers",
    )
    last = made.sweep / made.figures["points"][1]["run"] / "events.jsonl"
    told = [json.loads(line) for line in last.read_text().splitlines()]
    ledgers = {
        event["site"]: event["ledger"]["epsilon"]
        for event in told
        if event["kind"] == "privacy" and event["site"]
    }
    (entry,) = made.figures["composed"]
    assert len(ledgers) == 4
    for site, epsilon in ledgers.items():
        assert entry["sites"][site]["epsilon"] == pytest.approx(epsilon, rel=0.01)
    assert json.loads((made.sweep / "sweep.json").read_text())["ledgers"] == str(tmp_path / "ledgers")
    text = (made.sweep / made.figures["points"][1]["report"]).read_text()
    assert "ε on its ledger" in text


def test_many_sites_are_told_by_the_cost_that_none_passes() -> None:
    asked = {f"site-{number}": number % 7 for number in range(201)}
    (entry,) = composed([charged(asked, noise_multiplier=1.5)])
    assert entry["sites"] is None
    assert entry["most"]["rounds"] == 6


# The page


@pytest.mark.slow
def test_the_page_is_self_contained_and_holds_the_figures_of_the_json(private: SweepResult) -> None:
    source = private.page.read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", source))
    kept = json.loads((private.sweep / "sweep.json").read_text(), parse_constant=pytest.fail)
    assert kept["done"] is True
    assert len(kept["points"]) == 6
    for point in kept["points"]:
        row = source.split(f'href="{point["report"]}"')[1].split("</tr>")[0]
        wanted = [point["metrics"]["accuracy"], point["loss"], point["privacy"]["epsilon"]]
        shown = [metric_text("accuracy", wanted[0]), number(wanted[1]), number(wanted[2])]
        assert all(f"<td>{figure}" in row for figure in shown)
        assert f"<td>{point['seed']}" in row
        assert (private.sweep / point["report"]).is_file()
    for one in kept["values"]:
        assert metric_text("accuracy", one["accuracy"]["mean"]) in text
    for cost in kept["composed"][0]["sites"].values():
        assert number(cost["epsilon"]) in text
    assert "is itself a release: the costs of all points compose" in text
    assert "2 runs have no differential privacy and no bound" in text
    links = re.findall(r'(?:href|src)="([^"#]*)"', source)
    assert links
    assert all(link.startswith("points/") for link in links)
    assert not re.search(r"https?:|<script|@import|url\((?!#)", source)
    assert "default-src 'none'" in source
    for title in ("Accuracy against the ε spent", "Accuracy against privacy.noise_multiplier"):
        assert title in text
    assert "Without privacy" in source.split("<svg")[1]


@pytest.mark.slow
def test_values_over_more_than_a_decade_have_a_logarithmic_axis(private: SweepResult) -> None:
    from cloister.simulation.sweep.plots import by_value

    def ticks(noise: float) -> list[float]:
        figures = json.loads((private.sweep / "sweep.json").read_text())
        for entry in (*figures["points"], *figures["values"]):
            if entry["values"] == {"privacy.noise_multiplier": 16.0}:
                entry["values"] = {"privacy.noise_multiplier": noise}
        figures["points"][0]["values"] = figures["points"][1]["values"] = {"privacy.noise_multiplier": 4.0}
        figures["values"].append({"values": {"privacy.noise_multiplier": 4.0}})
        svg = by_value(figures, "accuracy") or ""
        places = {label: float(x) for x, label in re.findall(r'translate\(([\d.]+) [\d.]+\)"[^>]*>([\d.]+)</text>', svg)}  # fmt: skip
        places |= {label: float(x) for x, label in re.findall(r'x="([\d.]+)"[^>]*>([\d.]+)</text>', svg)}
        return [places["0.8"], places["4"], places[f"{noise:g}"]]

    low, middle, high = ticks(7.2)
    assert (middle - low) / (high - low) == pytest.approx(0.5, abs=0.01)
    low, middle, high = ticks(20.0)
    assert (middle - low) / (high - low) == pytest.approx(0.5, abs=0.01), "in the middle of the logarithms"


# Gone on with


@pytest.mark.slow
def test_a_finished_sweep_resumes_to_itself_without_training(private: SweepResult) -> None:
    before = (private.sweep / "sweep.json").read_text()
    again = resume(private.sweep, engine=LocalEngine(0))
    assert (private.sweep / "sweep.json").read_text() == before
    assert again.figures == json.loads(before)


@pytest.mark.slow
def test_a_sweep_of_another_file_or_grid_is_refused(private: SweepResult) -> None:
    path = private.sweep.parent.parent / "federation.toml"
    same = grid_of(path, "privacy.noise_multiplier=0.8,16", seeds="7,8", reference=True)
    resume(private.sweep, engine=LocalEngine(0), grid=same)
    others = [
        grid_of(path, "privacy.noise_multiplier=0.8,8", seeds="7,8", reference=True),
        grid_of(path, "privacy.noise_multiplier=0.8,16", seeds="7", reference=True),
        grid_of(path, "privacy.noise_multiplier=0.8,16", seeds="7,8"),
        grid_of(path, "privacy.noise_multiplier=0.8,16", seeds="7,8", reference=True, settings=("federation.rounds=5",)),
    ]  # fmt: skip
    for other in others:
        with pytest.raises(IntegrityError, match="another federation file or another grid") as refused:
            resume(private.sweep, engine=LocalEngine(0), grid=other)
        assert refused.value.code == "sweep-differs"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda kept: kept["points"][0].update(digest="0" * 64), "does not give the federation files"),
        (lambda kept: kept["grid"]["over"].update({"privacy.noise_multiplier": ["0.8", "17"]}), "does not give"),
        (lambda kept: kept["grid"]["document"]["federation"].update(rounds=-1), "the grid in .* is refused"),
        (lambda kept: kept["points"].pop(), "does not give"),
        (lambda kept: kept.pop("grid"), "is not what cloister sweep wrote"),
        (lambda kept: kept.update(format=2), "has format 2"),
        (lambda kept: kept["points"][1].update(fingerprint="data=0"), "data, the task's code or a version"),
    ],
)  # fmt: skip
def test_a_damaged_sweep_is_refused(
    private: SweepResult, tmp_path: Path, damage: Callable[[dict[str, Any]], object], says: str
) -> None:
    kept = json.loads((private.sweep / "sweep.json").read_text())
    damage(kept)
    (tmp_path / "sweep.json").write_text(json.dumps(kept))
    with pytest.raises(IntegrityError) as refused:
        resume(tmp_path, engine=LocalEngine(0))
    assert re.search(says, refused.value.message)
    assert refused.value.exit_code == 7
    assert refused.value.remedy


def test_the_command_says_what_it_needs(
    make_file: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = str(make_file())
    for arguments, code, status in (
        ((path,), "usage", 2),
        ((), "usage", 2),
        (("--resume", str(tmp_path), "--over", "federation.rounds=1"), "usage", 2),
        (("--resume", str(tmp_path)), "usage", 2),
        ((path, "--over", "federation.rounds=1,2", "--set", "federation.rounds=3"), "over", 3),
    ):
        assert run(["sweep", *arguments, "--json"]) == status
        refused = json.loads(capfd.readouterr().out)["error"]
        assert refused["code"] == code
        assert refused["remedy"]


@pytest.mark.slow
def test_the_command_answers_with_the_figures_of_the_sweep(
    private: SweepResult, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["sweep", "--resume", str(private.sweep), "--json"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer.pop("folder") == str(private.sweep)
    assert answer.pop("page") == str(private.page)
    assert answer == json.loads((private.sweep / "sweep.json").read_text())
