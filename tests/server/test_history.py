"""The fold: what events add up to, and that a resumed run adds up to the same as an unbroken one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.server.events import EventBus, EventLog, read_events
from cloister.server.folding import Fold
from cloister.server.history import History, Measured, best_of

SITES = ("a", "b", "c")
RUN = {
    "name": "made-up",
    "rounds": 6,
    "sites": 3,
    "site_names": SITES,
    "seed": 7,
    "digest": "d1",
    "classes": ["no", "yes"],
}


def emit_round(bus: EventBus, number: int, *, seed: int = 0) -> None:
    """One round that depends on its number only: site b is refused in round 2, site c is missing in round 3."""
    rng = np.random.default_rng([seed, number])
    refused, missing = [], []
    for site in SITES:
        status, reason = "answered", None
        if (site, number) == ("b", 2):
            status, reason = "refused", "not-finite: the update holds NaN"
            refused.append({"site": site, "reason": reason})
        elif (site, number) == ("c", 3):
            status, reason = "missing", "missing"
            missing.append(site)
        loss = float(rng.random()) if status == "answered" else None
        bus.emit(
            "site", number, site=site, phase="train", status=status, reason=reason, seconds=0.5, loss=loss
        )
    for where in ("central", "sites", "site:a"):
        accuracy = float(rng.random())
        bus.emit(
            "evaluation", number, where=where, loss=1 - accuracy, metrics={"accuracy": accuracy},
            confusion=[[number, 1], [2, 3]] if where == "central" else None, records=40,
        )  # fmt: skip
    bus.emit(
        "round", number, cohort=3, answered=3 - len(refused) - len(missing), missing=missing, refused=refused,
        loss=0.5 / number, update_norm=1.0, bytes_down=300, bytes_up=100 * (3 - len(missing)),
        seconds={"train": 1.0, "aggregate": 0.25, "evaluate": 0.5, "checkpoint": 0.125},
    )  # fmt: skip


def history_of(path: Path) -> History:
    return Fold.of(read_events(path)).history()


@pytest.fixture
def unbroken(tmp_path: Path) -> History:
    bus = EventBus(EventLog(tmp_path / "unbroken.jsonl"))
    bus.emit("run", 0, **RUN)
    for number in range(1, 7):
        emit_round(bus, number)
    bus.emit("end", 6, status="done", code="done", message="", model="model.safetensors")
    bus.close()
    return history_of(tmp_path / "unbroken.jsonl")


def test_figures_are_those_of_the_events(unbroken: History) -> None:
    assert unbroken.run is not None
    assert (unbroken.run.name, unbroken.run.seed, unbroken.run.site_names) == ("made-up", 7, SITES)
    assert [one.round for one in unbroken.rounds] == [1, 2, 3, 4, 5, 6]
    assert unbroken.seconds == {"train": 6.0, "aggregate": 1.5, "evaluate": 3.0, "checkpoint": 0.75}
    assert {where: len(series.points) for where, series in unbroken.series.items()} == {
        "central": 6,
        "sites": 6,
        "site:a": 6,
    }
    assert unbroken.end is not None
    assert unbroken.end.model == "model.safetensors"


def test_a_refusal_told_by_the_site_and_by_the_round_counts_once_under_its_stable_reason(
    unbroken: History,
) -> None:
    assert unbroken.refused_by_reason == {"not-finite": 1}
    assert [(one.round, one.site, one.phase) for one in unbroken.refused] == [(2, "b", "train")]


def test_sites_are_tallied_and_share_the_traffic_of_their_rounds(unbroken: History) -> None:
    a, b, c = (unbroken.sites[site] for site in SITES)
    assert (a.asked, a.answered, a.refused, a.missing, a.seconds) == (6, 6, 0, 0, 3.0)
    assert (b.answered, b.refused, b.missing) == (5, 1, 0)
    assert (c.answered, c.refused, c.missing) == (5, 0, 1)
    assert (a.bytes_down, b.bytes_down, c.bytes_down) == (600, 600, 600)
    assert (a.bytes_up, b.bytes_up, c.bytes_up) == (600, 600, 500)
    assert not unbroken.bytes_measured


def test_traffic_that_sites_state_is_theirs_and_not_a_share(tmp_path: Path) -> None:
    bus = EventBus(EventLog(tmp_path / "e.jsonl"))
    bus.emit("run", 0, **RUN)
    for phase, down, up in (("train", 10, 20), ("evaluate", 3, 1)):
        bus.emit("site", 1, site="a", phase=phase, status="answered", bytes_down=down, bytes_up=up)
        bus.emit("site", 1, site="b", phase=phase, status="answered", bytes_down=2 * down, bytes_up=2 * up)
    bus.emit("round", 1, cohort=2, answered=2, bytes_down=999, bytes_up=999)
    bus.close()
    history = history_of(tmp_path / "e.jsonl")
    assert history.bytes_measured
    assert (history.sites["a"].bytes_down, history.sites["b"].bytes_up) == (13, 42)


def test_best_is_the_highest_accuracy_else_the_lowest_loss_and_the_earliest_of_equals() -> None:
    def point(number: int, loss: float | None, **metrics: float) -> Measured:
        return Measured(round=number, loss=loss, metrics=metrics, confusion=None, records=1)

    assert (
        best_of([point(1, 0.1, accuracy=0.5), point(2, 0.9, accuracy=0.8), point(3, 0.2, accuracy=0.8)]).round
        == 2
    )
    assert best_of([point(1, 0.5, mae=1.0), point(2, 0.3, mae=9.0), point(3, 0.3, mae=2.0)]).round == 2
    assert best_of([point(1, None), point(2, 0.3), point(3, 0.4)]).round == 2
    assert best_of([point(1, None), point(2, None)]).round == 2


def test_confusion_matrices_are_kept_for_the_last_and_the_best_evaluation_only(unbroken: History) -> None:
    central = unbroken.series["central"]
    kept = {point.round for point in central.points if point.confusion is not None}
    assert kept == {6, central.best.round}
    assert central.best.round != 6, "the fixture must tell best from last"
    assert central.last.confusion == ((6, 1), (2, 3))


def test_an_attempt_that_failed_shows_in_the_refusals_and_the_last_attempt_in_the_tally(
    tmp_path: Path,
) -> None:
    bus = EventBus(EventLog(tmp_path / "e.jsonl"))
    bus.emit("run", 0, **RUN)
    bus.emit("site", 1, site="a", phase="train", status="refused", reason="wrong-shape: (3,)")
    bus.emit("site", 1, site="a", phase="train", status="answered", loss=0.5)
    bus.emit("round", 1, cohort=1, answered=1)
    bus.close()
    history = history_of(tmp_path / "e.jsonl")
    assert history.refused_by_reason == {"wrong-shape": 1}
    assert (history.sites["a"].answered, history.sites["a"].refused) == (1, 0)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 5), max_size=3), lost=st.integers(0, 2), truncate=st.booleans())
def test_a_resumed_run_has_the_history_of_an_unbroken_one(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], lost: int, truncate: bool
) -> None:
    """Rounds ``lost`` after the checkpoint are done again, whether the log was truncated or says where it was resumed."""
    folder = tmp_path_factory.mktemp("runs")
    for name, breaks in (("unbroken", []), ("resumed", sorted(cuts))):
        log = EventLog(folder / f"{name}.jsonl")
        bus = EventBus(log)
        bus.emit("run", 0, **RUN)
        positions, done = [bus.position()], 0
        for cut in [*breaks, 6]:
            for number in range(done + 1, cut + 1):
                emit_round(bus, number)
                positions.append(bus.position())
            if cut == 6:
                break
            for number in range(
                cut + 1, min(cut + lost, 5) + 1
            ):  # after the checkpoint: other figures, so that they would show
                emit_round(bus, number, seed=1)
            bus.emit("warning", cut + 1, text="lost with the crash")
            bus.emit("end", 0, status="interrupted")
            if truncate:
                log.truncate(positions[cut])
            else:
                bus.emit("run", cut, **{**RUN, "seed": 8}, resumed_from=cut)
            del positions[cut + 1 :]
            done = cut
        bus.emit("end", 6, status="done")
        bus.close()
    unbroken, resumed = history_of(folder / "unbroken.jsonl"), history_of(folder / "resumed.jsonl")
    assert resumed.resumed_from == (() if truncate else tuple(sorted(cuts)))
    different = {key for key, value in vars(unbroken).items() if value != vars(resumed)[key]}
    assert different <= {"resumed_from"}


def test_a_live_fold_keeps_neither_answers_nor_confusion_matrices(tmp_path: Path) -> None:
    bus = EventBus(EventLog(tmp_path / "e.jsonl"))
    bus.emit("run", 0, **RUN)
    for number in (1, 2):
        emit_round(bus, number)
    bus.close()
    live = Fold.of(read_events(tmp_path / "e.jsonl"), live=True)
    assert "a" not in live.history().sites
    assert live.history().series["central"].last.confusion is None
    newest = live.newest("central")
    assert newest is not None
    assert newest == Fold.of(read_events(tmp_path / "e.jsonl"), live=True).history().series["central"].last
    assert live.newest("baseline:pooled") is None


def test_privacy_keeps_the_newest_event_of_each_site_and_warnings_are_told_once(tmp_path: Path) -> None:
    bus = EventBus(EventLog(tmp_path / "e.jsonl"))
    bus.emit("privacy", 1, epsilon=0.5, allowed=3.0, site="a")
    bus.emit("privacy", 2, epsilon=0.9, allowed=3.0, site="a")
    bus.emit("privacy", 2, epsilon=0.2, allowed=3.0, site="b")
    for _ in range(3):
        bus.emit("warning", 2, text="again")
    bus.emit("audit", 2, check="structure", verdict="passed")
    bus.close()
    history = history_of(tmp_path / "e.jsonl")
    assert {site: event["epsilon"] for site, event in history.privacy.items()} == {"a": 0.9, "b": 0.2}
    assert history.warnings == ("again",)
    assert history.audits["structure"]["verdict"] == "passed"


def test_no_event_is_an_empty_history() -> None:
    history = Fold().history()
    assert (history.run, history.end, history.rounds, history.refused, history.sites) == (
        None,
        None,
        (),
        (),
        {},
    )
    assert not history.bytes_measured


def test_a_metric_that_was_not_finite_is_left_out_and_a_kind_not_known_passed_over() -> None:
    fold = Fold()
    event: dict[str, Any] = {"kind": "evaluation", "round": 1, "where": "central", "loss": None, "records": 5}
    fold.add({**event, "metrics": {"accuracy": 0.5, "auroc": None}})
    fold.add({"kind": "from-the-future", "round": 1})
    point = fold.history().series["central"].last
    assert dict(point.metrics) == {"accuracy": 0.5}
    assert point.loss is None
