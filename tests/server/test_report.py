"""The report: its contract for machines, what it tells people, and that nobody's name can do anything on its page."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloister.core.errors import IntegrityError
from cloister.core.spec import parse_federation
from cloister.server.events import EventBus, EventLog, read_events
from cloister.server.folding import Fold
from cloister.server.report import ReportPaths, build_report, model_card, write_report
from cloister.server.report.clearance import Clearance
from cloister.server.report.words import (
    bytes_text,
    interval95,
    listed,
    metric_text,
    number,
    percent,
    plural,
    seconds_text,
    shown,
)

HOSPITALS = ("cleveland", "hungarian", "switzerland", "long-beach-va")
HOSTILE = "<script>alert(1)</script>-->&\"'$x_{2}$|[a](javascript:b)\x1b\u202e\n"
HEART = {
    "title": "Heart disease at four hospitals", "owners": "hospitals", "source": "UCI Heart Disease", "licence": "CC BY 4.0",
    "intended_use": "demonstration; not a medical device",
}  # fmt: skip


def make_run(
    folder: Path,
    *,
    names: Iterable[str] = HOSPITALS,
    rounds: int = 6,
    planned: int | None = None,
    central: bool = True,
    baselines: bool = True,
    classes: tuple[str, ...] = ("no disease", "disease"),
    end: str | None = "done",
    notes: tuple[str, ...] = (),
    task: dict[str, Any] | None = None,
    crash_after: int | None = None,
    own: float = 0.7,
) -> Path:
    """Write a made-up run folder through the real bus; with ``crash_after`` it breaks off there, and is resumed."""
    names = list(names)
    folder.mkdir(parents=True, exist_ok=True)
    planned = planned or max(rounds, 1)
    loaded = parse_federation(
        {
            "federation": {"name": "heart", "rounds": planned, "seed": 7},
            "task": {"use": "heart"},
            "aggregation": {"protection": "plain"},
        },
        base=folder,
    )
    (folder / "federation.toml").write_text(loaded.effective_toml())
    (folder / "origins.json").write_text(
        json.dumps({key: str(value) for key, value in loaded.origins.items()})
    )
    log = EventLog(folder / "events.jsonl")
    bus = EventBus(log)
    counts = [[10 + index, 20] if classes else [30 + index] for index in range(len(names))]
    if len(classes) > 2:
        counts = [[index + column for column in range(len(classes))] for index in range(len(names))]
    bus.emit(
        "run", 0, name="heart", digest=loaded.digest(), layout="ab" * 32, parameters=2178, seed=7, reproducible=True,
        sites=len(names), site_names=names[:1000], engine="in-process", workers=2, rounds=planned,
        versions={"cloister": "0.1.0", "flwr": "1.41.0", "torch": "2.13.0"}, task=task if task is not None else HEART,
        classes=classes, notes=notes, protection="plain", rule="mean", optimizer="fedavg", resumed_from=None,
        partition={"by": "site", "classes": list(classes), "sites": dict(zip(names[:200], counts, strict=False))},
    )  # fmt: skip
    done = 0
    if crash_after is not None:
        emit_rounds(bus, range(1, crash_after + 1), names, classes, central=central)
        position = bus.position()
        emit_rounds(bus, range(crash_after + 1, rounds), names, classes, central=central, salt=1)
        log.truncate(position)
        done = crash_after
    emit_rounds(bus, range(done + 1, rounds + 1), names, classes, central=central)
    if baselines and rounds:
        bus.emit("evaluation", rounds, where="baseline:pooled", records=254, **figures(0.805, classes, 254))
        for index, name in enumerate(names):
            bus.emit(
                "evaluation",
                rounds,
                where=f"baseline:local:{name}",
                records=254,
                **figures(own + index / 200, classes, 254),
            )
    if end is not None:
        bus.emit(
            "end",
            rounds,
            status=end,
            code=end,
            message="" if end == "done" else "the disk is full",
            model="model.safetensors",
        )
    bus.close()
    return folder


def emit_rounds(
    bus: EventBus, numbers: range, names: list[str], classes: tuple[str, ...], *, central: bool, salt: int = 0
) -> None:
    for number_of in numbers:
        draw = np.random.default_rng([number_of, salt])
        for index, name in enumerate(names):
            refused = index == 1 and number_of == 2
            bus.emit(
                "site", number_of, site=name, phase="train", status="refused" if refused else "answered",
                reason="not-finite: the update holds NaN" if refused else None, seconds=0.2, loss=None if refused else 0.5,
            )  # fmt: skip
        value = 0.8 - 0.3 / number_of + 0.001 * salt
        if central:
            bus.emit("evaluation", number_of, where="central", records=254, **figures(value, classes, 254))
        for index, name in enumerate(names):
            records = 15 + index
            own = min(0.99, value + (index % 7) / 100 + draw.random() / 1000)
            bus.emit(
                "evaluation",
                number_of,
                where=f"site:{name}",
                records=records,
                **figures(own, classes, records),
            )
        bus.emit("evaluation", number_of, where="sites", records=66, **figures(value + 0.01, classes, 66))
        refusals = (
            [{"site": names[1], "reason": "not-finite: the update holds NaN"}]
            if number_of == 2 and len(names) > 1
            else []
        )
        bus.emit(
            "round", number_of, cohort=len(names), answered=len(names) - len(refusals), missing=[], refused=refusals, loss=0.5,
            update_norm=1.0, bytes_down=8712 * len(names), bytes_up=8712 * len(names),
            seconds={"train": 0.5, "aggregate": 0.01, "evaluate": 0.1, "checkpoint": 0.02},
        )  # fmt: skip


def figures(value: float, classes: tuple[str, ...], records: int) -> dict[str, Any]:
    if not classes:
        return {
            "loss": 1 - value,
            "metrics": {"mse": 1 - value, "mae": 0.9 - value / 2, "r2": value},
            "confusion": None,
        }
    right = round(value * records / 2)
    confusion = (
        [[right, records // 2 - right], [records - records // 2 - right, right]]
        if len(classes) == 2
        else None
    )
    if len(classes) > 2:
        confusion = (np.eye(len(classes), dtype=int) * 9 + 1).tolist()
    return {
        "loss": 1 - value,
        "metrics": {"accuracy": value, "f1": value - 0.02, "auroc": 0.9},
        "confusion": confusion,
    }


class Page(HTMLParser):
    """The page as a browser reads it: tags with their attributes, its text, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for key, value in attrs:
            if key in ("src", "href", "xlink:href", "action", "data", "poster", "srcset") and not (
                value or ""
            ).startswith("#"):
                self.loads.append(value or "")
            if key == "id":
                self.ids.append(value or "")
            if key.startswith("on"):
                self.handlers.append(key)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def strictly(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(), parse_constant=pytest.fail)
    return found


