"""Signals in a run: computed where rows may be told of, kept over a resume, and never a row more than the rule needs."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from torch import nn

from cloister.core import protocol
from cloister.core.errors import IntegrityError
from cloister.core.randomness import SeededRandomness
from cloister.core.spec import parse_federation
from cloister.core.update import Layout
from cloister.server.events import EventBus, EventLog, read_events
from cloister.server.folding import Fold
from cloister.server.gathered import Seen
from cloister.server.gathering import Gatherer, gatherer_from, group_gatherer_from
from cloister.server.replies import CheckedUpdate
from cloister.server.report.standing import signals_plot, standing_table, standing_words
from cloister.server.signals import Signals
from cloister.strategies.signals import RowSignals

SIZE = 34
LAYOUT = Layout.of(
    nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(2, 1), nn.Linear(1, 1, bias=False))
)
NAMES = [f"site-{place}" for place in range(6)]


def gatherer(size: int = SIZE, **tables: Any) -> Gatherer:
    document: dict[str, Any] = {
        "federation": {"name": "t", "rounds": 3},
        "task": {"use": "digits"},
        "cohort": {"sites": 12},
        "aggregation": {"protection": "plain"},
        **tables,
    }
    spec = parse_federation(document, base=Path()).spec
    return gatherer_from(spec, size=size, randomness=SeededRandomness(0))


def seen_in(made: Gatherer, number: int, rows: npt.NDArray[np.float32]) -> Seen | None:
    gathering = made.start(number, (protocol.VECTOR,))
    for row in rows:
        assert gathering.add(CheckedUpdate(arrays={protocol.VECTOR: row}, loss=0.0, records=1)) is None
    return gathering.finish().seen


def drawn(seed: int, n: int = 6, size: int = SIZE) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, size)).astype(np.float32)


class TestWhatIsSeen:
    def test_under_the_mean_norms_and_cosines_to_the_last_direction_also_after_a_resume(self) -> None:
        made, first, second = gatherer(), drawn(1), drawn(2)
        assert seen_in(made, 1, first) is None  # there is no direction before
        again = gatherer()
        again.restore(made.arrays())
        for one in (made, again):
            seen = seen_in(one, 2, second)
            assert seen is not None
            assert seen.toward == "last"
            last = first.mean(axis=0, dtype=np.float64)
            lengths = np.linalg.norm(second.astype(np.float64), axis=1)
            assert seen.signals.norm == pytest.approx(lengths)
            assert seen.signals.cosine == pytest.approx(
                second @ last / lengths / np.linalg.norm(last), abs=1e-6
            )
            assert seen.signals.agreement is None

    def test_under_a_robust_rule_cosines_to_the_median_and_weights(self) -> None:
        seen = seen_in(gatherer(aggregation={"rule": "krum", "byzantine": 1}), 1, drawn(1))
        assert seen is not None
        assert seen.toward == "median"
        assert seen.shares is not None
        assert sorted(seen.shares) == [0, 0, 0, 0, 0, 1]

    @pytest.mark.parametrize("unit", ["site", "site-local"])
    def test_nothing_of_a_site_where_noise_or_a_guarantee_would_not_cover_it(self, unit: str) -> None:
        made = gatherer(
            privacy={"unit": unit, "noise_multiplier": 1.0, "delta": 1e-3, "clip": 100.0},
        )
        for number in (1, 2):
            assert seen_in(made, number, drawn(number)) is None

    def test_of_groups_the_rows_by_the_groups_names(self) -> None:
        spec = parse_federation(
            {
                "federation": {"name": "t", "rounds": 3},
                "task": {"use": "digits"},
                "cohort": {"sites": 12},
                "aggregation": {"rule": "median", "byzantine": 1, "group_size": 3},
            },
            base=Path(),
        ).spec
        made = group_gatherer_from(spec, size=SIZE, randomness=SeededRandomness(0), members=[3, 3, 3, 3])
        rows = made.start(1, (protocol.VECTOR,))
        for group in (0, 2, 3):
            rows.add_group(group, {protocol.VECTOR: 3.0 * drawn(group, 1)[0], "cut": np.zeros(1)}, 3)
        seen = rows.finish().seen
        assert seen is not None
        assert seen.names == ("group 0", "group 2", "group 3")
        expected = [np.linalg.norm(drawn(group, 1)[0].astype(np.float64)) for group in (0, 2, 3)]
        assert seen.signals.norm == pytest.approx(expected)

    def test_the_mean_keeps_no_rows_for_them(self) -> None:
        size, n = 200_000, 20
        made = gatherer(size)
        seen_in(made, 1, drawn(1, 2, size))
        gathering = made.start(2, (protocol.VECTOR,))
        tracemalloc.start()
        for number in range(n):
            update = CheckedUpdate(arrays={protocol.VECTOR: drawn(number, 1, size)[0]}, loss=0.0, records=1)
            gathering.add(update)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * 4 * size  # of 20 rows


class Watched:
    """A run's signals, and the events that they become."""

    def __init__(self, folder: Path) -> None:
        self.log = EventLog(folder / "events.jsonl")
        self.bus = EventBus(self.log)
        self.bus.emit("run", 0, name="t", rounds=9, sites=6, site_names=NAMES)
        self.signals = Signals(LAYOUT, self.bus)

    def tell(self, number: int, odd: float | None) -> None:
        cosines = np.array([0.5, 0.52, 0.48, 0.51, 0.49, 0.5 if odd is None else odd])
        seen = Seen(
            signals=RowSignals(np.ones(6), cosines, None), toward="median", shares=np.array([0.2] * 5 + [0.0])
        )
        self.bus.emit("round", number, cohort=6, answered=6)
        self.signals.tell(number, np.arange(1.0, LAYOUT.size + 1), seen, NAMES)

    def events(self) -> list[dict[str, Any]]:
        return [event for event in read_events(self.log.path) if event["kind"] == "signals"]


class TestInTheRun:
    def test_the_event_holds_every_row_and_an_alert_is_told_once_as_a_warning(self, tmp_path: Path) -> None:
        run = Watched(tmp_path)
        for number in range(1, 8):
            run.tell(number, -0.9)
        found = run.events()
        assert [row["who"] for row in found[0]["rows"]] == NAMES
        assert found[0]["rows"][5] == {
            "who": "site-5",
            "norm": 1.0,
            "cosine": -0.9,
            "agreement": None,
            "weight": 0.0,
        }
        alerts = [(event["round"], alert["who"], alert["of"]) for event in found for alert in event["alerts"]]
        assert alerts == [(3, "site-5", 6)]
        warnings = [event["text"] for event in read_events(run.log.path) if event["kind"] == "warning"]
        assert len(warnings) == 1
        assert "'site-5' has stood out" in warnings[0]
        assert "nothing was done about it" in warnings[0]

    def test_the_direction_s_norm_cosine_and_last_layer(self, tmp_path: Path) -> None:
        run = Watched(tmp_path)
        run.tell(1, None)
        run.tell(2, None)
        first, second = run.events()
        direction = np.arange(1.0, LAYOUT.size + 1)
        assert first["direction"] == {
            "norm": pytest.approx(float(np.linalg.norm(direction))),
            "cosine": None,
            "last_layer": pytest.approx(
                LAYOUT.size / float(np.linalg.norm(direction))
            ),  # the last weight alone
        }
        assert second["direction"]["cosine"] == pytest.approx(1)

    def test_a_resumed_run_goes_on_with_the_sums_and_the_direction(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        whole, broken = Watched(tmp_path / "a"), Watched(tmp_path / "b")
        for number in range(1, 5):
            whole.tell(number, -0.9)
        broken.tell(1, -0.9)
        broken.tell(2, -0.9)
        arrays = broken.signals.arrays()
        broken.signals = Signals(LAYOUT, broken.bus)
        broken.signals.restore(arrays)
        broken.tell(3, -0.9)
        broken.tell(4, -0.9)
        times = [[{**event, "time": ""} for event in run.events()] for run in (whole, broken)]
        assert times[0] == times[1]

    @pytest.mark.parametrize(
        "change",
        [
            {"state": np.frombuffer(b"{", dtype=np.uint8)},
            {"state": np.frombuffer(json.dumps({"sums": {"a": [1]}, "told": []}).encode(), dtype=np.uint8)},
            {"last": np.zeros(3, dtype=np.float32)},
        ],
    )
    def test_a_checkpoint_that_does_not_fit_is_refused(self, tmp_path: Path, change: dict[str, Any]) -> None:
        run = Watched(tmp_path)
        run.tell(1, None)
        with pytest.raises(IntegrityError):
            run.signals.restore({**run.signals.arrays(), **change})


class TestInTheReport:
    def test_who_stood_out_is_a_table_in_plain_words_and_a_plot(self, tmp_path: Path) -> None:
        run = Watched(tmp_path)
        for number in range(1, 6):
            run.tell(number, -0.9)
        history = Fold.of(read_events(run.log.path)).history()
        table = standing_table(history)
        assert table is not None
        (row,) = table.rows
        assert row.head == "site-5"
        assert row.cells[0] == "Its updates point elsewhere than most"
        assert row.cells[2] == "3"
        assert "data unlike the others'" in row.cells[3]
        assert "is no proof" in standing_words(history)
        plot = signals_plot(history)
        assert plot is not None
        assert "site-5" in plot

    def test_nobody_stood_out_or_nobody_could(self, tmp_path: Path) -> None:
        run = Watched(tmp_path)
        run.tell(1, None)
        history = Fold.of(read_events(run.log.path)).history()
        assert standing_table(history) is None
        assert standing_words(history).startswith("Nobody stood out")
        (tmp_path / "sums").mkdir()
        hidden = Watched(tmp_path / "sums")
        for number in (1, 2):
            hidden.bus.emit("round", number, cohort=6, answered=6)
            hidden.signals.tell(number, np.ones(LAYOUT.size), None, [])
        history = Fold.of(read_events(hidden.log.path)).history()
        assert standing_words(history).startswith("The server saw sums over all sites only")
        assert signals_plot(history) is not None