@pytest.fixture(scope="module")
def heart(tmp_path_factory: pytest.TempPathFactory) -> ReportPaths:
    return write_report(make_run(tmp_path_factory.mktemp("runs") / "heart-1"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> ReportPaths:
    task = {"title": HOSTILE, "source": HOSTILE, "licence": HOSTILE, "owners": HOSTILE}
    folder = tmp_path_factory.mktemp("runs") / "hostile"
    run = make_run(
        folder, names=[HOSTILE, *HOSPITALS], classes=(HOSTILE, "$b_2$"), notes=(HOSTILE,), task=task
    )
    return write_report(run)


def test_report_json_is_strict_and_keeps_its_contract(heart: ReportPaths) -> None:
    report = strictly(heart.json)
    for key in (
        "rounds",
        "metrics",
        "privacy",
        "aggregation",
        "traffic",
        "time",
        "audit",
        "versions",
        "seed",
    ):
        assert key in report
    assert (report["rounds"], report["seed"], report["audit"], report["status"]) == (6, 7, {}, "done")
    metrics = report["metrics"]
    assert metrics["central"]["last"]["accuracy"] == pytest.approx(0.75)
    assert metrics["central"]["last"]["records"] == 254
    assert metrics["central"]["best"]["round"] == 6
    assert metrics["sites"]["switzerland"]["last"]["records"] == 17
    assert [point["round"] for point in metrics["history"]["central"]] == [1, 2, 3, 4, 5, 6]
    assert metrics["baselines"]["pooled"]["last"]["accuracy"] == 0.805
    assert metrics["baselines"]["local"]["cleveland"]["last"]["accuracy"] == 0.7
    assert {key: report["privacy"][key] for key in ("unit", "epsilon", "delta", "relation", "sampling", "sites")} == {
        "unit": "none", "epsilon": None, "delta": None, "relation": None, "sampling": None, "sites": {},
    }  # fmt: skip
    assert report["aggregation"]["protection"] == "plain"
    assert report["aggregation"]["rule"] == "mean"
    assert any(
        "update in clear" in sentence for sentence in report["aggregation"]["visible_to"]["server"]["sees"]
    )
    assert report["aggregation"]["refused"] == {"not-finite": 1}
    assert report["traffic"]["bytes_up"] == 6 * 4 * 8712
    assert report["traffic"]["rounds"][0] == {"round": 1, "bytes_down": 4 * 8712, "bytes_up": 4 * 8712}
    assert report["traffic"]["sites"]["cleveland"]["bytes_down"] == 6 * 8712
    assert report["time"]["phases"]["train"] == pytest.approx(3.0)
    assert report["versions"]["flwr"] == "1.41.0"


def test_build_report_gives_the_figures_that_are_written(heart: ReportPaths) -> None:
    history = Fold.of(read_events(heart.json.parent / "events.jsonl")).history()
    spec = parse_federation(
        {
            "federation": {"name": "heart", "rounds": 6, "seed": 7},
            "task": {"use": "heart"},
            "aggregation": {"protection": "plain"},
        },
        base=Path(),
    )
    built = build_report(heart.json.parent, spec_effective=spec.effective(), history=history)
    written = strictly(heart.json)
    assert written.pop("clearance")["state"] == "not audited"
    assert built == written


def test_the_page_begins_with_a_verdict_for_people(heart: ReportPaths) -> None:
    text = Page(heart.html.read_text()).text
    assert (
        "Four hospitals trained one model in six rounds. On the 254 pooled test records it is right 75.0% of the time, "
        "5.5 points less than training on the pooled data (80.5%); no site's own model does better (best: long-beach-va, 71.5%)."
    ) in text
    assert "The server saw each site's update in clear, and no differential privacy was applied." in text


def test_the_page_shows_federated_pooled_and_each_site_alone_side_by_side(heart: ReportPaths) -> None:
    text = Page(heart.html.read_text()).text
    assert re.search(r"\d to \d", text)
    order = [
        "Federated, round 6 75.0% 69.3 to 79.9%",
        "Trained on the pooled data 80.5%",
        *(f"{name} alone" for name in HOSPITALS),
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    for part in (
        "not-finite",
        "Every site that was asked answered in time",
        "cloister simulate federation.toml",
        "flwr 1.41.0",
        "federation.rounds",
    ):
        assert part in text
    for title in (
        "Accuracy by round",
        "Loss by round",
        "Last confusion matrix",
        "Who holds what",
        "Traffic by round",
        "Time by round",
    ):
        assert title in text
    assert re.search(r"federation\.rounds 6 file", text)
    assert re.search(r"training\.batch_size 32 default", text)


def test_the_page_needs_nothing_outside_itself_and_runs_nothing(
    heart: ReportPaths, hostile: ReportPaths
) -> None:
    for paths in (heart, hostile):
        source = paths.html.read_text()
        page = Page(source)
        assert [load for load in page.loads if not load.startswith("data:image/png;base64,")] == []
        assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & set(page.tags)
        assert page.handlers == []
        assert "http:" not in source
        assert "https:" not in source
        assert not re.search(r"url\((?!#)|@import", source)
        assert "default-src 'none'" in source
        assert len(page.ids) == len(set(page.ids))
        assert page.tags.count("svg") >= 7


def test_a_hostile_name_is_text_wherever_it_is_shown(hostile: ReportPaths) -> None:
    source, page = hostile.html.read_text(), Page(hostile.html.read_text())
    assert "<script" not in source.lower()
    assert "<!--" not in source, "a plot's comments would quote its texts"
    assert "\x1b" not in source
    assert "\u202e" not in source
    assert "<script>alert(1)</script>-->&\"'$x_{2}$" in page.text, "escaped, not dropped"
    assert page.text.count("$b_2$") >= 3, "a name is no formula: legend and both axes of the confusion matrix"
    assert page.tags.count("p") == source.count("<p>") + source.count("<p ")


def test_a_hostile_name_adds_no_markup_to_the_model_card(hostile: ReportPaths) -> None:
    card = hostile.card.read_text()
    assert "\\<script\\>alert(1)\\</script\\>" in card
    assert not re.search(r"(?<!\\)[<>]", card)
    assert "](" not in card.replace("\\](", "")
    rows = [line for line in card.splitlines() if line.startswith("| ")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows[:5]}) == 1, "no name splits a cell"


def test_the_model_card_says_what_who_gets_the_model_must_know(heart: ReportPaths) -> None:
    card = heart.card.read_text()
    assert card.startswith("# Heart disease at four hospitals\n")
    headings = [line for line in card.splitlines() if line.startswith("## ")]
    assert headings == ["## Task", "## Intended use", "## Data", "## How it was trained", "## How well it does", "## Limits", "## Privacy", "## Versions"]  # fmt: skip
    for part in (
        "Source: UCI Heart Disease", "Licence: CC BY 4.0", "not a medical device", "6 of 6 planned rounds", "2,178 parameters",
        "| Federated, round 6 | 75.0% (69.3 to 79.9%) |", "| switzerland | 32 |", "It does worst at cleveland", "one local epoch",
        "saw each site's update in clear", "torch 2.13.0", "One reply was refused",
    ):  # fmt: skip
        assert part.lower() in card.lower(), part


def test_the_same_folder_gives_the_same_bytes(heart: ReportPaths, tmp_path: Path) -> None:
    copy = shutil.copytree(heart.json.parent, tmp_path / heart.json.parent.name)
    again = write_report(copy)
    assert [path.read_bytes() for path in (again.json, again.html, again.card)] == [
        path.read_bytes() for path in (heart.json, heart.html, heart.card)
    ]
    assert not [path for path in copy.iterdir() if path.name.startswith(".")], "no temporary file is left"


def test_a_resumed_run_reports_the_same_as_an_unbroken_one(heart: ReportPaths, tmp_path: Path) -> None:
    resumed = write_report(make_run(tmp_path / "heart-1", crash_after=3))
    assert strictly(resumed.json) == strictly(heart.json)
    assert resumed.html.read_text() == heart.html.read_text()
    assert resumed.card.read_text() == heart.card.read_text()


def test_without_central_evaluation_the_sites_speak_for_the_model(tmp_path: Path) -> None:
    paths = write_report(make_run(tmp_path / "run", central=False, baselines=False))
    report, text = strictly(paths.json), Page(paths.html.read_text()).text
    assert report["metrics"]["central"] is None
    assert report["metrics"]["sites_mean"]["last"]["accuracy"] == pytest.approx(0.76)
    assert (
        "On the sites' own test records (66 in all, mean of the sites) it is right 76.0% of the time." in text
    )
    assert "Last confusion matrix" not in text
    assert "No baselines were trained" in text
    assert not re.search(r"\d to \d", text), "a mean of sites is no share of records: no interval"


def test_one_site_is_a_federation(tmp_path: Path) -> None:
    paths = write_report(make_run(tmp_path / "run", names=["alone"], rounds=1))
    assert "One hospital trained one model in one round." in Page(paths.html.read_text()).text


@pytest.mark.parametrize(
    ("end", "says"),
    [("failed", "did not finish a round: the disk is full."), (None, "did not finish a round.")],
)
def test_a_run_without_a_round_has_a_report(tmp_path: Path, end: str | None, says: str) -> None:
    paths = write_report(make_run(tmp_path / "run", rounds=0, planned=5, end=end))
    report, page = strictly(paths.json), Page(paths.html.read_text())
    assert (report["rounds"], report["rounds_planned"], report["status"]) == (0, 5, end or "unfinished")
    assert report["metrics"]["central"] is None
    assert says in page.text
    assert "No model was measured" in page.text
    assert "The model was not measured" in paths.card.read_text()


def test_an_interrupted_run_says_how_far_it_came(tmp_path: Path) -> None:
    paths = write_report(make_run(tmp_path / "run", rounds=3, planned=30, end="interrupted", baselines=False))
    assert (
        "Four hospitals trained one model for three rounds of 30, then the run was interrupted."
        in Page(paths.html.read_text()).text
    )
    assert "this is not the model that was planned" in paths.card.read_text()


def test_a_regression_is_told_by_its_own_metrics(tmp_path: Path) -> None:
    paths = write_report(make_run(tmp_path / "run", classes=(), task={}))
    text = Page(paths.html.read_text()).text
    assert (
        "Four sites trained one model in six rounds. On the 254 pooled test records its R² is 0.750." in text
    )
    assert "R² by round" in text
    assert "% of the time" not in text
    assert "Regression." in paths.card.read_text()


def test_a_hundred_sites_are_summed_up(tmp_path: Path) -> None:
    names = [f"site-{number:03d}" for number in range(100)]
    classes = tuple(f"class {number}" for number in range(10))
    paths = write_report(make_run(tmp_path / "run", names=names, rounds=3, classes=classes, task={}, own=0.2))
    report, text = strictly(paths.json), Page(paths.html.read_text()).text
    assert len(report["metrics"]["sites"]) == 100
    assert text.startswith("site-000 – ") is False
    assert len(re.findall(r"site-\d{3} alone", text)) <= 12
    assert "median of 100 sites alone" in text
    assert "90 sites between them" in text
    assert "Middle 80% of the sites" in text
    assert len(paths.html.read_bytes()) < 600_000


def test_own_models_measured_on_other_records_are_not_compared(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", baselines=False, end=None)
    bus = EventBus(EventLog(folder / "events.jsonl"))
    bus.emit("evaluation", 6, where="baseline:pooled", records=99, loss=0.1, metrics={"accuracy": 0.99})
    bus.close()
    text = Page(write_report(folder).html.read_text()).text
    assert "it is right 75.0% of the time." in text


def test_privacy_events_are_told_and_never_called_none(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    bus = EventBus(EventLog(folder / "events.jsonl"))
    bus.emit("privacy", 6, epsilon=1.5, allowed=3.0, delta=1e-5, site="cleveland", relation="zero-out")
    bus.emit("audit", 6, check="structure", verdict="passed", evidence={"layers": 4}, power=None, reason="")
    bus.close()
    report = strictly(write_report(folder).json)
    assert (report["privacy"]["epsilon"], report["privacy"]["delta"], report["privacy"]["relation"]) == (
        1.5,
        1e-5,
        "zero-out",
    )
    assert report["privacy"]["sites"]["cleveland"] == {"epsilon": 1.5, "allowed": 3.0, "delta": 1e-5}
    assert report["audit"]["structure"]["verdict"] == "passed"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("federation.toml", None, "cannot read"),
        ("federation.toml", "name = ", "is not TOML"),
        ("events.jsonl", None, "cannot read the events file"),
        ("events.jsonl", "", "no 'run' event"),
        ("events.jsonl", "{}\n", "line 1 of"),
        ("origins.json", "[1]", "does not hold a table"),
        ("origins.json", "{", "as JSON"),
    ],
)
def test_a_folder_that_is_no_run_is_refused_and_nothing_is_written(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    folder = make_run(tmp_path / "run", rounds=1, baselines=False)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    with pytest.raises(IntegrityError, match=message):
        write_report(folder)
    assert not (folder / "report.json").exists()
    assert not (folder / "report.html").exists()


def test_origins_may_be_absent(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", rounds=1, baselines=False)
    (folder / "origins.json").unlink()
    assert "federation.rounds 1 –" in Page(write_report(folder).html.read_text()).text


def test_letters_that_the_measuring_font_lacks_are_drawn_all_the_same(tmp_path: Path) -> None:
    paths = write_report(
        make_run(tmp_path / "run", names=["東京大学", "🏥", "مستشفى", "a"], rounds=2, baselines=False)
    )
    assert Page(paths.html.read_text()).text.count("東京大学") >= 3


def test_no_number_that_a_site_sends_breaks_the_report(tmp_path: Path) -> None:
    """The server checks that a site's figures are finite, not that they are sensible."""
    folder = make_run(tmp_path / "run", rounds=2)
    bus = EventBus(EventLog(folder / "events.jsonl"))
    for number_of, value in ((1, 1e308), (2, -1e308)):
        bus.emit(
            "evaluation", number_of, where="site:cleveland", loss=value, records=2**62,
            metrics={"accuracy": value, "f1": -value, "round": 9.0, "x" * 5000: 1.0}, confusion=[[2**62, 0], [0, 0]],
        )  # fmt: skip
        bus.emit(
            "evaluation",
            number_of,
            where="sites",
            loss=value,
            records=3,
            metrics={"accuracy": value, "f1": value},
        )
    bus.close()
    paths = write_report(folder)
    last = strictly(paths.json)["metrics"]["sites"]["cleveland"]["last"]
    assert (last["round"], last["accuracy"]) == (2, -1e308), (
        "a metric called 'round' does not stand for the round"
    )
    assert "-1.00e+308" in Page(paths.html.read_text()).text


def test_model_card_can_be_made_of_the_figures_alone(heart: ReportPaths) -> None:
    history = Fold.of(read_events(heart.json.parent / "events.jsonl")).history()
    report = strictly(heart.json)
    clearance = Clearance(state="not audited", sentence="Nobody looked.")
    card = model_card(report=report, spec={}, history=history, clearance=clearance)
    assert card.startswith("# Heart disease")
    assert "**Not audited.** Nobody looked." in card


def test_numbers_carry_no_more_digits_than_they_mean() -> None:
    assert [number(value) for value in (0, 0.123456, 12.345, 99.97, 999.7, 1234.5, 1e-7, None, float("nan"))] == [
        "0", "0.123", "12.3", "100", "1,000", "1,234", "1.00e-07", "–", "–",
    ]  # fmt: skip
    assert [bytes_text(value) for value in (0, 999, 1234, 999_600, 1.234e6, None)] == [
        "0 B",
        "999 B",
        "1.23 kB",
        "1.00 MB",
        "1.23 MB",
        "–",
    ]
    assert [seconds_text(value) for value in (0, 0.0001, 0.2134, 12.34, 99.96, 125, 3599.9, 11_400)] == [
        "0 s", "< 1 ms", "213 ms", "12.3 s", "1 min 40 s", "2 min 05 s", "1 h 00 min", "3 h 10 min",
    ]  # fmt: skip
    assert (percent(0.80123), percent(None)) == ("80.1%", "–")
    assert (metric_text("f1", 0.5), metric_text("auroc", 0.5), metric_text("mse", 0.00123)) == (
        "50.0%",
        "0.500",
        "0.00123",
    )
    assert (plural(1, "site"), plural(4, "site"), plural(100, "site"), plural(2, "class", "classes")) == (
        "one site", "four sites", "100 sites", "two classes",
    )  # fmt: skip
    assert listed([f"s{index}" for index in range(17)]) == "s0, s1, s2, s3, s4 +12"
    assert shown("a" * 100) == "a" * 47 + "…"


@pytest.mark.parametrize(("right", "records"), [(0, 10), (203, 254), (10, 10), (1, 1)])
def test_the_interval_is_wilsons_against_scipy(right: int, records: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(right, records).proportion_ci(0.95, method="wilson")
    assert interval95(right / records, records) == pytest.approx((expected.low, expected.high), abs=1e-6)
